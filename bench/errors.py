"""Errors a user can mend: what is wrong, where, and what to do. The CLI prints one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of a library's message, which may run over many; the error's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UsageError(Exception):
    """Something the user gave cannot be used. The message is one line and holds the way out."""


class DataError(UsageError):
    """A dataset (spec file, table, column, row) cannot be used as it is."""


class NotFetched(DataError):
    """Data that would have to be fetched first, and cannot be now."""


class Held(UsageError):
    """Another process has what is asked for: waiting may help."""


class MissingPackage(UsageError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        install = f"pip install 'dep-bench[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; run: {install}")


class UnknownName(UsageError):
    """A name that no registry holds."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f"; did you mean {close[0]!r}?" if close else "."
        listing = ", ".join(known) if known else "none"
        super().__init__(f"unknown {kind} {name!r}{guess} Known: {listing}.{' ' + hint if hint else ''}")
