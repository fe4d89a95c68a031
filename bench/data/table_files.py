"""What all sources of two files have in common: their options, and rows as reviews and items."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

from pydantic import Field

from bench.config import Config
from bench.data.rows import ItemColumns, ReviewColumns, Row, TimeUnit, read_item, read_review
from bench.data.tables import RawItem, RawReview, RawTables
from bench.errors import DataError

NumberedRow = tuple[str, Row]
"""Where a row stands (file and row or line, for errors) and its values."""


class FilesConfig(Config):
    """Two tables in files of one kind. Paths are relative to the spec file."""

    reviews: Path
    """One row a review."""
    items: Path
    """One row an item; an item id stands once."""
    columns: ReviewColumns = Field(default_factory=ReviewColumns)
    item_columns: ItemColumns = Field(default_factory=ItemColumns)
    timestamp_unit: TimeUnit = "ms"


def tables(reviews: Iterable[NumberedRow], items: Iterable[NumberedRow], config: FilesConfig) -> RawTables:
    found: dict[str, RawItem] = {}
    for where, row in items:
        item = read_item(row, config.item_columns, where)
        if item.item_id in found:
            raise DataError(f"{where}: the item id {item.item_id!r} stands twice; keep one row an item")
        found[item.item_id] = item
    columns, unit = config.columns, config.timestamp_unit
    rows: list[RawReview] = [
        read_review(row, columns, unit, number, where) for number, (where, row) in enumerate(reviews)
    ]
    return RawTables(rows, found)


def check_file(path: Path, key: str) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; set {key} in the spec file (paths are relative to it)")


def open_bytes(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
