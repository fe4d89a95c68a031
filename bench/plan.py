"""From what a user asked to a checked plan: every name, key and capability is settled before anything loads."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bench import distributed, registry, trackers
from bench.ablation import Planned, ablated, expand, method_class
from bench.config import Config, build, parse_overrides
from bench.errors import UnknownName, UsageError
from bench.method import Method
from bench.prices import Prices, read_prices
from bench.shards import Shard
from bench.store import DEFAULT_OUT, Existing, check_writable
from bench.trackers import TrackerName
from bench.types import Capability, Sampling

if TYPE_CHECKING:
    from bench.data.spec import DatasetSpec
    from bench.data.split import Dataset
    from bench.encoders import Encoder
    from bench.engines.base import Engine
    from bench.metrics.base import Metric

DEFAULT_METRICS = (
    "rouge1",
    "rougeL",
    "meteor",
    "bleu",
    "bertscore",
    "trait_recovery",
    "author_ngram_rank",
    "style_distance",
    "copy_rate",
    "length_ratio",
)
ALL = "all"
"""Stands in --methods for every registered method that engine and dataset can serve."""
WHO_WORKS = ("shard", "fit_only", "executor", "address", "workers")
"""Fields of a run's config that say who does what of it, and change no record."""
LIMIT_SEED = 0
"""Users are chosen by one hash, the same for every method and seed."""


class Executor(enum.StrEnum):
    """What works through a run."""

    LOCAL = "local"  # this process
    RAY = "ray"  # workers on a Ray cluster


class RunConfig(Config):
    """Everything `python -m bench run` can be told."""

    methods: tuple[str, ...]
    ablate: tuple[str, ...] = ()
    """Ablations, or single variants of them, that the methods' own lists name."""
    dataset: str = "planted"
    model: str = "smollm2-135m"
    encoder: str = "minilm"
    engine: str = "hf"
    metrics: tuple[str, ...] | None = None
    """None takes all built-in metrics that fit the dataset."""
    limit: int | None = Field(default=None, ge=1)
    """Test users; None takes all."""
    train_limit: int | None = Field(default=None, ge=1)
    """Train and validation users; None takes all."""
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    """Assignments NAME.KEY=VALUE for methods, engine, metrics or dataset source."""
    out: Path = DEFAULT_OUT
    existing: Existing = Existing.RESUME
    max_new_tokens: int = Field(default=256, ge=1)
    max_prompt_tokens: int = Field(default=3072, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    tracker: TrackerName = TrackerName.NONE
    """Where losses can be watched while training."""
    prices: Path | None = None
    """A file of prices for the bill; changes nothing that is stored."""
    shard: str | None = None
    """Which part of the test users, as "2/4" (see `bench.shards`); None takes all."""
    fit_only: bool = False
    """Make the fits that methods need, and nothing else."""
    executor: Executor = Executor.LOCAL
    address: str | None = None
    """Of the Ray cluster; None starts one on this machine."""
    workers: int | None = Field(default=None, ge=1)
    """Engines on the Ray cluster; None takes one for each accelerator, or CPU where there is none."""
    dry_run: bool = False

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.max_new_tokens)


@dataclass(frozen=True)
class Plan:
    """A run whose names and settings all hold; nothing heavy is loaded yet."""

    config: RunConfig
    planned: tuple[Planned, ...]
    """The methods in the order they run in, an ablation's variants behind the method they vary."""
    engine: Engine
    encoder: Encoder | None
    metrics: tuple[Metric, ...]
    dataset: Dataset
    overrides: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]
    """Methods that `all` could not take, each with the reason."""
    prices: Prices | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(one.method for one in self.planned)

    @property
    def shard(self) -> Shard | None:
        """The share of the test users that is asked for; None for all."""
        return None if self.config.shard is None else Shard.parse(self.config.shard)

    @property
    def baseline(self) -> str | None:
        """The row that an ablation's others are compared with; None leaves it to the table."""
        return ablated(self.planned, self.config.ablate)


def make_plan(config: RunConfig) -> Plan:
    """Checks everything that can be checked without loading a model. Raises UsageError on the first thing wrong."""
    trackers.check(config.tracker)
    prices = None if config.prices is None else read_prices(config.prices)
    _check_parts_of_work(config)
    if not config.methods:
        raise UsageError("no method given; --methods takes a comma-separated list, see: python -m bench list methods")
    if not config.seeds:
        raise UsageError("no seed given; --seeds takes a comma-separated list of whole numbers, such as 0,1,2")
    metric_names = config.metrics if config.metrics is not None else DEFAULT_METRICS
    lists = {"methods": config.methods, "ablate": config.ablate, "seeds": config.seeds, "metrics": metric_names}
    for what, values in lists.items():
        if twice := sorted({str(value) for value in values if list(values).count(value) > 1}):
            raise UsageError(f"--{what} names {', '.join(twice)} more than once; once is enough")
    overrides = parse_overrides(config.overrides)
    _check_budgets(config, overrides)
    engine_class = registry.load("engine", config.engine)
    names, left_out = _named(config.methods, engine_class)
    planned = tuple(expand(names, config.ablate, overrides))
    methods = [one.method for one in planned]
    _check_engine(methods, engine_class)
    parts = {*(m.name for m in methods), *left_out, config.engine, dataset_part(config), *metric_names}
    check_parts(overrides, parts)
    engine = _engine(engine_class, config, overrides, any(asks_model(m) for m in methods))
    encoder = _encoder(config)
    spec = _spec(config, overrides)
    if not config.dry_run:
        check_writable(config.out)
    metrics = make_metrics(metric_names, overrides)
    dataset = _prepared(spec, config)
    if ALL in config.methods and dataset.truth is None:
        knowing = {m.name for m in methods if Capability.TRUTH in m.needs} - set(config.methods)
        left_out |= dict.fromkeys(sorted(knowing), f"dataset {dataset.name!r} has no known truth")
        planned = tuple(one for one in planned if one.method.name not in knowing)
    methods = [one.method for one in planned]
    _check_truth(methods, dataset)
    metrics = applicable(metrics, dataset, asked=config.metrics is not None)
    used = encoder if any(m.wants_encoder() for m in methods) else None
    return Plan(config, planned, engine, used, metrics, dataset, overrides, left_out, prices)


def _check_parts_of_work(config: RunConfig) -> None:
    """Refuses flags that contradict one another about who does what."""
    if config.shard is not None:
        Shard.parse(config.shard)
        if config.fit_only:
            raise UsageError("--fit-only makes whole fits, which shards share; leave --shard out")
    if config.executor is Executor.RAY:
        if distributed.launched():
            raise UsageError("--executor ray starts processes itself; give it without accelerate launch or torchrun")
        for flag, given in (("--shard", config.shard), ("--fit-only", config.fit_only)):
            if given:
                raise UsageError(f"--executor ray divides the work itself; leave {flag} out")
    elif config.address is not None or config.workers is not None:
        raise UsageError("--address and --workers go with --executor ray")


def _check_budgets(config: RunConfig, overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses budgets that workers would not share: each has an engine of its own, which would spend all of it."""
    knobs = overrides.get(config.engine, {})
    budgets = {"--max-cost": "max_cost", "--max-requests": "max_requests"}
    given = [flag for flag, knob in budgets.items() if knobs.get(knob) is not None]
    if given and config.executor is Executor.RAY:
        raise UsageError(
            f"{' and '.join(given)} would hold for each worker of --executor ray by itself, not for all of them "
            "together; leave out one or the other"
        )


def _named(names: Sequence[str], engine: type[Engine]) -> tuple[list[str], dict[str, str]]:
    """The methods to run, with `all` told out behind those that are named, and what it could not take and why."""
    named = [name for name in names if name != ALL]
    left_out: dict[str, str] = {}
    if ALL not in names:
        return named, left_out
    for name in registry.names("method"):
        if name in named:
            continue
        try:
            missing = _missing(method_class(name).needs, engine)
        except UsageError as error:
            left_out[name] = str(error)
            continue
        if missing:
            left_out[name] = f"engine {engine.name!r} does not give {', '.join(missing)}"
        else:
            named.append(name)
    return named, left_out


def _missing(needs: Collection[Capability], engine: type[Engine]) -> list[str]:
    return sorted(set(needs) - engine.capabilities - {Capability.TRUTH})


def dataset_part(config: RunConfig) -> str:
    """How the dataset is called in --set."""
    return part_of(config.dataset)


def part_of(dataset: str) -> str:
    """How a dataset is called in --set: its name, or its spec file's without the ending."""
    return Path(dataset).stem if dataset.endswith(".toml") else dataset


def check_parts(overrides: Mapping[str, Any], parts: Collection[str]) -> None:
    """Refuses assignments to what is no part of this run: they would change nothing."""
    for part in overrides:
        if part not in parts:
            raise UnknownName("part of this run in --set", part, parts)


def dataset_of(config: RunConfig) -> Dataset:
    """The dataset that a run is on, limited to its users."""
    return _prepared(_spec(config, parse_overrides(config.overrides)), config)


def _spec(config: RunConfig, overrides: Mapping[str, Mapping[str, Any]]) -> DatasetSpec:
    from bench.data.spec import load_spec

    return load_spec(config.dataset, overrides.get(dataset_part(config), {}))


def _prepared(spec: DatasetSpec, config: RunConfig) -> Dataset:
    from bench.data.split import prepare

    return prepare(spec).limited(config.limit, config.train_limit, LIMIT_SEED)


def asks_model(method: Method) -> bool:
    """Whether the method generates with an engine at all."""
    return bool(method.needs - {Capability.TRUTH})


def _engine(engine_class: Any, config: RunConfig, overrides: Mapping[str, Any], needed: bool) -> Engine:
    from bench import weights

    settings = build(engine_class.Config, overrides.get(config.engine, {}), config.engine)
    source: Any = None
    if needed:
        source = weights.resolve(config.model, "llm") if engine_class.local else config.model
    engine: Engine = engine_class(source, settings)
    engine.keep_under(config.out)
    return engine


def _encoder(config: RunConfig) -> Encoder:
    from bench import weights
    from bench.encoders import Encoder

    return Encoder(weights.resolve(config.encoder, "encoder"))


def make_metrics(names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Metrics by name, path or hub id, with their knobs set."""
    from bench.metrics.external import resolve

    made = tuple(resolve(name, overrides.get(name, {})) for name in names)
    called = [metric.name for metric in made]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise UsageError(f"--metrics gives two metrics the name {', '.join(twice)}; leave one out or rename its file")
    return made


def _check_engine(methods: Sequence[Method], engine: type[Engine]) -> None:
    for method in methods:
        if missing := _missing(method.needs, engine):
            raise UsageError(
                f"method {method.name!r} needs {', '.join(missing)}, which engine {engine.name!r} does not "
                "give; see: python -m bench list engines"
            )


def _check_truth(methods: Sequence[Method], dataset: Dataset) -> None:
    for method in methods:
        if Capability.TRUTH in method.needs and dataset.truth is None:
            raise UsageError(
                f"method {method.name!r} needs a dataset with a known truth; {dataset.name!r} has none: "
                f"use --dataset planted or leave {method.name} out"
            )


def applicable(metrics: Sequence[Metric], dataset: Dataset, asked: bool) -> tuple[Metric, ...]:
    """The metrics that fit the dataset. Raises UsageError if one that was asked for does not."""
    fitting = tuple(m for m in metrics if m.applicable(dataset.truth is not None))
    if asked and len(fitting) < len(metrics):
        left = ", ".join(m.name for m in metrics if m not in fitting)
        raise UsageError(f"metric {left} needs a dataset with a known truth; {dataset.name!r} has none")
    return fitting
