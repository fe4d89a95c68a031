"""What intervals and p-values promise, on made-up worlds whose truth is known: coverage, false positives."""

from __future__ import annotations

import numpy as np
import pytest
from stats_world import one

from bench.stats import Floats, holm, paired_bootstrap, paired_permutation


def worlds(rng: np.random.Generator, count: int, users: np.ndarray, seeds: int) -> Floats:
    """(count, seeds, examples) of noise with mean 0: skewed by user, by example, and by text."""
    n_users = int(users.max()) + 1
    by_user = rng.exponential(size=(count, 1, n_users))[..., users] - 1
    by_example = 0.5 * (rng.exponential(size=(count, 1, len(users))) - 1)
    return by_user + by_example + 0.5 * rng.normal(size=(count, seeds, len(users)))


@pytest.mark.slow
@pytest.mark.parametrize("n_users", [100, 200])
def test_intervals_cover_where_users_repeat_unequally(n_users: int) -> None:
    """1,200 samples of 100 or 200 users with 1 to 5 examples each and two seeds: scores and paired differences.

    Three standard errors of a coverage of 95 % are 1.9 points. With fewer users a percentile interval is too short: of
    40 users it covers some 93 %.
    """
    rng = np.random.default_rng(n_users)
    users = np.repeat(np.arange(n_users), rng.integers(1, 6, n_users))
    ours, theirs = worlds(rng, 1200, users, 2), worlds(rng, 1200, users, 2)
    covered = {"score": 0, "difference": 0}
    for start in range(0, 1200, 100):  # in groups, to bound memory
        part = slice(start, start + 100)
        base = theirs[start]
        values = {str(i): one(row + base + 0.3) for i, row in enumerate(ours[part])}
        values |= {f"own {i}": one(row) for i, row in enumerate(theirs[part])} | {"base": one(base)}
        scored = paired_bootstrap(values, users, baseline="base", resamples=1000, seed=start)
        for i in range(100):
            score, difference = scored[f"own {i}"].score, scored[str(i)].difference
            assert difference is not None
            covered["score"] += score.low <= 0 <= score.high  # type: ignore[operator]
            covered["difference"] += difference.low <= 0.3 <= difference.high  # type: ignore[operator]
    assert 0.93 <= covered["score"] / 1200 <= 0.97
    assert 0.93 <= covered["difference"] / 1200 <= 0.97


@pytest.mark.slow
def test_the_family_wise_rate_over_methods_and_metrics_is_kept_on_equal_methods() -> None:
    """1,000 leaderboards of four methods equal to a baseline in three correlated metrics, Holm over all twelve.

    25 users with 1 to 3 examples, two seeds. Were the true rate 5 %, more than 72 of 1,000 boards with a false positive
    would come up once in a thousand times (the binomial's 99.9 % point); without correction some 30 % have one.
    """
    from scipy.stats import binom

    rng = np.random.default_rng(31)
    users = np.repeat(np.arange(25), rng.integers(1, 4, 25))
    names = ["base", *"abcd"]
    corrected, uncorrected = 0, 0
    for board in range(1000):
        hardness = rng.normal(size=len(users))
        quality = worlds(rng, len(names), users, 2)
        raw = []
        for metric in range(3):
            noise = worlds(rng, len(names), users, 2)
            values = {name: one(hardness + quality[i] + metric * noise[i]) for i, name in enumerate(names)}
            found = paired_permutation(values, users, baseline="base", permutations=999, seed=board)
            raw += [p for p in found.values() if p is not None]
        assert len(raw) == 12
        corrected += min(holm(raw)) <= 0.05
        uncorrected += min(raw) <= 0.05
    assert corrected <= binom.ppf(0.999, 1000, 0.05)
    assert uncorrected > 180
