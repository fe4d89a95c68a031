"""What is embedded, what is asked, and training copies with a part of the history left out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.keys import digest
from bench.method import Context
from bench.prompts import Fitted, conversation, fit_prompt, render_fields
from bench.retrieval import newest_first
from bench.types import Document, Example, Message, Task, slot
from methods.pplug.config import PPlugConfig

SLOTS = ("instruction", "persona")
"""Soft slots, in the order in which they open the prompt."""


def slots(example: Example) -> tuple[str, ...]:
    """The soft slots of an example's prompt: a user without history has no persona."""
    return SLOTS if example.history else SLOTS[:1]


def prompt(example: Example, config: PPlugConfig, ctx: Context) -> Fitted:
    """The task behind the soft tokens, past documents as turns before it where the config wants any."""
    opening = "".join(map(slot, slots(example)))

    def build(target: Example, shown: Sequence[Document]) -> list[Message]:
        first, *others = conversation(ctx.task, target, shown)
        return [Message(first.role, f"{opening}\n\n{first.content}"), *others]

    return fit_prompt(build, example, newest_first(example.history)[: config.n_history], ctx)


def history_text(task: Task, document: Document, config: PPlugConfig) -> str:
    """What is embedded of a past document."""
    if config.history_text == "text":
        return document.text
    return _ordered(task, document, f"{task.target_label}: {document.text}")


def input_text(task: Task, example: Example, config: PPlugConfig) -> str:
    """What the input encoder reads: all that is asked."""
    return config.input_prefix + _ordered(task, example)


def _ordered(task: Task, thing: Document | Example, text: str = "") -> str:
    """Short fields, the text, then the fields that may be long: an encoder cuts what is too long at its end."""
    short, long = (replace(task, fields=tuple(f for f in task.fields if f.shortenable == cut)) for cut in (False, True))
    return "\n".join(part for part in (render_fields(short, thing), text, render_fields(long, thing)) if part)


def with_copies(examples: Sequence[Example], config: PPlugConfig, seed: int) -> Iterator[Example]:
    """Each example, followed by its copies with a random part of the history left out.

    A copy leaves out at least one document and at most the share `config.drop`; which ones depends on the seed, the
    example and the copy's number alone. An example of which nothing can be left out has no copies.
    """
    for example in examples:
        yield example
        count = len(example.history)
        most = min(int(count * config.drop), count - 1)
        for number in range(config.copies if most > 0 else 0):
            chance = random.Random(digest([seed, "drop", example.id, number]))
            kept = chance.sample(range(count), count - chance.randint(1, most))
            yield replace(example, history=tuple(example.history[i] for i in sorted(kept)))
