"""Distance from peers, and how varied texts are, against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from personal_world import document, inputs_of, world_of

from bench.data.population import Population
from bench.encoders import HashEncoder
from bench.metrics.base import Metric, ScoreInput, World
from bench.metrics.distinct import Distinct1, Distinct1Text, Distinct2, Distinct2Text
from bench.metrics.peer_difference import PeerDifference, PeerDifferenceConfig
from bench.stats import REDUCERS
from bench.types import Example, LabeledSplit

PEERS = ["it boils fast", "fast and loud", "boils and boils"]


def asked(prediction: str, against: str = "reference", max_peers: int = 32) -> tuple[PeerDifference, ScoreInput]:
    """A target on item t, written about by three peers before it and by one after it, and a past text with a peer."""
    past = (document("ann", "lone", "nobody else", 1), document("ann", "p", "my own words", 2))
    target = Example("ann/t", "ann", {}, past, "t", 50)
    others = [document(f"u{n}", "t", text, 10 + n) for n, text in enumerate(PEERS)]
    later = [document("late", "t", "much later", 50), document("q", "p", "other words there", 3)]
    world = World(LabeledSplit((target,), {"ann/t": "whistles softly"}), Population([*past, *others, *later]))
    metric = PeerDifference(PeerDifferenceConfig(against=against, max_peers=max_peers))  # type: ignore[arg-type]
    metric.encoder = HashEncoder()
    return metric, ScoreInput("ann/t", "ann", prediction, "whistles softly", tuple(d.text for d in past), None, world)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / math.sqrt(left @ left) / math.sqrt(right @ right))


@pytest.mark.parametrize("max_peers", [32, 2])
def test_the_difference_is_to_the_mean_of_earlier_peers(max_peers: int) -> None:
    encode = HashEncoder().encode
    metric, item = asked("whistles at times", max_peers=max_peers)
    text, reference = encode(["whistles at times", "whistles softly"])
    crowd = encode(PEERS[-max_peers:]).mean(axis=0)
    assert metric.values([item]) == [[pytest.approx(cosine(text - crowd, reference - crowd), abs=1e-6)]]


def test_against_history_it_is_how_the_user_differs_elsewhere() -> None:
    encode = HashEncoder().encode
    metric, item = asked("whistles at times", "history")
    text, own, other = encode(["whistles at times", "my own words", "other words there"])
    crowd = encode(PEERS).mean(axis=0)
    assert metric.values([item]) == [[pytest.approx(cosine(text - crowd, own - other), abs=1e-6)]]


def test_the_reference_differs_as_itself_and_a_peer_does_not() -> None:
    assert asked("whistles softly")[0].values([asked("whistles softly")[1]]) == [[pytest.approx(1.0, abs=1e-6)]]
    metric, item = asked(PEERS[0])
    ((value,),) = metric.values([item])  # type: ignore[misc]
    assert value < 0.5


def test_without_peers_it_is_not_defined() -> None:
    metric = PeerDifference()
    metric.encoder = HashEncoder()
    lone = inputs_of(world_of({"ann": [("a", "x y"), ("t", "z")], "bob": [("b", "x"), ("c", "z")]}))
    assert metric.values(lone) == [None, None]
    assert metric.values([ScoreInput("e", "u", "text", "reference")]) == [None]
    history, item = asked("my own words", "history")  # a copy of the only past text that has peers
    assert history.values([item]) == [None]


def test_signature_names_the_encoder() -> None:
    metric, _ = asked("x")
    assert metric.signature() == (
        "peer_difference|against:reference|max_peers:32|n_history:8|model:minilm|weights:uniform|name:hash|revision:1"
    )


TEXTS = st.lists(st.lists(st.sampled_from("abAB"), max_size=6).map(" ".join), min_size=1, max_size=6)


@given(TEXTS)
def test_distinct_equals_sets(texts: list[str]) -> None:
    grams = [
        [tuple(text.lower().split()[i : i + n]) for n in (1, 2) for i in range(len(text.split()) - n + 1)]
        for text in texts
    ]
    inputs = [ScoreInput(str(i), "u", text, "") for i, text in enumerate(texts)]
    for n, together, alone in ((1, Distinct1(), Distinct1Text()), (2, Distinct2(), Distinct2Text())):
        own = [[gram for gram in one if len(gram) == n] for one in grams]
        flat = [gram for one in own for gram in one]
        sums = np.sum([value for value in together.values(inputs) if value], axis=0)
        if flat:
            expected = len(set(flat)) / len(flat)
            assert REDUCERS["ratio"](sums, np.float64(len(texts))) == pytest.approx(expected)  # type: ignore[arg-type]
        else:
            assert np.isnan(REDUCERS["ratio"](sums, np.float64(len(texts))))  # type: ignore[arg-type]
        assert alone.values(inputs) == [[pytest.approx(len(set(one)) / len(one))] if one else None for one in own]


@pytest.mark.parametrize(("metric", "expected"), [(Distinct1(), 3 / 5), (Distinct2(), 1.0), (Distinct1Text(), 5 / 6)])
def test_distinct_as_an_evaluate_module(metric: Metric, expected: float) -> None:
    result = metric.compute(predictions=["a b", "B b c"], references=["", ""])
    assert result[metric.name] == pytest.approx(expected)
