"""Paper mode's vectors against a script that follows the public code's rules with dictionaries and loops."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_paper import Found, Sample, Script, public_sample, public_test_samples

from bench.data.population import Population
from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.types import Document, Example, LabeledSplit
from methods.dep.config import DepConfig
from methods.dep.differences import ReviewVectors
from methods.dep.paper import paper_history, paper_reviews, paper_vectors

PAPER = DepConfig(mode="paper")
SIZE = 24
IMDB = os.environ.get("DEP_BENCH_IMDB")


def embed(text: str) -> torch.Tensor:
    """A unit vector that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(SIZE)
    return torch.from_numpy((vector / np.linalg.norm(vector)).astype(np.float32))


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return torch.stack([embed(text) for text in texts]).numpy() if texts else np.zeros((0, SIZE), np.float32)


def assert_same(got: ReviewVectors, expected: Found) -> None:
    count = len(expected.own)
    assert got.own.shape == got.difference.shape == (count, SIZE)
    assert got.own.dtype == got.difference.dtype == np.float32
    assert got.has_peers.tolist() == [True] * count
    if count:
        np.testing.assert_allclose(got.own, torch.stack(expected.own).numpy(), atol=1e-6)
        np.testing.assert_allclose(got.difference, torch.stack(expected.difference).numpy(), atol=1e-5)


def names(documents: Sequence[Document]) -> list[tuple[str, str]]:
    return [(str(d.item_id), d.text) for d in documents]


# -- fabricated worlds, full of ties ---------------------------------------------------------------------------------


def documents_of(user: str, rows: Sequence[tuple[int, str]]) -> list[Document]:
    """One document for each (time, item), oldest first."""
    return [Document(f"{user}/{i}", user, f"{user} on {i}", {}, i, t) for t, i in sorted(rows)]


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, list[Document]]:
    """User -> documents, oldest first; the last two are the targets of validation and test. Few moments, many ties."""
    world = {}
    for user in draw(st.lists(st.sampled_from("abcde"), unique=True, min_size=1)):
        items = draw(st.lists(st.sampled_from("mnopqrstuvwxyz"), unique=True, min_size=3, max_size=14))
        world[user] = documents_of(user, [(draw(st.integers(1, 4)), item) for item in items])
    return world


def public_samples(world: Mapping[str, Sequence[Document]]) -> list[Sample]:
    return [
        public_sample(Example(u, u, {}, tuple(documents[:-1])), documents[-1].text) for u, documents in world.items()
    ]


def examples_of(world: Mapping[str, Sequence[Document]]) -> list[Example]:
    """Each user's test, validation and last train example."""
    return [
        Example(f"{u}{k}", u, {}, tuple(documents[:-k]), "t", 9) for u, documents in world.items() for k in (1, 2, 3)
    ]


def population_of(world: Mapping[str, Sequence[Document]]) -> Population:
    return Population(d for documents in world.values() for d in documents[:-2])


@settings(max_examples=300, deadline=None)
@given(worlds(), st.sampled_from([1, 3, 8]))
def test_vectors_equal_the_script_with_ties_in_time(world: dict[str, list[Document]], most: int) -> None:
    script, population, examples = Script(public_samples(world), embed), population_of(world), examples_of(world)
    config = PAPER.model_copy(update={"n_history": most})
    for example, got in zip(examples, paper_vectors(examples, population, config, encode), strict=True):
        expected = script.vectors(public_sample(example, ""), most)
        assert_same(got, expected)
        assert names(paper_reviews(example, population, most)) == expected.reviews


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_order_and_company_change_not_one_bit(world: dict[str, list[Document]], random: Random) -> None:
    examples = examples_of(world)
    whole = paper_vectors(examples, population_of(world), PAPER, encode)
    mixed = [d for documents in world.values() for d in documents[:-2]]
    random.shuffle(mixed)
    for example, expected in zip(examples, whole, strict=True):
        got = paper_vectors([example], Population(mixed), PAPER, encode)[0]
        assert got.own.tobytes() == expected.own.tobytes()
        assert got.difference.tobytes() == expected.difference.tobytes()


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_weights_equal_the_script(world: dict[str, list[Document]]) -> None:
    """With vectors that stand at right angles, a peer's weight can be read off the difference."""
    texts = sorted(d.text for documents in world.values() for d in documents)
    axes = torch.eye(len(texts))
    script = Script(public_samples(world), lambda text: axes[texts.index(text)])
    examples = examples_of(world)
    found = paper_vectors(
        examples, population_of(world), PAPER, lambda wanted: axes[[texts.index(t) for t in wanted]].numpy()
    )
    for example, got in zip(examples, found, strict=True):
        expected = script.vectors(public_sample(example, ""))
        for difference, weights in zip(got.difference, expected.weights, strict=True):
            read = {(u, row): -difference[texts.index(world[u][row].text)] for u, row in weights}
            assert read == pytest.approx(weights, abs=1e-6)


# -- the rules, one by one -------------------------------------------------------------------------------------------

REST = [(6, "v"), (7, "w")]
"""Two targets that stay hidden."""


def test_reviews_of_one_moment_show_one_text_and_carry_the_vector_of_the_other() -> None:
    world = {"a": documents_of("a", [(1, "m"), (1, "n"), (5, "z"), *REST]), "b": documents_of("b", [])}
    world["b"] = documents_of("b", [(1, "m"), (2, "n"), (5, "y"), *REST])
    example = Example("e", "a", {}, tuple(world["a"][:2]), "t", 5)
    assert [d.item_id for d in paper_history(example)] == ["m", "n"]
    got = paper_vectors([example], population_of(world), PAPER, encode)[0]
    np.testing.assert_array_equal(got.own, encode(["a on n", "a on m"]))
    expected = encode(["a on n", "a on m"]) - encode(["b on m", "b on n"])
    np.testing.assert_allclose(got.difference, expected, atol=1e-6)


def test_a_users_last_public_review_is_nobodys_peer() -> None:
    world = {
        "a": documents_of("a", [(1, "m"), (2, "n"), (3, "z"), *REST]),
        "b": documents_of("b", [(1, "n"), (2, "m"), *REST]),
    }
    example = Example("e", "a", {}, tuple(world["a"][:2]), "t", 5)
    assert [d.item_id for d in paper_reviews(example, population_of(world))] == ["n"]


def test_one_other_writer_is_not_enough_where_the_users_own_review_is_not_counted() -> None:
    """The user's own review is their last public one, so the set holds one member alone; with two others it is used."""
    world = {
        "a": documents_of("a", [(1, "k"), (3, "m"), *REST]),
        "b": documents_of("b", [(1, "m"), (2, "z"), *REST]),
    }
    example = Example("e", "a", {}, tuple(world["a"][:2]), "t", 5)
    assert paper_reviews(example, population_of(world)) == []
    world["c"] = documents_of("c", [(4, "m"), (5, "z"), *REST])
    assert [d.item_id for d in paper_reviews(example, population_of(world))] == ["m"]


def test_peers_may_be_later_than_the_target() -> None:
    world = {
        "a": documents_of("a", [(1, "m"), (2, "z"), *REST]),
        "b": documents_of("b", [(5, "m"), (5, "z"), *REST]),
    }
    example = Example("e", "a", {}, tuple(world["a"][:1]), "t", 2)
    assert paper_vectors([example], population_of(world), PAPER, encode)[0].has_peers.tolist() == [True]


def test_users_with_one_mean_weigh_alike() -> None:
    """The public code would divide nothing by nothing here."""
    same = [(1, "m"), (2, "n"), *REST]
    documents = [Document(f"{u}/{i}", u, "same words", {}, i, t) for u in "abc" for t, i in same]
    example = Example("e", "a", {}, tuple(documents[:2]), "t", 9)
    got = paper_vectors([example], Population(documents), PAPER, encode)[0]
    assert got.has_peers.all()
    np.testing.assert_allclose(got.difference, 0, atol=1e-6)


def test_nothing_to_go_by() -> None:
    stranger = Example("e", "x", {}, tuple(documents_of("x", [(1, "m"), (2, "n")])), "t", 5)
    empty = Example("f", "x", {}, (), "t", 5)
    world = {"a": documents_of("a", [(1, "m"), (1, "n"), *REST]), "b": documents_of("b", [(1, "m"), *REST])}
    for population in (Population([]), population_of(world), Population([Document("1", "u", "bare", {})])):
        found = paper_vectors([stranger, empty], population, PAPER, encode)
        assert [v.own.shape for v in found] == [(0, SIZE), (0, SIZE)]
    assert paper_vectors([], population_of(world), PAPER, encode) == []


def test_a_user_the_population_does_not_know_can_have_peers() -> None:
    world = {u: documents_of(u, [(1, "m"), (2, "n"), (3, "z"), *REST]) for u in "ab"}
    stranger = Example("e", "x", {}, tuple(documents_of("x", [(1, "m")])), "t", 5)
    got = paper_vectors([stranger], population_of(world), PAPER, encode)[0]
    assert got.has_peers.tolist() == [True]
    assert np.isfinite(got.difference).all()


def test_each_distinct_text_is_encoded_once_in_one_call() -> None:
    world = {u: documents_of(u, [(1, "m"), (2, "n"), (3, "z"), *REST]) for u in "abc"}
    calls: list[list[str]] = []

    def counted(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        calls.append(list(texts))
        return encode(texts)

    paper_vectors(examples_of(world), population_of(world), PAPER, counted)
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0])


# -- whole datasets --------------------------------------------------------------------------------------------------


def last_of_each_user(split: LabeledSplit) -> list[Example]:
    """The example with the longest history, which for train is the eighth target."""
    return list({e.user_id: e for e in sorted(split.examples, key=lambda e: len(e.history))}.values())


def compare(dataset: Dataset, every: int) -> int:
    """Compares every so-manyth user's train, validation and test example; returns how many reviews had peers."""
    script = Script(public_test_samples(dataset), embed)
    splits = (dataset.train, dataset.dev, dataset.test)
    examples = [e for split in splits for e in last_of_each_user(split)[::every]]
    seen = 0
    for example, got in zip(examples, paper_vectors(examples, dataset.population, PAPER, encode), strict=True):
        expected = script.vectors(public_sample(example, ""))
        assert_same(got, expected)
        assert names(paper_reviews(example, dataset.population)) == expected.reviews
        seen += len(got.own)
    return seen


def test_planted_equals_the_script() -> None:
    assert compare(prepare(load_spec("planted")), every=1) > 100


@pytest.mark.slow
@pytest.mark.skipif(not IMDB, reason="DEP_BENCH_IMDB names no folder of movie reviews")
def test_movie_reviews_equal_the_script(tmp_path: Path) -> None:
    source = f'[source]\nkind = "parquet"\nreviews = "{IMDB}/reviews.parquet"\nitems = "{IMDB}/items.parquet"\n'
    (tmp_path / "imdb.toml").write_text(f'{source}[split]\non_empty_history = "keep"\n')
    dataset = prepare(load_spec(str(tmp_path / "imdb.toml")))
    assert len(dataset.test) == 776
    assert compare(dataset, every=8) > 2000
