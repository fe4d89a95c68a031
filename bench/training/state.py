"""The state of training: all that it changes, kept in a checkpoint and taken up again from there."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench import distributed
from bench.costs import Cost, as_rows, from_rows, merged
from bench.energy import Stopwatch
from bench.engines.base import LanguageModel
from bench.training.checkpoint import Checkpoint, Saved, random_state, restore_random_state
from bench.training.config import TrainingConfig
from bench.training.layers import Layers
from bench.training.log import Epoch, TrainingLog
from bench.training.rows import Trainable
from bench.training.step import Sums
from bench.training.together import from_main

if TYPE_CHECKING:
    import torch

    from bench.training.prefix import Prefixes


def _prefixes(lm: LanguageModel, trainable: Trainable, config: TrainingConfig) -> Prefixes | None:
    """Where rows' prefixes are kept; None if they change while training, or the user or the model forbids it."""
    if not (getattr(trainable, "constant_prefix", False) and config.prefix_memory_mb):
        return None
    from bench.training.prefix import Prefixes, supported

    return Prefixes(lm, config.prefix_memory_mb * 2**20) if supported(lm.model) else None


class Fit:
    """All that training changes, so that all of it can be kept and taken up again."""

    def __init__(
        self,
        lm: LanguageModel,
        trainable: Trainable,
        config: TrainingConfig,
        rows: int,
        selects: bool,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Starts from the last checkpoint if there is one."""
        import torch

        self.lm, self.trainable, self.config, self.checkpoint = lm, trainable, config, checkpoint
        self.selects = selects
        parameters = trainable.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.log = TrainingLog(rows=rows, parameters=sum(p.numel() for p in parameters))
        self.sums = Sums()
        self.prefixes = _prefixes(lm, trainable, config)
        self.layers = Layers(lm, config)
        self.best: dict[str, torch.Tensor] | None = None
        self._started = self._saved_at = time.perf_counter()
        self._watch, self._costs = Stopwatch(), list[Cost]()
        saved = from_main(checkpoint.load() if checkpoint is not None else None)
        if saved is not None:
            self._restore(saved)

    def clock(self) -> None:
        """Brings the log's seconds up to date."""
        self.log.seconds = self.log.seconds_before + time.perf_counter() - self._started

    def is_best(self, epoch: Epoch) -> bool:
        """Whether `epoch` beats the best one so far; where nothing selects, each epoch beats the one before."""
        best = next((e for e in self.log.epochs if e.number == self.log.best_epoch), None)
        return best is None or not self.selects or self._quality(epoch) > self._quality(best)

    def _quality(self, epoch: Epoch) -> float:
        quality = -epoch.dev_loss if self.config.select == "loss" else epoch.dev_score
        return -math.inf if math.isnan(quality) else quality

    def worn_out(self) -> bool:
        """Whether patience with epochs that are no better has come to its end."""
        patience = self.config.patience
        return 0 < patience <= len(self.log.epochs) - self.log.best_epoch

    def keep_best(self, number: int) -> None:
        self.best = {name: tensor.detach().clone() for name, tensor in self.trainable.state().items()}
        self.log.best_epoch = number

    def save(self, *, now: bool) -> None:
        """Keeps the state if it is time, or `now`."""
        due = now or time.perf_counter() - self._saved_at >= self.config.checkpoint_seconds
        if self.checkpoint is None or not due:
            return
        self.clock()
        moments = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"state.{name}": tensor for name, tensor in self.trainable.state().items()},
            **{f"best.{name}": tensor for name, tensor in (self.best or {}).items()},
            **{f"moment.{i}.{name}": tensor for i, of in moments.items() for name, tensor in of.items()},
            **{f"random.{name}": tensor for name, tensor in random_state(self.lm.device).items()},
        }
        self._costs = merged([*self._costs, Cost.of("fit", self._watch.lap(distributed.size()))])
        log = {**asdict(self.log), "costs": as_rows(merged([*self.log.costs, *self._costs]))}
        self.checkpoint.save(Saved(tensors, {"log": log, "sums": asdict(self.sums)}))
        self._saved_at = time.perf_counter()

    def _restore(self, saved: Saved) -> None:
        log = dict(saved.about["log"])
        earlier = {"epochs": [Epoch(**epoch) for epoch in log["epochs"]], "costs": from_rows(log.get("costs", []))}
        self.log = TrainingLog(**{**log, **earlier})
        self.log.seconds_before = self.log.seconds
        self.sums = Sums(**saved.about["sums"])
        self.trainable.restore(_part(saved, "state"))
        self.best = {k: v.to(self.lm.device) for k, v in _part(saved, "best").items()} or None
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(saved, "moment").items():
            index, _, kind = name.partition(".")
            moments.setdefault(int(index), {})[kind] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        restore_random_state(_part(saved, "random"))


def _part(saved: Saved, part: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}
