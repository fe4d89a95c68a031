"""Scoring stored generations again: the dataset is prepared anew and must be the very one they were made on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config import parse_overrides
from bench.errors import UsageError
from bench.plan import DEFAULT_METRICS, applicable, check_parts, dataset_of, make_metrics
from bench.reopen import check_dataset, config_of
from bench.runner import score_run
from bench.store import Listing, StoredRun, find_runs

if TYPE_CHECKING:
    from bench.data.split import Dataset


def rescore(root: Path, metrics: Sequence[str] | None, overrides: Sequence[str], force: bool) -> None:
    """Scores all complete runs under `root` with the metrics they lack (all of them if `force`)."""
    listing = find_runs(root)
    for note in left_out(listing):
        print(note, file=sys.stderr)
    if not listing.runs:
        raise UsageError(f"no complete run under {root}; make one with: python -m bench run --methods nonperso,rag")
    if metrics is not None and not metrics:
        raise UsageError("--metrics names none; leave it out for all, see: python -m bench list metrics")
    names, assignments = metrics or DEFAULT_METRICS, parse_overrides(overrides)
    check_parts(assignments, names)
    made = make_metrics(names, assignments)
    datasets: dict[str, Dataset] = {}
    # All checks come before the first score, so that a run on vanished data does not stop the work half way.
    work = [(run, applicable(made, dataset_behind(run, datasets), asked=metrics is not None)) for run in listing.runs]
    for metric in made:
        if any(metric in wanted for _, wanted in work):
            metric.preflight()
    for run, wanted in work:
        new = score_run(run, dataset_behind(run, datasets), wanted, force)
        told = f"scored with {', '.join(new)}" if new else "has all these scores already (--force makes them anew)"
        print(f"{run.path}: {told}", file=sys.stderr)


def left_out(listing: Listing) -> list[str]:
    """One line on every damaged run of a folder, and one on those that are not finished."""
    notes = [f"left out: {problem}" for problem in (*listing.problems, *listing.divided)]
    if listing.incomplete:
        count, first = len(listing.incomplete), listing.incomplete[0]
        what = "run is" if count == 1 else "runs are"
        notes.append(
            f"left out: {count} {what} not complete (first: {first}); the command that made it goes on with it"
        )
    return notes


def dataset_behind(run: StoredRun, known: dict[str, Dataset]) -> Dataset:
    """The dataset that a run is on, from `known` or prepared. Raises UsageError if it is no longer the same."""
    key = str(run.description["dataset"])
    if key not in known:
        dataset = dataset_of(config_of(run))
        check_dataset(run, dataset)
        known[key] = dataset
    return known[key]
