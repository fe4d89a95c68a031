"""What each row of a table cost, by stage: seconds, hours, energy, tokens, and money where prices are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.cells import Cell, label_cell
from bench.comparison import Entry, printable
from bench.costs import GENERATE, Cost, once, paid
from bench.prices import Prices, amount, money
from bench.store import StoredRun

ALL = "all"
"""The row that adds the stages of a method up."""
PER = 1000
"""Texts that the second grid is for."""
COLUMNS: dict[str, tuple[str, Callable[[Cost], float | None], float]] = {
    "seconds": ("s", lambda cost: cost.seconds, 1.0),
    "gpu_hours": ("GPU-hours", lambda cost: cost.accelerator_seconds, 1 / 3600),
    "core_hours": ("core-hours", lambda cost: cost.core_seconds, 1 / 3600),
    "energy_wh": ("energy Wh", lambda cost: cost.energy_joules, 1 / 3600),
    "prompt_tokens": ("prompt tokens", lambda cost: cost.prompt_tokens, 1.0),
    "output_tokens": ("new tokens", lambda cost: cost.output_tokens, 1.0),
}
"""Key -> heading, what of a cost stands there, and its unit in that of the column."""


@dataclass(frozen=True)
class Grid:
    """One grid of costs, in plain words for `bench.tables`."""

    title: str
    key: str
    """Name where a machine reads."""
    columns: tuple[tuple[str, str, str], ...]
    """Key, heading and kind."""
    rows: tuple[tuple[tuple[Cell, ...], bool], ...]
    """Cells, and whether the row is a ceiling's."""


@dataclass
class CostOptions:
    """What is shown of costs, and what turned out to have no price."""

    prices: Prices | None = None
    unpriced: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Line:
    """One row: the mean over runs, in the columns' units."""

    stage: str
    values: Mapping[str, float | None]


def cost_grids(entries: Sequence[Entry], options: CostOptions) -> list[Grid]:
    """All costs by stage; and what 1,000 texts cost, without what is paid once."""
    return [
        _grid("Costs by stage", "costs", entries, options, each=False),
        _grid(f"Costs of {PER:,} texts, without loading and fitting", "costs_per_1000", entries, options, each=True),
    ]


def _grid(title: str, key: str, entries: Sequence[Entry], options: CostOptions, each: bool) -> Grid:
    columns = [("method", "method", "label"), ("stage", "stage", "label")]
    columns += [(name, heading, "cost") for name, (heading, _, _) in COLUMNS.items()]
    if options.prices:
        columns.append((f"money_{options.prices.currency}", options.prices.currency, "cost"))
    rows = []
    for entry in entries:
        label = label_cell(entry)
        for line in _lines(entry, options, each):
            shown = [amount_cell(line.values[name]) for name, _, _ in columns[2:]]
            rows.append(((label, Cell(printable(line.stage), line.stage), *shown), entry.ceiling))
            label = Cell("", label.value)
    return Grid(title, key, tuple(columns), tuple(rows))


def _lines(entry: Entry, options: CostOptions, each: bool) -> list[_Line]:
    found: dict[str, list[_Line]] = {}
    for run in entry.runs:
        scale = PER / (int(run.totals.get("examples") or 0) or math.nan) if each else 1.0
        costs = [cost for cost in paid(run) if not (each and once(cost.stage))]
        for line in _run_lines(run, costs, scale, options, parts=not each):
            found.setdefault(line.stage, []).append(line)
    return [_mean(stage, lines, len(entry.runs)) for stage, lines in found.items()]


def _run_lines(run: StoredRun, costs: Sequence[Cost], scale: float, options: CostOptions, parts: bool) -> list[_Line]:
    stages = dict.fromkeys(cost.stage for cost in costs)
    lines = [_line(stage, [cost for cost in costs if cost.stage == stage], run, scale, options) for stage in stages]
    if parts:
        for name in ("prefill", "decode"):
            if (seconds := float(run.totals.get(f"{name}_seconds") or 0)) and (
                line := _part(lines, name, seconds, run)
            ):
                lines.append(line)
    return [*lines, _line(ALL, costs, run, scale, options)] if costs else []


def _line(stage: str, costs: Sequence[Cost], run: StoredRun, scale: float, options: CostOptions) -> _Line:
    values: dict[str, float | None] = {}
    for name, (_, read, unit) in COLUMNS.items():
        amounts = [read(cost) for cost in costs]
        values[name] = None if None in amounts else sum(a for a in amounts if a is not None) * unit * scale
    if options.prices:
        known, unknown = money(costs, run, options.prices)
        options.unpriced |= unknown
        values[f"money_{options.prices.currency}"] = None if known is None else known * scale
    return _Line(stage, values)


def _part(lines: Sequence[_Line], name: str, seconds: float, run: StoredRun) -> _Line | None:
    """Reading prompts or writing, of the last stage: its share of the hours; their energy is not told apart."""
    whole = next((line for line in lines if line.stage == GENERATE), None)
    if whole is None or not whole.values["seconds"]:
        return None
    share = seconds / whole.values["seconds"]
    hours = {key: None if (of := whole.values[key]) is None else of * share for key in ("gpu_hours", "core_hours")}
    tokens = "prompt_tokens" if name == "prefill" else "output_tokens"
    return _Line(f"- {name}", dict.fromkeys(whole.values) | hours | {"seconds": seconds, tokens: whole.values[tokens]})


def _mean(stage: str, lines: Sequence[_Line], runs: int) -> _Line:
    """Over all runs: one that does without a stage pays nothing for it."""
    values: dict[str, float | None] = {}
    for name in lines[0].values:
        amounts = [line.values[name] for line in lines]
        values[name] = None if None in amounts else sum(a for a in amounts if a is not None) / runs
    return _Line(stage, values)


def amount_cell(value: float | None) -> Cell:
    """An amount with three digits or so, two at least of small ones; nothing for what is unknown."""
    if value is None or math.isnan(value):
        return Cell()
    return Cell(amount(value), value)


def cost_notes(entries: Sequence[Entry], options: CostOptions) -> list[str]:
    """How the grids came about, and what is missing in them."""
    runs = [run for entry in entries for run in entry.runs]
    told = [
        "Costs: of all processes that worked on a run, means over seeds; a fit that rows share is told in full in "
        "each. GPU-hours: hours times accelerators at work; core-hours: hours times usable processor cores, of work "
        "without an accelerator; - where something is unknown."
    ]
    energy = [run.manifest.get("provenance", {}).get("energy") or {} for run in runs]
    measured = sorted({one for part in energy for one in part.get("measured", [])})
    missing = sorted({one for part in energy for one in part.get("missing", [])})
    if measured:
        told.append(f"Energy: {printable(', '.join(measured))}, other work on the same device included.")
    if missing:
        told.append(f"Energy that was not measured: {printable('; '.join(missing))}.")
    devices = sorted({cost.device for run in runs for cost in paid(run) if cost.device})
    if devices:
        told.append(f"Devices: {printable(', '.join(devices))}.")
    if options.unpriced:
        told.append(f"No money is told where the prices lack: {printable('; '.join(sorted(options.unpriced)))}.")
    if any("costs" not in run.totals for run in runs):
        told.append("Of runs made before costs were recorded only seconds and tokens are known.")
    return told
