"""The one training loop, for soft prompts and adapters: frozen weights, logits only where a target stands.

Rows are padded to their own micro-batch alone, and the loss does not depend on how rows fall into micro-batches:
cross entropy is averaged over the target tokens of an optimizer step, the auxiliary loss over its rows.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from bench.config import Config
from bench.engines.base import LanguageModel
from bench.engines.batching import by_budget
from bench.engines.chat import Prompt, disarm, encode, end_of_turn
from bench.errors import UsageError
from bench.method import Context
from bench.types import Example, LabeledSplit, Message

if TYPE_CHECKING:
    import torch


class TrainingConfig(Config):
    """How to train. Methods put their own defaults in place of these."""

    epochs: int = Field(default=3, ge=1)
    """Passes over the training rows."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; linear warm-up, then linear decay to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay of AdamW, on everything that is trained."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps spent warming up."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of an optimizer step."""
    batch_tokens: int = Field(default=0, ge=0)
    """Most padded tokens that go through the model at once; larger steps are accumulated. 0 chooses 2,048 on a CPU,
    where larger batches take memory and save no time, and 16,384 on an accelerator."""
    targets_per_user: int = Field(default=1, ge=1)
    """Training targets taken from each user, the latest first: they have the longest histories."""
    max_dev: int = Field(default=64, ge=0)
    """Most validation rows whose loss chooses the epoch."""
    max_target_tokens: int = Field(default=512, ge=2)
    """Target texts are cut here."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""


@dataclass(frozen=True)
class Row:
    """One training example: a prompt with slots, and the text to write with its end-of-turn token."""

    index: int
    """The row's number within its set; what a Trainable looks vectors up by."""
    prompt: Prompt
    target: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + len(self.target)


class Trainable(Protocol):
    """What is learned: its parameters, and the soft vectors it gives for rows."""

    def parameters(self) -> list[torch.nn.Parameter]: ...

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(vectors, auxiliary loss) of rows.

        Vectors: float (soft positions of all rows in order, hidden size), or None without. The auxiliary loss is
        summed over the rows, or None.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]: ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. Losses are in nats a target token, the auxiliary one in the Trainable's unit a row."""

    number: int
    train_loss: float
    train_auxiliary: float
    dev_loss: float
    """NaN without dev rows."""


@dataclass
class TrainingLog:
    """What training did and what it cost; kept beside the artifact."""

    rows: int = 0
    tokens: int = 0
    """Real tokens that went through the model, all epochs, without dev passes."""
    seconds: float = 0.0
    parameters: int = 0
    steps: list[float] = dataclass_field(default_factory=list)
    """Training loss of each optimizer step."""
    epochs: list[Epoch] = dataclass_field(default_factory=list)
    best_epoch: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; a loss that is no finite number is None, as JSON has no word for it."""
        plain = asdict(self)
        plain["steps"] = [_finite(loss) for loss in self.steps]
        plain["epochs"] = [{key: _finite(value) for key, value in epoch.items()} for epoch in plain["epochs"]]
        return plain


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def latest_targets(split: LabeledSplit, per_user: int, most: int | None = None) -> list[Example]:
    """The latest `per_user` examples of each user, in the split's order of users, at most `most` in all."""
    by_user: dict[str, list[Example]] = {}
    for example in split.examples:
        by_user.setdefault(example.user_id, []).append(example)
    chosen: list[Example] = []
    for examples in by_user.values():
        chosen += sorted(examples, key=lambda e: (e.timestamp or 0, e.id))[-per_user:]
    return chosen[:most]


def build_rows(
    lm: LanguageModel,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[Message]],
    references: Mapping[str, str],
    most_target_tokens: int,
    soft: Sequence[Mapping[str, int]] | None = None,
) -> list[Row]:
    """Training rows; `soft` gives the lengths of each row's slots."""
    return [
        Row(
            index,
            encode(lm.tokenizer, messages, soft[index] if soft else {}),
            target_ids(lm, references[example.id], most_target_tokens),
        )
        for index, (example, messages) in enumerate(zip(examples, prompts, strict=True))
    ]


def planned_tokens(
    examples: Sequence[Example],
    references: Mapping[str, str],
    prompt: Callable[[Example], Sequence[Message]],
    ctx: Context,
) -> int:
    """About how many tokens one epoch over `examples` takes, scaled up from the first few."""
    sample = examples[:32]
    tokens = sum(
        ctx.engine.count_tokens(prompt(e)) + ctx.engine.count_tokens([Message("user", references[e.id])])
        for e in sample
    )
    return round(tokens * len(examples) / len(sample)) if sample else 0


def target_ids(lm: LanguageModel, text: str, most: int) -> tuple[int, ...]:
    """Ids of a target text, closed by the token that ends a turn."""
    ids = lm.tokenizer(disarm(text, lm.tokenizer), add_special_tokens=False)["input_ids"][: most - 1]
    return (*ids, end_of_turn(lm.tokenizer))


@contextmanager
def logits_at(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """While open, the model's output layer sees only the positions where `mask` (rows, length) is true.

    Done on the way into the output layer, so that whatever a family does to logits afterwards still happens.
    The logits come out as (1, positions, vocabulary) in row-major order of the mask.
    """

    def select(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][mask].unsqueeze(0), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def batch_loss(lm: LanguageModel, rows: Sequence[Row], vectors: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    """Cross entropy summed over all target tokens of `rows`, and how many there are.

    `vectors` fill the rows' soft slots, in order. Rows are padded on the right: with causal attention no real
    position ever sees the padding, so no attention mask is needed.
    """
    import torch

    length = max(row.length for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    predicts = torch.zeros(len(rows), length, dtype=torch.bool)
    slots = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = len(row.prompt.ids)
        ids[i, : row.length] = torch.tensor(row.prompt.ids + row.target)
        predicts[i, start - 1 : row.length - 1] = True
        slots[i, list(row.prompt.positions)] = True
    embedded = lm.model.get_input_embeddings()(ids.to(lm.device))
    given = 0 if vectors is None else len(vectors)
    if given != int(slots.sum()):
        raise ValueError(f"{given} vectors for {int(slots.sum())} soft positions")
    if vectors is not None:
        embedded = embedded.masked_scatter(slots.unsqueeze(-1).to(lm.device), vectors.to(embedded.dtype))
    with logits_at(lm.model, predicts.to(lm.device)):
        logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[0]
    labels = torch.tensor([token for row in rows for token in row.target], device=lm.device)
    if logits.shape[0] != labels.shape[0]:
        raise RuntimeError(f"expected logits at {labels.shape[0]} positions, the model gave {logits.shape[0]}")
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


def evaluate_loss(lm: LanguageModel, rows: Sequence[Row], trainable: Trainable, config: TrainingConfig) -> float:
    """Mean cross entropy a target token over `rows`, without gradients; NaN without rows."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for batch in _micro_batches(rows, _budget(lm, config)):
            vectors, _ = trainable.soft(batch, training=False)
            loss, tokens = batch_loss(lm, batch, vectors)
            total, count = total + float(loss), count + tokens
    return total / count if count else float("nan")


def _budget(lm: LanguageModel, config: TrainingConfig) -> int:
    return config.batch_tokens or (2048 if lm.device.type == "cpu" else 16_384)


def _micro_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    lengths = [row.length for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], rows[i].index))
    return [[rows[i] for i in batch] for batch in by_budget(lengths, order, len(rows), batch_tokens)]


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate: up over the warm-up, then down to zero after the last step."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (steps - step) / max(1, steps - rising + 1))


def train(
    lm: LanguageModel,
    rows: Sequence[Row],
    dev_rows: Sequence[Row],
    trainable: Trainable,
    config: TrainingConfig,
    seed: int,
    progress: str = "fit",
) -> TrainingLog:
    """Trains on `rows`, keeps the state of the epoch with the lowest loss on `dev_rows` (the last without dev rows).

    A pure function of its arguments, up to what the Trainable itself draws. Raises UsageError without rows, or if
    the loss stops being a number.
    """
    import torch
    from tqdm import tqdm

    if not rows:
        raise UsageError(f"{progress}: there is no training row; raise --train-limit or choose another dataset")
    parameters = trainable.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    shuffler = random.Random(seed)
    per_epoch = -(-len(rows) // config.batch_size)
    steps = per_epoch * config.epochs
    log = TrainingLog(rows=len(rows), parameters=sum(p.numel() for p in parameters))
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    started = time.perf_counter()
    with tqdm(total=len(rows) * config.epochs, desc=progress, unit="row", leave=False) as bar:
        for number in range(1, config.epochs + 1):
            order = list(rows)
            shuffler.shuffle(order)
            total, auxiliary_total, targets = 0.0, 0.0, 0
            for first in range(0, len(order), config.batch_size):
                step_rows = order[first : first + config.batch_size]
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * _schedule(len(log.steps), steps, config.warmup)
                loss, auxiliary, tokens = _step(lm, step_rows, trainable, optimizer, config, bar)
                if not math.isfinite(loss + auxiliary):
                    raise UsageError(
                        f"{progress}: the loss at step {len(log.steps) + 1} of {steps} is {loss + auxiliary}; "
                        f"lower the learning rate (lr = {config.lr})"
                    )
                log.steps.append(loss / tokens)
                log.tokens += sum(row.length for row in step_rows)
                total, auxiliary_total, targets = total + loss, auxiliary_total + auxiliary, targets + tokens
            dev_loss = evaluate_loss(lm, dev_rows, trainable, config)
            log.epochs.append(Epoch(number, total / targets, auxiliary_total / len(order), dev_loss))
            bar.set_postfix(dev_loss=f"{dev_loss:.3f}")
            if best is None or not dev_rows or dev_loss < best[0] or math.isnan(best[0]):
                best = (dev_loss, {k: v.detach().clone() for k, v in trainable.state().items()})
                log.best_epoch = number
    if best is not None:
        trainable.restore(best[1])
    log.seconds = time.perf_counter() - started
    return log


def _step(
    lm: LanguageModel,
    rows: Sequence[Row],
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    bar: Any,
) -> tuple[float, float, int]:
    """One optimizer step over `rows`. Returns summed cross entropy, summed auxiliary loss and target tokens."""
    import torch

    tokens = sum(len(row.target) for row in rows)
    total, auxiliary_total = 0.0, 0.0
    optimizer.zero_grad(set_to_none=True)
    for batch in _micro_batches(rows, _budget(lm, config)):
        vectors, auxiliary = trainable.soft(batch, training=True)
        loss, _ = batch_loss(lm, batch, vectors)
        objective = loss / tokens
        total += float(loss.detach())
        if auxiliary is not None:
            objective = objective + auxiliary / len(rows)
            auxiliary_total += float(auxiliary.detach())
        if objective.requires_grad:  # rows without any history leave nothing to learn from
            objective.backward()  # type: ignore[no-untyped-call]
        bar.update(len(batch))
    torch.nn.utils.clip_grad_norm_(trainable.parameters(), config.max_grad_norm)
    optimizer.step()
    return total, auxiliary_total, tokens
