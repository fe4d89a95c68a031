"""The model card of an export: what was trained on what, how to use it, what it is not for, and how well it does."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.comparison import printable
from bench.files import read_object
from bench.plan import RunConfig
from bench.store import StoredRun, read_scores
from bench.tables import leaderboard
from bench.weights import ASSETS, Asset

CARD = "README.md"
DIAGNOSIS = "diagnosis.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ENGLISH = ("planted", "amazon-books", "amazon-movies-tv", "amazon-cds-vinyl")
"""Datasets whose language is known."""
_PUBLISHED = dict.fromkeys(_ENGLISH[1:], "SnowCharmQ/DPL-main")
"""Dataset -> its id on the hub."""

Row = Sequence[str]


def model_card(
    run: StoredRun,
    told: Mapping[str, Any],
    sections: Mapping[str, str],
    license_: str | None = None,
    language: str | None = None,
) -> str:
    """The card as Markdown with a YAML heading.

    `told` is the `bench` section of the export's config, `sections` what `Method.card` gives. Raises UsageError if the
    run's scores or its diagnosis cannot be read.
    """
    parts = [
        _heading(told, license_, language),
        f"# {told['method']['name']}, trained on {told['data']['name']}",
        _trained(told),
        _weights(told, sections),
        f"## Use\n\n{sections['use']}" if "use" in sections else "",
        _limits(told),
        _results(run, told),
        _diagnosis(run),
        _curve(run),
        _made(run, told),
        f"## Citation\n\n{sections['citation']}" if "citation" in sections else "",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


# -- heading ----------------------------------------------------------------------------------------------------------


def _heading(told: Mapping[str, Any], license_: str | None, language: str | None) -> str:
    """YAML as the hub reads it. What is not known is left out. A JSON string is a YAML string."""
    dataset, method = told["data"]["name"], told["method"]["name"]
    spoken = language or ("en" if dataset in _ENGLISH else None)
    base = hub_id(str(told["engine"]["model"]))
    lists: dict[str, list[str]] = {
        "tags": ["personalization", "dep-bench", method],
        "datasets": [_PUBLISHED.get(dataset, dataset)],
        "language": [spoken] if spoken else [],
    }
    single = {
        "library_name": "dep-bench",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "license": license_,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in single.items() if value]
    for key, values in lists.items():
        lines += [f"{key}:", *(f"- {json.dumps(value)}" for value in values)] if values else []
    return "\n".join(["---", *lines, "---"])


def hub_id(model: str) -> str | None:
    """The hub's name of a model that a run names; None for a local folder."""
    asset = ASSETS.get(model)
    found = _HUB_ID.match(asset.upstream if asset else model)
    return found.group() if found else None


# -- sections ---------------------------------------------------------------------------------------------------------


def _trained(told: Mapping[str, Any]) -> str:
    data, fit, encoder = told["data"], told["fit"], told["encoder"]
    rows = [
        ("data", f"{data['name']}{', synthetic' if data['synthetic'] else ''}"),
        ("fingerprint", f"`{data['fingerprint']}`"),
        ("selection", f"`{data['selection']}`"),
        ("users", f"{data['users']['train']:,} (validation {data['users']['dev']:,}, test {data['users']['test']:,})"),
        *((name, f"{fit[name]:,}") for name in ("rows", "tokens", "epochs", "parameters") if name in fit),
        ("language model, frozen", _model(told["engine"])),
        *([("text encoder, frozen", _model(encoder, encoder["name"]))] if encoder else []),
        ("prompt", f"at most {told['prompt']['max_prompt_tokens']:,} tokens"),
        ("seed", f"{told['seed']}"),
        ("knobs", _knobs(told["method"]["config"])),
    ]
    return f"## What it was trained on\n\n{_table(('', ''), rows)}"


def _model(identity: Mapping[str, Any], name: str | None = None) -> str:
    label = str(name or identity["model"])
    asset: Asset | None = ASSETS.get(label)
    upstream = f", {asset.upstream}, {asset.license}" if asset else ""
    return f"{label}{upstream}; revision `{identity['revision']}`, {identity.get('dtype', 'float32')}"


def _knobs(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in sorted(config.items()))


def _weights(told: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    rows = [
        (f"`{name}`", f"{about['tensors']}", f"{about['numbers']:,}", ", ".join(about["types"]))
        for name, about in told["weights"].items()
    ]
    grid = _table(("file", "tensors", "numbers", "types"), rows)
    return "\n\n".join(["## What the weights hold", *([sections["weights"]] if "weights" in sections else []), grid])


def _limits(told: Mapping[str, Any]) -> str:
    noun = told["task"]["noun"]
    whose = (
        f"The {noun}s it was trained on are synthetic: no person wrote them."
        if told["data"]["synthetic"]
        else f"It was trained on {noun}s that people wrote."
    )
    lines = [
        f"For research on personalized text generation: it drafts a {noun} in the manner of a user from that user's "
        f"own past {noun}s, which whoever runs it must have the right to use.",
        f"Not for passing generated {noun}s off as a person's own, for imitating a person without consent, or for "
        f"{noun}s of things that nobody has used.",
        f"**Personal data.** No {noun} text, no user and no item of the data lies in this folder. {whose} Trained "
        "weights are a function of them all the same: treat them as you would treat an aggregate of the data.",
        "What it writes has the language model's faults: facts about an item may be invented, and texts may take over "
        f"opinions or private details from the {noun}s that it is given.",
        "The figures below are of the test users named by the fingerprint; other data, languages, prompts or models "
        "may give others.",
    ]
    return "## Intended use and limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _results(run: StoredRun, told: Mapping[str, Any]) -> str:
    data, scores = told["data"], read_scores(run)
    sampling = told["sampling"]
    head = (
        f"## Results\n\nOn the test split: {data['examples']['test']:,} examples of {data['users']['test']:,} users, "
        f"seed {told['seed']}, temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']:,} new tokens. "
    )
    if scores is None:
        return f"{head}The run has not been scored."
    section = leaderboard([run]).sections[0]
    shown = [
        (column, cell)
        for column, cell in zip(section.columns, section.rows[0].cells, strict=True)
        if column.kind == "metric"
    ]
    rows = [(f"`{column.key}`", cell.text, f"{cell.missing}") for column, cell in shown]
    signatures = [f"- `{scores.metrics[column.key].signature}`" for column, _ in shown if column.key in scores.metrics]
    told_failed = f" Of these, {run.totals['failed']:,} failed." if run.totals.get("failed") else ""
    return "\n\n".join(
        [
            f"{head}Intervals are 95 % bootstrap intervals over users.{told_failed}",
            _table(("metric", "score [95 % interval]", "without a value"), rows),
            "How each was computed:\n\n" + "\n".join(signatures),
        ]
    )


def _diagnosis(run: StoredRun) -> str:
    """Figures of `diagnosis.json`, if it lies beside the run: numbers and what they are called, nothing else."""
    if not (run.path / DIAGNOSIS).is_file():
        return ""
    rows = [(name.replace("_", " "), _figure(value)) for name, value in _figures(read_object(run.path / DIAGNOSIS))]
    return f"## Inside\n\n{_table(('figure', 'value'), rows)}" if rows else ""


def _figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _figures(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield ", ".join(path), value


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _curve(run: StoredRun) -> str:
    fit = run.manifest["fit"]
    epochs = (fit.get("log") or {}).get("epochs") or []
    rows = []
    for epoch in epochs:
        kept = " (kept)" if epoch.get("number") == fit.get("best_epoch") else ""
        figures = [epoch.get(key) for key in ("train_loss", "dev_loss", "dev_score")]
        rows.append((f"{epoch.get('number')}{kept}", *("-" if x is None else f"{x:.4f}" for x in figures)))
    if not rows:
        return ""
    headings = ("epoch", "training loss", "validation loss", "validation score")
    return f"## Training\n\nLosses are nats a target token.\n\n{_table(headings, rows)}"


def _made(run: StoredRun, told: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in sorted(told["packages"].items()))
    machine = told["machine"]
    where = ", ".join(str(part) for part in (machine["device"] or machine["cpu"], machine["platform"]) if part)
    seconds = told["fit"].get("seconds")
    took = f" Training took {seconds:,.0f} s." if isinstance(seconds, int | float) else ""
    code = ", ".join(f"{name} {number}" for name, number in sorted((told["code"] or {}).items()))
    version = told["method"]["version"]
    left_out = run.plan["about"]["config"] != told["command"]
    note = "Of paths, only the last part is shown, and of keys nothing.\n\n" if left_out else ""
    return (
        f"## How it was made\n\n```sh\n{command(told['command'])}\n```\n\n{note}On {where}.{took} Method "
        f"{told['method']['name']}, version {version}; {code}; Python {told['python']}; {packages}."
    )


def command(config: Mapping[str, Any]) -> str:
    """The command line that gives a run's settings, those at their defaults left out."""
    usual = RunConfig(methods=()).model_dump(mode="json")
    parts = ["python", "-m", "bench", "run"]
    for key in sorted(config, key=lambda k: list(RunConfig.model_fields).index(k) if k in usual else len(usual)):
        value, flag = config[key], f"--{key.replace('_', '-')}"
        if value == usual.get(key) or value is None or value is False:
            continue
        if key == "overrides":
            parts += [part for assignment in value for part in ("--set", assignment)]
        elif value is True:
            parts.append(flag)
        else:
            parts += [flag, ",".join(map(str, value)) if isinstance(value, list) else f"{value}"]
    return shlex.join(parts)


def _table(headings: Row, rows: Sequence[Row]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
