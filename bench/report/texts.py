"""The examples: what was asked, what the user really wrote, and what every row wrote, in pieces that load on demand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, first_line
from bench.estimates import values_of
from bench.plan import dataset_of
from bench.reopen import check_dataset, config_of
from bench.report.boards import Board
from bench.report.costs import figure
from bench.report.people import user_names
from bench.stats import text_scores
from bench.types import Example, FieldValue

if TYPE_CHECKING:
    from bench.data.split import Dataset

PIECE = 256 * 1024
"""Characters of JSON from which on a piece is full."""
_LABEL = 90


class Asked:
    """The dataset behind a board, prepared anew, or the reason why there is none."""

    def __init__(self, dataset: Dataset | None, reason: str | None = None) -> None:
        self.dataset, self.reason = dataset, reason
        self._examples = {example.id: example for example in dataset.test.examples} if dataset else {}

    def example(self, name: str) -> Example | None:
        return self._examples.get(name)


def asked(board: Board) -> Asked:
    """What was asked on a board, by the first of its runs whose dataset can be prepared and is the same as then."""
    reason = None
    for entry in board.entries:
        try:
            dataset = dataset_of(config_of(entry.runs[0]))
            check_dataset(entry.runs[0], dataset)
            return Asked(dataset)
        except UsageError as error:
            reason = reason or without_folders(error)
    return Asked(None, reason)


def without_folders(error: Exception) -> str:
    """The first line of what went wrong, of paths only their last parts: the page is not to name a machine."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/]+/)+(?=[^\s/])", "", first_line(error))


def pieces(board: Board, known: Asked) -> Iterator[list[dict[str, Any]]]:
    """Lists of examples in the board's order, each list about `PIECE` characters."""
    piece: list[dict[str, Any]] = []
    size = 0
    scores = _scores(board)
    records = [
        [{record["example_id"]: record for record in run.records} for run in entry.runs] for entry in board.entries
    ]
    users = user_names(board)
    for name, place in board.axis.examples.items():
        one = _example(name, users[board.axis.users[place]], known)
        one["texts"] = [
            [_text(by_id.get(name), seed, scores[row], place) for seed, by_id in enumerate(runs)]
            for row, runs in enumerate(records)
        ]
        piece.append(one)
        size += len(json.dumps(one))
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def label_of(example: Mapping[str, Any]) -> str:
    """What an example is called in a list: the values of its fields, as far as there is room."""
    told = " · ".join(value for _, value, long in example["fields"] if value and not long)
    return told if len(told) <= _LABEL else told[: _LABEL - 1] + "…"


def _example(name: str, user: str, known: Asked) -> dict[str, Any]:
    example = known.example(name)
    fields: list[list[Any]] = []
    reference = None
    if example is not None and known.dataset is not None:
        fields = [[f.label, _value(example.fields.get(f.name)), f.shortenable] for f in known.dataset.task.fields]
        reference = known.dataset.test.references[name]
    return {"id": name, "user": user, "fields": fields, "reference": reference}


def _value(value: FieldValue) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _scores(board: Board) -> list[list[Any]]:
    """Row -> metric -> (seeds, examples), None where the row has not been scored with it."""
    return [
        [
            text_scores(values_of(entry, name, board.axis.examples, info.reducer), info.reducer)
            if name in entry.metric_names
            else None
            for name, info in board.infos.items()
        ]
        for entry in board.entries
    ]


def _text(record: Mapping[str, Any] | None, seed: int, scores: Sequence[Any], place: int) -> dict[str, Any] | None:
    """One text: what was written or what went wrong, its hash of the prompt, tokens and scores by metric."""
    if record is None:
        return None
    return {
        "text": record.get("text"),
        "error": record.get("error"),
        "finish": record.get("finish_reason"),
        "tokens": [record.get("prompt_tokens"), record.get("output_tokens")],
        "prompt": record.get("prompt_sha256"),
        "scores": [None if values is None else figure(values[seed, place]) for values in scores],
    }
