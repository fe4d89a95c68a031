"""Values of examples for tests of statistics."""

from __future__ import annotations

import numpy as np

from bench.stats import Floats


def one(values: Floats) -> Floats:
    """(examples,) or (seeds, examples) -> (seeds, examples, 1)."""
    return np.atleast_2d(values)[..., None]


def alone(n: int) -> np.ndarray:
    """One example a user."""
    return np.arange(n)


def ends(resampled: object, users: int) -> Floats:
    """Ends of an expanded percentile interval over so many users, by scipy's distributions."""
    from scipy.stats import norm, t

    tail = norm.cdf(t(users - 1).ppf(0.025) * (users / (users - 1)) ** 0.5)
    return np.percentile(np.asarray(resampled), [100 * tail, 100 * (1 - tail)])


def made_up(rng: np.random.Generator, reducer: str, seeds: int, examples: int, missing: float) -> Floats:
    """(seeds, examples, d) of plausible values, a share of them missing."""
    shape = (seeds, examples)
    if reducer == "mean":
        array = rng.normal(size=(*shape, 1))
    elif reducer == "ratio":
        array = np.stack([rng.random(shape), rng.integers(1, 9, size=shape) * 1.0], axis=-1)
    else:
        total = np.sort(rng.integers(0, 9, size=(*shape, 4)))[..., ::-1]
        correct = rng.integers(0, total + 1)
        array = np.concatenate([correct, total, total[..., :1], rng.integers(1, 9, size=(*shape, 1))], -1) * 1.0
    array[rng.random(shape) < missing] = np.nan
    return array


def statistics(output: str, reference: str) -> list[float]:
    """[correct 1-4, total 1-4, output length, reference length] as sacrebleu counts them."""
    import sacrebleu

    score = sacrebleu.corpus_bleu([output], [[reference]])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]
