"""From records to scores: joins texts with their references, asks the metrics, stores what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import DataError, UsageError
from bench.store import MetricInfo, StoredRun, StoredScores, read_scores
from bench.store import write_scores as store_scores
from bench.types import LabeledSplit, Truth

if TYPE_CHECKING:
    from bench.data.population import Population
    from bench.metrics.base import Metric, ScoreInput

Values = tuple[float, ...] | None


@dataclass(frozen=True)
class Scores:
    """What metrics say about the examples of one run."""

    example_ids: tuple[str, ...]
    metrics: tuple[MetricInfo, ...]
    values: Mapping[str, tuple[Values, ...]]
    """Metric -> one vector an example, in the order of `example_ids`; None where the metric has no value."""

    def failed(self, metric: str) -> int:
        """Examples without a value: generation failed, the metric did, or it is not defined for the text."""
        return sum(value is None for value in self.values[metric])

    def scored(self, metric: str) -> int:
        """Examples with a value."""
        return len(self.example_ids) - self.failed(metric)


def join(
    records: Iterable[Mapping[str, Any]],
    split: LabeledSplit,
    truth: Truth | None = None,
    population: Population | None = None,
) -> list[ScoreInput]:
    """Each record beside the text its user really wrote, in the order of the records.

    With a `population` the inputs also see the world around them: the whole split, and peers.
    A record that holds an error has no prediction. Raises DataError for a record of an example that the split lacks.
    """
    from bench.metrics.base import ScoreInput, World

    world = None if population is None else World(split, population)
    examples = {example.id: example for example in split.examples}
    inputs = []
    for record in records:
        example = examples.get(record["example_id"])
        if example is None:
            raise DataError(
                f"the records hold example {record['example_id']!r}, which the split lacks: "
                "score them with the dataset and limits they were made with"
            )
        text = None if record.get("error") is not None else record.get("text")
        history = tuple(document.text for document in example.history)
        reference = split.references[example.id]
        inputs.append(ScoreInput(example.id, example.user_id, text, reference, history, truth, world))
    return inputs


def score(inputs: Sequence[ScoreInput], metrics: Sequence[Metric], progress: bool) -> Scores:
    """Asks every metric about every example, one after the other, with a bar a metric if `progress`.

    Raises UsageError if two metrics bear one name or two inputs one example id, or if a metric cannot work at all.
    """
    from tqdm import tqdm

    _refuse_twins("metric", [metric.name for metric in metrics])
    _refuse_twins("example", [item.example_id for item in inputs])
    infos, values = [], {}
    for metric in metrics:
        with tqdm(total=len(inputs), desc=metric.name, unit="text", disable=not progress) as bar:
            vectors = metric.values(inputs, bar.update)
        signature, chance = metric.signature(), metric.chance()
        infos.append(MetricInfo(metric.name, signature, metric.higher_is_better, metric.reducer, chance))
        values[metric.name] = tuple(None if vector is None else tuple(vector) for vector in vectors)
    return Scores(tuple(item.example_id for item in inputs), tuple(infos), values)


def missing_metrics(run: StoredRun, metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that a run's stored scores lack, or hold under another signature."""
    stored = _earlier(run)
    known = {name: info.signature for name, info in stored.metrics.items()} if stored else {}
    return [metric for metric in metrics if known.get(metric.name) != metric.signature()]


def separable(metrics: Sequence[Metric]) -> list[Metric]:
    """Those that give a text the same value whatever texts are judged with it, so that shards can be scored apart.

    A metric that looks at all examples first, by an `observe` of its own, is none of them.
    """
    from bench.metrics.base import Metric

    usual = getattr(Metric, "observe", None)
    return [metric for metric in metrics if getattr(type(metric), "observe", None) is usual]


def write_scores(run: StoredRun, scores: Scores, merge: bool = True) -> None:
    """Stores scores beside a run's records, one line an example in their order.

    `merge` keeps the columns of metrics that were scored before on the same records and are not among `scores`.
    Raises UsageError unless the scores are of exactly the run's examples.
    """
    order = [record["example_id"] for record in run.records]
    if sorted(order) != sorted(scores.example_ids):
        raise UsageError(f"these scores are not of the records in {run.path}: score that run again")
    infos = {info.name: info for info in scores.metrics}
    columns: dict[str, Mapping[str, Values]] = {
        name: dict(zip(scores.example_ids, values, strict=True)) for name, values in scores.values.items()
    }
    earlier = _earlier(run) if merge else None
    for name, info in earlier.metrics.items() if earlier else ():
        if earlier and name not in infos:
            infos[name], columns[name] = info, earlier.values[name]
    names = sorted(infos)
    rows = ({"example_id": key, "scores": {name: columns[name][key] for name in names}} for key in order)
    store_scores(run, [infos[name] for name in names], rows)


def _earlier(run: StoredRun) -> StoredScores | None:
    """The stored scores of the run's records; None for damaged ones, which scoring replaces."""
    try:
        return read_scores(run)
    except UsageError:
        return None


def _refuse_twins(kind: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{kind} {name!r} is given twice")
        seen.add(name)
