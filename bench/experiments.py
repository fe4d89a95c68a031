"""Published tables and the settings behind them: `results/paper/NAME.json` and `experiments/NAME.toml`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

import bench
from bench.config import Config, build
from bench.configfile import PAPER, SET, run_values
from bench.errors import DataError, UnknownName, UsageError
from bench.files import read_toml
from bench.plan import RunConfig


@dataclass(frozen=True)
class Figure:
    """A published number."""

    value: float
    std: float | None = None
    """Standard deviation, where one is published."""
    significant: bool = False
    """Marked as significant by the paper's own test."""


@dataclass(frozen=True)
class Published:
    """A published table, as it stands in the paper."""

    paper: str
    venue: str
    table: str
    note: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    """(size, method) in the paper's order; the size is "" where the table has one model."""
    datasets: tuple[str, ...]
    figures: Mapping[tuple[str, str, str, str], Figure]
    """(size, method, dataset, metric) -> number."""

    @property
    def title(self) -> str:
        return f"{self.table} of {self.paper} ({self.venue})"


class PaperConfig(Config):
    """The table [paper] of an experiment."""

    figures: str
    """Name of the file under results/paper."""
    note: str = ""
    """Where the experiment cannot be as published."""
    sizes: dict[str, str] = Field(default_factory=dict)
    """The table's name of a model size -> model; the first one is run unless another is asked for."""
    datasets: dict[str, str]
    """The table's name of a dataset -> dataset spec."""
    rows: dict[str, str]
    """The table's name of a method -> method."""
    laptop: dict[str, Any] = Field(default_factory=dict)
    """What is otherwise where a laptop runs it: keys of the file itself."""


@dataclass(frozen=True)
class Experiment:
    """A published table and how to run it again."""

    name: str
    path: Path
    published: Published
    paper: PaperConfig
    run: Mapping[str, Any]
    """Values for `RunConfig`, as the file has them."""
    exact: Mapping[str, Any]
    """Values for `RunConfig` in the published settings: those of the file that came with the table."""
    laptop: Mapping[str, Any]
    """Values that replace them on a laptop; the assignments among them come after the published ones."""


def _folders(*inside: str, installed: str) -> list[Path]:
    """The working directory's, the checkout's, the installed one."""
    package = Path(bench.__file__).resolve().parent
    return [Path(*inside), package.parent.joinpath(*inside), package / installed]


def _files(folders: Sequence[Path], ending: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob(f"*{ending}")):
            found.setdefault(file.stem, file)
    return found


def load(name: str) -> Experiment:
    """An experiment by name or by the path of its TOML file.

    Raises UnknownName for an unknown name or key, DataError for a broken file, UsageError for a value of a wrong type.
    """
    known = _files(_folders("experiments", installed="data/experiments"), ".toml")
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise UnknownName("paper table", name, [one for one, file in known.items() if PAPER in read_toml(file)])
    table = read_toml(path)
    if not isinstance(table.get(PAPER), Mapping):
        raise UsageError(f"{path} has no table [{PAPER}]; run it with: python -m bench run --config {path}")
    paper = build(PaperConfig, table[PAPER], f"{path}: {PAPER}")
    published = read_published(paper.figures)
    _check(paper, published, path)
    where = f"{path}: {PAPER}.laptop"
    laptop = run_values(paper.laptop, where)
    if unknown := [key for key in paper.laptop if key not in table and key not in ("limit", "train_limit", SET)]:
        raise UsageError(f"{where}.{unknown[0]} has no published value that it could replace")
    run = _checked_run(run_values(table, str(path)), paper, path)
    shipped = known.get(paper.figures, path)
    exact = run if shipped.resolve() == path.resolve() else run_values(read_toml(shipped), str(shipped))
    return Experiment(path.stem, path, published, paper, run, exact, laptop)


def _checked_run(run: dict[str, Any], paper: PaperConfig, path: Path) -> dict[str, Any]:
    """The values, if a run can be made of them. Raises UsageError for what is missing or of a wrong type."""
    for key in ("methods", "metrics"):
        if key not in run:
            raise UsageError(f"{path} has no {key}; a table is made of some")
    build(RunConfig, run, str(path))
    if not paper.datasets:
        raise UsageError(f"{path}: {PAPER}.datasets is empty; give the table's name of a dataset and its spec")
    if paper.sizes and run.get("model") not in paper.sizes.values():
        told = ", ".join(paper.sizes.values())
        raise UsageError(f"{path}: model = {run.get('model')!r} is none of {PAPER}.sizes ({told}); change both")
    return run


def _check(paper: PaperConfig, published: Published, path: Path) -> None:
    methods = {method for _, method in published.rows}
    sizes = {size for size, _ in published.rows}
    for what, mine, theirs in (
        ("rows", paper.rows, methods),
        ("datasets", paper.datasets, set(published.datasets)),
        ("sizes", paper.sizes, sizes),
    ):
        for key in mine:
            if key not in theirs:
                raise UnknownName(f"key of {path}: {PAPER}.{what}", key, theirs)


def read_published(name: str) -> Published:
    """A published table by name. Raises UnknownName, or DataError where the file is not as it should be."""
    known = _files(_folders("results", "paper", installed="data/published"), ".json")
    if name not in known:
        raise UnknownName("published table", name, known)
    try:
        return _parsed(json.loads(known[name].read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{known[name]} is no published table: {type(error).__name__}: {error}") from error


def _parsed(read: Mapping[str, Any]) -> Published:
    metrics = tuple(read["metrics"])
    figures = {
        (row.get("size", ""), row["method"], row["dataset"], metric): _figure(row[metric])
        for row in read["rows"]
        for metric in metrics
    }
    rows = tuple(dict.fromkeys((row.get("size", ""), row["method"]) for row in read["rows"]))
    datasets = tuple(dict.fromkeys(row["dataset"] for row in read["rows"]))
    paper, venue, table, note = (str(read[key]) for key in ("paper", "venue", "table", "note"))
    return Published(paper, venue, table, note, metrics, rows, datasets, figures)


def _figure(value: Any) -> Figure:
    if isinstance(value, Mapping):
        return Figure(float(value["mean"]), float(value["std"]), bool(value["significant"]))
    return Figure(float(value))
