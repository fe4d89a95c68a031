"""What a run would do, told without loading a model: plan, counts, token estimate, first prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.ablation import Planned
from bench.engines.fake import FakeConfig, FakeEngine
from bench.meter import Meter
from bench.method import Context, Method
from bench.plan import Plan, asks_model
from bench.stages import request_key
from bench.types import Capability, Example, Generation, Message, Request, readable_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.data.split import Dataset
    from bench.encoders import Encoder

_SAMPLE = 16
"""Prompts that the token estimate is scaled up from."""
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
    fits: dict[str, str] = {}
    for planned in plan.planned:
        lines += ["", *_method_lines(planned, plan, fits, width)]
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


def _method_lines(planned: Planned, plan: Plan, fits: dict[str, str], width: int) -> Iterator[str]:
    method = planned.method
    ctx = _context(method, plan)
    if method.wants_encoder() and plan.encoder is not None:
        ctx = replace(ctx, encoder_or_none=_stand_in())
    examples: Sequence[Example] = plan.dataset.test.examples
    sample = examples[:_SAMPLE]
    stages = _Stages()
    ctx = replace(ctx, stage_runner=stages.run)
    prompts = [method.preview(example, ctx) for example in sample]
    yield f"== {planned.title}"
    if knobs := ", ".join(f"{knob}={value}" for knob, value in sorted(method.config.changed().items())):
        yield from _wrapped("   knobs", [knobs], width)
    told = "answers without a model"
    if asks_model(method):
        tokens = sum(ctx.engine.count_tokens(messages) for messages in prompts) * len(examples) // len(sample)
        told = (
            f"{_count(len(examples), 'prompt')} a seed, about {tokens:,} tokens to read and at most "
            f"{len(examples) * plan.config.max_new_tokens:,} to write"
        )
    yield from _wrapped("   asks", [told, *stages.told(ctx, len(examples) / len(sample))], width)
    yield from _wrapped("   trains", _training_told(planned, plan, ctx, fits), width)
    if planned.variant is None:  # a variant's prompt is long again and seldom tells more than its knobs
        for name, request in stages.first.items():
            yield f"   first prompt of stage {name}, for {request.example_id}:"
            yield _readable(request.messages)
        yield f"   first prompt, example {sample[0].id}:"
        yield _readable(prompts[0])


class _Stages:
    """What is asked before the last prompt, answered with a mark that shows where the answer would go."""

    def __init__(self) -> None:
        self.first: dict[str, Request] = {}
        self.asked: dict[str, dict[str, Request]] = {}
        """Stage -> key -> request: what is asked twice is asked once."""

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        known = self.asked.setdefault(stage, {})
        known.update((request_key(request), request) for request in requests)
        if requests:
            self.first.setdefault(stage, requests[0])
        return [Generation(f"[what stage {stage} wrote for {r.example_id}]", 0, 0, "none") for r in requests]

    def told(self, ctx: Context, scale: float) -> Iterator[str]:
        """A line a stage, its numbers scaled up from the sample."""
        for stage, asked in self.asked.items():
            prompts = round(scale * len(asked))
            tokens = round(scale * sum(ctx.engine.count_tokens(request.messages) for request in asked.values()))
            longest = max((request.sampling.max_new_tokens for request in asked.values()), default=0)
            yield (
                f"before them, stage {stage}: about {_count(prompts, 'prompt')} a seed, {tokens:,} tokens to read and "
                f"at most {prompts * longest:,} to write"
            )


def _training_told(planned: Planned, plan: Plan, ctx: Context, fits: dict[str, str]) -> list[str]:
    """What fitting takes, or whose fit is taken; nothing for a method that learns nothing.

    `fits` holds the fits of the rows above with the row that makes each.
    """
    fit = planned.fit_identity
    first = fits.setdefault(fit, planned.title) if fit is not None else planned.title
    if first != planned.title:
        return [f"nothing of its own: takes the fit of {first}"]
    training = planned.method.training_plan(plan.dataset.train, plan.dataset.dev, ctx)
    if training is None:
        return []
    embedded = f", {len(training.texts):,} texts to embed" if training.texts else ""
    return [
        f"{_count(training.rows, 'row')}, about {training.tokens:,} tokens x {_count(training.epochs, 'epoch')}"
        f"{embedded}; smaller with {training.smaller}"
    ]


def _context(method: Method, plan: Plan) -> Context:
    return Context(
        task=plan.dataset.task,
        population=plan.dataset.population,
        engine=FakeEngine(config=FakeConfig()),
        seed=plan.config.seeds[0],
        sampling=plan.config.sampling,
        max_prompt_tokens=plan.config.max_prompt_tokens,
        meter=Meter(),
        truth=plan.dataset.truth if Capability.TRUTH in method.needs else None,
    )


def _stand_in() -> Encoder:
    """An encoder without weights: retrieval by it only stands for the real one's."""
    from bench.encoders import HashEncoder

    return HashEncoder()


def _readable(messages: Sequence[Message]) -> str:
    """Messages as text, soft slots as ⟦name⟧."""
    text = "\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    return "\n".join("   | " + line for line in readable_slots(text).splitlines())
