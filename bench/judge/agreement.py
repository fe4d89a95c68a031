"""How far two judges agree: rank correlation and kappa over the texts that both have judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same texts."""

    texts: int
    spearman: float | None
    """Spearman's rank correlation; None where a judge gives all texts the same, or there are fewer than two."""
    kappa: float | None
    """Cohen's kappa with quadratic weights (Cohen 1968), scores rounded to the nearest step; None likewise."""


def agreement(first: Sequence[float | None], second: Sequence[float | None], step: float = 1.0) -> Agreement:
    """Agreement of two lists of verdicts on the same texts, in the same order; None is left out.

    `step` is what verdicts are rounded to for kappa: 1 for scores from 0 to 10, 0.5 for wins.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    if len(values) < 2 or not np.ptp(values, axis=0).all():
        return Agreement(len(values), None, None)
    from scipy.stats import spearmanr

    return Agreement(len(values), float(spearmanr(values[:, 0], values[:, 1]).statistic), _kappa(values, step))


def _kappa(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], step: float) -> float | None:
    """1 - (mean squared distance) / (the same over all pairings of the two judges' verdicts)."""
    classes = np.floor(values / step + 0.5)
    seen = float(np.mean((classes[:, 0] - classes[:, 1]) ** 2))
    chance = float(np.mean((classes[:, :1] - classes[:, 1][None]) ** 2))
    return None if chance == 0 else 1 - seen / chance
