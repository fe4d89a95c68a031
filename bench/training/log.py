"""What training did: the log kept with a fit, and the lines that are appended while it runs.

`training.jsonl` holds a line for each optimizer step (step, epoch, loss, auxiliary, lr, grad_norm, tokens, seconds)
and one for each epoch (epoch, train_loss, train_auxiliary, dev_loss, dev_score, best_epoch, seconds). Tokens and
seconds are those of the step or the epoch. A number that is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from bench.costs import Cost
from bench.files import json_lines, parse_line
from bench.trackers import Careful

JOURNAL = "training.jsonl"


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. Losses are in nats a target token, the auxiliary one in the Trainable's unit a row."""

    number: int
    train_loss: float
    train_auxiliary: float
    dev_loss: float
    """NaN without dev rows."""
    dev_score: float = math.nan
    """What chose the epoch in place of the loss (the larger the better); NaN where the loss did."""


@dataclass
class TrainingLog:
    """What training did and what it cost; kept beside the artifact."""

    rows: int = 0
    tokens: int = 0
    """Real tokens that went through the model, all epochs, without dev passes."""
    seconds: float = 0.0
    """All of it, what killed processes spent included."""
    seconds_before: float = 0.0
    """Of these, what earlier processes spent that were killed."""
    parameters: int = 0
    steps: list[float] = dataclass_field(default_factory=list)
    """Training loss of each optimizer step."""
    epochs: list[Epoch] = dataclass_field(default_factory=list)
    best_epoch: int = 0
    costs: list[Cost] = dataclass_field(default_factory=list)
    """What killed processes spent up to the state that training goes on from, and how they measured it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; a loss that is no finite number is None, as JSON has no word for it."""
        plain = asdict(self)
        del plain["costs"]  # which depend on kills, as nothing else does
        plain["steps"] = [finite(loss) for loss in self.steps]
        plain["epochs"] = [{key: finite(value) for key, value in epoch.items()} for epoch in plain["epochs"]]
        return plain


def finite(value: Any) -> Any:
    """The value, or None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Journal:
    """The lines of `training.jsonl`, each on its way to the disk before the next step begins."""

    def __init__(self, folder: Path | None, steps: int, epochs: int, tracker: Careful | None = None) -> None:
        """Keeps the lines of the first `steps` steps and `epochs` epochs that are there, and drops all others."""
        self._file = None
        self._tracker = tracker
        self._steps = steps
        if folder is None:
            return
        path = folder / JOURNAL
        kept = _lines(path, steps, epochs)
        path.write_bytes(json_lines(kept))
        self._file = path.open("ab", buffering=0)

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of a step or of an epoch; the tracker is told the same numbers."""
        self._steps = line.get("step", self._steps)
        if self._file is not None:
            self._file.write(json_lines([{key: finite(value) for key, value in line.items()}]))
        if self._tracker is not None:
            part = "step" if "step" in line else "epoch"
            self._tracker.log({f"{part}/{key}": value for key, value in line.items() if key != part}, self._steps)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def _lines(path: Path, steps: int, epochs: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = [row for line in path.read_bytes().splitlines(keepends=True) if (row := parse_line(line)) is not None]
    return [row for row in found if (row["step"] <= steps if "step" in row else row["epoch"] <= epochs)]
