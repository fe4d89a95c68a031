"""Scoring stored generations again: the dataset is prepared anew and must be the very one they were made on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import build, parse_overrides
from bench.errors import UsageError
from bench.plan import DEFAULT_METRICS, RunConfig, applicable, dataset_of, make_metrics
from bench.runner import score_run
from bench.store import StoredRun, find_runs

if TYPE_CHECKING:
    from bench.data.split import Dataset


def rescore(root: Path, metrics: Sequence[str] | None, overrides: Sequence[str], force: bool) -> None:
    """Scores all complete runs under `root` with the metrics they lack (all of them if `force`)."""
    runs = find_runs(root).runs
    if not runs:
        raise UsageError(f"no complete run under {root}")
    made = make_metrics(metrics or DEFAULT_METRICS, parse_overrides(overrides))
    for metric in made:
        metric.preflight()
    datasets: dict[str, Dataset] = {}
    for run in runs:
        dataset = _dataset(run, datasets)
        score_run(run, dataset, applicable(made, dataset, asked=metrics is not None), force)
        print(f"scored {run.path}", file=sys.stderr)


def _dataset(run: StoredRun, known: dict[str, Dataset]) -> Dataset:
    key = str(run.description["dataset"])
    if key not in known:
        about: Any = run.plan.get("about", {}).get("config")
        if not isinstance(about, dict):
            raise UsageError(f"{run.path} does not say which dataset it came from; run it again")
        dataset = dataset_of(build(RunConfig, about, str(run.path / "plan.json")))
        now = {"name": dataset.name, "fingerprint": dataset.fingerprint, "selection": dataset.selection}
        if now != run.description["dataset"]:
            raise UsageError(
                f"{run.path} was made on another state of dataset {dataset.name!r} (fingerprint "
                f"{run.description['dataset']['fingerprint'][:12]}, now {dataset.fingerprint[:12]}); run it again"
            )
        known[key] = dataset
    return known[key]
