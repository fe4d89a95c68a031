"""The loop: steps, epochs, the choice of an epoch, and going on where a killed process stopped."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import distributed
from bench.engines.base import LanguageModel
from bench.errors import UsageError
from bench.trackers import open_tracker
from bench.training import together
from bench.training.checkpoint import Checkpoint, task_digest
from bench.training.config import TrainingConfig
from bench.training.log import Epoch, Journal, TrainingLog
from bench.training.loss import evaluate_loss
from bench.training.rows import Row, Trainable
from bench.training.state import Fit
from bench.training.step import Sums, schedule, take_step


def train(
    lm: LanguageModel,
    rows: Sequence[Row],
    dev_rows: Sequence[Row],
    trainable: Trainable,
    config: TrainingConfig,
    seed: int,
    progress: str = "fit",
    *,
    work: Path | None = None,
    dev_score: Callable[[], float] | None = None,
    tracker: str = "none",
) -> TrainingLog:
    """Trains on `rows`, keeps the state of the best epoch on `dev_rows` (the last without dev rows).

    The best epoch has the lowest loss or, with `config.select` = meteor, the highest `dev_score()`: that is called
    after the dev loss, with the Trainable as it was left there (see `dev_meteor`).

    A pure function of its arguments and of torch's generators, up to what the Trainable itself draws. With a `work`
    folder it keeps its state there and, called again after a kill, goes on from there to the very same end (bit for
    bit on a CPU). `training.jsonl` there and the `tracker` (a name of `bench.trackers`) hold the losses as they come.
    Where several processes train (see `bench.distributed`), all call this with the same arguments and end alike; only
    the main one uses `work`, `dev_score` and `tracker`. Raises UsageError without rows, if the loss stops being a
    number, or if the model or the machine cannot do what the config asks for.
    """
    import torch

    if not rows:
        raise UsageError(f"{progress}: there is no training row; raise --train-limit or choose another dataset")
    if config.select != "loss" and dev_rows and dev_score is None:
        raise UsageError(f"{progress}: this method offers no score of validation texts; use select=loss")
    if any(p.dtype != torch.float32 for p in trainable.parameters()):
        raise ValueError("what is trained must be float32: small updates are lost in fewer bits")
    if distributed.rank():
        work, tracker = None, "none"
    together.start(rows, dev_rows, trainable, config, seed)
    checkpoint = Checkpoint(work, task_digest(lm, rows, dev_rows, trainable, config, seed)) if work else None
    fit = Fit(lm, trainable, config, len(rows), bool(dev_rows), checkpoint)
    steps = len(fit.log.steps)
    about = {**config.model_dump(mode="json"), "rows": len(rows), "parameters": fit.log.parameters, "seed": seed}
    watcher = open_tracker(tracker, work, about, steps)
    journal = Journal(work, steps, len(fit.log.epochs), watcher)
    try:
        _Loop(fit, rows, dev_rows, dev_score if config.select != "loss" else None, seed, journal, progress).run()
    finally:
        journal.close()
    if fit.best is not None:
        trainable.restore(fit.best)
    return fit.log


class _Loop:
    """Epochs over rows in a seeded order. The order needs no keeping: it is drawn again from the seed."""

    def __init__(
        self,
        fit: Fit,
        rows: Sequence[Row],
        dev_rows: Sequence[Row],
        dev_score: Callable[[], float] | None,
        seed: int,
        journal: Journal,
        progress: str,
    ) -> None:
        self.fit, self.rows, self.dev_rows, self.dev_score = fit, rows, dev_rows, dev_score
        self.journal, self.progress = journal, progress
        self.config, self.seed = fit.config, seed
        self.shuffler = random.Random(seed)
        self.per_epoch = -(-len(rows) // fit.config.batch_size)
        self.steps = self.per_epoch * fit.config.epochs

    def run(self) -> None:
        from tqdm import tqdm

        fit = self.fit
        done = len(fit.log.epochs) * len(self.rows) + fit.sums.rows
        with tqdm(
            total=len(self.rows) * self.config.epochs, initial=done, desc=self.progress, unit="row", leave=False
        ) as bar:
            for number, order in self._orders():
                self._epoch(number, order, bar)
                fit.save(now=True)
        fit.clock()

    def _orders(self) -> Iterator[tuple[int, list[Row]]]:
        """Number and order of each epoch that is still to come."""
        for number in range(1, self.config.epochs + 1):
            order = list(self.rows)
            self.shuffler.shuffle(order)
            if number > len(self.fit.log.epochs) and not self.fit.worn_out():
                yield number, order

    def _epoch(self, number: int, order: Sequence[Row], bar: Any) -> None:
        fit, size = self.fit, self.config.batch_size
        started = time.perf_counter()
        with fit.layers.open():
            for first in range(fit.sums.rows, len(order), size):
                self._step(number, order[first : first + size], bar)
                fit.save(now=False)
            dev_loss = evaluate_loss(fit.lm, self.dev_rows, fit.trainable, self.config, fit.prefixes)
        # Written with the layers as they always are: a growing past would compile them again and again.
        writes = self.dev_score if self.dev_rows and distributed.rank() == 0 else None
        dev_score = writes() if writes else math.nan
        sums, fit.sums = fit.sums, Sums()
        epoch = together.agreed(
            Epoch(number, sums.loss / sums.targets, sums.auxiliary / sums.rows, dev_loss, dev_score)
        )
        if fit.is_best(epoch):
            fit.keep_best(number)
        fit.log.epochs.append(epoch)
        bar.set_postfix(dev_loss=f"{dev_loss:.3f}")
        line = {"epoch" if key == "number" else key: value for key, value in asdict(epoch).items()}
        self.journal.write({**line, "best_epoch": fit.log.best_epoch, "seconds": time.perf_counter() - started})

    def _step(self, number: int, rows: Sequence[Row], bar: Any) -> None:
        fit, started = self.fit, time.perf_counter()
        step = len(fit.log.steps)
        rate = self.config.lr * schedule(step, self.steps, self.config.warmup)
        together.own_noise(self.seed, step)
        sums, norm = take_step(fit.lm, rows, fit.trainable, fit.optimizer, self.config, rate, bar.update, fit.prefixes)
        total = sums.loss + sums.auxiliary
        if not math.isfinite(total):
            raise UsageError(
                f"{self.progress}: the loss at step {step + 1} of {self.steps} is {total}; "
                f"lower the learning rate (lr = {self.config.lr})"
            )
        fit.log.steps.append(sums.loss / sums.targets)
        fit.log.tokens += sums.tokens
        fit.sums.add(sums)
        self.journal.write(
            {
                "step": step + 1,
                "epoch": number,
                "loss": sums.loss / sums.targets,
                "auxiliary": sums.auxiliary / sums.rows,
                "lr": rate,
                "grad_norm": norm,
                "tokens": sums.tokens,
                "seconds": time.perf_counter() - started,
            }
        )
