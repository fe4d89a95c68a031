"""How varied texts are: different n-grams out of all, over a run's texts together and in each text alone.

Loaded by path through `evaluate.load`, this file gives distinct-1 of the texts together.
"""

from __future__ import annotations

import math
from abc import ABC
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bench.metrics.base import Metric, ScoreInput, Vector, text_of
from bench.metrics.copy_rate import words_of


class _Distinct(Metric, ABC):
    higher_is_better = None
    n = 1

    def _signature_parts(self) -> Mapping[str, object]:
        return {"n": self.n, "case": "lc", "tok": "word"}

    def _grams(self, text: str) -> Iterator[tuple[str, ...]]:
        words = words_of(text)
        return zip(*(words[start:] for start in range(self.n)), strict=False)


class Distinct1(_Distinct):
    """Different words out of all words of the run's texts together (distinct-1, Li et al. 2016).

    It is no mean over texts. The vector of an example is `[its share of the different words, its words]`, a word that
    stands k times in the run being shared by its k places; over all examples the sums give the ratio exactly.
    """

    name = "distinct1"
    reducer = "ratio"
    _counts: Mapping[tuple[str, ...], int] = {}

    def observe(self, inputs: Sequence[ScoreInput]) -> None:
        told = (item.prediction for item in inputs if item.prediction is not None)
        self._counts = Counter(gram for text in told for gram in self._grams(text))

    def _vector(self, item: ScoreInput) -> Vector | None:
        grams = list(self._grams(text_of(item)))
        return [math.fsum(1 / self._counts[gram] for gram in grams), float(len(grams))]

    def aggregate(self, vectors: Sequence[Vector]) -> float:
        """Different n-grams out of all. NaN for none."""
        total = math.fsum(vector[1] for vector in vectors)
        return math.fsum(vector[0] for vector in vectors) / total if total else math.nan


class Distinct2(Distinct1):
    """Different pairs of words out of all pairs of the run's texts together (distinct-2, Li et al. 2016)."""

    name = "distinct2"
    n = 2


class Distinct1Text(_Distinct):
    """Different words out of all words of one text; the mean over texts. Not defined for a text without words."""

    name = "distinct1_text"

    def _vector(self, item: ScoreInput) -> Vector | None:
        grams = list(self._grams(text_of(item)))
        return [len(set(grams)) / len(grams)] if grams else None


class Distinct2Text(Distinct1Text):
    """Different pairs of words out of all pairs of one text; the mean over texts. Not defined without a pair."""

    name = "distinct2_text"
    n = 2
