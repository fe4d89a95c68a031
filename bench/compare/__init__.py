"""`python -m bench compare A B`: two stored sides on the same examples, tested, and where their texts differ most."""

from __future__ import annotations

from bench.compare.changes import Change, most_changed
from bench.compare.figures import Comparison, MetricTest, compare_sides
from bench.compare.sides import Side, find_side, refuse_incomparable
from bench.compare.text import as_console, as_json, as_markdown, report

__all__ = [
    "Change",
    "Comparison",
    "MetricTest",
    "Side",
    "as_console",
    "as_json",
    "as_markdown",
    "compare_sides",
    "find_side",
    "most_changed",
    "refuse_incomparable",
    "report",
]
