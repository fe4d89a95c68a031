"""Single lines of the raw files of Amazon Reviews 2023, read as strictly as any JSON Lines source.

The large files are read by DuckDB, which takes a missing key for null and converts what it can. So the first lines
are looked at here before minutes are spent, and where anything is suspicious later, this finds the line.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from bench.config import Config
from bench.data.rows import ItemColumns, ReviewColumns, Row, read_item, read_review
from bench.data.sources import numbered_lines, parse_line
from bench.errors import DataError

HEAD = 1000
"""Lines looked at beforehand."""

REVIEW_COLUMNS = ReviewColumns(item_id="parent_asin")
ITEM_COLUMNS = ItemColumns(item_id="parent_asin")

_OPTIONAL = {"rating", "title", "description", "category"}
"""As for any JSON Lines source: a line may lack them, which counts as null."""


def check_head(path: Path, columns: Config) -> None:
    """Reads the first lines. Raises DataError for one that cannot be used, or if there is none."""
    number = 0
    for number, line in takewhile(lambda one: one[0] <= HEAD, numbered_lines(path)):
        _check(parse_line(line, f"{path}, line {number}"), columns, f"{path}, line {number}")
    if not number:
        raise DataError(f"{path} is empty; fetch it again")


def find_flaw(path: Path, columns: Config, near: int | None = None) -> None:
    """Reads lines one by one until one cannot be used.

    Args:
        path: the file.
        columns: REVIEW_COLUMNS or ITEM_COLUMNS.
        near: only lines next to this one, counted from 1; None: all, which takes minutes for a large file.

    Raises:
        DataError: the line and what is wrong. No error: every line that was read can be used.
    """
    for number, line in numbered_lines(path):
        if near is not None and number > near + 1:
            return
        if near is None or number >= near - 1:
            _check(parse_line(line, f"{path}, line {number}"), columns, f"{path}, line {number}")


def _check(row: Row, columns: Config, where: str) -> None:
    for ours, theirs in columns:
        if theirs and ours not in _OPTIONAL and theirs not in row:
            raise DataError(f"{where} has no key {theirs!r}; it has: {', '.join(row) or 'none'}")
    if isinstance(columns, ReviewColumns):
        read_review(row, columns, "ms", 0, where)
    elif isinstance(columns, ItemColumns):
        read_item(row, columns, where)
