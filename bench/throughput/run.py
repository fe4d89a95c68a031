"""The contenders at work: each writes the same requests, round after round, and its best round counts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry, weights
from bench.config import build, parse_overrides
from bench.engines.base import BatchResult, Engine
from bench.engines.devices import out_of_memory
from bench.errors import UnknownName, UsageError
from bench.meter import Meter, peak_rss
from bench.throughput import requests as work
from bench.throughput.costs import Sizes
from bench.types import Capability, Request

if TYPE_CHECKING:
    from bench.throughput.ceilings import Ceilings

ONE, PLAIN, HF = "one-by-one", "plain", "hf"
"""Plain generate of one request at a time; of unsorted batches; and the transformers engine, whose weights they use."""
_NEEDS = {"ids": Capability.TEXT, "soft": Capability.SOFT_PROMPT, "adapters": Capability.USER_ADAPTER}

Say = Callable[[str], object]


@dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    contenders: Sequence[str] = (ONE, PLAIN, HF)
    """Any of one-by-one, plain and the names of engines."""
    model: str = "smollm2-135m"
    random_weights: str | None = None
    """A shape to fill with random weights in the place of the model."""
    kinds: Sequence[str] = work.KINDS
    prompt_tokens: tuple[int, int] = (400, 1200)
    """Shortest and longest prompt; the others spread evenly between them."""
    new_tokens: tuple[int, int] = (96, 256)
    requests: int = 32
    batch: int = 16
    """Rows at a time, for every contender that takes more than one."""
    rounds: int = 1
    overrides: Sequence[str] = ()


@dataclass
class Row:
    """One contender's best round on one kind of request."""

    contender: str
    kind: str
    seconds: float
    prompt_tokens: int
    output_tokens: int
    prefill_seconds: float
    """Zero where the engine does not tell."""
    decode_seconds: float
    first_token_seconds: float | None
    """Median over requests, from the start of their batch."""
    peak_memory: int | None
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    """Example id -> what was written."""


def check(asked: Asked) -> None:
    """Raises UsageError for what cannot be measured, before anything is loaded."""
    known = [ONE, PLAIN, *registry.names("engine")]
    for what, given, names in (
        ("contender in --contenders", asked.contenders, known),
        ("kind in --kinds", asked.kinds, list(work.KINDS)),
    ):
        if not given:
            raise UsageError(f"no {what}; it takes a comma-separated list of {', '.join(names)}")
        for name in given:
            if name not in names:
                raise UnknownName(what, name, names)
    for flag, (low, high) in (("--prompt-tokens", asked.prompt_tokens), ("--new-tokens", asked.new_tokens)):
        if not 1 <= low <= high:
            raise UsageError(f"{flag} takes a number or LOW:HIGH, whole numbers from 1 up, such as 400:1200")
    for name in asked.contenders:
        if name not in (ONE, PLAIN) and not registry.load("engine", name).local:
            raise UsageError(f"--contenders {name}: a service's speed is not this machine's; leave it out")
    if min(asked.requests, asked.batch, asked.rounds) < 1:
        raise UsageError("--requests, --batch and --rounds take whole numbers from 1 up")
    parts = parse_overrides(asked.overrides)
    for part in parts:
        if part not in {*asked.contenders, HF} - {ONE, PLAIN}:
            raise UnknownName("part of this measurement in --set", part, sorted({*asked.contenders, HF} - {ONE, PLAIN}))
    if asked.random_weights:
        from bench.throughput.shapes import SHAPES

        if asked.random_weights not in SHAPES:
            raise UnknownName("shape for --random-weights", asked.random_weights, list(SHAPES))
    if "adapters" in asked.kinds and not {ONE, PLAIN, HF} & set(asked.contenders):
        raise UsageError(
            "--kinds adapters needs one of one-by-one, plain, hf in --contenders, whose weights tell layers"
        )


def measure(asked: Asked, say: Say = lambda _: None) -> dict[str, Any]:
    """Everything measured, as one JSON object: about, ceilings, rows, floors. Raises UsageError for bad input."""
    from bench.throughput import figures

    check(asked)
    shared = [name for name in asked.contenders if name in (ONE, PLAIN, HF)]
    left_out: dict[str, str] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bouts = [_Bout(asked, shared, Path(folder), say)] if shared else []
        for name in asked.contenders:
            if name not in shared and asked.random_weights:
                left_out[name] = "it needs a folder of weights, not random ones"
            elif name not in shared:
                bouts.append(_Bout(asked, [name], Path(folder), say))  # what it lacks is found out before any work
        for bout in bouts:
            try:
                rows += bout.fight()
            except UsageError as error:
                if bout is bouts[0]:
                    raise
                left_out[bout.engine.name] = str(error)  # what others have done is not lost
            finally:
                bout.engine.close()
            left_out |= bout.left_out
    own = next((bout for bout in bouts if bout.sizes), None)
    identities = {bout.engine.name: bout.engine.identity() for bout in bouts}
    ceilings, sizes = (own.ceilings, own.sizes) if own else (None, None)
    return figures.result(asked, rows, ceilings, sizes, identities, left_out)


class _Bout:
    """Contenders that share one loaded engine."""

    def __init__(self, asked: Asked, names: Sequence[str], folder: Path, say: Say) -> None:
        self.asked, self.names, self.folder, self.say = asked, names, folder, say
        self.left_out: dict[str, str] = {}
        self.ceilings: Ceilings | None = None
        self.sizes: Sizes | None = None
        self.engine = self._engine(HF if set(names) & {ONE, PLAIN, HF} else names[0])

    def _engine(self, name: str) -> Engine:
        asked = self.asked
        kind = registry.load("engine", name)
        given = parse_overrides(asked.overrides).get(name, {})
        # Where an engine tells rows at a time from requests between two results, it calls the former max_seqs.
        knob = next((name for name in ("max_seqs", "max_batch") if name in kind.Config.model_fields), None)
        rows = {knob: asked.batch} if knob else {}
        longest = asked.prompt_tokens[1] + asked.new_tokens[1]
        if "batch_tokens" in kind.Config.model_fields:
            rows["batch_tokens"] = asked.batch * longest  # as many rows as the others have
        config = build(kind.Config, {**rows, **given}, name)
        if asked.random_weights:
            from bench.throughput.shapes import RandomEngine

            engine: Engine = RandomEngine(asked.random_weights, config)
        else:
            engine = kind(weights.resolve(asked.model, "llm"), config)
        engine.prepare()
        if longest > engine.context_length:
            raise UsageError(
                f"{longest} tokens, prompt and answer, exceed the model's context of {engine.context_length}; "
                "lower --prompt-tokens or --new-tokens"
            )
        return engine

    def fight(self) -> list[Row]:
        """The best round of each contender on each kind that it can serve."""
        made = {kind: self._requests(kind) for kind in self._kinds()}  # before weights: bad lengths end it here
        self.say(f"loading {self.engine.name}")
        self.engine.load()
        if {ONE, PLAIN, HF} & set(self.names):
            from bench.throughput import ceilings

            lm = self.engine.language_model()
            self.sizes = Sizes.of(lm.model)
            self.ceilings = ceilings.measure(lm.device, lm.model.dtype)
            if "adapters" in made:
                work.save_adapters(lm, self.folder, self.asked.requests)
        for kind, asked in made.items():
            for name in self.names:  # first kernels and imports are slow, and no contender's fault
                short = replace(asked[0], sampling=replace(asked[0].sampling, max_new_tokens=2, min_new_tokens=2))
                self._once(name, kind, [short])
        best: dict[tuple[str, str], Row] = {}
        for number in range(self.asked.rounds):
            for kind, asked in made.items():
                for name in self.names:
                    self.say(f"round {number + 1} of {self.asked.rounds}: {name}, {kind}")
                    row = self._once(name, kind, asked)
                    if (name, kind) not in best or row.seconds < best[name, kind].seconds:
                        best[name, kind] = row
        return list(best.values())

    def _kinds(self) -> list[str]:
        kinds = []
        for kind in self.asked.kinds:
            if _NEEDS[kind] in self.engine.capabilities:
                kinds.append(kind)
            else:
                self.left_out[f"{self.engine.name}, {kind}"] = f"the engine does not give {_NEEDS[kind]}"
        return kinds

    def _requests(self, kind: str) -> list[Request]:
        asked = self.asked
        prompts = work.lengths(*asked.prompt_tokens, asked.requests, seed=1)
        outputs = work.lengths(*asked.new_tokens, asked.requests, seed=2)
        hidden = _hidden_size(asked) if kind == "soft" else 0
        return work.make(self.engine, kind, prompts, outputs, hidden, self.folder)

    def _once(self, name: str, kind: str, requests: Sequence[Request]) -> Row:
        self.engine.peak_memory()
        Meter().start_peak()
        start = time.perf_counter()
        try:
            results, order = self._work(name, requests)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UsageError(f"{name}, {kind}: out of memory; lower --batch or lengths") from error
        # An engine may start with its first requests.
        seconds = time.perf_counter() - start - sum(result.load_seconds for result in results)
        answers = [generation for result in results for generation in result.generations]
        if failed := [g.error for g in answers if g.error]:
            raise UsageError(f"{name}, {kind}: {failed[0]}; lower --batch or lengths")
        first = sorted(s for result in results for s in result.first_token_seconds)
        return Row(
            name,
            kind,
            seconds,
            sum(g.prompt_tokens for g in answers),
            sum(g.output_tokens for g in answers),
            sum(result.prefill_seconds for result in results),
            sum(result.decode_seconds for result in results),
            first[len(first) // 2] if first else None,
            self.engine.peak_memory() or (peak_rss() if self.engine.accelerators() is None else None),
            {requests[i].example_id: g.text for i, g in zip(order, answers, strict=True)},
        )

    def _work(self, name: str, requests: Sequence[Request]) -> tuple[list[BatchResult], list[int]]:
        """Results, and the indices of the requests in the order of their answers."""
        if name in (ONE, PLAIN):
            from bench.throughput import plain

            size = 1 if name == ONE else self.asked.batch
            return plain.run(self.engine.language_model(), requests, size), list(range(len(requests)))
        batches = self.engine.plan(requests)
        results = list(self.engine.stream([[requests[i] for i in batch] for batch in batches]))
        return results, [i for batch in batches for i in batch]


def _hidden_size(asked: Asked) -> int:
    """Width of the soft vectors that a model takes."""
    if asked.random_weights:
        from bench.throughput.shapes import SHAPES

        return int(SHAPES[asked.random_weights][1]["hidden_size"])
    from transformers import AutoConfig

    folder = weights.local_folder(weights.resolve(asked.model, "llm"))
    return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().hidden_size)
