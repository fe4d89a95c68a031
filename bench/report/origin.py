"""Where a number comes from: the runs behind a row, the commands that made them, and on what machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.card import command
from bench.errors import UsageError
from bench.export import public
from bench.reopen import stored_config
from bench.report.boards import Board
from bench.store import StoredRun

_LEFT_OUT = ("key", "log")
"""Of a fit: its key repeats the run's, its log is drawn as a curve."""


def origins(board: Board, roots: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """Row -> its runs, one a seed. Keys, logins and paths of the machine are left out, as in an export."""
    return [[_origin(run, roots) for run in entry.runs] for entry in board.entries]


def _origin(run: StoredRun, roots: Sequence[Path]) -> dict[str, Any]:
    provenance = run.manifest.get("provenance") or {}
    fit = run.manifest.get("fit") or {}
    told: dict[str, Any] = public(
        {
            "key": run.key,
            "seed": run.description.get("seed"),
            "command": None,
            "description": run.description,
            "totals": run.totals,
            "fit": {name: value for name, value in fit.items() if name not in _LEFT_OUT},
            "git": provenance.get("git"),
            "python": provenance.get("python"),
            "packages": provenance.get("packages") or {},
            "machine": {name: provenance.get(name) for name in ("device", "cpu", "cores", "platform")},
        }
    )
    # `key` is the run's name, not a secret, and the folder is shown as its user called it.
    return {**told, "key": run.key, "folder": folder(run.path, roots), "command": _command(run)}


def _command(run: StoredRun) -> str | None:
    try:
        return command(public(stored_config(run)))
    except UsageError:
        return None


def folder(path: Path, roots: Sequence[Path]) -> str:
    """A run's folder from the last part of the folder that was asked for on: it names no machine."""
    for root in roots:
        if path.resolve().is_relative_to(root.resolve()):
            inner = path.resolve().relative_to(root.resolve())
            whole = root.resolve().name if root.is_absolute() or ".." in root.parts else root.as_posix()
            return (Path(whole) / inner).as_posix()
    return path.name
