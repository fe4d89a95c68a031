"""What the page is made of: a board for each leaderboard, its rows, its table and the tables' other baselines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cells import Cell
from bench.comparison import Entry, clashes, group_mixed, make_entries, mark_mixed
from bench.errors import UnknownName
from bench.estimates import Axis, example_axis, make_options
from bench.render import raw_cell
from bench.stats import DEFAULT_RESAMPLES, DIMENSIONS
from bench.store import MetricInfo, StoredRun
from bench.tables import Section, Table, leaderboard

BUDGET = 6e9
"""Baselines x metrics x runs x resamples x (users + 200) up to which rows are offered as baselines without being asked
for: some ten seconds of one core."""


@dataclass(frozen=True)
class Board:
    """One leaderboard: the comparable rows of one dataset."""

    id: str
    """Part of the page's links and of its file names."""
    title: str
    entries: tuple[Entry, ...]
    """In the table's order."""
    infos: Mapping[str, MetricInfo]
    """The metrics shown, in the table's order."""
    axis: Axis
    table: Table
    """Under the default baseline, with wins and detectable differences where there is one."""
    others: Mapping[str, Table]
    """Baseline -> the table under it, the default one left out."""

    @property
    def scores(self) -> Section:
        return self.table.sections[0]

    @property
    def baseline(self) -> str | None:
        """Label of the row that others are compared with at first."""
        return self.table.sections[1].baseline if len(self.table.sections) > 1 else None

    def tables(self) -> dict[str, Table]:
        """Every baseline offered, the default one first."""
        first = {self.baseline: self.table} if self.baseline is not None else {}
        return {**first, **self.others}

    @property
    def entries_by_label(self) -> dict[str, Entry]:
        return {entry.label: entry for entry in self.entries}

    @property
    def means(self) -> list[str]:
        """Metrics that have a value for one user."""
        return [name for name, info in self.infos.items() if DIMENSIONS[info.reducer] == 1]


def make_boards(
    runs: Sequence[StoredRun],
    *,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    baselines: Sequence[str] = (),
    mixed: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
) -> list[Board]:
    """A board for each dataset, and for each split and model of it where `mixed`.

    `baselines` are offered beside the default one; without a wish all rows are, where that is cheap. Raises what
    `leaderboards` raises.
    """
    boards: list[Board] = []
    taken: set[str] = set()
    for dataset in sorted({run.dataset for run in runs}):
        for title, group in _groups([run for run in runs if run.dataset == dataset], metrics, mixed):
            name = _unique(_slug(f"{dataset} {title}" if title else dataset), taken)
            called = f"{dataset}, {title}" if title else dataset
            boards.append(_board(name, called, group, metrics, baseline, baselines, mixed, resamples))
    return boards


def _groups(
    runs: Sequence[StoredRun], metrics: Sequence[str] | None, mixed: bool
) -> list[tuple[str, Sequence[StoredRun]]]:
    """(title, runs) of each board of a dataset: what a mixed table shows as its sections."""
    if not mixed:
        return [("", runs)]
    entries = make_entries(runs)
    options = make_options(entries, metrics, None, 1, 0)
    entries, _ = mark_mixed(entries, clashes(entries, options.metrics))
    return [(title, [run for entry in rows for run in entry.runs]) for title, rows in group_mixed(entries)]


def _board(
    name: str,
    title: str,
    runs: Sequence[StoredRun],
    metrics: Sequence[str] | None,
    baseline: str | None,
    baselines: Sequence[str],
    mixed: bool,
    resamples: int,
) -> Board:
    def made(wanted: str | None) -> Table:
        return leaderboard(
            runs, metrics=metrics, baseline=wanted, mixed=mixed, wins=True, detectable=True, resamples=resamples
        )

    table = made(baseline)
    order = [str(row.cells[0].value) for row in table.sections[0].rows]
    entries = sorted(make_entries(runs), key=lambda entry: order.index(entry.label))
    options = make_options(entries, metrics, None, resamples, 0)
    axis = example_axis(entries)
    board = Board(name, title, tuple(entries), {m: options.infos[m] for m in options.metrics}, axis, table, others={})
    chosen = _offered(board, baselines, resamples)
    others = {label: made(label) for label in chosen if label != board.baseline}
    return Board(board.id, title, board.entries, board.infos, axis, table, others)


def _offered(board: Board, wanted: Sequence[str], resamples: int) -> list[str]:
    labels = [entry.label for entry in board.entries]
    for label in wanted:
        if label not in labels:
            raise UnknownName("row in --baselines", label, labels)
    if wanted or len(labels) < 2 or not board.infos:
        return list(wanted)
    runs = sum(len(entry.runs) for entry in board.entries)
    users = len(set(board.axis.users.tolist()))
    room = int(BUDGET / (len(board.infos) * runs * resamples * (users + 200)))
    return sorted(board.entries_by_label, key=lambda label: _rank(board, label))[: max(1, room)]


def _rank(board: Board, label: str) -> tuple[bool, bool, bool]:
    """Full methods of ablations first, then those rows that are no variants, ceilings last."""
    entry = board.entries_by_label[label]
    varied = {other.method for other in board.entries if other.variant is not None}
    return entry.ceiling, entry.variant is not None, entry.method not in varied


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "board"


def _unique(name: str, taken: set[str]) -> str:
    found = next(one for one in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if one not in taken)
    taken.add(found)
    return found


# -- as JSON ----------------------------------------------------------------------------------------------------------


def table_json(board: Board) -> dict[str, Any]:
    """Columns and rows of the scores, as the table has them: texts for people beside raw values."""
    section = board.scores
    columns = [{"key": c.key, "title": c.title, "kind": c.kind, "better": c.higher_is_better} for c in section.columns]
    rows = [
        {
            "label": entry.label,
            "shown": row.cells[0].text,
            "method": entry.method,
            "variant": entry.variant,
            "ceiling": row.ceiling,
            "seeds": [str(seed) for seed in entry.seeds],
            "cells": {
                column.key: _cell(cell)
                for column, cell in zip(section.columns, row.cells, strict=True)
                if column.key != "method"
            },
        }
        for entry, row in zip(board.entries, section.rows, strict=True)
    ]
    return {"columns": columns, "rows": rows, "notes": list(board.table.notes)}


def differences_json(table: Table) -> dict[str, Any]:
    """Row -> metric -> difference, wins and smallest detectable difference, under one baseline."""
    differences, wins, detectable = table.sections[1:4]
    found: dict[str, Any] = {}
    for row, won, least in zip(differences.rows, wins.rows, detectable.rows, strict=True):
        told = {}
        for place, column in enumerate(differences.columns):
            if column.kind != "metric":
                continue
            cell = row.cells[place]
            counts = None if cell.wins is None else [cell.wins.wins, cell.wins.ties, cell.wins.losses]
            more = {"p": cell.p, "p_holm": cell.p_holm, "wins": counts, "detectable": cell.detectable}
            texts = {"wins_text": won.cells[place].text, "detectable_text": least.cells[place].text}
            told[column.key] = {**_cell(cell), **more, **texts}
        found[str(row.cells[0].value)] = told
    return {"title": differences.title, "baseline": differences.baseline, "rows": found}


def _cell(cell: Cell) -> dict[str, Any]:
    spread = None if cell.spread is None else [cell.spread.sd, cell.spread.seeds]
    return {"text": cell.text, **raw_cell(cell), "spread": spread}
