"""dpl: what each of its stages is shown, how often it asks, and what it does where there is little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from dpl_world import Stages, around, asked, chosen, note, small
from method_world import World, document, example, said

from bench.config import build
from bench.data.population import Population
from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.retrieval import retrieve
from bench.testing import check_method
from bench.types import REVIEW_TASK, Document, Example, Message, Sampling
from methods.dpl import Dpl, DplConfig, contrasts
from methods.intsum import summary_prompt as summary_of_everything
from methods.nonperso import NonPerso
from methods.rag import Rag, RagConfig

__all__ = ["small"]


# -- what is asked ----------------------------------------------------------------------------------------------------


def test_calls_a_target_are_those_declared(small: World) -> None:
    requests, stages = asked(small.test.examples, around(small.population))
    found = chosen(small.test.examples, around(small.population))
    assert max(len(several) for several in found) > 2
    assert [r.example_id for r in stages.asked["difference"]] == [
        f"{one.id} {own}" for one, several in zip(small.test.examples, found, strict=True) for own, _ in several
    ]
    assert [r.example_id for r in stages.asked["summary"]] == [e.id for e in small.test.examples]
    assert [r.example_id for r in requests] == [e.id for e in small.test.examples]
    assert all(len(several) <= 8 for several in found)
    assert [s.name for s in Dpl.about.stages] == ["difference", "summary", "generate"]


def test_notes_are_sampled_as_the_run_is_with_lengths_of_their_own(small: World) -> None:
    ctx = around(small.population, sampling=Sampling(0.8, 0.95, 99))
    requests, stages = asked(small.test.examples, ctx, difference_tokens=31, note_tokens=17)
    for stage, length in (("difference", 31), ("summary", 17)):
        assert {r.sampling for r in stages.asked[stage]} == {Sampling(0.8, 0.95, length)}
    assert {r.sampling for r in requests} == {Sampling(0.8, 0.95, 99)}


def in_order(text: str, pieces: Sequence[str]) -> bool:
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def item(thing: Document | Example) -> list[str]:
    return [f"Item title: {thing.fields['item_title']}", f"Item description: {thing.fields['item_description']}"]


def written(thing: Document) -> list[str]:
    return [
        f"Rating: {thing.fields['rating']:g}",
        f"Review title: {thing.fields['title']}",
        f"Review: {thing.text}",
    ]


def assert_shows_only(prompt: str, texts: Sequence[str], of: World) -> None:
    everything = {d.text for d in of.population.documents()} | set(of.test.references.values())
    everything |= {d.text for e in of.test.examples for d in e.history}
    everything |= {text.rpartition(" Never shown")[0] for text in of.test.references.values()}
    assert {text for text in everything if text in prompt} == set(texts)
    assert all(prompt.count(text) == 1 for text in texts)
    assert "Never shown" not in prompt


def test_a_difference_prompt_holds_the_item_the_own_review_and_the_others(small: World) -> None:
    ctx = around(small.population)
    _, stages = asked(small.test.examples, ctx)
    found = [c for several in contrasts(small.test.examples, ctx, DplConfig()) for c in several]
    assert len({len(c.others) for c in found} - {0}) >= 1
    for request, contrast in zip(stages.asked["difference"], found, strict=True):
        prompt = said(request.messages)
        pieces = [*item(contrast.own), *written(contrast.own)]
        for other in contrast.others:
            pieces += written(other)
        aspects = ["writing style", "words", "sentences", "emotional style", "tone", "semantic style"]
        assert in_order(prompt, [*pieces, *aspects])
        assert prompt.count("Item title") == prompt.count("Item description") == 1
        assert prompt.count("Rating") == 1 + len(contrast.others)
        assert_shows_only(prompt, [contrast.own.text, *(d.text for d in contrast.others)], small)


def test_a_summary_rests_on_differences_and_on_the_reviews_shown(small: World) -> None:
    ctx = around(small.population)
    _, stages = asked(small.test.examples, ctx, k=3)
    found = contrasts(small.test.examples, ctx, DplConfig(k=3))
    shown = retrieve(small.test.examples, 3, "bm25", ctx)
    rows = zip(stages.asked["summary"], small.test.examples, found, shown, strict=True)
    for request, one, several, past in rows:
        prompt = said(request.messages)
        pieces = []
        for contrast in several:
            pieces += [*item(contrast.own), note("difference", f"{one.id} {contrast.own.id}")]
        for own in past:
            pieces += [*item(own), *written(own)]
        assert in_order(prompt, pieces)
        assert prompt.count("Item title") == len(several) + len(past)
        assert prompt.count("[difference of") == len(several)
        assert_shows_only(prompt, [d.text for d in past], small)


def test_the_last_prompt_is_rags_with_the_summary_before_the_target(small: World) -> None:
    ctx = around(small.population)
    requests, _ = asked(small.test.examples, ctx, k=3)
    rags = Rag(RagConfig(k=3)).requests(small.test.examples, ctx)
    for request, rag, one in zip(requests, rags, small.test.examples, strict=True):
        assert request.messages[:-1] == rag.messages[:-1]
        last = request.messages[-1].content
        assert last.endswith(rag.messages[-1].content)
        before = last.removesuffix(rag.messages[-1].content)
        assert before.count(note("summary", one.id)) == 1
        assert "[difference" not in said(request.messages)
        assert request.seed == rag.seed


@pytest.mark.parametrize("config", [{"k": 1, "difference_tokens": 20}, pytest.param({}, marks=pytest.mark.slow)])
def test_dpl_holds_to_the_contract(config: dict[str, int]) -> None:
    check_method(Dpl, **config)


# -- where there is little --------------------------------------------------------------------------------------------


def test_a_user_without_history_is_asked_for_as_by_nonperso(small: World) -> None:
    ctx = around(small.population)
    newcomer = replace(small.test.examples[0], history=())
    requests, stages = asked([newcomer], ctx)
    assert stages.asked == {"difference": [], "summary": []}
    assert requests == NonPerso().requests([newcomer], ctx)


def test_without_reviews_shown_nothing_is_noted_and_no_encoder_wanted(small: World) -> None:
    ctx = around(small.population, encoder_or_none=None)
    requests, stages = asked(small.test.examples, ctx, k=0)
    assert not Dpl(DplConfig(k=0)).wants_encoder()
    assert Dpl().wants_encoder()
    assert stages.asked == {"difference": [], "summary": []}
    assert requests == NonPerso().requests(small.test.examples, ctx)


@pytest.mark.parametrize("lonely", ["few peers", "no peers", "no item"])
def test_without_enough_peers_the_summary_rests_on_past_reviews_alone(small: World, lonely: str) -> None:
    one, population = small.test.examples[0], small.population
    if lonely == "no peers":
        population = Population(population.history(one.user_id, None))
    if lonely == "no item":
        one = replace(one, history=tuple(replace(d, item_id=None) for d in one.history))
    ctx = around(population)
    requests, stages = asked([one], ctx, min_peers=99 if lonely == "few peers" else 1)
    assert stages.asked["difference"] == []
    (summary,) = stages.asked["summary"]
    past = retrieve([one], 8, "bm25", ctx)[0]
    as_in_intsum = summary_of_everything(replace(one, history=tuple(past[::-1])), ctx.answering(256))
    assert list(summary.messages) == list(as_in_intsum or ())
    assert note("summary", one.id) in said(requests[0].messages)


def test_what_the_model_failed_to_note_is_left_out(small: World) -> None:
    ctx = around(small.population)
    found = chosen(small.test.examples, ctx)
    first = found[0][0][0]
    rags = Rag().requests(small.test.examples, ctx)
    for fails, stage in ((f" {first}", "difference"), ("u", "difference"), ("u", "summary")):
        stages = Stages(fails, stage)
        requests = Dpl().requests(small.test.examples, replace(ctx, stage_runner=stages.run))
        summary = said(stages.asked["summary"][0].messages)
        left = {"difference": 0 if fails == "u" else len(found[0]) - 1, "summary": len(found[0])}[stage]
        assert summary.count("[difference of") == left
        assert ("These notes tell" in summary) == (left > 0)
        if stage == "summary":
            assert [r.messages for r in requests] == [r.messages for r in rags]


def test_no_example_and_no_time_work_too(small: World) -> None:
    ctx = around(small.population)
    assert asked([], ctx)[0] == []
    timeless = replace(small.test.examples[0], timestamp=None)
    assert chosen([timeless], ctx) != [[]]


def long_world() -> tuple[Example, Population]:
    """Five long reviews, each of an item that six others wrote at length about."""

    def lengthy(d: Document, number: int) -> Document:
        text = " ".join(f"w{d.user_id}{n}" for n in range(60 + 40 * (number % 4)))
        return replace(d, text=f"{d.text} {text}", fields={**d.fields, "item_description": f"about {text}"})

    mine = [lengthy(document(0, n, 500 + n), n) for n in range(5)]
    others = [lengthy(document(user, n, 10 * user + n), user) for user in range(1, 7) for n in range(5)]
    return example(0, 6, 1000, mine), Population([*mine, *others])


def test_every_prompt_keeps_to_its_budget_and_shows_all_it_compares() -> None:
    one, population = long_world()
    engine = FakeEngine()
    free = around(population, max_prompt_tokens=100_000)
    whole = {d.own.id: d for d in contrasts([one], free, DplConfig())[0]}
    sizes, shown_in_summary = [], []
    for budget in (4000, 2000, 1000, 700, 450, 300):
        ctx = around(population, max_prompt_tokens=budget)
        requests, stages = asked([one], ctx)
        every = [*stages.asked["difference"], *stages.asked["summary"], *requests]
        assert all(engine.count_tokens(r.messages) <= budget for r in every)
        sizes.append([engine.count_tokens(r.messages) for r in every])
        for request in stages.asked["difference"]:
            contrast = whole[request.example_id.removeprefix(f"{one.id} ")]
            shown = said(request.messages)
            assert in_order(shown, [" ".join(d.text.split()[:5]) for d in (contrast.own, *contrast.others)])
        summary = "".join(said(r.messages) for r in stages.asked["summary"])
        shown_in_summary.append((summary.count("Differences: [difference of"), summary.count("Past review")))
        assert item(one)[0] in said(requests[0].messages)
    assert sizes[0] > sizes[3]
    assert shown_in_summary[0] == (5, 5)
    assert shown_in_summary == sorted(shown_in_summary, reverse=True)
    assert all(differences == 5 for differences, past in shown_in_summary if past)  # past reviews go first
    assert 0 < shown_in_summary[-1][0] < 5


def test_a_budget_that_holds_not_even_beginnings_is_the_users_to_raise() -> None:
    one, population = long_world()
    with pytest.raises(UsageError, match=r"u0/i4: comparing it with 4 others: .*--max-prompt-tokens 60; raise it"):
        asked([one], around(population, max_prompt_tokens=60))
    with pytest.raises(UsageError, match=r"u0/i6: what is asked takes .*--max-prompt-tokens 20; raise it"):
        asked([one], around(population, max_prompt_tokens=20), min_peers=99)


def test_a_task_without_items_fields_is_asked_in_its_own_words(small: World) -> None:
    """Labels and nouns are the task's; a field that a document lacks leaves no line."""
    task = replace(REVIEW_TASK, noun="headline", target_label="Headline", fields=REVIEW_TASK.fields[2:])
    _, stages = asked(small.test.examples, replace(around(small.population), task=task))
    for request in (*stages.asked["difference"], *stages.asked["summary"]):
        prompt = said(request.messages)
        assert "Item title" not in prompt
        assert "eview of" not in prompt
        assert "Headline: Text" in prompt
        assert "\n\n\n" not in prompt


@pytest.mark.parametrize(
    ("value", "told"),
    [({"k": -1}, "dpl.k"), ({"clusters": 1}, "dpl.clusters"), ({"min_peers": 0}, "dpl.min_peers"), ({"K": 1}, "K")],
)
def test_wrong_knobs_are_named(value: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        build(DplConfig, value, "dpl")


def test_prompts_are_one_message_of_the_user(small: World) -> None:
    _, stages = asked(small.test.examples, around(small.population))
    for request in (*stages.asked["difference"], *stages.asked["summary"]):
        assert [type(m) for m in request.messages] == [Message]
        assert request.messages[0].role == "user"
