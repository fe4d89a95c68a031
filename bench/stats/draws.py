"""Chance: which users a resample draws, and whose texts a permutation swaps. Both in blocks, to bound memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.stats.reducers import Floats

DEFAULT_RESAMPLES = 10_000
_BLOCK = 4_000_000
"""Weights held at a time: 32 MB."""


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


def swap_blocks(n_users: int, permutations: int, seed: int) -> Iterator[Floats]:
    """Whose texts are swapped (1) or left (0), in blocks of shape (some permutations, n_users); fair coins."""
    rng = np.random.default_rng(seed)
    packed = -(-n_users // 8)
    step = max(1, _BLOCK // max(1, n_users))
    for start in range(0, permutations, step):
        coins = rng.integers(0, 256, size=(min(step, permutations - start), packed), dtype=np.uint8)
        yield np.unpackbits(coins, axis=1, count=n_users).astype(np.float64)


def all_swaps(n_users: int) -> Floats:
    """Every way to swap users, (2 ** n_users, n_users); the first leaves all."""
    return (np.arange(2**n_users)[:, None] >> np.arange(n_users) & 1).astype(np.float64)
