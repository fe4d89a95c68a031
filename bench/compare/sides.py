"""What a comparison's two folders hold, and whether that may be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.comparison import Entry, clashes, make_entries, printable
from bench.errors import UnknownName, UsageError
from bench.rescore import left_out
from bench.store import find_runs

A, B = "A", "B"
_NEVER = ("dataset.name", "dataset.fingerprint")
"""Paths on which two sides must agree whatever is wished: on other data there is nothing to pair."""


@dataclass(frozen=True)
class Side:
    """One side: the runs of one method under one config, a run a seed. Its entry is labelled A or B."""

    title: str
    """The method and what an ablation calls it."""
    path: Path
    entry: Entry


@dataclass(frozen=True)
class Clash:
    """Something on which the sides disagree."""

    path: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.path} ({A}: {_told(self.a)}, {B}: {_told(self.b)})"


def _told(value: Any) -> str:
    """In full: two digests or signatures may differ in their last letters alone."""
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def find_side(letter: str, path: Path) -> Side:
    """The side in a folder of runs. Says on standard error what it leaves out.

    Raises UsageError if there is no complete run, or if there are several that are not seeds of one another.
    """
    listing = find_runs(path)
    for note in left_out(listing):
        print(note, file=sys.stderr)
    if not listing.runs:
        raise UsageError(f"{letter}: no complete run under {path}; make one with: python -m bench run")
    entries = make_entries(listing.runs)
    if len(entries) > 1:
        told = ", ".join(entry.label for entry in entries[:4]) + (", ..." if len(entries) > 4 else "")
        raise UsageError(
            f"{letter}: {path} holds {len(entries)} rows ({told}); give the folder of one, such as "
            f"{_folder_of(entries[0], entries)}"
        )
    entry = entries[0]
    return Side(entry.label, path, replace(entry, label=letter))


def _folder_of(entry: Entry, entries: Sequence[Entry]) -> Path:
    """The method's folder if it holds this row alone, else the folder of a run."""
    alone = sum(other.method == entry.method for other in entries) == 1
    return entry.runs[0].path.parent if alone else entry.runs[0].path


def common_metrics(a: Side, b: Side, wanted: Sequence[str] | None) -> list[str]:
    """The metrics that both sides have, or those of them that are wanted.

    Raises UnknownName for a wanted one that not both have, UsageError if they have none in common.
    """
    both = a.entry.metric_names & b.entry.metric_names
    for name in wanted or ():
        if name not in both:
            raise UnknownName("metric of both sides", name, both, "Scores are made with: python -m bench score")
    if not both:
        raise UsageError(
            f"no metric has scored both {a.path} and {b.path}; make the scores with: python -m bench score FOLDER"
        )
    return list(dict.fromkeys(wanted)) if wanted else sorted(both)


def refuse_incomparable(a: Side, b: Side, metrics: Sequence[str], mixed: bool) -> list[Clash]:
    """What the sides disagree on, where `mixed` allows that. Raises UsageError for all else that cannot be compared."""
    if {run.key for run in a.entry.runs} == {run.key for run in b.entry.runs}:
        raise UsageError(f"{a.path} and {b.path} hold the same runs; give two that differ")
    found = [_clash(path, values) for path, values in clashes([a.entry, b.entry], metrics).items()]
    never = [clash for clash in found if clash.path in _NEVER]
    if never:
        told = ", ".join(map(str, never))
        raise UsageError(f"A and B are of other data, they differ in {told}; run both on one state of one dataset")
    if found and not mixed:
        told = ", ".join(map(str, found))
        raise UsageError(
            f"A and B cannot be compared, they differ in {told}; give runs that share this, or compare them all the "
            f"same with --mixed{_cure(found)}"
        )
    return found


def _clash(path: str, values: dict[str, list[str]]) -> Clash:
    by_side = {labels[0]: json.loads(value) for value, labels in values.items()}
    return Clash(path, by_side[A], by_side[B])


def _cure(found: Sequence[Clash]) -> str:
    """What helps, besides --mixed, where metrics are of different make."""
    names = [clash.path.removeprefix("metrics.") for clash in found if clash.path.startswith("metrics.")]
    if not names:
        return ""
    return f" (python -m bench score FOLDER --metrics {','.join(names)} --force gives both the same metrics)"
