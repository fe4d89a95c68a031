"""What `python -m bench export` wrote of a DEP, checked before anything is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.config import build
from bench.errors import UsageError
from bench.files import file_digest, read_object
from bench.method import EXPORT_CONFIG, EXPORT_FORMAT, EXPORT_SECTION
from bench.types import REVIEW_TASK, Field, Sampling, Task
from methods.dep.config import DepConfig

ADAPTER = "adapter.safetensors"
_HOW = "make one with: python -m bench export RUN DIR"


class _Method(BaseModel):
    name: str
    version: str
    config: dict[str, Any]


class _Task(BaseModel):
    name: str
    noun: str
    target_label: str
    fields: tuple[Field, ...]
    query_fields: tuple[str, ...]
    document_fields: tuple[str, ...]
    thing: str = "item"
    request: str = ""


class _Prompt(BaseModel):
    max_prompt_tokens: int


class _Model(BaseModel):
    model: str
    revision: str
    dtype: str
    device: str


class _Encoder(BaseModel):
    name: str
    revision: str


class Exported(BaseModel):
    """The `bench` section of an export's `config.json`, as far as writing needs it."""

    format: int
    method: _Method
    engine: _Model
    encoder: _Encoder
    batching: dict[str, Any]
    task: _Task
    sampling: Sampling
    prompt: _Prompt
    seed: int
    files: dict[str, str]
    """Name -> SHA-256."""
    embedding_size: int
    """Numbers of an encoder's vector."""
    hidden_size: int
    """Numbers of a soft token."""

    @property
    def knobs(self) -> DepConfig:
        """The method's config. Raises UsageError for a knob that is no longer there."""
        return build(DepConfig, self.method.config, f"{EXPORT_CONFIG}: dep")

    @property
    def harness_task(self) -> Task:
        """The task as the harness has it."""
        return Task(**dict(self.task))


def read_export(path: Path, version: str) -> Exported:
    """Reads and checks an export; no weights yet.

    Raises UsageError for what is no export of a DEP, for one that is damaged, for a control, and for a task that is not
    that of reviews. Warns where another version of the method made it.
    """
    if not (path / EXPORT_CONFIG).is_file():
        raise UsageError(f"{path} is no export of a DEP; {_HOW}")
    config = read_object(path / EXPORT_CONFIG)
    section = config.get(EXPORT_SECTION)
    method = section.get("method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(method, dict):
        raise UsageError(f"{path / EXPORT_CONFIG} is not of an export; {_HOW}")
    if method.get("name") != "dep":
        raise UsageError(f"{path} holds a {method.get('name')!r}, not a DEP; its model card says how to load it")
    if section.get("format") != EXPORT_FORMAT:
        raise UsageError(
            f"{path / EXPORT_CONFIG} has format {section.get('format')}, this dep-bench reads {EXPORT_FORMAT}; "
            "export anew"
        )
    sizes = {key: config.get(key) for key in ("embedding_size", "hidden_size")}
    try:
        told = Exported.model_validate({**section, **sizes})
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(
            f"{path / EXPORT_CONFIG} is damaged (at {where}); copy the folder or export it again"
        ) from error
    _check_files(path, told)
    if [field.name for field in told.task.fields] != [field.name for field in REVIEW_TASK.fields]:
        raise UsageError(
            f"{path} learned to write {told.task.noun}s (task {told.task.name}); the writer takes item reviews"
        )
    if told.knobs.shuffle != "none":
        raise UsageError(f"{path} is a control (shuffle = {told.knobs.shuffle}): it reads other users' reviews")
    if told.method.version != version:
        warnings.warn(
            f"{path} was made by version {told.method.version} of dep, this is version {version}: texts may differ",
            stacklevel=3,
        )
    return told


def _check_files(path: Path, told: Exported) -> None:
    for file in {ADAPTER, *told.files}:
        if not (path / file).is_file() or file_digest(path / file) != told.files.get(file):
            raise UsageError(f"{path / file} is missing or not the file that was exported; copy or export it again")
