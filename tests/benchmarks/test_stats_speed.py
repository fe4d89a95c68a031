"""Error bars of a leaderboard: `pytest tests/benchmarks/test_stats_speed.py --benchmark-only`."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.stats import DEFAULT_RESAMPLES, DIMENSIONS, Floats, holm, paired_bootstrap, paired_permutation

METHODS, EXAMPLES = 12, 2_000


def made_up(reducer: str) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    if reducer == "mean":
        return {str(i): rng.normal(size=(1, EXAMPLES, 1)) for i in range(METHODS)}
    total = np.sort(rng.integers(5, 200, size=(METHODS, 1, EXAMPLES, 4)))[..., ::-1]
    correct = rng.integers(0, total // 2 + 1)
    arrays = np.concatenate([correct, total, total[..., :1], total[..., :1]], axis=-1).astype(float)
    return {str(i): array for i, array in enumerate(arrays)}


def board(values: dict[str, Floats], users: np.ndarray, reducer: str) -> int:
    """All that a leaderboard says of a metric: intervals, spread, wins, detectable differences, corrected p."""
    scored = paired_bootstrap(values, users, reducer=reducer, baseline="0")
    found = paired_permutation(values, users, reducer=reducer, baseline="0")
    assert all(one.detectable for name, one in scored.items() if name != "0")
    return len(holm([p for p in found.values() if p is not None]))


@pytest.mark.parametrize("reducer", sorted(DIMENSIONS))
def test_board(benchmark: BenchmarkFixture, reducer: str) -> None:
    """A metric of a whole board: 2,000 examples, 12 methods, 10,000 resamples and as many permutations."""
    values, users = made_up(reducer), np.arange(EXAMPLES)
    assert benchmark.pedantic(board, (values, users, reducer), rounds=3) == METHODS - 1


@pytest.mark.parametrize("reducer", sorted(DIMENSIONS))
@pytest.mark.parametrize("test", [paired_bootstrap, paired_permutation])
def test_speed(benchmark: BenchmarkFixture, test: object, reducer: str) -> None:
    """One metric: 2,000 users, 12 methods, 10,000 resamples or permutations."""
    values, users = made_up(reducer), np.arange(EXAMPLES)
    found = benchmark.pedantic(test, (values, users), {"reducer": reducer, "baseline": "0"}, rounds=3)
    assert len(found) in (METHODS, METHODS - 1)
    benchmark.extra_info["resamples"] = DEFAULT_RESAMPLES
