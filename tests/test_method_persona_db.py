"""persona-db: who is a neighbour as of when, what facts and personas rest on, and which calls are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_world import World, context, document, example, said, world

from bench.data.population import Population
from bench.encoders import HashEncoder
from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.testing import check_method
from bench.types import Document, Example, Generation, Message, Request
from methods.persona_db import PersonaDb, PersonaDbConfig
from methods.rag import Rag, RagConfig


@pytest.fixture(scope="module")
def small() -> World:
    return world(users=6, history=5)


class Stages:
    """Answers "STAGE of ID." and remembers what was asked, each question once, as the cache asks it."""

    def __init__(self, fails: str = "nobody") -> None:
        self.asked: dict[str, list[Request]] = {"distil": [], "induce": []}
        self.rounds: list[str] = []
        self.fails = fails

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        assert all(request.stage == stage for request in requests)
        self.rounds.append(stage)
        self.asked[stage] += [request for request in requests if request not in self.asked[stage]]
        return [self._answer(request.example_id, stage) for request in requests]

    def _answer(self, name: str, stage: str) -> Generation:
        error = "out of memory" if self.fails in f"{stage} of {name}" else None
        return Generation("" if error else f" {answer(stage, name)}\n", 1, 1, "stop", error=error)


def answer(stage: str, name: str) -> str:
    return f"[{stage} of {name}]"


def asked(
    examples: Sequence[Example], population: Population, stages: Stages | None = None, ctx: Any = None, **knobs: Any
) -> tuple[Stages, list[Request]]:
    """(what was asked before the last prompts, last requests)."""
    stages = stages or Stages()
    method = PersonaDb(PersonaDbConfig.model_validate(knobs))
    inner = replace(context(population, **(ctx or {})), stage_runner=stages.run)
    return stages, method.requests(examples, inner)


def order(text: str, documents: Sequence[Document]) -> list[str]:
    """Ids of the documents whose text stands in a prompt, in the order they stand there."""
    places = {d.id: text.find(d.text) for d in documents}
    return sorted((name for name, place in places.items() if place >= 0), key=lambda name: places[name])


# -- a slow reference -------------------------------------------------------------------------------------------------


def called(documents: Sequence[Document]) -> str:
    """How a user as known by some documents is called."""
    return f"user {documents[-1].user_id} up to {documents[-1].id}"


def mean(documents: Sequence[Document]) -> Any:
    return HashEncoder(16).encode([d.text for d in documents]).astype(np.float64).mean(axis=0)


def likeness(own: Sequence[Document], other: Sequence[Document]) -> float:
    a, b = mean(own), mean(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def nearest(
    own: Sequence[Document], moment: int, everything: Sequence[Document], count: int, n_history: int
) -> list[list[Document]]:
    """Of each neighbour the documents that it is known by, by their definition alone."""
    users = sorted({d.user_id for d in everything} - {own[0].user_id})
    known = [sorted((d for d in everything if d.user_id == user and time(d) < moment), key=time) for user in users]
    recent = [documents[-n_history:] for documents in known if documents]
    recent.sort(key=lambda documents: -round(likeness(own, documents), 5))
    return recent[:count]


def time(of: Document) -> int:
    assert of.timestamp is not None
    return of.timestamp


def known(of: Example, population: Population, scope: str) -> list[Document]:
    open_to_all = population.history(of.user_id, None)
    return [d for d in of.history if scope == "target" or d in open_to_all]


# -- what notes rest on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["user", "target"])
@pytest.mark.parametrize(("count", "n_history"), [(3, 16), (1, 2), (2, 3), (9, 1)])
def test_facts_and_personas_are_those_of_the_user_and_of_its_neighbours_before_its_moment(
    small: World, scope: str, count: int, n_history: int
) -> None:
    everything = small.population.documents()
    for of in small.test.examples:
        own = known(of, small.population, scope)
        moment = of.timestamp if scope == "target" else own[-1].timestamp
        assert moment is not None
        own = own[-n_history:]
        stages, (final,) = asked([of], small.population, scope=scope, neighbours=count, n_history=n_history)
        around = nearest(own, moment, everything, count, n_history)
        assert len(around) == min(count, 5)
        expected = {called(documents): documents for documents in (own, *around)}
        assert stages.rounds == ["distil", "induce"]
        assert {r.example_id for r in stages.asked["distil"]} == set(expected)
        for request in stages.asked["distil"]:
            newest = [d.id for d in reversed(expected[request.example_id])]
            assert order(said(request.messages), [*everything, *of.history]) == newest
            assert request.sampling.max_new_tokens == 256
        for request in stages.asked["induce"]:
            text = said(request.messages)
            assert [answer("distil", name) in text for name in expected] == [n == request.example_id for n in expected]
            assert order(text, [*everything, *of.history]) == []
            assert request.sampling.max_new_tokens == 128
        text = said(final.messages)
        places = [text.index(answer("induce", called(documents))) for documents in (own, *around)]
        assert places == sorted(places)
        assert text.count("[induce of") == 1 + len(around)
        assert "[distil of" not in text


def test_the_last_prompt_is_rags_with_personas_before_the_target(small: World) -> None:
    for knobs in ({"k": 3}, {"k": 2, "retriever": "recency"}, {"k": 0}, {"k": 4, "retriever": "dense"}):
        _, last = asked(small.test.examples, small.population, **knobs)
        plain = Rag(RagConfig.model_validate(knobs)).requests(small.test.examples, context(small.population))
        for ours, theirs in zip(last, plain, strict=True):
            assert ours.messages[:-1] == theirs.messages[:-1]
            before, note, after = ours.messages[-1].content.partition("What is known of me as a writer:\n[induce of")
            assert (before, bool(note)) == ("", True)
            assert after.endswith(theirs.messages[-1].content)
            assert [f"\n\n{n}. [induce of" in after for n in (1, 2, 3, 4)] == [True, True, True, False]


def test_nothing_later_and_nothing_of_the_target_is_shown(small: World) -> None:
    """A world in which everybody goes on to review at and after the moment, the user itself included."""
    for scope in ("user", "target"):
        for of in small.test.examples:
            own = known(of, small.population, scope)
            moment = of.timestamp if scope == "target" else own[-1].timestamp
            assert moment is not None
            late = [
                replace(document(user, 8, moment + wait), id=f"late {user} {wait}", text=f"Late {user} {wait}.")
                for user in range(8)
                for wait in (0, 1)
                if f"u{user}" != of.user_id or scope == "target"
            ]
            population = Population([*small.population.documents(), *late])
            stages, last = asked([of], population, scope=scope)
            before, expected = asked([of], small.population, scope=scope)
            assert (stages.asked, last) == (before.asked, expected)
            for request in (*stages.asked["distil"], *stages.asked["induce"], *last):
                assert "Never shown" not in said(request.messages)
                assert "Late" not in said(request.messages)
            for request in (*stages.asked["distil"], *stages.asked["induce"]):
                assert str(of.fields["title"]) not in said(request.messages) or any(
                    d.fields["title"] == of.fields["title"] for d in small.population.documents()
                )


@settings(max_examples=60, deadline=None)
@given(
    reviews=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 8)), max_size=18, unique_by=lambda r: r[:2]
    ),
    moment=st.integers(0, 10),
    count=st.integers(0, 3),
    n_history=st.integers(1, 4),
)
def test_in_any_world_neighbours_are_those_of_the_definition(
    reviews: list[tuple[int, int, int]], moment: int, count: int, n_history: int
) -> None:
    everything = sorted((document(*review) for review in reviews), key=lambda d: (time(d), d.user_id, d.id))
    own = [d for d in everything if d.user_id == "u0" and time(d) < moment]
    of = example(0, 7, moment, own)
    knobs: dict[str, Any] = {"scope": "target", "neighbours": count, "n_history": n_history}
    stages, (final,) = asked([of], Population(everything), **knobs)
    recent = own[-n_history:]
    expected = [recent, *nearest(recent, moment, everything, count, n_history)] if own else []
    wanted = {called(documents): [d.id for d in reversed(documents)] for documents in expected}
    assert {r.example_id: order(said(r.messages), everything) for r in stages.asked["distil"]} == wanted
    text = said(final.messages)
    places = [text.index(answer("induce", name)) for name in wanted]
    assert places == sorted(places)
    assert text.count("[induce of") == len(wanted)


def test_equally_near_users_come_in_the_order_of_their_ids() -> None:
    """Three others with the very same texts, told apart by the titles of their reviews."""
    own = [document(0, item, item) for item in (1, 2)]
    others = [
        replace(document(user, item, item), text=f"Same text of {item}.") for user in (3, 1, 2) for item in (3, 4)
    ]
    of = example(0, 7, 9, own)
    population = Population([*own, *others])
    _, (final,) = asked([of], population, neighbours=2, scope="target")
    text = said(final.messages)
    assert text.index("user u1 up to") < text.index("user u2 up to")
    assert "user u3 up to" not in text


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_a_users_targets_share_all_calls_and_nothing_later_gets_in(small: World) -> None:
    both = [e for pair in zip(small.dev.examples, small.test.examples, strict=True) for e in pair]
    together, last = asked(both, small.population)
    tests, _ = asked(small.test.examples, small.population)
    assert together.asked == tests.asked
    for dev, test in zip(last[::2], last[1::2], strict=True):
        note = dev.messages[-1].content.partition("\n\nWrite my review")[0]
        assert "[induce of" in note
        assert test.messages[-1].content.startswith(note)
    for of in small.dev.examples:
        (text,) = [d.text for d in small.test.examples[int(of.user_id[1:])].history if d.id == of.id]
        assert not any(text in said(r.messages) for r in together.asked["distil"])


def test_each_state_of_a_user_costs_two_calls_whoever_comes_upon_it() -> None:
    """Two users at one moment with the same third one nearby, who is written for in the same state as well."""
    own = [replace(document(user, item, item), text=f"My {item} by {user}.") for user in (0, 1, 2) for item in (1, 2)]
    population = Population(own)
    examples = [example(user, 7, 9, [d for d in own if d.user_id == f"u{user}"]) for user in (0, 1, 2)]
    stages, last = asked(examples, population, scope="target", neighbours=2)
    assert [len(stages.asked[stage]) for stage in ("distil", "induce")] == [3, 3]
    assert all(said(request.messages).count("[induce of") == 3 for request in last)
    # A review by u2 between the moments makes two states of it.
    later = replace(document(2, 3, 10), text="My 3 by 2.")
    examples = [examples[0], replace(examples[1], timestamp=11)]
    stages, _ = asked(examples, Population([*own, later]), scope="target", neighbours=2)
    names = ["user u0 up to u0/i2", "user u1 up to u1/i2", "user u2 up to u2/i2", "user u2 up to u2/i3"]
    assert sorted(r.example_id for r in stages.asked["distil"]) == names


def test_a_training_target_and_a_test_target_of_one_user_get_notes_of_their_own(small: World) -> None:
    """They are asked about one user at two moments."""
    together = [small.train.examples[0], small.test.examples[0]]
    _, last = asked(together, small.population)
    apart = [asked([one], small.population)[1][0] for one in together]
    assert last == apart
    assert called(small.train.examples[0].history) in said(last[0].messages)
    assert called(small.train.examples[0].history) not in said(last[1].messages)


def test_no_company_changes_what_is_asked(small: World) -> None:
    for knobs in ({}, {"scope": "target"}, {"retriever": "dense", "n_history": 2}):
        stages, last = asked(small.test.examples, small.population, **knobs)
        alone = [asked([of], small.population, **knobs) for of in small.test.examples]
        assert last == [request for _, (request,) in alone]
        for stage in ("distil", "induce"):
            several = {r.example_id: r for one, _ in alone for r in one.asked[stage]}
            assert {r.example_id: r for r in stages.asked[stage]} == several
        assert asked(small.test.examples[::-1], small.population, **knobs)[1] == last[::-1]


# -- where something is missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["user", "target"])
def test_without_history_it_is_the_bare_task_and_without_others_the_users_own_persona(small: World, scope: str) -> None:
    of = small.test.examples[0]
    newcomer = replace(of, history=())
    for population in (small.population, Population([])):
        stages, last = asked([newcomer], population, scope=scope)
        assert stages.asked == {"distil": [], "induce": []}
        assert last == Rag().requests([newcomer], context(population))
    other = small.test.examples[1]
    assert asked([newcomer, other], small.population, scope=scope)[1] == [
        *last,
        *asked([other], small.population, scope=scope)[1],
    ]
    alone = Population(small.population.history(of.user_id, None))
    stages, (final,) = asked([of], alone, scope=scope)
    assert [len(several) for several in stages.asked.values()] == [1, 1]
    assert said(final.messages).count("[induce of") == 1
    assert "most like me" not in said(final.messages)


def test_without_neighbours_no_encoder_is_used(small: World) -> None:
    bare = {"encoder_or_none": None}
    stages, _ = asked(small.test.examples, small.population, neighbours=0, ctx=bare)
    assert len(stages.asked["distil"]) == len(small.test.examples)
    assert not PersonaDb(PersonaDbConfig(neighbours=0)).wants_encoder()
    assert PersonaDb(PersonaDbConfig(neighbours=0, retriever="dense")).wants_encoder()
    assert PersonaDb().wants_encoder()
    with pytest.raises(UsageError, match="wants_encoder"):
        asked(small.test.examples, small.population, ctx=bare)


def test_what_failed_is_left_out(small: World) -> None:
    of = small.test.examples[0]
    _, (fine,) = asked([of], small.population)
    own, *around = [part.partition("]")[0] for part in said(fine.messages).split("[induce of ")[1:]]
    for stage in ("distil", "induce"):
        for failing in (own, around[1]):
            stages, (final,) = asked([of], small.population, Stages(fails=f"{stage} of {failing}"))
            left = [name for name in (own, *around) if name != failing]
            assert len(stages.asked["induce"]) == (3 if stage == "distil" else 4)
            text = said(final.messages)
            assert [part.partition("]")[0] for part in text.split("[induce of ")[1:]] == left
            assert [f"\n\n{n}. [induce of" in text for n in (1, 2, 3)] == [True, True, failing == own]
    _, (final,) = asked([of], small.population, Stages(fails="distil"))
    assert [final] == Rag().requests([of], context(small.population))


# -- budgets ----------------------------------------------------------------------------------------------------------


def tokens(messages: Sequence[Message]) -> int:
    return FakeEngine().count_tokens(messages)


def test_a_tight_budget_takes_the_oldest_reviews_then_the_note_and_never_the_task(small: World) -> None:
    of = small.test.examples[0]
    stages, (whole,) = asked([of], small.population, retriever="recency")
    longest = max(tokens(r.messages) for r in (whole, *stages.asked["distil"]))
    counts: set[int] = set()
    distilled: set[int] = set()
    for budget in range(longest + 3, 130, -7):
        stages, (final,) = asked([of], small.population, retriever="recency", ctx={"max_prompt_tokens": budget})
        assert all(tokens(r.messages) <= budget for several in stages.asked.values() for r in several)
        text = said(final.messages)
        assert tokens(final.messages) <= budget
        assert all(str(value) in text for name, value in of.fields.items() if name != "rating")
        kept = order(text, of.history)
        assert kept == [d.id for d in reversed(of.history)][: len(kept)]
        assert text.count("[induce of") == 4 or not kept
        counts.add(len(kept))
        (request,) = [r for r in stages.asked["distil"] if r.example_id.startswith(f"user {of.user_id} ")]
        recent = order(said(request.messages), small.population.documents())
        assert recent == [d.id for d in reversed(small.population.history(of.user_id, None))][: len(recent)]
        assert "One short line for each fact" in said(request.messages)
        distilled.add(len(recent))
    assert counts >= set(range(8))
    assert distilled >= set(range(1, 7))


def test_long_facts_are_shortened_and_what_is_asked_stays(small: World) -> None:
    class Talkative(Stages):
        def _answer(self, name: str, stage: str) -> Generation:
            return Generation(" ".join(f"{stage}{n}" for n in range(400)), 1, 1, "length")

    of = small.test.examples[0]
    for budget in (150, 300, 600):
        stages, (final,) = asked([of], small.population, Talkative(), ctx={"max_prompt_tokens": budget})
        for request in stages.asked["induce"]:
            text = said(request.messages)
            assert tokens(request.messages) <= budget
            assert "distil0 distil1" in text
            assert "at most four sentences" in text
        assert tokens(final.messages) <= budget
        assert "induce0" in said(final.messages)
        assert str(of.fields["item_title"]) in said(final.messages)


# -- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {"n_history": 5},
        {"scope": "target", "n_history": 3},
        {"neighbours": 0, "k": 0},
        {"neighbours": 20, "retriever": "dense", "n_history": 2},
    ],
)
def test_it_holds_to_the_contract(knobs: dict[str, Any]) -> None:
    check_method(PersonaDb, **knobs)


def test_a_dry_run_shows_all_stages_and_embeds_nothing(small: World) -> None:
    class Strict(HashEncoder):
        def encode(self, texts: Sequence[str], progress: bool = False) -> Any:
            raise AssertionError("a look at prompts embeds nothing")

    stages = Stages()
    ctx = replace(context(small.population, encoder_or_none=Strict(16)), stage_runner=stages.run)
    prompt = said(PersonaDb().preview(small.test.examples[0], ctx))
    assert prompt.count("[induce of") == 4
    assert [len(several) for several in stages.asked.values()] == [4, 4]
    users = {r.example_id.split()[1] for r in stages.asked["distil"]}
    assert len(users) == 4
    assert small.test.examples[0].user_id in users
