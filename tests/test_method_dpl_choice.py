"""dpl chooses the reviews and peers that its definition names: against a slow script, rank_bm25 and scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
from dpl_world import ENCODER, Quick, around, asked, chosen, planted, small
from hypothesis import given, settings
from hypothesis import strategies as st
from method_world import World, document, example
from rank_bm25 import BM25Okapi
from slow_dpl import Vector, naive_best, naive_contrasts, naive_others, words
from threadpoolctl import threadpool_info, threadpool_limits

from bench.data.population import Population
from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.retrieval import retrieve
from bench.types import Example
from methods.dpl import DplConfig, contrasts, representatives

__all__ = ["planted", "small"]

FOLDER = os.environ.get("DEP_BENCH_IMDB")


def embed(text: str) -> Vector:
    return ENCODER.encode([text])[0].astype(np.float64)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"k": 3, "clusters": 3, "cluster_seed": 7},
        {"k": 50, "min_peers": 9, "clusters": 8},
        {"min_peers": 1, "clusters": 2},
    ],
)
def test_planted_reviews_and_peers_are_those_of_the_slow_script(planted: Dataset, config: dict[str, int]) -> None:
    ctx = around(planted.population)
    naive = {{"cluster_seed": "seed"}.get(key, key): value for key, value in config.items()}
    documents = planted.population.documents()
    # Peers of early targets wrote later, too.
    examples = [*planted.test.examples, *planted.train.examples[::8]]
    wanted = [naive_contrasts(one, documents, embed, **naive) for one in examples]
    assert chosen(examples, ctx, **config) == wanted
    assert sum(len(others) for several in wanted for _, others in several) > len(examples)


def test_the_defaults_make_a_difference_on_planted_reviews(planted: Dataset) -> None:
    """The comparison above could not tell a wrong default if the right one chose the same."""
    ctx = around(planted.population)
    right = chosen(planted.test.examples, ctx)
    for other in ({"cluster_seed": 43}, {"clusters": 4}, {"min_peers": 10}, {"k": 7}):
        assert chosen(planted.test.examples, ctx, **other) != right


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="DEP_BENCH_IMDB names no folder of movie reviews")
def test_movie_reviews_and_peers_are_those_of_the_slow_script(tmp_path: Path) -> None:
    source = f'[source]\nkind = "parquet"\nreviews = "{FOLDER}/reviews.parquet"\nitems = "{FOLDER}/items.parquet"\n'
    (tmp_path / "movies.toml").write_text(f"{source}[split]\n")
    dataset = prepare(load_spec(str(tmp_path / "movies.toml")))
    examples, documents = dataset.test.examples[:20], dataset.population.documents()
    wanted = [naive_contrasts(one, documents, embed) for one in examples]
    assert chosen(examples, around(dataset.population)) == wanted
    assert min(len(several) for several in wanted) >= 1
    assert {len(others) for several in wanted for _, others in several} == {4}


def test_both_retrievals_rank_as_rank_bm25(planted: Dataset) -> None:
    """The second one among reviews with enough peers alone: rarity of words is counted there."""
    ctx = around(planted.population)
    shown = retrieve(planted.test.examples, 5, "bm25", ctx)
    compared = chosen(planted.test.examples, ctx, k=5, min_peers=10)
    narrower = 0
    for one, past, several in zip(planted.test.examples, shown, compared, strict=True):
        rich = [d for d in one.history if len(planted.population.peers(d, one.user_id, one.timestamp)) >= 10]
        for pool, ids in ((list(one.history), [d.id for d in past]), (rich, [own for own, _ in several])):
            assert ids == [d.id for d in naive_best(one, pool, 5)]
            if not pool:
                continue
            library = BM25Okapi([words(d) for d in pool])
            scores = dict(zip([d.id for d in pool], library.get_scores(words(one)), strict=True))
            top = library.get_top_n(words(one), pool, n=5)
            assert sorted(scores[i] for i in ids) == sorted(scores[d.id] for d in top)
        narrower += len(rich) < len(one.history)
    assert narrower > len(shown) / 2


def test_peers_are_others_before_the_target(small: World) -> None:
    ctx = around(small.population)
    by_id = {d.id: d for d in small.population.documents()}
    for one, several in zip(small.test.examples, chosen(small.test.examples, ctx, clusters=9), strict=True):
        for own, others in several:
            assert own in {d.id for d in one.history}
            for other in others:
                peer = by_id[other]
                assert peer.user_id != one.user_id
                assert peer.item_id == own.rpartition("/")[2]
                assert (peer.timestamp or 0) < (one.timestamp or 0)


def test_a_user_is_compared_alike_in_any_company(planted: Dataset) -> None:
    ctx, examples = around(planted.population), planted.test.examples[:8]
    together = chosen(examples, ctx)
    assert chosen(examples[::-1], ctx)[::-1] == together
    assert [chosen([one], ctx)[0] for one in examples] == together


def test_the_runs_seed_does_not_move_clusters(planted: Dataset) -> None:
    examples = planted.test.examples[:8]
    runs = [chosen(examples, around(planted.population, seed=seed)) for seed in (0, 1)]
    assert runs[0] == runs[1]


def test_every_text_is_embedded_once_in_one_call(planted: Dataset) -> None:
    calls: list[list[str]] = []

    class Counting(Quick):
        def encode(self, texts: Sequence[str], progress: bool = False) -> Any:
            calls.append(list(texts))
            return super().encode(texts, progress)

    ctx = around(planted.population, encoder_or_none=Counting())
    found = contrasts(planted.test.examples[:6], ctx, DplConfig())
    assert len(calls) == 1
    assert len(set(calls[0])) == len(calls[0])
    for one, several in zip(planted.test.examples[:6], found, strict=True):
        for contrast in several:
            peers = planted.population.peers(contrast.own, one.user_id, one.timestamp)
            assert {contrast.own.text, *(peer.text for peer in peers)} <= set(calls[0])
    assert set(ctx.meter.seconds) == {"embed"}


def test_clusters_are_made_on_one_thread_whatever_is_allowed(planted: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    fit = sklearn.cluster.KMeans.fit

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(pool["num_threads"] for pool in threadpool_info())
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(sklearn.cluster.KMeans, "fit", watched)
    with threadpool_limits(2):
        chosen(planted.test.examples[:2], around(planted.population))
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
    assert seen == {1}


points = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-3, 3)).map(lambda p: (p[0] / 4, p[1] / 4)), min_size=1, max_size=14
)


@settings(deadline=None, max_examples=60)
@given(points, st.integers(2, 6), st.integers(0, 3))
def test_each_foreign_cluster_lends_its_nearest_peer(rows: list[tuple[float, float]], clusters: int, seed: int) -> None:
    """Grids of few points: equal texts, equal distances and fewer texts than clusters are common."""
    group = [document(user, 0, user) for user in range(len(rows))]
    vectors = {d.text: np.array(row) for d, row in zip(group, rows, strict=True)}
    wanted = naive_others(group[0], group[1:], vectors.__getitem__, clusters, seed)
    found = representatives(np.array(rows), clusters, seed)
    assert [group[i].id for i in found] == [d.id for d in wanted]
    assert found == sorted(set(found))
    assert all(rows[i] != rows[0] for i in found)
    assert len(found) == min(clusters, len(set(rows))) - 1


def test_of_two_in_a_cluster_the_earlier_one_is_taken() -> None:
    """They are equally far from their centre, but for rounding: a third is no exact number."""
    for step in np.linspace(0.01, 0.1, 50):
        pair = np.array([[0.0, 0.0], [5 + step / 3, 1 / 3], [5 - step / 7, 1 / 3 + step]])
        assert representatives(pair, 2, 42) == [1]
        assert representatives(pair[[0, 2, 1]], 2, 42) == [1]


def one_item(texts: Sequence[str], own: str) -> tuple[Example, Population]:
    """A target after one own review of an item that others wrote `texts` about."""
    mine = replace(document(0, 0, 50), text=own)
    others = [replace(document(user, 0, user), text=text) for user, text in enumerate(texts, 1)]
    return example(0, 1, 100, [mine]), Population([mine, *others])


@pytest.mark.filterwarnings("error")  # scikit-learn's, about more clusters than there are points
@pytest.mark.parametrize(
    ("texts", "own", "wanted"),
    [
        (["same"] * 6, "mine", [["u1/i0"]]),
        (["mine"] * 6, "mine", []),
        (["mine", "same", "mine", "same", "third"], "mine", [["u2/i0", "u5/i0"]]),
        (["a b", "c d", "e f"], "mine", []),
        (["a b", "c d", "e f", "g h"], "mine", [["u1/i0", "u2/i0", "u3/i0", "u4/i0"]]),
        (["", "", "a", "b"], "", [["u3/i0", "u4/i0"]]),
    ],
)
def test_equal_texts_lend_the_earliest_of_them(texts: list[str], own: str, wanted: list[list[str]]) -> None:
    one, population = one_item(texts, own)
    assert [others for _, others in chosen([one], around(population))[0]] == wanted
    requests, stages = asked([one], around(population))
    assert len(stages.asked["difference"]) == len(wanted)
    assert len(requests) == len(stages.asked["summary"]) == 1
