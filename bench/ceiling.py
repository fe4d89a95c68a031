"""What users really wrote, stored as a run: the row that no method should beat on a metric that means something."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.comparison import REFERENCE, judged
from bench.config import parse_overrides
from bench.data.split import Dataset
from bench.errors import UsageError
from bench.keys import canonical_json
from bench.method_run import NO_ENGINE
from bench.plan import DEFAULT_METRICS, applicable, check_parts, dataset_of, make_metrics
from bench.provenance import provenance
from bench.reopen import check_dataset, config_of, stored_config
from bench.runner import say, score_run
from bench.store import BatchTiming, Existing, RunFolder, StoredRun, find_runs, read_scores

VERSION = "1"
"""Part of the row's key: raise it when its records change."""


def ceiling(root: Path, metrics: Sequence[str] | None, overrides: Sequence[str], force: bool) -> list[StoredRun]:
    """Stores and scores the real texts of every dataset and selection that complete runs under `root` are on.

    `metrics` (default: the registered ones among those the runs are scored with) see them under the runs' own knobs,
    with `overrides` on top. Raises UsageError if there is no run, or if one's data are no longer the same.
    """
    groups = _by_dataset([run for run in find_runs(root).runs if run.method != REFERENCE])
    if not groups:
        raise UsageError(f"no complete run under {root}; make one with: python -m bench run --methods nonperso,rag")
    if metrics is not None and not metrics:
        raise UsageError("--metrics names none; leave it out for those of the runs, see: python -m bench list metrics")
    found = []
    for runs in groups:
        dataset = dataset_of(config_of(runs[0]))
        check_dataset(runs[0], dataset)
        names = metrics if metrics is not None else _scored(runs)
        theirs, ours = parse_overrides(config_of(runs[0]).overrides), parse_overrides(overrides)
        check_parts(ours, names)
        made = make_metrics(names, {name: {**theirs.get(name, {}), **ours.get(name, {})} for name in names})
        wanted = applicable(made, dataset, asked=metrics is not None)
        for metric in wanted:
            metric.preflight()
        run = _store(dataset, runs[0])
        score_run(run, dataset, wanted, force)
        say(f"{run.path}: {run.totals['examples']} real texts, scored with {', '.join(m.name for m in wanted)}")
        found.append(run)
    return found


def _by_dataset(runs: Sequence[StoredRun]) -> list[list[StoredRun]]:
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(canonical_json(run.description["dataset"]), []).append(run)
    return list(groups.values())


def _scored(runs: Sequence[StoredRun]) -> list[str]:
    """The registered metrics that any of the runs is scored with; the usual ones where none is."""
    names = {name for run in runs if (scores := read_scores(run)) for name in scores.metrics}
    known = sorted(names & set(registry.names("metric")))
    if left := sorted(name for name in names - set(known) if not judged(name)):
        print(f"{REFERENCE}: not scored with {', '.join(left)}; name them with --metrics", file=sys.stderr)
    return known or list(DEFAULT_METRICS)


def _store(dataset: Dataset, beside: StoredRun) -> StoredRun:
    """The run of the real texts in the store that holds `beside`."""
    description = {
        "dataset": dict(beside.description["dataset"]),
        "method": {"name": REFERENCE, "version": VERSION, "config": {}},
        "engine": NO_ENGINE,
        "seed": 0,
    }
    config = {**stored_config(beside), "methods": [REFERENCE], "ablate": [], "seeds": [0]}
    about = {**beside.plan["about"], "config": config, "provenance": provenance()}
    with RunFolder(beside.path.parents[2], description) as folder:
        if folder.open(Existing.RESUME, about).reuse:
            return StoredRun.load(folder.path)
        records = [_record(example.id, example.user_id, dataset.test.references) for example in dataset.test.examples]
        if folder.resume([[record["example_id"] for record in records]]) == 0:
            folder.append(0, records, BatchTiming(0, len(records), 0, 0, 0.0, 0.0, 0.0))
        return folder.finish(provenance=provenance(), label=REFERENCE, truth=True)


def _record(example_id: str, user_id: str, references: Mapping[str, str]) -> dict[str, Any]:
    return {
        "example_id": example_id,
        "user_id": user_id,
        "text": references[example_id],
        "prompt_sha256": None,
        "prompt_tokens": 0,
        "output_tokens": 0,
        "finish_reason": "none",
        "error": None,
    }
