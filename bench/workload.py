"""What a run would ask of a model and train on, in numbers, found out without loading one."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace

from bench.ablation import Planned
from bench.engines.fake import FakeConfig, FakeEngine
from bench.meter import Meter
from bench.method import FINAL_STAGE, Context, Method, TrainingPlan
from bench.plan import Plan, asks_model
from bench.stages import request_key
from bench.types import Capability, Example, Generation, Message, Request

SAMPLE = 16
"""Prompts that token estimates are scaled up from."""


@dataclass(frozen=True)
class StageLoad:
    """What one stage asks of a model, for one seed; estimates, scaled up from the first examples."""

    stage: str
    prompts: int
    read: int
    """Tokens of all prompts."""
    write: int
    """Most tokens that can be written."""
    first: Request | None = None
    """The first request; None for the last stage, see `Workload.prompt`."""


@dataclass(frozen=True)
class Workload:
    """What one row of a table takes, for one seed."""

    planned: Planned
    stages: tuple[StageLoad, ...]
    """In the order they are asked in, the one that writes the texts last; none for a method that asks no model."""
    training: TrainingPlan | None
    """None for a method that learns nothing, or takes another row's fit."""
    fit_of: str | None
    """Title of the row above whose fit is taken."""
    example: Example
    prompt: Sequence[Message]
    """The first example's last prompt."""


def workloads(plan: Plan) -> Iterator[Workload]:
    """The workload of each row of a plan, in order."""
    fits: dict[str, str] = {}
    for planned in plan.planned:
        yield _workload(planned, plan, fits)


def _workload(planned: Planned, plan: Plan, fits: MutableMapping[str, str]) -> Workload:
    """`fits` holds the fits of the rows above with the row that makes each."""
    method = planned.method
    ctx = _context(method, plan)
    examples = plan.dataset.test.examples
    sample = examples[:SAMPLE]
    stages = _Stages()
    ctx = replace(ctx, stage_runner=stages.run)
    prompts = [method.preview(example, ctx) for example in sample]
    loads: list[StageLoad] = []
    if asks_model(method):
        loads += stages.loads(ctx, len(examples) / len(sample))
        read = sum(ctx.engine.count_tokens(messages) for messages in prompts) * len(examples) // len(sample)
        loads.append(StageLoad(FINAL_STAGE, len(examples), read, len(examples) * plan.config.max_new_tokens))
    fit = planned.fit_identity
    first = fits.setdefault(fit, planned.title) if fit is not None else planned.title
    shared = first != planned.title
    training = None if shared else method.training_plan(plan.dataset.train, plan.dataset.dev, ctx)
    return Workload(planned, tuple(loads), training, first if shared else None, sample[0], prompts[0])


class _Stages:
    """What is asked before the last prompt, answered with a mark that shows where the answer would go."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, Request]] = {}
        """Stage -> key -> request: what is asked twice is asked once."""

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        known = self.asked.setdefault(stage, {})
        for request in requests:
            known.setdefault(request_key(request), request)
        return [Generation(f"[what stage {stage} wrote for {r.example_id}]", 0, 0, "none") for r in requests]

    def loads(self, ctx: Context, scale: float) -> Iterator[StageLoad]:
        """A load a stage, scaled up from the sample."""
        for stage, asked in self.asked.items():
            prompts = round(scale * len(asked))
            tokens = round(scale * sum(ctx.engine.count_tokens(request.messages) for request in asked.values()))
            longest = max((request.sampling.max_new_tokens for request in asked.values()), default=0)
            yield StageLoad(stage, prompts, tokens, prompts * longest, next(iter(asked.values()), None))


def _context(method: Method, plan: Plan) -> Context:
    ctx = Context(
        task=plan.dataset.task,
        population=plan.dataset.population,
        engine=FakeEngine(config=FakeConfig()),
        seed=plan.config.seeds[0],
        sampling=plan.config.sampling,
        max_prompt_tokens=plan.config.max_prompt_tokens,
        meter=Meter(),
        truth=plan.dataset.truth if Capability.TRUTH in method.needs else None,
    )
    if method.wants_encoder() and plan.encoder is not None:
        from bench.encoders import HashEncoder  # without weights: retrieval by it only stands for the real one's

        return replace(ctx, encoder_or_none=HashEncoder())
    return ctx
