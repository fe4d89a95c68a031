"""pplug: attention over whole histories, padding, copies, scaling, prompts and the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_world import World, context, said, world
from pplug_world import QUICK, at_the_start, bert, cache, ctx, engine, fitted, inner, opened, small, with_history
from tiny_engine import engine_of, lively_model, one_thread

from bench.evidence import slot_names
from bench.method import Context
from bench.testing import check_method
from bench.training import batch_loss
from bench.types import slot
from methods.pplug import PPlug, PPlugConfig
from methods.pplug.modules import LinearInput, PPlugModule, Prepared, embedding_norm, filled, soft_tokens
from methods.pplug.texts import history_text, input_text, with_copies

__all__ = ["bert", "cache", "ctx", "engine", "one_thread", "small"]

SIZE, HIDDEN = 12, 8
COUNTS = (0, 1, 5, 500)
Array = npt.NDArray[np.float64]


def array(tensor: torch.Tensor) -> Array:
    values: Array = tensor.detach().double().numpy()
    return values


def make(seed: int = 0, temperature: float = 1.0) -> PPlugModule:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = PPlugModule(LinearInput(SIZE), SIZE, HIDDEN, temperature)
        torch.nn.init.normal_(module.inputs.matrix.weight)  # type: ignore[union-attr]
    return module.eval()


def unit(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def prepared(counts: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, list[Prepared]]:
    """A table of vectors, and rows with so many histories each; their prompts matter to nobody here."""
    table, queries = unit(sum(counts) + 3, seed), unit(len(counts), seed + 1)
    stream = torch.Generator().manual_seed(seed + 2)
    members = [torch.randint(len(table), (count,), generator=stream) for count in counts]
    return table, [Prepared(None, q, m) for q, m in zip(queries, members, strict=True)]  # type: ignore[arg-type]


def gelu(values: Array) -> Array:
    from scipy.special import erf

    out: Array = values * (1 + erf(values / np.sqrt(2))) / 2
    return out


def mlp(layers: torch.nn.Module, vector: Array) -> Array:
    first, _, last = layers  # type: ignore[misc]
    inside = gelu(array(first.weight) @ vector + array(first.bias))
    out: Array = array(last.weight) @ inside + array(last.bias)
    return out


def slow_tokens(module: PPlugModule, table: torch.Tensor, given: Sequence[Prepared]) -> list[Array]:
    """The definition, history by history: what `soft_tokens` must give."""
    matrix = array(module.inputs.matrix.weight)  # type: ignore[union-attr]
    found = []
    for one in given:
        found.append(mlp(module.instruct, array(module.instruction)) * float(module.scale[0]))
        x = matrix @ array(one.query)
        x /= np.sqrt(sum(value * value for value in x))
        powers = [np.exp(float(array(table[i]) @ x) / module.temperature) for i in one.members.tolist()]
        if powers:
            parts = [
                p / sum(powers) * mlp(module.history, array(table[i]))
                for p, i in zip(powers, one.members.tolist(), strict=True)
            ]
            found.append(np.sum(parts, axis=0) * float(module.scale[1]))
    return found


# -- attention --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.05, 0.5, 1.0]))
def test_soft_tokens_equal_a_loop(counts: list[int], seed: int, temperature: float) -> None:
    module = make(seed, temperature)
    module.scale.copy_(torch.tensor([3.0, 0.7]))
    table, given = prepared(counts, seed)
    tokens = soft_tokens(module, table, given)
    assert tokens.shape == (len(counts) + sum(count > 0 for count in counts), HIDDEN)
    np.testing.assert_allclose(array(tokens), np.stack(slow_tokens(module, table, given)), atol=1e-5)


def test_none_one_five_and_five_hundred_histories() -> None:
    module, (table, given) = make(), prepared(COUNTS)
    np.testing.assert_allclose(
        array(soft_tokens(module, table, given)), np.stack(slow_tokens(module, table, given)), atol=1e-5
    )
    only = soft_tokens(module, table, given[:1])
    np.testing.assert_allclose(array(only), array(module.instruct(module.instruction))[None], atol=1e-6)
    single = given[1].members
    torch.testing.assert_close(soft_tokens(module, table, given[1:2])[1], module.history(table[single])[0])


def test_padding_weighs_exactly_nothing_and_adding_it_changes_nothing() -> None:
    module, (table, given) = make(), prepared(COUNTS)
    query, real = torch.stack([one.query for one in given]), filled([one.members for one in given])
    history = torch.full((*real.shape, SIZE), 1e3)  # far larger than any vector: it would win every softmax
    for row, one in zip(history, given, strict=True):
        row[: len(one.members)] = table[one.members]
    weights = module.weights(query, history, real)
    assert (weights[~real] == 0).all()
    assert (weights[real] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    for more in (1, 40):
        wider = torch.cat([history, torch.full((len(given), more, SIZE), -1e3)], dim=1)
        mask = torch.cat([real, torch.zeros(len(given), more, dtype=torch.bool)], dim=1)
        torch.testing.assert_close(module.weights(query, wider, mask)[:, : real.shape[1]], weights, rtol=0, atol=1e-7)
        torch.testing.assert_close(
            module.persona(query, wider, mask)[1:], module.persona(query, history, real)[1:], rtol=0, atol=1e-6
        )
    # Without the mask, rows of zeros would take most of the weight of a short history.
    zeros = torch.where(real.unsqueeze(-1), history, 0.0)
    assert float(module.weights(query, zeros, torch.ones_like(real))[2, 5:].sum()) > 0.9


def test_order_company_and_batches_change_nothing() -> None:
    module, (table, given) = make(), prepared([3, 0, 7, 1, 40])
    whole = soft_tokens(module, table, given)
    alone = torch.cat([soft_tokens(module, table, [one]) for one in given])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)
    backwards = torch.cat([soft_tokens(module, table, [one]) for one in given[::-1]][::-1])
    torch.testing.assert_close(backwards, whole, rtol=0, atol=1e-5)
    stream = torch.Generator().manual_seed(5)
    shuffled = [replace(o, members=o.members[torch.randperm(len(o.members), generator=stream)]) for o in given]
    assert any(not torch.equal(a.members, b.members) for a, b in zip(given, shuffled, strict=True))
    torch.testing.assert_close(soft_tokens(module, table, shuffled), whole, rtol=0, atol=1e-5)


def test_what_is_asked_moves_the_weights_and_a_low_temperature_moves_them_more() -> None:
    table, given = prepared([6])
    history, real = table[given[0].members][None], torch.ones(1, 6, dtype=torch.bool)
    spread = []
    for temperature in (1.0, 0.05):
        weights = make(0, temperature).weights(given[0].query[None], history, real)
        spread.append(float(weights.max() / weights.min()))
    assert 1 < spread[0] < np.e**2 < spread[1]


# -- training rows ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 12), st.floats(0, 0.99), st.integers(0, 5))
def test_copies_leave_out_some_at_most_the_share_and_never_everything(
    count: int, copies: int, drop: float, seed: int
) -> None:
    config = PPlugConfig(copies=copies, drop=drop)
    of = with_history(count)
    first, *others = with_copies([of], config, seed)
    assert first == of
    assert len(others) == (copies if int(count * drop) >= 1 else 0)
    for copy in others:
        kept = [of.history.index(d) for d in copy.history]
        assert kept == sorted(set(kept))
        assert 1 <= count - len(kept) <= count * drop
        assert kept
        assert replace(copy, history=of.history) == of


def test_by_default_a_copy_keeps_at_least_half() -> None:
    for count in (2, 3, 4, 5, 17, 500):
        _, *copies = with_copies([with_history(count)], PPlugConfig(), 0)
        assert len(copies) == 10
        sizes = {len(copy.history) for copy in copies}
        assert all(2 * size >= count for size in sizes)
        assert len(sizes) > 1 or count < 4
    for count in (0, 1):
        assert list(with_copies([with_history(count)], PPlugConfig(), 0)) == [with_history(count)]


def test_copies_depend_on_seed_and_example_alone() -> None:
    examples, config = [with_history(9, user) for user in range(4)], PPlugConfig(copies=3)
    made = list(with_copies(examples, config, 1))
    assert made == list(with_copies(examples, config, 1))
    assert made != list(with_copies(examples, config, 2))
    assert made == [copy for one in examples for copy in with_copies([one], config, 1)]
    assert made[1].history != made[2].history
    kept = [[d.item_id for d in copy.history] for copy in (made[1], made[5])]
    assert kept[0] != kept[1]


def test_rows_of_a_fit_are_examples_and_copies(small: World, ctx: Context) -> None:
    log = fitted(small, ctx, copies=2).log
    assert log is not None
    assert log.rows == 3 * len(small.train)
    plan = PPlug(PPlugConfig(**QUICK)).training_plan(small.train, small.dev, ctx)
    assert (plan.rows, plan.epochs) == (log.rows, 1)
    assert plan.tokens == pytest.approx(log.tokens, rel=0.15)


# -- gradients and scale ----------------------------------------------------------------------------------------------


def test_gradients_reach_everything_that_is_trained(small: World, ctx: Context) -> None:
    method, learner, rows = at_the_start(small, ctx)
    vectors, auxiliary = learner.soft(rows, training=True)
    assert auxiliary is None
    loss, _ = batch_loss(ctx.engine.language_model(), rows, vectors)
    loss.backward()  # type: ignore[no-untyped-call]
    names = dict(inner(method).named_parameters())
    assert len(names) == len(learner.parameters()) > 9
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith("key.bias"):  # which shifts all scores of a softmax alike, and so moves nothing
            assert float(parameter.grad.abs().max()) > 0, name
    assert not any(p.requires_grad or p.grad is not None for p in ctx.engine.language_model().model.parameters())


def test_rows_without_history_teach_the_instruction_alone() -> None:
    module, (table, given) = make(), prepared([0, 0])
    tokens = soft_tokens(module, table, given)
    assert tokens.shape == (2, HIDDEN)
    tokens.square().sum().backward()  # type: ignore[no-untyped-call]
    moved = {name for name, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert moved == {"instruction", *(f"instruct.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))}
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(("family", "factor"), [("llama", 1.0), ("gemma2", 32**0.5)])
def test_soft_tokens_start_at_the_norm_of_the_models_own_embeddings(
    small: World, tmp_path: Path, family: str, factor: float
) -> None:
    """Some families multiply embeddings by the root of the hidden size on the way in."""
    engine = engine_of(lively_model(tmp_path, family, hidden_size=32))
    model = engine.language_model().model
    rows = array(model.get_input_embeddings().weight)
    norm = factor * float(np.mean([np.sqrt(sum(v * v for v in row)) for row in rows]))
    assert embedding_norm(engine.language_model()) == pytest.approx(norm, rel=1e-5)
    _, learner, train_rows = at_the_start(small, context(small.population, engine))
    with torch.no_grad():
        tokens, _ = learner.soft(train_rows, training=False)
    norms = tokens.view(len(train_rows), 2, -1).norm(dim=-1)
    assert norms[:, 0].tolist() == pytest.approx([norm] * len(train_rows), rel=1e-4)
    assert float(norms[:, 1].mean()) == pytest.approx(norm, rel=1e-4)
    assert float(norms[:, 1].max() - norms[:, 1].min()) > 1e-4 * norm


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_soft_tokens_open_the_prompt_and_the_history_is_not_in_it(small: World, ctx: Context) -> None:
    method = fitted(small, ctx)
    for request, of in zip(method.requests(small.test.examples, ctx), small.test.examples, strict=True):
        assert request.messages[0].content.startswith(slot("instruction") + slot("persona"))
        assert slot_names(request.messages) == set(request.soft) == {"instruction", "persona"}
        assert len(request.messages) == 1
        assert not any(d.text in said(request.messages) for d in of.history)
        assert str(of.fields["item_title"]) in said(request.messages)
        assert request.messages == tuple(method.preview(of, ctx))
    newcomer = replace(small.test.examples[0], history=())
    (request,) = method.requests([newcomer], ctx)
    assert slot_names(request.messages) == set(request.soft) == {"instruction"}


def test_recent_reviews_stand_in_the_prompt_where_the_config_wants_them(small: World, ctx: Context) -> None:
    method = fitted(small, ctx, n_history=2)
    for request, of in zip(method.requests(small.test.examples, ctx), small.test.examples, strict=True):
        shown = [d.text for d in of.history if d.text in said(request.messages)]
        assert shown == [d.text for d in sorted(of.history, key=lambda d: d.timestamp or 0)[-2:]]
        assert request.messages[0].content.startswith(slot("instruction") + slot("persona"))
        assert slot("persona") not in said(request.messages[1:])


def test_texts_hold_what_is_asked_and_what_was_written() -> None:
    of = with_history(1)
    ctx, review = context(world().population), of.history[0]
    asked = input_text(ctx.task, of, PPlugConfig(input_prefix="Find: "))
    assert asked.startswith("Find: ")
    for value in (of.fields["item_title"], of.fields["item_description"], of.fields["title"], "Rating: "):
        assert str(value) in asked
    both = history_text(ctx.task, review, PPlugConfig())
    places = [both.index(str(part)) for part in (review.fields["title"], review.text, "a amber thing")]
    assert places == sorted(places)  # what may be long comes last, where encoders cut
    assert history_text(ctx.task, review, PPlugConfig(history_text="text")) == review.text


def test_soft_tokens_are_of_the_whole_history_whatever_is_shown(small: World, ctx: Context) -> None:
    method = fitted(small, ctx, n_history=1)
    of = small.test.examples[0]
    fewer = replace(of, history=of.history[2:])
    persona, other = (np.asarray(method.requests([e], ctx)[0].soft["persona"]) for e in (of, fewer))
    assert np.abs(persona - other).max() > 1e-4
    shuffled = replace(of, history=of.history[::-1])
    np.testing.assert_allclose(method.requests([shuffled], ctx)[0].soft["persona"], persona, atol=1e-5)


def test_users_and_batches_change_nothing(small: World, ctx: Context) -> None:
    method, examples = fitted(small, ctx), small.test.examples
    whole = method.requests(examples, ctx)
    backwards = method.requests(examples[::-1], ctx)[::-1]
    alone = [method.requests([e], ctx)[0] for e in examples]
    for others in (backwards, alone):
        for request, other in zip(whole, others, strict=True):
            assert all(np.array_equal(request.soft[name], other.soft[name]) for name in request.soft)


# -- contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [{}, {"n_history": 2, "history_text": "text"}, {"input_encoder": "linear", "temperature": 0.1}]
)
def test_it_holds_to_the_contract(config: dict[str, Any]) -> None:
    check_method(PPlug, epochs=1, copies=1, **config)


@pytest.mark.slow
def test_with_a_network_to_train_it_holds_to_the_contract(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.encoders.HashEncoder", lambda: opened(bert))
    check_method(PPlug, epochs=1, copies=1)
