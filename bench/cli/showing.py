"""Verbs that show stored runs: table, compare, report, diagnose, export."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import RUNS, Format, Prices, app, names, print_tables


class CompareFormat(enum.StrEnum):
    """How a comparison is written."""

    CONSOLE = "console"
    MARKDOWN = "markdown"
    JSON = "json"


@app.command()
def table(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = RUNS,
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.CONSOLE,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: all]")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Method or row to take differences to. [default: an ablation's full method, else nonperso]"),
    ] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Show rows that are not comparable, with footnotes.")] = False,
    wins: Annotated[bool, typer.Option("--wins", help="Also users won, tied, lost against the baseline.")] = False,
    detectable: Annotated[
        bool, typer.Option("--detectable", help="Also the smallest difference that these users would show.")
    ] = False,
    costs: Annotated[bool, typer.Option("--costs", help="Also time, hours, energy and tokens by stage.")] = False,
    prices: Prices = None,
) -> None:
    """Render leaderboards from stored records alone."""
    from bench.errors import UnknownName, UsageError
    from bench.prices import read_prices
    from bench.rescore import left_out
    from bench.store import find_runs
    from bench.tables import leaderboards

    listing = find_runs(runs)
    for note in left_out(listing):
        typer.echo(note, err=True)
    if not listing.runs:
        raise UsageError(f"no complete run under {runs}; make one with: python -m bench run --methods nonperso,rag")
    found = [run for run in listing.runs if dataset in (None, run.dataset)]
    if dataset is not None and not found:
        raise UnknownName(f"dataset under {runs}", dataset, {run.dataset for run in listing.runs})
    wanted = None if metrics is None else names(metrics)
    tables = leaderboards(
        found,
        metrics=wanted,
        baseline=baseline,
        mixed=mixed,
        wins=wins,
        detectable=detectable,
        costs=costs,
        prices=None if prices is None else read_prices(prices),
    )
    print_tables(tables, Format.JSON if as_json else format_)


@app.command(short_help="Test two stored methods against each other, and show where they differ.")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run, or of one method's seeds: the baseline.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same of what is compared with it.")],
    format_: Annotated[CompareFormat, typer.Option("--format", help="How to write it.")] = CompareFormat.CONSOLE,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: all that both have]")] = None,
    by: Annotated[str | None, typer.Option(help="Metric that chooses the examples. [default: the first]")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples to show, those that changed most; 0 for none.")] = 5,
    mixed: Annotated[bool, typer.Option("--mixed", help="Compare sides that were made under other settings.")] = False,
) -> None:
    """Test the difference of two stored sides on each metric, then show the examples that changed most."""
    from bench.compare import compare_sides, report

    wanted = None if metrics is None else names(metrics)
    found = compare_sides(a, b, metrics=wanted, by=by, examples=examples, mixed=mixed)
    typer.echo(report(found, "json" if as_json else format_.value), nl=False)


@app.command("report", short_help="Make a page to look at of stored runs.")
def report_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; new, empty, or an earlier report.")],
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: all]")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method or row to compare with at first.")] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Rows to choose from as baseline; comma-separated. [default: all, if quick]")
    ] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Show rows that are not comparable, with footnotes.")] = False,
    prompts: Annotated[int, typer.Option(min=0, help="Examples whose prompts are written again.")] = 50,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also the plots as PNG and SVG, and the tables as LaTeX.")
    ] = False,
) -> None:
    """Write a page that opens from disk: leaderboard, costs, users, examples, training, origin of each number."""
    from bench.report import report

    made = report(
        runs,
        out,
        dataset=dataset,
        metrics=None if metrics is None else names(metrics),
        baseline=baseline,
        baselines=names(baselines or ""),
        mixed=mixed,
        prompt_examples=prompts,
        figures=figures,
    )
    typer.echo(made)


@app.command(short_help="Look inside a fitted method, from a stored run.")
def diagnose(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as RUNS/planted/dep/KEY.")],
    limit: Annotated[int, typer.Option(min=1, help="Test users to look at.")] = 32,
    generate: Annotated[int, typer.Option(min=0, help="Examples to write anew under changes; 0 for none.")] = 16,
    probe_users: Annotated[
        int | None, typer.Option(min=0, help="Users to probe for planted traits; 0 for none. [default: all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one object, for machines.")] = False,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON, besides the run's own.")] = None,
) -> None:
    """Show what a fitted method learned and how far it moves what is written; trains nothing."""
    from bench.diagnose import diagnose as look
    from bench.diagnose import report
    from bench.method import DiagnosisOptions

    typer.echo(report(look(run_folder, limit, DiagnosisOptions(generate, probe_users), out), as_json))


@app.command("export", short_help="Make a folder to share of what a run learned.")
def export_(
    run_: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a complete run of a method that trains.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; new or empty.")],
    license_: Annotated[str | None, typer.Option("--license", help="For the model card, such as mit.")] = None,
    language: Annotated[str | None, typer.Option(help="For the model card, such as en.")] = None,
) -> None:
    """Write the weights that a run learned, all that is needed to use them, and a model card into a folder."""
    from bench.export import export

    for name in export(run_, folder, license_, language):
        typer.echo(folder / name)
