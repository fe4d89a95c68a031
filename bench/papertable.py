"""A published table with our figures beside it: "paper", "ours" and their difference, never in one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.cells import Cell, score_cell
from bench.comparison import Entry, clashes, make_entries, refuse_clashes
from bench.estimates import Estimates, Options, estimate, make_options
from bench.experiments import Experiment, Figure
from bench.footnotes import notes
from bench.stats import DEFAULT_RESAMPLES
from bench.store import StoredRun
from bench.tables import Column, Row, Section, Table

_DECIMALS = 4
"""Of published figures."""


@dataclass(frozen=True)
class Block:
    """One dataset of the table."""

    title: str
    dataset: str | None
    """The published table's name of the dataset that ours stands for; None where it stands for none."""
    runs: Sequence[StoredRun]
    metrics: Sequence[str]
    """Those that were asked for; what else is stored of the runs is not shown."""


def paper_table(
    experiment: Experiment,
    size: str,
    scale: Sequence[str],
    blocks: Sequence[Block],
    resamples: int = DEFAULT_RESAMPLES,
) -> Table:
    """The table of an experiment.

    Args:
        experiment: what was published.
        size: which of the published sizes our runs stand beside; "" where there is one.
        scale: in what our runs differ from the published settings; empty where in nothing.
        blocks: one a dataset, in the order they are to stand in.
        resamples: of the bootstrap.

    Raises UsageError where the runs of a block are not comparable with one another.
    """
    published = experiment.published
    told: list[str] = [f"paper: {published.title}. {published.note}"]
    told.append(f"ours: {'another scale, ' + '; '.join(scale) if scale else 'the published settings'}.")
    if experiment.paper.note:
        told.append(experiment.paper.note)
    sections, under = [], []
    for block in blocks:
        entries = make_entries(block.runs)
        shown = _scored(entries, [name for name in published.metrics if name in block.metrics])
        options = make_options(entries, shown, None, resamples, 0)
        refuse_clashes(block.title, clashes(entries, options.metrics))
        scores = estimate(entries, options)
        sections.append(_section(experiment, size, block, entries, scores, options))
        under.append((block.title, notes(entries, [replace(scores, tests={})], options, costs=False)))
    told += _figures_told(published.metrics, sections, experiment)
    told += _once(under)
    title = f"{experiment.name}, {_short(scale) if scale else 'in the published settings'}"
    return Table(title, experiment.name, tuple(sections), tuple(told))


def _short(scale: Sequence[str]) -> str:
    """What a heading has room for."""
    told = [one.partition(" (published: ")[0] for one in scale[:4]]
    return f"ours at another scale: {', '.join(told)}" + (" ..." if len(scale) > len(told) else "")


def _scored(entries: Sequence[Entry], metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that any row has."""
    return [name for name in metrics if any(name in entry.metric_names for entry in entries)]


def _once(under: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Notes of all blocks; one that stands under every block is told once, the others with the block's name."""
    every = [note for note in under[0][1] if all(note in notes for _, notes in under)] if under else []
    own = [f"{title}: {note}" for title, notes in under for note in notes if note not in every]
    return [*own, *every]


def _figures_told(metrics: Sequence[str], sections: Sequence[Section], experiment: Experiment) -> list[str]:
    told = ["diff: ours minus paper. Of two means alone: the paper's texts are not public, so it has no test."]
    if any(figure.std is not None for figure in experiment.published.figures.values()):
        told[0] += " ±: the paper's standard deviation; *: significant by the paper's own test."
    absent = [metric for metric in metrics if not any(_measured(section, metric) for section in sections)]
    if absent:
        told.append(f"Not measured here: {', '.join(absent)}.")
    return told


def _measured(section: Section, metric: str) -> bool:
    """Whether any row of ours has the metric."""
    place = next(n for n, column in enumerate(section.columns) if column.key == f"{metric}_ours")
    return any(row.cells[place].value is not None for row in section.rows)


def _section(
    experiment: Experiment,
    size: str,
    block: Block,
    entries: Sequence[Entry],
    scores: Estimates,
    options: Options,
) -> Section:
    published = experiment.published
    columns = [Column("method", "method", "label")]
    for metric in published.metrics:
        columns += [Column(f"{metric}_{kind}", f"{metric} {kind}", "metric") for kind in ("paper", "ours", "diff")]
    several = len({size for size, _ in published.rows}) > 1
    rows: list[Row] = []
    taken: set[str] = set()
    for row_size, name in published.rows:
        method = experiment.paper.rows.get(name)
        mine = [entry for entry in entries if entry.method == method and row_size == size]
        taken |= {entry.label for entry in mine}
        figures = {m: published.figures.get((row_size, name, block.dataset or "", m)) for m in published.metrics}
        title = f"{name} ({row_size})" if several else name
        found: list[Entry | None] = [*mine] or [None]
        for entry in found:
            label = title if entry is None or len(mine) == 1 else f"{title}: {entry.label}"
            rows.append(_row(label, figures, entry, scores, options))
    nothing = dict.fromkeys(published.metrics)
    rows += [_row(entry.label, nothing, entry, scores, options) for entry in entries if entry.label not in taken]
    return Section(block.title, block.title, tuple(columns), tuple(rows))


def _row(
    label: str, figures: Mapping[str, Figure | None], entry: Entry | None, scores: Estimates, options: Options
) -> Row:
    cells = [Cell(label, label)]
    for metric, figure in figures.items():
        ours = Cell()
        if entry is not None and metric in scores.by_metric and entry.label in scores.by_metric[metric]:
            ours = score_cell(scores.by_metric[metric][entry.label], options.infos[metric].reducer)
        cells += [_published_cell(figure), ours, _difference(figure, ours)]
    return Row(tuple(cells), entry is not None and entry.ceiling)


def _published_cell(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell()
    spread = f" ±{figure.std:.{_DECIMALS}f}" if figure.std is not None else ""
    return Cell(f"{figure.value:.{_DECIMALS}f}{'*' if figure.significant else ''}{spread}", figure.value)


def _difference(figure: Figure | None, ours: Cell) -> Cell:
    if figure is None or not isinstance(ours.value, float):
        return Cell()
    return Cell(f"{ours.value - figure.value:+.3f}", ours.value - figure.value)
