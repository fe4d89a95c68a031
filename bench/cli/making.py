"""Verbs for those who add to the project: new-method, check, throughput."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.app import Set, app, names
from bench.scaffold import Kind


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
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON line alone.")] = False,
) -> None:
    """Measure engines side by side, beside plain generate and what the machine can do; the last line is JSON."""
    from bench.throughput import Asked, as_text, last_line, measure

    asked = Asked(
        names(contenders),
        model,
        random_weights,
        names(kinds),
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
