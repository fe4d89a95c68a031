"""Retrieval against formulas written out here: BM25, cosine, recency and chance."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.encoders import HashEncoder
from bench.engines.fake import FakeEngine
from bench.meter import Meter
from bench.method import Context
from bench.retrieval import bm25_scores, field_text, newest_first, retrieve
from bench.types import REVIEW_TASK, Document, Example, FieldValue, Sampling

WORDS = st.lists(st.sampled_from(["red", "green", "blue", "cup", "pot", "lid", "a", "b"]), max_size=8).map(" ".join)
KINDS: tuple[Any, ...] = ("bm25", "dense", "recency", "random")


def context(seed: int = 0) -> Context:
    nobody = cast(Any, None)
    return Context(REVIEW_TASK, nobody, FakeEngine(), seed, Sampling(), 4096, Meter(), HashEncoder())


def fields(title: str, description: str = "") -> dict[str, FieldValue]:
    return {"title": title, "item_description": description, "rating": 3.0, "item_title": "never looked at"}


def example(query: str, past: list[str], name: str = "e") -> Example:
    history = tuple(Document(f"{name}-{i}", "u", f"text {i}", fields(text), timestamp=i) for i, text in enumerate(past))
    return Example(name, "u", fields(query), history)


def okapi(query: str, documents: list[str], k1: float = 1.5, b: float = 0.75, epsilon: float = 0.25) -> list[float]:
    """Okapi BM25 from its formula; an inverse frequency below zero becomes a quarter of the mean one, as is usual."""
    bags = [Counter(d.split()) for d in documents]
    if not any(bags):
        return [0.0] * len(documents)
    mean = sum(sum(bag.values()) for bag in bags) / len(bags)
    appear = Counter(word for bag in bags for word in bag)
    idf = {w: math.log(len(bags) - n + 0.5) - math.log(n + 0.5) for w, n in appear.items()}
    floor = epsilon * sum(idf.values()) / len(idf)
    idf = {w: value if value >= 0 else floor for w, value in idf.items()}
    return [
        sum(
            idf.get(w, 0.0) * bag[w] * (k1 + 1) / (bag[w] + k1 * (1 - b + b * sum(bag.values()) / mean))
            for w in query.split()
        )
        for bag in bags
    ]


def best(history: tuple[Document, ...], scores: list[float], k: int) -> list[Document]:
    """The k best by repeated search, the newer of equals first; returned newest first."""
    left = list(range(len(history)))
    chosen = []
    for _ in range(min(k, len(history))):
        top = max(left, key=lambda i: (scores[i], i))
        chosen.append(top)
        left.remove(top)
    return [history[i] for i in sorted(chosen, reverse=True)]


@given(query=WORDS, documents=st.lists(WORDS, max_size=7))
def test_bm25_equals_its_formula(query: str, documents: list[str]) -> None:
    assert bm25_scores(query, documents) == pytest.approx(okapi(query, documents), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(query=WORDS, past=st.lists(WORDS, max_size=7), k=st.integers(0, 9))
def test_bm25_shows_the_best_newest_first(query: str, past: list[str], k: int) -> None:
    one = example(query, past)
    assert retrieve([one], k, "bm25", context()) == [best(one.history, bm25_scores(query, past), k)]


@settings(deadline=None)
@given(query=WORDS, past=st.lists(WORDS, max_size=7), k=st.integers(0, 9))
def test_dense_equals_brute_force_cosine(query: str, past: list[str], k: int) -> None:
    one = example(query, past)
    encoder = HashEncoder()

    def cosine(a: str, b: str) -> float:
        (x,), (y,) = encoder.encode([a]), encoder.encode([b])
        return float(x @ y / max(1e-12, np.linalg.norm(x) * np.linalg.norm(y)))

    scores = [round(cosine(query, text), 5) for text in past]
    shown = retrieve([one], k, "dense", context())[0]
    wanted = best(one.history, scores, k)
    assert len(shown) == len(wanted)
    # Cosines that are equal but for rounding may be ranked either way.
    assert sorted(scores[int(d.timestamp or 0)] for d in shown) == pytest.approx(
        sorted(scores[int(d.timestamp or 0)] for d in wanted), abs=2e-5
    )
    assert shown == sorted(shown, key=lambda d: -(d.timestamp or 0))


def test_equal_documents_are_settled_in_favour_of_the_newer() -> None:
    one = example("red cup", ["red cup", "blue pot", "red cup", "red cup", "lid"])
    for kind in ("bm25", "dense"):
        assert [d.timestamp for d in retrieve([one], 2, cast(Any, kind), context())[0]] == [3, 2]
    nothing = example("zebra", ["red cup", "blue pot", "lid"])
    assert [d.timestamp for d in retrieve([nothing], 2, "bm25", context())[0]] == [2, 1]


def test_only_the_tasks_query_and_document_fields_are_matched() -> None:
    history = (
        Document("a", "u", "red cup", fields("blue", "lid")),
        Document("b", "u", "text", fields("blue", "red cup")),
        Document("c", "u", "red cup", {**fields("pot"), "item_title": "red cup"}),
        Document("d", "u", "text", fields("pot", "pot")),
        Document("e", "u", "text", fields("green", "pot")),
    )
    one = Example("e", "u", fields("cup", "red"), history)
    for kind in ("bm25", "dense"):
        assert [d.id for d in retrieve([one], 1, cast(Any, kind), context())[0]] == ["b"]
    assert field_text({"a": 4.0, "b": None, "c": "x"}, ["c", "b", "a", "zz"]) == "x 4"


def test_recency_is_the_end_of_the_history() -> None:
    one = example("q", ["a", "b", "c", "d"])
    assert [d.timestamp for d in retrieve([one], 3, "recency", context())[0]] == [3, 2, 1]
    assert newest_first(one.history)[0].timestamp == 3


def test_chance_depends_on_seed_and_example_alone() -> None:
    examples = [example("q", [str(i) for i in range(20)], name=f"e{n}") for n in range(30)]
    ctx = context(seed=1)
    together = retrieve(examples, 5, "random", ctx)
    assert retrieve(examples[::-1], 5, "random", ctx)[::-1] == together
    assert [retrieve([one], 5, "random", ctx)[0] for one in examples] == together
    other_texts = [
        dataclasses.replace(
            e, fields=fields("other"), history=tuple(dataclasses.replace(d, text="") for d in e.history)
        )
        for e in examples
    ]
    chosen = [[d.id for d in shown] for shown in together]
    assert [[d.id for d in shown] for shown in retrieve(other_texts, 5, "random", ctx)] == chosen
    assert retrieve(examples, 5, "random", context(seed=2)) != together
    for shown in together:
        assert len({d.id for d in shown}) == 5
        assert shown == sorted(shown, key=lambda d: -(d.timestamp or 0))


def test_chance_is_fair() -> None:
    counts = np.zeros(10)
    for n in range(2000):
        for d in retrieve([example("q", ["x"] * 10, name=f"e{n}")], 3, "random", context())[0]:
            counts[d.timestamp or 0] += 1
    assert np.abs(counts - 600).max() < 5 * math.sqrt(600 * 0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_short_empty_and_wordless_histories(kind: Any) -> None:
    ctx = context()
    assert retrieve([], 3, kind, ctx) == []
    assert retrieve([example("red", [])], 3, kind, ctx) == [[]]
    short = example("red", ["red", "blue"])
    assert retrieve([short], 8, kind, ctx) == [newest_first(short.history)]
    assert retrieve([short], 0, kind, ctx) == [[]]
    wordless = example("", ["", "", ""])
    assert len(retrieve([wordless], 2, kind, ctx)[0]) == 2
    mixed = retrieve([example("red", []), short, wordless], 2, kind, ctx)
    assert [len(shown) for shown in mixed] == [0, 2, 2]


def test_dense_time_is_metered_as_embedding() -> None:
    ctx = context()
    retrieve([example("red", ["blue"])], 1, "dense", ctx)
    assert set(ctx.meter.seconds) == {"embed"}
