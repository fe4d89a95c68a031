"""Values of examples as methods have them, summed by user."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bench.stats.reducers import DIMENSIONS, Floats

TIE = 1e-10
"""Scores this close, relative to their size, count as equal: rounding must not break a tie."""


def check_shapes(values: Mapping[str, Floats], users: NDArray[np.intp], reducer: str) -> None:
    width = DIMENSIONS[reducer]
    for name, array in values.items():
        if array.ndim != 3 or array.shape[1:] != (len(users), width):
            raise ValueError(f"{name}: shape {array.shape}, expected (seeds, {len(users)}, {width})")


def shared_examples(first: Floats, second: Floats) -> NDArray[np.bool_]:
    """Which examples have a value under every seed of both methods."""
    return np.asarray(~np.isnan(np.concatenate([first, second])).any(axis=(0, 2)))


def user_sums(users: NDArray[np.intp], n_users: int, values: Floats, keep: NDArray[np.bool_]) -> Floats:
    """(seeds, n_users, d + 1): sums of the values (seeds, examples, d) that `keep` (seeds, examples), and counts."""
    sums = np.zeros((len(values), n_users, values.shape[2] + 1))
    for seed, (seed_values, seed_keep) in enumerate(zip(values, keep, strict=True)):
        np.add.at(sums[seed], users, np.column_stack([np.where(seed_keep[:, None], seed_values, 0.0), seed_keep]))
    return sums


def seed_mean(per_seed: Floats) -> Floats:
    """Means over the last axis; a seed without any value is left out of the average."""
    known = ~np.isnan(per_seed)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, per_seed, 0.0).sum(axis=-1) / known.sum(axis=-1))
