"""Whether differences could be chance: a paired permutation test over users, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.stats.draws import DEFAULT_RESAMPLES, all_swaps, swap_blocks
from bench.stats.reducers import REDUCERS, Floats
from bench.stats.sums import TIE, check_shapes, seed_mean, shared_examples, user_sums


class _Pair:
    """Per-user sums of a method and the baseline over the examples that both have."""

    def __init__(self, ours: Floats, theirs: Floats, users: NDArray[np.intp], n_users: int, reducer: str) -> None:
        shared = shared_examples(ours, theirs)
        self.reduce = REDUCERS[reducer]
        self.contributing = np.unique(users[shared])
        # Swapping needs a partner for each seed: both are repeated to a common number, which changes neither score.
        seeds = math.lcm(len(ours), len(theirs))
        first, second = (
            np.tile(user_sums(users, n_users, values, np.tile(shared, (len(values), 1))), (seeds // len(values), 1, 1))
            for values in (ours, theirs)
        )
        self.totals = first.sum(axis=1), second.sum(axis=1)
        self.moves = (second - first).transpose(1, 0, 2).reshape(n_users, -1)
        """(n_users, seeds * numbers): what swapping a user adds to the method's sums and takes from the baseline's."""

    def gaps(self, moved: Floats) -> tuple[Floats, float]:
        """Differences (n,) after swaps that moved (n, seeds * numbers), and the size of what they are taken from."""
        step = moved.reshape(len(moved), *self.totals[0].shape)
        scores = [
            seed_mean(self.reduce(table[..., :-1], table[..., -1]))
            for table in (self.totals[0] + step, self.totals[1] - step)
        ]
        return scores[0] - scores[1], float(max(np.abs(score).max() for score in scores))

    def extreme(self, moved: Floats) -> int:
        """How many of these swaps make a difference at least as large, on either side, as the observed one."""
        gaps, size = self.gaps(np.concatenate([np.zeros((1, moved.shape[1])), moved]))
        return int((np.abs(gaps[1:]) >= abs(gaps[0]) - TIE * size).sum())


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
    check_shapes(values, users, reducer)
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
            result[name] = pair.extreme(all_swaps(count) @ pair.moves[pair.contributing]) / 2**count
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
