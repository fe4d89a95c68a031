"""The contract kit: what every method must hold to, checked on a tiny planted world with no weights and no network.

from bench.testing import check_method
check_method(MyMethod)          # raises ContractViolation, with one line a finding
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from bench.config import build
from bench.engines.base import Engine
from bench.engines.fake import FakeConfig, FakeEngine
from bench.meter import Meter
from bench.method import Context, Method
from bench.types import Capability, Example, Request, Sampling

if TYPE_CHECKING:
    from bench.data.split import Dataset

TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_CLOSE = 1e-5


class ContractViolation(AssertionError):
    """A method breaks the contract; the message holds one line a finding."""


@dataclass(frozen=True)
class Finding:
    """One thing that a method does and must not do."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


def check_method(cls: type[Method], **config: Any) -> None:
    """Runs every check on `cls` with the given config values. Raises ContractViolation if any fails."""
    found = findings(cls, **config)
    if found:
        raise ContractViolation(f"{cls.__name__}:\n" + "\n".join(f"- {finding}" for finding in found))


def findings(cls: type[Method], **config: Any) -> list[Finding]:
    """What `check_method` would raise, as a list; empty if the method holds to the contract."""
    with tempfile.TemporaryDirectory() as folder, no_network():
        return list(_Kit(cls, config, Path(folder)).run())


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Inside, every connection attempt raises ConnectionRefusedError."""

    def refuse(_: socket.socket, address: Any) -> None:
        raise ConnectionRefusedError(f"no network here: {address!r}")

    with mock.patch.object(socket.socket, "connect", refuse), mock.patch.object(socket.socket, "connect_ex", refuse):
        yield


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template: 256 bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|turn|>", "<|end|>", "<|pad|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A language model with random weights, two layers of width 32, saved to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 16384,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_dataset(**planted: Any) -> Dataset:
    """A planted world of a dozen users, through the same split code as any other."""
    from bench.data.spec import load_spec
    from bench.data.split import prepare

    knobs = {"users": 12, "items": 12, **planted}
    return prepare(load_spec("planted", knobs))


class _Kit:
    def __init__(self, cls: type[Method], config: dict[str, Any], folder: Path) -> None:
        self.cls, self.folder = cls, folder
        self.config = build(cls.Config, config, cls.name)
        self.dataset = tiny_dataset()
        self.examples = self.dataset.test.examples[:6]
        self.asks_model = bool(cls.needs - {Capability.TRUTH})
        self.trains = cls.fit is not Method.fit

    def run(self) -> Iterator[Finding]:
        yield from self._declares()
        try:
            method = self._ready("first", self.dataset)
            yield from self._requests_hold(method)
            yield from self._blind()
            if self.trains:
                yield from self._fits_again()
        except ConnectionRefusedError as error:
            yield Finding("no network", f"tried to connect ({error})")

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

    def _context(self, dataset: Dataset, engine: Engine) -> Context:
        from bench.encoders import HashEncoder
        from bench.stages import StageCache

        ctx = Context(
            task=dataset.task,
            population=dataset.population,
            engine=engine,
            seed=0,
            sampling=Sampling(0.8, 0.95, 16),
            max_prompt_tokens=6000,
            meter=Meter(),
            encoder_or_none=HashEncoder(),
            truth=dataset.truth if Capability.TRUTH in self.cls.needs else None,
        )
        stages = Path(tempfile.mkdtemp(dir=self.folder))
        return replace(ctx, stage_runner=lambda requests, stage: StageCache(stages, stage).run(engine, requests))

    def _ready(self, name: str, dataset: Dataset) -> Method:
        """A fitted method, loaded from what another object of its class saved."""
        if not self.trains:
            return self.cls(self.config)
        folder = self.folder / name
        folder.mkdir()
        ctx = self._context(dataset, self._engine())
        learner = self.cls(self.config)
        small = dataset.limited(None, 4, 0)
        learner.fit(small.train, small.dev, ctx)
        learner.save(folder)
        method = self.cls(self.config)
        method.load(folder, ctx)
        return method

    def _outcome(self, method: Method, dataset: Dataset, examples: Sequence[Example], rows: int = 16) -> _Outcome:
        """What the method asks (or answers) and, with the fake engine, what comes back."""
        engine = self._engine(rows)
        ctx = self._context(dataset, engine)
        answers = method.answer(examples, ctx)
        if answers is not None:
            return _Outcome({}, dict(zip((e.id for e in examples), answers, strict=True)))
        requests = method.requests(examples, ctx)
        texts: dict[str, str] = {}
        if isinstance(engine, FakeEngine):
            for batch in engine.plan(requests):
                for index, generation in zip(batch, engine.run([requests[i] for i in batch]).generations, strict=True):
                    texts[requests[index].example_id] = generation.text
        return _Outcome({r.example_id: r for r in requests}, texts)

    # -- checks -------------------------------------------------------------------------------------------------

    def _declares(self) -> Iterator[Finding]:
        for attribute in ("name", "version"):
            if not isinstance(getattr(self.cls, attribute, None), str):
                yield Finding("declares", f"{attribute} must be a string on the class")
        if not (self.cls.__doc__ or "").strip():
            yield Finding("declares", "needs a docstring: its first line is shown by `bench list methods`")

    def _requests_hold(self, method: Method) -> Iterator[Finding]:
        whole = self._outcome(method, self.dataset, self.examples)
        yield from _same("deterministic", whole, self._outcome(method, self.dataset, self.examples))
        if self.asks_model and list(whole.requests) != [e.id for e in self.examples]:
            yield Finding("order", "requests() must give one request an example, in the order of the examples")
        backwards = self._outcome(method, self.dataset, self.examples[::-1])
        yield from _same("permuted users", whole, backwards)
        for example in self.examples[:3]:
            alone = self._outcome(method, self.dataset, [example], rows=1)
            yield from _same("a user alone", whole.only(example.id), alone)
        yield from _same("batch size", whole, self._outcome(method, self.dataset, self.examples, rows=2))
        for example in self.examples:
            if not isinstance(method.parse(example, "  a text \n"), str):
                yield Finding("parse", "must return a string")

    def _blind(self) -> Iterator[Finding]:
        """With every test reference replaced, a method must ask the same; it may learn from train and dev alone."""
        sealed = {e: f"SEALED {hashlib.sha256(e.encode()).hexdigest()}" for e in self.dataset.test.references}
        other = replace(self.dataset, test=replace(self.dataset.test, references=sealed))
        before = self._outcome(self._ready("open", self.dataset), self.dataset, self.examples)
        after = self._outcome(self._ready("sealed", other), other, self.examples)
        yield from _same("blind to references", before, after)
        for example_id, request in before.requests.items():
            reference = self.dataset.test.references[example_id]
            if any(reference in message.content for message in request.messages):
                yield Finding("blind to references", f"the prompt of {example_id} holds its own reference text")

    def _fits_again(self) -> Iterator[Finding]:
        folders = [self.folder / "first", self.folder / "again"]
        self._ready("again", self.dataset)
        contents = [{p.name: p.read_bytes() for p in sorted(f.iterdir())} for f in folders]
        if contents[0].keys() != contents[1].keys():
            yield Finding("deterministic fit", "two fits saved different files")
        for name, data in contents[0].items():
            if data != contents[1].get(name):
                yield Finding("deterministic fit", f"two fits with one seed saved different bytes in {name}")
            if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy")):
                yield Finding("save", f"{name}: save safetensors and JSON, which cannot run code when they are read")


@dataclass(frozen=True)
class _Outcome:
    requests: dict[str, Request]
    texts: dict[str, str]

    def only(self, example_id: str) -> _Outcome:
        def keep(things: dict[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in things.items() if k == example_id}

        return _Outcome(keep(self.requests), keep(self.texts))


def _same(check: str, left: _Outcome, right: _Outcome) -> Iterator[Finding]:
    for example_id, request in left.requests.items():
        other = right.requests.get(example_id)
        if other is None:
            yield Finding(check, f"no request for {example_id}")
        elif request.messages != other.messages:
            yield Finding(check, f"the prompt of {example_id} changes")
        elif (request.seed, request.sampling) != (other.seed, other.sampling):
            yield Finding(check, f"seed or sampling of {example_id} changes")
        elif not _close(request, other):
            yield Finding(check, f"soft vectors of {example_id} change by more than {_CLOSE}")
    for example_id, text in left.texts.items():
        if right.texts.get(example_id) != text:
            yield Finding(check, f"the text of {example_id} changes")


def _close(left: Request, right: Request) -> bool:
    return left.soft.keys() == right.soft.keys() and all(
        np.allclose(np.asarray(left.soft[name]), np.asarray(right.soft[name]), atol=_CLOSE) for name in left.soft
    )
