"""The leak audit: each kind of leak, planted on purpose, is found; near copies equal a slow comparison of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.audit import Audit, Finding, Kind, audit
from bench.data.population import Population
from bench.data.shingles import alike, similarity
from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.errors import UsageError
from bench.types import REVIEW_TASK, Document, Example, LabeledSplit

DAY = 86_400_000
START = 1_500_000_000_000
WORDS = [f"{a}{b}" for a in "bcdfghjklmnprstvz" for b in ("ale", "ino", "umo", "ersk", "onda", "ith")]


def text(*seed: int, words: int = 40) -> str:
    """Words that no other seed gives in this order."""
    random = Random(repr(seed))
    return " ".join(random.choice(WORDS) for _ in range(words))


def document(user: int, item: int, day: int | None, body: str | None = None, title: str = "") -> Document:
    fields = {
        "item_title": f"Item {item}",
        "item_description": text(900, item),
        "rating": 4.0,
        "title": title or f"t{day}",
    }
    moment = None if day is None else START + day * DAY
    words = text(user, item) if body is None else body
    return Document(f"u{user}/i{item}", f"u{user}", words, fields, f"i{item}", moment)


def example(of: Document, history: Sequence[Document]) -> Example:
    return Example(of.id, of.user_id, of.fields, tuple(history), of.item_id, of.timestamp)


class World:
    """Three users with three past documents and three targets each, on items that they share; nothing leaks."""

    def __init__(self, times: bool = True) -> None:
        users = range(3)
        self.past = {u: [document(u, i, i * 3 + u if times else None) for i in range(3)] for u in users}
        self.targets = {u: [document(u, i, i * 3 + u if times else None) for i in range(3, 6)] for u in users}
        self.histories = {u: [[*self.past[u], *self.targets[u][:n]] for n in range(3)] for u in users}

    def dataset(self, population: type[Population] = Population, held_out: bool = True) -> Dataset:
        splits = []
        for n in range(3):
            made = tuple(example(self.targets[u][n], self.histories[u][n]) for u in self.targets)
            splits.append(LabeledSplit(made, {self.targets[u][n].id: self.targets[u][n].text for u in self.targets}))
        shown = [d for several in self.past.values() for d in several]
        shown += [d for several in self.targets.values() for d in several[: 1 if held_out else 3]]
        return Dataset("world", REVIEW_TASK, "0" * 64, *splits, population(shown), None, {}, "0")


def found(dataset: Dataset) -> list[tuple[Kind, str, str, str]]:
    return [(one.kind, one.split, one.example, one.document) for one in audit(dataset).findings]


def test_a_world_without_leaks_is_clean() -> None:
    seen = audit(World().dataset())
    assert seen == Audit((), 9, 12, 0.8)
    assert seen.counts() == dict.fromkeys(Kind, 0)


def test_the_planted_dataset_is_clean() -> None:
    seen = audit(prepare(load_spec("planted", {"users": 30, "items": 25})))
    assert seen.findings == ()
    assert seen.notes == ()


def test_a_target_in_its_own_history() -> None:
    world = World()
    world.histories[1][2].append(world.targets[1][2])
    dataset = world.dataset()
    told = [one for one in audit(dataset).findings if one.kind is Kind.HISTORY]
    assert told == [Finding(Kind.HISTORY, "test", "u1/i5", "u1/i5", "own history, the target itself", 1.0)]
    # The same document is also one that is not before its own moment.
    assert {one.kind for one in audit(dataset).findings} == {Kind.HISTORY, Kind.LATER}


def test_the_text_of_a_target_in_its_own_history() -> None:
    world = World()
    world.histories[1][2][0] = replace(world.past[1][0], text=world.targets[1][2].text.upper().replace(" ", "  "))
    (one,) = audit(world.dataset()).findings
    assert one == Finding(Kind.HISTORY, "test", "u1/i5", "u1/i0", "own history, the same text", 1.0)


def test_a_target_in_the_history_of_an_earlier_target() -> None:
    world = World()
    late = world.targets[2][1]
    world.histories[2][0].append(replace(late, timestamp=START))  # where a wrong time would let it pass
    assert found(world.dataset()) == [(Kind.HISTORY, "validation", late.id, late.id)]
    (one,) = audit(world.dataset()).findings
    assert one.where == "history of u2/i3, the target itself"


def test_the_text_of_a_target_in_the_history_of_an_earlier_target() -> None:
    world = World()
    stray = replace(world.past[2][0], id="u2/stray", text=world.targets[2][1].text)
    world.histories[2][0].append(stray)
    assert found(world.dataset()) == [(Kind.HISTORY, "validation", "u2/i4", "u2/stray")]


def test_without_times_a_later_split_is_the_later() -> None:
    world = World(times=False)
    world.histories[0][0].append(world.targets[0][2])
    told = [one for one in audit(world.dataset()).findings if one.kind is Kind.HISTORY]
    assert told == [Finding(Kind.HISTORY, "test", "u0/i5", "u0/i5", "history of u0/i3, the target itself", 1.0)]


def test_an_earlier_target_in_a_later_history_is_no_leak() -> None:
    assert found(World().dataset()) == []
    assert [past.id for past in World().dataset().test.examples[0].history][-2:] == ["u0/i3", "u0/i4"]


NEARLY = [("another user", 0), ("the same user", 2)]


@pytest.mark.parametrize(("whose", "user"), NEARLY)
@pytest.mark.parametrize("source", ["profile", "train target"])
@pytest.mark.parametrize("held", [1, 2])
def test_a_near_copy_of_a_held_out_target(whose: str, user: int, source: str, held: int) -> None:
    world = World()
    target = world.targets[2][held]
    copy = target.text + " and no more"
    if source == "profile":
        world.past[user][1] = replace(world.past[user][1], text=copy)
        world.histories[user] = [[*world.past[user], *world.targets[user][:n]] for n in range(3)]
        name = world.past[user][1].id
    else:
        world.targets[user][0] = replace(world.targets[user][0], text=copy)
        world.histories[user] = [[*world.past[user], *world.targets[user][:n]] for n in range(3)]
        name = world.targets[user][0].id
    (one,) = audit(world.dataset()).findings
    split = {1: "validation", 2: "test"}[held]
    assert (one.kind, one.split, one.example, one.document) == (Kind.NEAR, split, target.id, name)
    assert one.where == f"{source} of {whose}"
    assert one.similarity == similarity(target.text, copy) > 0.9
    assert audit(world.dataset(), 0.99).findings == ()


class Timeless(Population):
    """A population that forgets the cut-off."""

    def peers(self, document: Document, exclude_user: str, before: int | None = None) -> list[Document]:
        return super().peers(document, exclude_user)


class Reminiscent(Population):
    """A population that gives the whole of a user's documents at any time."""

    def history(self, user_id: str, before: int | None) -> list[Document]:
        return super().history(user_id, None)


def test_peers_later_than_the_target() -> None:
    world = World()
    dataset = world.dataset(Timeless)
    later = {
        (e.id, d.id)
        for split in (dataset.train, dataset.dev, dataset.test)
        for e in split.examples
        for d in dataset.population.documents()
        if d.user_id != e.user_id
        and d.item_id in {e.item_id, *(past.item_id for past in e.history)}
        and (d.timestamp or 0) >= (e.timestamp or 0)
    }
    assert later
    told = [one for one in audit(dataset).findings if one.kind is Kind.LATER]
    assert {(one.example, one.document) for one in told} == later
    assert {one.where for one in told} == {"peers of the target"}


def test_open_documents_of_the_user_that_are_not_before_the_target() -> None:
    told = audit(World().dataset(Reminiscent)).findings
    # A train target is in the population: to its own example it must not be open.
    assert {(o.kind, o.split, o.example, o.document) for o in told} == {
        (Kind.LATER, "train", f"u{u}/i3", f"u{u}/i3") for u in range(3)
    }


def test_a_history_that_is_not_before_the_target() -> None:
    world = World()
    late = replace(world.past[0][2], id="u0/late", timestamp=START + 400 * DAY, text=text(77))
    world.histories[0][2].append(late)
    (one,) = audit(world.dataset()).findings
    assert one == Finding(Kind.LATER, "test", "u0/i5", "u0/late", "own history", 0.0)


@pytest.mark.parametrize("field", ["item_description", "title"])
def test_a_reference_in_the_examples_own_fields(field: str) -> None:
    world = World()
    target = world.targets[1][2]
    told = f"Our buyers say: {target.text}" if field == "item_description" else target.text
    world.targets[1][2] = replace(target, fields={**target.fields, field: told})
    (one,) = audit(world.dataset()).findings
    assert one == Finding(Kind.REFERENCE, "test", target.id, target.id, f"own field {field!r}", 1.0)


def test_a_short_reference_within_a_longer_field_is_no_leak_but_alone_it_is() -> None:
    world = World()
    target = replace(world.targets[1][2], text="so good")
    for title, leaks in (("it is so good, I say", 0), ("So  good", 1)):
        world.targets[1][2] = replace(target, fields={**target.fields, "title": title})
        assert len(audit(world.dataset()).findings) == leaks


def test_a_reference_in_a_field_of_the_history() -> None:
    world = World()
    target = world.targets[0][2]
    past = world.past[0][1]
    world.histories[0][2][1] = replace(past, fields={**past.fields, "title": target.text})
    assert found(world.dataset()) == [(Kind.REFERENCE, "test", target.id, past.id)]


@pytest.mark.parametrize("where", ["text", "title"])
def test_a_reference_in_an_open_document_of_another_user(where: str) -> None:
    world = World()
    target = world.targets[0][2]
    past = world.past[1][0]
    changed = replace(past, text=target.text) if where == "text" else replace(past, fields={"title": target.text})
    world.past[1][0] = changed
    world.histories[1] = [[changed, *history[1:]] for history in world.histories[1]]
    (one,) = audit(world.dataset()).findings
    what = "its text" if where == "text" else "field 'title'"
    assert one == Finding(Kind.REFERENCE, "test", target.id, past.id, f"another user's open document, {what}", 1.0)


def test_the_same_text_written_later_is_not_within_reach_but_still_a_copy_across_splits() -> None:
    world = World()
    target = world.targets[0][1]
    late = replace(world.targets[1][0], text=target.text, timestamp=START + 500 * DAY)
    world.targets[1][0] = late
    world.histories[1] = [list(history[:3]) for history in world.histories[1]]
    assert found(world.dataset()) == [(Kind.NEAR, "validation", target.id, late.id)]


def test_held_out_targets_in_the_population() -> None:
    told = found(World(times=False).dataset(held_out=False))
    assert {(kind, document) for kind, _, example, document in told if example == document} == {
        (Kind.REFERENCE, f"u{u}/i{i}") for u in range(3) for i in (3, 4, 5)
    }


def test_without_times_it_says_what_cannot_be_seen() -> None:
    seen = audit(World(times=False).dataset())
    (note,) = seen.notes
    assert note.startswith("9 of 9 examples have no time")
    # Train targets are in this population, and without a time they are open to their own examples.
    assert {(one.kind, one.example) for one in seen.findings} == {(Kind.REFERENCE, f"u{u}/i3") for u in range(3)}


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_a_similarity_that_is_none(threshold: float) -> None:
    with pytest.raises(UsageError, match="give more than 0 and at most 1"):
        audit(World().dataset(), threshold)


# -- near copies against a comparison of all pairs ---------------------------------------------------------------------


def slow_shingles(text: str) -> set[str]:
    folded = text.casefold()
    runs = {folded[i : i + 5] for i in range(len(folded)) if len(folded[i : i + 5]) == 5}
    return runs or ({folded} if folded else set())


def slow_alike(queries: Sequence[str], texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    pairs = []
    for q, query in enumerate(queries):
        for t, other in enumerate(texts):
            a, b = slow_shingles(query), slow_shingles(other)
            if a and b and len(a & b) / len(a | b) >= threshold:
                pairs.append((q, t, len(a & b) / len(a | b)))
    return pairs


def edited(random: Random, body: str, changes: int) -> str:
    letters = list(body)
    for _ in range(changes):
        place = random.randrange(len(letters))
        letters[place : place + random.randint(0, 2)] = random.choice("aeiou XYZ")
    return "".join(letters)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_near_copies_are_those_of_all_pairs(threshold: float) -> None:
    random = Random(5)
    base = [text(1, n, words=random.choice([1, 3, 20, 80])) for n in range(25)]
    queries = [edited(random, body, random.choice([0, 1, 2, 5, 20])) for body in base]
    texts = [edited(random, random.choice(base), random.choice([0, 1, 3, 8, 30])) for _ in range(80)] + base
    fast = [(pair.query, pair.text, pair.similarity) for pair in alike(queries, texts, threshold)]
    assert fast == slow_alike(queries, texts, threshold)
    assert len(fast) >= 25 if threshold < 1 else fast


SMALL = st.text("abc é", max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(SMALL, max_size=5), st.lists(SMALL, max_size=5), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_near_copies_of_any_small_texts(queries: list[str], texts: list[str], threshold: float) -> None:
    fast = [(pair.query, pair.text, pair.similarity) for pair in alike(queries, texts, threshold)]
    assert fast == slow_alike(queries, texts, threshold)
