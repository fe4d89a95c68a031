"""Reviews and items from CSV files, by the standard library's reader."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from bench.config import Config
from bench.data.rows import require_columns, shown
from bench.data.table_files import FilesConfig, NumberedRow, check_file, open_bytes, tables
from bench.data.tables import RawTables
from bench.errors import DataError, first_line
from bench.files import toml_value

_LONGEST = 1 << 27
"""Characters of a value; the reader's own bound is 131,072."""


class CsvConfig(FilesConfig):
    """Two CSV files, plain or compressed (.gz), each with a first row of column names."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """What stands between two values; "\\t" for a tab."""
    encoding: str = "utf-8"
    """Of both files; a byte order mark is taken off."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError as error:
            raise ValueError("no such encoding; most files are in utf-8, older ones in cp1252 or latin-1") from error


class CsvSource:
    """Reviews and items from two CSV files, plain or compressed (.gz)."""

    Config: ClassVar[type[Config]] = CsvConfig

    def __init__(self, config: CsvConfig) -> None:
        self.config = config

    def load(self) -> RawTables:
        """Both tables. Raises DataError naming file, line and column of the first thing that cannot be used.

        An empty rating is none, an empty time is missing; a time is a number, or a date as ISO 8601 has it.
        """
        config = self.config
        reviews = _rows(config.reviews, config, config.columns, "source.columns")
        items = _rows(config.items, config, config.item_columns, "source.item_columns")
        return tables(_with_numbers(reviews, config), items, config)


def _with_numbers(rows: Iterator[NumberedRow], config: CsvConfig) -> Iterator[NumberedRow]:
    rating, time = config.columns.rating, config.columns.timestamp
    for where, row in rows:
        read: dict[str, Any] = dict(row)
        if rating:
            read[rating] = _number(row[rating], rating, where)
        read[time] = _time(row[time], time, where)
        yield where, read


def _number(value: str, column: str, where: str) -> float | None:
    if not value.strip():
        return None
    try:
        return float(value)
    except ValueError as error:
        raise DataError(f"{where}: {column} = {shown(value)} is not a number; mend it or leave it empty") from error


def _time(value: str, column: str, where: str) -> float | datetime.datetime | None:
    """A number (whole ones stay exact) or a moment; a date alone is its midnight, UTC."""
    if not value.strip():
        return None
    for read in (int, float, datetime.datetime.fromisoformat):
        try:
            return read(value.strip())
        except ValueError:
            continue
    raise DataError(f"{where}: {column} = {shown(value)} is neither a number nor a date such as 2020-01-31T12:00:00")


def _rows(path: Path, config: CsvConfig, columns: Config, section: str) -> Iterator[NumberedRow]:
    check_file(path, "source.reviews" if section == "source.columns" else "source.items")
    encoding = "utf-8-sig" if config.encoding == "utf-8" else config.encoding
    line = 0
    csv.field_size_limit(_LONGEST)
    try:
        with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding, newline="") as file:
            reader = csv.reader(file, delimiter=config.delimiter, strict=True)
            names = next(reader, None)
            if not names:
                raise DataError(f"{path} has no first line with the names of columns; add one")
            _check_names(names, path, config.delimiter, columns, section)
            line = reader.line_num
            for values in reader:
                where = f"{path}, line {line + 1}"
                if values and len(values) != len(names):
                    raise DataError(
                        f"{where} has {len(values)} values, not {len(names)} as there are columns; {_QUOTE}"
                    )
                line = reader.line_num
                if values:
                    yield where, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1}: not valid CSV ({first_line(error)}); {_QUOTE}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {config.encoding} after line {line} ({error.reason}); set source.encoding to what it is in"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {line}: {first_line(error)}") from error


_QUOTE = 'a value with a delimiter, a quote or a line break stands in quotes, a quote within it doubled: "so ""it"" is"'


def _check_names(names: Sequence[str], path: Path, delimiter: str, columns: Config, section: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has {Counter(names)[twice[0]]} columns {twice[0]!r}; rename all but one")
    if len(names) == 1 and delimiter not in names[0]:
        other = next((mark for mark in ";\t|," if mark in names[0]), None)
        if other is not None:
            raise DataError(f"{path} has one column {shown(names[0])}; set source.delimiter = {toml_value(other)}")
    require_columns(columns, names, str(path), section)
