"""Prompts, written again: runs keep a prompt's hash alone, so what is shown is what has that very hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from bench.ablation import method_class
from bench.comparison import Entry
from bench.config import build
from bench.engines.base import Engine
from bench.engines.fake import FakeConfig, FakeEngine
from bench.errors import UsageError
from bench.keys import text_digest
from bench.meter import Meter
from bench.method import Context, Method
from bench.reopen import config_of
from bench.report.boards import Board
from bench.report.texts import Asked, without_folders
from bench.stages import StageCache, request_key
from bench.store import StoredRun
from bench.types import Capability, Generation, Message, Request, Sampling, readable_slots

if TYPE_CHECKING:
    from bench.data.split import Dataset

Prompt = list[list[str]]
"""[role, content] of each message, soft slots as ⟦name⟧."""

_LOCAL = "hf"
"""The engine that counts tokens without loading weights or asking a server."""
OTHERWISE = (
    "The prompt cannot be written again as it was: what is written without weights has another hash. The method "
    "retrieves by an encoder, takes other users' texts in an order of its own, or cut the prompt by a tokenizer that "
    "is not on this machine."
)


class _Gone(UsageError):
    """An answer of an earlier stage is not stored."""


def prompts(board: Board, known: Asked, examples: Sequence[str]) -> tuple[dict[str, Prompt], list[str | None]]:
    """Hash -> prompt, for these examples and all rows; and for each row why prompts of it are missing, if any are."""
    found: dict[str, Prompt] = {}
    reasons = [_row(entry, known, examples, found) for entry in board.entries]
    return found, reasons


def _row(entry: Entry, known: Asked, examples: Sequence[str], found: dict[str, Prompt]) -> str | None:
    """Adds the prompts of a row's runs; the reason why not all could be."""
    if not entry.asks_model:
        return "It asks no model, so there is no prompt."
    if known.dataset is None:
        return f"The prompt cannot be written again: {known.reason}"
    reason = None
    for run in entry.runs:
        try:
            reason = _run(run, known.dataset, known, examples, found) or reason
        except Exception as error:  # a plug-in's method may fail in any way; the page is worth more than a prompt
            reason = f"The prompt cannot be written again: {without_folders(error)}"
    return reason


def _run(
    run: StoredRun, dataset: Dataset, known: Asked, examples: Sequence[str], found: dict[str, Prompt]
) -> str | None:
    cls = method_class(run.method)
    method = cls(build(cls.Config, run.description["method"]["config"], f"{run.path}: {run.method}"))
    ctx = _context(run, method, dataset)
    hashes = {record["example_id"]: record.get("prompt_sha256") for record in run.records}
    reason = None
    for name in examples:
        example, wanted = known.example(name), hashes.get(name)
        if example is None or wanted is None or wanted in found:
            continue
        try:
            messages = method.preview(example, ctx)
        except _Gone as error:
            reason = str(error)
            continue
        if text_digest("\n".join(f"{m.role}: {m.content}" for m in messages)) == wanted:
            found[wanted] = _readable(messages)
        else:
            reason = OTHERWISE
    return reason


def _readable(messages: Sequence[Message]) -> Prompt:
    return [[message.role, readable_slots(message.content)] for message in messages]


def _context(run: StoredRun, method: Method, dataset: Dataset) -> Context:
    """What the method sees, without weights."""
    description = run.description
    encoder = None
    if method.wants_encoder():
        from bench.encoders import HashEncoder

        encoder = HashEncoder()
    return Context(
        task=dataset.task,
        population=dataset.population,
        engine=_engine(run),
        seed=description["seed"],
        sampling=Sampling(**description["sampling"]),
        max_prompt_tokens=description["prompt"]["max_prompt_tokens"],
        meter=Meter(),
        encoder_or_none=encoder,
        truth=dataset.truth if Capability.TRUTH in method.needs else None,
        stage_runner=_stored_stages(run),
    )


def _engine(run: StoredRun) -> Engine:
    """Counts tokens as the run did, if its model's tokenizer is on this machine; else they are estimated, which matters
    for prompts over the budget alone."""
    try:
        config = config_of(run)
        counting = _counting(config.model) if config.engine == _LOCAL else None
    except UsageError:
        counting = None
    return counting or FakeEngine(config=FakeConfig())


@lru_cache(maxsize=4)
def _counting(model: str) -> Engine | None:
    """An engine that can count tokens, its tokenizer loaded once for all runs; None where that is not to be had."""
    from bench import registry, weights

    source = weights.resolve(model, "llm")
    if not source.fetched:
        return None
    cls = registry.load("engine", _LOCAL)
    engine: Engine = cls(source, cls.Config())
    engine.count_tokens([Message("user", "words")])
    return engine


def _stored_stages(run: StoredRun) -> Callable[[Sequence[Request], str], list[Generation]]:
    caches: dict[str, StageCache] = {}

    def stage(requests: Sequence[Request], name: str) -> list[Generation]:
        cache = caches.setdefault(name, StageCache(run.path / "stages", name))
        try:
            return [cache.answers[request_key(request)] for request in requests]
        except KeyError as error:
            raise _Gone(f"What stage {name} wrote for it is not stored, or was asked otherwise.") from error

    return stage
