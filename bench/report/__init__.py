"""`python -m bench report RUNS... --out DIR`: stored runs as a page to look at, which opens from disk."""

from __future__ import annotations

from bench.report.write import report

__all__ = ["report"]
