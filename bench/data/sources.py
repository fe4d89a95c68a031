"""Sources of reviews: Parquet, JSON Lines and CSV files, and the published sets on the Hugging Face hub."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.config import Config
from bench.data.csv_files import CsvSource
from bench.data.hub import HubSource
from bench.data.rows import require_columns
from bench.data.table_files import FilesConfig, NumberedRow, check_file, open_bytes, tables
from bench.data.tables import RawTables
from bench.errors import DataError, first_line

__all__ = ["CsvSource", "FilesConfig", "HubSource", "JsonlSource", "ParquetSource"]


class ParquetSource:
    """Reviews and items from two Parquet files."""

    Config: ClassVar[type[Config]] = FilesConfig

    def __init__(self, config: FilesConfig) -> None:
        self.config = config

    def load(self) -> RawTables:
        """Both tables. Raises DataError naming file, column and row of the first thing that cannot be used."""
        config = self.config
        reviews = _parquet_rows(config.reviews, config.columns, "source.columns")
        items = _parquet_rows(config.items, config.item_columns, "source.item_columns")
        return tables(reviews, items, config)


class JsonlSource:
    """Reviews and items from two JSON Lines files, plain or compressed (.gz)."""

    Config: ClassVar[type[Config]] = FilesConfig

    def __init__(self, config: FilesConfig) -> None:
        self.config = config

    def load(self) -> RawTables:
        """Both tables. Raises DataError naming file, line and key of the first thing that cannot be used."""
        config = self.config
        keys = {config.columns.rating, config.columns.title}
        reviews = _jsonl_rows(config.reviews, config.columns, keys, "source.columns")
        keys = {config.item_columns.title, config.item_columns.description, config.item_columns.category}
        items = _jsonl_rows(config.items, config.item_columns, keys, "source.item_columns")
        return tables(reviews, items, config)


def _parquet_rows(path: Path, columns: Config, section: str) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_file(path, "source.reviews" if section == "source.columns" else "source.items")
    try:
        with pq.ParquetFile(path) as file:
            require_columns(columns, file.schema_arrow.names, str(path), section)
            names = sorted({theirs for _, theirs in columns if theirs})
            number = 0
            for batch in file.iter_batches(batch_size=8192, columns=names):
                values = [batch.column(name).to_pylist() for name in names]
                for row in zip(*values, strict=True):
                    yield f"{path}, row {number}", dict(zip(names, row, strict=True))
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _jsonl_rows(path: Path, columns: Config, optional: set[str], section: str) -> Iterator[NumberedRow]:
    """Rows line by line. Keys in `optional` may be absent from a line, but not from every line."""
    check_file(path, "source.reviews" if section == "source.columns" else "source.items")
    seen: dict[str, None] = {}
    rows = 0
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        row = parse_line(line, where)
        for ours, theirs in columns:
            if theirs and theirs not in optional and theirs not in row:
                raise DataError(f"{where} has no key {theirs!r} (for {ours}); it has: {', '.join(row) or 'none'}")
        seen.update(dict.fromkeys(row))
        rows += 1
        yield where, row
    if rows:
        require_columns(columns, seen, str(path), section)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file, plain or .gz, that are not blank, counted from 1. Raises DataError where reading fails."""
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number}: {first_line(error)}") from error


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line. Raises DataError if there is none."""
    try:
        row = json.loads(line.decode("utf-8-sig" if line.startswith(b"\xef\xbb\xbf") else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {first_line(error)}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} holds {type(row).__name__}, not an object with keys")
    return row
