"""Pairs a second of each metric on texts of 200 words: `pytest tests/benchmarks/test_metrics.py --benchmark-only`."""

from __future__ import annotations

import itertools
import random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.metrics.base import Metric, ScoreInput
from bench.metrics.bertscore import BertScore
from bench.metrics.bleu import Bleu
from bench.metrics.copy_rate import CopyRate
from bench.metrics.meteor import Meteor
from bench.metrics.rouge import Rouge1, RougeL

PAIRS = 64
COMMON = ("the", "a", "of", "and", "it", "was", "is", "but", "very", "this", "that", "with", "for", "on", "not", "so")
STEMS = (
    "love",
    "hear",
    "album",
    "track",
    "sing",
    "rock",
    "listen",
    "record",
    "great",
    "sound",
    "voice",
    "play",
    "drum",
)
ENDINGS = ("", "s", "ed", "ing", "er", "able", "ful", "ness", "ly", "less", "ment", "y", "ish", "ist", "ism", "ity")


def make_inputs(seed: int) -> list[ScoreInput]:
    rng = random.Random(seed)

    def word() -> str:
        return rng.choice(COMMON) if rng.random() < 0.45 else rng.choice(STEMS) + rng.choice(ENDINGS)

    def text() -> str:
        return " ".join(word() for _ in range(200)) + "."

    return [ScoreInput(str(i), "u", text(), text(), tuple(text() for _ in range(8))) for i in range(PAIRS)]


def run(benchmark: BenchmarkFixture, metric: Metric, rounds: int = 5) -> None:
    """Other texts in every round, as the libraries remember those they have seen."""
    seeds = itertools.count()
    metric.preflight()
    metric.values(make_inputs(next(seeds))[:1])  # loads what the metric needs
    values = benchmark.pedantic(
        metric.values, setup=lambda: ((make_inputs(next(seeds)),), {}), rounds=rounds, iterations=1
    )
    assert None not in values
    benchmark.extra_info["pairs_per_second"] = round(PAIRS / benchmark.stats.stats.median, 1)


@pytest.mark.parametrize("cls", [Rouge1, RougeL, Bleu, CopyRate])
def test_speed(benchmark: BenchmarkFixture, cls: type[Metric]) -> None:
    run(benchmark, cls())


@pytest.mark.weights
@pytest.mark.parametrize("cls", [Meteor, BertScore])
def test_speed_with_weights(benchmark: BenchmarkFixture, cls: type[Metric]) -> None:
    run(benchmark, cls(), rounds=3)
