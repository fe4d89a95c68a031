"""Reading the run store: complete runs, what they hold, and what else lies in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import file_digest, json_lines, pretty_json, read_object, read_rows, write_atomic
from bench.keys import digest

DEFAULT_OUT = Path("results") / "runs"
PLAN, RECORDS, TIMINGS, MANIFEST = "plan.json", "records.jsonl", "timings.jsonl", "manifest.json"
SCORES, SCORE_ROWS = "scores.json", "scores.jsonl"
LOCK = ".lock"
ID_FIELD, ERROR_FIELD = "example_id", "error"
"""The two fields of a record that the store itself reads; a record whose error is not null counts as failed."""

Record = Mapping[str, Any]
_NAMED = ("dataset", "method", "engine")


def row_title(method: str, variant: str | None) -> str:
    """How a method is called where its variants stand beside it."""
    return method if variant is None else f"{method}: {variant}"


@dataclass(frozen=True)
class BatchTiming:
    """What one batch cost. Tokens are real ones, without padding; memory is in bytes."""

    index: int
    examples: int
    prompt_tokens: int
    output_tokens: int
    prefill_seconds: float
    decode_seconds: float
    wall_seconds: float
    peak_memory: int | None = None
    energy_joules: float | None = None
    """What the devices at work drew; None where that cannot be measured (see `bench.energy.Spent`, here and below)."""
    device: str | None = None
    accelerator_seconds: float | None = None
    core_seconds: float | None = None


@dataclass(frozen=True)
class StoredRun:
    """A complete run on disk."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> StoredRun:
        """The run in a folder. Raises UsageError if its manifest is missing, unreadable or of another kind."""
        manifest = read_object(path / MANIFEST)
        description = manifest.get("description")
        shaped = (
            manifest.get("status") == "complete"
            and isinstance(manifest.get("totals"), dict)
            and isinstance(manifest.get("records_sha256"), str)
            and isinstance(description, dict)
            and all(isinstance(description.get(part), dict) and "name" in description[part] for part in _NAMED)
        )
        if not shaped:
            raise UsageError(f"{path / MANIFEST} is not the manifest of a run")
        return cls(path, manifest)

    def called(self, variant: str | None) -> StoredRun:
        """The same run under an ablation's name for it; what is stored stays as it is."""
        return replace(self, manifest={**self.manifest, "variant": variant})

    def damage(self) -> str | None:
        """What is wrong with the stored records, or None if they are those of the manifest."""
        records = self.path / RECORDS
        if not records.is_file():
            return f"{records} is missing"
        if file_digest(records) != self.manifest["records_sha256"]:
            return f"{records} is not the file that {MANIFEST} names (its SHA-256 differs)"
        return None

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that can change a record: dataset, method, engine, encoder, sampling, prompt, seed."""
        value: Mapping[str, Any] = self.manifest["description"]
        return value

    @property
    def key(self) -> str:
        """The digest of the description."""
        return digest(self.description)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.description["dataset"]["name"])

    @property
    def method(self) -> str:
        """Registry name of the method."""
        return str(self.description["method"]["name"])

    @property
    def variant(self) -> str | None:
        """What an ablation calls this run, if it was made or found in one. No part of the key."""
        value = self.manifest.get("variant")
        return None if value is None else str(value)

    @property
    def title(self) -> str:
        """The method's name, and what an ablation calls it."""
        return row_title(self.method, self.variant)

    @property
    def totals(self) -> Mapping[str, Any]:
        """Sums over the run: examples, failed, tokens, seconds; the peak of memory in bytes."""
        value: Mapping[str, Any] = self.manifest["totals"]
        return value

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        """The plan as written before the first batch."""
        return read_object(self.path / PLAN)

    @cached_property
    def records(self) -> tuple[Mapping[str, Any], ...]:
        """All records in plan order, read on first use."""
        return tuple(read_rows(self.path / RECORDS))

    def timings(self) -> Iterator[BatchTiming]:
        """The batches' costs in order."""
        for row in read_rows(self.path / TIMINGS):
            yield BatchTiming(**row)


@dataclass(frozen=True)
class MetricInfo:
    """How a metric's values came about and how they are read."""

    name: str
    signature: str
    """Everything that can change a value: metric version, options, library versions."""
    higher_is_better: bool | None
    """None for a figure that has no good side (a length ratio)."""
    reducer: str = "mean"
    """Key of `bench.stats.REDUCERS`: how values of examples become one score."""
    chance: float | None = None
    """What a text that tells nothing of its user would score; None where that is not known."""


@dataclass(frozen=True)
class StoredScores:
    """Scores of one run by metric and example."""

    metrics: Mapping[str, MetricInfo]
    values: Mapping[str, Mapping[str, tuple[float, ...] | None]]
    """Metric -> example id -> the numbers its reducer takes; None where the metric has no value."""


def write_scores(run: StoredRun, metrics: Sequence[MetricInfo], rows: Iterable[Mapping[str, Any]]) -> None:
    """Stores scores beside a run's records; the heading goes last, so that half-written scores are none.

    `rows` are objects {"example_id": ..., "scores": {metric: number, list of numbers or null}}, in record order.
    """
    (run.path / SCORES).unlink(missing_ok=True)
    write_atomic(run.path / SCORE_ROWS, json_lines(rows).decode("utf-8", "surrogatepass"))
    heading = {
        "metrics": {metric.name: {k: v for k, v in asdict(metric).items() if k != "name"} for metric in metrics},
        "records_sha256": run.manifest["records_sha256"],
        "rows_sha256": file_digest(run.path / SCORE_ROWS),
    }
    write_atomic(run.path / SCORES, pretty_json(heading))


def read_scores(run: StoredRun) -> StoredScores | None:
    """The stored scores of a run, or None if it has none or they belong to other records.

    Raises UsageError if they cannot be read or are not those that the heading names.
    """
    if not (run.path / SCORES).exists():
        return None
    heading = read_object(run.path / SCORES)
    if heading.get("records_sha256") != run.manifest["records_sha256"]:
        return None
    rows = run.path / SCORE_ROWS
    try:
        metrics = {name: MetricInfo(name, **info) for name, info in heading["metrics"].items()}
        if file_digest(rows) != heading["rows_sha256"]:
            raise ValueError
        values: dict[str, dict[str, tuple[float, ...] | None]] = {name: {} for name in metrics}
        for row in read_rows(rows):
            for name, value in row["scores"].items():
                numbers = value if isinstance(value, list) else [value]
                values[name][row[ID_FIELD]] = None if value is None else tuple(map(float, numbers))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"{rows} cannot be read as scores; make them anew: python -m bench score {run.path}"
        ) from error
    return StoredScores(metrics, values)


@dataclass(frozen=True)
class Listing:
    """What lies under a folder of runs."""

    runs: tuple[StoredRun, ...]
    """Complete and sound, sorted by path."""
    incomplete: tuple[Path, ...]
    """Started, not finished."""
    problems: tuple[str, ...]
    """Damaged or foreign folders, one line each."""
    divided: tuple[str, ...] = ()
    """Runs of which shards are missing, one line each (see `bench.shards`)."""
