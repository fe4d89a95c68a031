"""intsum, pag and llm-trsr: who is summarised from what, in which order, at which cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from method_world import World, context, said, world

from bench.method import Context
from bench.testing import check_method
from bench.types import Document, Example, Generation, Request
from methods.intsum import IntSum
from methods.llm_trsr import LlmTrsr, LlmTrsrConfig
from methods.pag import Pag, PagConfig
from methods.rag import Rag, RagConfig


@pytest.fixture
def small() -> World:
    return world(users=3, history=11)


class Stages:
    """Answers "note N" to the N-th request; remembers them all, round by round."""

    def __init__(self, failing: str = "nothing") -> None:
        self.rounds: list[tuple[str, list[Request]]] = []
        self.failing, self.count = failing, 0

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        self.rounds.append((stage, list(requests)))
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Generation:
        self.count += 1
        failed = self.failing in request.example_id
        return Generation(f"note {self.count}.", 1, 1, "stop", error="no memory" if failed else None)


def staged(small: World, stages: Stages, **changes: Any) -> Context:
    return replace(context(small.population, **changes), stage_runner=stages.run)


def shown(text: str, documents: Sequence[Document]) -> list[str]:
    """Ids of the documents whose text stands in a prompt, in the order they stand there."""
    places = {d.id: text.find(d.text) for d in documents}
    return sorted((name for name, place in places.items() if place >= 0), key=lambda name: places[name])


def newest(documents: Sequence[Document]) -> list[str]:
    return [d.id for d in reversed(documents)]


@pytest.mark.parametrize("scope", ["user", "target"])
def test_intsum_summarises_all_that_may_be_known_newest_first_then_writes_from_that_alone(
    small: World, scope: str
) -> None:
    stages = Stages()
    method = IntSum(IntSum.Config(scope=scope))
    requests = method.requests(small.test.examples, staged(small, stages))
    ((stage, asked),) = stages.rounds
    assert stage == "summary"
    for number, (example, summary, final) in enumerate(zip(small.test.examples, asked, requests, strict=True), 1):
        known = example.history if scope == "target" else small.population.history(example.user_id, None)
        text = said(summary.messages)
        assert shown(text, example.history) == newest(known)
        assert str(example.fields["title"]) not in text or any(d.fields["title"] in text for d in known)
        assert f"note {number}." in said(final.messages)
        assert shown(said(final.messages), example.history) == []
        assert str(example.fields["item_title"]) in said(final.messages)
        assert summary.sampling.max_new_tokens == 256
        assert final.sampling == replace(summary.sampling, max_new_tokens=6)


def test_a_users_targets_share_one_summary_that_nothing_later_gets_into(small: World) -> None:
    """The validation and the test target of each user: one call for both, without the validation text."""
    both = [e for pair in zip(small.dev.examples, small.test.examples, strict=True) for e in pair]
    stages = Stages()
    IntSum().requests(both, staged(small, stages))
    ((_, asked),) = stages.rounds
    assert len(asked) == len(both)  # two equal requests a user, of which the cache asks one
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert first == second
    for example, request in zip(small.dev.examples, asked[::2], strict=True):
        assert not any(d.text in said(request.messages) for d in small.test.examples[0].history if d.id == example.id)


def test_pag_is_rag_with_a_note(small: World) -> None:
    """The very reviews of rag, as rag has them; the summary stands before the target."""
    for knobs in ({"k": 3}, {"k": 2, "retriever": "recency"}, {"k": 4, "retriever": "dense"}):
        plain = Rag(RagConfig(**knobs)).requests(small.test.examples, context(small.population))
        noted = Pag(PagConfig(**knobs)).requests(small.test.examples, staged(small, Stages()))
        for number, (rag, pag) in enumerate(zip(plain, noted, strict=True), 1):
            assert pag.messages[:-1] == rag.messages[:-1]
            last = pag.messages[-1].content
            assert last.replace(f"What is known of me as a writer:\nnote {number}.\n\n", "") == rag.messages[-1].content
            assert last != rag.messages[-1].content
    assert Pag(PagConfig(retriever="dense")).wants_encoder()
    assert not Pag().wants_encoder()


def blocks(documents: Sequence[Document], size: int) -> list[list[Document]]:
    return [list(documents[i : i + size]) for i in range(0, len(documents), size)]


def test_recurrent_summaries_go_block_by_block_oldest_first_and_carry_the_note(small: World) -> None:
    stages = Stages()
    method = LlmTrsr(LlmTrsrConfig(scope="target"))
    requests = method.requests(small.test.examples, staged(small, stages))
    users = len(small.test.examples)
    expected = [blocks(example.history, 5) for example in small.test.examples]  # 13 reviews: 5, 5, 3
    assert [stage for stage, _ in stages.rounds] == ["block", "update", "update"]
    for turn, (_, asked) in enumerate(stages.rounds):
        for user, request in enumerate(asked):
            text = said(request.messages)
            assert shown(text, small.test.examples[user].history) == newest(expected[user][turn])
            carried = [n for n in range(1, 20) if f"note {n}." in text]
            assert carried == ([users * (turn - 1) + user + 1] if turn else [])
    for user, request in enumerate(requests):
        assert f"note {2 * users + user + 1}." in said(request.messages)


def test_hierarchical_summaries_are_of_blocks_then_of_their_notes(small: World) -> None:
    stages = Stages()
    method = LlmTrsr(LlmTrsrConfig(paradigm="hierarchical", scope="target", n_history=10))
    requests = method.requests(small.test.examples, staged(small, stages))
    (first, asked), (second, merged) = stages.rounds
    assert (first, second) == ("block", "merge")
    expected = [block for example in small.test.examples for block in blocks(example.history[-10:], 5)]
    world_wide = [d for example in small.test.examples for d in example.history]
    assert [shown(said(r.messages), world_wide) for r in asked] == [newest(block) for block in expected]
    for user, (request, final) in enumerate(zip(merged, requests, strict=True)):
        text = said(request.messages)
        assert shown(text, world_wide) == []
        assert [n for n in range(1, 7) if f"note {n}." in text] == [2 * user + 1, 2 * user + 2]
        assert text.index(f"note {2 * user + 1}.") < text.index(f"note {2 * user + 2}.")
        assert f"note {6 + user + 1}." in said(final.messages)


def test_a_single_block_needs_no_merging_and_a_call_that_fails_takes_nothing_away(small: World) -> None:
    stages = Stages()
    example = replace(small.test.examples[0], history=small.test.examples[0].history[:4])
    method = LlmTrsr(LlmTrsrConfig(paradigm="hierarchical", scope="target"))
    (request,) = method.requests([example], staged(small, stages))
    assert [len(asked) for _, asked in stages.rounds] == [1]
    assert "note 1." in said(request.messages)
    stages = Stages(failing="block 2")
    (request,) = LlmTrsr(LlmTrsrConfig(scope="target")).requests(small.test.examples[:1], staged(small, stages))
    assert "note 3." in said(request.messages)
    assert "note 1." in said(stages.rounds[2][1][0].messages)


@pytest.mark.parametrize("paradigm", ["recurrent", "hierarchical"])
def test_a_training_and_a_test_target_of_one_user_keep_their_notes_apart(small: World, paradigm: str) -> None:
    """Both are about "user u0", one before its training target and one after."""
    method = LlmTrsr(LlmTrsrConfig.model_validate({"paradigm": paradigm, "block": 6}))
    both = [small.train.examples[0], small.test.examples[0]]
    together, alone = Stages(), [Stages(), Stages()]
    method.requests(both, staged(small, together))
    for example, stages in zip(both, alone, strict=True):
        method.requests([example], staged(small, stages))
    asked = [said(r.messages) for _, several in together.rounds for r in several]
    for stages in alone:
        for _, several in stages.rounds[:1]:
            assert all(said(request.messages) in asked for request in several)
    merged = [said(r.messages) for stage, several in together.rounds for r in several if stage != "block"]
    assert len(set(merged)) == len(merged)
    if paradigm == "hierarchical":
        assert [text.count("note ") for text in merged] == [2, 2]


@pytest.mark.parametrize(
    ("cls", "knobs"),
    [
        (IntSum, {}),
        (IntSum, {"scope": "target"}),
        (Pag, {"retriever": "dense"}),
        (Pag, {"scope": "target", "k": 0}),
        (LlmTrsr, {}),
        (LlmTrsr, {"paradigm": "hierarchical", "block": 2}),
    ],
)
def test_they_hold_to_the_contract(cls: type[IntSum], knobs: dict[str, Any]) -> None:
    check_method(cls, **knobs)


def test_without_history_nothing_is_asked_before_the_target(small: World) -> None:
    newcomer: Example = replace(small.test.examples[0], history=())
    for method in (IntSum(), Pag(), LlmTrsr(), LlmTrsr(LlmTrsrConfig(paradigm="hierarchical"))):
        stages = Stages()
        (request,) = method.requests([newcomer], staged(small, stages))
        assert not any(asked for _, asked in stages.rounds)
        assert "What is known of me" not in said(request.messages)
