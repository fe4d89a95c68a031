"""Random draws that come out alike on every platform and Python version."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Draws seeded by a key of words and numbers.

    Only `Random.random()` is used: the one generator whose sequence Python promises to keep, while `choice`,
    `shuffle` or `gauss` may change, and `gauss` leans on the platform's logarithm and cosine.
    """

    def __init__(self, *key: str | int) -> None:
        self._random = Random("\x1f".join(str(part) for part in key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random.random()

    def chance(self, probability: float) -> bool:
        """True with this probability; one draw whatever the probability."""
        return self._random.random() < probability

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + int(self._random.random() * (high - low + 1))

    def bell(self) -> float:
        """Nearly a standard normal number: the sum of twelve uniform ones, less six."""
        return sum(self._random.random() for _ in range(12)) - 6.0

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self._random.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        result = list(options)
        for last in range(len(result) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            result[last], result[other] = result[other], result[last]
        return result

    def weighted_order(self, weights: Sequence[float]) -> list[int]:
        """Indices drawn one by one without replacement, each with chance proportional to its weight (> 0)."""
        left = list(range(len(weights)))
        order: list[int] = []
        while left:
            threshold = self._random.random() * sum(weights[i] for i in left)
            chosen = left[-1]
            for i in left:
                threshold -= weights[i]
                if threshold < 0:
                    chosen = i
                    break
            left.remove(chosen)
            order.append(chosen)
        return order
