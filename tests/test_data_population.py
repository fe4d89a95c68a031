"""The population: who else wrote about an item, and when."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.arrays import expand
from bench.data.population import Population
from bench.types import Document, Example


def document(user: str, item: str | None, time: int | None, suffix: str = "") -> Document:
    return Document(f"{user}/{item}{suffix}", user, f"{user} on {item}", {}, item, time)


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    pairs = st.tuples(st.sampled_from("uvwx"), st.sampled_from(["a", "b", "c", None]))
    chosen = draw(st.lists(pairs, unique=True, max_size=16))
    return [document(user, item, draw(st.one_of(st.none(), st.integers(0, 5)))) for user, item in chosen]


def order(one: Document) -> tuple[bool, int, str, str]:
    return one.timestamp is None, one.timestamp or 0, one.user_id, one.id


@given(
    documents(), st.sampled_from("uvwxy"), st.one_of(st.none(), st.integers(0, 6)), st.randoms(use_true_random=False)
)
def test_equals_a_search_through_everything(
    found: list[Document], user: str, before: int | None, random: Random
) -> None:
    population = Population(found)
    assert population.documents() == sorted(found, key=order)
    assert population.users() == sorted({one.user_id for one in found})
    assert len(population) == len(found)

    def early(one: Document) -> bool:
        return before is None or (one.timestamp is not None and one.timestamp < before)

    for asked in found:
        expected = [
            other
            for other in sorted(found, key=order)
            if other.item_id is not None
            and other.item_id == asked.item_id
            and other.user_id != user
            and other.id != asked.id
            and early(other)
        ]
        assert population.peers(asked, user, before) == expected
    own = [one for one in sorted(found, key=order) if one.user_id == user and early(one)]
    assert population.history(user, before) == own
    shuffled = list(found)
    random.shuffle(shuffled)
    assert Population(shuffled).documents() == population.documents()


def test_before_is_strict() -> None:
    population = Population([document("u", "a", 1), document("v", "a", 2), document("w", "a", 3)])
    asked = document("u", "a", 1)
    assert [one.user_id for one in population.peers(asked, "u", before=3)] == ["v"]
    assert population.peers(asked, "u", before=2) == []
    assert population.history("v", before=2) == []
    assert [one.user_id for one in population.history("v", before=3)] == ["v"]


def test_unknown_item_and_user_have_nothing() -> None:
    population = Population([document("u", "a", 1)])
    assert population.peers(document("v", "b", 1), "v") == []
    assert population.peers(document("v", None, 1), "v") == []
    assert population.history("nobody", None) == []


def test_the_same_document_objects_come_back_and_lists_are_copies() -> None:
    one = document("u", "a", 1)
    population = Population([one])
    assert population.documents()[0] is one
    population.documents().clear()
    population.history("u", None).clear()
    population.users().clear()
    assert len(population.documents()) == len(population.history("u", None)) == len(population.users()) == 1


def test_two_documents_with_one_id() -> None:
    with pytest.raises(ValueError, match="u/a"):
        Population([document("u", "a", 1), document("u", "a", 2)])


@given(documents(), st.lists(st.one_of(st.none(), st.integers(0, 6)), max_size=4))
def test_arrays_say_what_the_look_ups_say(found: list[Document], moments: list[int | None]) -> None:
    population = Population(found)
    arrays = population.arrays()
    ordered = population.documents()
    assert population.arrays() is arrays
    assert len(arrays) == len(ordered)
    assert list(arrays.users) == population.users()
    assert [list(arrays.texts)[n] for n in arrays.text] == [one.text for one in ordered]
    assert arrays.find([*ordered, document("new", "a", 1)]).tolist() == [*range(len(ordered)), -1]
    assert [arrays.numbers[one.id] for one in ordered] == [*range(len(ordered))]

    examples = [Example(str(n), "u", {}, (), None, moment) for n, moment in enumerate(moments)]
    assert arrays.ends(examples, cutoff=False).tolist() == [len(ordered)] * len(moments)
    ends = arrays.ends(examples, cutoff=True)
    for moment, end in zip(moments, ends.tolist(), strict=True):
        assert [ordered[n] for n in range(end)] == [
            one for one in ordered if moment is None or (one.timestamp is not None and one.timestamp < moment)
        ]
        for name, user in arrays.users.items():
            starts, counts = arrays.by_user.ranges(np.array([user, -1]), np.array([end, end]))
            members = arrays.by_user.members[expand(starts, counts)[1]]
            assert [ordered[n] for n in members] == population.history(name, moment)
        for name, item in arrays.items.items():
            starts, counts = arrays.by_item.ranges(np.array([item]))
            members = arrays.by_item.members[expand(starts, counts)[1]]
            assert [ordered[n] for n in members] == [one for one in ordered if one.item_id == name]


def test_ranges_laid_end_to_end() -> None:
    owners, places = expand(np.array([7, 3, 0]), np.array([2, 0, 3]))
    assert owners.tolist() == [0, 0, 2, 2, 2]
    assert places.tolist() == [7, 8, 0, 1, 2]
