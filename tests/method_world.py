"""A handful of users with short reviews of shared items, and a context over them, for tests of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.data.population import Population
from bench.encoders import HashEncoder
from bench.engines.base import Engine
from bench.engines.fake import FakeEngine
from bench.meter import Meter
from bench.method import Context
from bench.types import REVIEW_TASK, Document, Example, FieldValue, LabeledSplit, Message, Sampling

WORDS = ("amber", "brisk", "cedar", "dusty", "eager", "fuzzy", "grand", "humid")


def fields(item: int, user: int) -> dict[str, FieldValue]:
    return {
        "item_title": f"Thing {item}",
        "item_description": f"a {WORDS[item % 8]} thing",
        "rating": float(1 + (item + user) % 5),
        "title": f"on {WORDS[(item + user) % 8]}",
    }


def document(user: int, item: int, time: int) -> Document:
    """User's review of an item; its text is like no other."""
    text = f"Text {user}/{item} is {WORDS[user % 8]} and {WORDS[item % 8]}."
    return Document(f"u{user}/i{item}", f"u{user}", text, fields(item, user), f"i{item}", time)


def example(user: int, item: int, time: int, history: Sequence[Document]) -> Example:
    return Example(f"u{user}/i{item}", f"u{user}", fields(item, user), tuple(history), f"i{item}", time)


@dataclass(frozen=True)
class World:
    """Users who each review the same items in another order; the last three of each are targets."""

    train: LabeledSplit
    dev: LabeledSplit
    test: LabeledSplit
    population: Population


def world(users: int = 4, history: int = 5) -> World:
    """`users` users with `history` past reviews before the train target, one more before dev, one more before test."""
    splits: list[tuple[list[Example], dict[str, str]]] = [([], {}) for _ in range(3)]
    public = []
    for user in range(users):
        made = [document(user, (step * 3 + user) % (history + 3), 10 * step + user) for step in range(history + 3)]
        public += made[: history + 1]
        for number, (examples, references) in enumerate(splits):
            target = made[history + number]
            item, time = int(target.id.rpartition("/i")[2]), target.timestamp or 0
            examples.append(example(user, item, time, made[: history + number]))
            references[target.id] = f"{target.text} Never shown {user}."
    made_splits = [LabeledSplit(tuple(examples), references) for examples, references in splits]
    return World(made_splits[0], made_splits[1], made_splits[2], Population(public))


def context(of: Population, engine: Engine | None = None, **changes: Any) -> Context:
    """A context with the hash encoder; the fake engine unless another is given."""
    return Context(
        **{
            "task": REVIEW_TASK,
            "population": of,
            "engine": engine or FakeEngine(),
            "seed": 0,
            "sampling": Sampling(0.0, 1.0, 6),
            "max_prompt_tokens": 6000,
            "meter": Meter(),
            "encoder_or_none": HashEncoder(16),
            **changes,
        }
    )


def said(messages: Sequence[Message]) -> str:
    """All of a prompt in one string."""
    return "\n".join(message.content for message in messages)
