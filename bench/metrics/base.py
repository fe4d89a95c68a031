"""What every metric offers: one vector of numbers an example, a signature, and the face of an `evaluate` module.

A metric is an `evaluate.Metric` that needs no network: `metric.compute(predictions=[...], references=[...])`,
`evaluate.load("bench/metrics/rouge.py")` and `evaluate.combine([...])` work on it. The harness itself calls `values`,
which keeps examples apart, so that errors are counted and bootstraps can be paired.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import evaluate

from bench.config import Config as BaseConfig
from bench.errors import MissingPackage, UsageError
from bench.types import Example, LabeledSplit, Truth

if TYPE_CHECKING:
    from bench.data.population import Population

logger = logging.getLogger(__name__)

Vector = list[float]
Advance = Callable[[int], object]
"""Told how many more examples are done."""


@dataclass(frozen=True)
class World:
    """What surrounds the texts of a split, for metrics that set a user against others."""

    split: LabeledSplit
    """All examples of the split, whether or not their texts are among those to judge."""
    population: Population
    """Who else wrote about the same item, and when."""

    @cached_property
    def examples(self) -> Mapping[str, Example]:
        """Example id -> what was asked, for whom, when, and what the user wrote before."""
        return {example.id: example for example in self.split.examples}


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """One generated text beside what is needed to judge it."""

    example_id: str
    user_id: str
    prediction: str | None
    """The generated text; None if generating failed. An empty text is a text, and a bad one."""
    reference: str
    """What the user really wrote."""
    history: tuple[str, ...] = ()
    """Texts of the user's earlier documents."""
    truth: Truth | None = None
    """How the dataset's texts came to be, where it knows."""
    world: World | None = field(default=None, compare=False, repr=False)
    """The split and the other users; None where texts are judged outside a dataset."""

    @property
    def example(self) -> Example | None:
        """The example that the text was written for; None outside a dataset."""
        return self.world.examples.get(self.example_id) if self.world is not None else None


class Metric(evaluate.Metric, ABC):  # type: ignore[misc]  # evaluate ships no types
    """One way to judge a text. The first line of a metric's docstring is its line in `bench list metrics`."""

    name: str
    """Name in the registry and heading in tables."""
    higher_is_better: bool | None = True
    """None for a measurement that is neither good nor bad in itself."""
    reducer: str = "mean"
    """How the vectors of many examples become one number: "mean" of their only entry, or "corpus_bleu" of their sum."""
    needs_truth: bool = False
    """Whether the metric means anything only where the dataset knows how its texts were made."""
    Config: ClassVar[type[BaseConfig]] = BaseConfig
    """Every knob, typed, with its default and meaning."""

    def __init__(self, config: BaseConfig | None = None, **options: Any) -> None:
        """`options` are those of `evaluate.Metric`; without any, predictions are kept in memory, not in files."""
        self.config = config if config is not None else self.Config()
        super().__init__(**(options or {"keep_in_memory": True}))

    def applicable(self, has_truth: bool) -> bool:
        """Whether the metric can be computed on a dataset that knows, or does not know, its own truth."""
        return has_truth or not self.needs_truth

    def preflight(self) -> None:
        """Makes sure that packages, weights and data are there. Raises UsageError with the command that helps."""

    def observe(self, inputs: Sequence[ScoreInput]) -> None:
        """Told all examples before any is judged, those without a text too: what a metric learns of their users."""

    def chance(self) -> float | None:
        """What a text that tells nothing of its user would score on the examples last observed; None if not known."""
        return None

    def signature(self) -> str:
        """`name|option:value|...|library:version`: every option and version that can change the number."""
        return "|".join([self.name, *(f"{key}:{_plain(value)}" for key, value in self._signature_parts().items())])

    def values(self, inputs: Sequence[ScoreInput], advance: Advance | None = None) -> list[Vector | None]:
        """One vector an example, in order; None where the metric failed or is not defined, never a made-up number.

        A library's exception on one example costs that example alone; it is logged. Raises UsageError for what
        concerns all examples at once (a missing package, missing weights).
        """
        advance = advance or _ignore
        present = [index for index, item in enumerate(inputs) if item.prediction is not None]
        advance(len(inputs) - len(present))
        self.observe(inputs)
        values: list[Vector | None] = [None] * len(inputs)
        problems = []
        for index, outcome in zip(present, self._outcomes([inputs[i] for i in present], advance), strict=True):
            if isinstance(outcome, Exception):
                problems.append(f"{inputs[index].example_id}: {type(outcome).__name__}: {outcome}")
            elif outcome is not None:
                values[index] = outcome
        if problems:
            logger.warning("%s failed on %d of %d texts, first %s", self.name, len(problems), len(inputs), problems[0])
        return values

    def aggregate(self, vectors: Sequence[Vector]) -> float:
        """One number for many examples: what `compute` returns. NaN for none. Default: the mean of the only entry."""
        return math.fsum(vector[0] for vector in vectors) / len(vectors) if vectors else math.nan

    def _outcomes(self, inputs: Sequence[ScoreInput], advance: Advance) -> Iterator[Vector | Exception | None]:
        for item in inputs:
            yield attempt(self._vector, item)
            advance(1)

    @abstractmethod
    def _vector(self, item: ScoreInput) -> Vector | None:
        """The vector of one example whose prediction is a text, or None where the metric is not defined."""

    def _signature_parts(self) -> Mapping[str, object]:
        """Options and versions in the order in which the signature names them."""
        return self.config.model_dump()

    # The rest is the face of an `evaluate` module.

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__ or self.name,
            citation="",
            inputs_description=(
                "predictions, references: lists of texts. Some metrics also take histories (a list of texts for each "
                "prediction), or user_ids with a truth object."
            ),
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _build_data_dir(self) -> str:
        # Kept in memory, nothing is written: evaluate would make a folder in the user's home all the same.
        return gettempdir() if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        histories: Sequence[Sequence[str]] | None = None,
        user_ids: Sequence[str] | None = None,
        truth: Truth | None = None,
    ) -> dict[str, float]:
        count = len(predictions)
        rows = zip(predictions, references, user_ids or [""] * count, histories or [()] * count, strict=True)
        inputs = [
            ScoreInput(str(number), user, prediction, reference, tuple(history), truth)
            for number, (prediction, reference, user, history) in enumerate(rows)
        ]
        vectors = [vector for vector in self.values(inputs) if vector is not None]
        return {self.name: self.aggregate(vectors), f"{self.name}_failed": count - len(vectors)}


def attempt(vector: Callable[[ScoreInput], Vector | None], item: ScoreInput) -> Vector | Exception | None:
    """What `vector` gives for an example, or the exception it raised; a number that is not finite counts as one.

    A UsageError goes through: it concerns every example, not this one.
    """
    try:
        result = vector(item)
    except UsageError:
        raise
    except Exception as error:
        return error
    if result is not None and not all(map(math.isfinite, result)):
        return ValueError(f"not finite: {result}")
    return result


def text_of(item: ScoreInput) -> str:
    """The prediction of an example that has one."""
    if item.prediction is None:
        raise ValueError("no prediction")
    return item.prediction


def package_version(package: str, purpose: str) -> str:
    """The installed version of a distribution. Raises MissingPackage, saying what it is needed for."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise MissingPackage(package, purpose) from None


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _ignore(count: int) -> None:
    """For callers that show no progress."""
