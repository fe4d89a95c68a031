"""What stands before the first slot, computed once: the same losses, gradients and weights as the plain way."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_training_loop import Table, naive_loss
from tiny_engine import FAMILIES, engine_of, lively_model, one_thread

from bench.engines.base import LanguageModel
from bench.engines.chat import Prompt
from bench.errors import UsageError
from bench.training import Row, TrainingConfig, batch_loss, evaluate_loss, train
from bench.training import prefix as prefix_module
from bench.training.past import AlignedPast
from bench.training.prefix import Prefixes, supported

__all__ = ["one_thread"]

MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 12},
    "gemma3_text": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 12},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    @functools.cache
    def make(family: str) -> LanguageModel:
        return engine_of(lively_model(tmp_path_factory.mktemp(family), family, **MORE.get(family, {}))).language_model()

    return make


@pytest.fixture(scope="module")
def llama(model: Callable[[str], LanguageModel]) -> LanguageModel:
    return model("llama")


def row(index: int, prefix: int, slots: int = 2, shared: int = 0, rest: int = 5, target: int = 6) -> Row:
    """`prefix` tokens, of which the first `shared` are the same for all; slots among the rest; a target."""
    stream, same = random.Random(index), random.Random(-1)
    ids = [same.randrange(3, 250) for _ in range(shared)]
    ids += [stream.randrange(3, 250) for _ in range(prefix - shared + slots + rest)]
    positions = [prefix, *sorted(stream.sample(range(prefix + 1, len(ids) - 1), slots - 1))] if slots else []
    return Row(index, Prompt(tuple(ids), (), tuple(positions)), tuple(stream.randrange(3, 250) for _ in range(target)))


RAGGED = [row(0, 9), row(1, 25, slots=3), row(2, 1), row(3, 0), row(4, 17, slots=0), row(5, 40, slots=1, target=1)]
EQUAL = [row(0, 20), row(1, 20, rest=9), row(2, 20, slots=1)]
ALONE = [row(0, 30)]
SHARED = [row(0, 12, shared=12), row(1, 12, shared=12, slots=1), row(2, 18, shared=12)]


def outcome(
    lm: LanguageModel, rows: Sequence[Row], prefixes: Prefixes | None, opened: bool = True
) -> tuple[float, torch.Tensor]:
    """Loss, and its gradient by every vector."""
    table = Table(4)
    vectors, _ = table.soft(rows, training=True)
    with prefixes.open() if prefixes and opened else nullcontext():
        loss, _ = batch_loss(lm, rows, vectors, prefixes)
        (gradient,) = torch.autograd.grad(loss, [table.table])
    return float(loss.detach()), gradient


def every(lm: LanguageModel, budget: int = 2**30) -> Prefixes:
    """Takes every prefix of at least one token."""
    return Prefixes(lm, budget, least=1, share=0.0)


# -- losses and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [RAGGED, EQUAL, ALONE, SHARED], ids=["ragged", "equal", "alone", "shared"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_loss_and_gradients_equal_the_plain_way(
    model: Callable[[str], LanguageModel], family: str, rows: list[Row]
) -> None:
    """With and without a mask, computed now and taken from memory; rows are long enough to leave sliding windows."""
    lm = model(family)
    assert supported(lm.model)
    loss, gradient = outcome(lm, rows, None)
    assert float(gradient.abs().max()) > 1e-3
    for opened in (True, False):
        prefixes = every(lm)
        for _ in range(2):
            found, found_gradient = outcome(lm, rows, prefixes, opened)
            assert found == pytest.approx(loss, rel=1e-5)
            assert float((found_gradient - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max())
        assert prefixes.computed == len({r.prompt.ids[: prefixes.length(r)] for r in rows} - {()})


def test_the_loss_is_that_of_the_models_own_labels(llama: LanguageModel) -> None:
    table = Table(4)
    with torch.no_grad():
        naive = sum(float(naive_loss(llama, r, table.table)) for r in RAGGED)
    assert outcome(llama, RAGGED, every(llama))[0] == pytest.approx(naive, rel=1e-5)


def test_only_the_rest_goes_through_the_model_with_gradients(llama: LanguageModel) -> None:
    seen: list[tuple[int, bool]] = []
    layer = llama.model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[1], torch.is_grad_enabled())))
    try:
        prefixes = every(llama)
        outcome(llama, ALONE, prefixes)
        outcome(llama, ALONE, prefixes)
    finally:
        handle.remove()
    rest = ALONE[0].length - 30
    assert seen == [(30, False), (rest, True), (rest, True)]


def test_what_a_model_attends_with_comes_back(model: Callable[[str], LanguageModel]) -> None:
    for family in ("llama", "gemma2"):
        config = model(family).model.config
        before = config._attn_implementation
        with pytest.raises(ZeroDivisionError), every(model(family)).open():
            1 / 0  # noqa: B018
        assert config._attn_implementation == before


def test_an_attention_that_passes_the_prefix_by_is_an_error_and_no_wrong_number() -> None:
    past = AlignedPast(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), [3])
    past.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(UsageError, match="set prefix_memory_mb to 0"):
        past.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_memory_stays_within_its_budget_and_the_rest_is_computed_again(llama: LanguageModel) -> None:
    loss, gradient = outcome(llama, RAGGED, None)
    whole = every(llama)
    outcome(llama, RAGGED, whole)
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, bytes
    assert whole.bytes == token * sum(whole.length(r) for r in RAGGED)
    for budget in (0, token * 20, token * 60, whole.bytes - 1):
        prefixes = every(llama, budget)
        for _ in range(3):
            found, found_gradient = outcome(llama, RAGGED, prefixes)
            assert found == pytest.approx(loss, rel=1e-5)
            torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5)
        assert prefixes.bytes <= budget
        assert prefixes.computed > 5
    assert whole.computed == 5


def test_a_prefix_has_the_same_bits_in_whatever_company_it_is_computed(llama: LanguageModel) -> None:
    """So that training that goes on after a kill, with nothing kept, is bit for bit the same."""
    together, alone = every(llama), every(llama)
    states = together._states([r.prompt.ids[: together.length(r)] for r in RAGGED])
    for ids, state in states.items():
        (again,) = alone._states([ids]).values()
        for one, other in zip(state, again, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_short_prefixes_and_small_shares_go_the_plain_way(model: Callable[[str], LanguageModel]) -> None:
    def length(family: str, prefix: int, rest: int) -> int:
        return Prefixes(model(family), 2**30).length(row(0, prefix, rest=rest))

    assert length("llama", 63, 5) == 0
    assert length("llama", 64, 5) == 64
    assert length("llama", 64, 560) == 64
    assert length("llama", 64, 640) == 0
    assert length("mistral", 64, 560) == 0  # the mask that a sliding window asks for costs more
    assert length("mistral", 64, 100) == 64
    assert Prefixes(model("llama"), 2**30).length(row(0, 64, slots=0, rest=5)) == 68  # all of the prompt but its end


@pytest.mark.parametrize(
    ("changes", "works"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "longrope"}}, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, False),
        ({"rope_parameters": {"rope_type": "yarn"}}, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"layer_types": ["chunked_attention"]}, False),
        ({"num_kv_shared_layers": 2}, False),
    ],
)
def test_families_whose_past_is_more_than_keys_and_values_are_left_alone(
    changes: dict[str, object], works: bool
) -> None:
    config = type("Config", (), {"get_text_config": lambda self: self, **changes})()
    assert supported(type("Model", (), {"config": config})()) == works


# -- the loop -------------------------------------------------------------------------------------------------------


class Constant(Table):
    """Trains nothing inside the model, and says so."""

    constant_prefix = True


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("memory", [0, 1, 1024])
def test_training_ends_with_the_same_weights(
    model: Callable[[str], LanguageModel], family: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(family)
    rows = [row(i, n) for i, n in enumerate((70, 0, 90, 130, 80))]
    dev = [row(9, 100), row(10, 3)]
    made: list[Prefixes] = []

    def noted(*given: Any) -> Prefixes:
        made.append(Prefixes(*given))
        return made[-1]

    monkeypatch.setattr(prefix_module, "Prefixes", noted)
    config = TrainingConfig(epochs=3, lr=0.1, batch_size=3, warmup=0.2, batch_tokens=200, prefix_memory_mb=memory)
    plain, ours = Table(4, weight=0.1), Constant(4, weight=0.1)
    expected = train(lm, rows, dev, plain, config, seed=1)
    log = train(lm, rows, dev, ours, config, seed=1)
    assert log.steps == pytest.approx(expected.steps, rel=1e-4)
    assert log.tokens == expected.tokens
    assert [e.dev_loss for e in log.epochs] == pytest.approx([e.dev_loss for e in expected.epochs], rel=1e-4)
    torch.testing.assert_close(ours.table, plain.table, rtol=1e-3, atol=1e-4)
    assert len(made) == (memory > 0)
    if memory:
        assert made[0].computed == 5  # four train rows and a dev row, once for all epochs


def test_dev_losses_are_the_same_with_prefixes(llama: LanguageModel) -> None:
    plain = evaluate_loss(llama, RAGGED, Table(4), TrainingConfig())
    assert evaluate_loss(llama, RAGGED, Table(4), TrainingConfig(), every(llama)) == pytest.approx(plain, rel=1e-5)
