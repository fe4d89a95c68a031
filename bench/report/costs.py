"""Quality against cost: what each row of a board costs, and which rows no other beats on both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.cells import Cell, stage_totals
from bench.comparison import Entry
from bench.report.boards import Board

_NO_COST = ("seeds", "failed", "examples_per_second", "embedding_seconds")
_RATE = "_per_second"
_DIGITS = 7


@dataclass(frozen=True)
class Cost:
    """Something that is better small."""

    key: str
    title: str
    values: Mapping[str, float | None]
    """Row's label -> cost; None where it is not known or no model was asked."""


def figure(value: float | None) -> float | None:
    """A number as the page needs it: seven digits; None where it is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.{_DIGITS}g}")


def costs(board: Board) -> list[Cost]:
    """The costs that any row has: seconds and tokens a text, and those columns of the table that are costs."""
    cells = _cells(board)
    found = [
        Cost("seconds_per_text", "Generation, seconds a text", {k: _seconds(row) for k, row in cells.items()}),
        Cost("tokens_per_text", "Tokens a text, read and written", {e.label: _tokens(e) for e in board.entries}),
    ]
    for column in board.scores.columns:
        if column.kind != "cost" or column.key in _NO_COST or column.key.endswith(_RATE):
            continue
        title = _TITLES.get(column.key, column.title)
        found.append(Cost(column.key, title, {label: _number(row[column.key]) for label, row in cells.items()}))
    found = [_trained(cost, board) if cost.key == "training_seconds" else cost for cost in found]
    return [cost for cost in found if len({value for value in cost.values.values() if value is not None}) > 1]


_TITLES = {
    "calls_per_example": "Calls of the model a text",
    "training_seconds": "Training, seconds",
    "peak_memory_bytes": "Peak of memory, bytes",
}


def _cells(board: Board) -> dict[str, dict[str, Cell]]:
    section = board.scores
    keys = [column.key for column in section.columns]
    return {str(row.cells[0].value): dict(zip(keys, row.cells, strict=True)) for row in section.rows}


def _number(cell: Cell) -> float | None:
    return float(cell.value) if isinstance(cell.value, int | float) else None


def _seconds(row: Mapping[str, Cell]) -> float | None:
    rate = _number(row["examples_per_second"]) if "examples_per_second" in row else None
    return 1 / rate if rate else None


def _tokens(entry: Entry) -> float | None:
    """Tokens of prompts and answers, all stages, a text."""
    examples = sum(float(run.totals.get("examples") or 0) for run in entry.runs)
    if not entry.asks_model or not examples:
        return None
    keys = ("prompt_tokens", "output_tokens")
    last = sum(float(run.totals.get(key) or 0) for run in entry.runs for key in keys)
    return (last + sum(sum(stage_totals(entry, key).values()) for key in keys)) / examples


def _trained(cost: Cost, board: Board) -> Cost:
    """A row that trains nothing has spent nothing on it."""
    fitted = {entry.label: any(run.manifest.get("fit") for run in entry.runs) for entry in board.entries}
    return Cost(cost.key, cost.title, {k: v if fitted[k] else 0.0 for k, v in cost.values.items()})


def front(board: Board, metric: str, cost: Cost) -> list[str]:
    """The rows that no other is as good as at no more cost, and better in one of the two; cheapest first.

    Ceilings do not count, nor rows without the cost or the score, nor any row for a metric without a good side.
    """
    better = board.infos[metric].higher_is_better
    if better is None:
        return []
    cells = _cells(board)
    points = {}
    for entry in board.entries:
        price, score = cost.values[entry.label], _number(cells[entry.label][metric])
        if price is not None and score is not None and not entry.ceiling:
            points[entry.label] = (price, -score if better else score)
    return pareto(points)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other beats: is as small in both and smaller in one; smallest first."""
    kept: list[str] = []
    last: tuple[float, float] | None = None
    for name in sorted(points, key=lambda one: (points[one], one)):
        if last is None or points[name][1] < last[1] or points[name] == last:
            kept.append(name)
            last = points[name]
    return kept


def costs_json(board: Board) -> list[dict[str, Any]]:
    """Each cost with its values in the order of the rows, and its front for each metric."""
    return [
        {
            "key": cost.key,
            "title": cost.title,
            "values": [figure(cost.values[entry.label]) for entry in board.entries],
            "front": {metric: front(board, metric, cost) for metric in board.infos},
        }
        for cost in costs(board)
    ]
