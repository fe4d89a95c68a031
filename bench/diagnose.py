"""`python -m bench diagnose RUN`: what a fitted method can tell of its inside, from a stored run. Never trains."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.card import DIAGNOSIS
from bench.errors import UsageError
from bench.files import check_writable, pretty_json, write_atomic
from bench.keys import canonical_json, difference
from bench.method import DiagnosisOptions, Method, Section
from bench.method_run import MethodRun
from bench.plan import LIMIT_SEED, Plan, asks_model, dataset_part, make_plan
from bench.reopen import check_dataset, complete_run, config_of, fit_folder, method_overrides
from bench.runner import say
from bench.store import StoredRun

_METRICS = ("rouge1", "meteor")
"""Given to the plan because it wants some; which are used is the method's choice."""


def diagnose(path: Path, limit: int | None, options: DiagnosisOptions, out: Path | None = None) -> dict[str, Any]:
    """Diagnoses the run in `path` on at most `limit` of its test users; written to its folder, and to `out`.

    Raises UsageError where dataset, engine, encoder or code are no longer those of the run, where the fit is gone,
    and for a method that has nothing to tell; all of it before weights are loaded.
    """
    run = complete_run(path)
    for folder in (path, *([out.parent] if out else [])):
        check_writable(folder)  # before minutes of work, not after them
    plan = _plan(run)
    method = plan.planned[0].method
    if type(method).diagnose is Method.diagnose:
        raise UsageError(f"{path}: method {run.method!r} has nothing to diagnose; dep has")
    fitted = fit_folder(run)
    method_run = _same_run(run, plan)
    ctx = replace(method_run.context(path), stage_runner=None, truth=plan.dataset.truth)
    method_run.method.load(fitted, ctx)
    split = plan.dataset.limited(limit, None, LIMIT_SEED).test
    say(f"{run.title}: diagnosing on {len(split)} examples")
    sections = method_run.method.diagnose(split, ctx, options)
    told = _told(run, plan, len(split), options, [asdict(section) for section in sections])
    _write(told, path / DIAGNOSIS)
    if out is not None:
        _write(told, out)
    return told


def _plan(run: StoredRun) -> Plan:
    """The run's plan with its method alone, configured as it ran."""
    config = config_of(run)
    kept = {config.engine, dataset_part(config)}
    others = [one for one in config.overrides if one.partition("=")[0].rpartition(".")[0].strip() in kept]
    changes = {
        "methods": (run.method,),
        "ablate": (),
        "seeds": (run.description["seed"],),
        "metrics": _METRICS,
        "overrides": (*others, *method_overrides(run)),
        "dry_run": True,  # nothing is going to be stored as a run
    }
    return make_plan(config.model_copy(update=changes))


def _same_run(run: StoredRun, plan: Plan) -> MethodRun:
    """The run as it would be made now. Raises UsageError unless that is the very run."""
    check_dataset(run, plan.dataset)
    if asks_model(plan.planned[0].method):
        plan.engine.prepare()
    made = MethodRun(plan, plan.planned[0], run.description["seed"], set(), say)
    now = json.loads(canonical_json(made.description()))
    if paths := difference(run.description, now):
        raise UsageError(f"{run.path} was made with another {', '.join(paths)} than is here now; run it again")
    return made


def _told(
    run: StoredRun, plan: Plan, examples: int, options: DiagnosisOptions, sections: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "run": {"key": run.key, "title": run.title, "seed": run.description["seed"]},
        "method": run.description["method"],
        "engine": run.description["engine"],
        "dataset": {**run.description["dataset"], "examples": examples},
        "options": asdict(options),
        "sections": sections,
    }


def _write(told: Mapping[str, Any], path: Path) -> None:
    try:
        write_atomic(path, pretty_json(told))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another file with --out") from error


# -- for people -------------------------------------------------------------------------------------------------------


def as_text(told: Mapping[str, Any], width: int = 100) -> str:
    """All sections as tables, each with what it measures and how to read it."""
    engine = told["engine"]
    head = (
        f"{told['run']['title']}, seed {told['run']['seed']}, on {told['dataset']['examples']} test examples of "
        f"{told['dataset']['name']}; {engine.get('model', engine['name'])}, {engine.get('dtype', 'no dtype')}"
    )
    return "\n\n".join([head, *(_section(Section(**section), width) for section in told["sections"])])


def _section(section: Section, width: int) -> str:
    from tabulate import tabulate

    columns = list(dict.fromkeys(name for row in section.rows for name in row))
    body = [[_cell(row.get(name)) for name in columns] for row in section.rows]
    right = ["left" if any(isinstance(row.get(c), str) for row in section.rows) else "right" for c in columns]
    table = tabulate(
        body, headers=columns, tablefmt="simple", disable_numparse=True, colalign=right, maxheadercolwidths=13
    )
    parts = [section.name.upper(), fill(section.reading, width), table if body else "", fill(section.note, width)]
    return "\n".join(part for part in parts if part)


def _cell(value: Any) -> str:
    """A number in three digits, an interval, or a value with its p."""
    if isinstance(value, Mapping):
        if "p" in value:
            return f"{value['value']:.2f} (p {value['p']:.2f})"
        ends = f" [{_cell(value['low'])}, {_cell(value['high'])}]" if value["low"] is not None else ""
        return _cell(value["mean"]) + ends
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.1e}"
    return "-" if value is None else str(value)


def report(told: Mapping[str, Any], as_json: bool) -> str:
    """What the command prints."""
    return pretty_json(told).rstrip("\n") if as_json else as_text(told, 110 if sys.stdout.isatty() else 100)
