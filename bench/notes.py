"""What a model notes down before it writes as a user: one note a user or a target, asked for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from bench.config import Config
from bench.method import Context
from bench.types import Example, Message

Scope = Literal["user", "target"]


class NoteConfig(Config):
    """Knobs of methods that have notes written."""

    scope: Scope = "user"
    """user: one note a user, from what is open of them before all validation and test targets, used for all of their
    targets; target: one for each target, from everything before it."""
    note_tokens: int = Field(default=256, ge=1)
    """Longest note."""


def subject(example: Example, scope: Scope, ctx: Context) -> Example:
    """Whom a note is about. For `user` it is the same for all test targets of a user, and asks nothing.

    Its history then holds the documents that the population knows of the user, and its time is that of the last of
    them: nothing that is written later can get into the note.
    """
    if scope == "target":
        return example
    known = {document.id for document in ctx.population.history(example.user_id, None)}
    history = tuple(document for document in example.history if document.id in known)
    last = history[-1].timestamp if history else None
    return Example(f"user {example.user_id}", example.user_id, {}, history, None, last)


def part(example: Example, name: object) -> Example:
    """The example under a name of its own, for a stage that asks several things of it."""
    return replace(example, id=f"{example.id} {name}")


def write_notes(
    subjects: Sequence[Example],
    build: Callable[[Example, Context], Sequence[Message] | None],
    ctx: Context,
    stage: str,
    tokens: int,
) -> list[str]:
    """What the model notes on each subject, in their order; subjects that are asked the same share one call.

    `build(subject, ctx)` gives the prompt within `ctx.max_prompt_tokens`, or None where there is nothing to ask: the
    note is empty then, as it is where the model failed.
    """
    inner = ctx.answering(tokens)
    prompts = [build(one, inner) for one in subjects]
    asked = [i for i, prompt in enumerate(prompts) if prompt is not None]
    requests = [inner.request(subjects[i], prompts[i] or (), stage=stage) for i in asked]
    notes = [""] * len(subjects)
    for i, generation in zip(asked, inner.generate(requests, stage) if requests else (), strict=True):
        notes[i] = "" if generation.error else generation.text.strip()
    return notes
