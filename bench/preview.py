"""What a run would do, told without loading a model: plan, counts, token estimate, first prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bench.plan import Plan
from bench.types import Message, readable_slots
from bench.workload import Workload, workloads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.data.split import Dataset

_INDENT = " " * 11


def dry_run_text(plan: Plan, width: int = 110) -> str:
    """The whole report of `--dry-run`; only the prompts may be wider than `width`."""
    config = plan.config
    facts = {
        "dataset": list(_dataset_lines(plan.dataset)),
        "model": [f"{config.model} on engine {plan.engine.name}; {_encoder_told(plan)}"],
        "metrics": [", ".join(m.name for m in plan.metrics) or "none"],
        "left out": [f"{name}: {why}" for name, why in plan.left_out.items()],
        "runs": [f"{_rows_told(plan)} x {_count(len(config.seeds), 'seed')}, under {config.out}"],
    }
    lines = [line for label, told in facts.items() for line in _wrapped(label, told, width)]
    for load in workloads(plan):
        lines += ["", *_method_lines(load, width)]
    return "\n".join(lines)


def _rows_told(plan: Plan) -> str:
    variants = sum(planned.variant is not None for planned in plan.planned)
    methods = _count(len(plan.planned) - variants, "method")
    return f"({methods} + {_count(variants, 'variant')})" if variants else methods


def _encoder_told(plan: Plan) -> str:
    return f"encoder {plan.config.encoder}" if plan.encoder else "no encoder is needed"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _wrapped(label: str, told: Sequence[str], width: int) -> Iterator[str]:
    for number, line in enumerate(told):
        first = f"{label:<{len(_INDENT)}}" if number == 0 else _INDENT
        yield from textwrap.wrap(line, width, initial_indent=first, subsequent_indent=_INDENT, break_on_hyphens=False)


def _dataset_lines(dataset: Dataset) -> Iterator[str]:
    from bench.data.split import describe

    told = describe(dataset)
    others, noun = told["population"], dataset.task.noun
    truth = "; the truth behind it is known" if told["truth"] else ""
    yield f"{dataset.name}, fingerprint {dataset.fingerprint[:16]}, selection {dataset.selection}{truth}"
    yield ", ".join(
        f"{called} {_count(told['examples'][key], 'example')} of {_count(told['users'][key], 'user')}"
        for key, called in (("test", "test"), ("train", "train"), ("dev", "validation"))
    )
    past, size = _spread(told["test_history"]), _spread(told["target_chars"])
    yield f"past {noun}s of a test user {past}; characters of a {noun} {size}"
    yield (
        f"open to methods: {_count(others['documents'], noun)} by {_count(others['users'], 'user')} on "
        f"{_count(others['items'], 'item')}, peers of each {_spread(told['peers_per_document'])}"
    )
    if not told["peers_per_document"]["max"]:
        yield (
            f"nobody else wrote about the {dataset.task.thing} of any of them: methods that compare with others have "
            "nobody to compare with, but dep takes those near in content with --set dep.peer_source=content"
        )
    if steps := _steps(told["counts"]):
        yield f"{noun}s left after each step: {steps}"


def _spread(numbers: Mapping[str, int]) -> str:
    """Least, median and most of a quantity."""
    if numbers["min"] == numbers["max"]:
        return f"{numbers['min']:,}"
    return f"{numbers['min']:,} to {numbers['max']:,} (median {numbers['median']:,})"


def _steps(counts: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{step} {count['reviews']:,}" for step, count in counts.items() if "reviews" in count)


def _method_lines(load: Workload, width: int) -> Iterator[str]:
    planned = load.planned
    yield f"== {planned.title}"
    if knobs := ", ".join(f"{knob}={value}" for knob, value in sorted(planned.method.config.changed().items())):
        yield from _wrapped("   knobs", [knobs], width)
    yield from _wrapped("   asks", list(_asked_told(load)), width)
    yield from _wrapped("   trains", _training_told(load), width)
    if planned.variant is None:  # a variant's prompt is long again and seldom tells more than its knobs
        for stage in load.stages[:-1]:
            if stage.first is not None:
                yield f"   first prompt of stage {stage.stage}, for {stage.first.example_id}:"
                yield _readable(stage.first.messages)
        yield f"   first prompt, example {load.example.id}:"
        yield _readable(load.prompt)


def _asked_told(load: Workload) -> Iterator[str]:
    if not load.stages:
        yield "answers without a model"
        return
    *before, last = load.stages
    yield (
        f"{_count(last.prompts, 'prompt')} a seed, about {last.read:,} tokens to read and at most "
        f"{last.write:,} to write"
    )
    for stage in before:
        yield (
            f"before them, stage {stage.stage}: about {_count(stage.prompts, 'prompt')} a seed, {stage.read:,} tokens "
            f"to read and at most {stage.write:,} to write"
        )


def _training_told(load: Workload) -> list[str]:
    """What fitting takes, or whose fit is taken; nothing for a method that learns nothing."""
    if load.fit_of is not None:
        return [f"nothing of its own: takes the fit of {load.fit_of}"]
    training = load.training
    if training is None:
        return []
    embedded = f", {len(training.texts):,} texts to embed" if training.texts else ""
    return [
        f"{_count(training.rows, 'row')}, about {training.tokens:,} tokens x {_count(training.epochs, 'epoch')}"
        f"{embedded}; smaller with {training.smaller}"
    ]


def _readable(messages: Sequence[Message]) -> str:
    """Messages as text, soft slots as ⟦name⟧."""
    text = "\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    return "\n".join("   | " + line for line in readable_slots(text).splitlines())
