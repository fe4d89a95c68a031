"""DuckDB with bounded memory, progress, one-line errors, and the harness's idea of clean text written as SQL."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import DataError, MissingPackage, UsageError, first_line
from bench.types import SLOT_CLOSE, SLOT_OPEN

Tell = Callable[[int | None], None]
"""Given the line that DuckDB complains of, if it names one: raises DataError with the line and what is wrong there."""

_OLDEST = 2
"""Major version."""

_SPACES = [char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace()]
"""What `str.split` takes for white space."""


def _chars(*some: str) -> str:
    return "".join(f"\\x{{{ord(char):x}}}" for char in some)


_FORBIDDEN = _chars("\x00", SLOT_OPEN, SLOT_CLOSE)
"""As `bench.data.clean`, without lone surrogates, which no column of DuckDB can hold."""
_RUNS = f"[{_chars(*_SPACES)}]{{2,}}|[{_chars(*[c for c in _SPACES if c != ' '])}]"


def clean(column: str) -> str:
    """SQL for `bench.data.clean.clean`. The rewriting is only done where there is something to rewrite: it is slow."""
    bare = f"regexp_replace({column}, '[{_FORBIDDEN}]', '', 'g')"
    even = f"regexp_replace({bare}, '{_RUNS}', ' ', 'g')"
    return f"trim(CASE WHEN regexp_matches({column}, '[{_FORBIDDEN}]|{_RUNS}') THEN {even} ELSE {column} END, ' ')"


def says_something(column: str) -> str:
    """SQL for whether clean text is not empty. Null counts as empty."""
    return f"coalesce(regexp_matches({column}, '[^{_FORBIDDEN}{_chars(*_SPACES)}]'), false)"


def is_clean_id(column: str) -> str:
    """SQL for `bench.data.clean.is_clean_id`."""
    return f"(regexp_matches({column}, '[^{_chars(*_SPACES)}]') AND NOT regexp_matches({column}, '[{_FORBIDDEN}]'))"


def quoted(text: str | Path) -> str:
    """A string literal."""
    return "'" + str(text).replace("'", "''") + "'"


def lines_of(path: Path, columns: dict[str, str]) -> str:
    """SQL for the table in a JSON Lines file, plain or .gz: key -> type. A key that a line lacks is null."""
    packing = "gzip" if path.suffix == ".gz" else "uncompressed"
    kinds = ", ".join(f"{name}: {quoted(kind)}" for name, kind in columns.items())
    options = f"format = 'newline_delimited', compression = '{packing}', columns = {{{kinds}}}"
    # Square brackets around the name: otherwise `*` or `[` in it would be a pattern.
    return f"read_json({quoted(_literal(path))}, {options})"


def _literal(path: Path) -> str:
    return re.sub(r"([*?\[])", r"[\1]", str(path))


@dataclass(frozen=True)
class Limits:
    """What DuckDB may use."""

    memory: str = "3GB"
    """A number and a unit. Reading buffers come on top, a few hundred megabytes."""
    threads: int | None = None
    """None: as many as there are cores."""


class Duck:
    """A connection that keeps nothing: tables are temporary, whatever is larger than memory goes to `scratch`."""

    def __init__(self, connection: Any, title: str) -> None:
        self._connection, self.title = connection, title

    def run(self, sql: str, file: Path | None = None, tell: Tell | None = None) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows, showing progress on the way.

        Args:
            sql: one statement.
            file: the input that it reads, for errors.
            tell: called for a line of `file` that cannot be read.

        Raises:
            DataError: the input cannot be read.
            UsageError: memory or disk does not suffice.
        """
        import duckdb

        try:
            with _progress(self._connection, self.title):
                rows: list[tuple[Any, ...]] = self._connection.execute(sql).fetchall()
                return rows
        except (duckdb.InterruptException, RuntimeError) as error:
            if "interrupted" in str(error).lower():  # what DuckDB makes of Ctrl-C
                raise KeyboardInterrupt from error
            raise
        except duckdb.Error as error:
            raise _told(error, file, tell) from error

    def row(self, sql: str) -> tuple[Any, ...]:
        """The only row that a statement gives."""
        (row,) = self.run(sql)
        return row

    def copy(self, sql: str, target: Path, file: Path | None = None, tell: Tell | None = None) -> None:
        """Writes the result of a query into a Parquet file. Raises as `run`."""
        self.run(f"COPY ({sql}) TO {quoted(target)} (FORMAT parquet, COMPRESSION zstd)", file, tell)

    def give(self, name: str, columns: dict[str, Any]) -> None:
        """Makes NumPy arrays a table that statements can name."""
        import pyarrow as pa

        self._connection.register(name, pa.table(columns))


def version() -> str:
    """The version of DuckDB. Raises MissingPackage if it is not installed, UsageError if it is too old to be trusted.

    Version 1.4 takes a .gz file that is cut short for a whole one.
    """
    try:
        import duckdb
    except ImportError:
        raise MissingPackage("duckdb", "prepare", extra="prepare") from None
    found = str(duckdb.__version__)
    if int(found.partition(".")[0]) < _OLDEST:
        raise UsageError(f"prepare needs DuckDB {_OLDEST} or later, not {found}; run: pip install 'dep-bench[prepare]'")
    return found


@contextmanager
def connect(limits: Limits, scratch: Path, title: str) -> Iterator[Duck]:
    """A connection for one stage. Raises UsageError if a limit cannot be used."""
    import duckdb

    options: dict[str, Any] = {
        "memory_limit": limits.memory,
        "temp_directory": str(scratch),
        "preserve_insertion_order": False,  # what needs an order says so, and the rest needs less memory
        "autoinstall_known_extensions": False,  # never reach for a network
    }
    if limits.threads is not None:
        options["threads"] = limits.threads
    try:
        connection = duckdb.connect(config=options)
    except duckdb.Error as error:
        raise UsageError(f"DuckDB takes no memory limit {limits.memory!r}: {first_line(error)}; try 3GB") from error
    try:
        # Nothing tells how many lines a file has, so what is guessed of joins is not to be trusted.
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        connection.execute("SET enable_progress_bar = true")
        connection.execute("SET enable_progress_bar_print = false")
        yield Duck(connection, title)
    finally:
        connection.close()


@contextmanager
def _progress(connection: Any, title: str) -> Iterator[None]:
    """A bar of what DuckDB says it has done, kept up by a thread, as the statement itself does not return."""
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 30.0  # a log wants a line now and then
    done = threading.Event()
    layout = "{desc}: {percentage:3.0f}% [{elapsed}]"
    with tqdm(total=100.0, desc=title, mininterval=often, bar_format=layout, delay=1.0) as bar:

        def follow() -> None:
            while not done.wait(0.5):
                bar.update(max(0.0, min(100.0, connection.query_progress()) - bar.n))

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(100.0 - bar.n)
        finally:
            done.set()
            watcher.join()


def _told(error: Exception, file: Path | None, tell: Tell | None) -> UsageError:
    import duckdb

    text = str(error)
    if "No space left" in text or "max_temp_directory_size" in text:
        return UsageError("the disk is full; free some space and give the same command again: what is whole is kept")
    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(f"{first_line(error)}; raise --memory-limit or lower --threads")
    if file is None:
        return UsageError(f"DuckDB cannot go on: {first_line(error)}")
    if "GZIP" in text:
        return DataError(f"{file} is cut short or is no gzip file ({first_line(error)}); fetch it again")
    if tell is not None:
        found = re.search(r" in line (\d+)", text)
        try:
            tell(int(found[1]) if found else None)
        except DataError as told:
            return told
    return DataError(f"{file} cannot be read: {first_line(error)}")
