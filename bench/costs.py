"""What was paid, by stage: seconds, hours of accelerators or cores, joules, tokens. Never money, whose price changes.

A run's costs lie in three places. `timings.jsonl` has a line for each batch of the last stage,
`stages/NAME.costs.jsonl` one for each batch of a stage before it, and `costs.jsonl` one for whatever else took time
(loading, embedding, reading hidden states) and for batches whose records a kill took. All are appended as soon as they
are paid, by each process that works on the run, so that their sum is what all of them spent. What a process was killed
in the midst of is in none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.energy import Spent
from bench.files import json_lines, parse_line
from bench.stored import TIMINGS, StoredRun

LEDGER = "costs.jsonl"
STAGE_COSTS = ".costs.jsonl"
"""How the name of a stage's file of costs ends."""
GENERATE = "generate"
"""The last stage, which writes the answers."""
_ORDER = ("load", "fit embed", "fit hidden", "fit", "embed", "adapt", "hidden")


@dataclass(frozen=True)
class Cost:
    """What one stage took on one device. Unknown and something is unknown: a sum is never too small."""

    stage: str
    device: str | None
    """Name of the accelerator, without one that of the processor; None if unknown, or for a service elsewhere."""
    seconds: float
    accelerator_seconds: float | None = None
    core_seconds: float | None = None
    energy_joules: float | None = None
    calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def of(cls, stage: str, spent: Spent, calls: int = 0, prompt_tokens: int = 0, output_tokens: int = 0) -> Cost:
        """The cost of measured work."""
        hours = spent.accelerator_seconds, spent.core_seconds
        return cls(stage, spent.device, spent.seconds, *hours, spent.energy_joules, calls, prompt_tokens, output_tokens)

    @classmethod
    def read(cls, row: Mapping[str, Any], **more: Any) -> Cost:
        """A stored row; of older ones only seconds and tokens are known."""
        known = {field.name for field in fields(cls)}
        return cls(**{"device": None, **{key: value for key, value in row.items() if key in known}, **more})

    def plus(self, other: Cost) -> Cost:
        """Both together, under this one's stage and device."""
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name)) for name in SUMMED}
        return replace(self, **sums)


SUMMED = tuple(field.name for field in fields(Cost) if field.name not in ("stage", "device"))


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def merged(costs: Iterable[Cost]) -> list[Cost]:
    """One for each stage and device, in the order in which a run goes through its stages."""
    found: dict[tuple[str, str | None], Cost] = {}
    for cost in costs:
        key = (cost.stage, cost.device)
        found[key] = found[key].plus(cost) if key in found else cost
    return sorted(found.values(), key=lambda cost: _place(cost.stage))


def once(stage: str) -> bool:
    """Whether a stage is paid once, however many texts are written."""
    return stage == "load" or stage.split()[0] == "fit"


def total(costs: Iterable[Cost], name: str) -> float | None:
    """A sum over all stages; None if it is unknown of any, or there is none."""
    values = [getattr(cost, name) for cost in costs]
    return None if not values or None in values else sum(values)


def _place(stage: str) -> int:
    """Stages before the last one have names of their own, and come before it."""
    return _ORDER.index(stage) if stage in _ORDER else len(_ORDER) + (stage == GENERATE)


def as_rows(costs: Iterable[Cost]) -> list[dict[str, Any]]:
    """Plain values, as records keep them."""
    return [asdict(cost) for cost in costs]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Cost]:
    """What `as_rows` made."""
    return [Cost.read(row) for row in rows]


def append_costs(path: Path, costs: Iterable[Cost]) -> None:
    """Adds to a ledger what was paid."""
    if rows := as_rows(costs):
        append_lines(path, rows)


def lost(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds timings of batches whose records a kill took to a ledger, each once however often a kill comes here, too."""
    there = [row.get("lost") for row in _rows(path)]
    for row in rows:
        if dict(row) not in there:
            append_lines(path, [{**asdict(_batch(row)), "lost": dict(row)}])


def run_costs(folder: Path, stages: Path) -> list[Cost]:
    """What all processes that worked on the run in `folder` paid, by stage; its intermediate stages lie in `stages`."""
    costs = [Cost.read(row) for row in _rows(folder / LEDGER)]
    for path in sorted(stages.glob(f"*{STAGE_COSTS}")):
        name = path.name.removesuffix(STAGE_COSTS)
        stage = f"stage {name}" if name in (*_ORDER, GENERATE) else name
        costs += [Cost.read(row, stage=stage, seconds=row["wall_seconds"]) for row in _rows(path)]
    # Nothing is measured of answers that no model wrote.
    return merged([*costs, *(_batch(row) for row in _rows(folder / TIMINGS) if row["wall_seconds"])])


def totals(costs: Sequence[Cost]) -> dict[str, Any]:
    """Costs as a run's manifest tells them: by stage, and the sums that are known."""
    sums = {name: total(costs, name) for name in ("energy_joules", "accelerator_seconds", "core_seconds")}
    return {"costs": as_rows(costs), **sums}


def paid(run: StoredRun) -> list[Cost]:
    """What a stored run cost, its fit included, whoever made that. Of older runs only seconds and tokens are known."""
    fit, told = run.manifest.get("fit") or {}, run.totals
    if "costs" in fit:
        costs = from_rows(fit["costs"])
    else:
        costs = [Cost("fit", None, fit.get("seconds") or 0.0), Cost("fit embed", None, fit.get("embed_seconds") or 0.0)]
    if "costs" in told:
        return merged([*(cost for cost in costs if cost.seconds), *from_rows(told["costs"])])
    costs += [Cost(name, None, told.get(f"{name}_seconds") or 0.0) for name in ("load", "embed", "adapt", "hidden")]
    costs += [
        Cost.read(row, stage=name, seconds=row["wall_seconds"]) for name, row in (told.get("stages") or {}).items()
    ]
    calls = int(told.get("examples") or 0)
    costs.append(Cost.read(told, stage=GENERATE, seconds=told.get("wall_seconds") or 0.0, calls=calls))
    return merged(cost for cost in costs if cost.seconds)


def ledger(path: Path) -> list[Cost]:
    """What a ledger holds; nothing if there is none."""
    return [Cost.read(row) for row in _rows(path)]


def _batch(row: Mapping[str, Any]) -> Cost:
    return Cost.read(row, stage=GENERATE, seconds=row["wall_seconds"], calls=row["examples"])


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [row for row in map(parse_line, lines) if row is not None]


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends JSON lines, on lines of their own whatever a kill left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a line that a kill cut short would swallow the next one
                file.write(b"\n")
        file.write(json_lines(rows))
