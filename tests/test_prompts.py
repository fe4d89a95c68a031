"""Prompts: what is shown, in which order, and what gives way first when the budget is short."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.meter import Meter
from bench.method import Context
from bench.prompts import Fitted, conversation, fit_prompt, render_fields, render_value
from bench.types import REVIEW_TASK, Document, Example, FieldValue, Message, Sampling
from methods.nonperso import NonPerso
from methods.rag import Rag, RagConfig

ENGINE = FakeEngine()


def context(budget: int) -> Context:
    nobody = cast(Any, None)
    return Context(REVIEW_TASK, nobody, ENGINE, 0, Sampling(), budget, Meter())


def words(count: int, stem: str) -> str:
    return " ".join(f"{stem}{i}" for i in range(count))


def document(number: int, text: int, description: int = 3, title: int = 2) -> Document:
    fields: dict[str, FieldValue] = {
        "item_title": words(title, f"item{number}x"),
        "item_description": words(description, f"about{number}x"),
        "rating": 4.0,
        "title": f"title{number}",
    }
    return Document(f"d{number}", "u", words(text, f"said{number}x"), fields, timestamp=number)


def target(description: int = 4, title: int = 2) -> Example:
    fields: dict[str, FieldValue] = {
        "item_title": words(title, "wanted"),
        "item_description": words(description, "described"),
        "rating": 5.0,
        "title": "my verdict",
    }
    return Example("e", "u", fields, ())


def build(example: Example, documents: Sequence[Document]) -> list[Message]:
    return conversation(REVIEW_TASK, example, documents)


def tokens(example: Example, documents: Sequence[Document]) -> int:
    return ENGINE.count_tokens(build(example, documents))


def without_end(text: str) -> str:
    return text.removesuffix(" …")


# -- the budget -----------------------------------------------------------------------------------------------------


def longest_history(example: Example, documents: Sequence[Document], budget: int) -> int | None:
    """The largest number of newest documents that fits, by trying them all."""
    fitting = [n for n in range(len(documents) + 1) if tokens(example, documents[:n]) <= budget]
    return max(fitting, default=None)


def at_most(example: Example, count: int) -> Example:
    """The example with its description cut to `count` words, as a prompt at its shortest may show it."""
    kept = str(example.fields["item_description"]).split()
    cut = " ".join(kept[:count]) + (" …" if len(kept) > count else "")
    return dataclasses.replace(example, fields={**example.fields, "item_description": cut})


LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=7)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, description=st.integers(0, 60), budget=st.integers(40, 700))
def test_the_budget_is_kept_and_history_gives_way_in_order(
    lengths: list[tuple[int, int]], description: int, budget: int
) -> None:
    documents = [document(len(lengths) - i, *length) for i, length in enumerate(lengths)]  # newest first
    example = target(description)
    ctx = context(budget)
    try:
        fitted = fit_prompt(build, example, documents, ctx)
    except UsageError:
        assert tokens(at_most(example, 8), []) > budget
        return
    assert fitted.tokens == ENGINE.count_tokens(fitted.messages) <= budget
    for name in ("item_title", "title"):
        assert f": {example.fields[name]}\n" in fitted.messages[-1].content + "\n"
    assert "Rating: 5\n" in fitted.messages[-1].content
    # Those that stay are the newest, in their order.
    assert [d.id for d in fitted.documents] == [d.id for d in documents[: len(fitted.documents)]]
    most = longest_history(example, documents, budget)
    if most:
        assert fitted == Fitted(tuple(build(example, documents[:most])), tuple(documents[:most]), fitted.tokens)
    elif most == 0 and documents:
        check_shortened(fitted, example, documents[0], budget)
    elif most is None:
        check_target_cut(fitted, example, budget)


def check_shortened(fitted: Fitted, example: Example, newest: Document, budget: int) -> None:
    """The newest document is cut to the longest that fits; it goes only if eight words of it are too many."""

    def cut(count: int) -> Document:
        def shorter(text: str) -> str:
            return text if len(text.split()) <= count else " ".join(text.split()[:count]) + " …"

        description = shorter(str(newest.fields["item_description"]))
        fields = {**newest.fields, "item_description": description}
        return dataclasses.replace(newest, fields=fields, text=shorter(newest.text))

    fitting = [n for n in range(8, 80) if tokens(example, [cut(n)]) <= budget]
    expected = [cut(max(fitting))] if fitting else []
    assert list(fitted.documents) == expected
    assert str(example.fields["item_description"]) in fitted.messages[-1].content


def check_target_cut(fitted: Fitted, example: Example, budget: int) -> None:
    """No history is left, and the target's description is cut to the longest that fits."""
    assert fitted.documents == ()
    fitting = [n for n in range(8, 80) if tokens(at_most(example, n), []) <= budget]
    assert list(fitted.messages) == build(at_most(example, max(fitting)), [])


def test_what_is_asked_is_never_dropped() -> None:
    example = target(description=3, title=60)
    short = tokens(at_most(example, 8), [])
    assert fit_prompt(build, example, [], context(short)).tokens == short
    with pytest.raises(UsageError) as caught:
        fit_prompt(build, example, [document(1, 5)], context(short - 1))
    assert f"takes {short} tokens" in str(caught.value)
    assert f"--max-prompt-tokens {short - 1}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_history_is_shortened_before_it_goes_and_goes_before_the_target_is_cut() -> None:
    example, past = target(description=30), document(1, text=200, description=30)
    bare = tokens(example, [])
    whole = tokens(example, [past])
    seen = []
    for budget in range(whole, bare - 20, -5):
        fitted = fit_prompt(build, example, [past], context(budget))
        shown = fitted.documents[0] if fitted.documents else None
        cut_target = str(example.fields["item_description"]) not in fitted.messages[-1].content
        seen.append((shown is not None, shown == past, not cut_target))
    assert seen[0] == (True, True, True)
    assert (True, False, True) in seen  # shortened
    assert (False, False, True) in seen  # gone, target whole
    assert seen[-1] == (False, False, False)  # target cut
    assert seen == sorted(seen, reverse=True)


def test_shortened_texts_begin_as_the_whole_ones_and_say_that_they_are_cut() -> None:
    past = document(1, text=300)
    fitted = fit_prompt(build, target(), [past], context(tokens(target(), []) + 80))
    shown = fitted.documents[0]
    assert shown.text.endswith(" …")
    assert past.text.startswith(without_end(shown.text))
    assert shown.fields["item_title"] == past.fields["item_title"]
    assert fitted.messages[1] == Message("assistant", shown.text)


def test_texts_in_scripts_without_spaces_are_cut_too() -> None:
    """One "word" of a thousand characters is no reason to give up."""
    description = "音" * 1000
    example = dataclasses.replace(target(), fields={**target().fields, "item_description": description})

    class CharacterEngine(FakeEngine):
        def count_tokens(self, messages: Sequence[Message]) -> int:
            return sum(len(m.content) for m in messages)

    ctx = dataclasses.replace(context(500), engine=CharacterEngine())
    fitted = fit_prompt(build, example, [], ctx)
    assert fitted.tokens <= 500
    assert 100 < fitted.messages[-1].content.count("音") < 500


def test_line_breaks_of_a_shortened_text_stay() -> None:
    past = dataclasses.replace(document(1, 0), text="One line.\n\n" + words(300, "more"))
    fitted = fit_prompt(build, target(), [past], context(tokens(target(), []) + 80))
    assert fitted.documents[0].text.startswith("One line.\n\nmore0 more1 ")


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_without_history_every_prompt_is_that_of_nonperso(lengths: list[tuple[int, int]]) -> None:
    ctx = context(5000)
    history = tuple(document(i, *length) for i, length in enumerate(lengths))
    example = dataclasses.replace(target(), history=history)
    bare = fit_prompt(build, dataclasses.replace(example, history=()), [], ctx)
    assert NonPerso().requests([example], ctx)[0].messages == bare.messages
    newcomer = dataclasses.replace(example, history=())
    for retriever in ("bm25", "recency", "random"):
        rag = Rag(RagConfig(retriever=retriever))
        assert rag.requests([newcomer], ctx)[0].messages == bare.messages


# -- rendering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.0, "4"),
        (4.5, "4.5"),
        (0.1 + 0.2, "0.3"),
        (1234567.0, "1234567"),
        (1999.99, "1999.99"),
        (-2.0, "-2"),
        ("as it is ", "as it is "),
        ("", ""),
        (None, ""),
        (7, "7"),
    ],
)
def test_values_are_written_as_a_person_would(value: Any, text: str) -> None:
    assert render_value(value) == text


@given(value=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9))
def test_numbers_lose_nothing_that_matters(value: float) -> None:
    assert float(render_value(value)) == pytest.approx(value, rel=1e-14)


def test_fields_come_in_the_tasks_order_and_absent_ones_are_left_out() -> None:
    example = Example("e", "u", {"title": "Good", "rating": 3.0, "other": "x", "item_title": "A cup"}, ())
    assert render_fields(REVIEW_TASK, example) == "Item title: A cup\nRating: 3\nReview title: Good"
    assert render_fields(REVIEW_TASK, Example("e", "u", {"rating": None}, ())) == ""


def test_a_conversation_alternates_and_ends_with_the_target() -> None:
    documents = [document(2, 3), document(1, 3)]
    turns = conversation(REVIEW_TASK, target(), documents, after=lambda i: f"[{i}]")
    assert [t.role for t in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [t.content for t in turns[1::2]] == [d.text for d in documents]
    things: list[Document | Example] = [*documents, target()]
    for turn, shown in zip(turns[::2], things, strict=True):
        assert turn.content.endswith(render_fields(REVIEW_TASK, shown))
    assert [t.content.startswith(f"[{i - 1}]\n\n") for i, t in enumerate(turns[::2])] == [False, True, True]
    plain = conversation(REVIEW_TASK, target(), documents)
    assert [t.content.removeprefix("[0]\n\n").removeprefix("[1]\n\n") for t in turns] == [t.content for t in plain]
