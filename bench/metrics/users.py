"""The users around a text: what each wrote before, who is set against whom, and which past text was only copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import nsmallest

from bench.keys import text_digest
from bench.metrics.base import ScoreInput
from bench.metrics.copy_rate import words_of

RUN = 4
"""Words in a row by which a copy is known."""
COPIED = 0.5
"""Share of runs in common, of the text that has fewer, from which on one of two texts is taken for a copy."""


@dataclass(frozen=True, slots=True)
class Past:
    """A text that a user wrote before, and what it is about where that is known."""

    text: str
    item_id: str | None = None


@dataclass(frozen=True)
class Others:
    """The users of a split, by what they wrote before."""

    by_user: dict[str, tuple[Past, ...]]
    """User -> the longest history that any of the user's examples has, oldest first; nobody without a text."""

    @classmethod
    def around(cls, inputs: Sequence[ScoreInput]) -> Others:
        """All users of the inputs' split; of the inputs themselves where they stand in no dataset."""
        found: dict[str, tuple[Past, ...]] = {}
        for user, past in _all_pasts(inputs):
            if len(past) > len(found.get(user, ())):
                found[user] = past
        return cls({user: found[user] for user in sorted(found)})

    @cached_property
    def _writers(self) -> dict[str, frozenset[str]]:
        """Item -> the users who wrote about it."""
        found: dict[str, set[str]] = {}
        for user, pasts in self.by_user.items():
            for past in pasts:
                if past.item_id is not None:
                    found.setdefault(past.item_id, set()).add(user)
        return {item: frozenset(users) for item, users in found.items()}

    def rivals(self, item: ScoreInput, count: int, same_item: bool) -> list[str]:
        """At most `count` other users, chosen by a hash of example and user.

        With `same_item` those who wrote about the example's item come first: they share its author's interests, so
        the text is not told from theirs by what they all write about.
        """
        about = item.example.item_id if item.example is not None else None
        sharing = self._writers.get(about, frozenset()) if same_item and about is not None else frozenset()

        def place(user: str) -> tuple[bool, str]:
            return user not in sharing, text_digest(f"{item.example_id}\0{user}")

        return nsmallest(count, (user for user in self.by_user if user != item.user_id), key=place)


def own_past(item: ScoreInput) -> tuple[Past, ...]:
    """What the text's user wrote before it, oldest first."""
    if item.example is not None:
        return tuple(Past(document.text, document.item_id) for document in item.example.history)
    return tuple(Past(text) for text in item.history)


def profile(past: Sequence[Past], count: int, item: ScoreInput) -> list[str]:
    """The latest `count` texts that tell how somebody writes, newest first, for judging the text of `item`.

    Texts about the same item are left out, as its own user never has one: else a text would be near to whoever wrote
    about it. So are those of which the text is a copy: it would be near to itself.
    """
    about = item.example.item_id if item.example is not None else None
    found: list[str] = []
    for one in reversed(past):
        if len(found) == count:
            break
        if about is not None and one.item_id == about:
            continue
        if item.prediction is None or not is_copy(item.prediction, one.text):
            found.append(one.text)
    return found


def is_copy(text: str, other: str) -> bool:
    """Whether one of two texts is, for the most part, in the other word for word."""
    ours, theirs = runs_of(text), runs_of(other)
    if not ours or not theirs:
        return text.split() == other.split()
    return len(ours & theirs) >= COPIED * min(len(ours), len(theirs))


@lru_cache(2**14)
def runs_of(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of four words, in lower case."""
    words = words_of(text)
    return frozenset(zip(*(words[start:] for start in range(RUN)), strict=False))


def _all_pasts(inputs: Sequence[ScoreInput]) -> Iterable[tuple[str, tuple[Past, ...]]]:
    world = inputs[0].world if inputs else None
    if world is None:
        return [(item.user_id, own_past(item)) for item in inputs]
    return [
        (example.user_id, tuple(Past(document.text, document.item_id) for document in example.history))
        for example in world.split.examples
    ]
