"""What stands beside intervals and p: spread over seeds, wins by user, the smallest detectable difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.stats.reducers import Floats
from bench.stats.sums import TIE, user_sums

SIGNIFICANCE, POWER = 0.05, 0.8
"""Of the two-sided test that `detectable` speaks of."""


@dataclass(frozen=True)
class SeedSpread:
    """How far the scores of a method's seeds lie apart."""

    sd: float
    """Root of the unbiased variance (n - 1 below the line)."""
    seeds: int
    """Seeds that have a score."""


def seed_spread(scores: Floats) -> SeedSpread | None:
    """The spread of one score a seed (seeds,), NaN where a seed has none; None with fewer than two scores.

    Kept apart from the interval, which is over users with the seeds as they are: the one says how much another sample
    of users would change, the other how much another training or sampling run would (Bouthillier et al., Accounting
    for variance in machine learning benchmarks, MLSys 2021).
    """
    known = scores[~np.isnan(scores)]
    return SeedSpread(float(known.std(ddof=1)), len(known)) if len(known) > 1 else None


@dataclass(frozen=True)
class Wins:
    """Users for whom a method scores higher than the baseline, the same, and lower."""

    wins: int
    ties: int
    losses: int

    def turned(self) -> Wins:
        """The same for a metric of which less is better."""
        return Wins(self.losses, self.ties, self.wins)

    def rate(self, level: float = 1 - SIGNIFICANCE) -> tuple[float, float, float] | None:
        """Share of users won, a tie counting half, and its interval; None without users.

        The score interval (Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927),
        which stays inside 0 to 1 and says something at 0 and 1 as well. Ties vary less than a coin does, so that it is
        rather too wide with many of them.
        """
        users = self.wins + self.ties + self.losses
        if not users:
            return None
        z = NormalDist().inv_cdf((1 + level) / 2)
        share = (self.wins + self.ties / 2) / users
        middle = (share + z * z / (2 * users)) / (1 + z * z / users)
        half = z / (1 + z * z / users) * math.sqrt(share * (1 - share) / users + z * z / (4 * users * users))
        return share, max(0.0, middle - half), min(1.0, middle + half)


def count_wins(ours: Floats, theirs: Floats, users: NDArray[np.intp], keep: NDArray[np.bool_]) -> Wins:
    """Compares each user's means over seeds and the examples that `keep` (examples,); ties are those of rounding.

    `ours`, `theirs`: (seeds, examples, 1), of means alone: a corpus score has no value for one user.
    """
    n_users = int(users.max()) + 1
    sums = [user_sums(users, n_users, values.mean(axis=0)[None], keep[None])[0] for values in (ours, theirs)]
    counts = sums[0][:, 1]
    # Rounding of a mean is relative to the values that went into it, which may cancel.
    size = np.zeros(n_users)
    np.maximum.at(size, users[keep], np.abs(np.concatenate([ours, theirs]))[:, keep].max(axis=(0, 2)))
    present = counts > 0
    gaps = (sums[0][present, 0] - sums[1][present, 0]) / counts[present]
    slack = TIE * size[present]
    higher, lower = int((gaps > slack).sum()), int((gaps < -slack).sum())
    return Wins(higher, len(gaps) - higher - lower, lower)


def mean_error(
    ours: Floats, theirs: Floats, users: NDArray[np.intp], keep: NDArray[np.bool_]
) -> tuple[float | None, int]:
    """Standard error over users of a difference of means, and how many users it is of; None with fewer than two.

    Arguments as for `count_wins`; 0 where it is nothing but rounding.

    With D the difference, d(u) the sum of user u's paired differences (means over seeds) and m(u) their number, the
    error is sqrt(n / (n - 1) * sum over u of (d(u) - m(u) D)^2) / sum over u of m(u). With as many examples from each
    user that is s / sqrt(n), s the standard deviation of the users' differences; else it is the cluster-robust error
    (Liang and Zeger, Longitudinal data analysis using generalized linear models, 1986; for evaluations of language
    models: Miller, Adding error bars to evals, 2024).
    """
    gaps = (ours.mean(axis=0) - theirs.mean(axis=0))[None]
    sums = user_sums(users, int(users.max()) + 1, gaps, keep[None])[0]
    counts = sums[:, 1]
    n = int((counts > 0).sum())
    if n < 2:
        return None, n
    rest = sums[:, 0] - counts * (sums[:, 0].sum() / counts.sum())
    if np.abs(rest).max() <= TIE * np.abs(np.concatenate([ours, theirs])[:, keep]).max():
        return 0.0, n
    return float(np.sqrt(n / (n - 1) * np.square(rest).sum()) / counts.sum()), n


def detectable(error: float | None, users: int) -> float | None:
    """The smallest true difference that a two-sided paired test at 5 % finds with a power of 80 %.

    `error` is the standard error of the difference over `users` users. The result is e * lambda, lambda being the
    noncentrality for which Student's noncentral t with users - 1 degrees of freedom exceeds the 97.5 % point of the
    central one with probability 0.8: 2.80 for many users, 3.15 for ten (Cohen, Statistical power analysis for the
    behavioral sciences, 1988, chapter 2; for text systems: Card et al., With little power comes great responsibility,
    EMNLP 2020). It takes the spread from the data, never the difference found, so it is no "observed power" (Hoenig and
    Heisey, The abuse of power, 2001). Of one test, before any correction. None with fewer than two users, and for an
    error of nothing: where all differ alike, what could be seen cannot be known.
    """
    if not error or users < 2:
        return None
    from scipy.special import nctdtrinc, stdtrit

    freedom = users - 1
    return error * float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - SIGNIFICANCE / 2)))
