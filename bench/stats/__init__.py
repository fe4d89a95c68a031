"""Scores with error bars (a paired bootstrap over users), differences with a paired permutation test.

The estimand of a method's score is the metric over all of its examples (a plain mean, or a ratio or corpus BLEU from
summed statistics), averaged over its seeds. Texts of one user resemble each other, so users, not examples, are drawn
with replacement, and a drawn user brings all of their examples and seeds (a cluster bootstrap; Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapters 8 and 13; for paired tests of text systems: Koehn, Statistical
significance tests for machine translation evaluation, EMNLP 2004). All methods share the same draws, so an interval of
a difference profits from what the methods have in common. Percentiles are taken wider for few users (`tail_of`). In
simulations with unequal clusters the intervals cover 94 to 95 % at 10 to 100 users where noise is normal; where it is
exponential 92 % at 20 and 40 users and 94 to 95 % from 100 on. The permutation test holds its level at any number.

Whether a difference could be chance is asked apart: under the null hypothesis it does not matter which method wrote
which of a user's texts, so all texts of a user are swapped between the two methods or left (Fisher, The Design of
Experiments, 1935; for text systems: Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989). Many differences
in one table are corrected together (Holm, A simple sequentially rejective multiple test procedure, 1979).

All of this is of the seeds as they are: an interval or a p says what other users would do to a difference, not what
another training would. That is what the standard deviation over seeds beside a score is for.
"""

from __future__ import annotations

from bench.stats.bootstrap import LEVEL, Estimate, Scored, paired_bootstrap
from bench.stats.draws import DEFAULT_RESAMPLES, bootstrap_weights, swap_blocks, weight_blocks
from bench.stats.paired import SeedSpread, Wins, count_wins, detectable, mean_error, seed_spread
from bench.stats.permutation import holm, paired_permutation
from bench.stats.reducers import DIMENSIONS, REDUCERS, Floats, Reducer, corpus_bleu, mean, ratio, text_scores

__all__ = [
    "DEFAULT_RESAMPLES",
    "DIMENSIONS",
    "LEVEL",
    "REDUCERS",
    "Estimate",
    "Floats",
    "Reducer",
    "Scored",
    "SeedSpread",
    "Wins",
    "bootstrap_weights",
    "corpus_bleu",
    "count_wins",
    "detectable",
    "holm",
    "mean",
    "mean_error",
    "paired_bootstrap",
    "paired_permutation",
    "ratio",
    "seed_spread",
    "swap_blocks",
    "text_scores",
    "weight_blocks",
]
