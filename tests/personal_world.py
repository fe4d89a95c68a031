"""A few users with texts, items and times, for tests of the metrics of personalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.data.population import Population
from bench.metrics.base import ScoreInput, World
from bench.types import Document, Example, LabeledSplit

Told = Mapping[str, Sequence[tuple[str, str]]]
"""User -> (item, text) from the first to the last; the last is the target."""


def document(user: str, item: str, text: str, time: int) -> Document:
    return Document(f"{user}/{item}", user, text, {}, item, time)


def world_of(told: Told) -> World:
    """Each user's last text is the target, written after all that anybody wrote before."""
    examples, references, public = [], {}, []
    for user, texts in told.items():
        *past, target = [document(user, item, text, time) for time, (item, text) in enumerate(texts)]
        examples.append(Example(target.id, user, {}, tuple(past), target.item_id, 100))
        references[target.id] = target.text
        public += past
    return World(LabeledSplit(tuple(examples), references), Population(public))


def inputs_of(world: World, predictions: Mapping[str, str | None] | None = None) -> list[ScoreInput]:
    """The examples with a text each, by user; the reference where none is given."""
    found = []
    for example in world.split.examples:
        reference = world.split.references[example.id]
        text = (predictions or {}).get(example.user_id, reference)
        history = tuple(past.text for past in example.history)
        found.append(ScoreInput(example.id, example.user_id, text, reference, history, None, world))
    return found
