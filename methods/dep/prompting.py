"""Which reviews an example shows, whose vectors stand beside them, and how the prompt holds both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.keys import digest
from bench.method import Context
from bench.prompts import Fitted, conversation, fit_prompt, one_message
from bench.retrieval import newest_first, retrieve
from bench.types import Document, Example, Message, slot
from methods.dep.config import DepConfig
from methods.dep.differences import ReviewVectors, review_vectors
from methods.dep.pairs import Encode, Floats
from methods.dep.paper import paper_history, paper_reviews, paper_vectors

_KINDS = {"both": ("history", "difference"), "history": ("history",), "difference": ("difference",)}


@dataclass(frozen=True)
class Prepared:
    """An example's prompt and the vectors behind its soft slots."""

    prompt: Fitted
    slots: int
    """Reviews that have soft slots: the first ones of the prompt, and the first ones of the vectors."""
    vectors: ReviewVectors
    """Those of the slots; in paper mode all that the public code computes, which its losses run over."""


def slot_names(config: DepConfig, index: int) -> list[str]:
    """Soft slots of the review at `index`, newest first: history vector, difference vector, as configured."""
    return [f"{kind} {index + 1}" for kind in _KINDS[config.tokens]]


def slot_lengths(config: DepConfig, slots: int) -> dict[str, int]:
    """Positions of each soft slot of a prompt with `slots` reviews that have any."""
    width = 1 if config.markers == "text" else 3
    return {name: width for index in range(slots) for name in slot_names(config, index)}


def _line(config: DepConfig, noun: str, index: int) -> str:
    lead = {"history": f"Style of that {noun}:", "difference": "Unlike others:"}
    named = zip(_KINDS[config.tokens], slot_names(config, index), strict=True)
    return " ".join(f"{lead[kind]} {slot(name)}" for kind, name in named)


def _fitted(example: Example, shown: Sequence[Document], slots: int, config: DepConfig, ctx: Context) -> Fitted:
    layout = conversation if config.layout == "turns" else one_message

    def line(index: int) -> str:
        return _line(config, ctx.task.noun, index) if index < slots else ""

    def build(target: Example, documents: Sequence[Document]) -> list[Message]:
        return layout(ctx.task, target, documents, after=line)

    return fit_prompt(build, example, shown, ctx)


@dataclass(frozen=True)
class _Chosen:
    """What an example shows, and whose reviews are behind its soft slots."""

    shown: Sequence[Document]
    """Newest first, as long as the prompt has room."""
    source: Example
    """The example, or one with a stranger's history."""
    behind: Sequence[Document]
    """Reviews with vectors, newest first; the i-th stands beside the i-th that is shown."""


def _choose(examples: Sequence[Example], config: DepConfig, ctx: Context) -> list[_Chosen]:
    if config.mode == "paper":
        shown = [paper_history(e)[: config.n_history] for e in examples]
    elif config.selection == "recent":
        shown = [newest_first(e.history)[: config.n_history] for e in examples]
    else:
        shown = retrieve(examples, config.n_history, config.retriever, ctx)
    return [_beside(e, documents, config, ctx) for e, documents in zip(examples, shown, strict=True)]


def _beside(example: Example, shown: Sequence[Document], config: DepConfig, ctx: Context) -> _Chosen:
    strange = config.shuffle == "vectors"
    source = _donor(example, config, ctx) if strange else example
    if config.mode == "paper":
        most = len(paper_reviews(example, ctx.population, config.n_history)) if strange else config.n_history
        return _Chosen(shown, source, paper_reviews(source, ctx.population, most))
    return _Chosen(shown, source, newest_first(source.history)[: len(shown)] if strange else shown)


def _prompts(
    examples: Sequence[Example], chosen: Sequence[_Chosen], config: DepConfig, ctx: Context
) -> list[tuple[Fitted, int]]:
    """Each example's prompt and how many of its reviews have soft slots."""
    fitted = [_fitted(e, c.shown, len(c.behind), config, ctx) for e, c in zip(examples, chosen, strict=True)]
    return [(p, min(len(c.behind), len(p.documents))) for p, c in zip(fitted, chosen, strict=True)]


def messages(example: Example, config: DepConfig, ctx: Context) -> tuple[Message, ...]:
    """The prompt of an example. Embeds nothing but for dense retrieval."""
    ((prompt, _),) = _prompts([example], _choose([example], config, ctx), config, ctx)
    return prompt.messages


def prepare(examples: Sequence[Example], config: DepConfig, ctx: Context, encode: Encode) -> list[Prepared]:
    """Prompts and vectors of examples. Vectors are of whole texts, even where a prompt shortened them."""
    chosen = _choose(examples, config, ctx)
    prompts = _prompts(examples, chosen, config, ctx)
    sources = [c.source for c in chosen]
    if config.mode == "paper":
        vectors = paper_vectors(sources, ctx.population, config, encode)
    else:
        # The documents of a prompt may be shortened copies: their whole texts come first in what was chosen.
        whole = [c.behind[:slots] for c, (_, slots) in zip(chosen, prompts, strict=True)]
        vectors = review_vectors(sources, whole, ctx.population, config, encode, seed=ctx.seed)
    return [Prepared(p, slots, v) for (p, slots), v in zip(prompts, vectors, strict=True)]


# -- controls ---------------------------------------------------------------------------------------------------------


def _donor(example: Example, config: DepConfig, ctx: Context) -> Example:
    """The example with another user's history, drawn by run seed and example: the first in a random order of users
    who wrote as much before the target as is shown, else whoever wrote most."""
    others = [user for user in ctx.population.users() if user != example.user_id]
    random.Random(digest([ctx.seed, "donor", example.id])).shuffle(others)
    wanted = min(config.n_history, len(example.history))
    best: tuple[str, list[Document]] = (example.user_id, [])
    for user in others:
        history = ctx.population.history(user, example.timestamp)
        if len(history) > len(best[1]):
            best = (user, history)
        if len(history) >= wanted:
            break
    return replace(example, user_id=best[0], history=tuple(best[1]))


def with_others_history(examples: Sequence[Example], config: DepConfig, ctx: Context) -> list[Example]:
    """The same targets, each with the whole history of another user."""
    return [_donor(example, config, ctx) for example in examples]


def texts_behind(examples: Sequence[Example], config: DepConfig, ctx: Context) -> list[str]:
    """The texts that `prepare` would have embedded, sorted."""
    texts: set[str] = set()

    def note(wanted: Sequence[str]) -> Floats:
        texts.update(wanted)
        return np.zeros((len(wanted), ctx.encoder.dimension), np.float32)

    prepare(examples, config, ctx, note)
    return sorted(texts)
