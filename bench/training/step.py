"""One optimizer step: the gradients of its rows, added up over micro-batches, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.engines.base import LanguageModel
from bench.training.config import TrainingConfig
from bench.training.loss import batch_loss, micro_batches, through
from bench.training.rows import Row, Trainable
from bench.training.together import add_up, own_share

if TYPE_CHECKING:
    import torch

    from bench.training.prefix import Prefixes


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
    """One optimizer step over `rows`. Returns what the rows gave and the norm of the gradient before clipping.

    Where several processes train, all call this with the same rows, each takes its share, and all end alike.
    """
    import torch

    sums = Sums(targets=sum(len(row.target) for row in rows), rows=len(rows), tokens=sum(row.length for row in rows))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with prefixes.open() if prefixes else nullcontext():
        mine = own_share(rows, through(rows, prefixes))
        loss, auxiliary = _gradients(lm, mine, trainable, config, sums, advance, prefixes)
    parameters = trainable.parameters()
    add_up(parameters, loss, auxiliary)
    advance(len(rows) - len(mine))
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
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
