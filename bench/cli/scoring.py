"""Verbs that score stored texts: score, ceiling, judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import RUNS, Set, app, names, server_knobs


@app.command()
def score(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or one run.")] = RUNS,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: all that fit]")] = None,
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Score again what is already scored.")] = False,
) -> None:
    """Score stored generations, with no model loaded for them."""
    from bench.rescore import rescore

    rescore(runs, None if metrics is None else names(metrics), overrides or [], force)


@app.command(short_help="Score what users really wrote, as a row of the table.")
def ceiling(
    runs: Annotated[Path, typer.Argument(help="Folder of runs: their datasets are taken.")] = RUNS,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: those of the runs]")] = None,
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Score again what is already scored.")] = False,
) -> None:
    """Store the real texts of the runs' test examples as a run called reference, and score it; no model is asked."""
    from bench.ceiling import ceiling as store

    store(runs, None if metrics is None else names(metrics), overrides or [], force)


@app.command("judge", short_help="Let a language model judge stored texts.")
def judge_(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or one run.")] = RUNS,
    engine: Annotated[str, typer.Option("--judge-engine", help="A name from `list engines`.")] = "openai",
    model: Annotated[str | None, typer.Option("--judge-model", help="As --model of `run`.")] = None,
    pairwise: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with this run, or one method's seeds, from both sides."),
    ] = None,
    judges: Annotated[bool, typer.Option("--judges", help="How far judges agree whose verdicts are stored.")] = False,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Server of engine openai.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Most money that engine openai may spend.")] = None,
    max_requests: Annotated[int | None, typer.Option(min=0, help="Most requests that engine openai may send.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the judge's reply.")] = 0.0,
    reply_tokens: Annotated[int, typer.Option(min=1, help="Longest reply; more for a model that reasons first.")] = 8,
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Judge again what is already judged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="What it would take; nothing is asked.")] = False,
) -> None:
    """Judge how near stored texts come to their users' own, 0 to 10, or which of two comes nearer."""
    from bench import judge
    from bench.errors import UsageError

    if judges:
        typer.echo(judge.agreements(runs))
        return
    if model is None:
        raise UsageError("--judge-model is missing: the name of the judge, as --model of `run`")
    served = server_knobs({"base_url": base_url, "max_cost": max_cost, "max_requests": max_requests})
    given = [*(overrides or []), *served]
    options = judge.Options(engine, model, given, pairwise, temperature, reply_tokens, force, dry_run)
    typer.echo(judge.judge(runs, options))
