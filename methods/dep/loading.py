"""An exported DEP as something to call: a user's reviews, peers' reviews and a target in, a review out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from bench import weights
from bench.config import Config, build
from bench.data.population import Population
from bench.encoders import Encoder
from bench.engines.devices import choose_device
from bench.engines.hf import HFConfig, HFEngine
from bench.errors import UsageError, first_line
from bench.meter import Meter
from bench.method import EXPORT_CONFIG, Context
from bench.types import Message, Request, readable_slots
from bench.weights import ModelKind, Source
from methods.dep.exported import ADAPTER, Exported, read_export
from methods.dep.inputs import Case, make_case
from methods.dep.method import Dep
from methods.dep.prompting import slot_names

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Options(Config):
    """How a text is drawn; None takes what the run took."""

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy decoding."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    """Equal seeds give equal texts for equal input."""


@dataclass(frozen=True)
class Shown:
    """A past review as it stands in a prompt."""

    item_title: str
    text: str
    """Shortened where the prompt's budget asked for it."""
    has_peers: bool
    """Whether a difference vector stands behind it; else the learned "no peers" token does."""
    norms: Mapping[str, float]
    """Kind of soft token ("history", "difference") -> its Euclidean norm. Empty for a review without soft tokens."""


@dataclass(frozen=True)
class Explanation:
    """What is about to be sent to the language model."""

    messages: tuple[Message, ...]
    """The prompt, soft tokens as ⟦name⟧."""
    reviews: tuple[Shown, ...]
    """Newest first, as in the prompt. In paper mode the i-th soft tokens are those of the i-th review with peers, which
    may be another than the i-th shown."""
    prompt_tokens: int

    def __str__(self) -> str:
        """The prompt as a person reads it, and a line on each review's soft tokens."""
        lines = [f"[{message.role}]\n{message.content}\n" for message in self.messages]
        for number, review in enumerate(self.reviews, 1):
            norms = ", ".join(f"{kind} {norm:.2f}" for kind, norm in review.norms.items()) or "no soft tokens"
            lines.append(f"{number}. {review.item_title}: {norms}{'' if review.has_peers else ' (no peers)'}")
        return "\n".join(lines)


def load(
    folder: str | Path,
    *,
    model: str | Path | HFEngine | None = None,
    encoder: str | Path | Encoder | None = None,
    device: str = "auto",
) -> Writer:
    """A writer over a folder made by `python -m bench export`.

    Args:
        folder: the export.
        model: another place of the language model (a name, a folder, a hub id), or an engine that is loaded already;
            None takes the one the run names.
        encoder: likewise for the text encoder.
        device: "auto", "cpu", "cuda" or "mps".

    Weights are read at the first text. Raises UsageError for a folder that is no export of a DEP or is damaged, and for
    a model or encoder of another size; warns where its weights are others than those trained with.
    """
    path = Path(folder)
    told = read_export(path, Dep.version)
    engine = model if isinstance(model, HFEngine) else _engine(told, model, device)
    reader = encoder if isinstance(encoder, Encoder) else _encoder(told, encoder, device)
    _check_sizes(told, engine, reader)
    ctx = Context(
        task=told.harness_task,
        population=Population(()),
        engine=engine,
        seed=told.seed,
        sampling=told.sampling,
        max_prompt_tokens=told.prompt.max_prompt_tokens,
        meter=Meter(),
        encoder_or_none=reader,
    )
    method = Dep(told.knobs)
    try:
        method.load(path, ctx)
    except (KeyError, RuntimeError) as error:
        raise UsageError(
            f"{path / ADAPTER} does not fit {EXPORT_CONFIG} ({first_line(error)}); export it again"
        ) from error
    return Writer(method, ctx)


class Writer:
    """Writes reviews as users would. Reviews and peers are lists of dicts or DataFrames; see `ReviewRow` for keys."""

    def __init__(self, method: Dep, ctx: Context) -> None:
        """`ctx` holds everything but the population, which each text has of its own."""
        self.method, self.ctx = method, ctx

    def write(self, reviews: Any, peers: Any, target: Any, **options: Any) -> str:
        """The text that the user would write about `target`.

        Args:
            reviews: the user's past reviews (may be none): dicts with `item_title`, `text` and, where known, `item_id`,
                `item_description`, `rating`, `title`, `timestamp`. Without timestamps they count as oldest first.
            peers: other users' reviews, above all of the same items, with `user_id`. Means of a peer run over all
                of theirs that are given. With a timestamp in the target, only earlier ones count.
            target: a dict of the same keys without `text`.
            options: `temperature`, `top_p`, `max_new_tokens`, `seed`; by default those of the run.
        """
        return self._write([make_case(reviews, peers, target)], options)[0]

    def write_many(self, cases: Sequence[tuple[Any, Any, Any]], **options: Any) -> list[str]:
        """Texts of many (reviews, peers, target), in batches; arguments as of `write`."""
        made = []
        for number, case in enumerate(cases):
            if not isinstance(case, tuple | list) or len(case) != 3:
                raise UsageError(f"cases[{number}] is not of the form (reviews, peers, target)")
            made.append(make_case(*case, where=f"cases[{number}]: "))
        return self._write(made, options)

    def explain(self, reviews: Any, peers: Any, target: Any) -> Explanation:
        """The prompt that `write` would send, and what stands behind its soft tokens. Loads no language model."""
        case = make_case(reviews, peers, target)
        ctx = self._context(case, Options())
        prepared = self.method.prepare([case.example], ctx)[0]
        soft = self.method.request(case.example, prepared, ctx).soft
        shown = []
        for index, document in enumerate(prepared.prompt.documents):
            norms = {}
            for name in slot_names(self.method.config, index) if index < prepared.slots else ():
                norms[name.partition(" ")[0]] = _norm(soft[name])
            peers_known = index < prepared.slots and bool(prepared.vectors.has_peers[index])
            shown.append(Shown(str(document.fields["item_title"]), document.text, peers_known, norms))
        messages = tuple(Message(m.role, readable_slots(m.content)) for m in prepared.prompt.messages)
        return Explanation(messages, tuple(shown), prepared.prompt.tokens)

    def _write(self, cases: Sequence[Case], options: Mapping[str, Any]) -> list[str]:
        chosen = build(Options, options, "options")
        requests = [self._request(case, chosen) for case in cases]
        answers = self.ctx.engine.answers(requests)
        for i, answer in enumerate(answers):
            if answer.error:
                raise UsageError(f"text {i} could not be written: {answer.error}; give fewer or shorter reviews")
        return [self.method.parse(case.example, a.text) for case, a in zip(cases, answers, strict=True)]

    def _request(self, case: Case, options: Options) -> Request:
        return self.method.requests([case.example], self._context(case, options))[0]

    def _context(self, case: Case, options: Options) -> Context:
        usual, ctx = self.ctx.sampling, self.ctx
        given = options.model_dump(exclude={"seed"}, exclude_none=True)
        sampling = replace(usual, **given)
        room = ctx.engine.context_length - sampling.max_new_tokens
        return replace(
            ctx,
            population=case.population,
            seed=ctx.seed if options.seed is None else options.seed,
            sampling=sampling,
            max_prompt_tokens=min(ctx.max_prompt_tokens, room),
        )


def _norm(matrix: Any) -> float:
    """Euclidean norm of a slot's soft token, which stands in the middle where markers are around it."""
    import numpy as np

    rows = np.asarray(matrix)
    return float(np.linalg.norm(rows[len(rows) // 2]))


# -- models -----------------------------------------------------------------------------------------------------------


def _engine(told: Exported, model: str | Path | None, device: str) -> HFEngine:
    settings = build(HFConfig, {**told.batching, "device": device}, "load")
    if choose_device(device) == told.engine.device:
        settings = build(HFConfig, {**settings.model_dump(), "dtype": told.engine.dtype}, "load")
    return HFEngine(_source(told.engine.model, told.engine.revision, model, "llm"), settings)


def _encoder(told: Exported, encoder: str | Path | None, device: str) -> Encoder:
    source = _source(told.encoder.name, told.encoder.revision, encoder, "encoder")
    return Encoder(source, None if device == "auto" else device)


def _source(label: str, revision: str, given: str | Path | None, kind: ModelKind) -> Source:
    """Where a model lies: as given, else by the name and revision that the run had."""
    argument = "model" if kind == "llm" else "encoder"
    if given is not None:
        source = weights.resolve(str(given), kind)
    else:
        try:
            source = weights.resolve(label, kind)
        except UsageError as error:
            raise UsageError(
                f"this DEP goes with {argument} {label!r}, which is no name or hub id; give its folder: "
                f"load(..., {argument}=FOLDER)"
            ) from error
        pinned = source.origin == "hub" and _COMMIT.fullmatch(revision) and "@" not in label
        if pinned and weights.planned_revision(source) != revision:
            source = weights.resolve(f"{label}@{revision}", kind)
    weights.local_folder(source)
    found = weights.planned_revision(source)
    if found != revision:
        warnings.warn(
            f"{argument} {source.label!r} has revision {found}, DEP was trained with {label!r}, revision {revision}: "
            "unless these are the same weights, texts mean little",
            stacklevel=4,
        )
    return source


def _check_sizes(told: Exported, engine: HFEngine, encoder: Encoder) -> None:
    """Raises UsageError if soft tokens would not fit the model, or vectors the autoencoder. Loads no weights."""
    from transformers import AutoConfig

    about = AutoConfig.from_pretrained(engine.folder, trust_remote_code=False, local_files_only=True).get_text_config()
    hidden = getattr(about, "hidden_size", None)
    if hidden != told.hidden_size:
        raise UsageError(
            f"model {engine.source.label!r} has hidden size {hidden}, this DEP writes soft tokens of "
            f"{told.hidden_size}; load it with the model it was trained with"
        )
    if encoder.dimension != told.embedding_size:
        raise UsageError(
            f"encoder {encoder.source.label!r} gives vectors of {encoder.dimension} numbers, this DEP takes "
            f"{told.embedding_size}; load it with the encoder it was trained with"
        )
