"""Contrastive in-context learning: the user's own texts beside what others wrote of the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from bench.method import FINAL_STAGE, About, Context, Method, Stage
from bench.notes import NoteConfig, Scope, subject, write_notes
from bench.prompts import conversation, fit_noted, fit_prompt, fit_texts, render_documents
from bench.retrieval import Retriever, retrieve
from bench.types import Document, Example, Message, Request, Task


class CiclConfig(NoteConfig):
    """Knobs of cicl."""

    scope: Scope = "target"
    """target: the contrast is stated for each target, over the examples that its prompt shows; user: once a user, over
    the user's most recent reviews, from what is open before all validation and test targets."""
    k: int = Field(default=4, ge=0)
    """Positive examples: past documents of the user."""
    retriever: Retriever = "bm25"
    """What chooses them, as in rag."""
    negatives: int = Field(default=1, ge=0)
    """Negative examples of each positive one: documents of others on the same item, all earlier than the target."""
    choice: Literal["latest", "nearest"] = "latest"
    """Which of the others' documents: the latest before the target, or those nearest to the user's own by the encoder;
    of equally near ones the later."""
    shown: Literal["both", "positive"] = "both"
    """What the last prompt shows beside the contrast: both kinds, as in the paper, or positive examples alone."""


@dataclass(frozen=True)
class _Pair:
    """A positive example and its negative ones."""

    own: Document
    others: Sequence[Document] = ()
    """The first choice first; empty where nobody else wrote of the item."""


class Cicl(Method):
    """The user's reviews beside others' of the same items: the model states the contrast, then writes.

    Gao and Das (AAAI 2024) show a positive and a negative answer to each question of a few-shot prompt, have the model
    say what tells them apart, and let it answer the next question with the examples and that analysis in view. Here a
    positive example is a past review of the user, a negative one is somebody else's review of the same item, and the
    two steps are two calls: stage `contrast` is shown the pairs, and the last prompt holds the pairs and the contrast.
    Where nobody else wrote of an item there is a positive example alone, in the last prompt only; where that is so for
    all of them no contrast is asked for.
    """

    name = "cicl"
    about = About(
        "Gao, AAAI",
        2024,
        "https://arxiv.org/abs/2401.17390",
        stages=(Stage("contrast", "1 a target"), Stage(FINAL_STAGE, "1 a target")),
    )
    Config = CiclConfig
    config: CiclConfig

    def wants_encoder(self) -> bool:
        return self.config.retriever == "dense" or (self.config.choice == "nearest" and self.config.negatives > 0)

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        pairs = self._pairs(examples, self.config.retriever, ctx)
        known = zip(examples, pairs, self._contrasts(examples, pairs, ctx), strict=True)
        return [ctx.request(e, self._last(e, several, note, ctx)) for e, several, note in known]

    def _pairs(self, examples: Sequence[Example], kind: Retriever, ctx: Context) -> list[list[_Pair]]:
        """The examples that each prompt shows, newest first."""
        positives = retrieve(examples, self.config.k, kind, ctx)
        if self.config.negatives == 0:
            return [[_Pair(own) for own in several] for several in positives]
        found = [
            [_Pair(own, _peers(own, e, ctx)) for own in several] for e, several in zip(examples, positives, strict=True)
        ]
        if self.config.choice == "nearest":
            found = _nearest_first(found, ctx)
        return [[_Pair(pair.own, pair.others[: self.config.negatives]) for pair in several] for several in found]

    def _contrasts(self, examples: Sequence[Example], pairs: Sequence[Sequence[_Pair]], ctx: Context) -> Sequence[str]:
        """What marks each example's user, as the model sees it."""
        subjects = [subject(example, self.config.scope, ctx) for example in examples]
        if self.config.scope == "user":  # nothing is asked yet that reviews could be retrieved for
            pairs = self._pairs(subjects, "recency", ctx)
        contrasted = {
            id(one): [pair for pair in several if pair.others] for one, several in zip(subjects, pairs, strict=True)
        }

        def build(one: Example, inner: Context) -> Sequence[Message] | None:
            return _contrast_prompt(one, contrasted[id(one)], inner)

        return write_notes(subjects, build, ctx, "contrast", self.config.note_tokens)

    def _last(self, example: Example, pairs: Sequence[_Pair], note: str, ctx: Context) -> Sequence[Message]:
        both = self.config.shown == "both"
        own = {pair.own.id for pair in pairs}

        def build(target: Example, documents: Sequence[Document], contrast: str) -> list[Message]:
            kept = _paired(documents, own)

            def negatives(index: int) -> str:
                return _told(ctx.task, kept[index].others)

            return conversation(ctx.task, target, [pair.own for pair in kept], negatives, contrast)

        documents = _flat(pairs) if both else [pair.own for pair in pairs]
        return fit_noted(build, example, documents, note, ctx).messages


# -- choosing ---------------------------------------------------------------------------------------------------------


def _peers(own: Document, example: Example, ctx: Context) -> list[Document]:
    """What others wrote of the same item before the example's moment, the latest first."""
    return ctx.population.peers(own, example.user_id, example.timestamp)[::-1]


def _nearest_first(pairs: Sequence[Sequence[_Pair]], ctx: Context) -> list[list[_Pair]]:
    """The same pairs, the negative ones by cosine to the positive one; equals stay in the order they came in."""
    texts = sorted({d.text for several in pairs for pair in several if pair.others for d in (pair.own, *pair.others)})
    row = {text: index for index, text in enumerate(texts)}
    with ctx.meter.phase("embed"):
        vectors = ctx.encoder.encode(texts, progress=True)

    def ranked(pair: _Pair) -> _Pair:
        def distance(other: Document) -> float:
            return -float(vectors[row[pair.own.text]] @ vectors[row[other.text]])

        return _Pair(pair.own, sorted(pair.others, key=distance))

    return [[ranked(pair) for pair in several] for several in pairs]


# -- prompts ----------------------------------------------------------------------------------------------------------


def _flat(pairs: Sequence[_Pair]) -> list[Document]:
    """Each positive example before its negative ones, so that over budget the oldest pair goes from its end."""
    return [document for pair in pairs for document in (pair.own, *pair.others)]


def _paired(documents: Sequence[Document], own: set[str]) -> list[_Pair]:
    """What `_flat` laid end to end, or a beginning of it, as pairs again; `own` are the ids of positive examples."""
    pairs: list[_Pair] = []
    for document in documents:
        if document.id in own:
            pairs.append(_Pair(document))
        else:
            pairs[-1] = _Pair(pairs[-1].own, (*pairs[-1].others, document))
    return pairs


def _others(task: Task, documents: Sequence[Document], called: str) -> str:
    """Others' documents without what describes the item, which stands at the user's own."""
    of_item = {field.name for field in task.fields if field.of_item}
    bare = [replace(d, fields={n: v for n, v in d.fields.items() if n not in of_item}) for d in documents]
    return render_documents(task, bare, called)


def _told(task: Task, others: Sequence[Document]) -> str:
    """Negative examples as they follow a positive one in the last prompt."""
    if not others:
        return ""
    told = _others(task, others, "By another user")
    return f"Of the same item others wrote this, which is not how I write:\n\n{told}"


def _contrast_prompt(one: Example, pairs: Sequence[_Pair], ctx: Context) -> Sequence[Message] | None:
    """The prompt that asks for the contrast; None without a pair. At least the newest pair is shown, if only cut."""
    if not pairs:
        return None
    task, own = ctx.task, {pair.own.id for pair in pairs}

    def messages(documents: Sequence[Document]) -> list[Message]:
        parts = [_beside(task, number, pair) for number, pair in enumerate(_paired(documents, own), 1)]
        lead = f"Here are {task.noun}s by one user, each beside what others wrote of the same item."
        return [Message("user", "\n\n".join([lead, *parts, _ask(task)]))]

    fitted = fit_prompt(lambda _, documents: messages(documents), one, _flat(pairs), ctx)
    if len(fitted.documents) > 1:
        return fitted.messages
    return fit_texts(messages, _flat(pairs)[:2], ctx, f"{one.id}: a contrast")


def _beside(task: Task, number: int, pair: _Pair) -> str:
    own = render_documents(task, [pair.own], f"Item {number}, by the user")
    return f"{own}\n\n{_others(task, pair.others, f'Item {number}, by another user')}" if pair.others else own


def _ask(task: Task) -> str:
    noun = task.noun
    return (
        f"What marks the user's own {noun}s against those of the others? Say what the user does and the others do not, "
        "and what the others do and the user never would: what is paid attention to, how it is judged, tone, length, "
        "order, words. Answer with the contrast alone, in at most six sentences."
    )
