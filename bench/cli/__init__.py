"""The command line. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

# In the order of --help.
# isort: off
from bench.cli import running, fetching, scoring, showing, making
from bench.cli.app import app, execute

__all__ = ["app", "execute", "fetching", "making", "running", "scoring", "showing"]
