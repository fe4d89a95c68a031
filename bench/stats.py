"""Scores with error bars (a paired percentile bootstrap over users), differences with a paired permutation test.

The estimand of a method's score is the metric over all of its examples (a plain mean, or corpus BLEU from summed
statistics), averaged over its seeds. Texts of one user resemble each other, so users, not examples, are drawn with
replacement, and a drawn user brings all of their examples and seeds (a cluster bootstrap; Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 8 and 13; for paired tests of text systems: Koehn, Statistical
significance tests for machine translation evaluation, EMNLP 2004). All methods share the same draws, so an interval of
a difference profits from what the methods have in common.

Whether a difference could be chance is asked apart: under the null hypothesis it does not matter which method wrote
which of a user's texts, so all texts of a user are swapped between the two methods or left (Fisher, The Design of
Experiments, 1935; for text systems: Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989). Many differences
in one table are corrected together (Holm, A simple sequentially rejective multiple test procedure, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reducer = Callable[[Floats, Floats], Floats]

DEFAULT_RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 4_000_000
"""Weights held at a time: 32 MB."""
_TIE = 1e-10
"""Scores this close, relative to their size, count as equal: rounding must not break a tie."""


def mean(sums: Floats, counts: Floats) -> Floats:
    """`sums` (..., 1) over `counts` (...); NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums[..., 0] / counts, np.nan)


def corpus_bleu(sums: Floats, counts: Floats) -> Floats:
    """Corpus BLEU, 0 to 100, with exponential smoothing, from summed statistics; NaN where nothing was counted.

    `sums` (..., 10) holds matching n-grams of order 1 to 4, n-grams of order 1 to 4 in the output, length of the
    output, length of the reference. Papineni et al., BLEU, ACL 2002; smoothing: method 3 of Chen and Cherry, A
    systematic comparison of smoothing techniques for sentence-level BLEU, WMT 2014. Equals `sacrebleu.corpus_bleu`.
    """
    correct, total, ours, reference = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    none = correct == 0
    halvings = np.cumsum(none, axis=-1)  # each order without a match halves what the next one is granted
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(none, 0.5**halvings, correct) / total
        brevity = np.minimum(0.0, 1.0 - reference / ours)
        score = 100.0 * np.exp(brevity + np.log(precision).mean(axis=-1))
    defined = (total > 0).all(axis=-1) & ~none.all(axis=-1) & (ours > 0)
    return np.where(counts > 0, np.where(defined, score, 0.0), np.nan)


REDUCERS: dict[str, Reducer] = {"mean": mean, "corpus_bleu": corpus_bleu}
"""Name -> function of `sums` (..., d) and `counts` (...) that gives a score (...)."""
DIMENSIONS: dict[str, int] = {"mean": 1, "corpus_bleu": 10}
"""Numbers that an example contributes to a reducer."""


def weight_blocks(n_users: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each user is drawn, in blocks of shape (some resamples, n_users); rows are multinomial counts."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(1, n_users))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = rng.integers(0, n_users, size=(rows, n_users)) + np.arange(rows)[:, None] * n_users
        yield np.bincount(draws.ravel(), minlength=rows * n_users).reshape(rows, n_users).astype(np.float64)


def bootstrap_weights(n_users: int, resamples: int = DEFAULT_RESAMPLES, seed: int = 0) -> Floats:
    """All weights of a bootstrap at once, (resamples, n_users): every row sums to `n_users`."""
    return np.concatenate([np.empty((0, n_users)), *weight_blocks(n_users, resamples, seed)])


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


def _user_sums(users: NDArray[np.intp], n_users: int, values: Floats, keep: NDArray[np.bool_]) -> Floats:
    """(seeds, n_users, d + 1): sums of the values (seeds, examples, d) that `keep` (seeds, examples), and counts."""
    sums = np.zeros((len(values), n_users, values.shape[2] + 1))
    for seed, (seed_values, seed_keep) in enumerate(zip(values, keep, strict=True)):
        np.add.at(sums[seed], users, np.column_stack([np.where(seed_keep[:, None], seed_values, 0.0), seed_keep]))
    return sums


def _seed_mean(per_seed: Floats) -> Floats:
    """Means over the last axis; a seed without any value is left out of the average."""
    known = ~np.isnan(per_seed)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, per_seed, 0.0).sum(axis=-1) / known.sum(axis=-1))


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
            self.parts.extend(_user_sums(self.users, self.n_users, values, keep))
            self.spans[mark] = (self.end, self.end + len(values) * self.width)
            self.end = self.spans[mark][1]
        return self.spans[mark]

    def drawn(self, resamples: int, seed: int) -> Floats:
        """Row 0: sums over all users. The other rows: sums over each resample."""
        matrix = np.concatenate(self.parts, axis=1)
        blocks = [block @ matrix for block in weight_blocks(self.n_users, resamples, seed)]
        return np.concatenate([matrix.sum(axis=0)[None], *blocks])

    def scores(self, drawn: Floats, span: tuple[int, int]) -> Floats:
        """Scores averaged over seeds, one a row."""
        table = drawn[:, span[0] : span[1]].reshape(len(drawn), -1, self.width)
        return _seed_mean(self.reduce(table[..., :-1], table[..., -1]))


def _estimate(scores: Floats, users: int, missing: int) -> Estimate:
    """`scores`: the value first, then its resamples."""
    value, resampled = float(scores[0]), scores[1:][~np.isnan(scores[1:])]
    if np.isnan(value):
        return Estimate(None, None, None, 0, missing)
    if users < 2 or not len(resampled):
        return Estimate(value, None, None, users, missing)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), users, missing)


def _check_shapes(values: Mapping[str, Floats], users: NDArray[np.intp], reducer: str) -> None:
    width = DIMENSIONS[reducer]
    for name, array in values.items():
        if array.ndim != 3 or array.shape[1:] != (len(users), width):
            raise ValueError(f"{name}: shape {array.shape}, expected (seeds, {len(users)}, {width})")


def _shared(first: Floats, second: Floats) -> NDArray[np.bool_]:
    """Which examples have a value under every seed of both methods."""
    return np.asarray(~np.isnan(np.concatenate([first, second])).any(axis=(0, 2)))


def paired_bootstrap(
    values: Mapping[str, Floats],
    users: NDArray[np.intp],
    *,
    reducer: str = "mean",
    baseline: str | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Scored]:
    """Scores of several methods on the same examples, with 95 % percentile intervals over users.

    `values`: method -> (seeds, examples, d), d as in `DIMENSIONS`, NaN where a value is missing (never counted as
    zero); methods may have different numbers of seeds. `users`: (examples,), each example's user as 0, 1, 2, ...
    A difference is method minus `baseline` over the examples for which both have a value under every seed of theirs.
    Raises ValueError for shapes that do not fit, KeyError for an unknown reducer or baseline.
    """
    _check_shapes(values, users, reducer)
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
        shared = _shared(array, values[baseline])
        ours = columns.add(name, array, np.tile(shared, (len(array), 1)))
        theirs = columns.add(baseline, values[baseline], np.tile(shared, (len(values[baseline]), 1)))
        both[name] = (ours, theirs, shared)
    drawn = columns.drawn(resamples, seed)
    result: dict[str, Scored] = {}
    for name in values:
        contributing = len(np.unique(users[known[name].any(axis=0)]))
        score = _estimate(columns.scores(drawn, own[name]), contributing, int((~known[name]).sum()))
        difference = None
        if name in both:
            ours, theirs, shared = both[name]
            gaps = columns.scores(drawn, ours) - columns.scores(drawn, theirs)
            difference = _estimate(gaps, len(np.unique(users[shared])), int((~shared).sum()))
        result[name] = Scored(score, difference)
    return result


def swap_blocks(n_users: int, permutations: int, seed: int) -> Iterator[Floats]:
    """Whose texts are swapped (1) or left (0), in blocks of shape (some permutations, n_users); fair coins."""
    rng = np.random.default_rng(seed)
    packed = -(-n_users // 8)
    step = max(1, _BLOCK // max(1, n_users))
    for start in range(0, permutations, step):
        coins = rng.integers(0, 256, size=(min(step, permutations - start), packed), dtype=np.uint8)
        yield np.unpackbits(coins, axis=1, count=n_users).astype(np.float64)


def _all_swaps(n_users: int) -> Floats:
    """Every way to swap users, (2 ** n_users, n_users); the first leaves all."""
    return (np.arange(2**n_users)[:, None] >> np.arange(n_users) & 1).astype(np.float64)


class _Pair:
    """Per-user sums of a method and the baseline over the examples that both have."""

    def __init__(self, ours: Floats, theirs: Floats, users: NDArray[np.intp], n_users: int, reducer: str) -> None:
        shared = _shared(ours, theirs)
        self.reduce = REDUCERS[reducer]
        self.contributing = np.unique(users[shared])
        # Swapping needs a partner for each seed: both are repeated to a common number, which changes neither score.
        seeds = math.lcm(len(ours), len(theirs))
        first, second = (
            np.tile(_user_sums(users, n_users, values, np.tile(shared, (len(values), 1))), (seeds // len(values), 1, 1))
            for values in (ours, theirs)
        )
        self.totals = first.sum(axis=1), second.sum(axis=1)
        self.moves = (second - first).transpose(1, 0, 2).reshape(n_users, -1)
        """(n_users, seeds * numbers): what swapping a user adds to the method's sums and takes from the baseline's."""

    def gaps(self, moved: Floats) -> tuple[Floats, float]:
        """Differences (n,) after swaps that moved (n, seeds * numbers), and the size of what they are taken from."""
        step = moved.reshape(len(moved), *self.totals[0].shape)
        scores = [
            _seed_mean(self.reduce(table[..., :-1], table[..., -1]))
            for table in (self.totals[0] + step, self.totals[1] - step)
        ]
        return scores[0] - scores[1], float(max(np.abs(score).max() for score in scores))

    def extreme(self, moved: Floats) -> int:
        """How many of these swaps make a difference at least as large, on either side, as the observed one."""
        gaps, size = self.gaps(np.concatenate([np.zeros((1, moved.shape[1])), moved]))
        return int((np.abs(gaps[1:]) >= abs(gaps[0]) - _TIE * size).sum())


def paired_permutation(
    values: Mapping[str, Floats],
    users: NDArray[np.intp],
    *,
    baseline: str,
    reducer: str = "mean",
    permutations: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float | None]:
    """Two-sided p of each method's difference to `baseline`, as `paired_bootstrap` defines it; arguments as there.

    All texts of a user are swapped between the two methods together, under all seeds at once. Every swap is tried
    where there are at most `permutations` of them, which gives the exact p; else as many random ones b of which are at
    least as extreme, shared by all methods, and p = (b + 1) / (permutations + 1), which is never too small (Phipson and
    Smyth, Permutation p-values should never be zero, 2010). None with fewer than two users in common. With unlike
    numbers of seeds the exchange is of seed means, and p is approximate.
    """
    _check_shapes(values, users, reducer)
    n_users = int(users.max()) + 1 if len(users) else 0
    pairs = {
        name: _Pair(array, values[baseline], users, n_users, reducer)
        for name, array in values.items()
        if name != baseline and len(users)
    }
    result: dict[str, float | None] = dict.fromkeys((name for name in values if name != baseline), None)
    sampled: dict[str, _Pair] = {}
    for name, pair in pairs.items():
        count = len(pair.contributing)
        if 2**count > permutations:
            sampled[name] = pair
        elif count > 1:
            result[name] = pair.extreme(_all_swaps(count) @ pair.moves[pair.contributing]) / 2**count
    if sampled:
        moves = np.concatenate([pair.moves for pair in sampled.values()], axis=1)
        ends = np.cumsum([pair.moves.shape[1] for pair in sampled.values()])
        moved = np.concatenate([block @ moves for block in swap_blocks(n_users, permutations, seed)])
        for (name, pair), part in zip(sampled.items(), np.split(moved, ends[:-1], axis=1), strict=True):
            result[name] = (pair.extreme(part) + 1) / (permutations + 1)
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p in the order given: at most a level where the family-wise error rate is kept at that level."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]
