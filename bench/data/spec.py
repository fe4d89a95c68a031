"""Dataset specs: TOML files that name a source, thresholds, targets per user and how prompts call the fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin

from pydantic import Field, model_validator

import bench
from bench import registry
from bench.config import Config, build
from bench.data.ready import ReadyDocuments, ReadySplit
from bench.data.tables import RawTables
from bench.errors import DataError, UnknownName, UsageError
from bench.files import read_toml
from bench.types import REVIEW_TASK, Task

C = TypeVar("C", bound=Config)


class FilterConfig(Config):
    """Thresholds of the construction, by default those of DPL. Characters are counted as the source holds the text."""

    min_text_chars: int = Field(200, ge=0)
    min_description_chars: int = Field(100, ge=0)
    """Of an item's description; bounds are looked at only where a description is required."""
    max_description_chars: int = Field(2000, ge=0)
    require_rating: bool = True
    require_title: bool = True
    """Of the review and of the item."""
    require_description: bool = True
    min_users_per_item: int = Field(8, ge=0)
    min_reviews_per_user: int = Field(18, ge=1)
    max_reviews_per_user: int = Field(500, ge=1)
    min_profile_users_per_item: int = Field(5, ge=0)
    min_profile_reviews: int = Field(8, ge=0)

    @model_validator(mode="after")
    def _bounds(self) -> FilterConfig:
        for what in ("description_chars", "reviews_per_user"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low > high:
                raise ValueError(f"min_{what} = {low} is more than max_{what} = {high}")
        return self


class SplitConfig(Config):
    """Targets per user, the user's last reviews in this order, and what becomes of a target without history."""

    train: int = Field(8, ge=1)
    val: int = Field(1, ge=1)
    test: int = Field(1, ge=1)
    on_empty_history: Literal["error", "drop", "keep"] = "error"
    """Of a target before which its user wrote nothing. Where it is only that equal times hide what came before (data
    with a day's resolution), "error" keeps the target and counts it under `histories`."""


class TaskConfig(Config):
    """How prompts call things. Left out: as the source's task has it, which is that of reviews for most."""

    name: str | None = None
    noun: str | None = None
    target_label: str | None = None
    thing: str | None = None
    """What a text is about: "item"."""
    request: str | None = None
    """What a prompt asks for, a sentence."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Field (of a review: item_title, item_description, rating, title) -> what a prompt calls it."""


class Source(Protocol):
    """What a class in the entry point group `bench.sources` offers.

    A `ready_split = True` says that `load` splits. A source whose documents are no reviews has a `task`, which names
    their fields; it then gives `ReadyDocuments`.
    """

    Config: ClassVar[type[Config]]
    """The options of [source]. A `Path` among them is relative to the spec file."""

    def __init__(self, config: Any) -> None: ...

    def load(self) -> RawTables | ReadySplit | ReadyDocuments: ...


_NAME, _LONGEST = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", 80


class _Head(Config):
    name: str = Field(pattern=_NAME, max_length=_LONGEST)
    about: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """A checked spec. Nothing has been read but the TOML file."""

    name: str
    about: str
    """One line on what the data are."""
    path: Path
    """The spec file."""
    kind: str
    """Registered name of the source."""
    source: Source
    source_config: Config
    filter: FilterConfig
    split: SplitConfig
    task: Task
    ready_split: bool
    """The source brings its own split: `filter` and the targets per user in `split` are not used."""


def is_name(text: str) -> bool:
    """Whether a dataset can be called so."""
    return re.fullmatch(_NAME.strip("^$"), text) is not None and len(text) <= _LONGEST


def folders() -> list[Path]:
    """Where bare names are looked up: datasets/ here, the checkout's, the installed ones; the first match wins."""
    package = Path(bench.__file__).resolve().parent
    return [Path("datasets"), package.parent / "datasets", package / "data" / "specs"]


def spec_files() -> dict[str, Path]:
    """Bare name -> spec file, sorted by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.toml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def available() -> list[DatasetSpec]:
    """All specs that a bare name reaches. Loads no data. Raises as `load_spec` for a broken one."""
    return [load_spec(str(file)) for file in spec_files().values()]


def load_spec(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> DatasetSpec:
    """Reads and checks a spec; no data yet.

    Args:
        name_or_path: a bare name, or a path (it ends in .toml or holds a separator).
        overrides: options of [source] to set in place of the file's, as `--set planted.noise=0.2` gives them.

    Raises:
        UnknownName: no such spec, key, label or kind of source.
        DataError: the file is missing or broken TOML (which line).
        UsageError: a value that cannot be used.
    """
    path = _find(str(name_or_path))
    tables = read_toml(path)
    known = {"name", "about", "source", "filter", "split", "task"}
    if unknown := [key for key in tables if key not in known]:
        raise UnknownName(f"key of {path}", unknown[0], known)
    head = {key: tables[key] for key in ("name", "about") if key in tables}
    about = _build(_Head, {"name": path.stem} | head, str(path))
    kind, source, source_config = _source(path, _section(tables, "source", path), overrides or {})
    filters = _build(FilterConfig, _section(tables, "filter", path), f"{path}: filter")
    split = _build(SplitConfig, _section(tables, "split", path), f"{path}: split")
    ready = bool(getattr(source, "ready_split", False))
    check_thresholds(str(path), kind, filters, split, ready)
    task = _task(path, _section(tables, "task", path), getattr(source, "task", REVIEW_TASK))
    return DatasetSpec(about.name, about.about, path, kind, source, source_config, filters, split, task, ready)


def spec_summary(name_or_path: str | Path) -> dict[str, Any]:
    """What a listing says of a dataset, with no data read; `filter` and `split` are None where the source splits."""
    spec = load_spec(name_or_path)
    return {
        "name": spec.name,
        "about": spec.about,
        "file": str(spec.path),
        "kind": spec.kind,
        "source": spec.source_config.model_dump(mode="json"),
        "filter": None if spec.ready_split else spec.filter.model_dump(),
        "split": None if spec.ready_split else spec.split.model_dump(),
        "task": spec.task.name,
    }


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"the dataset spec {name} {what}; give a TOML file, or a name from: python -m bench list datasets"
        )
    files = spec_files()
    if name not in files:
        raise UnknownName("dataset", name, files, "A path to a TOML file works too.")
    return files[name]


def _section(tables: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = tables.get(name, {})
    if not isinstance(section, dict):
        raise DataError(f"{path}: {name} = {section!r} is not a section; write [{name}] and its keys below")
    return section


def _source(path: Path, section: dict[str, Any], overrides: Mapping[str, Any]) -> tuple[str, Source, Config]:
    kind = section.get("kind")
    if not isinstance(kind, str):
        raise DataError(f"{path}: [source] needs kind = one of: {', '.join(registry.names('source'))}")
    source: type[Source] = registry.load("source", kind)
    values = {key: value for key, value in section.items() if key != "kind"} | dict(overrides)
    for key, field in source.Config.model_fields.items():
        if isinstance(values.get(key), str) and _names(Path, field.annotation):
            values[key] = path.parent / Path(values[key]).expanduser()
    config = _build(source.Config, values, f"{path}: source")
    return kind, source(config), config


def check_thresholds(where: str, kind: str, filters: FilterConfig, split: SplitConfig, ready: bool) -> None:
    """Raises UsageError for thresholds that cannot hold together, or that a source which splits would not use."""
    given = [f"filter.{key}" for key in sorted(filters.model_fields_set)]
    given += [f"split.{key}" for key in sorted(split.model_fields_set - {"on_empty_history"})]
    if ready and given:
        raise UsageError(f"{where}: {given[0]} has no effect, as source {kind!r} brings its own split; take it out")
    targets = split.train + split.val + split.test
    if not ready and filters.min_reviews_per_user < targets:
        raise UsageError(
            f"{where}: filter.min_reviews_per_user = {filters.min_reviews_per_user} is fewer than the "
            f"{targets} targets per user of [split]; raise it or take fewer targets"
        )


def _task(path: Path, section: dict[str, Any], task: Task) -> Task:
    """The source's task under the names that the spec gives."""
    config = _build(TaskConfig, section, f"{path}: task")
    names = [field.name for field in task.fields]
    for key in config.labels:
        if key not in names:
            raise UnknownName(f"key of {path}: task.labels", key, names)
    fields = tuple(replace(field, label=config.labels.get(field.name, field.label)) for field in task.fields)
    given = {key: value for key, value in config if key != "labels" and value is not None}
    return replace(task, fields=fields, **given)


def _build(config: type[C], values: Mapping[str, Any], where: str) -> C:
    """`bench.config.build`, and the same for sections within the section, so that their keys get a guess too."""
    checked = dict(values)
    for key, value in values.items():
        field = config.model_fields.get(key)
        inner = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Config):
            checked[key] = _build(inner, value, f"{where}.{key}")
    return build(config, checked, where)


def _names(wanted: type, annotation: Any) -> bool:
    """Whether an annotation is `wanted` or a union with it."""
    return annotation is wanted or (get_origin(annotation) is UnionType and wanted in get_args(annotation))
