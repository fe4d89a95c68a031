"""Cross entropy over rows: padded to their micro-batch alone, logits only where a target token is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from bench import distributed
from bench.engines.base import LanguageModel
from bench.engines.batching import by_budget
from bench.training.config import TrainingConfig
from bench.training.rows import Row, Trainable
from bench.training.together import own_share

if TYPE_CHECKING:
    import torch

    from bench.training.prefix import Prefixes


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


def batch_loss(
    lm: LanguageModel, rows: Sequence[Row], vectors: torch.Tensor | None, prefixes: Prefixes | None = None
) -> tuple[torch.Tensor, int]:
    """Cross entropy summed over all target tokens of `rows`, and how many there are; arguments as `target_logits`."""
    import torch

    logits, labels = target_logits(lm, rows, vectors, prefixes)
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


def target_logits(
    lm: LanguageModel, rows: Sequence[Row], vectors: torch.Tensor | None, prefixes: Prefixes | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (targets of all rows, vocabulary) that predict each target token, and the targets' ids.

    `vectors` fill the rows' soft slots, in order. Rows are padded on the right: with causal attention no real
    position ever sees the padding, so no attention mask is needed. With `prefixes`, what stands before a row's first
    slot comes from there, and only the rest goes through the model.
    """
    import torch

    starts = [prefixes.length(row) if prefixes else 0 for row in rows]
    length = max(row.length - start for row, start in zip(rows, starts, strict=True))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    predicts = torch.zeros(len(rows), length, dtype=torch.bool)
    slots = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        prompt = len(row.prompt.ids) - start
        ids[i, : row.length - start] = torch.tensor((row.prompt.ids + row.target)[start:])
        predicts[i, prompt - 1 : row.length - start - 1] = True
        slots[i, [position - start for position in row.prompt.positions]] = True
    embedded = lm.model.get_input_embeddings()(ids.to(lm.device))
    given = 0 if vectors is None else len(vectors)
    if given != int(slots.sum()):
        raise ValueError(f"{given} vectors for {int(slots.sum())} soft positions")
    if vectors is not None:
        embedded = embedded.masked_scatter(slots.unsqueeze(-1).to(lm.device), vectors.to(embedded.dtype))
    past = prefixes.past(rows, length) if prefixes and any(starts) else {"use_cache": False}
    with logits_at(lm.model, predicts.to(lm.device)):
        logits = lm.model(inputs_embeds=embedded, **past).logits[0]
    labels = torch.tensor([token for row in rows for token in row.target], device=lm.device)
    if logits.shape[0] != labels.shape[0]:
        raise RuntimeError(f"expected logits at {labels.shape[0]} positions, the model gave {logits.shape[0]}")
    return logits, labels


def evaluate_loss(
    lm: LanguageModel,
    rows: Sequence[Row],
    trainable: Trainable,
    config: TrainingConfig,
    prefixes: Prefixes | None = None,
) -> float:
    """Mean cross entropy a target token over `rows`, without gradients; NaN without rows.

    Where several processes train, each takes its share, and all get the same mean.
    """
    import torch

    total, count = 0.0, 0
    with torch.no_grad(), prefixes.open() if prefixes else nullcontext():
        for batch in micro_batches(lm, own_share(rows, through(rows, prefixes)), config, prefixes):
            vectors, _ = trainable.soft(batch, training=False)
            loss, tokens = batch_loss(lm, batch, vectors, prefixes)
            total, count = total + float(loss), count + tokens
    sums = torch.tensor([total, count], dtype=torch.float64)
    distributed.add_up(sums)
    total, count = sums.tolist()
    return total / count if count else float("nan")


def through(rows: Sequence[Row], prefixes: Prefixes | None = None) -> list[int]:
    """How many tokens of each row go through the model: all that are not in a kept prefix."""
    return [row.length - (prefixes.length(row) if prefixes else 0) for row in rows]


def micro_batches(
    lm: LanguageModel, rows: Sequence[Row], config: TrainingConfig, prefixes: Prefixes | None = None
) -> list[list[Row]]:
    """Rows that go through the model together, longest first. Lengths are those that do go through it."""
    budget = config.batch_tokens or (2048 if lm.device.type == "cpu" else 16_384)
    lengths = through(rows, prefixes)
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], rows[i].index))
    return [[rows[i] for i in batch] for batch in by_budget(lengths, order, len(rows), budget)]
