"""The figures of a comparison: both scores, their difference, and how sure it is, for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.cells import wins_of
from bench.compare.changes import Change, most_changed
from bench.compare.sides import A, B, Clash, Side, common_metrics, find_side, refuse_incomparable
from bench.errors import UnknownName, UsageError
from bench.estimates import Axis, example_axis, make_options, values_of
from bench.stats import (
    DEFAULT_RESAMPLES,
    Estimate,
    Floats,
    SeedSpread,
    Wins,
    holm,
    paired_bootstrap,
    paired_permutation,
)
from bench.store import MetricInfo


@dataclass(frozen=True)
class MetricTest:
    """One metric. Scores and difference are of the examples for which both sides have a value under every seed."""

    info: MetricInfo
    a: Estimate
    b: Estimate
    difference: Estimate
    """B - A."""
    spread_a: SeedSpread | None
    spread_b: SeedSpread | None
    wins: Wins | None
    """Of B over A, by user; None for corpus metrics and those without a good side."""
    detectable: float | None
    p: float | None
    """Of a paired permutation test over users, two-sided; None with fewer than two users in common."""
    p_holm: float | None = None
    """Corrected over all metrics of the comparison."""


@dataclass(frozen=True)
class Comparison:
    """All that `compare` tells."""

    a: Side
    b: Side
    dataset: str
    examples: int
    """That both sides have."""
    union: int
    """That either has."""
    users: int
    """Of the examples that both sides have."""
    resamples: int
    tests: tuple[MetricTest, ...]
    clashes: tuple[Clash, ...]
    """What the sides disagree on and were compared in spite of."""
    by: str
    """The metric by which the examples are chosen."""
    by_reducer: str
    wanted: int
    """Examples that were asked for."""
    changes: tuple[Change, ...] = ()
    left_out: str | None = None
    """Why no examples are shown; None if they are, or if none were asked for."""


def compare_sides(
    first: Path,
    second: Path,
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    examples: int = 5,
    mixed: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares the runs in two folders, B with A as the baseline.

    `metrics` chooses and orders the metrics (default: all that both sides have), `by` the one whose largest changes are
    shown (default: the first), `examples` how many. Raises UsageError for folders that are no side, and for sides that
    differ in split, engine, sampling, prompt budget or metric signature unless `mixed`; UnknownName for a metric.
    """
    a, b = find_side(A, first), find_side(B, second)
    names = common_metrics(a, b, metrics)
    infos = make_options([a.entry, b.entry], names if metrics else None, None, resamples, seed)
    names = [name for name in infos.metrics if name in names]
    by = names[0] if by is None else by
    if by not in a.entry.metric_names & b.entry.metric_names:
        raise UnknownName("metric in --by", by, a.entry.metric_names & b.entry.metric_names)
    found = refuse_incomparable(a, b, list(dict.fromkeys([*names, by])), mixed)
    axis = example_axis([a.entry, b.entry])
    both = _in_both(a, b)
    if not both:
        raise UsageError(f"{a.path} and {b.path} have no example in common; give runs with the same --limit")
    tests = [_test(infos.infos[name], a, b, axis, resamples, seed) for name in names]
    # As in a table: what has no good side is not what anybody tests for, and makes nothing else less certain.
    asked = {i: test.p for i, test in enumerate(tests) if test.p is not None and test.info.name in infos.ranked}
    for i, corrected in zip(asked, holm(list(asked.values())), strict=True):
        tests[i] = replace(tests[i], p_holm=corrected)
    changes, reason = most_changed(a, b, infos.infos[by], axis, examples)
    return Comparison(
        a=a,
        b=b,
        dataset=a.entry.runs[0].dataset,
        examples=len(both),
        union=len(axis.examples),
        users=len({axis.users[axis.examples[example]] for example in both}),
        resamples=resamples,
        tests=tuple(tests),
        clashes=tuple(found),
        by=by,
        by_reducer=infos.infos[by].reducer,
        wanted=examples,
        changes=tuple(changes),
        left_out=reason,
    )


def _in_both(a: Side, b: Side) -> set[str]:
    sides = [{record["example_id"] for run in side.entry.runs for record in run.records} for side in (a, b)]
    return sides[0] & sides[1]


def _test(info: MetricInfo, a: Side, b: Side, axis: Axis, resamples: int, seed: int) -> MetricTest:
    values = {side.entry.label: values_of(side.entry, info.name, axis.examples, info.reducer) for side in (a, b)}
    known = ~np.isnan(np.concatenate(list(values.values()))).any(axis=(0, 2))
    kept: dict[str, Floats] = {label: np.where(known[None, :, None], array, np.nan) for label, array in values.items()}
    scored = paired_bootstrap(kept, axis.users, reducer=info.reducer, baseline=A, resamples=resamples, seed=seed)
    p = paired_permutation(kept, axis.users, reducer=info.reducer, baseline=A, permutations=resamples, seed=seed)[B]
    ours, theirs = scored[B], scored[A]
    assert ours.difference is not None
    return MetricTest(
        info,
        theirs.score,
        ours.score,
        ours.difference,
        theirs.spread,
        ours.spread,
        wins_of(ours, info),
        ours.detectable,
        p,
    )
