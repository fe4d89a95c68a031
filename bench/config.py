"""Typed configs: unknown keys refused, `--set part.key=value` applied with a clear error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import UnknownName, UsageError

C = TypeVar("C", bound=BaseModel)


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def changed(self) -> dict[str, Any]:
        """The knobs that are not at their defaults."""
        usual = type(self)().model_dump()
        return {knob: value for knob, value in self.model_dump().items() if value != usual[knob]}


def parse_value(text: str) -> Any:
    """A value from the command line: JSON where it is JSON (4, 0.5, true, null, [1,2]), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_overrides(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`["dep.n_history=4"]` -> `{"dep": {"n_history": 4}}`."""
    overrides: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        part, dot, key = path.strip().rpartition(".")
        if not (equals and dot and part and key):
            raise UsageError(f"--set {assignment!r} is not of the form NAME.KEY=VALUE, such as dep.n_history=4")
        overrides.setdefault(part, {})[key] = parse_value(text.strip())
    return overrides


def build(config: type[C], values: Mapping[str, Any], where: str) -> C:
    """A validated config. Raises UsageError naming the key, what was given and what is allowed."""
    for key in values:
        if key not in config.model_fields:
            raise UnknownName(f"key of {where}", key, config.model_fields)
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        reason = " ".join(first["msg"].removeprefix("Value error, ").split())
        reason = reason.replace("a valid tuple", "a list").replace("for <class 'pathlib.Path'>", "").strip()
        raise UsageError(f"{where}.{key} = {_shown(first['input'])} is not valid: {reason}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
