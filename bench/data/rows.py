"""One row of a table -> a review or an item, or one line saying what is wrong with which value in which row."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from bench.config import Config
from bench.data.clean import is_clean_id
from bench.data.tables import RawItem, RawReview
from bench.errors import DataError

Row = Mapping[str, Any]
TimeUnit = Literal["ms", "s"]

EARLIEST, LATEST = 315_532_800_000, 4_102_444_800_000
"""1980-01-01 and 2100-01-01 in milliseconds. Seconds taken for milliseconds fall before, the reverse mistake after."""


class ReviewColumns(Config):
    """What the columns of the reviews are called in the file. "" for rating or title: the file has no such column."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    rating: str = "rating"
    title: str = "title"
    text: str = "text"
    timestamp: str = "timestamp"


class ItemColumns(Config):
    """What the columns of the items are called in the file. "" for all but the id: the file has no such column."""

    item_id: str = "item_id"
    title: str = "title"
    description: str = "description"
    category: str = ""


def require_columns(wanted: Config, present: Iterable[str], where: str, section: str) -> None:
    """Raises DataError when a mapped column is not there, naming those that are."""
    present = list(present)
    for ours, theirs in wanted:
        if theirs and theirs not in present:
            raise DataError(
                f"{where} has no column {theirs!r} (for {ours}); it has: {', '.join(map(str, present)) or 'none'}; "
                f"set {section}.{ours} to the right one"
            )


def read_review(row: Row, columns: ReviewColumns, unit: TimeUnit, number: int, where: str) -> RawReview:
    """A review, text as it stands. A missing title is "", a missing rating (null, NaN) None, a missing time 0.

    Args:
        row: column name of the file -> value.
        columns: our names -> the file's.
        unit: what an integer timestamp counts.
        number: position of the row in its table, from 0.
        where: file and row, for errors.

    Raises:
        DataError: an unusable id, a text that is no string, a rating that is no finite number, a time out of range.
    """
    return RawReview(
        user_id=_id(row.get(columns.user_id), columns.user_id, where),
        item_id=_id(row.get(columns.item_id), columns.item_id, where),
        rating=_rating(row.get(columns.rating), columns.rating, where) if columns.rating else None,
        title=_text(row.get(columns.title), columns.title, where) if columns.title else "",
        text=_text(row.get(columns.text), columns.text, where),
        timestamp=_timestamp(row.get(columns.timestamp), columns.timestamp, unit, where),
        row=number,
    )


def read_item(row: Row, columns: ItemColumns, where: str) -> RawItem:
    """An item. A description may be a list of strings: a leading "Product Description" is dropped, the rest joined.

    Raises:
        DataError: as `read_review`.
    """
    key = _id(row.get(columns.item_id), columns.item_id, where)
    title = _text(row.get(columns.title), columns.title, where) if columns.title else ""
    description = _description(row.get(columns.description), columns.description, where) if columns.description else ""
    category = _description(row.get(columns.category), columns.category, where) if columns.category else ""
    return RawItem(key, title, description, category)


def _id(value: Any, column: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} = {shown(value)} is not an id; ids are non-empty strings or integers")
    if not is_clean_id(value):
        raise DataError(f"{where}: {column} = {shown(value)} is blank or holds a character that no id may hold")
    return value


def _text(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} = {shown(value)} is not text; convert the column to strings")
    return value


def _description(value: Any, column: str, where: str) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _text(value, column, where)
    parts = [_text(part, column, where) for part in value]
    return " ".join(parts[1:] if parts and parts[0] == "Product Description" else parts)


def _rating(value: Any, column: str, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{where}: {column} = {shown(value)} is not a number; convert the column to numbers")
    rating = _float(value)
    if not math.isfinite(rating):
        raise DataError(f"{where}: {column} = {shown(value)} is not finite; leave the rating out (null) or mend it")
    return rating


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _timestamp(value: Any, column: str, unit: TimeUnit, where: str) -> int:
    if isinstance(value, datetime.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        value, unit = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(seconds=1), "s"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(_float(value)):
        raise DataError(f"{where}: {column} = {shown(value)} is not a time; give {_UNITS[unit]} since 1970")
    milliseconds = round(value * 1000) if unit == "s" else round(value)
    if milliseconds == 0 or EARLIEST <= milliseconds <= LATEST:
        return milliseconds
    raise DataError(f"{where}: {column} = {shown(value)} is no time between 1980 and 2100{_other_unit(value, unit)}")


_UNITS = {"ms": "milliseconds", "s": "seconds"}


def _other_unit(value: float, unit: TimeUnit) -> str:
    other, milliseconds = ("s", value * 1000) if unit == "ms" else ("ms", value)
    if not EARLIEST <= milliseconds <= LATEST:
        return f" in {_UNITS[unit]} since 1970; mend or leave out the row"
    return f" in {_UNITS[unit]} since 1970, but is one in {_UNITS[other]}: set timestamp_unit = {other!r} in [source]"


def shown(value: Any) -> str:
    """A value in an error: on one line, short, in ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
