"""Run configs as TOML: whatever the flags of `run` can say, and what a run was resolved to.

A file names the same things as the flags, with underscores. What `--set` says stands in tables, or as a list:

    methods = ["rag", "dep"]        [set.dep]                set = ["dep.n_history=4", "dep.max_peers=null"]
    max_new_tokens = 128            n_history = 4

Paths are relative to the working directory, as on the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.config import build
from bench.errors import UnknownName, UsageError
from bench.files import read_toml, toml_value, write_atomic
from bench.keys import digest
from bench.plan import ALL, WHO_WORKS, Plan, RunConfig, part_of

SET = "set"
"""Where a file says what --set says."""
PAPER = "paper"
"""A table that `run` leaves alone: what `python -m bench paper` needs to know of the experiment."""
_HEAD = """# A resolved run: do it again with python -m bench run --config FILE.
# Every knob of its methods and engine is told; to change a mode that brings others with it, write a file of your own.
"""
CONFIGS = "configs"
"""Folder under a run's `out` for resolved configs."""
_NO_KEYS = ("overrides", "dry_run", "shard", "fit_only")
_NOT_KEPT = (*_NO_KEYS, "existing", "tracker", "prices", *WHO_WORKS)
"""What changes no record, and would make a resolved config do more than run again."""
_COUNTS = ("limit", "train_limit", "max_new_tokens", "max_prompt_tokens")


def read_config(path: Path) -> dict[str, Any]:
    """Values for `RunConfig` from a file; only what the file says, not yet checked against types.

    Raises DataError for a file that is not TOML, UnknownName for an unknown key, UsageError for a broken `set`.
    """
    return run_values(read_toml(path), str(path))


def run_values(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values for `RunConfig` from a file's table; see `read_config`."""
    known = [name for name in RunConfig.model_fields if name not in _NO_KEYS]
    for key in table:
        if key not in (*known, SET, PAPER):
            raise UnknownName(f"key of {where}", key, [*known, SET])
    values = {key: value for key, value in table.items() if key in known}
    for key in _COUNTS:
        if isinstance(values.get(key), bool):  # which would count as 0 or 1
            raise UsageError(f"{where}: {key} = {str(values[key]).lower()} is not a number")
    if SET in table:
        values["overrides"] = list(_assignments(table[SET], where))
    return values


def merged(path: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """A file's values with those of the flags given beside it put over them; raises as `read_config`.

    Assignments of both count, those of the flags last. Where flags name other methods, metrics, engine or dataset, what
    the file sets of those that are left out goes with them.
    """
    values = {"methods": [], **read_config(path)}
    left = left_out(values, flags)
    old = [one for one in values.get("overrides", []) if part_set(one) not in left]
    return {**values, **flags, "overrides": [*old, *flags.get("overrides", [])]}


def part_set(assignment: str) -> str:
    """The part that NAME.KEY=VALUE sets a knob of; "" where it is of another form."""
    return assignment.partition("=")[0].strip().rpartition(".")[0]


def left_out(values: Mapping[str, Any], flags: Mapping[str, Any]) -> set[str]:
    """Parts that a file's `values` may have set and that the flags have put aside.

    With an ablation no method is put aside, as its variants may be of others.
    """
    left: set[str] = set()
    for kind, key in (("method", "methods"), ("metric", "metrics"), ("engine", "engine")):
        if key in flags and not (key == "methods" and (flags.get("ablate") or values.get("ablate"))):
            wanted = [flags[key]] if isinstance(flags[key], str) else flags[key] or []
            left |= set() if ALL in wanted else {*registry.names(kind)} - {*wanted}
    if "dataset" in flags:
        usual = RunConfig.model_fields["dataset"].default
        left |= {part_of(str(values.get("dataset", usual)))} - {part_of(flags["dataset"])}
    return left


def _assignments(given: Any, where: str) -> Iterator[str]:
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, str) for one in given):
        yield from given
        return
    if not isinstance(given, Mapping) or not all(isinstance(knobs, Mapping) for knobs in given.values()):
        raise UsageError(f"{where}: {SET} is neither a list of NAME.KEY=VALUE nor tables such as [set.dep]")
    for part, knobs in given.items():
        for knob, value in knobs.items():
            try:
                yield f"{part}.{knob}={json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            except (TypeError, ValueError) as error:
                raise UsageError(f"{where}: {SET}.{part}.{knob} = {value!r} is nothing that --set can give") from error


def resolved(plan: Plan) -> dict[str, Any]:
    """Everything a plan was resolved to, so that equal results follow from it whatever the defaults become.

    All knobs of the methods and the engine stand in it, `all` is told out, and metrics are named.
    """
    config = plan.config.model_dump(mode="json", exclude=set(_NOT_KEPT), exclude_none=True)
    own = [planned for planned in plan.planned if planned.variant is None]
    parts: dict[str, Mapping[str, Any]] = {name: knobs for name, knobs in plan.overrides.items() if knobs}
    parts |= {planned.method.name: planned.method.config.model_dump(mode="json") for planned in own}
    engine = plan.config.engine
    settings = build(registry.load("engine", engine).Config, plan.overrides.get(engine, {}), engine)
    parts[engine] = settings.model_dump(mode="json")
    config |= {
        "methods": [planned.method.name for planned in own],
        "metrics": [*(plan.config.metrics or (metric.name for metric in plan.metrics))],
        "dataset": _absolute(plan.config),
    }
    assignments = [
        f"{part}.{knob}={json.dumps(value, ensure_ascii=False)}"
        for part, knobs in sorted(parts.items())
        for knob, value in knobs.items()
    ]
    return {key: config[key] for key in RunConfig.model_fields if key in config} | {SET: assignments}


def _absolute(config: RunConfig) -> str:
    """A spec file's path from the root, as the config may be run from elsewhere; a name as it is."""
    return config.dataset if part_of(config.dataset) == config.dataset else str(Path(config.dataset).resolve())


def toml_text(values: Mapping[str, Any]) -> str:
    """TOML of flat values: strings, numbers, truths, and lists of these."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        if len(one_line := ", ".join(map(_toml, value))) <= 100:
            return f"[{one_line}]"
        return "[\n" + "".join(f"  {_toml(inner)},\n" for inner in value) + "]"
    return toml_value(value)


def keep(plan: Plan) -> Path:
    """Writes what a plan was resolved to beside its runs and returns the file; the same plan, the same file."""
    values = resolved(plan)
    folder = plan.config.out / CONFIGS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plan.dataset.name}-{digest(values, 12)}.toml"
    write_atomic(path, _HEAD + toml_text(values))
    return path
