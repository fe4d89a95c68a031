"""DEP from data to generations, on a tiny model with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dep_world import QUICK, engine, fitted, one_thread, ready, small
from method_world import World, context, document, example, said, world

from bench.engines.hf import HFEngine
from bench.evidence import slot_names
from bench.method import Context
from bench.training import batch_loss, evaluate_loss
from bench.types import Document, Example, LabeledSplit, Request, slot
from methods.dep import Dep
from methods.dep.config import DepConfig
from methods.dep.differences import review_vectors
from methods.dep.learner import SoftPrompts

__all__ = ["engine", "one_thread", "ready", "small"]


def newest(of: Example, count: int) -> list[Document]:
    return sorted(of.history, key=lambda d: (-(d.timestamp or 0), d.item_id or ""))[:count]


def expected_soft(method: Dep, of: Example, ctx: Context, shown: Sequence[Document]) -> dict[str, Any]:
    """Each review's two tokens, computed alone."""
    assert method.module is not None
    soft = {}
    for number, review in enumerate(shown, start=1):
        found = review_vectors([of], [[review]], ctx.population, method.config, ctx.encoder.encode)[0]
        with torch.no_grad():
            arrays = (found.own, found.difference, found.has_peers)
            tokens = method.module(*(torch.from_numpy(a) for a in arrays))
        soft[f"history {number}"], soft[f"difference {number}"] = tokens[0, 0].numpy(), tokens[0, 1].numpy()
    return soft


def assert_soft(request: Request, expected: dict[str, Any]) -> None:
    assert request.soft.keys() == expected.keys() == slot_names(request.messages)
    for name, vector in expected.items():
        np.testing.assert_allclose(np.asarray(request.soft[name]), vector, atol=1e-6)


def test_each_soft_slot_stands_right_after_the_review_it_speaks_of(small: World, ready: Dep, engine: HFEngine) -> None:
    for request, of in zip(
        ready.requests(small.test.examples, context(small.population, engine)), small.test.examples, strict=True
    ):
        prompt = said(request.messages)
        marks = []
        for number, review in enumerate(newest(of, 8), start=1):
            marks += [review.text, slot(f"history {number}"), slot(f"difference {number}")]
        places = [prompt.index(mark) for mark in marks]
        assert places == sorted(places)
        assert all(prompt.count(mark) == 1 for mark in marks)
        for text, first in zip(marks[::3], marks[1::3], strict=True):
            between = prompt[prompt.index(text) + len(text) : prompt.index(first)]
            assert "Text" not in between
            assert "Item title" not in between
        assert prompt.index(marks[-1]) < prompt.rindex("Item title")


def test_the_raw_fields_and_texts_stay_in_the_prompt_and_the_reference_does_not(
    small: World, ready: Dep, engine: HFEngine
) -> None:
    requests = ready.requests(small.test.examples, context(small.population, engine))
    for request, of in zip(requests, small.test.examples, strict=True):
        prompt = said(request.messages)
        for review in newest(of, 8):
            assert f"Item title: {review.fields['item_title']}\nItem description:" in prompt
        assert request.messages[-1].content.endswith(
            f"Rating: {of.fields['rating']:g}\nReview title: {of.fields['title']}"
        )
        assert "Never shown" not in prompt


def test_soft_vectors_are_those_of_the_module_applied_to_each_review_alone(
    small: World, ready: Dep, engine: HFEngine
) -> None:
    ctx = context(small.population, engine)
    for request, of in zip(ready.requests(small.test.examples, ctx), small.test.examples, strict=True):
        assert_soft(request, expected_soft(ready, of, ctx, newest(of, 8)))
        assert all(np.asarray(vector).dtype == np.float32 for vector in request.soft.values())


def test_n_history_bounds_reviews_and_slots_alike(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, n_history=2)
    of = small.test.examples[0]
    request = method.requests([of], ctx)[0]
    assert_soft(request, expected_soft(method, of, ctx, newest(of, 2)))
    assert said(request.messages).count("Text ") == 2


def test_a_budget_that_drops_reviews_drops_slots_and_vectors_alike(small: World, ready: Dep, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    of = small.test.examples[1]
    full = engine.count_tokens(ready.requests([of], ctx)[0].messages)
    counts = set()
    for budget in range(full, 150, -100):
        tight = replace(ctx, max_prompt_tokens=budget)
        request = ready.requests([of], tight)[0]
        assert engine.count_tokens(request.messages) <= budget
        shown = sum(review.text in said(request.messages) for review in of.history)
        if shown or not request.soft:  # a last review may stay with its text shortened
            assert_soft(request, expected_soft(ready, of, ctx, newest(of, shown)))
        else:
            assert_soft(request, expected_soft(ready, of, ctx, newest(of, 1)))
        counts.add(shown)
    assert counts >= {2, 3, 4, 5}


def test_any_number_of_past_reviews_in_one_batch(engine: HFEngine) -> None:
    others = [document(user, item, 1) for user in (8, 9) for item in range(0, 100, 2)]
    batch = [
        example(user, 200, 1000, [document(user, i, i) for i in range(n)]) for user, n in enumerate((0, 1, 5, 100))
    ]
    split = LabeledSplit(tuple(batch), {e.id: "Written by hand." for e in batch})
    of = World(split, split, split, world().population)
    ctx = context(type(of.population)(others), engine)
    method = fitted(of, ctx)
    requests = method.requests(batch, ctx)
    assert [len(r.soft) for r in requests] == [0, 2, 10, 16]
    for request, one in zip(requests, batch, strict=True):
        assert_soft(request, expected_soft(method, one, ctx, newest(one, 8)))
    assert [g.error for g in engine.run(requests).generations] == [None] * 4


def test_training_on_users_without_any_history_works(engine: HFEngine) -> None:
    newcomers = tuple(example(user, 3, 10, []) for user in range(3))
    split = LabeledSplit(newcomers, {e.id: "A first text." for e in newcomers})
    ctx = context(world().population, engine)
    method = fitted(World(split, split, split, ctx.population), ctx)
    assert method.log is not None
    assert np.isfinite(method.log.steps).all()


def test_fit_lowers_the_losses_and_keeps_the_best_epoch(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, epochs=6, lr=0.02)
    assert method.log is not None
    assert method.module is not None
    log, losses = method.log, [epoch.dev_loss for epoch in method.log.epochs]
    assert log.best_epoch == 1 + losses.index(min(losses))
    untrained = fitted(small, ctx, lr=1e-30)
    assert untrained.log is not None
    assert min(losses) < untrained.log.epochs[0].dev_loss
    assert log.epochs[-1].train_loss < untrained.log.epochs[0].train_loss
    assert log.epochs[-1].train_auxiliary < untrained.log.epochs[0].train_auxiliary
    # What is kept is what had that loss: computed anew from the module that fit left.
    lm = engine.language_model()
    rows, inputs = method.rows(lm, small.dev, None, ctx)
    learner = SoftPrompts(method.module, lm.device, inputs, 1.0)
    assert evaluate_loss(lm, rows, learner, method.config) == pytest.approx(min(losses), rel=1e-5)


def test_the_language_model_stays_as_it_was(small: World, engine: HFEngine) -> None:
    before = {name: tensor.clone() for name, tensor in engine.language_model().model.state_dict().items()}
    fitted(small, context(small.population, engine), lr=0.1)
    after = engine.language_model().model
    assert before.keys() == after.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in after.parameters())


def test_a_rows_losses_and_vectors_do_not_depend_on_its_company(engine: HFEngine) -> None:
    """Rows with 0, 1, 3 and 5 reviews, some without peers, alone and together."""
    others = [document(8, item, 1) for item in range(0, 5, 2)]
    rows_of = [example(user, 50, 100, [document(user, i, i) for i in range(n)]) for user, n in enumerate((3, 0, 5, 1))]
    split = LabeledSplit(tuple(rows_of), {e.id: "Some words, " * (2 + n) for n, e in enumerate(rows_of)})
    ctx = context(type(world().population)(others), engine)
    method = fitted(World(split, split, split, ctx.population), ctx)
    assert method.module is not None
    lm = engine.language_model()
    rows, inputs = method.rows(lm, split, None, ctx)
    learner = SoftPrompts(method.module, lm.device, inputs, 100.0)
    together, auxiliary = learner.soft(rows, training=False)
    assert together is not None
    assert auxiliary is not None
    parts = [learner.soft([row], training=False) for row in rows]
    torch.testing.assert_close(torch.cat([vectors for vectors, _ in parts if vectors is not None]), together)
    assert float(auxiliary.detach()) == pytest.approx(sum(float(a.detach()) for _, a in parts if a is not None))
    whole, tokens = batch_loss(lm, rows, together)
    single = [batch_loss(lm, [row], vectors) for row, (vectors, _) in zip(rows, parts, strict=True)]
    assert tokens == sum(count for _, count in single)
    assert float(whole.detach()) == pytest.approx(sum(float(loss.detach()) for loss, _ in single), rel=1e-5)


def test_the_auxiliary_loss_is_the_mean_over_a_rows_vectors(small: World, ready: Dep, engine: HFEngine) -> None:
    ctx, lm = context(small.population, engine), engine.language_model()
    assert ready.module is not None
    rows, inputs = ready.rows(lm, small.train, None, ctx)
    learner = SoftPrompts(ready.module, lm.device, inputs, 7.0)
    autoencoder = ready.module.autoencoder
    assert autoencoder is not None
    for row, prepared in zip(rows, inputs, strict=True):
        found = prepared.vectors
        centres = ready.module.centre.numpy()
        kinds = [found.own - centres[0], found.difference[found.has_peers] - centres[1]]
        every = torch.from_numpy(np.concatenate(kinds))
        with torch.no_grad():
            back = autoencoder.decoder(autoencoder.encode(every))
        expected = 7.0 * float(torch.nn.functional.smooth_l1_loss(back, every))
        got = learner.soft([row], training=True)[1]
        assert got is not None
        assert float(got.detach()) == pytest.approx(expected, rel=1e-5)


def test_saved_as_safetensors_and_json_and_loaded_to_the_same_bits(
    small: World, ready: Dep, engine: HFEngine, tmp_path: Path
) -> None:
    ctx = context(small.population, engine)
    ready.save(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    about = json.loads((tmp_path / "config.json").read_text())
    assert DepConfig(**about["config"]) == ready.config
    assert about["report"].keys() == {"l0", "dead_share", "explained_variance"}
    assert 0 < about["report"]["l0"] <= QUICK["k"]
    other = Dep(ready.config)
    other.load(tmp_path, ctx)
    for left, right in zip(
        ready.requests(small.test.examples, ctx), other.requests(small.test.examples, ctx), strict=True
    ):
        assert left.messages == right.messages
        assert left.seed == right.seed
        assert all(np.array_equal(np.asarray(left.soft[k]), np.asarray(right.soft[k])) for k in left.soft)


def test_two_fits_are_equal_whatever_the_global_random_state(small: World, engine: HFEngine) -> None:
    states = []
    for number in (1, 2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        method = fitted(small, context(small.population, engine))
        assert torch.equal(torch.get_rng_state(), before)
        assert method.module is not None
        states.append(method.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_soft_tokens_start_at_the_size_of_the_models_own_embeddings(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, lr=1e-30)
    requests = method.requests(small.train.examples, ctx)
    size = float(engine.language_model().model.get_input_embeddings().weight.square().mean().sqrt())
    for kind in ("history", "difference"):
        tokens = np.concatenate(
            [np.asarray(v) for r in requests for name, v in r.soft.items() if name.startswith(kind)]
        )
        assert float(np.sqrt((tokens**2).mean())) == pytest.approx(size, rel=0.25)


def test_the_plan_counts_what_fit_then_does(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = Dep(DepConfig(**QUICK))
    plan = method.training_plan(small.train, small.dev, ctx)
    method.fit(small.train, small.dev, ctx)
    assert method.log is not None
    assert (plan.rows, plan.epochs) == (method.log.rows, 1)
    assert plan.tokens == pytest.approx(method.log.tokens, rel=0.1)
