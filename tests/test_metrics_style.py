"""Style features against figures worked out by hand, and the style distance against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from personal_world import inputs_of, world_of

from bench.metrics.base import ScoreInput
from bench.metrics.style import FUNCTION_WORDS, GROUPS, MARKS, features, flesch, sentence_count, syllables, words_of
from bench.metrics.style_distance import StyleDistance, StyleDistanceConfig

SIZE = sum(GROUPS.values())
LAST = SIZE - 5
"""Where capitals stand; words, words a sentence, letters a word and Flesch follow."""


def test_a_sentence_by_hand() -> None:
    found = features("The cat sat on the mat.")
    rates = dict(zip(FUNCTION_WORDS, found, strict=False))
    assert rates["the"] == pytest.approx(2 / 6)
    assert rates["on"] == pytest.approx(1 / 6)
    assert sum(rates.values()) == pytest.approx(3 / 6)
    marks = dict(zip(MARKS, found[len(FUNCTION_WORDS) :], strict=False))
    assert marks == {mark: pytest.approx(1 / 6 if mark == "." else 0) for mark in MARKS}
    # 17 letters in six words of a syllable each; 206.835 - 1.015 * 6 - 84.6 = 116.145.
    assert found[LAST:] == pytest.approx([1 / 17, np.log(6), np.log(6), 17 / 6, 116.145])


def test_there_are_seventy_function_words_and_each_once() -> None:
    assert len(FUNCTION_WORDS) == len(set(FUNCTION_WORDS)) == 70


@pytest.mark.parametrize(
    ("word", "count"),
    [
        *(("a", 1), ("the", 1), ("cat", 1), ("home", 1), ("table", 2), ("movie", 2), ("walked", 1), ("wanted", 2)),
        *(("beautiful", 3), ("boxes", 2), ("makes", 1), ("readability", 5), ("rhythm", 1), ("don't", 1), ("10", 1)),
    ],
)
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 1), ("no end", 1), ("One. Two! Three?", 3), ("Wait... what?!", 2), ("3.5 stars.", 1), ('"Go." He went.', 2)],
)
def test_sentences(text: str, count: int) -> None:
    assert sentence_count(text) == count


def test_flesch_of_his_own_scale() -> None:
    # Flesch's two ends: about 100 for one syllable a word and short sentences, 0 for 38 words and 2.0 syllables.
    assert flesch(12, 1, 12) == pytest.approx(110.055)
    assert flesch(100, 4, 150) == pytest.approx(206.835 - 1.015 * 25 - 84.6 * 1.5)


def test_typographic_marks_count_as_plain_ones() -> None:
    assert features("“It’s fine” – well… yes") == features('"It\'s fine" - well... yes')
    assert words_of("don't stop") == ["don't", "stop"]


@given(st.text(max_size=80))
def test_features_of_any_text_are_finite(text: str) -> None:
    found = features(text)
    assert len(found) == SIZE
    assert np.isfinite(found).all()


TOLD = {
    "ann": [("a", "WOW! It is great! I love it!"), ("b", "So good! Wow! You will see!"), ("t", "Great! I see! Wow!")],
    "bob": [
        ("a", "the whole of this, in my view, is rather long; it may, however, be what some of us would want"),
        ("b", "in truth there is, as ever, more to be said of it; but who would say so"),
        ("t", "there may, in fact, be some who would want more of this; it is, in my view, their affair"),
    ],
    "cat": [("a", "Works (mostly). No complaints."), ("b", "Bought two (cheap). Fine."), ("t", "Fine (again). Works.")],
}


def slow(inputs: list[ScoreInput]) -> list[float]:
    from scipy.spatial.distance import cosine
    from sklearn.preprocessing import StandardScaler

    rows = {item.user_id: np.array([features(text) for text in item.history]) for item in inputs}
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in rows.values()])
    scaler = StandardScaler().fit(np.concatenate(list(rows.values())), sample_weight=weights)
    moving = np.concatenate(list(rows.values())).std(axis=0) > 1e-9
    groups = np.repeat(np.arange(len(GROUPS)), list(GROUPS.values()))
    sizes = np.array([moving[groups == group].sum() for group in range(len(GROUPS))])
    scale = np.where(moving, 1 / np.sqrt(np.maximum(1, sizes))[groups], 0)
    found = []
    for item in inputs:
        own = scaler.transform(rows[item.user_id]).mean(axis=0) * scale
        text = scaler.transform([features(str(item.prediction))])[0] * scale
        found.append(float(cosine(own, text)))
    return found


def test_the_distance_equals_a_slow_reference() -> None:
    inputs = inputs_of(world_of(TOLD))
    assert StyleDistance().values(inputs) == [[pytest.approx(value)] for value in slow(inputs)]


def test_the_own_user_is_nearest() -> None:
    world = world_of(TOLD)
    own = StyleDistance().values(inputs_of(world))
    for user in TOLD:
        others = StyleDistance().values(inputs_of(world, dict.fromkeys(TOLD, TOLD[user][-1][1])))
        place = list(TOLD).index(user)
        assert own[place] is not None
        assert all(value is not None and own[place][0] < value[0] for i, value in enumerate(others) if i != place)  # type: ignore[index]


def test_the_distance_does_not_depend_on_other_texts() -> None:
    world = world_of(TOLD)
    whole = StyleDistance().values(inputs_of(world))
    assert StyleDistance().values(inputs_of(world, {"bob": None})) == [whole[0], None, whole[2]]
    assert StyleDistance().values(inputs_of(world)[1:2]) == whole[1:2]


def test_a_copied_text_is_not_near_to_itself() -> None:
    first, second = TOLD["ann"][0][1], TOLD["ann"][1][1]
    inputs = inputs_of(world_of(TOLD), {"ann": second})
    left = [("a", first), ("t", "x")]
    without = inputs_of(world_of({**TOLD, "ann": left}), {"ann": second})
    # The scale is of all users' texts either way; the profile is what is left of the user's own.
    metric = StyleDistance()
    metric.observe(inputs)
    assert metric._vector(inputs[0]) == pytest.approx(metric._vector(without[0]))


def test_one_user_or_no_history_gives_no_distance() -> None:
    (alone,) = inputs_of(world_of({"ann": TOLD["ann"]}))
    assert StyleDistance().values([alone]) == [None]
    fresh = inputs_of(world_of({**TOLD, "new": [("z", "text")]}))
    assert [value is None for value in StyleDistance().values(fresh)] == [False, False, False, True]


def test_signature_and_direction() -> None:
    metric = StyleDistance(StyleDistanceConfig(n_history=4))
    assert metric.signature().startswith("style_distance|n_history:4|copies:out|")
    assert metric.higher_is_better is False
    assert metric.chance() == 1.0
