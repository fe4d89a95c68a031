"""What intervals and p-values promise, on made-up worlds whose truth is known: coverage, false positives."""

from __future__ import annotations

import numpy as np
import pytest
from stats_world import one

from bench.stats import Floats, holm, paired_bootstrap, paired_permutation


def worlds(rng: np.random.Generator, count: int, users: np.ndarray, seeds: int, skewed: bool = True) -> Floats:
    """(count, seeds, examples) of noise with mean 0: by user, by example, and (always normal) by text."""

    def draw(*shape: int) -> Floats:
        return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)

    by_user = draw(count, 1, int(users.max()) + 1)[..., users]
    return by_user + 0.5 * draw(count, 1, len(users)) + 0.5 * rng.normal(size=(count, seeds, len(users)))


@pytest.mark.slow
@pytest.mark.parametrize(("n_users", "skewed"), [(15, False), (100, False), (200, True)])
def test_intervals_cover_where_users_repeat_unequally(n_users: int, skewed: bool) -> None:
    """1,500 samples of users with 1 to 5 examples each and two seeds: of scores, and of differences to a baseline.

    15 and 100 users of normal noise, 200 of exponential. Two standard errors of a coverage of 95 % are 1.1 points.
    Where noise is as skewed as the exponential's, few users are covered less: in 3,000 such samples each 91.9 % (20),
    92.4 % (40), 94.3 % (100).
    """
    rng = np.random.default_rng(n_users)
    users = np.repeat(np.arange(n_users), rng.integers(1, 6, n_users))
    samples, base = worlds(rng, 1500, users, 2, skewed), worlds(rng, 1, users, 2, skewed)[0]
    covered = {"score": 0, "difference": 0}
    for start in range(0, 1500, 100):  # in groups, to bound memory
        part = samples[start : start + 100]
        values = {f"own {i}": one(row) for i, row in enumerate(part)} | {"base": one(base)}
        values |= {f"paired {i}": one(row + base + 0.3) for i, row in enumerate(part[::-1])}
        scored = paired_bootstrap(values, users, baseline="base", resamples=1000, seed=start)
        for i in range(100):
            score, difference = scored[f"own {i}"].score, scored[f"paired {i}"].difference
            assert difference is not None
            covered["score"] += score.low <= 0 <= score.high  # type: ignore[operator]
            covered["difference"] += difference.low <= 0.3 <= difference.high  # type: ignore[operator]
    assert 0.93 <= covered["score"] / 1500 <= 0.97
    assert 0.93 <= covered["difference"] / 1500 <= 0.97


@pytest.mark.slow
def test_the_family_wise_rate_over_methods_and_metrics_is_kept_on_equal_methods() -> None:
    """1,000 leaderboards of four methods equal to a baseline in three correlated metrics, Holm over all twelve.

    25 users with 1 to 3 examples, two seeds. Were the true rate 5 %, more than 73 of 1,000 boards with a false positive
    would come up once in a thousand times (the binomial's 99.9 % point); without correction over a third have one.
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
    assert uncorrected > 300
