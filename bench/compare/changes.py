"""The examples on which two sides differ most: what was asked, what the user really wrote, what each side wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.compare.sides import Side
from bench.errors import UsageError
from bench.estimates import Axis, values_of
from bench.plan import dataset_of
from bench.reopen import check_dataset, config_of
from bench.stats import Floats, text_scores
from bench.stats.sums import TIE
from bench.store import MetricInfo
from bench.types import FieldValue


@dataclass(frozen=True)
class Change:
    """One example. Texts are those of one seed a side (see `_shown`)."""

    example_id: str
    user_id: str
    asked: Mapping[str, FieldValue]
    """Label of the field -> value; fields that a prompt may shorten (descriptions) are left out."""
    reference: str
    """What the user really wrote."""
    text_a: str
    text_b: str
    a: float
    """Score, mean over seeds."""
    b: float
    shown_a: float
    """Score of the very text that is shown."""
    shown_b: float
    seed_a: Any
    """Of the text that is shown."""
    seed_b: Any


def most_changed(a: Side, b: Side, info: MetricInfo, axis: Axis, count: int) -> tuple[list[Change], str | None]:
    """The `count` examples whose score differs most, largest first, and why there are none if the data are gone.

    A corpus metric is taken of each text alone, as if it were the corpus. Examples that do not differ are left out.
    """
    if not count:
        return [], None
    run = a.entry.runs[0]
    try:
        dataset = dataset_of(config_of(run))
        check_dataset(run, dataset)
    except UsageError as error:
        return [], str(error)
    first, second = (_per_text(side, info, axis) for side in (a, b))
    gaps = np.abs(second.mean(axis=0) - first.mean(axis=0))
    size = np.abs(np.concatenate([first, second])).max(axis=0)
    ids = list(axis.examples)
    order = [i for i in np.argsort(-np.nan_to_num(gaps), kind="stable") if gaps[i] > TIE * size[i]]
    texts = [
        [{record["example_id"]: str(record.get("text") or "") for record in run.records} for run in side.entry.runs]
        for side in (a, b)
    ]
    asked = {example.id: example for example in dataset.test.examples}
    fields = [one for one in dataset.task.fields if not one.shortenable]
    found = []
    for i in order[:count]:
        example = asked[ids[i]]
        one, other = _shown(a, b, first[:, i], second[:, i])
        found.append(
            Change(
                example.id,
                example.user_id,
                {one.label: example.fields.get(one.name) for one in fields},
                dataset.test.references[example.id],
                texts[0][one][example.id],
                texts[1][other][example.id],
                float(first[:, i].mean()),
                float(second[:, i].mean()),
                float(first[one, i]),
                float(second[other, i]),
                a.entry.seeds[one],
                b.entry.seeds[other],
            )
        )
    return found, None


def _shown(a: Side, b: Side, first: Floats, second: Floats) -> tuple[int, int]:
    """Places of the seeds whose texts are shown: of those that both sides have, the one that shows the change best.

    Without a common seed, the first of each side. `first` and `second` (seeds,) are one example's scores.
    """
    seeds = [(a.entry.seeds.index(seed), place) for place, seed in enumerate(b.entry.seeds) if seed in a.entry.seeds]
    sign = 1.0 if second.mean() > first.mean() else -1.0
    return max(seeds, key=lambda pair: sign * (second[pair[1]] - first[pair[0]]), default=(0, 0))


def _per_text(side: Side, info: MetricInfo, axis: Axis) -> Floats:
    """(seeds, examples): the score of each text, NaN where it has none."""
    values = values_of(side.entry, info.name, axis.examples, info.reducer)
    return text_scores(values, info.reducer)
