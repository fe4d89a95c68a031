"""DEP's difference vectors against a slow loop written from the definition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_differences import Vector, naive_difference

from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.config import DepConfig, Weighting
from methods.dep.differences import ReviewVectors, review_vectors, segment_weights

SIZE = 6
NOW = 10
WEIGHTINGS: tuple[Weighting, ...] = ("uniform", "softmax", "linear", "inverse", "share")


def embed(text: str) -> Vector:
    """A unit vector that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32).astype(np.float64)
    return vector / float(np.linalg.norm(vector))


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.array([embed(text) for text in texts], np.float32).reshape(len(texts), SIZE)


# -- worlds ----------------------------------------------------------------------------------------------------------

USERS, ITEMS = "abcd", "wxyz"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Document], list[Example]]:
    """Few users, items, moments and texts, so that ties, duplicates, lonely reviews and empty histories are common."""
    texts = st.sampled_from(["good", "bad", "so so", "never again", "fine indeed"])
    times = st.one_of(st.integers(0, NOW + 2), st.none())
    pairs = draw(st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS)), unique=True, max_size=16))
    world = [Document(f"{u}/{i}", u, draw(texts), {}, i, draw(times)) for u, i in pairs]
    examples = []
    for number, user in enumerate(draw(st.permutations(USERS))):
        now = draw(st.integers(1, NOW))
        past = [d for d in world if d.user_id == user and d.timestamp is not None and d.timestamp < now]
        past.sort(key=lambda d: (d.timestamp or 0, d.item_id or ""))
        past = past[: draw(st.integers(0, len(past)))] if draw(st.booleans()) else past
        examples.append(Example(f"e{number}", user, {}, tuple(past), "target", now))
    return world, examples


configs = st.builds(
    DepConfig,
    weighting=st.sampled_from(WEIGHTINGS),
    tau=st.sampled_from([0.05, 0.1, 1.0, 10.0]),
    max_peers=st.one_of(st.none(), st.integers(1, 3)),
    peer_cutoff=st.booleans(),
    peer_source=st.sampled_from(["item", "content"]),
    nearest_peers=st.integers(1, 4),
)
any_source = st.builds(
    lambda config, source: config.model_copy(update={"peer_source": source}),
    configs,
    st.sampled_from(["item", "content", "random"]),
)


def chosen_of(examples: Sequence[Example]) -> list[list[Document]]:
    return [list(reversed(example.history)) for example in examples]


def vectors(
    examples: Sequence[Example], world: Sequence[Document], config: DepConfig, seed: int = 0
) -> list[ReviewVectors]:
    return review_vectors(examples, chosen_of(examples), Population(world), config, encode, seed=seed)


def same_bits(left: ReviewVectors, right: ReviewVectors) -> bool:
    pairs = ((left.own, right.own), (left.difference, right.difference), (left.has_peers, right.has_peers))
    return all(a.tobytes() == b.tobytes() and a.shape == b.shape for a, b in pairs)


# -- tests -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(worlds(), configs)
def test_differences_equal_the_definition(made: tuple[list[Document], list[Example]], config: DepConfig) -> None:
    world, examples = made
    found = vectors(examples, world, config)
    assert len(found) == len(examples)
    for example, chosen, got in zip(examples, chosen_of(examples), found, strict=True):
        assert got.own.shape == got.difference.shape == (len(chosen), SIZE)
        assert got.own.dtype == got.difference.dtype == np.float32
        for row, review in enumerate(chosen):
            expected = naive_difference(example, review, world, config, embed)
            assert bool(got.has_peers[row]) == (expected is not None)
            np.testing.assert_allclose(got.own[row], embed(review.text), atol=1e-6)
            np.testing.assert_allclose(got.difference[row], np.zeros(SIZE) if expected is None else expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(worlds(), any_source, st.randoms(use_true_random=False))
def test_order_of_examples_and_documents_and_company_change_not_one_bit(
    made: tuple[list[Document], list[Example]], config: DepConfig, random: Random
) -> None:
    world, examples = made
    whole = {e.id: v for e, v in zip(examples, vectors(examples, world, config), strict=True)}
    shuffled, mixed = list(examples), list(world)
    random.shuffle(shuffled)
    random.shuffle(mixed)
    for example, got in zip(shuffled, vectors(shuffled, mixed, config), strict=True):
        assert same_bits(got, whole[example.id])
    for example in examples:
        assert same_bits(vectors([example], world, config)[0], whole[example.id])


@settings(max_examples=60, deadline=None)
@given(worlds(), any_source)
def test_what_is_written_at_or_after_the_target_changes_nothing_under_the_cutoff(
    made: tuple[list[Document], list[Example]], config: DepConfig
) -> None:
    world, examples = made
    config = config.model_copy(update={"peer_cutoff": True})
    for example in examples:
        assert example.timestamp is not None
        early = [d for d in world if d.timestamp is not None and d.timestamp < example.timestamp]
        assert same_bits(vectors([example], world, config)[0], vectors([example], early, config)[0])


def user(name: str, *reviews: tuple[str, int, str]) -> list[Document]:
    return [Document(f"{name}/{item}", name, text, {}, item, time) for item, time, text in reviews]


@pytest.mark.parametrize(("time", "used"), [(9, True), (10, False), (11, False)])
def test_a_peer_review_counts_strictly_before_the_target_and_always_without_the_cutoff(time: int, used: bool) -> None:
    mine, peer = user("me", ("w", 1, "mine")), user("peer", ("w", time, "theirs"))
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    on, off = (vectors([example], mine + peer, DepConfig(peer_cutoff=flag))[0] for flag in (True, False))
    expected = embed("mine") - embed("theirs")
    assert on.has_peers.tolist() == [used]
    np.testing.assert_allclose(on.difference[0], expected if used else np.zeros(SIZE), atol=1e-6)
    assert off.has_peers.tolist() == [True]
    np.testing.assert_allclose(off.difference[0], expected, atol=1e-6)


@pytest.mark.parametrize("cutoff", [True, False])
def test_the_users_own_reviews_are_never_peers(cutoff: bool) -> None:
    """Not even a second one on the same item, nor the target itself where it stands in the population."""
    mine = user("me", ("w", 1, "first"))
    again = [Document("me/w-2", "me", "second", {}, "w", 2), Document("me/t", "me", "target", {}, "t", 10)]
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    assert not vectors([example], mine + again, DepConfig(peer_cutoff=cutoff))[0].has_peers.any()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("cutoff", [True, False])
def test_the_targets_text_changes_nothing(weighting: Weighting, cutoff: bool) -> None:
    """A train target stands in the population, as peers of others need it; its own example must not see it."""
    peers = user("p", ("w", 1, "one"), ("x", 2, "two")) + user("q", ("w", 3, "three"), ("x", 4, "four"))
    mine = user("me", ("w", 5, "five"), ("x", 6, "six"))
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    config = DepConfig(weighting=weighting, peer_cutoff=cutoff)
    found = [
        vectors([example], [*peers, *mine, Document("me/t", "me", text, {}, "t", 10)], config)[0]
        for text in ("the target", "another target altogether")
    ]
    assert found[0].has_peers.all()
    assert same_bits(*found)


def test_max_peers_keeps_the_latest() -> None:
    mine = user("me", ("w", 9, "mine"))
    peers = [d for name, time in (("p", 3), ("q", 1), ("r", 2)) for d in user(name, ("w", time, f"by {name}"))]
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    found = vectors([example], mine + peers, DepConfig(weighting="uniform", max_peers=2))[0]
    np.testing.assert_allclose(found.difference[0], embed("mine") - (embed("by p") + embed("by r")) / 2, atol=1e-6)


def test_linear_weights_of_users_with_equal_means_are_uniform() -> None:
    """Three users wrote the same texts in other orders: the distances are rounding alone."""
    texts = ["a", "b", "c", "d", "e"]
    mine = [Document(f"me/{i}", "me", t, {}, f"i{i}", i) for i, t in enumerate(texts)]
    world = list(mine)
    for name, shift in (("p", 1), ("q", 2), ("r", 3)):
        world += [Document(f"{name}/{i}", name, texts[(i + shift) % 5], {}, f"i{i}", i) for i in range(5)]
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    found = vectors([example], world, DepConfig(weighting="linear"))[0]
    for row, review in enumerate(reversed(mine)):
        peers = [d for d in world if d.item_id == review.item_id and d.user_id != "me"]
        mean = sum((embed(d.text) for d in peers), np.zeros(SIZE)) / 3
        np.testing.assert_allclose(found.difference[row], embed(review.text) - mean, atol=1e-6)


@settings(max_examples=100, deadline=None)
@hypothesis.example([(0, 1e-45), (1, 1e-40), (1, 1e-45)], "linear", 0.1)  # no reciprocal of these is finite
@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 2, width=32)), max_size=30),
    st.sampled_from(WEIGHTINGS),
    st.sampled_from([0.01, 0.1, 5.0]),
)
def test_weights_are_a_distribution_over_each_reviews_peers(
    pairs: list[tuple[int, float]], weighting: Weighting, tau: float
) -> None:
    pairs.sort(key=lambda pair: pair[0])
    segments = np.array([s for s, _ in pairs], np.int64)
    distances = np.array([d for _, d in pairs], np.float32)
    weights = segment_weights(distances, segments, 5, weighting, tau)
    assert (weights >= 0).all()
    for segment in set(segments.tolist()):
        assert weights[segments == segment].sum() == pytest.approx(1, abs=1e-5)


def test_each_distinct_text_is_encoded_once_in_one_call() -> None:
    peers = user("p", ("w", 1, "same"), ("x", 2, "two")) + user("q", ("w", 3, "same"))
    mine = user("me", ("w", 5, "same"), ("x", 6, "six"))
    examples = [Example(f"e{n}", "me", {}, tuple(mine), "t", 10) for n in range(3)]
    calls: list[list[str]] = []

    def counted(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        calls.append(list(texts))
        return encode(texts)

    review_vectors(examples, chosen_of(examples), Population(peers + mine), DepConfig(), counted)
    assert len(calls) == 1
    assert sorted(calls[0]) == ["same", "six", "two"]


def test_only_the_chosen_reviews_get_vectors_and_the_mean_still_runs_over_all() -> None:
    peers = user("p", ("w", 1, "one"), ("x", 2, "two")) + user("q", ("x", 3, "three"))
    mine = user("me", ("v", 4, "four"), ("w", 5, "five"), ("x", 6, "six"))
    example = Example("e", "me", {}, tuple(mine), "t", 10)
    config = DepConfig(weighting="linear")
    newest = mine[-1]
    found = review_vectors([example], [[newest]], Population(peers + mine), config, encode)[0]
    expected = naive_difference(example, newest, peers + mine, config, embed)
    assert expected is not None
    np.testing.assert_allclose(found.difference[0], expected, atol=1e-6)
    less = naive_difference(replace(example, history=(newest,)), newest, peers + mine, config, embed)
    assert less is not None
    assert not np.allclose(expected, less, atol=1e-3)
