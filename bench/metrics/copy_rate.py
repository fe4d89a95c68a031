"""How much of a text is copied, word by word, from what the user wrote before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.metrics.base import Metric, ScoreInput, Vector, text_of

_WORD = re.compile(r"\w+")


class CopyRateConfig(BaseConfig):
    """Knobs of the copy rate."""

    n: int = Field(4, ge=1)
    """Words in a row that count as copied."""


class CopyRate(Metric):
    """Share of the text's runs of four words that also stand in one of the user's earlier texts; lower is better.

    Words are runs of letters, digits and underscores, in lower case. Every position of the text counts once, and a run
    never spans two earlier texts. Not defined for a text of fewer than four words; 0 for a user without history.
    """

    name = "copy_rate"
    higher_is_better = False
    Config = CopyRateConfig
    config: CopyRateConfig

    def _signature_parts(self) -> Mapping[str, object]:
        return {"n": self.config.n, "case": "lc", "tok": "word"}

    def _vector(self, item: ScoreInput) -> Vector | None:
        runs = list(self._runs(text_of(item)))
        if not runs:
            return None
        known = {run for text in item.history for run in self._runs(text)}
        return [sum(run in known for run in runs) / len(runs)]

    def _runs(self, text: str) -> Iterator[tuple[str, ...]]:
        words = words_of(text)
        return zip(*(words[start:] for start in range(self.config.n)), strict=False)


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())
