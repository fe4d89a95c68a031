"""From summed statistics to a score: a plain mean, a ratio of sums, or corpus BLEU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reducer = Callable[[Floats, Floats], Floats]


def mean(sums: Floats, counts: Floats) -> Floats:
    """`sums` (..., 1) over `counts` (...); NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums[..., 0] / counts, np.nan)


def ratio(sums: Floats, counts: Floats) -> Floats:
    """The first of `sums` (..., 2) over the second; NaN where that is zero or nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((counts > 0) & (sums[..., 1] > 0), sums[..., 0] / sums[..., 1], np.nan)


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


REDUCERS: dict[str, Reducer] = {"mean": mean, "ratio": ratio, "corpus_bleu": corpus_bleu}
"""Name -> function of `sums` (..., d) and `counts` (...) that gives a score (...)."""
DIMENSIONS: dict[str, int] = {"mean": 1, "ratio": 2, "corpus_bleu": 10}
"""Numbers that an example contributes to a reducer."""


def text_scores(values: Floats, reducer: str) -> Floats:
    """(seeds, examples): the score of each text, NaN where it has none; of a corpus metric as if it were the corpus.

    `values` (seeds, examples, dimensions) are what a metric stored, NaN for a missing one.
    """
    known = ~np.isnan(values).any(axis=2)
    scores = REDUCERS[reducer](np.nan_to_num(values), np.asarray(known, dtype=np.float64))
    found: Floats = np.where(known, scores, np.nan)
    return found
