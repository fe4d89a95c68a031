"""The command line. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

# isort: off  (the order of --help)
from bench.cli import fetching, making, running, scoring, showing
from bench.cli.app import app, execute

__all__ = ["app", "execute", "fetching", "making", "running", "scoring", "showing"]
