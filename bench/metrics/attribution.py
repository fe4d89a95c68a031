"""Whose text is it? The rank of a text's own user among others, by nearness to what each of them wrote before."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.metrics.base import Advance, Metric, ScoreInput, Vector, text_of
from bench.metrics.users import Others, Past, own_past, profile

_TIE = 1e-6
"""Similarities this close count as equal: rounding must not decide a rank."""


class AttributionConfig(BaseConfig):
    """Knobs of author attribution."""

    others: int = Field(19, ge=1)
    """Users that a text's own user is set against; fewer where the split has fewer."""
    rivals: Literal["item", "any"] = "item"
    """item: others who wrote about the same item come first; any: chosen by a hash alone."""
    n_history: int = Field(8, ge=1)
    """Latest texts that stand for a user, the same number for all, as a mean of more texts is near to everything."""


class Attribution(Metric, ABC):
    """Sets a text's user against others: what `AuthorNgram` and `AuthorEncoder` have in common."""

    Config = AttributionConfig
    config: AttributionConfig
    rank = False
    """Whether the value is the rank of the own user, and not whether it is the first."""
    _known: Sequence[str] = ()
    """The texts that stand for all users."""
    _rivals: Mapping[str, Sequence[Sequence[Past]]] = {}
    """Example -> what each of those who are set against its user wrote."""
    _sizes: Sequence[int] = ()
    """How many candidates each example with a history has."""

    def observe(self, inputs: Sequence[ScoreInput]) -> None:
        config, others = self.config, Others.around(inputs)
        pasts = others.by_user.values()
        self._known = sorted({past.text for one in pasts for past in one[-config.n_history :]})
        self._rivals = {
            item.example_id: [
                others.by_user[user] for user in others.rivals(item, config.others, config.rivals == "item")
            ]
            for item in inputs
        }
        profiles = [self._profiles(replace(item, prediction=None)) for item in inputs]
        self._sizes = [len(candidates) for candidates in profiles if candidates[0]]

    def chance(self) -> float | None:
        sizes = [size for size in self._sizes if size > 1]
        if not sizes:
            return None
        return math.fsum((size + 1) / 2 if self.rank else 1 / size for size in sizes) / len(sizes)

    def _signature_parts(self) -> Mapping[str, object]:
        return {**self.config.model_dump(), "copies": "out", **self._space_parts()}

    def _outcomes(self, inputs: Sequence[ScoreInput], advance: Advance) -> Iterator[Vector | Exception | None]:
        profiles = [self._profiles(item) for item in inputs]
        texts = sorted({text for one in profiles for past in one for text in past} | {text_of(item) for item in inputs})
        row = {text: number for number, text in enumerate(texts)}
        space = self._space(texts) if texts else None
        for item, candidates in zip(inputs, profiles, strict=True):
            if len(candidates) < 2 or not candidates[0]:
                yield None
            else:
                near = nearness(space, row[text_of(item)], [[row[text] for text in past] for past in candidates])
                first, rank = place(near)
                yield [rank if self.rank else first]
            advance(1)

    def _vector(self, item: ScoreInput) -> Vector | None:
        outcome = next(self._outcomes([item], lambda _: None))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _profiles(self, item: ScoreInput) -> list[list[str]]:
        """Texts that stand for each candidate, the own user first; of the others, those who have any."""
        count = self.config.n_history
        own = profile(own_past(item), count, item)
        told = [profile(past, count, item) for past in self._rivals[item.example_id]]
        return [own, *(texts for texts in told if texts)]

    @abstractmethod
    def _space(self, texts: Sequence[str]) -> Any:
        """A row of length one for each text: a matrix (texts, d) of numpy or scipy.sparse."""

    def _space_parts(self) -> Mapping[str, object]:
        """What of the space can change a value, for the signature."""
        return {}


def nearness(space: Any, text: int, candidates: Sequence[Sequence[int]]) -> list[float]:
    """Cosine of a text's row with the mean of each candidate's rows; 0 for a candidate whose rows are all zero."""
    found = []
    for rows in candidates:
        products, norms = space[rows] @ space[text].T, space[rows] @ space[rows].T
        if hasattr(products, "toarray"):
            products, norms = products.toarray(), norms.toarray()
        length = math.sqrt(max(0.0, float(norms.sum()))) / len(rows)
        found.append(float(products.sum()) / len(rows) / length if length > 0 else 0.0)
    return found


def place(near: Sequence[float]) -> tuple[float, float]:
    """Of the first of some candidates: the chance to come out nearest, and the expected rank, ties broken at random."""
    own, *others = near
    ahead = sum(other > own + _TIE for other in others)
    level = sum(abs(other - own) <= _TIE for other in others)
    return (0.0 if ahead else 1 / (1 + level)), 1 + ahead + level / 2
