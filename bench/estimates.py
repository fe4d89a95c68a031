"""From the rows of a table to estimates: scores with intervals, differences to a baseline with corrected p."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.comparison import Entry
from bench.errors import UnknownName, UsageError
from bench.stats import DIMENSIONS, Floats, Scored, holm, paired_bootstrap, paired_permutation
from bench.store import MetricInfo

DEFAULT_BASELINE = "nonperso"
METRIC_ORDER = (
    *("rouge1", "rougeL", "meteor", "bleu", "bertscore", "trait_recovery"),
    *(
        "author_ngram",
        "author_ngram_rank",
        "author_encoder",
        "author_encoder_rank",
        "style_distance",
        "peer_difference",
    ),
    *("copy_rate", "length_ratio"),
)
"""Overlap in the order of papers on the task, then whether a text sounds like its user, then what watches the others;
what is not among them follows."""


@dataclass
class Options:
    """What a table is to show, and how its error bars are made."""

    metrics: list[str]
    infos: dict[str, MetricInfo]
    baseline: str | None
    resamples: int
    seed: int
    notes: list[str] = field(default_factory=list)
    wins: bool = False
    """Whether to show users won, tied and lost."""
    detectable: bool = False
    """Whether to show the smallest detectable differences."""

    @property
    def ranked(self) -> list[str]:
        """Metrics that have a good side."""
        return [name for name in self.metrics if self.infos[name].higher_is_better is not None]


@dataclass(frozen=True)
class PValue:
    """How likely a difference at least as large is among equal methods."""

    raw: float
    """Of this difference alone."""
    holm: float
    """Corrected for all differences that the section tests."""


@dataclass(frozen=True)
class Estimates:
    """One group's estimates."""

    by_metric: Mapping[str, Mapping[str, Scored]]
    """Metric -> label -> result."""
    tests: Mapping[tuple[str, str], PValue]
    """(metric, label) -> test of the difference, for ranked metrics of ranked rows: the family that Holm corrects."""
    users: int
    examples: int
    baseline: str | None
    """Label of the row that others are compared with."""


def make_options(
    entries: Sequence[Entry], metrics: Sequence[str] | None, baseline: str | None, resamples: int, seed: int
) -> Options:
    """Raises UnknownName for a metric or baseline that no row has."""
    infos: dict[str, MetricInfo] = {}
    for entry in entries:
        for scores in filter(None, entry.scores):
            infos = {**infos, **{name: info for name, info in scores.metrics.items() if name not in infos}}
    for name in metrics or ():
        if name not in infos:
            raise UnknownName("metric", name, infos, "Only scored metrics can be shown: python -m bench score")
    for info in infos.values():
        if info.reducer not in DIMENSIONS:
            raise UnknownName("reducer", info.reducer, DIMENSIONS, f"Metric {info.name!r} was scored by other code.")
    known = {entry.label for entry in entries} | {entry.method for entry in entries}
    if baseline is not None and baseline not in known:
        raise UnknownName("baseline", baseline, known)
    chosen = list(dict.fromkeys(metrics)) if metrics else sorted(infos, key=lambda name: _place(infos[name]))
    return Options(chosen, infos, baseline, resamples, seed)


def _place(info: MetricInfo) -> tuple[int, int, str]:
    """Known metrics first, then others: those to raise, those to lower, those without a good side."""
    known = METRIC_ORDER.index(info.name) if info.name in METRIC_ORDER else len(METRIC_ORDER)
    return known, (True, False, None).index(info.higher_is_better), info.name


@dataclass(frozen=True)
class Axis:
    """The examples of some rows, and whose they are."""

    examples: Mapping[str, int]
    """Example id -> place."""
    users: NDArray[np.intp]
    """(examples,): each example's user as 0, 1, 2, ..."""


def example_axis(entries: Sequence[Entry]) -> Axis:
    """All examples that any run of these rows has, by id."""
    owners: dict[str, str] = {}
    for entry in entries:
        for run in entry.runs:
            for record in run.records:
                owners[record["example_id"]] = str(record.get("user_id", record["example_id"]))
    examples = {example: index for index, example in enumerate(sorted(owners))}
    places = {user: index for index, user in enumerate(sorted(set(owners.values())))}
    return Axis(examples, np.array([places[owners[example]] for example in examples], dtype=np.intp))


def estimate(entries: Sequence[Entry], options: Options) -> Estimates:
    """Bootstrap and permutation tests of each metric over the users of these rows."""
    axis = example_axis(entries)
    examples, users = axis.examples, axis.users
    baseline = baseline_label(entries, options.baseline)
    by_metric: dict[str, dict[str, Scored]] = {}
    raw: dict[tuple[str, str], float] = {}
    for name in options.metrics:
        reducer = options.infos[name].reducer
        values = {e.label: values_of(e, name, examples, reducer) for e in entries if name in e.metric_names}
        by_metric[name] = paired_bootstrap(
            values,
            users,
            reducer=reducer,
            baseline=baseline if baseline in values else None,
            resamples=options.resamples,
            seed=options.seed,
        )
        if baseline in values and name in options.ranked:
            tested = {e.label: values[e.label] for e in entries if e.label in values and not e.ceiling}
            raw |= _tested(name, {**tested, baseline: values[baseline]}, users, baseline, options)
    tests = {
        key: PValue(p, corrected) for (key, p), corrected in zip(raw.items(), holm(list(raw.values())), strict=True)
    }
    return Estimates(by_metric, tests, len(set(users.tolist())), len(examples), baseline)


def _tested(
    metric: str, values: Mapping[str, Floats], users: NDArray[np.intp], baseline: str, options: Options
) -> dict[tuple[str, str], float]:
    """(metric, label) -> raw p, where there is one."""
    found = paired_permutation(
        values,
        users,
        reducer=options.infos[metric].reducer,
        baseline=baseline,
        permutations=options.resamples,
        seed=options.seed,
    )
    return {(metric, label): p for label, p in found.items() if p is not None}


def baseline_label(entries: Sequence[Entry], wanted: str | None) -> str | None:
    """Label of the row that others are compared with; None if there is no such row, or none to choose.

    An exact label wins over a method's name, and of a method's rows that one which is no variant. Without a wish it
    is the full method of an ablation (of the method with most variants), else nonperso. Raises UsageError if several
    rows fit a wish.
    """
    variants = Counter(entry.method for entry in entries if entry.variant is not None)
    full = [method for method, _ in variants.most_common() if _of(entries, method)]
    name = wanted or (full[0] if full else DEFAULT_BASELINE)
    labels = [entry.label for entry in entries if entry.label == name] or _of(entries, name)
    labels = labels or [entry.label for entry in entries if entry.method == name]
    if len(labels) > 1 and wanted:
        raise UsageError(f"several rows are of method {name!r}; name one with --baseline: {', '.join(labels)}")
    return labels[0] if len(labels) == 1 else None


def _of(entries: Sequence[Entry], method: str) -> list[str]:
    """Labels of the rows of a method that are no variants."""
    return [entry.label for entry in entries if entry.method == method and entry.variant is None]


def values_of(entry: Entry, metric: str, examples: Mapping[str, int], reducer: str) -> Floats:
    """(seeds, examples, numbers of the reducer), NaN where there is no value."""
    array = np.full((len(entry.runs), len(examples), DIMENSIONS[reducer]), np.nan)
    for index, (run, scores) in enumerate(zip(entry.runs, entry.scores, strict=True)):
        for example, value in (scores.values[metric] if scores else {}).items():
            if value is None:
                continue
            if example not in examples or len(value) != DIMENSIONS[reducer]:
                cure = f"score it anew: python -m bench score {run.path}"
                raise UsageError(f"{run.path}: the {metric} of example {example!r} does not fit the records; {cure}")
            array[index, examples[example]] = value
    return array
