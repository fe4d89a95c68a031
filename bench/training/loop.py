"""The loop: steps, epochs, the choice of an epoch, and going on where a killed process stopped."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.engines.base import LanguageModel
from bench.errors import UsageError
from bench.training.checkpoint import Checkpoint, Saved, random_state, restore_random_state, task_digest
from bench.training.config import TrainingConfig
from bench.training.log import Epoch, Journal, TrainingLog
from bench.training.loss import batch_loss, evaluate_loss, micro_batches
from bench.training.rows import Row, Trainable

if TYPE_CHECKING:
    import torch

    from bench.training.prefix import Prefixes


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
) -> TrainingLog:
    """Trains on `rows`, keeps the state of the epoch with the lowest loss on `dev_rows` (the last without dev rows).

    A pure function of its arguments and of torch's generators, up to what the Trainable itself draws. With a `work`
    folder it keeps its state there and, called again after a kill, goes on from there to the very same end (bit for
    bit on a CPU). Raises UsageError without rows, or if the loss stops being a number.
    """
    if not rows:
        raise UsageError(f"{progress}: there is no training row; raise --train-limit or choose another dataset")
    checkpoint = Checkpoint(work, task_digest(lm, rows, dev_rows, trainable, config, seed)) if work else None
    fit = _Fit(lm, trainable, config, len(rows), checkpoint)
    journal = Journal(work, len(fit.log.steps), len(fit.log.epochs))
    try:
        _Loop(fit, rows, dev_rows, seed, journal, progress).run()
    finally:
        journal.close()
    if fit.best is not None:
        trainable.restore(fit.best)
    return fit.log


def _prefixes(lm: LanguageModel, trainable: Trainable, config: TrainingConfig) -> Prefixes | None:
    """Where rows' prefixes are kept; None if they change while training, or the user or the model forbids it."""
    if not (getattr(trainable, "constant_prefix", False) and config.prefix_memory_mb):
        return None
    from bench.training.prefix import Prefixes, supported

    return Prefixes(lm, config.prefix_memory_mb * 2**20) if supported(lm.model) else None


class _Fit:
    """All that training changes, so that all of it can be kept and taken up again."""

    def __init__(
        self,
        lm: LanguageModel,
        trainable: Trainable,
        config: TrainingConfig,
        rows: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Starts from the last checkpoint if there is one."""
        import torch

        self.lm, self.trainable, self.config, self.checkpoint = lm, trainable, config, checkpoint
        parameters = trainable.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.log = TrainingLog(rows=rows, parameters=sum(p.numel() for p in parameters))
        self.sums = Sums()
        self.prefixes = _prefixes(lm, trainable, config)
        self.best: dict[str, torch.Tensor] | None = None
        self._started = self._saved_at = time.perf_counter()
        if checkpoint is not None and (saved := checkpoint.load()) is not None:
            self._restore(saved)

    def clock(self) -> None:
        """Brings the log's seconds up to date."""
        self.log.seconds = self.log.seconds_before + time.perf_counter() - self._started

    def is_best(self, epoch: Epoch) -> bool:
        """Whether `epoch` beats the best one so far; without dev rows, each epoch beats the one before."""
        best = next((e for e in self.log.epochs if e.number == self.log.best_epoch), None)
        if best is None or math.isnan(epoch.dev_loss):
            return True
        return epoch.dev_loss < best.dev_loss or math.isnan(best.dev_loss)

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
        self.checkpoint.save(Saved(tensors, {"log": asdict(self.log), "sums": asdict(self.sums)}))
        self._saved_at = time.perf_counter()

    def _restore(self, saved: Saved) -> None:
        log = dict(saved.about["log"])
        self.log = TrainingLog(**{**log, "epochs": [Epoch(**epoch) for epoch in log["epochs"]]})
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


@dataclass
class Sums:
    """Losses summed over the rows of a step, or of the steps of an epoch, and what they are divided by."""

    loss: float = 0.0
    auxiliary: float = 0.0
    targets: int = 0
    rows: int = 0
    tokens: int = 0

    def add(self, other: Sums) -> None:
        self.loss += other.loss
        self.auxiliary += other.auxiliary
        self.targets += other.targets
        self.rows += other.rows
        self.tokens += other.tokens


class _Loop:
    """Epochs over rows in a seeded order. The order needs no keeping: it is drawn again from the seed."""

    def __init__(
        self, fit: _Fit, rows: Sequence[Row], dev_rows: Sequence[Row], seed: int, journal: Journal, progress: str
    ) -> None:
        self.fit, self.rows, self.dev_rows, self.journal, self.progress = fit, rows, dev_rows, journal, progress
        self.config = fit.config
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
            if number > len(self.fit.log.epochs):
                yield number, order

    def _epoch(self, number: int, order: Sequence[Row], bar: Any) -> None:
        fit, size = self.fit, self.config.batch_size
        started = time.perf_counter()
        for first in range(fit.sums.rows, len(order), size):
            self._step(number, order[first : first + size], bar)
            fit.save(now=False)
        dev_loss = evaluate_loss(fit.lm, self.dev_rows, fit.trainable, self.config, fit.prefixes)
        sums, fit.sums = fit.sums, Sums()
        epoch = Epoch(number, sums.loss / sums.targets, sums.auxiliary / sums.rows, dev_loss)
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


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate: up over the warm-up, then down to zero after the last step."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (steps - step) / max(1, steps - rising + 1))


def take_step(
    lm: LanguageModel,
    rows: Sequence[Row],
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    rate: float,
    advance: Callable[[int], object],
    prefixes: Prefixes | None = None,
) -> tuple[Sums, float]:
    """One optimizer step over `rows`. Returns what the rows gave and the norm of the gradient before clipping."""
    import torch

    sums = Sums(targets=sum(len(row.target) for row in rows), rows=len(rows), tokens=sum(row.length for row in rows))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with prefixes.open() if prefixes else nullcontext():
        loss, auxiliary = _gradients(lm, rows, trainable, config, sums, advance, prefixes)
    norm = torch.nn.utils.clip_grad_norm_(trainable.parameters(), config.max_grad_norm)
    optimizer.step()
    sums.loss, sums.auxiliary = float(loss), float(auxiliary)
    return sums, float(norm)


def _gradients(
    lm: LanguageModel,
    rows: Sequence[Row],
    trainable: Trainable,
    config: TrainingConfig,
    sums: Sums,
    advance: Callable[[int], object],
    prefixes: Prefixes | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds up the gradients of `rows`, and their losses: plain sums over rows, divided by the whole step's counts.

    Whoever shares the rows of a step out adds gradients and losses of all shares up.
    """
    import torch

    total, auxiliary_total = torch.zeros((), device=lm.device), torch.zeros((), device=lm.device)
    for batch in micro_batches(lm, rows, config, prefixes):
        vectors, auxiliary = trainable.soft(batch, training=True)
        loss, _ = batch_loss(lm, batch, vectors, prefixes)
        objective = loss / sums.targets
        total += loss.detach()
        if auxiliary is not None:
            objective = objective + auxiliary / sums.rows
            auxiliary_total += auxiliary.detach()
        if objective.requires_grad:  # rows without any history leave nothing to learn from
            objective.backward()  # type: ignore[no-untyped-call]
        advance(len(batch))
    return total, auxiliary_total
