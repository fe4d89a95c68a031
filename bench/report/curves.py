"""Training curves: the losses of every fit behind a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import parse_line
from bench.reopen import fit_folder
from bench.report.boards import Board
from bench.report.costs import figure
from bench.store import StoredRun
from bench.training.log import JOURNAL

POINTS = 400
"""Most points of a curve: longer ones are drawn as means of as many steps as it takes."""


def curves(board: Board) -> list[dict[str, Any]]:
    """One object a fit: rows that take it, seed, loss by step, losses by epoch. Rows that share a fit share a curve.

    A fit whose folder is gone, or whose method wrote no losses, is told by what the run's manifest kept, if anything.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in board.entries:
        for run in entry.runs:
            if not run.manifest.get("fit"):
                continue
            folder = _folder(run)
            mark = str(folder if folder is not None else run.path)
            if mark in found:
                found[mark]["rows"] = list(dict.fromkeys([*found[mark]["rows"], entry.label]))
            else:
                found[mark] = {"rows": [entry.label], "seed": str(run.description.get("seed")), **_curve(run, folder)}
    return list(found.values())


def _folder(run: StoredRun) -> Path | None:
    try:
        return fit_folder(run)
    except UsageError:
        return None


def _curve(run: StoredRun, folder: Path | None) -> dict[str, Any]:
    lines = _journal(folder)
    log = run.manifest["fit"].get("log") or {}
    steps = [(line["step"], line.get("loss")) for line in lines if "step" in line]
    steps = steps or list(enumerate(log.get("steps") or [], 1))
    epochs = [line for line in lines if "step" not in line and "epoch" in line]
    epochs = epochs or [{**line, "epoch": line.get("number")} for line in log.get("epochs") or []]
    last: dict[Any, int] = {line["epoch"]: line["step"] for line in lines if "step" in line and "epoch" in line}
    each = max(1, -(-len(steps) // POINTS))
    return {
        "steps": thinned(steps, each),
        "each": each,
        "epochs": [_epoch(line, last, len(steps), len(epochs)) for line in epochs],
        "best_epoch": run.manifest["fit"].get("best_epoch"),
        "from": JOURNAL if lines else "manifest" if steps or epochs else None,
    }


def _journal(folder: Path | None) -> list[dict[str, Any]]:
    path = folder / JOURNAL if folder is not None else None
    if path is None or not path.is_file():
        return []
    return [row for line in path.read_bytes().splitlines(keepends=True) if (row := parse_line(line)) is not None]


def thinned(steps: Sequence[tuple[int, float | None]], each: int) -> list[list[float | None]]:
    """[last step, mean loss] of every `each` steps; losses that were not finite are left out of a mean."""
    blocks = [steps[i : i + each] for i in range(0, len(steps), each)]
    found: list[list[float | None]] = []
    for block in blocks:
        losses = [loss for _, loss in block if loss is not None]
        found.append([block[-1][0], figure(sum(losses) / len(losses)) if losses else None])
    return found


def _epoch(line: Mapping[str, Any], last: Mapping[Any, int], steps: int, epochs: int) -> dict[str, Any]:
    """The epoch's losses at the step it ended with (without a journal: at its share of all steps)."""
    number = line.get("epoch") or 0
    step = last.get(number, round(steps * number / epochs) if steps else number)
    told = {name: figure(line.get(name)) for name in ("train_loss", "dev_loss", "dev_score")}
    return {"epoch": number, "step": step, **told}
