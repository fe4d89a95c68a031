"""One of several processes that train together, for tests; the environment says which one, as a launcher would.

A program of its own: called with the folder of a tiny model, a folder to write to and names of cases. What
training gave goes to `<folder>/<case>-<rank>.safetensors` and `.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from test_training_loop import Table, rows_of
from test_training_resume import Noisy, Stopped
from tiny_engine import engine_of

from bench import distributed
from bench.__main__ import _fail
from bench.engines.base import LanguageModel
from bench.errors import UsageError
from bench.training import Row, TrainingConfig, TrainingLog, loop, train

CONFIG = {"epochs": 3, "lr": 0.1, "batch_size": 3, "warmup": 0.2, "checkpoint_seconds": 0, "weight_decay": 0.1}
SLOTS = (2, 1, 0, 2, 1, 2, 0)
"""Seven rows: the last step of an epoch has one, fewer than there are processes; one row has nothing to learn from."""

SCORES = (0.5, 0.7, 0.6, 0.4, 0.9)


def data(lm: LanguageModel) -> tuple[list[Row], list[Row]]:
    return rows_of(lm, SLOTS), rows_of(lm, [1, 2, 1], seed=5)


def fit(lm: LanguageModel, learner: Table, work: Path | None = None, **knobs: Any) -> TrainingLog:
    torch.manual_seed(11)
    scores = iter(SCORES)
    scored = {"dev_score": lambda: next(scores)} if knobs.get("select") == "meteor" else {}
    config = TrainingConfig.model_validate({**CONFIG, **knobs})
    return train(lm, *data(lm), learner, config, 3, work=work, **scored)


def plain(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    """Cross entropy and an auxiliary loss; a second table that no row uses must stay as it is."""
    learner = Unused(2, weight=0.1)
    return learner, fit(lm, learner, folder / "plain")


def started_apart(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    """The main process's starting point counts."""
    learner = Unused(2, weight=0.1, seed=distributed.rank())
    return learner, fit(lm, learner)


def prefixed(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    learner = Table(2, weight=0.1)
    vars(learner)["constant_prefix"] = True
    return learner, fit(lm, learner)


def selected(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    """The main process alone scores; all keep its best epoch and stop early together."""
    learner = Table(2)
    return learner, fit(lm, learner, select="meteor", epochs=5, patience=2)


def noisy(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    learner = Noisy()
    return learner, fit(lm, learner, folder / "noisy")


def stopped(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    """As `noisy`, but all stop in the fifth step, and only the main process's state is there to go on from."""
    usual, calls = loop.take_step, 0

    def step(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stopped
        return usual(*given)

    loop.take_step = step
    try:
        fit(lm, Noisy(), folder / "stopped")
    except Stopped:
        calls = 6
    learner = Noisy(seed=4)
    with torch.no_grad():
        learner.table.copy_(Noisy().table)
    return learner, fit(lm, learner, folder / "stopped")


def other_rows(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    learner = Table(2)
    rows, dev = data(lm)
    return learner, train(lm, rows[distributed.rank() :], dev, learner, TrainingConfig(), 3)


def failing(lm: LanguageModel, folder: Path) -> tuple[Table, TrainingLog]:
    """One process has a bad row; the others are left waiting in the middle of a step."""
    learner = Failing(2)
    return learner, fit(lm, learner)


class Unused(Table):
    """A table with another one beside it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.other = torch.nn.Parameter(torch.ones(5))

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.other, self.table]


class Failing(Table):
    """Fails in the last process in the second epoch."""

    def soft(self, rows: Any, training: bool) -> Any:
        if len(self.modes) > 5 and distributed.rank() == distributed.size() - 1:
            raise UsageError("a row is bad")
        return super().soft(rows, training)


CASES: dict[str, Callable[[LanguageModel, Path], tuple[Table, TrainingLog]]] = {
    case.__name__: case for case in (plain, started_apart, prefixed, selected, noisy, stopped, other_rows, failing)
}


def result(log: TrainingLog) -> dict[str, Any]:
    """What training told that must come out the same."""
    told = log.to_json()
    return {key: told[key] for key in ("rows", "tokens", "parameters", "steps", "epochs", "best_epoch")}


def main(model: Path, folder: Path, cases: Sequence[str]) -> None:
    torch.set_num_threads(1)
    lm = engine_of(model).language_model()
    distributed.join()
    for case in cases:
        try:
            learner, log = CASES[case](lm, folder)
        except UsageError as error:
            sys.exit(_fail(f"error: {error}", 2))
        weights = {name: p.detach() for name, p in zip("ab", learner.parameters(), strict=False)}
        save_file(weights, folder / f"{case}-{distributed.rank()}.safetensors")
        (folder / f"{case}-{distributed.rank()}.json").write_text(json.dumps(result(log)))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
