"""Training soft prompts in the two usual ways, to be held against `bench.training.train`.

All three learn the same `SoftPrompts` through the same frozen model, on the same rows in the same order, with one
AdamW schedule and one normalisation (cross entropy over the target tokens of a step, auxiliary loss over its rows):
what differs is how much is computed for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.training import Row, TrainingConfig

VECTOR, LATENT, REVIEWS = 384, 512, 8
SLOTS = 2 * REVIEWS
IGNORED = -100


class SoftPrompts(nn.Module):
    """As DEP has it: an autoencoder over history and difference vectors of 8 reviews, a projector for each kind."""

    vectors: Tensor

    def __init__(self, rows: int, hidden: int, rms: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(rows, REVIEWS, 2, VECTOR, generator=generator)
        self.register_buffer("vectors", nn.functional.normalize(vectors, dim=-1))
        self.encoder, self.decoder = nn.Linear(VECTOR, LATENT), nn.Linear(LATENT, VECTOR)
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(LATENT, hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(2)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            tokens, _ = self(torch.arange(rows))
            self.scale = rms / float(tokens.pow(2).mean().sqrt())

    scale: float = 1.0
    """Brings soft tokens to the size of the model's own embeddings at the start."""

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Soft tokens (rows, 16, hidden), history then difference of each review; auxiliary loss (rows,)."""
        vectors = self.vectors[index]
        code = torch.relu(self.encoder(vectors))
        error = nn.functional.smooth_l1_loss(self.decoder(code), vectors, reduction="none").mean((1, 2, 3))
        tokens = torch.stack([p(code[:, :, kind]) for kind, p in enumerate(self.projectors)], dim=2)
        return tokens.flatten(1, 2) * self.scale, 100.0 * error


class Learner:
    """`SoftPrompts` as a `bench.training.Trainable`."""

    constant_prefix = True

    def __init__(self, module: SoftPrompts) -> None:
        self.module = module

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[Tensor, Tensor]:
        tokens, auxiliary = self.module(torch.tensor([row.index for row in rows]))
        return tokens.flatten(0, 1), auxiliary.sum()

    def state(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


def steps_of(rows: Sequence[Row], config: TrainingConfig, seed: int) -> list[list[Row]]:
    """The rows of every optimizer step, all epochs: one stream shuffles the rows afresh each epoch."""
    assert len(rows) % config.batch_size == 0, "whole steps only"
    stream = random.Random(seed)
    steps = []
    for _ in range(config.epochs):
        order = list(rows)
        stream.shuffle(order)
        steps += [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
    return steps


def optimizer_of(module: nn.Module, config: TrainingConfig, steps: int) -> tuple[torch.optim.AdamW, Any]:
    """AdamW and its learning rate: in equal parts up to the peak, then in equal parts down to zero."""
    up = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / up, (steps - step) / (steps - up + 1))

    optimizer = torch.optim.AdamW(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def tokens_of(rows: Iterable[Row]) -> int:
    """Target tokens."""
    return sum(len(row.target) for row in rows)


# -- the public recipe ----------------------------------------------------------------------------------------------


def train_padded(
    model: Any, rows: Sequence[Row], module: SoftPrompts, config: TrainingConfig, seed: int, width: int
) -> list[float]:
    """One row at a time, left-padded to `width`, logits everywhere, a comparison over the row for each soft slot.

    Returns the cross entropy a target token of each step.
    """
    steps = steps_of(rows, config, seed)
    markers = _unused_ids(model, rows)
    optimizer, schedule = optimizer_of(module, config, len(steps))
    losses = []
    for step in steps:
        total, targets = 0.0, tokens_of(step)
        for row in step:
            ids, mask, labels = _pad_left(row, markers, width)
            tokens, auxiliary = module(torch.tensor([row.index]))
            embedded = model.get_input_embeddings()(ids)
            for slot, marker in enumerate(markers):
                here = (ids == marker).unsqueeze(-1)
                embedded = torch.where(here, tokens[0, slot].to(embedded.dtype), embedded)
            loss = model(
                inputs_embeds=embedded,
                attention_mask=mask,
                # Counted from the text on: rotated by angles as large as the padding, float32 differs in the curves.
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                labels=labels,
                num_items_in_batch=targets,
                use_cache=False,
            ).loss
            (loss + auxiliary.sum() / len(step)).backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def _unused_ids(model: Any, rows: Sequence[Row]) -> list[int]:
    """An id for each soft slot that stands nowhere in a row's text; the recipe has tokens added for this."""
    used = {token for row in rows for token in (*row.prompt.ids, *row.target)}
    free = (token for token in range(model.get_input_embeddings().weight.shape[0]) if token not in used)
    return [next(free) for _ in range(SLOTS)]


def _pad_left(row: Row, markers: Sequence[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids with markers at the slots, attention mask and labels, each (1, width)."""
    ids = [*row.prompt.ids, *row.target]
    for position, marker in zip(row.prompt.positions, markers, strict=True):
        ids[position] = marker
    space = width - len(ids)
    assert space >= 0, f"a row of {len(ids)} tokens does not fit into {width}"
    labels = [IGNORED] * (width - len(row.target)) + list(row.target)
    mask = [0] * space + [1] * len(ids)
    return torch.tensor([[0] * space + ids]), torch.tensor([mask]), torch.tensor([labels])


# -- a Hugging Face Trainer -----------------------------------------------------------------------------------------


class WithSoftPrompts(nn.Module):
    """The frozen model with its soft prompts, as a Trainer wants it: labels in, loss out."""

    def __init__(self, model: Any, module: SoftPrompts, rows_a_step: int) -> None:
        super().__init__()
        self.model, self.module, self.rows_a_step = model, module, rows_a_step
        self.losses: list[float] = []
        """Cross entropy of each micro-batch, over the target tokens of its step."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, slots: Tensor, index: Tensor, **more: Any
    ) -> dict[str, Tensor]:
        tokens, auxiliary = self.module(index)
        embedded = self.model.get_input_embeddings()(input_ids)
        embedded = embedded.masked_scatter(slots.unsqueeze(-1), tokens.to(embedded.dtype))
        loss = self.model(
            inputs_embeds=embedded, attention_mask=attention_mask, labels=labels, use_cache=False, **more
        ).loss
        self.losses.append(float(loss.detach()))
        return {"loss": loss + auxiliary.sum() / self.rows_a_step}


@dataclass(frozen=True)
class _Collator:
    """Rows padded on the right to the longest of their batch."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        shape = len(rows), max(row.length for row in rows)
        ids, labels = torch.full(shape, self.pad), torch.full(shape, IGNORED)
        mask, slots = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : row.length] = torch.tensor((*row.prompt.ids, *row.target))
            labels[i, len(row.prompt.ids) : row.length] = torch.tensor(row.target)
            mask[i, : row.length] = 1
            slots[i, list(row.prompt.positions)] = True
        index = torch.tensor([row.index for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "slots": slots, "index": index}


def train_with_trainer(
    model: Any, rows: Sequence[Row], module: SoftPrompts, config: TrainingConfig, seed: int, per_device: int, out: Path
) -> list[float]:
    """Hugging Face's Trainer: `per_device` rows at a time padded to the longest, accumulated to a step.

    Returns the cross entropy a target token of each step. `out` is a folder the Trainer asks for.
    """
    from transformers import Trainer, TrainingArguments

    assert config.batch_size % per_device == 0
    steps = steps_of(rows, config, seed)
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=1,  # the rows of all epochs, in their order, as one
        train_sampling_strategy="sequential",
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=config.batch_size // per_device,
        max_grad_norm=config.max_grad_norm,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    wrapped = WithSoftPrompts(model, module, config.batch_size)
    trainer = Trainer(
        model=wrapped,
        args=arguments,
        train_dataset=[row for step in steps for row in step],
        data_collator=_Collator(int(model.config.pad_token_id or 0)),
        optimizers=optimizer_of(module, config, len(steps)),
    )
    trainer.train()
    each = config.batch_size // per_device
    return [sum(wrapped.losses[i : i + each]) for i in range(0, len(wrapped.losses), each)]
