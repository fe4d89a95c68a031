"""Text as a terminal shows it: wide letters take two columns, combining marks none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from bench.comparison import printable


def columns(text: str) -> int:
    """Columns that a printable text takes."""
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, without control characters; the text's own line breaks are kept."""
    lines = [line for part in text.strip().splitlines() for line in _wrapped(printable(part), width)]
    return lines or [""]


def _wrapped(text: str, width: int) -> list[str]:
    lines, line, taken = [], "", 0
    for word in _pieces(text, width):
        size = columns(word)
        if line and taken + 1 + size > width:
            lines.append(line)
            line, taken = "", 0
        line, taken = (f"{line} {word}", taken + 1 + size) if line else (word, size)
    return [*lines, line]


def _pieces(text: str, width: int) -> Iterator[str]:
    """Words, those wider than a line cut."""
    for word in text.split():
        piece, taken = "", 0
        for letter in word:
            if piece and taken + _columns(letter) > width:
                yield piece
                piece, taken = "", 0
            piece, taken = piece + letter, taken + _columns(letter)
        yield piece


def beside(left: list[str], right: list[str], width: int) -> list[str]:
    """Two blocks side by side, the left one `width` columns wide."""
    height = max(len(left), len(right))
    padded = [line + " " * (width - columns(line)) for line in left + [""] * (height - len(left))]
    return [f"{a} | {b}".rstrip() for a, b in zip(padded, right + [""] * (height - len(right)), strict=True)]
