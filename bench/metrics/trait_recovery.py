"""How many of a user's planted traits a text shows: only for data made by a generator that knows them."""

from __future__ import annotations

from bench.metrics.base import Metric, ScoreInput, Vector, text_of


class TraitRecovery(Metric):
    """Share of the user's planted traits that are present in the text.

    Not defined without a known truth, nor for a user none of whose traits a text can show.
    """

    name = "trait_recovery"
    needs_truth = True

    def _signature_parts(self) -> dict[str, object]:
        return {"rule": 1}

    def _vector(self, item: ScoreInput) -> Vector | None:
        if item.truth is None:
            return None
        present = item.truth.recovered(item.user_id, text_of(item))
        return [sum(map(bool, present.values())) / len(present)] if present else None
