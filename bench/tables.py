"""Leaderboards from stored runs alone: one `Table` that every format renders (see `bench.render`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.cells import COSTS, EMPTY, Cell, Mark, difference_cell, estimate_cell, label_cell, plain_cell
from bench.comparison import (
    CEILING,
    Entry,
    clashes,
    flatten,
    group_mixed,
    make_entries,
    mark_mixed,
    own_label,
    printable,
    refuse_clashes,
    shown,
)
from bench.errors import UnknownName, UsageError
from bench.stats import DEFAULT_RESAMPLES, DIMENSIONS, Floats, Scored, paired_bootstrap
from bench.store import MetricInfo, StoredRun

DEFAULT_BASELINE = "nonperso"
METRIC_ORDER = ("rouge1", "rougeL", "meteor", "bleu", "bertscore", "trait_recovery")
"""The order in which papers on the task give their metrics; others follow."""


@dataclass(frozen=True)
class Column:
    """A column: `kind` is "label", "metric" or "cost", `key` its name where a machine reads."""

    key: str
    title: str
    kind: str
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Row:
    """One method. A ceiling stands apart at the end and is not ranked."""

    cells: tuple[Cell, ...]
    ceiling: bool = False


@dataclass(frozen=True)
class Section:
    """One grid: scores and cost, or the differences to a baseline."""

    title: str
    group: str
    """What sets its rows apart from those of other sections; empty unless the table is mixed."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str | None = None
    """Label of the row that others are compared with; None for scores."""


@dataclass(frozen=True)
class Table:
    """Everything that a leaderboard shows of one dataset."""

    title: str
    dataset: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Scores:
    """One group's estimates: metric -> label -> result."""

    by_metric: Mapping[str, Mapping[str, Scored]]
    users: int
    examples: int
    baseline: str | None


@dataclass
class _Options:
    metrics: list[str]
    infos: dict[str, MetricInfo]
    baseline: str | None
    resamples: int
    seed: int
    notes: list[str] = field(default_factory=list)


def leaderboards(
    runs: Sequence[StoredRun],
    *,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    mixed: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> list[Table]:
    """One leaderboard for each dataset name, in alphabetical order. See `leaderboard`."""
    names = sorted({run.dataset for run in runs})
    if not names:
        raise UsageError("there is no complete run to show; make one with: python -m bench run")
    return [
        leaderboard(
            [run for run in runs if run.dataset == name],
            metrics=metrics,
            baseline=baseline,
            mixed=mixed,
            resamples=resamples,
            seed=seed,
        )
        for name in names
    ]


def leaderboard(
    runs: Sequence[StoredRun],
    *,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    mixed: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Table:
    """Quality with 95 % intervals and cost of every method, and differences to a baseline, on one dataset.

    `metrics` chooses and orders the metrics (default: all that any run has); `baseline` is a method or a row's label
    (default: nonperso, if there). Raises UsageError if rows differ in split, engine, sampling, prompt budget or metric
    signature, unless `mixed`, which groups them by split and model and marks what else differs; UnknownName for a
    metric or baseline that no run has.
    """
    if len({run.dataset for run in runs}) != 1:
        raise UsageError("a leaderboard shows the runs of one dataset")
    entries = make_entries(runs)
    options = _options(entries, metrics, baseline, resamples, seed)
    found = clashes(entries, options.metrics)
    groups: list[tuple[str, list[Entry]]] = [("", entries)]
    if mixed:
        entries, footnotes = mark_mixed(entries, found)
        groups = group_mixed(entries)
        entries = [entry for _, rows in groups for entry in rows]
        options.notes += footnotes
    else:
        refuse_clashes(runs[0].dataset, found)
    sections: list[Section] = []
    scored = [(title, rows, _score(rows, options)) for title, rows in groups]
    columns = _columns(entries, options)
    for title, rows, scores in scored:
        sections.append(_score_section(title, rows, scores, columns, options))
        if scores.baseline is not None and len(rows) > 1 and options.metrics:
            sections.append(_difference_section(title, rows, scores, options))
    notes = [*_notes(entries, [scores for _, _, scores in scored], options), *options.notes]
    name = printable(runs[0].dataset)
    return Table(f"Leaderboard: {name}", name, tuple(sections), tuple(notes))


def _options(
    entries: Sequence[Entry], metrics: Sequence[str] | None, baseline: str | None, resamples: int, seed: int
) -> _Options:
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
    return _Options(chosen, infos, baseline, resamples, seed)


def _place(info: MetricInfo) -> tuple[int, int, str]:
    """Known metrics first, then others: those to raise, those to lower, those without a good side."""
    known = METRIC_ORDER.index(info.name) if info.name in METRIC_ORDER else len(METRIC_ORDER)
    return known, (True, False, None).index(info.higher_is_better), info.name


# --- scores ------------------------------------------------------------------------------------------------------


def _score(entries: Sequence[Entry], options: _Options) -> _Scores:
    """Bootstrap of each metric over the users of these rows."""
    owners: dict[str, str] = {}
    for entry in entries:
        for run in entry.runs:
            for record in run.records:
                owners[record["example_id"]] = str(record.get("user_id", record["example_id"]))
    examples = {example: index for index, example in enumerate(sorted(owners))}
    user_index = {user: index for index, user in enumerate(sorted(set(owners.values())))}
    users = np.array([user_index[owners[example]] for example in examples], dtype=np.intp)
    baseline = _baseline(entries, options)
    by_metric: dict[str, dict[str, Scored]] = {}
    for name in options.metrics:
        reducer = options.infos[name].reducer
        values = {e.label: _values(e, name, examples, reducer) for e in entries if name in e.metric_names}
        by_metric[name] = paired_bootstrap(
            values,
            users,
            reducer=reducer,
            baseline=baseline if baseline in values else None,
            resamples=options.resamples,
            seed=options.seed,
        )
    return _Scores(by_metric, len(user_index), len(examples), baseline)


def _baseline(entries: Sequence[Entry], options: _Options) -> str | None:
    wanted = options.baseline or DEFAULT_BASELINE
    labels = [entry.label for entry in entries if entry.label == wanted]
    labels = labels or [entry.label for entry in entries if entry.method == wanted]
    if len(labels) > 1 and options.baseline:
        raise UsageError(f"several rows are of method {wanted!r}; name one with --baseline: {', '.join(labels)}")
    return labels[0] if len(labels) == 1 else None


def _values(entry: Entry, metric: str, examples: Mapping[str, int], reducer: str) -> Floats:
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


# --- sections ----------------------------------------------------------------------------------------------------


def _columns(entries: Sequence[Entry], options: _Options) -> tuple[Column, ...]:
    columns = [Column("method", "method", "label")]
    if any(len(entry.runs) > 1 for entry in entries):
        columns.append(Column("seeds", "seeds", "label"))
    columns += _metric_columns(options)
    if any(run.totals.get("failed") for entry in entries for run in entry.runs):
        columns.append(Column("failed", "failed", "cost"))
    return (*columns, *(Column(key, title, "cost") for key, (title, _) in COSTS.items()))


def _metric_columns(options: _Options) -> list[Column]:
    infos = [options.infos[name] for name in options.metrics]
    return [Column(info.name, printable(info.name), "metric", info.higher_is_better) for info in infos]


def _score_section(
    title: str, entries: Sequence[Entry], scores: _Scores, columns: tuple[Column, ...], options: _Options
) -> Section:
    ordered = _ordered(entries, scores, options)
    rows = []
    marks = {name: _ranks(ordered, scores.by_metric[name], options.infos[name]) for name in options.metrics}
    for entry in ordered:
        cells = []
        for column in columns:
            if column.kind == "metric":
                scored = scores.by_metric[column.key].get(entry.label)
                cell = estimate_cell(scored.score if scored else None, options.infos[column.key].reducer)
                cells.append(replace(cell, mark=marks[column.key].get(entry.label, Mark.NONE)))
            else:
                cells.append(plain_cell(entry, column.key))
        rows.append(Row(tuple(cells), entry.ceiling))
    return Section(title, title, columns, tuple(rows))


def _difference_section(title: str, entries: Sequence[Entry], scores: _Scores, options: _Options) -> Section:
    columns = [Column("method", "method", "label"), *_metric_columns(options)]
    rows = []
    for entry in _ordered(entries, scores, options):
        if entry.label == scores.baseline:
            continue
        cells = [label_cell(entry)]
        for name in options.metrics:
            scored = scores.by_metric[name].get(entry.label)
            cells.append(difference_cell(scored.difference if scored else None, options.infos[name].reducer))
        counts = {cell.users for cell in cells[1:] if cell.users is not None}
        text = "-".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else EMPTY
        rows.append(Row((*cells, Cell(text, max(counts, default=None))), entry.ceiling))
    heading = f"Difference to {scores.baseline}" + (f" ({title})" if title else "")
    return Section(heading, title, (*columns, Column("users", "users", "label")), tuple(rows), scores.baseline)


def _ordered(entries: Sequence[Entry], scores: _Scores, options: _Options) -> list[Entry]:
    """Best first by the first metric that has a good side, rows without it last, ceilings after all."""
    ranking = next((name for name in options.metrics if options.infos[name].higher_is_better is not None), None)

    def place(entry: Entry) -> tuple[bool, bool, float, str]:
        scored = scores.by_metric[ranking].get(entry.label) if ranking is not None else None
        value = scored.score.value if scored else None
        sign = -1.0 if ranking is not None and options.infos[ranking].higher_is_better else 1.0
        return entry.ceiling, value is None, sign * (value or 0.0), entry.label

    return sorted(entries, key=place)


def _ranks(entries: Sequence[Entry], scored: Mapping[str, Scored], info: MetricInfo) -> dict[str, Mark]:
    """Best and second by value; equal values share a place, and two that share the first leave no second."""
    if info.higher_is_better is None:
        return {}
    sign = 1.0 if info.higher_is_better else -1.0
    values = {
        entry.label: sign * value
        for entry in entries
        if not entry.ceiling and entry.label in scored and (value := scored[entry.label].score.value) is not None
    }
    if len(values) < 2:
        return {}
    places = {label: sum(other > value for other in values.values()) for label, value in values.items()}
    return {label: (Mark.BEST, Mark.SECOND)[place] for label, place in places.items() if place < 2}


# --- footnotes ---------------------------------------------------------------------------------------------------


def _notes(entries: Sequence[Entry], scores: Sequence[_Scores], options: _Options) -> list[str]:
    counts = " / ".join(f"{s.examples} examples of {s.users} users" for s in scores)
    interval = f"95 % intervals: paired bootstrap over users, {options.resamples:,} resamples"
    enough = options.metrics and any(s.users > 1 for s in scores)
    notes = [f"{counts}. {interval}." if enough else f"{counts}."]
    if any(len(entry.runs) > 1 for entry in entries):
        seeds = sorted({str(seed) for entry in entries for seed in entry.seeds})
        notes.append(f"Scores and training seconds are means over seeds ({', '.join(seeds)}).")
    notes += _metric_notes(entries, scores, options)
    if any(entry.ceiling for entry in entries):
        notes.append(f"{CEILING} knows how the data were made: a ceiling, not ranked.")
    notes.append(
        "ex/s: examples a second while generating; prompt tok/s: reading prompts; generated tok/s: writing; "
        "- where no model is asked or nothing was measured."
    )
    return [*notes, *_identity_notes(entries, options)]


def _metric_notes(entries: Sequence[Entry], scores: Sequence[_Scores], options: _Options) -> list[str]:
    notes = []
    lower = [name for name in options.metrics if options.infos[name].higher_is_better is False]
    neutral = [name for name in options.metrics if options.infos[name].higher_is_better is None]
    if lower:
        notes.append(f"Lower is better: {printable(', '.join(lower))}.")
    if neutral:
        notes.append(f"Neither high nor low is better, not ranked: {printable(', '.join(neutral))}.")
    absent = [text for group in scores for text in _missing(group)]
    if absent:
        notes.append(f"Values that are missing, counted and not averaged: {'; '.join(absent)}.")
    unscored = [entry.label for entry in entries if not set(options.metrics) <= entry.metric_names or not entry.scores]
    if unscored or not options.metrics:
        rows = ", ".join(unscored) or "all rows"
        notes.append(f"Not fully scored: {rows}; python -m bench score does it.")
    return notes


def _missing(scores: _Scores) -> list[str]:
    """For each row with missing values: how many of which metric."""
    rows: dict[str, dict[str, int]] = {}
    for name, by_label in scores.by_metric.items():
        for label, scored in by_label.items():
            if scored.score.missing:
                rows.setdefault(label, {})[printable(name)] = scored.score.missing
    every = {label: sum(label in by_label for by_label in scores.by_metric.values()) for label in rows}
    return [
        f"{label}: {next(iter(counts.values()))} of each metric"
        if len(counts) == every[label] > 1 and len(set(counts.values())) == 1
        else f"{label}: " + ", ".join(f"{count} of {name}" for name, count in counts.items())
        for label, counts in rows.items()
    ]


def _identity_notes(entries: Sequence[Entry], options: _Options) -> list[str]:
    """What all rows share, from the first row that asks a model."""
    speaking = next((entry for entry in entries if entry.asks_model), entries[0])
    description = speaking.runs[0].description
    dataset = {key: value for key, value in description["dataset"].items() if key != "name" and value}
    notes = [f"Dataset {printable(str(description['dataset']['name']))}: {_told(dataset)}."]
    told = [own_label(entry.runs[0]) for entry in entries]
    if knobs := [label for label, entry in zip(told, entries, strict=True) if label not in (entry.label, entry.method)]:
        notes.append(f"Knobs that are not at their defaults: {printable('; '.join(knobs))}.")
    if speaking.asks_model:
        parts = [part for part in ("engine", "sampling", "prompt") if description.get(part)]
        notes += [f"{part.capitalize()}: {_told(description[part])}." for part in parts]
    signatures = [options.infos[name].signature for name in options.metrics]
    if signatures:
        notes.append(f"Metrics: {printable('; '.join(signatures))}.")
    return notes


def _told(values: Mapping[str, Any]) -> str:
    """Settings in words, what names the thing first, what is not set left out."""
    flat = {path: value for path, value in flatten(values).items() if value not in (None, {}, [])}
    ordered = sorted(flat, key=lambda path: (path != "name", path != "model", path))
    return ", ".join(f"{printable(path)} {shown(flat[path])}" for path in ordered)
