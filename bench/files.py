"""Small file helpers: atomic writes, JSON objects and JSON lines with errors that name the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.errors import DataError, UsageError
from bench.keys import canonical_json


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or none, even after a crash. The folder must exist."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, so that a rename outlives a power cut."""
    with contextlib.suppress(OSError):  # not every file system can; then a rename is as safe as it gets
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def pretty_json(value: Any) -> str:
    """JSON for people: sorted keys, one entry a line, a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises DataError, naming file and line, where it cannot be read."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} is not valid TOML: line {line} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {str(error).splitlines()[0]}") from error


def toml_value(value: Any) -> str:
    """A string, a finite number or a truth value in TOML: as in JSON, but for the DEL character."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def json_lines(rows: Iterable[Any]) -> bytes:
    """One line of canonical JSON a row."""
    return "".join(canonical_json(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UsageError that names the file if there is none or it is something else."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return value


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time. Raises UsageError naming the file and the line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = parse_line(line)
                if row is None:
                    raise UsageError(f"{path}, line {number}: not a JSON object on a line of its own")
                yield row
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on a complete line (newline included), or None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def folder_name(name: str) -> str:
    """A name as one folder of a path: anything but letters, digits, `.`, `_`, `-` and `+` becomes `_`."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:80]
    return safe if safe.strip(".") else f"_{safe}"


def check_writable(out: Path) -> None:
    """Makes the folder and writes to it once. Raises UsageError with the reason if that cannot be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"x")
    except OSError as error:
        raise UsageError(f"cannot write under {out}: {error.strerror}; choose another folder with --out") from error
