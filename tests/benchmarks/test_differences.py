"""DEP's differences, vectorised and as loops over pairs, on the same reviews, side by side.

Two loops: one shaped as the public code's is (torch, two tensors a pair, then a stack), and the leanest that numpy
allows. Both remember every mean.

`pytest tests/benchmarks/test_differences.py --benchmark-only -s`: the table gives ratios in brackets, and each test
prints its own. OMP_NUM_THREADS=2 gives torch two threads (the tests' own default is one). With DEP_BENCH_IMDB set to a
folder of movie reviews (see tests/test_data_imdb.py), the reviews are those of its test split; vectors are random unit
vectors, as speed does not depend on what they say.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.data.population import Population
from bench.data.spec import load_spec
from bench.data.split import prepare
from bench.types import Document, Example
from methods.dep.config import DepConfig
from methods.dep.differences import ReviewVectors, review_vectors

SIZE, EACH, PER_ITEM = 384, 12, 48
CONFIG = DepConfig()
IMDB = os.environ.get("DEP_BENCH_IMDB")
Floats = npt.NDArray[np.float32]


@dataclass
class Inputs:
    """Examples and a population, with vectors at hand."""

    examples: list[Example]
    population: Population
    vectors: dict[str, Floats]
    encoded: tuple[list[str], Floats] = field(default_factory=lambda: ([], np.zeros((0, SIZE), np.float32)))

    @property
    def chosen(self) -> list[list[Document]]:
        return [list(e.history[::-1][: CONFIG.n_history]) for e in self.examples]

    @property
    def pairs(self) -> int:
        reviews = [(d, e) for e, chosen in zip(self.examples, self.chosen, strict=True) for d in chosen]
        return sum(len(self.population.peers(d, e.user_id, e.timestamp)) for d, e in reviews)

    def encode(self, texts: Sequence[str]) -> Floats:
        """Gathered once: the loop, too, has its vectors at hand."""
        if self.encoded[0] != texts:
            self.encoded = list(texts), np.stack([self.vectors[text] for text in texts])
        return self.encoded[1]

    def fast(self) -> list[ReviewVectors]:
        return review_vectors(self.examples, self.chosen, self.population, CONFIG, self.encode)

    def public_loop(self) -> list[Floats]:
        """In float32, as the public code goes about it: for each review a list of pairs of tensors, stacked at last."""
        vectors = {text: torch.from_numpy(vector) for text, vector in self.vectors.items()}
        means: dict[tuple[str, int], torch.Tensor] = {}

        def mean(name: str, documents: Sequence[Document]) -> torch.Tensor:
            key = name, len(documents)
            if key not in means:
                means[key] = torch.stack([vectors[d.text] for d in documents]).mean(dim=0)
            return means[key]

        def difference(example: Example, review: Document, seen: dict[str, torch.Tensor]) -> Floats:
            own, user, pairs = vectors[review.text], mean(example.id, example.history), []
            for peer in self.population.peers(review, example.user_id, example.timestamp):
                if peer.user_id not in seen:
                    seen[peer.user_id] = mean(peer.user_id, self.population.history(peer.user_id, example.timestamp))
                pairs.append((user - seen[peer.user_id], own - vectors[peer.text]))
            if not pairs:
                return np.zeros(SIZE, np.float32)
            apart = torch.norm(torch.stack([gap for gap, _ in pairs]), dim=1)
            weights = torch.softmax(apart / CONFIG.tau, dim=0)
            weighted = [weights[number] * gap for number, (_, gap) in enumerate(pairs)]
            total: Floats = torch.stack(weighted).sum(dim=0).numpy()
            return total

        found = []
        for example, chosen in zip(self.examples, self.chosen, strict=True):
            seen: dict[str, torch.Tensor] = {}
            found += [difference(example, review, seen) for review in chosen]
        return found

    def loop(self) -> list[Floats]:
        """The definition in float32, one pair at a time, with every mean computed once and remembered."""
        means: dict[tuple[str, str, int], Floats] = {}

        def mean(kind: str, name: str, documents: Sequence[Document]) -> Floats:
            key = kind, name, len(documents)
            if key not in means:
                means[key] = np.mean([self.vectors[d.text] for d in documents], axis=0)
            return means[key]

        def difference(example: Example, review: Document, seen: dict[str, Floats]) -> Floats:
            own, total = self.vectors[review.text], np.zeros(SIZE, np.float32)
            peers = self.population.peers(review, example.user_id, example.timestamp)
            if not peers:
                return total
            user, apart = mean("own", example.id, example.history), np.empty(len(peers), np.float32)
            for number, peer in enumerate(peers):
                if peer.user_id not in seen:
                    past = self.population.history(peer.user_id, example.timestamp)
                    seen[peer.user_id] = mean("peer", peer.user_id, past)
                gap = user - seen[peer.user_id]
                apart[number] = np.sqrt(gap @ gap)
            weights = np.exp((apart - apart.max()) / np.float32(CONFIG.tau))
            weights /= weights.sum()
            for weight, peer in zip(weights, peers, strict=True):
                total += weight * (own - self.vectors[peer.text])
            return total

        found = []
        for example, chosen in zip(self.examples, self.chosen, strict=True):
            seen: dict[str, Floats] = {}
            found += [difference(example, review, seen) for review in chosen]
        return found


def unit_vectors(texts: Sequence[str]) -> dict[str, Floats]:
    distinct = list(dict.fromkeys(texts))
    normal = np.random.default_rng(0).standard_normal((len(distinct), SIZE), np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return dict(zip(distinct, normal, strict=True))


def made(users: int) -> Inputs:
    """Twelve reviews a user and about 48 an item, so that pairs grow as users do."""
    stream = random.Random(0)
    world, examples = [], []
    for user in range(users):
        own = [
            Document(f"{user}/{item}", f"u{user}", f"{user} on {item}", {}, f"i{item}", stream.randrange(100))
            for item in stream.sample(range(users * EACH // PER_ITEM), EACH)
        ]
        own.sort(key=lambda d: (d.timestamp or 0, d.item_id or ""))
        world += own
        examples.append(Example(f"e{user}", f"u{user}", {}, tuple(own), "target", 101))
    return Inputs(examples, Population(world), unit_vectors([d.text for d in world]))


def movies(folder: Path) -> Inputs:
    source = f'[source]\nkind = "parquet"\nreviews = "{IMDB}/reviews.parquet"\nitems = "{IMDB}/items.parquet"\n'
    (folder / "imdb.toml").write_text(f'{source}[split]\non_empty_history = "keep"\n')
    dataset = prepare(load_spec(str(folder / "imdb.toml")))
    examples = list(dataset.test.examples)
    texts = [d.text for d in dataset.population.documents()] + [d.text for e in examples for d in e.history]
    return Inputs(examples, dataset.population, unit_vectors(texts))


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(benchmark: BenchmarkFixture, work: Callable[[], Any], rounds: int) -> None:
    benchmark.pedantic(work, rounds=rounds, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "source", ["made", pytest.param("movies", marks=pytest.mark.skipif(not IMDB, reason="no data"))]
)
def test_vectorised_beside_the_loop(benchmark: BenchmarkFixture, source: str, tmp_path: Path) -> None:
    """The loops run before every third round, so that all meet the same load of the machine."""
    inputs = made(400) if source == "made" else movies(tmp_path)
    benchmark.group = f"differences beside the loops: {source}"
    found = np.concatenate([v.difference for v in inputs.fast()])
    loops: dict[str, Callable[[], list[Floats]]] = {"public": inputs.public_loop, "lean": inputs.loop}
    for loop in loops.values():
        np.testing.assert_allclose(found, loop(), atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in loops}

    rounds = itertools.count()

    def between() -> None:
        if next(rounds) % 3 == 0:
            for name, loop in loops.items():
                seconds[name].append(timed(loop))

    benchmark.pedantic(inputs.fast, setup=between, rounds=9)  # type: ignore[no-untyped-call]
    stats: Any = benchmark.stats
    least = stats.stats.min
    ratios = {f"ratio_{name}": min(took) / least for name, took in seconds.items()}
    benchmark.extra_info |= {"pairs": inputs.pairs, **ratios}
    told = ", ".join(f"{name} loop {min(took):.2f} s ({min(took) / least:.0f} times)" for name, took in seconds.items())
    print(f"\n{source}: {inputs.pairs} pairs, {least:.3f} s; {told}")


@pytest.mark.parametrize("users", [1000, 2000, 4000])
def test_cost_grows_as_pairs_do(benchmark: BenchmarkFixture, users: int) -> None:
    """The largest has 1.4 million pairs and must be done in ten seconds on two cores."""
    benchmark.group = "differences by number of users"
    inputs = made(users)
    run(benchmark, inputs.fast, rounds=5)
    stats: Any = benchmark.stats
    each = stats.stats.min / inputs.pairs
    benchmark.extra_info |= {"pairs": inputs.pairs, "nanoseconds_a_pair": round(1e9 * each)}
    print(f"\n{inputs.pairs} pairs: {stats.stats.min:.2f} s, {1e9 * each:.0f} ns a pair")
    assert stats.stats.min < 10
