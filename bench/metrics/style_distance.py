"""How far a text is from its user's habits of style, whatever it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.metrics.base import Metric, ScoreInput, Vector, text_of
from bench.metrics.style import GROUPS, features
from bench.metrics.users import Others, own_past, profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class StyleDistanceConfig(BaseConfig):
    """Knobs of the style distance."""

    n_history: int = Field(8, ge=1)
    """Latest texts that stand for a user."""


class StyleDistance(Metric):
    """1 minus the cosine of the text's and its user's deviations in style from all users (cosine Delta); low is near.

    Function words, punctuation, length and readability, each feature standardised over the earlier texts of the split's
    users, each of the four groups with equal weight. From 0, the same habits, over 1, none in common, to 2, opposite.
    """

    name = "style_distance"
    higher_is_better = False
    Config = StyleDistanceConfig
    config: StyleDistanceConfig
    _scale: tuple[Floats, Floats] | None = None
    """Mean and weight of each feature."""

    def observe(self, inputs: Sequence[ScoreInput]) -> None:
        latest = self.config.n_history
        by_user = Others.around(inputs).by_user
        told = [[past.text for past in pasts[-latest:]] for pasts in by_user.values()]
        self._scale = scale(told) if len(told) > 1 else None

    def chance(self) -> float | None:
        return 1.0

    def _signature_parts(self) -> Mapping[str, object]:
        return {
            **self.config.model_dump(),
            "copies": "out",
            "features": "function-punctuation-length-flesch",
            "rule": 1,
        }

    def _vector(self, item: ScoreInput) -> Vector | None:
        import numpy as np

        past = profile(own_past(item), self.config.n_history, item)
        if not past or self._scale is None:
            return None
        mean, weight = self._scale
        own = (np.mean([style_of(text) for text in past], axis=0) - mean) * weight
        text = (np.asarray(style_of(text_of(item))) - mean) * weight
        length = float(np.linalg.norm(own) * np.linalg.norm(text))
        return [1.0 - float(own @ text) / length if length > 0 else 1.0]


@lru_cache(2**14)
def style_of(text: str) -> tuple[float, ...]:
    """The features of a text, which is asked for again and again."""
    return tuple(features(text))


def scale(texts: Sequence[Sequence[str]]) -> tuple[Floats, Floats]:
    """Mean and weight (features,) from the texts of each user; every user counts the same.

    The weight makes a standard deviation one, and the sum of squares of each group's features one on average; a feature
    in which no two texts differ has weight zero.
    """
    import numpy as np

    rows = np.array([style_of(text) for user in texts for text in user])
    share = np.concatenate([np.full(len(user), 1 / len(user)) for user in texts]) / len(texts)
    mean = share @ rows
    deviation = np.sqrt(share @ (rows - mean) ** 2)
    moving = deviation > 1e-9
    weight = np.zeros_like(mean)
    weight[moving] = 1 / deviation[moving]
    start = 0
    for size in GROUPS.values():
        inside = slice(start, start + size)
        weight[inside] /= np.sqrt(max(1, moving[inside].sum()))
        start += size
    return mean, weight
