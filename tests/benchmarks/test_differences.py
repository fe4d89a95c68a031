"""DEP's differences, vectorised and as a loop over pairs, on the same reviews.

`pytest tests/benchmarks/test_differences.py --benchmark-only`: the table gives the ratio in brackets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from slow_differences import Vector, naive_difference

from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.config import DepConfig
from methods.dep.differences import ReviewVectors, review_vectors

SIZE, EACH = 384, 12
CONFIG = DepConfig()


@dataclass(frozen=True)
class Inputs:
    """Users with twelve reviews each, one example a user, vectors at hand."""

    world: list[Document]
    examples: list[Example]
    vectors: dict[str, npt.NDArray[np.float32]]

    @property
    def chosen(self) -> list[list[Document]]:
        return [list(e.history[::-1][: CONFIG.n_history]) for e in self.examples]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.stack([self.vectors[text] for text in texts])

    def embed(self, text: str) -> Vector:
        return self.vectors[text].astype(np.float64) if text else np.zeros(SIZE)

    def fast(self) -> list[ReviewVectors]:
        return review_vectors(self.examples, self.chosen, Population(self.world), CONFIG, self.encode)

    def slow(self) -> list[list[Vector | None]]:
        return [
            [naive_difference(example, review, self.world, CONFIG, self.embed) for review in chosen]
            for example, chosen in zip(self.examples, self.chosen, strict=True)
        ]

    @property
    def pairs(self) -> int:
        population = Population(self.world)
        return sum(
            len(population.peers(d, e.user_id, e.timestamp))
            for e, chosen in zip(self.examples, self.chosen, strict=True)
            for d in chosen
        )


def make(users: int) -> Inputs:
    """As many items as users and twelve reviews each, so that pairs grow as users do."""
    stream = random.Random(0)
    world = []
    for user in range(users):
        for item in stream.sample(range(users), EACH):
            text = f"{user} on {item}"
            world.append(Document(f"{user}/{item}", f"u{user}", text, {}, f"i{item}", stream.randrange(100)))
    normal = np.random.default_rng(0).standard_normal((len(world), SIZE)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    examples = []
    for user in range(users):
        own = sorted((d for d in world if d.user_id == f"u{user}"), key=lambda d: (d.timestamp or 0, d.item_id or ""))
        examples.append(Example(f"e{user}", f"u{user}", {}, tuple(own), "target", 101))
    return Inputs(world, examples, dict(zip((d.text for d in world), normal, strict=True)))


def run(benchmark: BenchmarkFixture, work: Callable[[], Any], rounds: int) -> None:
    benchmark.pedantic(work, rounds=rounds, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("way", ["vectorised", "loop"])
def test_vectorised_beside_the_loop(benchmark: BenchmarkFixture, way: str) -> None:
    benchmark.group = "differences of 60 users"
    inputs = make(60)
    benchmark.extra_info["pairs"] = inputs.pairs
    found = inputs.fast()
    for got, expected in zip(found, inputs.slow(), strict=True):
        for row, vector in enumerate(expected):
            np.testing.assert_allclose(got.difference[row], np.zeros(SIZE) if vector is None else vector, atol=1e-5)
    run(benchmark, inputs.fast if way == "vectorised" else inputs.slow, rounds=5)


@pytest.mark.parametrize("users", [250, 500, 1000, 2000])
def test_cost_grows_as_pairs_do(benchmark: BenchmarkFixture, users: int) -> None:
    benchmark.group = "differences by number of users"
    inputs = make(users)
    run(benchmark, inputs.fast, rounds=3)
    stats: Any = benchmark.stats
    benchmark.extra_info |= {"pairs": inputs.pairs, "pairs_per_second": round(inputs.pairs / stats.stats.median)}
