"""`python -m bench paper NAME`: a published table run again, at any scale, with published figures beside ours."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench import registry, weights
from bench.config import build, parse_overrides
from bench.configfile import left_out, part_set
from bench.data.spec import spec_files
from bench.errors import NotFetched, UnknownName, UsageError
from bench.experiments import Experiment
from bench.method_run import method_key
from bench.papertable import Block, paper_table
from bench.plan import ALL, Plan, RunConfig, make_plan, part_of
from bench.store import StoredRun, find_runs
from bench.tables import Table
from bench.workload import Workload, workloads

_SCALE = {
    "engine": "engine",
    "model": "model",
    "encoder": "encoder",
    "limit": "test users",
    "train_limit": "train users",
    "seeds": "seeds",
    "methods": "methods",
    "metrics": "metrics",
    "max_prompt_tokens": "prompt tokens",
    "max_new_tokens": "new tokens",
    "temperature": "temperature",
    "top_p": "top_p",
}
"""What makes up the scale of a run -> what a header calls it, most telling first."""
_FLOPS, _FLOPS_SHARE = 989e12, 0.4
_BYTES, _BYTES_SHARE, _ROWS = 3.35e12, 0.5, 32
_ASSUMED = (
    f"an H100 (SXM): {_FLOPS_SHARE:.0%} of {_FLOPS / 1e12:.0f} bf16 TFLOP/s in reading, {_BYTES_SHARE:.0%} of "
    f"{_BYTES / 1e12:.2f} TB/s in writing {_ROWS} texts at once"
)


@dataclass(frozen=True)
class Cell:
    """One dataset of the experiment as it is going to run."""

    title: str
    dataset: str | None
    """The published name that it stands for."""
    config: RunConfig


@dataclass(frozen=True)
class PaperRun:
    """An experiment with what the user asked otherwise."""

    experiment: Experiment
    size: str
    cells: tuple[Cell, ...]
    scale: tuple[str, ...]
    """In what it differs from what was published."""


def prepare(
    experiment: Experiment,
    given: Mapping[str, Any],
    *,
    datasets: Sequence[str] = (),
    size: str | None = None,
    laptop: bool = False,
) -> PaperRun:
    """What is to be run, checked as far as it can be without data.

    Args:
        experiment: what was published.
        given: values for `RunConfig` that the user gave; its `overrides` come after the published ones.
        datasets: published names, specs, or NAME=SPEC for a spec in a published dataset's place; none means all.
        size: which of the table's model sizes; None for the first.
        laptop: take the experiment's values for a laptop where the user gave none.
    """
    sizes = experiment.paper.sizes
    size = size if size is not None else next(iter(sizes), "")
    if size not in (sizes or {"": ""}):
        raise UsageError(f"{experiment.name} has no size {size!r}; it has: {', '.join(sizes) or 'one, without a name'}")
    _check_metrics(experiment, given)
    model = {"model": sizes[size]} if sizes else {}
    base = [dict(experiment.run) | model, dict(experiment.laptop) if laptop else {}]
    values = base[0] | base[1] | dict(given)
    left = left_out(base[0], given)
    usual = [one for source in base for one in source.get("overrides", ()) if part_set(one) not in left]
    values["overrides"] = [*usual, *given.get("overrides", ())]
    chosen = [_dataset(experiment, text) for text in datasets or experiment.paper.datasets]
    titles = [title for title, _, _ in chosen]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise UsageError(
            f"--datasets gives {', '.join(twice)} twice; once is enough, and files need names of their own"
        )
    everywhere = {*spec_files(), *(part_of(spec) for _, _, spec in chosen)}
    cells = []
    for title, dataset, spec in chosen:
        own = [one for one in values["overrides"] if part_set(one) not in everywhere - {part_of(spec)}]
        config = build(RunConfig, {**values, "dataset": spec, "overrides": own}, str(experiment.path))
        cells.append(Cell(title, dataset, config))
    exact = build(RunConfig, dict(experiment.exact), experiment.paper.figures)
    return PaperRun(experiment, size, tuple(cells), tuple(_scale(cells, exact)))


def _check_metrics(experiment: Experiment, given: Mapping[str, Any]) -> None:
    """Metrics that the table has no column for would be computed and never shown."""
    known = experiment.published.metrics
    if "metrics" in given and not given["metrics"]:
        raise UsageError(f"--metrics names none; the table has: {', '.join(known)}")
    for name in given.get("metrics") or ():
        if name not in known:
            raise UnknownName(
                f"metric of {experiment.name}", name, known, "Others: python -m bench run, score or table."
            )


def _dataset(experiment: Experiment, text: str) -> tuple[str, str | None, str]:
    """(title, published name, spec) of one of --datasets."""
    name, equals, spec = (part.strip() for part in text.partition("="))
    known = experiment.paper.datasets
    if not equals:
        return (name, name, known[name]) if name in known else (Path(name).stem, None, name)
    if name not in known:
        raise UsageError(f"--datasets {text}: the table has no dataset {name!r}; it has: {', '.join(known)}")
    return f"{name}, ours on {Path(spec).stem}", name, spec


def _scale(cells: Sequence[Cell], exact: RunConfig) -> Iterator[str]:
    """How our settings differ from the published ones."""
    ours = cells[0].config
    for key, called in _SCALE.items():
        value, published = getattr(ours, key), getattr(exact, key)
        if value != published:
            told = "" if key == "engine" else f" (published: {_shown(published)})"
            yield f"{called} {_shown(value)}{told}"
    if stands := [cell.title for cell in cells if cell.dataset is None or ", ours on " in cell.title]:
        yield f"datasets {'; '.join(stands)}"
    knobs: dict[str, None] = {}
    for cell in cells:
        knobs |= dict.fromkeys(_knobs(cell.config, exact))
    if knobs:
        yield f"knobs {', '.join(knobs)}"


def _knobs(ours: RunConfig, exact: RunConfig) -> Iterator[str]:
    """Knobs that are set otherwise than published, those that were and are not any more among them."""
    mine, published = parse_overrides(ours.overrides), parse_overrides(exact.overrides)
    running = {*ours.methods, *(ours.metrics or ())}
    for part in dict.fromkeys((*mine, *published)):
        if part not in mine and part not in running and ALL not in running:
            continue  # of what does not run here
        for knob in dict.fromkeys((*mine.get(part, {}), *published.get(part, {}))):
            value = mine.get(part, {}).get(knob, _UNSET)
            if value != published.get(part, {}).get(knob, _UNSET):
                yield f"{part}.{knob}={_shown(value)}"


_UNSET = "its default"


def _shown(value: Any) -> str:
    if value is None:
        return "all"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(paper: PaperRun) -> Table:
    """Runs what is missing, dataset after dataset, once everything is checked, and returns the table."""
    from bench.configfile import keep
    from bench.runner import execute, say

    plans = [make_plan(cell.config) for cell in paper.cells]
    blocks = []
    for cell, plan in zip(paper.cells, plans, strict=True):
        say(f"== {cell.title}: {len(plan.planned)} methods x {len(plan.config.seeds)} seeds, config {keep(plan)}")
        blocks.append(Block(cell.title, cell.dataset, execute(plan), [metric.name for metric in plan.metrics]))
    return paper_table(paper.experiment, paper.size, paper.scale, blocks)


# -- what it would take --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Tokens a second."""

    read: float
    write: float
    source: str

    def hours(self, takes: Takes) -> float:
        """Training reads each token forwards and backwards through frozen weights: half the rate of reading."""
        seconds = (takes.read + 2 * takes.trained) / self.read + takes.written / self.write
        return seconds / 3600


@dataclass(frozen=True)
class Takes:
    """What runs ask of a model."""

    runs: int = 0
    prompts: int = 0
    read: int = 0
    written: int = 0
    """At most."""
    trained: int = 0
    """Tokens of all epochs."""
    embedded: int = 0
    """Texts."""

    def __add__(self, other: Takes) -> Takes:
        return Takes(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def of(cls, load: Workload, seeds: int) -> Takes:
        training = load.training
        one = cls(
            1,
            sum(stage.prompts for stage in load.stages),
            sum(stage.read for stage in load.stages),
            sum(stage.write for stage in load.stages),
            training.tokens * training.epochs if training else 0,
            len(training.texts) if training else 0,
        )
        return cls(*(seeds * getattr(one, field.name) for field in fields(one)))

    def told(self) -> str:
        parts = [
            f"{self.runs:,} runs",
            f"{self.prompts:,} prompts",
            f"{_short(self.read)} tokens to read",
            f"at most {_short(self.written)} to write",
            f"{_short(self.trained)} to train on" if self.trained else "",
            f"{self.embedded:,} texts to embed" if self.embedded else "",
        ]
        return ", ".join(filter(None, parts))


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def dry_run_text(paper: PaperRun, width: int = 110) -> str:
    """How many runs, prompts, tokens and hours it would take. Data that are not here are told, and left out."""
    lines = [
        f"{paper.experiment.name}: {paper.experiment.published.title}",
        f"ours: {'; '.join(paper.scale) or 'the published settings'}",
        "",
    ]
    whole, stored = Takes(), _stored(paper.cells[0].config.out)  # one folder for all
    for cell in paper.cells:
        try:
            plan = make_plan(cell.config.model_copy(update={"dry_run": True}))
        except NotFetched as error:
            lines += [f"{cell.title} ({cell.config.dataset}): left out, {error}", ""]
            continue
        lines.append(f"{cell.title} ({cell.config.dataset}, {len(plan.dataset.test):,} test examples)")
        for load in workloads(plan):
            done = _done(load, plan, stored)
            takes = Takes.of(load, len(plan.config.seeds) - done)
            whole += takes
            told = takes.told() if load.stages else f"{takes.runs:,} runs, no model"
            lines.append(f"  {load.planned.title}: {told}" + (f" ({done:,} more are there already)" if done else ""))
        lines.append("")
    lines.append(f"in all: {whole.told()}")
    lines.append(_hours_told(whole, paper.cells[0].config))
    return "\n".join(line for text in lines for line in textwrap.wrap(text, width, subsequent_indent="    ") or [""])


def _stored(out: Path) -> Sequence[StoredRun]:
    return find_runs(out).runs if out.is_dir() else ()


def _done(load: Workload, plan: Plan, stored: Sequence[StoredRun]) -> int:
    """How many seeds of a row are complete, as far as can be told without the model's files."""
    method, config = load.planned.method, plan.config
    wanted = {
        "method": method_key(method),
        "sampling": asdict(config.sampling),
    }
    data = {"fingerprint": plan.dataset.fingerprint, "selection": plan.dataset.selection}
    model = {"name": config.engine, "model": _label(config.model)} if load.stages and config.engine == "hf" else {}
    seeds = {
        run.description["seed"]
        for run in stored
        if all(run.description[key] == value for key, value in wanted.items())
        and data.items() <= run.description["dataset"].items()
        and model.items() <= run.description["engine"].items()
        and run.description["prompt"]["max_prompt_tokens"] == config.max_prompt_tokens
    }
    return len(seeds & {*config.seeds})


def _label(model: str) -> str:
    """As records call a model."""
    return weights.resolve(model, "llm").label


def _hours_told(whole: Takes, config: RunConfig) -> str:
    rates = measured_rates(config) or assumed_rates(config.model)
    if rates is None:
        return (
            f"time: unknown; {config.model} has not been measured here and its name tells no size. "
            "Run once with --limit 4, and ask again"
        )
    return (
        f"time: {rates.hours(whole):.2f} GPU-hours if all is written to the longest, without validation, embedding and "
        f"scoring, at "
        f"{_short(rates.read)} tokens/s read, {_short(rates.write)} written ({rates.source})"
    )


def measured_rates(config: RunConfig) -> Rates | None:
    """What the runs under `out` measured with this model; None where there are none."""
    if not (stored := _stored(config.out)):
        return None
    called = _label(config.model) if registry.load("engine", config.engine).local else config.model
    found = [run for run in stored if run.description["engine"].get("model") == called]
    sums = {key: sum(float(run.totals.get(key) or 0) for run in found) for key in _TOTALS}
    if not (sums["prefill_seconds"] and sums["decode_seconds"] and sums["output_tokens"]):
        return None
    devices = sorted({str(run.description["engine"].get("device")) for run in found if _asked(run)})
    source = f"measured in {sum(map(_asked, found))} runs under {config.out} on {', '.join(devices)}"
    read, write = sums["prompt_tokens"] / sums["prefill_seconds"], sums["output_tokens"] / sums["decode_seconds"]
    return Rates(read, write, source)


_TOTALS = ("prompt_tokens", "prefill_seconds", "output_tokens", "decode_seconds")


def _asked(run: StoredRun) -> bool:
    return bool(run.totals.get("prefill_seconds"))


def assumed_rates(model: str) -> Rates | None:
    """Roofline rates of a model whose name tells its size, on a stated GPU; None for other names."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", model.replace("-", " ").replace("_", " "), re.I)
    if found is None:
        return None
    parameters = float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)
    return Rates(
        _FLOPS_SHARE * _FLOPS / (2 * parameters),
        _BYTES_SHARE * _BYTES / (2 * parameters) * _ROWS,
        f"assumed for {found[0]} parameters on {_ASSUMED}",
    )
