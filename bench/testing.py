"""The contract kit: what every method must hold to, checked on a tiny planted world with no weights and no network.

from bench.testing import check_method
check_method(MyMethod)          # raises ContractViolation, with one line a finding

What it cannot see: what differs only between processes (the built-in `hash` of a text, the order of a set).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.config import build
from bench.engines.base import Engine
from bench.engines.fake import FakeConfig, FakeEngine
from bench.errors import UsageError
from bench.evidence import Finding, Outcome, no_network, plain, runs, same, saved_files, slot_names, told
from bench.fits import FIT_FILE
from bench.keys import request_seed, text_digest
from bench.meter import Meter
from bench.method import FINAL_STAGE, Context, Method
from bench.prompts import conversation, render_fields
from bench.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from bench.types import Capability, Example, Request, Sampling

if TYPE_CHECKING:
    from bench.data.split import Dataset

__all__ = [
    "ContractViolation",
    "Finding",
    "check_method",
    "findings",
    "no_network",
    "tiny_dataset",
    "tiny_model",
    "tiny_tokenizer",
]

_BUDGET = 2500


class ContractViolation(AssertionError):
    """A method breaks the contract; the message holds one line a finding."""


def check_method(cls: type[Method], **config: Any) -> None:
    """Runs every check on `cls` with the given config values. Raises ContractViolation if any fails."""
    found = findings(cls, **config)
    if found:
        raise ContractViolation(f"{cls.__name__}:\n" + "\n".join(f"- {finding}" for finding in found))


def findings(cls: type[Method], **config: Any) -> list[Finding]:
    """What `check_method` would raise, as a list; empty if the method holds to the contract."""
    with tempfile.TemporaryDirectory() as folder, no_network() as attempts, _one_thread():
        found = list(_Kit(cls, config, Path(folder)).run())
    return list(dict.fromkeys([*found, *(Finding("no network", f"tried to reach {there}") for there in attempts)]))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small take several times longer on many threads than on one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Kit:
    def __init__(self, cls: type[Method], config: dict[str, Any], folder: Path) -> None:
        self.cls, self.values, self.folder = cls, config, folder
        self.step = "construct"
        self.dataset = tiny_dataset()
        self.examples = self.dataset.test.examples[:6]
        self.trains = cls.fit is not Method.fit

    def run(self) -> Iterator[Finding]:
        yield from self._declares()
        try:
            self.config = build(self.cls.Config, self.values, getattr(self.cls, "name", self.cls.__name__))
            yield from self._unfitted()
            learner, method = self._ready("first", self.dataset)
            yield from self._weights_untouched()
            yield from self._saved_well(self.folder / "first")
            yield from self._well_formed(method)
            yield from self._steady(method)
            yield from self._saves_everything(learner, method)
            yield from self._keeps_to_itself(method)
            yield from self._blind(method)
        except Exception as error:
            yield Finding(self.step, f"raised {told(error)}")

    # -- parts --------------------------------------------------------------------------------------------------

    def _engine(self, rows: int = 16) -> Engine:
        if self.cls.needs <= {Capability.TEXT, Capability.TRUTH}:
            return FakeEngine(config=FakeConfig(max_batch=rows))
        from bench import weights
        from bench.engines.hf import HFConfig, HFEngine

        model = self.folder / "model"
        if not model.exists():
            tiny_model(model)
        return HFEngine(weights.resolve(str(model), "llm"), HFConfig(device="cpu", dtype="float32", max_batch=rows))

    def _context(self, method: Method, engine: Engine, budget: int = _BUDGET) -> Context:
        from bench.encoders import HashEncoder
        from bench.stages import StageCache

        ctx = Context(
            task=self.dataset.task,
            population=self.dataset.population,
            engine=engine,
            seed=0,
            sampling=Sampling(0.8, 0.95, 16),
            max_prompt_tokens=budget,
            meter=Meter(),
            encoder_or_none=HashEncoder() if method.wants_encoder() else None,
            truth=self.dataset.truth if Capability.TRUTH in self.cls.needs else None,
        )
        stages, kept = (Path(tempfile.mkdtemp(dir=self.folder)) for _ in range(2))
        ctx = replace(ctx, kept=kept)
        return replace(ctx, stage_runner=lambda requests, stage: StageCache(stages, stage).run(engine, requests))

    def _ready(self, name: str, dataset: Dataset, users: int = 3, seed: int = 0) -> tuple[Method, Method]:
        """(a method after fit and save, another object of its class after load)."""
        learner, method = self.cls(self.config), self.cls(self.config)
        folder = self.folder / name
        folder.mkdir()
        if self.trains:
            self.step = "fit"
            ctx = self._context(learner, self._engine())
            small = dataset.limited(None, users, seed)
            learner.fit(small.train, small.dev, ctx)
            self.fitted_on = ctx.engine
            self.step = "save"
            learner.save(folder)
            self.step = "load"
            method.load(folder, self._context(method, self._engine()))
        return learner, method

    def _outcome(self, method: Method, examples: Sequence[Example], rows: int = 16, budget: int = _BUDGET) -> Outcome:
        """What the method asks (or answers) and, with the fake engine, what it makes of what comes back."""
        engine = self._engine(rows)
        ctx = self._context(method, engine, budget)
        answers = method.answer(examples, ctx)
        if answers is not None:
            return Outcome((), dict(zip((e.id for e in examples), answers, strict=True)))
        requests = tuple(method.requests(examples, ctx))
        by_id = {example.id: example for example in examples}
        texts: dict[str, str] = {}
        for batch in engine.plan(requests) if isinstance(engine, FakeEngine) else ():
            for index, generation in zip(batch, engine.run([requests[i] for i in batch]).generations, strict=True):
                example = by_id[requests[index].example_id]
                texts[example.id] = method.parse(example, f"  {generation.text} \n")
        return Outcome(requests, texts)

    # -- checks -------------------------------------------------------------------------------------------------

    def _declares(self) -> Iterator[Finding]:
        for attribute in ("name", "version"):
            if not isinstance(getattr(self.cls, attribute, None), str):
                yield Finding("declares", f"{attribute} must be a string on the class")
        if not (self.cls.__doc__ or "").strip():
            yield Finding("declares", "needs a docstring: its first line is shown by `bench list methods`")

    def _unfitted(self) -> Iterator[Finding]:
        """A dry run shows a prompt and the training plan with nothing fitted and no model at hand."""
        method = self.cls(self.config)
        ctx = self._context(method, FakeEngine())
        self.step = "preview"
        if not any(message.content for message in method.preview(self.examples[0], ctx)):
            yield Finding("preview", "must show the prompt of an example")
        self.step = "training plan"
        method.training_plan(self.dataset.train, self.dataset.dev, ctx)

    def _weights_untouched(self) -> Iterator[Finding]:
        if not self.trains or Capability.TRAIN not in self.cls.needs:
            return
        after = self.fitted_on.language_model().model
        before = self._engine().language_model().model.state_dict()
        if before.keys() != after.state_dict().keys() or any(
            not before[name].equal(tensor) for name, tensor in after.state_dict().items()
        ):
            yield Finding("model as it was", "after fit the language model has other weights or layers than before")
        if after.training or any(parameter.requires_grad for parameter in after.parameters()):
            yield Finding("model as it was", "fit leaves the language model in training mode or with gradients on")

    def _saved_well(self, folder: Path) -> Iterator[Finding]:
        for name, data in saved_files(folder).items():
            if not plain(name, data):
                yield Finding(
                    "save", f"{name}: save safetensors, JSON or text, which cannot run code when they are read"
                )
            if str(self.folder).encode() in data:
                yield Finding("save", f"{name} holds a path of this machine")
            if name == FIT_FILE:
                yield Finding("save", f"{name} is the harness's own; choose another name")

    def _well_formed(self, method: Method) -> Iterator[Finding]:
        self.step = "requests"
        ids = [e.id for e in self.examples]
        whole = self._outcome(method, self.examples)
        if any(not isinstance(text, str) for text in whole.texts.values()):
            yield Finding("parse", "must return a string")
        if not self.cls.needs - {Capability.TRUTH}:
            if list(whole.texts) != ids:
                yield Finding("answer", "must give one text an example")
            return
        if [r.example_id for r in whole.requests] != ids:
            yield Finding("order", "requests() must give one request an example, in the order of the examples")
        for request in whole.requests:
            yield from self._request_holds(request)
        yield from self._in_budget(method, _BUDGET)
        bare = max(self._engine().count_tokens(conversation(self.dataset.task, e, [])) for e in self.examples)
        with contextlib.suppress(UsageError):  # a method may say that what it asks does not fit
            yield from self._in_budget(method, bare + 64)
        self.step = "no history"
        newcomer = replace(self.examples[0], history=())
        if len(self._outcome(method, [newcomer]).requests) != 1:
            yield Finding("no history", "a user without history must be asked for too")
        self.step = "generate"
        errors = [g.error for g in self._engine().run(whole.requests[:2]).generations if g.error]
        yield from (Finding("generate", error) for error in errors)

    def _request_holds(self, request: Request) -> Iterator[Finding]:
        of = f"the request of {request.example_id}"
        if request.stage != FINAL_STAGE or request.seed != request_seed(0, request.example_id, request.stage):
            yield Finding("requests", f"{of} has a stage or seed of its own; make it with ctx.request(example, ...)")
        if slot_names(request.messages) != set(request.soft):
            yield Finding("requests", f"{of} has other soft vectors than its messages have slots")
        for used, capability in (
            (request.soft, Capability.SOFT_PROMPT),
            (request.adapter, Capability.ADAPTER),
            (request.steering, Capability.HIDDEN),
            (request.user_adapter, Capability.USER_ADAPTER),
            (request.contrast, Capability.CONTRAST),
        ):
            if used and capability not in self.cls.needs:
                yield Finding("declares", f"requests use {capability.value}, which `needs` does not name")

    def _in_budget(self, method: Method, budget: int) -> Iterator[Finding]:
        engine = self._engine()
        for request in self._outcome(method, self.examples, budget=budget).requests:
            tokens = engine.count_tokens(request.messages)
            if tokens > budget:
                detail = f"the prompt of {request.example_id} takes {tokens} tokens of {budget}; see fit_prompt"
                yield Finding("prompt budget", detail)

    def _steady(self, method: Method) -> Iterator[Finding]:
        self.step = "requests"
        whole = self._outcome(method, self.examples)
        yield from same("deterministic", whole, self._outcome(method, self.examples))
        yield from same("permuted users", whole, self._outcome(method, self.examples[::-1]))
        for example in self.examples[:3]:
            yield from same("a user alone", whole.only(example.id), self._outcome(method, [example], rows=1))
        yield from same("batch size", whole, self._outcome(method, self.examples, rows=2))

    def _saves_everything(self, learner: Method, method: Method) -> Iterator[Finding]:
        """A loaded method asks what the fitted one asks, or the fitted one says (UsageError) that it must be loaded."""
        if not self.trains:
            return
        self.step = "save and load"
        try:
            fitted = self._outcome(learner, self.examples)
        except UsageError:
            return
        yield from same("save and load", fitted, self._outcome(method, self.examples))

    def _keeps_to_itself(self, method: Method) -> Iterator[Finding]:
        """What one object learns later must not reach another: nothing learned lives on the class or the module."""
        if not self.trains:
            return
        before = self._outcome(method, self.examples)
        self._ready("other", self.dataset, users=2, seed=1)
        self.step = "requests"
        yield from same("shared state", before, self._outcome(method, self.examples))

    def _blind(self, method: Method) -> Iterator[Finding]:
        """With every test reference replaced, a method must learn and ask the same as before."""
        before = self._outcome(method, self.examples)
        if Capability.TRUTH not in self.cls.needs:
            yield from self._quotes(before)
        # In place, so that whoever holds on to the references sees the change.
        references = cast("dict[str, str]", self.dataset.test.references)
        true = dict(references)
        references.update({e: f"Sealed {text_digest(e)}." for e in true})
        try:
            _, sealed = self._ready("sealed", self.dataset)
            self.step = "requests"
            yield from same("blind to references", before, self._outcome(sealed, self.examples))
        finally:
            references.update(true)
        saved = saved_files(self.folder / "first")
        if saved == saved_files(self.folder / "sealed"):
            return
        self._ready("again", self.dataset)
        again = saved_files(self.folder / "again")
        if saved == again:
            yield Finding("blind to references", "what fit saves depends on the references of test examples")
        for name in sorted({*saved, *again}):
            if saved.get(name) != again.get(name):
                yield Finding("deterministic fit", f"two fits with one seed saved different bytes in {name}")

    def _quotes(self, outcome: Outcome) -> Iterator[Finding]:
        """Words of an example's own reference that nothing open to the method holds."""
        population = self.dataset.population.documents()
        learned = [r for s in (self.dataset.train, self.dataset.dev) for r in s.references.values()]
        public = [*learned, *(text for d in population for text in (d.text, render_fields(self.dataset.task, d)))]
        known = {run for text in public for run in runs(text)}
        for example in self.examples:
            own = [
                render_fields(self.dataset.task, example),
                *(f"{render_fields(self.dataset.task, d)} {d.text}" for d in example.history),
            ]
            secret = set(runs(self.dataset.test.references[example.id])) - known - {r for t in own for r in runs(t)}
            said = [m.content for r in outcome.requests if r.example_id == example.id for m in r.messages]
            if any(run in secret for text in (*said, outcome.texts.get(example.id, "")) for run in runs(text)):
                yield Finding("blind to references", f"the reference text of {example.id} shows in its prompt or text")
