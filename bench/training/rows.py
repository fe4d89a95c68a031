"""What is learned from: rows of token ids, and who says which vectors stand in their slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bench.engines.base import LanguageModel
from bench.engines.chat import Prompt, disarm, encode, end_of_turn
from bench.method import Context
from bench.types import Example, LabeledSplit, Message

if TYPE_CHECKING:
    import torch


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
    """What is learned: its parameters, and the soft vectors it gives for rows.

    Random numbers come from torch's generators of the CPU and of the model's device alone: these are kept with the
    state of training. Where several processes train, gradients are summed over them; buffers that change while training
    are not, and those of the main process count. A Trainable that changes nothing inside the model may say so with an
    attribute `constant_prefix = True`: what stands before a row's first slot is then computed once (see
    `bench.training.prefix`).
    """

    def parameters(self) -> list[torch.nn.Parameter]: ...

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(vectors, auxiliary loss) of rows.

        Vectors: float (soft positions of all rows in order, hidden size), or None without. The auxiliary loss is
        summed over the rows, or None.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """All that training changes, parameters and buffers."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the values of an earlier `state()`, which may lie on another device."""
        ...


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
