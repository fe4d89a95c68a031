"""Answers of a server on disk: what was paid for is never asked again."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.files import json_lines, parse_line
from bench.keys import utf8
from bench.types import Generation

FINISHES = ("stop", "length", "content_filter", "tool_calls", "function_call", "none")
OTHER_FINISH = "other"


def finish(reason: Any) -> str:
    """Why an answer ended, in words that are known: a server may put anything there, secrets among it."""
    return reason if reason in FINISHES else OTHER_FINISH


class AnswerFile:
    """Answers by a digest of everything that was sent, one a line, on the disk before anybody is told of them.

    Several processes may append to one file: a line is one write. Lines that are damaged are answers that are asked
    for again. Without a path answers are kept in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Generation] = {}
        self._file: int | None = None
        lines = path.read_bytes().splitlines(keepends=True) if path is not None and path.exists() else []
        for row in map(parse_line, lines):
            answer = None if row is None else _answer(row)
            if answer is not None and row is not None:
                self._known[str(row["key"])] = answer

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Generation | None:
        """The answer of this digest, if there is one."""
        return self._known.get(key)

    def add(self, key: str, answer: Generation) -> None:
        """Keeps an answer. Raises OSError where the disk fails; then it is not kept."""
        if self.path is not None:
            row = {"key": key, **{name: value for name, value in asdict(answer).items() if name in _KEPT}}
            self._append(self.path, json_lines([row]))
        self._known[key] = answer

    def _append(self, path: Path, line: bytes) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # a kill cut the last line short
                line = b"\n" + line
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(28, "No space left on device", str(path))
        os.fsync(self._file)

    def close(self) -> None:
        """Frees the file. Safe to call twice; the next answer opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


_KEPT = ("text", "prompt_tokens", "output_tokens", "finish_reason", "estimated")


def _answer(row: dict[str, Any]) -> Generation | None:
    try:
        answer = Generation(**{name: row[name] for name in _KEPT})
    except KeyError:
        return None
    if not (isinstance(answer.text, str) and isinstance(row.get("key"), str)):
        return None
    return replace(answer, text=utf8(answer.text), finish_reason=finish(answer.finish_reason))
