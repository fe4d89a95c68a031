"""Error bars of a leaderboard: `pytest tests/benchmarks/test_stats_speed.py --benchmark-only`."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.stats import DEFAULT_RESAMPLES, DIMENSIONS, Floats, paired_bootstrap, paired_permutation

METHODS, EXAMPLES = 12, 2_000


def made_up(reducer: str) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    if reducer == "mean":
        return {str(i): rng.normal(size=(1, EXAMPLES, 1)) for i in range(METHODS)}
    total = np.sort(rng.integers(5, 200, size=(METHODS, 1, EXAMPLES, 4)))[..., ::-1]
    correct = rng.integers(0, total // 2 + 1)
    arrays = np.concatenate([correct, total, total[..., :1], total[..., :1]], axis=-1).astype(float)
    return {str(i): array for i, array in enumerate(arrays)}


@pytest.mark.parametrize("reducer", sorted(DIMENSIONS))
@pytest.mark.parametrize("test", [paired_bootstrap, paired_permutation])
def test_speed(benchmark: BenchmarkFixture, test: object, reducer: str) -> None:
    """One metric: 2,000 users, 12 methods, 10,000 resamples or permutations."""
    values, users = made_up(reducer), np.arange(EXAMPLES)
    found = benchmark.pedantic(test, (values, users), {"reducer": reducer, "baseline": "0"}, rounds=3)
    assert len(found) in (METHODS, METHODS - 1)
    benchmark.extra_info["resamples"] = DEFAULT_RESAMPLES
