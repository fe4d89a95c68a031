"""Author attribution: candidates, profiles, ranks, and both spaces against slow references."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from personal_world import inputs_of, world_of

from bench.config import build
from bench.encoders import HashEncoder
from bench.errors import UsageError
from bench.metrics.attribution import nearness, place
from bench.metrics.author_encoder import AuthorEncoder, AuthorEncoderConfig, AuthorEncoderRank
from bench.metrics.author_ngram import AuthorNgram, AuthorNgramConfig, AuthorNgramRank
from bench.metrics.base import ScoreInput
from bench.metrics.users import Others, Past, is_copy, own_past, profile

LOUD, SOFT = "WOW!! This is GREAT!!", "well, it is quite nice, i think..."
TOLD = {
    "ann": [("a", LOUD + " The lamp."), ("b", LOUD + " A kettle."), ("t", "GREAT!! WOW!! This one!!")],
    "bob": [("a", SOFT + " that lamp"), ("c", SOFT + " this cup"), ("t", "i think it is quite fine, well...")],
    "cat": [("b", "Item works. No complaints."), ("t", "No complaints here."), ("d", "Works. As described.")],
}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_ties_are_broken_at_random_on_the_mean(near: list[int]) -> None:
    orders = itertools.permutations(range(len(near)))
    ranks = [sorted(order, key=lambda i: -near[i]).index(0) + 1 for order in orders]
    first, rank = place([float(value) for value in near])
    assert rank == pytest.approx(sum(ranks) / len(ranks))
    assert first == pytest.approx(sum(r == 1 for r in ranks) / len(ranks))


def test_nearness_is_the_cosine_with_the_mean() -> None:
    from scipy.sparse import csr_matrix
    from sklearn.metrics.pairwise import cosine_similarity

    rows = np.random.default_rng(0).random((9, 5))
    rows[8] = 0
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    candidates = [[1, 2, 3], [4], [5, 6, 7, 7], [8]]
    expected = [cosine_similarity(rows[:1], rows[one].mean(axis=0, keepdims=True))[0, 0] for one in candidates]
    assert nearness(rows, 0, candidates) == pytest.approx(expected)
    assert nearness(csr_matrix(rows), 0, candidates) == pytest.approx(expected)


def test_a_text_is_given_to_the_user_who_writes_like_it() -> None:
    inputs = inputs_of(world_of(TOLD))
    assert AuthorNgram().values(inputs) == [[1.0], [1.0], [1.0]]
    assert AuthorNgramRank().values(inputs) == [[1.0], [1.0], [1.0]]
    swapped = inputs_of(world_of(TOLD), {"ann": TOLD["bob"][-1][1], "bob": TOLD["ann"][-1][1]})
    assert AuthorNgram().values(swapped)[:2] == [[0.0], [0.0]]
    assert all(rank[0] > 1 for rank in AuthorNgramRank().values(swapped)[:2] if rank)


def slow_ngram_ranks(inputs: list[ScoreInput], shortest: int, longest: int) -> list[float]:
    """TF-IDF with log(tf) + 1 and smooth idf, in dictionaries."""
    pasts = {item.user_id: [past.text for past in own_past(item)] for item in inputs}
    corpus = sorted({text for texts in pasts.values() for text in texts})

    def grams(text: str) -> Counter[str]:
        flat = " ".join(text.split(" "))
        return Counter(flat[i : i + n] for n in range(shortest, longest + 1) for i in range(len(flat) - n + 1))

    frequency = Counter(gram for text in corpus for gram in set(grams(text)))

    def vector(text: str) -> dict[str, float]:
        raw = {
            gram: (1 + math.log(count)) * (1 + math.log((1 + len(corpus)) / (1 + frequency[gram])))
            for gram, count in grams(text).items()
            if gram in frequency
        }
        length = math.sqrt(sum(value**2 for value in raw.values()))
        return {gram: value / length for gram, value in raw.items()}

    def cosine(left: dict[str, float], right: dict[str, float]) -> float:
        length = math.sqrt(sum(v**2 for v in left.values()) * sum(v**2 for v in right.values()))
        return sum(value * right.get(gram, 0.0) for gram, value in left.items()) / length if length else 0.0

    ranks = []
    for item in inputs:
        near = {}
        for user, texts in pasts.items():
            mean: Counter[str] = Counter()
            for text in texts:
                mean.update({gram: value / len(texts) for gram, value in vector(text).items()})  # type: ignore[dict-item]
            near[user] = cosine(vector(str(item.prediction)), dict(mean))
        others = [value for user, value in near.items() if user != item.user_id]
        own = near[item.user_id]
        ranks.append(1 + sum(o > own + 1e-6 for o in others) + sum(abs(o - own) <= 1e-6 for o in others) / 2)
    return ranks


WORDS = st.lists(st.sampled_from(["Tea", "cup", "ok!", "hm"]), min_size=2, max_size=3).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=2, unique=True), min_size=2, max_size=4), st.data())
def test_ngram_ranks_equal_a_slow_reference(pasts: list[list[str]], data: st.DataObject) -> None:
    inputs = [ScoreInput(f"e{n}", f"u{n}", data.draw(WORDS) + " zz", "", tuple(texts)) for n, texts in enumerate(pasts)]
    ranks = AuthorNgramRank(AuthorNgramConfig(shortest=2, longest=3, features=10_000)).values(inputs)
    expected = slow_ngram_ranks(inputs, 2, 3)
    assert ranks == [[pytest.approx(rank)] for rank in expected]


def hashed(config: AuthorEncoderConfig | None = None) -> AuthorEncoderRank:
    metric = AuthorEncoderRank(config)
    metric.encoder = HashEncoder()
    return metric


def test_encoder_ranks_equal_a_slow_reference() -> None:
    inputs = inputs_of(world_of(TOLD))
    encoder = HashEncoder()
    expected = []
    for item in inputs:
        vector = encoder.encode([str(item.prediction)])[0]
        near = {}
        for other in inputs:
            about = item.example.item_id if item.example else None
            texts = [past.text for past in own_past(other) if past.item_id != about]
            mean = encoder.encode(texts).mean(axis=0)
            near[other.user_id] = float(mean @ vector / np.linalg.norm(mean))
        expected.append(1 + sum(value > near[item.user_id] for value in near.values()))
    assert hashed().values(inputs) == [[float(rank)] for rank in expected]


def test_rivals_are_the_same_whatever_else_is_scored() -> None:
    told = {f"u{n}": [(f"i{n % 3}", f"text {n}"), (f"j{n}", f"more {n}"), ("i0", f"last {n}")] for n in range(9)}
    world = world_of(told)
    inputs = inputs_of(world)
    whole, part = Others.around(inputs), Others.around(inputs[4:1:-1])
    for item in inputs[2:5]:
        assert whole.rivals(item, 4, True) == part.rivals(item, 4, True)
        rivals = whole.rivals(item, 8, True)
        assert item.user_id not in rivals
        assert len(rivals) == 8
        shares = [user in ("u0", "u3", "u6") for user in rivals]
        assert shares == sorted(shares, reverse=True), "those who wrote about the item come first"
    assert len({tuple(whole.rivals(item, 3, False)) for item in inputs}) > 1


def test_ranks_do_not_depend_on_which_texts_failed() -> None:
    world = world_of(TOLD)
    whole = AuthorNgramRank().values(inputs_of(world))
    failed = AuthorNgramRank().values(inputs_of(world, {"bob": None}))
    assert failed == [whole[0], None, whole[2]]
    assert AuthorNgramRank().values(inputs_of(world)[:1]) == whole[:1]


def test_a_profile_leaves_out_the_item_and_what_was_copied() -> None:
    past = [Past("one two three four five", "a"), Past("six seven eight nine ten", "b"), Past("the last one", "c")]
    world = world_of({"ann": [("x", "x"), ("b", "target")]})
    (item,) = inputs_of(world, {"ann": "well: One two three four five!"})
    assert profile(past, 8, item) == ["the last one"]
    (item,) = inputs_of(world, {"ann": "new words alone"})
    assert profile(past, 8, item) == ["the last one", "one two three four five"]
    assert profile(past, 1, item) == ["the last one"]


def test_copies() -> None:
    text = "a b c d e f g h i j"
    assert is_copy(text, text.upper())
    assert is_copy("a b c d e", text)  # a piece
    assert is_copy(text, "a b c d e f g x x x")  # four runs of seven
    assert not is_copy(text, "a b c d e x x x x x")  # two runs of seven
    assert is_copy("so nice", "so  nice")
    assert not is_copy("", text)


def test_without_history_or_others_there_is_no_rank() -> None:
    alone = [ScoreInput("e", "ann", "text", "r", ("past",))]
    metric = AuthorNgram()
    assert metric.values(alone) == [None]
    assert metric.chance() is None
    inputs = [*alone, ScoreInput("f", "bob", "text", "r", ("other",)), ScoreInput("g", "new", "text", "r")]
    assert [value is None for value in metric.values(inputs)] == [False, False, True]
    assert metric.chance() == 0.5


@pytest.mark.parametrize("others", [1, 2, 19])
def test_chance_is_what_random_texts_score(others: int) -> None:
    told = {f"u{n}": [("a", f"past {n} of this"), (f"t{n}", "x")] for n in range(6)}
    inputs = inputs_of(world_of(told))
    for metric, expected in (
        (AuthorNgram(AuthorNgramConfig(others=others)), 1 / (1 + min(5, others))),
        (AuthorNgramRank(AuthorNgramConfig(others=others)), (2 + min(5, others)) / 2),
    ):
        # A text that shares nothing with anybody is as near to all: the expected value under ties.
        values = metric.values([replace(item, prediction="###") for item in inputs])
        assert [value for value in values if value] == [[pytest.approx(expected)]] * 6
        assert metric.chance() == pytest.approx(expected)


def test_texts_too_short_for_an_ngram_are_near_to_nobody() -> None:
    inputs = [ScoreInput("e", "ann", "long enough", "r", ("a",)), ScoreInput("f", "bob", "long enough", "r", ("b",))]
    assert AuthorNgram().values(inputs) == [[0.5], [0.5]]
    assert AuthorNgram().values([ScoreInput("e", "ann", "text", "r"), ScoreInput("f", "bob", "", "r")]) == [None, None]


@pytest.mark.parametrize("knobs", [{"shortest": 4, "longest": 3}, {"shortest": 6}])
def test_ngrams_that_end_before_they_begin_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="longest"):
        build(AuthorNgramConfig, knobs, "author_ngram")


def test_as_an_evaluate_module() -> None:
    told = [[text for _, text in TOLD[user]] for user in ("ann", "bob")]
    result = AuthorNgram().compute(
        predictions=[texts[-1] for texts in told],
        references=["", ""],
        histories=[texts[:-1] for texts in told],
        user_ids=["ann", "bob"],
    )
    assert result == {"author_ngram": 1.0, "author_ngram_failed": 0}


def test_signatures_name_what_can_change_a_value() -> None:
    signature = AuthorNgram().signature()
    assert signature.startswith("author_ngram|others:19|rivals:item|n_history:8|")
    assert "scikit-learn:" in signature
    metric = AuthorEncoder(AuthorEncoderConfig(others=3))
    metric.encoder = HashEncoder()
    assert (
        metric.signature()
        == "author_encoder|others:3|rivals:item|n_history:8|model:minilm|copies:out|name:hash|revision:1"
    )
