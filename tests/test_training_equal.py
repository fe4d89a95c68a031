"""Three ways to train, one loss curve: this loop, the public recipe of padded rows, and a Hugging Face Trainer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_engine import engine_of, lively_model, one_thread
from training_rivals import SLOTS, Learner, SoftPrompts, train_padded, train_with_trainer

from bench.engines.base import LanguageModel
from bench.engines.chat import Prompt
from bench.training import Row, TrainingConfig, train

__all__ = ["one_thread"]

CONFIG = TrainingConfig(epochs=4, lr=0.003, weight_decay=0.025, batch_size=4, warmup=0.3, batch_tokens=256)
WIDTH = 220
SEED = 3


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = lively_model(tmp_path_factory.mktemp(request.param), request.param)
    return engine_of(folder).language_model()


def make_rows(vocabulary: int, count: int = 12) -> list[Row]:
    """Rows of many lengths with sixteen soft positions; ids of the lower half, so that some stay unused."""
    stream = random.Random(0)
    rows = []
    for index in range(count):
        prompt = [stream.randrange(vocabulary // 2) for _ in range(stream.randint(40, 150))]
        target = tuple(stream.randrange(vocabulary // 2) for _ in range(stream.randint(1, 60)))
        first = stream.randrange(len(prompt) - SLOTS)  # long texts before the first slot, and hardly any
        places = tuple(sorted(stream.sample(range(first, len(prompt)), SLOTS)))
        slots = tuple((f"slot {i}", place) for i, place in enumerate(places))
        rows.append(Row(index, Prompt(tuple(prompt), slots, places), target))
    return rows


def weights_of(module: SoftPrompts) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_three_ways_to_train_have_one_loss_curve_and_end_at_the_same_weights(lm: LanguageModel, tmp_path: Path) -> None:
    embeddings = lm.model.get_input_embeddings().weight
    rows = make_rows(len(embeddings))
    modules: dict[str, SoftPrompts] = {}

    def fresh(name: str) -> SoftPrompts:
        modules[name] = SoftPrompts(len(rows), embeddings.shape[1], float(embeddings.pow(2).mean().sqrt()), SEED)
        return modules[name]

    ways: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: train(lm, rows, [], Learner(fresh("ours")), CONFIG, SEED).steps,
        "padded": lambda: train_padded(lm.model, rows, fresh("padded"), CONFIG, SEED, WIDTH),
        "trainer": lambda: train_with_trainer(lm.model, rows, fresh("trainer"), CONFIG, SEED, 2, tmp_path),
    }
    curves = {name: way() for name, way in ways.items()}
    assert len(curves["ours"]) == CONFIG.epochs * len(rows) // CONFIG.batch_size
    assert curves["ours"][-1] < curves["ours"][0] - 0.1, "nothing was learned, so nothing was compared"
    start, end = weights_of(fresh("start")), weights_of(modules["ours"])
    for name in ("padded", "trainer"):
        assert curves[name] == pytest.approx(curves["ours"], abs=1e-3)
        # As one vector: Adam's first steps are the gradient's sign, which rounding decides where it is almost zero.
        assert float((weights_of(modules[name]) - end).norm() / (end - start).norm()) < 1e-2
