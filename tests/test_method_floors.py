"""The floors: reviews that somebody wrote already, chosen as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from method_world import World, context, world
from rank_bm25 import BM25Okapi

from bench.encoders import HashEncoder
from bench.plan import asks_model
from bench.testing import check_method
from bench.types import Document, Example
from methods.copy_last import CopyLast
from methods.copy_nearest import CopyNearest, CopyNearestConfig
from methods.mean_peer import MeanPeer


@pytest.fixture
def small() -> World:
    return world(users=6, history=7)


@pytest.mark.parametrize("cls", [CopyLast, CopyNearest, MeanPeer])
def test_floors_hold_to_the_contract_and_ask_no_model(cls: type[CopyLast]) -> None:
    check_method(cls)
    assert not asks_model(cls())
    assert cls.about.stages == ()


def test_copy_last_is_the_latest_review_before_the_target(small: World) -> None:
    texts = CopyLast().answer(small.test.examples, context(small.population))
    for example, text in zip(small.test.examples, texts, strict=True):
        latest = max(example.history, key=lambda d: d.timestamp or 0)
        assert text == latest.text


@pytest.mark.parametrize("cls", [CopyLast, CopyNearest, MeanPeer])
def test_who_wrote_nothing_on_an_item_that_nobody_knows_gets_an_empty_text(cls: type[CopyLast], small: World) -> None:
    newcomer = replace(small.test.examples[0], history=(), item_id="unheard of")
    assert cls().answer([newcomer], context(small.population)) == [""]


def spoken(thing: Document | Example) -> str:
    return f"{thing.fields['title']} {thing.fields['item_description']}"


def test_copy_nearest_by_bm25_is_what_rank_bm25_ranks_first(small: World) -> None:
    texts = CopyNearest(CopyNearestConfig(retriever="bm25")).answer(small.test.examples, context(small.population))
    for example, text in zip(small.test.examples, texts, strict=True):
        scores = BM25Okapi([spoken(d).split() for d in example.history]).get_scores(spoken(example).split())
        assert text == max(zip(scores, range(len(scores)), example.history, strict=True))[2].text


def test_copy_nearest_by_the_encoder_is_the_largest_cosine(small: World) -> None:
    ctx = context(small.population)
    texts = CopyNearest().answer(small.test.examples, ctx)
    for example, text in zip(small.test.examples, texts, strict=True):
        query = HashEncoder(16).encode([spoken(example)])[0]
        cosines = [float(HashEncoder(16).encode([spoken(d)])[0] @ query) for d in example.history]
        assert text == example.history[max(range(len(cosines)), key=lambda i: (cosines[i], i))].text


def test_mean_peer_is_the_most_usual_review_of_the_item_by_others_before_the_target(small: World) -> None:
    """The test's own search: all documents, filtered and measured one by one."""
    texts = MeanPeer().answer(small.test.examples, context(small.population))
    found = 0
    for example, text in zip(small.test.examples, texts, strict=True):
        peers = [
            d
            for d in small.population.documents()
            if d.item_id == example.item_id
            and d.user_id != example.user_id
            and (d.timestamp or 0) < (example.timestamp or 0)
        ]
        if not peers:
            assert text == example.history[-1].text
            continue
        found += 1
        vectors = [HashEncoder(16).encode([d.text])[0].astype(np.float64) for d in peers]
        mean = sum(vectors) / len(vectors)
        apart = [float(np.linalg.norm(v - mean)) for v in vectors]
        assert text in {d.text for d, n in zip(peers, apart, strict=True) if n < min(apart) + 1e-5}
    assert found
