"""plan -> fit -> generate -> score, for each method and seed; whatever is complete is never done again.

With a shard, for its share of the test users (see `bench.shards`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import distributed
from bench.errors import Held, UsageError
from bench.fits import Say, duration
from bench.merging import merged, missing_joined, run_folder, shard_of
from bench.method_run import MethodRun
from bench.plan import Plan, asks_model
from bench.prices import Prices, bill
from bench.scoring import separable
from bench.store import Existing, StoredRun

if TYPE_CHECKING:
    from bench.data.split import Dataset
    from bench.metrics.base import Metric

_LEAST_PROMPT = 16
"""Tokens below which no prompt can hold a task."""


def say(line: str) -> None:
    """Progress goes to stderr: stdout holds the table alone."""
    print(line, file=sys.stderr, flush=True)


def execute(plan: Plan, report: Say = say) -> list[StoredRun]:
    """Runs every method with every seed and scores it; returns the stored runs in that order.

    Of a shard, those runs that are whole with it are returned whole, the others as the shard's.
    """
    only_cached = plan.config.existing is Existing.ONLY_CACHED
    for name, why in plan.left_out.items():
        report(f"{name}: left out, {why}")
    if not only_cached:
        prepare(plan)
    runs = []
    for run in _finished(plan, report):
        if only_cached:
            _check_scored(run, plan.metrics)
        runs.append(run)
    distributed.from_main(None)  # sends the others home
    distributed.leave()
    plan.engine.close()
    if (line := plan.engine.told()) is not None:
        report(line)
    # Scoring comes last: metrics bring models of their own, which no method's peak of memory should hold.
    for run in runs:
        score_run(run, plan.dataset, plan.metrics)
    return [whole_of(run, plan) if shard_of(run) else run for run in runs]


def whole_of(run: StoredRun, plan: Plan) -> StoredRun:
    """The whole run that a scored shard is of, if the others are there and scored, too; else the shard."""
    whole = merged(run_folder(run))
    if whole is not None and not missing_joined(whole, [metric.name for metric in separable(plan.metrics)]):
        score_run(whole, plan.dataset, plan.metrics)
    return whole or run


def _finished(plan: Plan, report: Say) -> list[StoredRun]:
    """All runs, complete. A shard leaves those whose fit another process is making to the end, and then waits."""
    fitted: set[str] = set()
    shard = plan.shard
    left = [(planned, seed) for planned in plan.planned for seed in plan.config.seeds]
    order, done = list(left), {}
    for wait in (False, True):
        for planned, seed in left:
            try:
                run = MethodRun(plan, planned, seed, fitted, report, shard, wait).finish()
            except Held:
                if shard is None or wait:
                    raise
                report(f"{planned.title}: another process is making what it needs; other work comes first")
                continue
            done[planned, seed] = run
            report(summary(run, plan.prices))
        left = [one for one in left if one not in done]
    return [done[one] for one in order]


def fit_all(plan: Plan, report: Say = say) -> list[Path]:
    """Makes all fits that the runs of a plan need, and nothing else; returns where they lie."""
    prepare(plan)
    fitted: set[str] = set()
    runs = [MethodRun(plan, planned, seed, fitted, report) for planned in plan.planned for seed in plan.config.seeds]
    found = [fit.folder for run in runs if (fit := run.only_fit()) is not None]
    distributed.from_main(None)  # sends the others home
    distributed.leave()
    plan.engine.close()
    return list(dict.fromkeys(found))


def help_training(plan: Plan) -> None:
    """All that a process beside the main one does of a run: its share of each fit that the main process calls for."""
    while (called := distributed.from_main()) is not None:
        number, seed = called
        run = MethodRun(plan, plan.planned[number], seed, set(), lambda _: None)
        ctx = replace(run.context(plan.config.out), stage_runner=None)
        with plan.engine.training():
            run.method.fit(plan.dataset.train, plan.dataset.dev, ctx)
    distributed.leave()


def prepare(plan: Plan) -> None:
    """Brings everything that will be needed to this machine and finds out what cannot work, before long work."""
    if any(asks_model(m) for m in plan.methods):
        plan.engine.prepare()
        _check_room(plan)
        for method in filter(asks_model, plan.methods):
            method.preflight(plan.engine)
    if plan.encoder is not None:
        plan.encoder.identity()
    for metric in plan.metrics:
        metric.preflight()


def _check_room(plan: Plan) -> None:
    """A prompt needs at least as much room as its frame: told before weights load, not by the first example."""
    context, answer = plan.engine.context_length, plan.config.max_new_tokens
    if context - answer < _LEAST_PROMPT:
        raise UsageError(
            f"--max-new-tokens {answer} leaves no room for a prompt in the model's context of {context} tokens; "
            f"give at most {max(1, context - _LEAST_PROMPT)}"
        )


def _check_scored(run: StoredRun, metrics: Sequence[Metric]) -> None:
    from bench.scoring import missing_metrics

    if missing := missing_metrics(run, metrics):
        raise UsageError(
            f"--existing only-cached: {run.path} has no score of {', '.join(m.name for m in missing)}; "
            f"make it with: python -m bench score {run.path}"
        )


def score_run(run: StoredRun, dataset: Dataset, metrics: Sequence[Metric], force: bool = False) -> list[str]:
    """Scores a stored run with the metrics that are not yet in its scores (with all of them if `force`).

    A shard only with those that the whole can take from it. Returns the names of the metrics that were computed.
    """
    from bench.scoring import join, missing_metrics, score, write_scores

    metrics = separable(metrics) if shard_of(run) else metrics
    wanted = list(metrics) if force else missing_metrics(run, metrics)
    if wanted:
        inputs = join(run.records, dataset.test, dataset.truth, dataset.population)
        write_scores(run, score(inputs, wanted, progress=sys.stderr.isatty()))
    return [metric.name for metric in wanted]


def summary(run: StoredRun, prices: Prices | None = None) -> str:
    """One line on a finished run."""
    totals = run.totals
    fit = run.manifest.get("fit") or {}
    which = f"{run.title} {shard}" if (shard := shard_of(run)) else run.title
    parts = [f"{which} (seed {run.description['seed']}): {totals['examples']} examples"]
    if totals["wall_seconds"]:
        parts[0] += f" in {duration(totals['wall_seconds'])} ({totals['examples'] / totals['wall_seconds']:.2f}/s)"
        parts.append(f"{totals['prompt_tokens']:,} prompt and {totals['output_tokens']:,} new tokens")
    if fit:
        parts.append(f"trained {duration(fit['seconds'])}")
    if totals.get("adapt_seconds"):
        parts.append(f"users' adapters {duration(totals['adapt_seconds'])}")
    if totals.get("hidden_seconds"):
        parts.append(f"hidden states read in {duration(totals['hidden_seconds'])}")
    parts += bill(run, prices)
    if totals["failed"]:
        parts.append(f"{totals['failed']} FAILED")
    return ", ".join(parts)
