"""Leaderboards from stored runs alone: one `Table` that every format renders (see `bench.render`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.cells import (
    COSTS,
    Cell,
    Mark,
    detectable_cell,
    difference_cell,
    label_cell,
    plain_cell,
    score_cell,
    wins_cell,
)
from bench.comparison import Entry, clashes, group_mixed, make_entries, mark_mixed, printable, refuse_clashes
from bench.costtable import CostOptions, cost_grids, cost_notes
from bench.errors import UsageError
from bench.estimates import Estimates, Options, estimate, make_options
from bench.footnotes import notes
from bench.prices import Prices
from bench.stats import DEFAULT_RESAMPLES, Scored
from bench.store import MetricInfo, StoredRun


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
    """One grid: scores and cost, or the differences to a baseline, or what is told of these apart."""

    title: str
    group: str
    """What sets its rows apart from those of other sections; empty unless the table is mixed."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str | None = None
    """Label of the row that others are compared with; None for scores."""
    repeats: bool = False
    """Whether its figures are those of the differences in another shape, which formats for machines have already."""
    costs: str = ""
    """What formats for machines call it, if it tells costs by stage, several rows a method."""


@dataclass(frozen=True)
class Table:
    """Everything that a leaderboard shows of one dataset."""

    title: str
    dataset: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


def leaderboards(
    runs: Sequence[StoredRun],
    *,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    mixed: bool = False,
    wins: bool = False,
    detectable: bool = False,
    costs: bool = False,
    prices: Prices | None = None,
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
            wins=wins,
            detectable=detectable,
            costs=costs,
            prices=prices,
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
    wins: bool = False,
    detectable: bool = False,
    costs: bool = False,
    prices: Prices | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Table:
    """Quality with 95 % intervals and cost of every method, and differences to a baseline, on one dataset.

    `metrics` chooses and orders the metrics (default: all that any run has); `baseline` is a method or a row's label
    (default: the full method of an ablation, else nonperso, if there). Raises UsageError if rows differ in split,
    engine, sampling, prompt budget or metric signature, unless `mixed`, which groups them by split and model and marks
    what else differs; UnknownName for a metric or baseline that no run has. `wins` and `detectable` add a section each
    to the differences: users better off, as well and worse; the smallest difference that would be seen.
    `costs` adds what each row cost, by stage, and `prices` the money.
    """
    if len({run.dataset for run in runs}) != 1:
        raise UsageError("a leaderboard shows the runs of one dataset")
    entries = make_entries(runs)
    options = make_options(entries, metrics, baseline, resamples, seed)
    options.wins, options.detectable = wins, detectable
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
    scored = [(title, rows, estimate(rows, options)) for title, rows in groups]
    asked = CostOptions(prices) if costs or prices else None
    columns = _columns(entries, options)
    for title, rows, scores in scored:
        sections.append(_score_section(title, rows, scores, columns, options))
        if scores.baseline is not None and len(rows) > 1 and options.metrics:
            sections += _difference_sections(title, rows, scores, options)
        if asked is not None:
            sections += _cost_sections(title, _ordered(rows, scores, options), asked)
    told = [*notes(entries, [scores for _, _, scores in scored], options), *options.notes]
    told += cost_notes(entries, asked) if asked is not None else []
    name = printable(runs[0].dataset)
    return Table(f"Leaderboard: {name}", name, tuple(sections), tuple(told))


# --- sections ----------------------------------------------------------------------------------------------------


def _columns(entries: Sequence[Entry], options: Options) -> tuple[Column, ...]:
    columns = [Column("method", "method", "label"), *_metric_columns(options)]
    if any(len(entry.runs) > 1 for entry in entries):
        columns.append(Column("seeds", "seeds", "cost"))
    if any(run.totals.get("failed") for entry in entries for run in entry.runs):
        columns.append(Column("failed", "failed", "cost"))
    return (*columns, *(Column(key, title, "cost") for key, (title, _) in COSTS.items()))


def _metric_columns(options: Options) -> list[Column]:
    infos = [options.infos[name] for name in options.metrics]
    return [Column(info.name, printable(info.name), "metric", info.higher_is_better) for info in infos]


def _score_section(
    title: str, entries: Sequence[Entry], scores: Estimates, columns: tuple[Column, ...], options: Options
) -> Section:
    ordered = _ordered(entries, scores, options)
    rows = []
    marks = {name: _ranks(ordered, scores.by_metric[name], options.infos[name]) for name in options.metrics}
    for entry in ordered:
        cells = []
        for column in columns:
            if column.kind == "metric":
                scored = scores.by_metric[column.key].get(entry.label)
                cell = score_cell(scored, options.infos[column.key].reducer)
                cells.append(replace(cell, mark=marks[column.key].get(entry.label, Mark.NONE)))
            else:
                cells.append(plain_cell(entry, column.key))
        rows.append(Row(tuple(cells), entry.ceiling))
    return Section(title, title, columns, tuple(rows))


def _difference_sections(title: str, entries: Sequence[Entry], scores: Estimates, options: Options) -> list[Section]:
    """The differences and, as far as wanted, wins and the smallest detectable differences."""
    columns = (Column("method", "method", "label"), *_metric_columns(options))
    infos = [options.infos[name] for name in options.metrics]
    rows = []
    for entry in _ordered(entries, scores, options):
        if entry.label == scores.baseline:
            continue
        cells = [label_cell(entry)]
        for info in infos:
            scored = scores.by_metric[info.name].get(entry.label)
            cells.append(difference_cell(scored, info, scores.tests.get((info.name, entry.label))))
        rows.append(Row(tuple(cells), entry.ceiling))
    group = f" ({title})" if title else ""
    heading = f"Difference to {scores.baseline}{group}"
    counts = {cell.users for row in rows for cell in row.cells if cell.users is not None}
    if counts:
        heading += f", {'-'.join(str(count) for count in sorted({min(counts), max(counts)}))} users"
    found = [Section(heading, title, columns, tuple(rows), scores.baseline)]
    if options.wins:
        told = [replace(row, cells=(row.cells[0], *map(wins_cell, row.cells[1:]))) for row in rows]
        heading = f"Users won/tied/lost against {scores.baseline}{group}"
        found.append(Section(heading, title, columns, tuple(told), scores.baseline, repeats=True))
    if options.detectable:
        reducers = [info.reducer for info in infos]
        told = [replace(row, cells=(row.cells[0], *map(detectable_cell, row.cells[1:], reducers))) for row in rows]
        heading = f"Smallest detectable difference to {scores.baseline}{group}"
        found.append(Section(heading, title, columns, tuple(told), scores.baseline, repeats=True))
    return found


def _cost_sections(title: str, entries: Sequence[Entry], options: CostOptions) -> list[Section]:
    group = f" ({title})" if title else ""
    return [
        Section(
            f"{grid.title}{group}",
            title,
            tuple(Column(*column) for column in grid.columns),
            tuple(Row(*row) for row in grid.rows),
            costs=grid.key,
        )
        for grid in cost_grids(entries, options)
    ]


def _ordered(entries: Sequence[Entry], scores: Estimates, options: Options) -> list[Entry]:
    """Best first by the first metric that has a good side, rows without it last, ceilings after all."""
    ranking = next(iter(options.ranked), None)

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
