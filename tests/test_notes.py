"""Notes: whom they are about, what they may rest on, and that equal questions are asked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from method_world import World, context, said, world

from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.method import Context
from bench.notes import part, subject, write_notes
from bench.prompts import conversation, fit_noted, fit_texts, render_documents
from bench.types import REVIEW_TASK, Document, Example, Generation, Message, Request


@pytest.fixture
def small() -> World:
    return world()


class Stages:
    """Answers with the request's own last words, and remembers what it was asked."""

    def __init__(self, fails: str = "nobody") -> None:
        self.asked: dict[str, list[Request]] = {}
        self.fails = fails

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        self.asked.setdefault(stage, []).extend(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Generation:
        if self.fails in request.example_id:
            return Generation("", 0, 0, "error", error="out of memory")
        return Generation(f"  noted of {request.example_id} ", 3, 3, "stop")


def test_a_note_on_a_target_is_about_everything_before_it(small: World) -> None:
    example = small.test.examples[0]
    assert subject(example, "target", context(small.population)) is example


def test_a_note_on_a_user_is_the_same_for_all_later_targets_and_rests_on_what_is_open(small: World) -> None:
    """A validation target is in the history of the test target, and not in the note."""
    ctx = context(small.population)
    for dev, test in zip(small.dev.examples, small.test.examples, strict=True):
        one, other = subject(dev, "user", ctx), subject(test, "user", ctx)
        assert one == other
        assert one.fields == {}
        assert one.item_id is None
        assert list(one.history) == small.population.history(test.user_id, None)
        assert dev.id in {d.id for d in test.history} - {d.id for d in one.history}
        assert one.timestamp == one.history[-1].timestamp
        assert test.timestamp is not None
        assert one.timestamp is not None
        assert one.timestamp < test.timestamp


def test_a_note_on_a_training_target_holds_nothing_that_is_later(small: World) -> None:
    ctx = context(small.population)
    for example in small.train.examples:
        about = subject(example, "user", ctx)
        assert about.history == example.history
        assert example.id in {d.id for d in small.population.history(example.user_id, None)}


def test_a_user_of_whom_nothing_is_known_has_an_empty_history(small: World) -> None:
    about = subject(replace(small.test.examples[0], history=()), "user", context(small.population))
    assert about.history == ()
    assert about.timestamp is None


def test_notes_come_in_order_without_calls_where_there_is_nothing_to_ask(small: World) -> None:
    stages = Stages(fails="u2")
    ctx = replace(context(small.population), stage_runner=stages.run)
    examples = small.test.examples

    def build(example: Example, inner: Context) -> list[Message] | None:
        assert inner.sampling.max_new_tokens == 7
        return None if example.user_id == "u1" else [Message("user", example.id)]

    notes = write_notes(examples, build, ctx, "summary", 7)
    assert [r.example_id for r in stages.asked["summary"]] == [e.id for e in examples if e.user_id != "u1"]
    assert notes[1] == notes[2] == ""  # nothing to ask; asked, and failed
    assert notes[0] == f"noted of {examples[0].id}"
    assert all(r.stage == "summary" for r in stages.asked["summary"])


def test_prompts_of_a_stage_leave_room_for_its_answers(small: World) -> None:
    ctx = context(small.population)
    assert ctx.answering(100).max_prompt_tokens == 6000
    assert ctx.answering(8000).max_prompt_tokens == ctx.engine.context_length - 8000
    assert ctx.answering(8000).sampling == replace(ctx.sampling, max_new_tokens=8000)


def test_parts_of_an_example_have_names_and_seeds_of_their_own(small: World) -> None:
    ctx, example = context(small.population), small.test.examples[0]
    first, second = (ctx.request(part(example, n), [], stage="difference") for n in (1, 2))
    assert first.example_id != second.example_id
    assert first.seed != second.seed


def tokens(messages: Sequence[Message]) -> int:
    return FakeEngine().count_tokens(messages)


def noted(example: Example, documents: Sequence[Document], note: str) -> list[Message]:
    return conversation(REVIEW_TASK, example, documents, note=note)


def test_over_budget_documents_go_before_the_note_and_the_note_before_the_target(small: World) -> None:
    example = small.test.examples[0]
    note = " ".join(f"trait{i}" for i in range(40))
    documents = list(reversed(example.history))
    bare = tokens(noted(example, [], ""))
    for budget in range(tokens(noted(example, documents, note)) + 5, bare - 1, -7):
        ctx = context(small.population, max_prompt_tokens=budget)
        fitted = fit_noted(noted, example, documents, note, ctx)
        text = said(fitted.messages)
        assert tokens(fitted.messages) <= budget
        assert str(example.fields["item_description"]) in text
        whole = note in text
        assert whole or not fitted.documents
        if budget < tokens(noted(example, [], note)):
            assert not whole
            assert "trait0" in text or budget < tokens(noted(example, [], " ".join(note.split()[:8]) + " …"))


def test_without_a_note_the_prompt_is_that_without_notes(small: World) -> None:
    example = small.test.examples[0]
    documents = list(reversed(example.history))
    ctx = context(small.population)
    plain = tuple(conversation(REVIEW_TASK, example, documents))
    assert fit_noted(noted, example, documents, "", ctx).messages == plain


def listed(documents: Sequence[Document]) -> list[Message]:
    return [Message("user", render_documents(REVIEW_TASK, documents, "Review"))]


def test_texts_over_budget_are_cut_to_one_length_and_all_are_shown(small: World) -> None:
    documents = [
        replace(d, text=" ".join(f"w{i}x{n}" for n in range(10 + 30 * i)))
        for i, d in enumerate(small.test.examples[0].history)
    ]
    whole = tokens(listed(documents))
    ctx = context(small.population, max_prompt_tokens=whole)
    assert fit_texts(listed, documents, ctx, "it") == tuple(listed(documents))
    ctx = context(small.population, max_prompt_tokens=whole // 2)
    text = said(fit_texts(listed, documents, ctx, "it"))
    assert tokens([Message("user", text)]) <= whole // 2
    assert all(f"w{i}x0" in text for i in range(len(documents)))
    lengths = [sum(word.startswith(f"w{i}x") for word in text.split()) for i in range(len(documents))]
    cut = max(lengths)
    assert lengths == [min(10 + 30 * i, cut) for i in range(len(documents))]
    with pytest.raises(UsageError, match="it: even the first words"):
        fit_texts(listed, documents, context(small.population, max_prompt_tokens=20), "it")
