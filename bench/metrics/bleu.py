"""BLEU of a whole set of texts, kept as sufficient statistics of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from bench.config import Config as BaseConfig
from bench.metrics.base import Metric, ScoreInput, Vector, package_version, text_of

ORDER = 4
"""Longest n-gram that BLEU counts."""


class BleuConfig(BaseConfig):
    """Knobs of BLEU; the defaults are sacrebleu's."""

    tokenize: Literal["13a", "intl", "char", "none", "zh"] = "13a"
    """sacrebleu's tokenizer."""
    lowercase: bool = False


class Bleu(Metric):
    """Corpus BLEU from 0 to 100 (Papineni et al. 2002, as sacrebleu computes it).

    BLEU is no mean over texts. The vector of an example is `[matches of 1 to 4 words, n-grams of 1 to 4 words, words of
    the text, words of the reference]`; the vectors of any set of examples, added up, give that set's BLEU.
    """

    name = "bleu"
    reducer = "corpus_bleu"
    Config = BleuConfig
    config: BleuConfig

    def preflight(self) -> None:
        package_version("sacrebleu", self.name)

    def _signature_parts(self) -> Mapping[str, object]:
        return {
            "case": "lc" if self.config.lowercase else "mixed",
            "eff": "no",
            "tok": self.config.tokenize,
            "smooth": "exp",
            "sacrebleu": package_version("sacrebleu", self.name),
        }

    @cached_property
    def _scorer(self) -> Any:
        from sacrebleu.metrics import BLEU

        # The effective order changes a sentence's score, not the counts taken from it; without it sacrebleu warns.
        return BLEU(tokenize=self.config.tokenize, lowercase=self.config.lowercase, effective_order=True)

    def _vector(self, item: ScoreInput) -> Vector | None:
        score = self._scorer.sentence_score(text_of(item), [item.reference])
        return [float(count) for count in (*score.counts, *score.totals, score.sys_len, score.ref_len)]

    def aggregate(self, vectors: Sequence[Vector]) -> float:
        """BLEU of all texts together, from 0 to 100. NaN for none."""
        from sacrebleu.metrics import BLEU

        if not vectors:
            return math.nan
        sums = [int(sum(column)) for column in zip(*vectors, strict=True)]
        correct, total, (words, reference_words) = sums[:ORDER], sums[ORDER : 2 * ORDER], sums[2 * ORDER :]
        return float(BLEU.compute_bleu(correct, total, words, reference_words, smooth_method="exp").score)
