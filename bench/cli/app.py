"""The application that verbs register with, and what several of them share."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RUNS = Path("results") / "runs"
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.KEY=VALUE", help="A knob of a method, engine, metric or dataset source."),
]
Prices = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML of prices; shows what each stage cost in money, too.")
]


class Format(enum.StrEnum):
    """How a table is written."""

    CONSOLE = "console"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


class OnExisting(enum.StrEnum):
    """What to do with results that are already there."""

    RESUME = "resume"
    REUSE = "reuse"
    OVERWRITE = "overwrite"
    ONLY_CACHED = "only-cached"


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


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def integers(text: str, option: str) -> list[int]:
    from bench.errors import UsageError

    try:
        return [int(part) for part in names(text)]
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a comma-separated list of whole numbers, such as 0,1,2") from error


def on_command_line(flags: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """Those of a command's flags that stand on its command line."""
    return {name: value for name, value in flags.items() if _stands(name, context)}


def _stands(name: str, context: typer.Context) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def server_knobs(flags: dict[str, Any]) -> list[str]:
    """Assignments for the knobs of a server that have flags of their own."""
    return [f"openai.{knob}={json.dumps(value)}" for knob, value in flags.items() if value is not None]


def print_tables(tables: list[Any], how: Format) -> None:
    import shutil

    from bench.render import render, wants_ansi

    width = max(100, shutil.get_terminal_size((120, 24)).columns)
    typer.echo(render(tables, how.value, ansi=wants_ansi(), width=width), nl=False)


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
