"""How long a text is against the real one."""

from __future__ import annotations

from bench.metrics.base import Metric, ScoreInput, Vector, text_of


class LengthRatio(Metric):
    """Words of the text divided by words of the reference, split at white space; neither high nor low is better.

    0 for an empty text; not defined for a reference without words.
    """

    name = "length_ratio"
    higher_is_better = None

    def _signature_parts(self) -> dict[str, object]:
        return {"tok": "space"}

    def _vector(self, item: ScoreInput) -> Vector | None:
        words = len(item.reference.split())
        return [len(text_of(item).split()) / words] if words else None
