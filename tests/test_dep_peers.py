"""Whose reviews a review differs from where that is not the item's, and the sizes that histories come in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_differences import Vector, naive_difference, naive_others, naive_peers

from bench.data.population import Population
from bench.types import Document, Example
from methods.dep import nearest
from methods.dep.config import DepConfig, PeerSource
from methods.dep.differences import ReviewVectors, review_vectors
from methods.dep.pairs import Pairs, Reviews, Texts, item_peers, random_peers

SIZE = 5


def embed(text: str) -> Vector:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32).astype(np.float64)
    return vector / float(np.linalg.norm(vector))


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.array([embed(text) for text in texts], np.float32).reshape(len(texts), SIZE)


def user(name: str, *reviews: tuple[str, int | None, str]) -> list[Document]:
    return [Document(f"{name}/{item}", name, text, {}, item, time) for item, time, text in reviews]


def town(users: int, items: int) -> list[Document]:
    """Every user on every item, each at another moment."""
    return [
        Document(f"u{u}/i{i}", f"u{u}", f"{u} on {i}", {}, f"i{i}", (u * 7 + i * 3) % 50)
        for u in range(users)
        for i in range(items)
    ]


def example_of(name: str, world: Sequence[Document], now: int, number: int = 0) -> Example:
    own = [d for d in world if d.user_id == name and d.timestamp is not None and d.timestamp < now]
    own.sort(key=lambda d: (d.timestamp or 0, d.item_id or ""))
    return Example(f"e{number}", name, {}, tuple(own), "target", now)


def assert_equals_definition(
    got: ReviewVectors, row: int, example: Example, world: Sequence[Document], config: DepConfig
) -> None:
    expected = naive_difference(example, example.history[::-1][row], world, config, embed)
    assert bool(got.has_peers[row]) == (expected is not None)
    np.testing.assert_allclose(got.difference[row], np.zeros(SIZE) if expected is None else expected, atol=1e-5)


def vectors(examples: Sequence[Example], world: Sequence[Document], config: DepConfig) -> list[ReviewVectors]:
    return review_vectors(examples, [e.history[::-1] for e in examples], Population(world), config, encode)


# -- random peers ----------------------------------------------------------------------------------------------------


def drawn(
    examples: Sequence[Example], world: Sequence[Document], config: DepConfig, seed: int = 0
) -> tuple[list[list[Document]], list[int]]:
    """The documents drawn for each review, and how many true peers it has."""
    arrays = Population(world).arrays()
    chosen = [list(e.history) for e in examples]
    reviews = Reviews.of(examples, chosen, arrays, Texts(arrays), config.peer_cutoff)
    counts = item_peers(reviews, arrays, config).counts(len(reviews))
    pairs: Pairs = random_peers(examples, chosen, reviews, counts, arrays, seed)
    found: list[list[Document]] = [[] for _ in range(len(reviews))]
    for review, peer in zip(pairs.review.tolist(), pairs.peer.tolist(), strict=True):
        found[review].append(arrays.documents[peer])
    return found, counts.tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 50), st.booleans(), st.sampled_from([None, 1, 2]))
def test_random_peers_are_as_many_distinct_documents_of_others(
    users: int, items: int, now: int, cutoff: bool, most: int | None
) -> None:
    world = town(users, items)
    config = DepConfig(peer_source="random", peer_cutoff=cutoff, max_peers=most)
    examples = [example_of(f"u{n}", world, now, n) for n in range(users)]
    found, counts = drawn(examples, world, config)
    owners = [example for example in examples for _ in example.history]
    true = [
        len(naive_peers(e, d, world, DepConfig(peer_cutoff=cutoff, max_peers=most), embed))
        for e in examples
        for d in e.history
    ]
    assert counts == true
    for example, peers, count in zip(owners, found, counts, strict=True):
        assert len(peers) == count == len({d.id for d in peers})
        allowed = {d.id for d in naive_others(example, world, config)}
        assert {d.id for d in peers} <= allowed


def test_random_peers_follow_seed_example_and_review_alone() -> None:
    world = town(9, 6)
    config = DepConfig(peer_source="random")
    one, two = example_of("u1", world, 40, 1), example_of("u2", world, 40, 2)
    alone, _ = drawn([one], world, config)
    together, _ = drawn([two, one], world, config)
    assert together[len(two.history) :] == alone
    assert drawn([one], world, config, seed=1)[0] != alone
    assert drawn([example_of("u1", world, 40, 3)], world, config)[0] != alone
    later = [*world, Document("u8/late", "u8", "late", {}, "late", 45)]
    assert drawn([one], later, config)[0] == alone
    assert len({tuple(d.id for d in peers) for peers in alone}) == len(alone)


def test_random_peers_come_from_everywhere_alike() -> None:
    world = town(8, 5)
    example = example_of("u3", world, 60)
    counts = Counter(
        d.id for seed in range(400) for peers in drawn([example], world, DepConfig(), seed)[0] for d in peers
    )
    assert set(counts) == {d.id for d in world if d.user_id != "u3"}
    expected = sum(counts.values()) / len(counts)  # 400
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())


def test_the_seed_reaches_the_draw() -> None:
    world = town(9, 6)
    example = example_of("u1", world, 40)
    config = DepConfig(peer_source="random")
    found = [
        review_vectors([example], [example.history], Population(world), config, encode, seed=seed)[0].difference
        for seed in (0, 0, 1)
    ]
    assert (found[0] == found[1]).all()
    assert not np.allclose(found[0], found[2], atol=1e-3)


# -- peers by content ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.sampled_from("xyzwv")), max_size=30),
    st.integers(1, 6),
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
)
def test_nearest_equal_a_full_sort_in_blocks_of_every_size(
    rows: list[tuple[str, int, str]], most: int, shape: tuple[int, int]
) -> None:
    """Few texts, so that many documents are equally near."""
    world = [Document(f"{u}/{n}", u, text, {}, f"i{n}", time) for n, (u, time, text) in enumerate(rows)]
    examples = [example_of(u, world, 7, n) for n, u in enumerate("abcd")]
    config = DepConfig(peer_source="content", nearest_peers=most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_REVIEWS", shape[0])
        patch.setattr(nearest, "_DOCUMENTS", shape[1])
        found = vectors(examples, world, config)
    for example, got in zip(examples, found, strict=True):
        for row in range(len(example.history)):
            assert_equals_definition(got, row, example, world, config)


def test_content_needs_no_items() -> None:
    world = [Document(f"{u}{n}", u, f"text {u}{n}", {}, None, n) for u in "ab" for n in range(4)]
    example = Example("e", "a", {}, tuple(world[:4]), None, 10)
    assert not vectors([example], world, DepConfig())[0].has_peers.any()
    config = DepConfig(peer_source="content", nearest_peers=2)
    got = vectors([example], world, config)[0]
    assert got.has_peers.all()
    for row in range(4):
        assert_equals_definition(got, row, example, world, config)


def test_content_encodes_the_whole_population_in_one_call() -> None:
    world = town(4, 3)
    calls: list[list[str]] = []

    def counted(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        calls.append(list(texts))
        return encode(texts)

    example = example_of("u1", world, 40)
    config = DepConfig(peer_source="content")
    review_vectors([example], [example.history], Population(world), config, counted)
    assert [sorted(call) for call in calls] == [sorted(d.text for d in world)]


def test_nothing_is_near_a_vector_without_direction() -> None:
    world = town(4, 3)
    example = example_of("u1", world, 40)
    config = DepConfig(peer_source="content")
    got = review_vectors(
        [example], [example.history], Population(world), config, lambda texts: np.zeros((len(texts), SIZE), np.float32)
    )[0]
    assert not got.has_peers.any()


# -- sizes and gaps --------------------------------------------------------------------------------------------------

SOURCES: tuple[PeerSource, ...] = ("item", "content", "random")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("length", [0, 1, 5, 500])
@pytest.mark.parametrize("peers", [True, False])
def test_histories_of_every_length(source: PeerSource, length: int, peers: bool) -> None:
    mine = user("me", *((f"i{n}", n, f"my {n}") for n in range(length)))
    others = user("you", *((f"i{n}", n, f"your {n}") for n in range(length))) if peers else []
    example = Example("e", "me", {}, tuple(mine), "target", 1000)
    config = DepConfig(peer_source=source, nearest_peers=3)
    got = vectors([example], mine + others, config)[0]
    assert got.own.shape == got.difference.shape == (length, SIZE)
    assert got.has_peers.tolist() == [peers] * length
    np.testing.assert_allclose(got.own, encode([d.text for d in reversed(mine)]), atol=1e-6)
    if not peers:
        assert not got.difference.any()
    elif source != "random":
        for row in range(0, length, 97):
            assert_equals_definition(got, row, example, mine + others, config)


@pytest.mark.parametrize("source", SOURCES)
def test_no_examples_and_no_population(source: PeerSource) -> None:
    config = DepConfig(peer_source=source)
    assert vectors([], [], config) == []
    alone = Example("e", "me", {}, tuple(user("me", ("w", 1, "mine"))), "t", 5)
    got = vectors([alone, Example("f", "you", {}, (), "t", 5)], [], config)
    assert [v.has_peers.tolist() for v in got] == [[False], []]


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_time_a_document_counts_only_without_the_cutoff(source: PeerSource) -> None:
    mine = user("me", ("w", 1, "mine"))
    world = mine + user("you", ("w", None, "timeless"))
    example = Example("e", "me", {}, tuple(mine), "t", 5)
    for cutoff in (True, False):
        config = DepConfig(peer_source=source, peer_cutoff=cutoff)
        assert vectors([example], world, config)[0].has_peers.tolist() == [not cutoff]
    timeless = Example("f", "me", {}, tuple(mine), "t")
    config = DepConfig(peer_source=source)
    assert vectors([timeless], world, config)[0].has_peers.tolist() == [True]


def test_a_document_that_is_an_equal_copy_counts_as_the_populations_own() -> None:
    """As those are that were read again from a file."""
    world = town(5, 4)
    example = example_of("u1", world, 40)
    copies = tuple(Document(d.id, d.user_id, d.text, dict(d.fields), d.item_id, d.timestamp) for d in example.history)
    again = Example(example.id, "u1", {}, copies, "target", 40)
    for source in SOURCES:
        config = DepConfig(peer_source=source)
        first, second = vectors([example], world, config)[0], vectors([again], world, config)[0]
        assert first.difference.tobytes() == second.difference.tobytes()


def test_histories_that_are_no_part_of_one_another() -> None:
    """A user's examples may each leave out something else, and may hold what the population does not."""
    world = town(4, 6)
    mine = example_of("u1", world, 60).history
    extra = Document("u1/new", "u1", "held out", {}, "i0", 55)
    other = Document("u1/other", "u1", "held out as well", {}, "i1", 56)
    histories = [mine, mine[::2], mine[1::2], (*mine, extra), (*mine, other), (*mine[:3], extra), mine[:2]]
    examples = [Example(f"e{n}", "u1", {}, history, "target", 60) for n, history in enumerate(histories)]
    config = DepConfig(weighting="linear")
    for example, got in zip(examples, vectors(examples, world, config), strict=True):
        for row in range(len(example.history)):
            assert_equals_definition(got, row, example, world, config)
        alone = vectors([example], world, config)[0]
        assert alone.difference.tobytes() == got.difference.tobytes()
