"""cicl: which reviews stand beside which, in which order, what is stated of them, and what it costs."""

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
from bench.method import Context
from bench.testing import check_method
from bench.types import Document, Example, Generation, Message, Request
from methods.cicl import Cicl, CiclConfig
from methods.rag import Rag, RagConfig


@pytest.fixture(scope="module")
def small() -> World:
    return world(users=4, history=5)


class Stages:
    """Answers "contrast for ID." and remembers what was asked."""

    def __init__(self, fails: str = "nobody") -> None:
        self.asked: list[Request] = []
        self.fails = fails

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        assert stage == "contrast"
        assert all(request.stage == stage for request in requests)
        self.asked += requests
        return [self._answer(request.example_id) for request in requests]

    def _answer(self, name: str) -> Generation:
        error = "out of memory" if self.fails in name else None
        return Generation("" if error else f" {answer(name)}\n", 1, 1, "stop", error=error)


def answer(name: str) -> str:
    return f"contrast for {name}."


def asked(
    examples: Sequence[Example], population: Population, stages: Stages | None = None, ctx: Any = None, **knobs: Any
) -> tuple[list[Request], list[Request]]:
    """(what was asked for contrasts, last requests)."""
    stages = stages or Stages()
    method = Cicl(CiclConfig.model_validate(knobs))
    inner = replace(context(population, **(ctx or {})), stage_runner=stages.run)
    requests = method.requests(examples, inner)
    return stages.asked, requests


def order(text: str, documents: Sequence[Document]) -> list[str]:
    """Ids of the documents whose text stands in a prompt, in the order they stand there."""
    places = {d.id: text.find(d.text) for d in documents}
    return sorted((name for name, place in places.items() if place >= 0), key=lambda name: places[name])


# -- a slow reference -------------------------------------------------------------------------------------------------


def cosine(one: Document, other: Document) -> float:
    a, b = HashEncoder(16).encode([one.text, other.text]).astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def negatives(own: Document, moment: int, everything: Sequence[Document], count: int, choice: str) -> list[Document]:
    """Others' reviews of the same item before the moment, by their definition alone."""
    found = [
        d
        for d in everything
        if d.item_id == own.item_id and d.user_id != own.user_id and d.timestamp is not None and d.timestamp < moment
    ]
    found.sort(key=lambda d: (d.timestamp, d.user_id, d.id), reverse=True)
    if choice == "nearest":
        found.sort(key=lambda d: -round(cosine(own, d), 5))
    return found[:count]


def pairs(of: Example, positives: Sequence[Document], everything: Sequence[Document], **how: Any) -> list[list[str]]:
    assert of.timestamp is not None
    return [[own.id, *(d.id for d in negatives(own, of.timestamp, everything, **how))] for own in positives]


def flat(several: Sequence[Sequence[str]]) -> list[str]:
    return [name for pair in several for name in pair]


def positives(of: Example, population: Population, knobs: dict[str, Any]) -> list[Document]:
    """The user's own reviews that rag shows, newest first."""
    (request,) = Rag(RagConfig.model_validate(knobs)).requests([of], context(population))
    names = order(said(request.messages), of.history)
    return [d for d in reversed(of.history) if d.id in names]


# -- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retriever", ["bm25", "dense", "recency", "random"])
@pytest.mark.parametrize("choice", ["latest", "nearest"])
@pytest.mark.parametrize(("k", "count"), [(1, 1), (3, 1), (4, 2), (50, 9)])
def test_both_prompts_hold_the_retrieved_reviews_each_beside_those_of_others(
    small: World, retriever: str, choice: str, k: int, count: int
) -> None:
    everything = small.population.documents()
    knobs = {"k": k, "retriever": retriever}
    first, last = asked(small.test.examples, small.population, negatives=count, choice=choice, **knobs)
    assert [r.example_id for r in first] == [r.example_id for r in last] == [e.id for e in small.test.examples]
    for of, contrast, final in zip(small.test.examples, first, last, strict=True):
        own = positives(of, small.population, knobs)
        assert len(own) == min(k, len(of.history))
        expected = pairs(of, own, everything, count=count, choice=choice)
        known = [*everything, *of.history]
        assert order(said(contrast.messages), known) == flat(pair for pair in expected if len(pair) > 1)
        assert order(said(final.messages), known) == flat(expected)


def test_the_last_prompt_is_rags_with_others_reviews_after_the_own_ones_and_the_contrast_before_the_target(
    small: World,
) -> None:
    everything = {d.id: d for d in small.population.documents()}
    of = small.test.examples[0]
    _, (final,) = asked([of], small.population, k=3, negatives=2, retriever="recency")
    (plain,) = Rag(RagConfig(k=3, retriever="recency")).requests([of], context(small.population))
    assert [m.role for m in final.messages] == [m.role for m in plain.messages]
    expected = pairs(of, list(reversed(of.history))[:3], list(everything.values()), count=2, choice="latest")
    for turn, (ours, theirs) in enumerate(zip(final.messages, plain.messages, strict=True)):
        if ours.role == "assistant" or turn == 0:
            assert ours == theirs
            continue
        others = [everything[name] for name in expected[turn // 2 - 1][1:]]
        assert others
        assert ours.content.endswith(theirs.content)
        lead = ours.content.removesuffix(theirs.content)
        assert order(lead, list(everything.values())) == [d.id for d in others]
        for d in others:  # what describes the item stands above already, at the user's own review of it
            assert f"Rating: {d.fields['rating']:g}\nReview title: {d.fields['title']}\nReview: {d.text}" in lead
        assert "Item title" not in lead
        assert (answer(of.id) in lead) == (turn == len(final.messages) - 1)
    assert f"{answer(of.id)}\n\nWrite my review" in final.messages[-1].content


def test_the_contrast_prompt_shows_an_item_once_for_all_who_wrote_of_it(small: World) -> None:
    (contrast,), _ = asked(small.test.examples[:1], small.population, k=3, negatives=2, retriever="recency")
    assert len(contrast.messages) == 1
    text = said(contrast.messages)
    assert text.count("Item title") == 3
    assert text.count("Review title") == 9
    assert [f"Item {n}, by the user 1" in text for n in (1, 2, 3, 4)] == [True] * 3 + [False]
    assert text.count("by another user 2") == 3
    assert contrast.sampling.max_new_tokens == 256


def test_without_negative_examples_it_is_rag(small: World) -> None:
    for knobs in ({"k": 3}, {"k": 2, "retriever": "recency"}, {"k": 0}, {"k": 4, "retriever": "dense"}):
        first, last = asked(small.test.examples, small.population, negatives=0, **knobs)
        assert first == []
        assert last == Rag(RagConfig.model_validate(knobs)).requests(small.test.examples, context(small.population))


def test_the_last_prompt_can_do_with_positive_examples_alone(small: World) -> None:
    knobs: dict[str, Any] = {"k": 3, "negatives": 2}
    both, _ = asked(small.test.examples, small.population, **knobs)
    first, last = asked(small.test.examples, small.population, shown="positive", **knobs)
    assert first == both
    plain = Rag(RagConfig(k=3)).requests(small.test.examples, context(small.population))
    for of, ours, theirs in zip(small.test.examples, last, plain, strict=True):
        assert ours.messages[:-1] == theirs.messages[:-1]
        assert answer(of.id) in ours.messages[-1].content
        assert ours.messages[-1].content.endswith(theirs.messages[-1].content)


def test_nothing_later_and_nothing_of_the_target_is_shown(small: World) -> None:
    """A world in which everybody else goes on to review everything at and after the target's time."""
    for of in small.test.examples:
        assert of.timestamp is not None
        later = [
            replace(document(9, item, of.timestamp + wait), id=f"late {item} {wait}", text=f"Late {item} {wait}.")
            for item in range(9)
            for wait in (0, 1)
        ]
        population = Population([*small.population.documents(), *later])
        for knobs in ({}, {"choice": "nearest"}, {"scope": "user"}):
            first, last = asked([of], population, k=9, negatives=9, **knobs)
            assert (first, last) == asked([of], small.population, k=9, negatives=9, **knobs)
            for request in (*first, *last):
                assert "Never shown" not in said(request.messages)
                assert "Late" not in said(request.messages)
            assert str(of.fields["item_title"]) not in said(first[0].messages)  # it has not been reviewed before


@settings(max_examples=60, deadline=None)
@given(
    reviews=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 6)), max_size=14, unique_by=lambda r: r[:2]
    ),
    moment=st.integers(0, 8),
    k=st.integers(0, 4),
    count=st.integers(1, 3),
    choice=st.sampled_from(["latest", "nearest"]),
    shown=st.sampled_from(["both", "positive"]),
)
def test_in_any_world_pairs_are_those_of_the_definition(
    reviews: list[tuple[int, int, int]], moment: int, k: int, count: int, choice: str, shown: str
) -> None:
    everything = [document(*review) for review in reviews]
    own = sorted((d for d in everything if d.user_id == "u0" and (d.timestamp or 0) < moment), key=by_time)
    of = example(0, 7, moment, own)
    knobs: dict[str, Any] = {"k": k, "negatives": count, "choice": choice, "shown": shown, "retriever": "recency"}
    first, (final,) = asked([of], Population(everything), **knobs)
    recent = list(reversed(own))[:k]
    expected = pairs(of, recent, everything, count=count, choice=choice)
    contrasted = flat(pair for pair in expected if len(pair) > 1)
    assert [order(said(r.messages), everything) for r in first] == ([contrasted] if contrasted else [])
    seen = flat(expected) if shown == "both" else [d.id for d in recent]
    assert order(said(final.messages), everything) == seen
    assert (answer(of.id) in said(final.messages)) == bool(contrasted)


def by_time(of: Document) -> tuple[int, str]:
    return of.timestamp or 0, of.id


def test_of_peers_at_one_time_or_equally_near_the_later_in_the_populations_order_comes_first() -> None:
    own = document(0, 1, 5)
    others = [replace(document(user, 1, 3), text=f"Same words {'but' if user == 2 else 'by'} all.") for user in (3, 1)]
    others += [replace(document(2, 1, 3), text="Same words by all indeed.")]
    of = example(0, 7, 9, [own])
    titles = {"1": "title-one", "2": "title-two", "3": "title-three"}
    others = [replace(d, fields={**d.fields, "title": titles[d.user_id[1]]}) for d in others]
    (request,), _ = asked([of], Population([own, *others]), negatives=3)
    text = said(request.messages)
    assert text.index("title-three") < text.index("title-two") < text.index("title-one")
    (request,), _ = asked([of], Population([own, *others]), negatives=3, choice="nearest")
    text = said(request.messages)
    assert text.index("title-three") < text.index("title-one")


def test_a_users_own_second_review_of_an_item_is_no_negative_example() -> None:
    first, second = document(0, 1, 3), replace(document(0, 1, 4), id="again", text="Once more.")
    other = document(1, 1, 2)
    of = example(0, 7, 9, [first, second])
    _, (final,) = asked([of], Population([first, second, other]), negatives=3, retriever="recency")
    text = said(final.messages)
    assert [text.count(d.text) for d in (first, second, other)] == [1, 1, 2]


# -- scope ------------------------------------------------------------------------------------------------------------


def test_a_users_targets_can_share_one_contrast_over_what_is_open_before_all_of_them(small: World) -> None:
    both = [e for pair in zip(small.dev.examples, small.test.examples, strict=True) for e in pair]
    first, last = asked(both, small.population, scope="user", k=3)
    everything = small.population.documents()
    for dev, test, one, other in zip(small.dev.examples, small.test.examples, first[::2], first[1::2], strict=True):
        assert one == other  # equal requests, of which the cache asks one
        known = small.population.history(test.user_id, None)
        assert dev.id not in {d.id for d in known}
        before = replace(test, timestamp=known[-1].timestamp)
        expected = pairs(before, list(reversed(known))[:3], everything, count=1, choice="latest")
        seen = order(said(one.messages), [*everything, *test.history])
        assert seen == flat(pair for pair in expected if len(pair) > 1)
        assert seen
    for of, request in zip(both, last, strict=True):
        assert answer(f"user {of.user_id}") in said(request.messages)
    # The examples themselves are still retrieved for the target.
    for of, request in zip(both, last, strict=True):
        own = positives(of, small.population, {"k": 3})
        assert order(said(request.messages), of.history) == [d.id for d in own]


def test_a_training_target_and_a_test_target_of_one_user_get_contrasts_of_their_own(small: World) -> None:
    """They are named alike, and differ in what was open."""
    together = [small.train.examples[0], small.test.examples[0]]
    first, _ = asked(together, small.population, scope="user", k=9)
    apart = [asked([one], small.population, scope="user", k=9)[0] for one in together]
    assert first == [request for requests in apart for request in requests]
    assert first[0].messages != first[1].messages


def test_no_company_changes_what_is_asked(small: World) -> None:
    for knobs in ({"choice": "nearest"}, {"scope": "user"}, {"retriever": "dense"}):
        first, last = asked(small.test.examples, small.population, **knobs)
        for index, of in enumerate(small.test.examples):
            assert asked([of], small.population, **knobs) == ([first[index]], [last[index]])
        backwards = asked(small.test.examples[::-1], small.population, **knobs)
        assert backwards == (first[::-1], last[::-1])


# -- where something is missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["user", "target"])
@pytest.mark.parametrize("choice", ["latest", "nearest"])
def test_without_history_or_without_peers_no_contrast_is_asked_for(small: World, scope: str, choice: str) -> None:
    of = small.test.examples[0]
    newcomer = replace(of, history=())
    alone = Population(small.population.history(of.user_id, None))
    for one, population in ((newcomer, small.population), (of, alone), (newcomer, Population([]))):
        first, last = asked([one], population, scope=scope, choice=choice)
        assert first == []
        assert last == Rag(RagConfig(k=4)).requests([one], context(population))


def test_a_contrast_that_failed_is_left_out_and_the_pairs_stay(small: World) -> None:
    failing = small.test.examples[1].id
    _, fine = asked(small.test.examples, small.population)
    _, last = asked(small.test.examples, small.population, Stages(fails=failing))
    for of, request, other in zip(small.test.examples, last, fine, strict=True):
        if of.id != failing:
            assert request == other
            continue
        assert "What is known of me" not in said(request.messages)
        everything = small.population.documents()
        assert order(said(request.messages), everything) == order(said(other.messages), everything)


def test_only_what_compares_texts_wants_the_encoder(small: World) -> None:
    knobs: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"retriever": "dense"}, True),
        ({"choice": "nearest"}, True),
        ({"choice": "nearest", "negatives": 0}, False),
    ]
    for changes, wanted in knobs:
        assert Cicl(CiclConfig.model_validate(changes)).wants_encoder() is wanted
        if not wanted:
            asked(small.test.examples, small.population, ctx={"encoder_or_none": None}, **changes)


# -- budgets ----------------------------------------------------------------------------------------------------------


def tokens(messages: Sequence[Message]) -> int:
    return FakeEngine().count_tokens(messages)


def test_a_tight_budget_takes_the_oldest_pairs_first_and_never_the_task(small: World) -> None:
    of, everything = small.test.examples[0], small.population.documents()
    (whole,), (complete,) = asked([of], small.population, negatives=2, retriever="recency")
    full, contrasted = (order(said(r.messages), everything) for r in (complete, whole))
    knobs: dict[str, Any] = {"negatives": 2, "retriever": "recency"}
    counts: set[int] = set()
    for budget in range(tokens(complete.messages) + 4, 180, -5):
        first, (final,) = asked([of], small.population, ctx={"max_prompt_tokens": budget}, **knobs)
        text = said(final.messages)
        assert tokens(final.messages) <= budget
        assert all(str(value) in text for name, value in of.fields.items() if name != "rating")
        kept = order(text, everything)
        assert kept == full[: len(kept)]
        assert answer(of.id) in text or not kept
        counts.add(len(kept))
        assert tokens(first[0].messages) <= budget
        told = order(said(first[0].messages), everything)
        assert told == contrasted[: len(told)]
        assert "What marks the user's own reviews" in said(first[0].messages)
    assert counts >= set(range(2, len(full) + 1))
    with pytest.raises(UsageError, match="a contrast: even the first words"):
        asked([of], small.population, ctx={"max_prompt_tokens": 120}, **knobs)


def test_the_newest_pair_is_cut_where_not_even_that_fits() -> None:
    own = replace(document(0, 1, 5), text=" ".join(f"mine{n}" for n in range(300)))
    older = replace(document(0, 2, 4), text=" ".join(f"older{n}" for n in range(300)))
    other = replace(document(1, 1, 3), text=" ".join(f"theirs{n}" for n in range(300)))
    second = replace(document(1, 2, 3), text=" ".join(f"second{n}" for n in range(300)))
    of = example(0, 7, 9, [older, own])
    population = Population([own, older, other, second])
    for budget in (250, 400, 600):
        (request,), (final,) = asked([of], population, ctx={"max_prompt_tokens": budget})
        text = said(request.messages)
        assert tokens(request.messages) <= budget
        assert tokens(final.messages) <= budget
        lengths = [sum(word.startswith(lead) for word in text.split()) for lead in ("mine", "theirs")]
        assert lengths[0] == lengths[1] > 8
        assert "mine0" in said(final.messages)
        assert str(of.fields["item_description"]) in said(final.messages)
        assert "older" not in text
        assert "What marks the user's own reviews" in text


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"scope": "user", "negatives": 2},
        {"choice": "nearest", "retriever": "recency", "k": 3, "negatives": 3},
        {"retriever": "dense", "shown": "positive"},
        {"k": 0},
        {"retriever": "random", "negatives": 0},
    ],
)
def test_it_holds_to_the_contract(knobs: dict[str, Any]) -> None:
    check_method(Cicl, **knobs)


def test_a_dry_run_shows_both_prompts(small: World) -> None:
    stages = Stages()
    ctx: Context = replace(context(small.population), stage_runner=stages.run)
    of = small.test.examples[0]
    assert answer(of.id) in said(Cicl().preview(of, ctx))
    assert [r.example_id for r in stages.asked] == [of.id]
