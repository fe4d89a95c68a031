"""Scores and differences with expanded percentile intervals: a paired bootstrap over users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.draws import DEFAULT_RESAMPLES, weight_blocks
from bench.stats.paired import SeedSpread, Wins, count_wins, detectable, mean_error, seed_spread
from bench.stats.reducers import DIMENSIONS, REDUCERS, Floats
from bench.stats.sums import TIE, check_shapes, seed_mean, shared_examples, user_sums

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A score or a difference with its 95 % interval."""

    value: float | None
    """None if there is nothing to score."""
    low: float | None
    high: float | None
    """Ends of the interval; None with fewer than two users."""
    users: int
    """Users that contribute."""
    missing: int
    """Values (of a score) or examples (of a difference) left out because there is none."""


@dataclass(frozen=True)
class Scored:
    """A method's score and its difference to the baseline (None for the baseline itself, or without one)."""

    score: Estimate
    difference: Estimate | None
    spread: SeedSpread | None = None
    """Of the score over seeds; None with fewer than two."""
    wins: Wins | None = None
    """Users above, level with and below the baseline; None for corpus metrics, which have no value for a user."""
    detectable: float | None = None
    """The smallest true difference to the baseline that these users would show; None with fewer than two."""


class _Columns:
    """Per-user sums, gathered into one matrix so that all resamples of everything are one product."""

    def __init__(self, users: NDArray[np.intp], n_users: int, reducer: str) -> None:
        self.users, self.n_users = users, n_users
        self.reduce, self.width = REDUCERS[reducer], DIMENSIONS[reducer] + 1
        self.parts: list[Floats] = []
        self.spans: dict[tuple[str, bytes], tuple[int, int]] = {}
        self.end = 0

    def add(self, name: str, values: Floats, keep: NDArray[np.bool_]) -> tuple[int, int]:
        """The columns of a method's values (seeds, examples, d) with only `keep` (seeds, examples) counted."""
        mark = (name, keep.tobytes())
        if mark not in self.spans:
            self.parts.extend(user_sums(self.users, self.n_users, values, keep))
            self.spans[mark] = (self.end, self.end + len(values) * self.width)
            self.end = self.spans[mark][1]
        return self.spans[mark]

    def drawn(self, resamples: int, seed: int) -> Floats:
        """Row 0: sums over all users. The other rows: sums over each resample."""
        matrix = np.concatenate(self.parts, axis=1)
        blocks = [block @ matrix for block in weight_blocks(self.n_users, resamples, seed)]
        return np.concatenate([matrix.sum(axis=0)[None], *blocks])

    def per_seed(self, drawn: Floats, span: tuple[int, int]) -> Floats:
        """Scores (rows, seeds)."""
        table = drawn[:, span[0] : span[1]].reshape(len(drawn), -1, self.width)
        return self.reduce(table[..., :-1], table[..., -1])

    def scores(self, drawn: Floats, span: tuple[int, int]) -> Floats:
        """Scores averaged over seeds, one a row."""
        return seed_mean(self.per_seed(drawn, span))


def _estimate(scores: Floats, users: int, missing: int) -> Estimate:
    """`scores`: the value first, then its resamples."""
    value, resampled = float(scores[0]), scores[1:][~np.isnan(scores[1:])]
    if np.isnan(value):
        return Estimate(None, None, None, 0, missing)
    if users < 2 or not len(resampled):
        return Estimate(value, None, None, users, missing)
    tail = tail_of(users)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), users, missing)


def tail_of(users: int) -> float:
    """The share of resamples to leave out on each side for an interval over so many users.

    It is P(Z < -sqrt(n / (n - 1)) t), Z standard normal and t the 97.5 % point of Student's t with n - 1 degrees of
    freedom: 2.5 % for many users, 1.6 % for twenty. So the interval of a normal mean is about Student's; plain
    percentiles lie too near, by the bootstrap's small variance and the normal's light tails (Hesterberg, What teachers
    should know about the bootstrap, The American Statistician 2015: the expanded percentile interval).
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-np.sqrt(users / (users - 1)) * stdtrit(users - 1, (1 + LEVEL) / 2)))


def _bootstrap_error(scores: Floats) -> float | None:
    """The resamples' standard deviation, where there is no closed form (Efron and Tibshirani, chapter 6), or None."""
    resampled = scores[1:][~np.isnan(scores[1:])]
    if len(resampled) < 2 or np.ptp(resampled) <= TIE * max(1.0, float(np.abs(resampled).max())):
        return None
    return float(resampled.std(ddof=1))


def paired_bootstrap(
    values: Mapping[str, Floats],
    users: NDArray[np.intp],
    *,
    reducer: str = "mean",
    baseline: str | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Scored]:
    """Scores of several methods on the same examples, with 95 % intervals over users (see `tail_of`).

    `values`: method -> (seeds, examples, d), d as in `DIMENSIONS`, NaN where a value is missing (never counted as
    zero); methods may have different numbers of seeds. `users`: (examples,), each example's user as 0, 1, 2, ...
    A difference is method minus `baseline` over the examples for which both have a value under every seed of theirs; so
    are wins and the smallest detectable difference, which takes its standard error from the users' differences, for
    corpus metrics from the resamples. Raises ValueError for shapes that do not fit, KeyError for an unknown reducer or
    baseline.
    """
    check_shapes(values, users, reducer)
    if not len(users) or not values:
        empty = Estimate(None, None, None, 0, 0)
        return {name: Scored(empty, None if name == baseline or baseline is None else empty) for name in values}
    n_users = int(users.max()) + 1
    columns = _Columns(users, n_users, reducer)
    known = {name: np.all(~np.isnan(array), axis=2) for name, array in values.items()}
    own = {name: columns.add(name, array, known[name]) for name, array in values.items()}
    both: dict[str, tuple[tuple[int, int], tuple[int, int], NDArray[np.bool_]]] = {}
    for name, array in values.items():
        if baseline is None or name == baseline:
            continue
        shared = shared_examples(array, values[baseline])
        ours = columns.add(name, array, np.tile(shared, (len(array), 1)))
        theirs = columns.add(baseline, values[baseline], np.tile(shared, (len(values[baseline]), 1)))
        both[name] = (ours, theirs, shared)
    drawn = columns.drawn(resamples, seed)
    result: dict[str, Scored] = {}
    for name in values:
        contributing = len(np.unique(users[known[name].any(axis=0)]))
        score = _estimate(columns.scores(drawn, own[name]), contributing, int((~known[name]).sum()))
        spread = seed_spread(columns.per_seed(drawn[:1], own[name])[0])
        if name not in both or baseline is None:
            result[name] = Scored(score, None, spread)
            continue
        ours, theirs, shared = both[name]
        gaps = columns.scores(drawn, ours) - columns.scores(drawn, theirs)
        difference = _estimate(gaps, len(np.unique(users[shared])), int((~shared).sum()))
        pair = values[name], values[baseline], users, shared
        if reducer == "mean":
            wins, smallest = count_wins(*pair), detectable(*mean_error(*pair))
        else:
            wins, smallest = None, detectable(_bootstrap_error(gaps), difference.users)
        result[name] = Scored(score, difference, spread, wins, smallest)
    return result
