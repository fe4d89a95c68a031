"""What a run would do, told without loading a model: plan, counts, token estimate, first prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.engines.fake import FakeConfig, FakeEngine
from bench.meter import Meter
from bench.method import Context, Method
from bench.plan import Plan
from bench.types import SLOT_CLOSE, SLOT_OPEN, Example, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.encoders import Encoder

_SAMPLE = 16
"""Prompts that the token estimate is scaled up from."""


def dry_run_text(plan: Plan) -> str:
    """The whole report of `--dry-run`."""
    from bench.data.split import describe

    config, dataset = plan.config, plan.dataset
    lines = [
        f"dataset    {dataset.name} (fingerprint {dataset.fingerprint[:16]}): {len(dataset.train):,} train, "
        f"{len(dataset.dev):,} validation, {len(dataset.test):,} test examples",
        *(f"           {key}: {value}" for key, value in describe(dataset).items() if key not in ("name",)),
        f"model      {config.model} on engine {plan.engine.name}; encoder "
        + (config.encoder if plan.encoder else "not needed"),
        f"metrics    {', '.join(m.name for m in plan.metrics)}",
        f"runs       {len(plan.methods)} methods x {len(config.seeds)} seeds, under {config.out}",
    ]
    for method in plan.methods:
        lines += ["", *_method_lines(method, plan)]
    return "\n".join(lines)


def _method_lines(method: Method, plan: Plan) -> list[str]:
    ctx = _context(plan)
    if method.wants_encoder() and plan.encoder is not None:
        ctx = replace(ctx, encoder_or_none=_stand_in())
    examples: Sequence[Example] = plan.dataset.test.examples
    sample = examples[:_SAMPLE]
    prompts = [method.preview(example, ctx) for example in sample]
    tokens = sum(ctx.engine.count_tokens(messages) for messages in prompts) * len(examples) // len(sample)
    lines = [
        f"== {method.name}: {len(examples):,} prompts a seed, about {tokens:,} tokens to read and at most "
        f"{len(examples) * plan.config.max_new_tokens:,} to write"
    ]
    training = method.training_plan(plan.dataset.train, plan.dataset.dev, ctx)
    if training is not None:
        lines.append(
            f"   trains on {training.rows:,} rows, about {training.tokens:,} tokens x {training.epochs} epochs, "
            f"{training.texts_to_embed:,} texts to embed; smaller with {training.smaller}"
        )
    return [*lines, f"   first prompt, example {sample[0].id}:", _readable(prompts[0])]


def _context(plan: Plan) -> Context:
    return Context(
        task=plan.dataset.task,
        population=plan.dataset.population,
        engine=FakeEngine(config=FakeConfig()),
        seed=plan.config.seeds[0],
        sampling=plan.config.sampling,
        max_prompt_tokens=plan.config.max_prompt_tokens,
        meter=Meter(),
        truth=plan.dataset.truth,
    )


def _stand_in() -> Encoder:
    """An encoder without weights: retrieval by it only stands for the real one's."""
    from bench.encoders import HashEncoder

    return HashEncoder()


def _readable(messages: Sequence[Message]) -> str:
    """Messages as text, soft slots as ⟦name⟧."""
    text = "\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    return "\n".join("   | " + line for line in text.replace(SLOT_OPEN, "⟦").replace(SLOT_CLOSE, "⟧").splitlines())
