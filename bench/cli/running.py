"""Verbs that write texts: run, paper."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.app import (
    RUNS,
    Format,
    OnExisting,
    Prices,
    Set,
    app,
    integers,
    names,
    on_command_line,
    print_tables,
    server_knobs,
)
from bench.trackers import TrackerName


class Workers(enum.StrEnum):
    """What works through a run."""

    LOCAL = "local"
    RAY = "ray"


@app.command(short_help="Run methods on a dataset; ends with the leaderboard.")
def run(
    context: typer.Context,
    methods: Annotated[str | None, typer.Option(help="Comma-separated, such as nonperso,rag,lora,dep; or all.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML that says what flags could; flags given beside it win.")
    ] = None,
    ablate: Annotated[
        str | None, typer.Option(help="Ablations or single variants of the methods, such as controls; comma-separated.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="A name from `list datasets` or the path of a spec file.")] = "planted",
    model: Annotated[str, typer.Option(help="A name from `list models`, a folder or a hub id.")] = "smollm2-135m",
    encoder: Annotated[str, typer.Option(help="A name from `list models`, a folder or a hub id.")] = "minilm",
    engine: Annotated[str, typer.Option(help="A name from `list engines`.")] = "hf",
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Server of --engine openai, such as http://127.0.0.1:8000/v1.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Most money that --engine openai may spend, at prices given by --set.")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=0, help="Most requests that --engine openai may send.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated names, or evaluate modules by path or hub id. [default: all]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Test users, chosen by a seeded hash.")] = None,
    train_limit: Annotated[int | None, typer.Option(min=1, help="Train and validation users, likewise.")] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated; each gives a run.")] = "0",
    overrides: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = RUNS,
    existing: Annotated[OnExisting, typer.Option(help="What to do with results already there.")] = OnExisting.RESUME,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt; oldest reviews go first.")] = 3072,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus of sampling.")] = 0.95,
    tracker: Annotated[TrackerName, typer.Option(help="Where to watch losses while training.")] = TrackerName.NONE,
    prices: Prices = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part of the test users, such as 2/4.")
    ] = None,
    fit_only: Annotated[bool, typer.Option("--fit-only", help="Make the fits that methods need, then stop.")] = False,
    executor: Annotated[Workers, typer.Option(help="What works: this process, or a Ray cluster.")] = Workers.LOCAL,
    address: Annotated[str | None, typer.Option(help="The Ray cluster, such as auto. [default: one here]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Engines on the cluster. [default: all there can be]")] = (
        None
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, counts and first prompts; no model loads.")] = False,
) -> None:
    """Fit, generate and score methods on a dataset, then print the leaderboard."""
    from bench.config import build
    from bench.configfile import keep, merged
    from bench.errors import UsageError
    from bench.plan import RunConfig, make_plan
    from bench.preview import dry_run_text

    served = server_knobs({"base_url": base_url, "max_cost": max_cost, "max_requests": max_requests})
    flags: dict[str, Any] = {
        "methods": names(methods or ""),
        "ablate": names(ablate or ""),
        "dataset": dataset,
        "model": model,
        "encoder": encoder,
        "engine": engine,
        "metrics": None if metrics is None else names(metrics),
        "limit": limit,
        "train_limit": train_limit,
        "seeds": integers(seeds, "--seeds"),
        "overrides": [*(overrides or []), *served],
        "out": out,
        "existing": existing.value,
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "tracker": tracker.value,
        "prices": prices,
        "shard": shard,
        "fit_only": fit_only,
        "executor": executor.value,
        "address": address,
        "workers": workers,
        "dry_run": dry_run,
    }
    apart = {"overrides": flags["overrides"]} if served else {}
    given = flags if config is None else merged(config, {**on_command_line(flags, context), **apart})
    if served and given.get("engine", "hf") != "openai":
        raise UsageError("--base-url, --max-cost and --max-requests go with --engine openai")
    plan = make_plan(build(RunConfig, given, "run" if config is None else str(config)))
    if dry_run:
        typer.echo(dry_run_text(plan))
        return
    from bench import distributed
    from bench.launch import launch
    from bench.runner import help_training

    if distributed.rank():
        help_training(plan)
        return
    from bench.tables import leaderboards

    kept = keep(plan)
    shown = [metric.name for metric in plan.metrics]
    if runs := launch(plan):
        tables = leaderboards(runs, metrics=shown, baseline=plan.baseline, prices=plan.prices)
        print_tables(tables, Format.CONSOLE)
    typer.echo(f"again: python -m bench run --config {kept}", err=True)


@app.command(short_help="Run a published table again, with its figures beside ours.")
def paper(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="dep-table1 or dpl-table1, or the path of an experiment's TOML file.")],
    laptop: Annotated[bool, typer.Option("--laptop", help="Small models and few users, as the experiment says.")] = (
        False
    ),
    size: Annotated[str | None, typer.Option(help="Which of the table's model sizes. [default: the first]")] = None,
    datasets: Annotated[
        str | None,
        typer.Option(help="Comma-separated: names of the table, other specs, or NAME=SPEC to take a name's place."),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated. [default: the table's]")] = None,
    model: Annotated[str | None, typer.Option(help="In place of the published one.")] = None,
    encoder: Annotated[str | None, typer.Option(help="In place of the published one.")] = None,
    engine: Annotated[str | None, typer.Option(help="A name from `list engines`.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: the table's]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Test users of each dataset.")] = None,
    train_limit: Annotated[int | None, typer.Option(min=1, help="Train and validation users.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated.")] = None,
    overrides: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = RUNS,
    existing: Annotated[OnExisting, typer.Option(help="What to do with results already there.")] = OnExisting.RESUME,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to write the table.")] = Format.CONSOLE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Runs, prompts, tokens and hours; no model loads.")
    ] = False,
) -> None:
    """Run or resume what a published table needs, at the scale given, and print it with "paper" beside "ours"."""
    from bench import experiments
    from bench import paper as papers

    flags: dict[str, Any] = {
        "methods": names(methods or ""),
        "model": model,
        "encoder": encoder,
        "engine": engine,
        "metrics": names(metrics or ""),
        "limit": limit,
        "train_limit": train_limit,
        "seeds": integers(seeds or "", "--seeds"),
        "out": out,
        "existing": existing.value,
        "overrides": overrides or [],
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
    }
    asked = papers.prepare(
        experiments.load(name),
        on_command_line(flags, context),
        datasets=names(datasets or ""),
        size=size,
        laptop=laptop,
    )
    if dry_run:
        typer.echo(papers.dry_run_text(asked))
        return
    print_tables([papers.run(asked)], format_)
