"""What a prepared dataset is like, in numbers: steps, splits, and the spread of histories, peers, texts and ratings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.data.split import Dataset
from bench.types import Document, Example

_BARS = 10
"""Bars of a histogram at most, beside the last one, which is open."""


@dataclass(frozen=True)
class Distribution:
    """How a quantity is spread."""

    name: str
    label: str
    """What is counted, for people."""
    values: tuple[float, ...]
    """Ascending."""

    def at(self, share: float) -> float:
        """The smallest value that at least this share (0 to 1) of all values do not exceed; 0 where there is none."""
        place = max(0, math.ceil(share * len(self.values)) - 1)
        return self.values[place] if self.values else 0

    def told(self) -> dict[str, float]:
        """Number of values, least, median, 90th percentile and most."""
        shares = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
        return {"count": len(self.values), **{name: self.at(share) for name, share in shares.items()}}

    def bars(self) -> list[tuple[str, int]]:
        """(what a bar counts, how many): one a value where they are few, else equal steps and an open last bar."""
        distinct = sorted(set(self.values))
        if len(distinct) <= _BARS + 2:
            return [(f"{value:,.10g}", self._count(value, value)) for value in distinct]
        low, high = distinct[0], self.at(0.99)
        step = _nice((high - low) / _BARS)
        start = math.floor(low / step) * step
        whole = all(float(value).is_integer() for value in distinct) and float(step).is_integer()
        found = []
        while start + step <= high:
            end = start + step
            last = end - 1 if whole else end
            name = f"{start:,.10g}" if last == start else f"{start:,.10g} to {last:,.10g}"
            found.append((name, self._below(end) - self._below(start)))
            start = end
        return [*found, (f"{start:,.10g} and more", len(self.values) - self._below(start))]

    def _count(self, low: float, high: float) -> int:
        return bisect_right(self.values, high) - self._below(low)

    def _below(self, value: float) -> int:
        return bisect_right(self.values, math.nextafter(value, -math.inf))


@dataclass(frozen=True)
class Overview:
    """Everything `data show` tells but the audit."""

    name: str
    about: Mapping[str, Any]
    """Task, fingerprint, selection, whether the truth is known."""
    steps: Mapping[str, Mapping[str, int]]
    """Step of the construction -> what was left after it."""
    splits: Mapping[str, Mapping[str, int]]
    """train, validation, test -> users and examples."""
    population: Mapping[str, int]
    """Users, items and documents that are open to methods."""
    distributions: tuple[Distribution, ...]

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            **self.about,
            "steps": {step: dict(counts) for step, counts in self.steps.items()},
            "splits": {name: dict(counts) for name, counts in self.splits.items()},
            "population": dict(self.population),
            "distributions": {
                one.name: {"label": one.label, **one.told(), "histogram": [[name, count] for name, count in one.bars()]}
                for one in self.distributions
            },
        }


def overview(dataset: Dataset) -> Overview:
    """The numbers of a dataset."""
    parts = {"train": dataset.train, "validation": dataset.dev, "test": dataset.test}
    examples = [example for part in parts.values() for example in part.examples]
    documents = dataset.population.documents()
    texts = [text for part in parts.values() for text in part.references.values()]
    noun = dataset.task.noun
    peers = [len(_peers(example, dataset)) for example in examples]
    spread = [
        _distribution("history", f"{noun}s before a target", (len(example.history) for example in examples)),
        _distribution("peers", "documents by others on a target's item, before it", peers),
        _distribution("target_chars", f"characters of a target {noun}", map(len, texts)),
        _distribution("document_chars", "characters of a document open to methods", (len(d.text) for d in documents)),
    ]
    for field in dataset.task.fields:
        # Whatever is a number is told, be it called rating or not.
        values = [value for d in documents if isinstance(value := d.fields.get(field.name), int | float)]
        if values:
            spread.append(_distribution(field.name, f"{field.label} of a document open to methods", values))
    return Overview(
        name=dataset.name,
        about={
            "task": dataset.task.name,
            "fingerprint": dataset.fingerprint,
            "selection": dataset.selection,
            "truth": dataset.truth is not None,
        },
        steps=dataset.counts,
        splits={
            name: {"users": len({e.user_id for e in part.examples}), "examples": len(part)}
            for name, part in parts.items()
        },
        population={
            "users": len(dataset.population.users()),
            "items": len({d.item_id for d in documents} - {None}),
            "documents": len(documents),
        },
        distributions=tuple(spread),
    )


def _peers(example: Example, dataset: Dataset) -> Sequence[Document]:
    target = Document(example.id, example.user_id, "", example.fields, example.item_id, example.timestamp)
    return dataset.population.peers(target, example.user_id, example.timestamp)


def _distribution(name: str, label: str, values: Iterable[float]) -> Distribution:
    return Distribution(name, label, tuple(sorted(values)))


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... (or 0.1, 0.2, ...) that is no smaller."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    chosen = next(factor for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-12))
    found = chosen * power
    return float(round(found)) if found >= 1 else found
