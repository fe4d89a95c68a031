"""Names to classes, lazily, through entry points: built-ins and plug-ins are found in the same way."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bench.errors import UnknownName, UsageError, first_line

GROUPS = {
    "method": "bench.methods",
    "engine": "bench.engines",
    "metric": "bench.metrics",
    "source": "bench.sources",
}
"""Kind of thing -> entry point group that plug-ins add to."""


@functools.cache
def _points(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise UsageError(
                f"two installed packages both register {group} {point.name!r}: {other.value} and {point.value}; "
                "uninstall one or rename its entry point"
            )
        found[point.name] = point
    return found


def names(kind: str) -> list[str]:
    """All registered names of a kind ("method", "engine", "metric", "source"), sorted."""
    return sorted(_points(GROUPS[kind]))


def load(kind: str, name: str) -> Any:
    """The object registered under `name`. Raises UnknownName with the nearest known one."""
    points = _points(GROUPS[kind])
    if not points:
        raise UsageError("nothing is registered: dep-bench is not installed here; run: pip install -e .")
    if name not in points:
        raise UnknownName(kind, name, points)
    try:
        return points[name].load()
    except Exception as error:  # a plug-in is a program of somebody's and may raise anything
        told = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{kind} {name!r} ({points[name].value}) cannot be imported: {told}") from error


def origin(kind: str, name: str) -> str:
    """The distribution that registered a name, with its version."""
    dist = _points(GROUPS[kind])[name].dist
    return f"{dist.name} {dist.version}" if dist else "unknown"
