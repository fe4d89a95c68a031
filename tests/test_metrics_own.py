"""The metrics that are no library's: trait recovery, copy rate, length ratio."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics.base import ScoreInput
from bench.metrics.copy_rate import CopyRate, CopyRateConfig
from bench.metrics.length_ratio import LengthRatio
from bench.metrics.trait_recovery import TraitRecovery

WORDS = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


def item(prediction: str, reference: str = "r", history: tuple[str, ...] = ()) -> ScoreInput:
    return ScoreInput("e", "u", prediction, reference, history)


class Loud:
    """A truth in which some users shout or greet."""

    def write(self, example_id: str, seed: int) -> str:
        return ""

    def traits(self, user_id: str) -> Mapping[str, str]:
        return {}

    def recovered(self, user_id: str, text: str) -> Mapping[str, bool]:
        return {"silent": {}, "loud": {"shouts": "!" in text, "greets": text.startswith("Hi")}}[user_id]


@pytest.mark.parametrize(("text", "share"), [("Hi there!", 1.0), ("Hi there", 0.5), ("So!", 0.5), ("", 0.0)])
def test_trait_recovery_is_the_share_of_traits(text: str, share: float) -> None:
    assert TraitRecovery().values([ScoreInput("e", "loud", text, "r", (), Loud())]) == [[share]]


def test_trait_recovery_is_undefined_without_traits() -> None:
    truths = [ScoreInput("a", "silent", "Hi!", "r", (), Loud()), ScoreInput("b", "loud", "Hi!", "r")]
    assert TraitRecovery().values(truths) == [None, None]
    assert not TraitRecovery().applicable(has_truth=False)


def test_trait_recovery_as_an_evaluate_module() -> None:
    result = TraitRecovery().compute(
        predictions=["Hi!", "Hi"], references=["", ""], user_ids=["loud", "loud"], truth=Loud()
    )
    assert result == {"trait_recovery": 0.75, "trait_recovery_failed": 0}


@given(WORDS, st.lists(WORDS, max_size=4), st.integers(1, 5))
def test_copy_rate_equals_a_slow_search(prediction: str, history: list[str], n: int) -> None:
    words = prediction.split()
    copied = [
        any(
            words[start : start + n] == earlier.split()[other : other + n]
            for earlier in history
            for other in range(len(earlier.split()) - n + 1)
        )
        for start in range(len(words) - n + 1)
    ]
    expected = [sum(copied) / len(copied)] if copied else None
    assert CopyRate(CopyRateConfig(n=n)).values([item(prediction, history=tuple(history))]) == [expected]


def test_copy_rate_ignores_case_and_punctuation_and_does_not_join_texts() -> None:
    assert CopyRate().values(
        [
            item("It was, truly: GREAT", history=("it was truly great!",)),
            item("one two three four", history=("one two", "three four")),
            item("one two three", history=("one two three",)),
            item("", history=("one",)),
            item("one two three four"),
        ]
    ) == [[1.0], [0.0], None, None, [0.0]]


def test_length_ratio() -> None:
    pairs = [("a b c", "a b"), ("", "a b"), ("a", " \n"), ("a\nb\tc  d", "x y z w")]
    values = LengthRatio().values([item(prediction, reference) for prediction, reference in pairs])
    assert values == [[1.5], [0.0], None, [1.0]]
    assert LengthRatio.higher_is_better is None
