"""A database of personas: facts distilled from a history, a persona induced from them, joined with similar users'."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from bench.keys import digest
from bench.method import FINAL_STAGE, About, Context, Method, Stage
from bench.notes import NoteConfig, subject, write_notes
from bench.prompts import conversation, fit_noted, fit_prompt, render_documents
from bench.retrieval import Retriever, newest_first, retrieve
from bench.types import Document, Example, Message, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PersonaDbConfig(NoteConfig):
    """Knobs of persona-db. `note_tokens` bounds the facts."""

    persona_tokens: int = Field(default=128, ge=1)
    """Longest persona; the last prompt holds the user's own and those of the neighbours."""
    neighbours: int = Field(default=3, ge=0)
    """Users whose personas join the user's own; 0 needs no encoder."""
    n_history: int = Field(default=16, ge=1)
    """Most recent past documents of a user, or of a neighbour, that facts are distilled from."""
    k: int = Field(default=8, ge=0)
    """Past documents shown."""
    retriever: Retriever = "bm25"
    """What chooses them, as in rag."""


class PersonaDb(Method):
    """Facts distilled from the user's past, a persona induced from them and joined with those of the nearest users.

    Sun et al. (COLING 2025) keep a layered record of each user: the history, facts distilled from it, and a more
    general persona induced from the facts. Records of the users most alike are joined to the user's own, and the answer
    is written from history and both. Here the last prompt holds past reviews retrieved as in rag and, as a note, the
    user's persona before those of the neighbours, whole ones, where the paper retrieves single items of each record.

    The paper finds neighbours by their personas' vectors, for which every user of the population would have to be asked
    about first. Here a user's vector is the mean of those of the very reviews that the facts are distilled from, so
    neighbours follow from the population alone, and only they cost calls.

    A neighbour is known by what the population holds of it before the user's own moment: with `scope = user` the time
    of the user's last open review, with `target` the target's. Its notes are named after its last review by then, so
    all users who find it in one state share its two calls, and so does the neighbour where it is written for in that
    state. A user thus costs at most 2 (1 + `neighbours`) calls, a target one more.
    """

    name = "persona-db"
    about = About(
        "Sun, COLING",
        2025,
        "https://aclanthology.org/2025.coling-main.20/",
        stages=(
            Stage("distil", "up to 4 a user"),
            Stage("induce", "up to 4 a user"),
            Stage(FINAL_STAGE, "1 a target"),
        ),
    )
    Config = PersonaDbConfig
    config: PersonaDbConfig

    def wants_encoder(self) -> bool:
        return self.config.neighbours > 0 or self.config.retriever == "dense"

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return self._requests(examples, ctx, _nearest)

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        """With neighbours by chance: the nearest ones would take the vectors of the whole population."""
        return self._requests([example], ctx, _by_chance)[0].messages

    def _requests(self, examples: Sequence[Example], ctx: Context, choose: Choose) -> list[Request]:
        def build(example: Example, documents: Sequence[Document], note: str) -> list[Message]:
            return conversation(ctx.task, example, documents, note=note)

        shown = retrieve(examples, self.config.k, self.config.retriever, ctx)
        known = zip(examples, shown, self._notes(examples, ctx, choose), strict=True)
        return [ctx.request(e, fit_noted(build, e, documents, note, ctx).messages) for e, documents, note in known]

    def _notes(self, examples: Sequence[Example], ctx: Context, choose: Choose) -> list[str]:
        """The persona of each example's user, joined with those of the neighbours."""
        subjects = [subject(example, self.config.scope, ctx) for example in examples]
        states = _States(self.config.n_history)
        own = [states.number(one.history) for one in subjects]
        others = [
            [] if number is None else self._others(one, states, ctx) for one, number in zip(subjects, own, strict=True)
        ]
        chosen = choose(own, others, self.config.neighbours, states, ctx)
        wanted = sorted({n for n in own if n is not None} | {n for several in chosen for n in several})
        personas = dict(zip(wanted, self._personas([states.users[n] for n in wanted], ctx), strict=True))
        return [
            _joined("" if number is None else personas[number], [personas[n] for n in several])
            for number, several in zip(own, chosen, strict=True)
        ]

    def _others(self, one: Example, states: _States, ctx: Context) -> list[int]:
        """All other users as they were at the moment of `one`, by their ids."""
        if self.config.neighbours == 0:
            return []
        users = (user for user in ctx.population.users() if user != one.user_id)
        numbers = (states.number(ctx.population.history(user, one.timestamp)) for user in users)
        return [number for number in numbers if number is not None]

    def _personas(self, users: Sequence[Example], ctx: Context) -> list[str]:
        facts = write_notes(users, _facts_prompt, ctx, "distil", self.config.note_tokens)
        found = {id(one): text for one, text in zip(users, facts, strict=True)}

        def build(one: Example, inner: Context) -> Sequence[Message] | None:
            return _persona_prompt(one, found[id(one)], inner)

        return write_notes(users, build, ctx, "induce", self.config.persona_tokens)


# -- neighbours -------------------------------------------------------------------------------------------------------


class _States:
    """Users as their latest documents at some moment show them, each state numbered once whoever comes upon it."""

    def __init__(self, size: int) -> None:
        """`size` is how many of a user's latest documents count."""
        self.users: list[Example] = []
        """By number; the history is what counts."""
        self._size = size
        self._numbers: dict[tuple[str, ...], int] = {}

    def number(self, documents: Sequence[Document]) -> int | None:
        """The number of the state that a user's documents, oldest first, make; None without any."""
        recent = tuple(documents[-self._size :])
        if not recent:
            return None
        key = tuple(document.id for document in recent)
        if key not in self._numbers:
            self._numbers[key] = len(self.users)
            user, last = recent[-1].user_id, recent[-1]
            self.users.append(Example(f"user {user} up to {last.id}", user, {}, recent, None, last.timestamp))
        return self._numbers[key]


Choose = Callable[[Sequence[int | None], Sequence[Sequence[int]], int, _States, Context], list[list[int]]]
"""(own states, states of others for each, how many, all states, context) -> neighbours of each, the nearest first."""


def _nearest(
    own: Sequence[int | None], others: Sequence[Sequence[int]], count: int, states: _States, ctx: Context
) -> list[list[int]]:
    """The states of the largest cosine; of equal ones that of the user whose id comes first."""
    if not any(others):
        return [[] for _ in own]
    means = _means(states, ctx)
    chosen: list[list[int]] = []
    for number, several in zip(own, others, strict=True):
        # Row by row, not as a product of matrices, whose last bits depend on where a row stands.
        similar = (means[list(several)] * means[number or 0]).sum(axis=1)
        chosen.append([several[i] for i in np.argsort(-similar, kind="stable")[:count]])
    return chosen


def _by_chance(
    own: Sequence[int | None], others: Sequence[Sequence[int]], count: int, states: _States, ctx: Context
) -> list[list[int]]:
    """Others drawn by run seed and user, for a look at prompts without vectors."""
    chosen = []
    for number, several in zip(own, others, strict=True):
        name = "" if number is None else states.users[number].user_id
        stream = random.Random(digest([ctx.seed, "neighbours", name]))
        chosen.append(stream.sample(list(several), min(count, len(several))))
    return chosen


def _means(states: _States, ctx: Context) -> NDArray[np.float32]:
    """Unit vectors (states, dimension): directions of the means over each state's texts."""
    texts = sorted({document.text for one in states.users for document in one.history})
    row = {text: index for index, text in enumerate(texts)}
    with ctx.meter.phase("embed"):
        vectors = ctx.encoder.encode(texts, progress=True)
    means = np.empty((len(states.users), vectors.shape[1]), np.float32)
    for mean, one in zip(means, states.users, strict=True):
        total = vectors[[row[document.text] for document in one.history]].sum(axis=0, dtype=np.float64)
        mean[:] = total / max(float(np.linalg.norm(total)), 1e-12)
    return means


# -- prompts ----------------------------------------------------------------------------------------------------------


def _facts_prompt(one: Example, ctx: Context) -> Sequence[Message]:
    """The prompt for facts about a user, the newest of its documents first."""
    task, noun = ctx.task, ctx.task.noun
    ask = (
        f"List what these {noun}s show of the user: interests, likes and dislikes, views of particular things, "
        "belongings, work and people around, and habits of writing. One short line for each fact, and nothing else."
    )

    def build(_: Example, documents: Sequence[Document]) -> list[Message]:
        past = render_documents(task, documents, f"Past {noun}")
        return [Message("user", f"One user wrote these {noun}s.\n\n{past}\n\n{ask}")]

    return fit_prompt(build, one, newest_first(one.history), ctx).messages


def _persona_prompt(one: Example, facts: str, ctx: Context) -> Sequence[Message] | None:
    """The prompt for a persona; None without facts."""
    if not facts:
        return None
    ask = (
        "Infer what lies behind these facts and holds beyond them: what the user values, how the user judges new "
        f"things, and the voice in which the user writes {ctx.task.noun}s. "
        "Answer with the description alone, in at most four sentences."
    )

    def build(_: Example, __: Sequence[Document], known: str) -> list[Message]:
        return [Message("user", f"This is known of one user.\n\n{known}\n\n{ask}")]

    return fit_noted(build, one, [], facts, ctx).messages


def _joined(own: str, others: Sequence[str]) -> str:
    """A user's persona before those of the neighbours, the nearest first; what is empty is left out."""
    known = [text for text in others if text]
    lines = [f"{number}. {text}" for number, text in enumerate(known, 1)]
    lead = ["Users who are most like me, though not in everything:"] if known else []
    return "\n\n".join(part for part in (own, *lead, *lines) if part)
