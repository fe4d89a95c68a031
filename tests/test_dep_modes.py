"""DEP's knobs: the paper's layout and loss, one kind of token, other users' reviews, retrieved reviews."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dep_world import QUICK, engine, fitted, one_thread, small
from method_world import World, context, document, example, said

from bench.config import build
from bench.data.population import Population
from bench.data.spec import load_spec
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.method import Context
from bench.metrics.base import ScoreInput
from bench.metrics.meteor import Meteor
from bench.prompts import one_message
from bench.training import batch_loss
from bench.types import REVIEW_TASK, Document, Example, LabeledSplit, Request, Sampling, slot
from methods.dep import Dep
from methods.dep.config import PAPER, DepConfig
from methods.dep.learner import SoftPrompts
from methods.dep.paper import paper_vectors
from methods.dep.prompting import with_others_history
from methods.rag import Rag, RagConfig

__all__ = ["engine", "one_thread", "small"]


def array(request: Request, name: str) -> npt.NDArray[np.float32]:
    return np.asarray(request.soft[name])


# -- config -----------------------------------------------------------------------------------------------------------


def test_paper_mode_is_a_set_of_defaults_that_can_be_set_by_hand() -> None:
    paper = build(DepConfig, {"mode": "paper"}, "dep")
    assert {knob: getattr(paper, knob) for knob in PAPER} == dict(PAPER)
    assert paper.changed() == {"mode": "paper"}
    other = build(DepConfig, {"mode": "paper", "weighting": "softmax", "lr": 1e-3}, "dep")
    assert (other.weighting, other.lr, other.autoencoder) == ("softmax", 1e-3, "paper")
    assert other.changed() == {"mode": "paper", "weighting": "softmax", "lr": 1e-3}
    assert DepConfig().changed() == {}
    assert DepConfig(**paper.model_dump()) == paper  # as stored and read again


@pytest.mark.parametrize(
    "knob", [{"selection": "retrieved"}, {"peer_source": "random"}, {"peer_cutoff": True}, {"max_peers": 4}]
)
def test_what_the_papers_rules_fix_is_refused_in_one_line(knob: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(knob))}: mode=paper has rules of its own") as error:
        build(DepConfig, {"mode": "paper", **knob}, "dep")
    assert "\n" not in str(error.value)


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_one_message_gives_the_item_then_past_texts_then_what_the_user_gave() -> None:
    past = [document(0, item, 10 - item) for item in (1, 2)]
    of = example(0, 7, 99, past)
    system, user = one_message(REVIEW_TASK, of, past, after=lambda i: f"after {i}")
    assert (system.role, user.role) == ("system", "user")
    marks = ["Item title: Thing 7", "Item description: a humid", "Past review 1", "Thing 1", past[0].text, "after 0"]
    marks += ["Past review 2", "Thing 2", past[1].text, "after 1", "New review", "Rating: ", "Review title: "]
    places: list[int] = []
    for mark in marks:
        places.append(user.content.index(mark, places[-1] if places else 0))
    assert places == sorted(places)
    assert user.content.endswith(f"Rating: {of.fields['rating']:g}\nReview title: {of.fields['title']}")
    assert "None" not in said([system, user])


def test_in_one_message_slots_stand_right_after_the_text_they_speak_of(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, layout="message")
    for request, of in zip(method.requests(small.test.examples, ctx), small.test.examples, strict=True):
        prompt = said(request.messages)
        for number, review in enumerate(reversed(of.history), start=1):
            line = rf"{re.escape(review.text)}\n[^\n]*{slot(f'history {number}')}[^\n]*{slot(f'difference {number}')}"
            assert re.search(line, prompt)


def test_trained_markers_take_three_positions_a_slot(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, markers="trained", n_history=2)
    assert method.module is not None
    assert method.module.markers is not None
    request = method.requests(small.test.examples[:1], ctx)[0]
    assert [np.asarray(v).shape[0] for v in request.soft.values()] == [3] * 4
    for kind, name in enumerate(("history 2", "difference 2")):
        np.testing.assert_array_equal(array(request, name)[0], method.module.markers[kind, 0].detach().numpy())
        np.testing.assert_array_equal(array(request, name)[2], method.module.markers[kind, 1].detach().numpy())
    assert len(engine.encode(request).positions) == 12


@pytest.mark.parametrize("kind", ["history", "difference"])
def test_one_kind_of_token_leaves_no_trace_of_the_other(kind: str, small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    other = {"history": "difference", "difference": "history"}[kind]
    for request in fitted(small, ctx, tokens=kind).requests(small.test.examples, ctx):
        assert request.soft
        assert all(name.startswith(kind) for name in request.soft)
        assert f"{other} 1" not in said(request.messages)


# -- the paper's mode -------------------------------------------------------------------------------------------------


def test_in_paper_mode_the_first_slots_hold_the_first_vectors_that_the_rules_give(
    small: World, engine: HFEngine
) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, mode="paper", n_history=4)
    assert method.module is not None
    found = paper_vectors(small.test.examples, small.population, method.config, ctx.encoder.encode)
    for request, vectors in zip(method.requests(small.test.examples, ctx), found, strict=True):
        own, difference = (torch.from_numpy(a) for a in (vectors.own, vectors.difference))
        with torch.no_grad():
            tokens = method.module(own, difference, torch.from_numpy(vectors.has_peers)).numpy()
        slots = len(request.soft) // 2
        assert slots == min(4, len(tokens))
        for number in range(slots):
            for kind, name in enumerate(("history", "difference")):
                np.testing.assert_allclose(array(request, f"{name} {number + 1}"), tokens[number, kind], atol=1e-6)


def test_equal_times_keep_their_stored_order_in_the_papers_prompt(engine: HFEngine) -> None:
    """The public code sorts by falling time with a stable sort; reversing would swap the two."""
    past = [document(0, 1, 5), document(0, 2, 9), document(0, 3, 9)]
    ctx = context(Population([*past, *(document(1, item, 4) for item in (1, 2, 3))]), engine)
    of = example(0, 7, 99, past)
    shown = [m.content for m in Dep(DepConfig(mode="paper")).preview(of, ctx)][-1]
    assert [shown.index(past[i].text) for i in (1, 2, 0)] == sorted(shown.index(d.text) for d in past)
    aligned = said(Dep().preview(of, ctx))
    assert [aligned.index(past[i].text) for i in (2, 1, 0)] == sorted(aligned.index(d.text) for d in past)


def test_the_papers_loss_of_a_row_equals_its_formula(small: World, engine: HFEngine) -> None:
    """Cross entropy by the model's own labels=, plus 100 (smooth-L1 + 1e-3 KL) written out."""
    ctx, lm = context(small.population, engine), engine.language_model()
    method = fitted(small, ctx, mode="paper")
    assert method.module is not None
    rows, inputs = method.rows(lm, small.train, None, ctx)
    learner = SoftPrompts(method.module, lm.device, inputs, method.config.reconstruction_weight)
    encoder, decoder = method.module.autoencoder.encoder, method.module.autoencoder.decoder  # type: ignore[union-attr]
    gelu, log = torch.nn.functional.gelu, torch.log
    for row, prepared in zip(rows, inputs, strict=True):
        with torch.no_grad():
            vectors, auxiliary = learner.soft([row], training=True)
            summed, tokens = batch_loss(lm, [row], vectors)
            ids = torch.tensor([row.prompt.ids + row.target])
            embedded = lm.model.get_input_embeddings()(ids).clone()
            embedded[0, list(row.prompt.positions)] = vectors
            labels = torch.tensor([[-100] * len(row.prompt.ids) + list(row.target)])
            cross = lm.model(inputs_embeds=embedded, labels=labels).loss
            x = torch.from_numpy(np.concatenate([prepared.vectors.own, prepared.vectors.difference]))
            z = gelu(encoder(x))
            mean = z.mean(0).clamp(1e-6, 1 - 1e-6)
            kl = (0.05 * log(0.05 / mean) + 0.95 * log(0.95 / (1 - mean))).mean()
            expected = cross + 100 * (torch.nn.functional.smooth_l1_loss(gelu(decoder(z)), x) + 1e-3 * kl)
        assert auxiliary is not None
        assert float(summed / tokens + auxiliary) == pytest.approx(float(expected), rel=1e-4)


# -- which reviews ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_retrieved_reviews_are_those_of_rag(retriever: str, small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    rag = Rag(RagConfig.model_validate({"k": 2, "retriever": retriever}))
    dep = fitted(small, ctx, n_history=2, selection="retrieved", retriever=retriever)
    for ours, theirs in zip(
        dep.requests(small.test.examples, ctx), rag.requests(small.test.examples, ctx), strict=True
    ):
        assert [m.content for m in ours.messages if m.role == "assistant"] == [
            m.content for m in theirs.messages if m.role == "assistant"
        ]
        assert len(ours.soft) == 4


def _others(engine: HFEngine) -> tuple[Context, list[Example]]:
    """Six users of four reviews each, and a target for each."""
    past = {user: [document(user, item, 10 * item + user) for item in range(4)] for user in range(6)}
    ctx = context(Population([d for own in past.values() for d in own]), engine)
    return ctx, [example(user, 7, 100, own) for user, own in past.items()]


def test_another_users_tokens_beside_ones_own_text(engine: HFEngine) -> None:
    ctx, examples = _others(engine)
    split = LabeledSplit(tuple(examples), {e.id: "Some text." for e in examples})
    true = fitted(World(split, split, split, ctx.population), ctx)
    method = Dep(DepConfig(**QUICK, shuffle="vectors"))
    method.module = true.module
    own = {request.example_id: request for request in true.requests(examples, ctx)}
    strangers = method.requests(examples, ctx)
    histories = [f"history {i}" for i in range(1, 5)]
    for request in strangers:
        assert request.messages == own[request.example_id].messages
        mine = np.concatenate([np.asarray(v) for v in own[request.example_id].soft.values()])
        assert not np.allclose(np.concatenate([np.asarray(v) for v in request.soft.values()]), mine)
        # They are somebody's: the history tokens are those of exactly one other user.
        theirs = [
            other
            for other, full in own.items()
            if all(np.allclose(array(request, name), array(full, name), atol=1e-6) for name in histories)
        ]
        assert len(theirs) == 1
        assert theirs != [request.example_id]
    alone = [method.requests([e], ctx)[0] for e in reversed(examples)]
    for left, right in zip(strangers, reversed(alone), strict=True):
        assert all(np.array_equal(array(left, name), array(right, name)) for name in left.soft)


def test_another_users_history_is_a_generation_time_control_that_shares_the_fit(engine: HFEngine) -> None:
    ctx, examples = _others(engine)
    assert Dep(DepConfig(shuffle="history")).fit_config() == Dep().fit_config()
    assert Dep(DepConfig(shuffle="vectors")).fit_config() != Dep().fit_config()
    split = LabeledSplit(tuple(examples), {e.id: "Some text." for e in examples})
    wrong, right = (
        fitted(World(split, split, split, ctx.population), ctx, shuffle=shuffle) for shuffle in ("history", "none")
    )
    assert wrong.module is not None
    assert right.module is not None
    states = wrong.module.state_dict(), right.module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for request, of in zip(wrong.requests(examples, ctx), examples, strict=True):
        prompt = said(request.messages)
        assert not any(review.text in prompt for review in of.history)
        writers = set(re.findall(r"Text (\d)/", prompt))
        assert len(writers) == 1
        assert writers != {of.user_id[1:]}
        assert prompt.endswith(f"Rating: {of.fields['rating']:g}\nReview title: {of.fields['title']}")


def test_another_users_reviews_are_never_later_than_the_target(engine: HFEngine) -> None:
    past = {user: [document(user, item, 1000 * user + item) for item in range(3)] for user in range(4)}
    ctx = context(Population([d for own in past.values() for d in own]), engine)
    method = Dep(DepConfig(**QUICK, shuffle="history"))
    of = example(2, 7, 2500, past[2])
    seen: set[str] = set()
    for seed in range(8):
        (other,) = with_others_history([of], method.config, replace(ctx, seed=seed))
        assert all((d.timestamp or 0) < 2500 for d in other.history)
        seen.add(other.user_id)
    assert seen == {"u0", "u1"}


def test_a_world_of_one_user_has_nobody_to_borrow_from(engine: HFEngine) -> None:
    past: list[Document] = [document(0, item, item) for item in range(3)]
    ctx = context(Population(past), engine)
    of = example(0, 7, 99, past)
    split = LabeledSplit((of,), {of.id: "Some text."})
    for shuffle in ("vectors", "history"):
        method = fitted(World(split, split, split, ctx.population), ctx, shuffle=shuffle)
        (request,) = method.requests([of], ctx)
        assert not request.soft


def test_a_datasets_task_knows_which_fields_are_of_the_item() -> None:
    task = load_spec("planted", {}).task
    assert [field.name for field in task.fields if field.of_item] == ["item_title", "item_description"]


def test_the_best_epoch_by_meteor_is_that_of_the_texts_written_with_the_module_of_the_moment(
    small: World, engine: HFEngine
) -> None:
    """Each epoch's score is METEOR of greedy texts; with one epoch, of what the fitted method writes."""
    ctx = context(small.population, engine)
    method = fitted(small, ctx, select="meteor", max_dev_new_tokens=6)
    assert method.log is not None
    greedy = replace(ctx, sampling=Sampling(0.0, 1.0, 6))
    texts = [engine.run([r]).generations[0].text.strip() for r in method.requests(small.dev.examples, greedy)]
    references = [small.dev.references[e.id] for e in small.dev.examples]
    inputs = [ScoreInput("", "", text, reference) for text, reference in zip(texts, references, strict=True)]
    metric = Meteor()
    score = metric.aggregate([v for v in metric.values(inputs) if v is not None])
    assert method.log.epochs[0].dev_score == pytest.approx(score)
