"""Layers computed again or compiled, and the number formats of what is frozen and what is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from method_world import context, world
from test_training_loop import Table, rows_of
from test_training_prefix import Constant, row
from tiny_engine import engine_of, lively_model, one_thread
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bench.engines.base import LanguageModel
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.training import TrainingConfig, batch_loss, train
from bench.training.checkpoint import CHECKPOINT
from bench.training.layers import Layers
from methods.lora import Lora, LoraConfig

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> HFEngine:
    return engine_of(folder)


@pytest.fixture
def llama(engine: HFEngine) -> Iterator[LanguageModel]:
    lm = engine.language_model()
    yield lm
    assert not [m for m in lm.model.modules() if "forward" in vars(m)], "layers must be left as they were"


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"epochs": 2, "lr": 0.1, "batch_size": 3, "batch_tokens": 300, **changes})


def outcome(lm: LanguageModel, learner: Table, settings: TrainingConfig) -> tuple[list[float], torch.Tensor]:
    rows = [row(i, n) for i, n in enumerate((70, 0, 90, 130, 80))]
    log = train(lm, rows, [row(9, 100)], learner, settings, seed=1)
    return [*log.steps, *(e.dev_loss for e in log.epochs)], learner.table.detach()


# -- gradient checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [Table, Constant])
def test_layers_computed_again_give_the_same_bits(llama: LanguageModel, learner: type[Table]) -> None:
    """With a kept prefix, too: what stands before the slots must not be joined on twice."""
    plain = outcome(llama, learner(4), config())
    found = outcome(llama, learner(4), config(gradient_checkpointing=True))
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])


def test_an_adapter_under_dropout_comes_out_the_same(engine: HFEngine) -> None:
    of = world(3)
    states = []
    for again in (False, True):
        method = Lora(LoraConfig(epochs=2, batch_size=2, r=2, lr=0.05, dropout=0.3, gradient_checkpointing=again))
        method.fit(of.train, of.dev, context(of.population, engine))
        states.append(method._state)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_inputs_of_layers_are_kept(llama: LanguageModel) -> None:
    def kept(settings: TrainingConfig) -> tuple[int, int]:
        """Bytes kept for the backward pass, and how often the first layer ran."""
        held, runs = 0, 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        table, rows = Table(2), rows_of(llama, [2, 2, 2])
        handle = llama.model.get_decoder().layers[0].mlp.register_forward_pre_hook(count)
        with Layers(llama, settings).open():
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss, _ = batch_loss(llama, rows, table.soft(rows, training=True)[0])
            loss.backward()  # type: ignore[no-untyped-call]
        handle.remove()
        return held, runs

    much, once = kept(config())
    little, twice = kept(config(gradient_checkpointing=True))
    assert (once, twice) == (1, 2)
    assert little < 0.6 * much


# -- torch.compile --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers_whatever_the_lengths(llama: LanguageModel) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plain = outcome(llama, Constant(4), config(batch_tokens=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        found = outcome(llama, Constant(4), config(batch_tokens=1, compile=True))
        both = outcome(llama, Constant(4), config(batch_tokens=1, compile=True, gradient_checkpointing=True))
    graphs = counters["stats"]["unique_graphs"]
    for steps, table in (found, both):
        assert steps == pytest.approx(plain[0], rel=1e-4)
        torch.testing.assert_close(table, plain[1], rtol=1e-3, atol=1e-4)
    assert 0 < graphs <= 12  # a few kinds of part, with and without gradients: not one a layer and length


def test_without_a_compiler_it_says_so_before_it_trains(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    learner = Table(2)
    with pytest.raises(UsageError, match=r"compile needs a C\+\+ compiler such as g\+\+") as error:
        train(llama, rows_of(llama, [2]), [], learner, config(compile=True), seed=0)
    assert "\n" not in str(error.value)
    assert learner.modes == []


def test_a_model_without_marked_layers_says_so(llama: LanguageModel) -> None:
    other = LanguageModel(torch.nn.Linear(2, 2), None, llama.device)
    with pytest.raises(UsageError, match="Linear does not mark its layers"):
        Layers(other, config(gradient_checkpointing=True))
    Layers(other, config())


# -- number formats -------------------------------------------------------------------------------------------------


def test_frozen_weights_stay_bfloat16_and_the_adapter_is_float32(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    engine, of = engine_of(folder, dtype="bfloat16"), world(3)
    seen: set[tuple[bool, torch.dtype]] = set()
    gradients: set[torch.dtype] = set()

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        model = engine.language_model().model
        seen.update(("lora_" in name, p.dtype) for name, p in model.named_parameters())
        gradients.update(p.grad.dtype for group in optimizer.param_groups for p in group["params"])

    method = Lora(LoraConfig(epochs=1, batch_size=2, r=2, lr=0.05, checkpoint_seconds=0))
    hook = register_optimizer_step_pre_hook(look)
    try:
        method.fit(of.train, of.dev, context(of.population, engine, work=tmp_path))
    finally:
        hook.remove()
    assert seen == {(True, torch.float32), (False, torch.bfloat16)}
    assert gradients == {torch.float32}
    assert {tensor.dtype for tensor in method._state.values()} == {torch.float32}
    kept = load_file(tmp_path / CHECKPOINT)
    assert {kept[name].dtype for name in kept if not name.startswith("random.")} == {torch.float32}
    assert {p.dtype for p in engine.language_model().model.parameters()} == {torch.bfloat16}


def test_soft_vectors_are_trained_in_float32_under_a_bfloat16_model(folder: Path) -> None:
    """An update of a thousandth would be lost in bfloat16, which has three digits."""
    lm = engine_of(folder, dtype="bfloat16").language_model()
    table = Table(2)
    before = table.table.detach().clone()
    train(lm, rows_of(lm, [2, 1]), [], table, TrainingConfig(epochs=1, lr=1e-4, weight_decay=0), seed=0)
    moved = (table.table.detach() - before).abs()
    assert table.table.dtype == torch.float32
    assert float(moved.max()) == pytest.approx(1e-4, rel=0.02)


def test_training_in_fewer_bits_is_refused(llama: LanguageModel) -> None:
    table = Table(2)
    table.table = torch.nn.Parameter(table.table.detach().bfloat16())
    with pytest.raises(ValueError, match="must be float32"):
        train(llama, rows_of(llama, [2]), [], table, config(), seed=0)
