"""Looks for leaks in a prepared dataset: targets that a method could read before it writes them, and their near copies.

Nothing here trusts the construction: everything is read through what methods are given (an example's fields and
history, the population's documents, its `history` and its `peers`). Texts are the same where nothing but case and white
space tells them apart.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from bench.data.population import Population
from bench.data.shingles import alike
from bench.data.split import Dataset
from bench.errors import UsageError
from bench.types import Document, Example, FieldValue

NEAR = 0.8
"""Similarity from which on texts are near copies."""
_SPLITS = ("train", "validation", "test")
_QUOTED = 80
"""Characters from which on a reference within a longer field is a leak: shorter ones stand there by chance."""


class Kind(enum.StrEnum):
    """What is wrong."""

    HISTORY = "target in a history"
    NEAR = "near copy across splits"
    LATER = "later document within reach"
    REFERENCE = "reference within reach"


MEANINGS = {
    Kind.HISTORY: "A history holds the target, or its text, though the target is the example's own or still to come.",
    Kind.NEAR: "A validation or test target is nearly the text of a train target or of a document in a profile.",
    Kind.LATER: "The population gives documents that are not strictly before the example's time.",
    Kind.REFERENCE: "The text to be written stands where a method may read: in a field, or in an open document.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One leak."""

    kind: Kind
    split: str
    """That of the example: train, validation, test."""
    example: str
    document: str
    """The document that gives the target away; the example itself where one of its fields does."""
    where: str
    similarity: float
    """Of the two texts, by character shingles; 1 for the same text."""


@dataclass(frozen=True)
class Audit:
    """What was looked at, and all that was found."""

    findings: tuple[Finding, ...]
    """By kind, then in the order of the examples."""
    examples: int
    documents: int
    threshold: float
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""

    def counts(self) -> dict[Kind, int]:
        """Findings of each kind."""
        found = Counter(one.kind for one in self.findings)
        return {kind: found[kind] for kind in Kind}

    def examples_touched(self, kind: Kind) -> int:
        """Examples with a finding of a kind."""
        return len({one.example for one in self.findings if one.kind is kind})


def audit(dataset: Dataset, threshold: float = NEAR) -> Audit:
    """Every leak of the four kinds.

    Args:
        dataset: as `bench.data.split.prepare` gives it.
        threshold: similarity, above 0 and at most 1, from which on two texts are near copies.

    Raises:
        UsageError: a threshold that is none.
    """
    check_threshold(threshold)
    world = _World(dataset)
    found = [*_in_histories(world), *_later(world), *_references(world)]
    told = {(one.example, one.document) for one in found}
    found += [one for one in _near(world, threshold) if (one.example, one.document) not in told]
    order = {kind: number for number, kind in enumerate(Kind)}
    found.sort(key=lambda one: order[one.kind])
    notes = []
    if untimed := sum(example.timestamp is None for _, example in world.examples):
        notes.append(
            f"{untimed} of {len(world.examples)} examples have no time: for them every document counts as open, and "
            "whether one is later cannot be seen"
        )
    return Audit(tuple(found), len(world.examples), len(world.documents), threshold, tuple(notes))


def check_threshold(threshold: float) -> None:
    """Raises UsageError for a similarity that no near copy can begin at."""
    if not 0 < threshold <= 1:
        raise UsageError(f"a near copy cannot begin at a similarity of {threshold}; give more than 0 and at most 1")


class _World:
    """A dataset as the checks look at it."""

    def __init__(self, dataset: Dataset) -> None:
        splits = dict(zip(_SPLITS, (dataset.train, dataset.dev, dataset.test), strict=True))
        self.population: Population = dataset.population
        self.examples: list[tuple[str, Example]] = [(n, e) for n, split in splits.items() for e in split.examples]
        self.references: dict[str, str] = {}
        for split in splits.values():
            self.references.update(split.references)
        self.documents = self.population.documents()
        self._same: dict[str, str] = {}

    def same(self, text: str) -> str:
        """What two texts share that are the same."""
        if text not in self._same:
            self._same[text] = " ".join(text.casefold().split())
        return self._same[text]

    @cached_property
    def by_user(self) -> dict[str, list[tuple[str, Example]]]:
        """Each user's examples, the earliest first."""
        found: dict[str, list[tuple[str, Example]]] = {}
        for name, example in self.examples:
            found.setdefault(example.user_id, []).append((name, example))
        for several in found.values():
            several.sort(key=_order)
        return found


def _order(pair: tuple[str, Example]) -> tuple[float, int]:
    """By time, then by split, which is all the order there is without times."""
    split, example = pair
    return inf if example.timestamp is None else example.timestamp, _SPLITS.index(split)


# -- targets in histories ---------------------------------------------------------------------------------------------


def _in_histories(world: _World) -> Iterator[Finding]:
    """Own histories, and those of the user's examples that are written no later than the target."""
    for several in world.by_user.values():
        for place, (split, target) in enumerate(several):
            text = world.same(world.references[target.id])
            own = {past.id for past in target.history}
            for other_split, other in several[: place + 1]:
                if other is not target and _order((other_split, other)) == _order((split, target)):
                    continue  # neither is the earlier
                whose = "own history" if other is target else f"history of {other.id}"
                for past in other.history:
                    if past.id == target.id:
                        yield Finding(Kind.HISTORY, split, target.id, past.id, f"{whose}, the target itself", 1.0)
                    elif world.same(past.text) == text and (other is target or past.id not in own):
                        yield Finding(Kind.HISTORY, split, target.id, past.id, f"{whose}, the same text", 1.0)


# -- later documents --------------------------------------------------------------------------------------------------


def _later(world: _World) -> Iterator[Finding]:
    """Whatever is not before an example's time and yet in its history or given by the population."""
    for split, example in world.examples:
        if example.timestamp is None:
            continue
        target = Document(example.id, example.user_id, "", example.fields, example.item_id, example.timestamp)
        told: set[str] = set()
        for documents, where in _given(world.population, target, example):
            for one in documents:
                if (one.timestamp is None or one.timestamp >= example.timestamp) and one.id not in told:
                    told.add(one.id)
                    yield Finding(Kind.LATER, split, example.id, one.id, where, 0.0)


def _given(population: Population, target: Document, example: Example) -> Iterator[tuple[Sequence[Document], str]]:
    """All that a method gets before the example's time by asking as it should."""
    user, moment = example.user_id, example.timestamp
    yield example.history, "own history"
    yield population.history(user, moment), "the user's open documents"
    yield population.peers(target, user, moment), "peers of the target"
    for past in example.history:
        yield population.peers(past, user, moment), "peers of the history"


# -- references -------------------------------------------------------------------------------------------------------


def _references(world: _World) -> Iterator[Finding]:
    """The reference in the fields of the example or its history, or as a text or a field of an open document."""
    holders = _holders(world)
    for split, example in world.examples:
        reference = world.same(world.references[example.id])
        if name := _holding(world, example.fields, reference):
            yield Finding(Kind.REFERENCE, split, example.id, example.id, f"own field {name!r}", 1.0)
        for past in example.history:
            if name := _holding(world, past.fields, reference):
                yield Finding(Kind.REFERENCE, split, example.id, past.id, f"own history, field {name!r}", 1.0)
        own = {past.id for past in example.history}
        for document, what in holders.get(reference, ()):
            if document.id not in own and _open(document, example):
                whose = "the user's" if document.user_id == example.user_id else "another user's"
                where = f"{whose} open document, {what}"
                yield Finding(Kind.REFERENCE, split, example.id, document.id, where, 1.0)


def _holders(world: _World) -> dict[str, list[tuple[Document, str]]]:
    """Text -> the population's documents that have it as their text or as one of their fields."""
    wanted = {world.same(text) for text in world.references.values()}
    found: dict[str, list[tuple[Document, str]]] = {}
    for document in world.documents:
        named = [("its text", document.text)]
        named += [(f"field {name!r}", value) for name, value in document.fields.items() if isinstance(value, str)]
        for what, value in named:
            if value and (same := world.same(value)) in wanted:
                found.setdefault(same, []).append((document, what))
    return found


def _open(document: Document, example: Example) -> bool:
    if example.timestamp is None:
        return True
    return document.timestamp is not None and document.timestamp < example.timestamp


def _holding(world: _World, fields: Mapping[str, FieldValue], reference: str) -> str | None:
    """The name of a field that is the reference or, where that is long, holds it."""
    for name, value in fields.items():
        if isinstance(value, str) and len(value) >= len(reference) > 0:
            same = world.same(value)
            if same == reference or (len(reference) >= _QUOTED and reference in same):
                return name
    return None


# -- near copies ------------------------------------------------------------------------------------------------------


def _near(world: _World, threshold: float) -> list[Finding]:
    """Validation and test targets against train targets and all documents of profiles, whoever wrote them."""
    held = [(split, example) for split, example in world.examples if split != "train"]
    sources = _sources(world)
    queries = list(dict.fromkeys(world.references[example.id] for _, example in held))
    texts = list(sources)
    numbers = {text: number for number, text in enumerate(queries)}
    pairs: dict[int, list[tuple[str, float]]] = {}
    for pair in alike(queries, texts, threshold):
        pairs.setdefault(pair.query, []).append((texts[pair.text], pair.similarity))
    found = []
    for split, example in held:
        for text, value in pairs.get(numbers[world.references[example.id]], ()):
            for name, (user, where) in sources[text].items():
                if name != example.id:
                    whose = "the same user" if user == example.user_id else "another user"
                    found.append(Finding(Kind.NEAR, split, example.id, name, f"{where} of {whose}", value))
    return found


def _sources(world: _World) -> dict[str, dict[str, tuple[str, str]]]:
    """Text -> id of each document with it -> its user and what it is: a train target, or in a profile."""
    held = {example.id for split, example in world.examples if split != "train"}
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for split, example in world.examples:
        if split == "train":
            found.setdefault(world.references[example.id], {})[example.id] = example.user_id, "train target"
    pasts: Sequence[Document] = [past for _, example in world.examples for past in example.history]
    for document in (*world.documents, *pasts):
        if document.id not in held:
            found.setdefault(document.text, {}).setdefault(document.id, (document.user_id, "profile"))
    return found
