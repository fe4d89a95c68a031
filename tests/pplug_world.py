"""pplug on tiny models with random weights: what its test files share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from method_world import World, context, document, example, world
from tiny_engine import engine_of, lively_model

from bench import weights
from bench.encoders import Encoder
from bench.engines.hf import HFEngine
from bench.method import Context
from bench.testing import tiny_tokenizer
from bench.training import Row, build_rows
from bench.types import Example
from methods.pplug import PPlug, PPlugConfig
from methods.pplug.modules import PersonaPrompts, PPlugModule

__all__ = ["bert", "cache", "ctx", "engine", "small"]

QUICK = {"epochs": 1, "batch_size": 4, "copies": 2}


def tiny_encoder(folder: Path, pooling: str = "mean", **config: Any) -> Path:
    """A random BERT over bytes, as sentence-transformers would save one."""
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    settings = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.3, **sizes, **config
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(settings).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def opened(folder: Path) -> Encoder:
    return Encoder(weights.resolve(str(folder), "encoder"), device="cpu")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "bert")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def small() -> World:
    return world()


@pytest.fixture(params=["trained", "linear"])
def ctx(request: pytest.FixtureRequest, small: World, engine: HFEngine, bert: Path) -> Context:
    """With an encoder that has weights, so that there is a network to train, or with the stand-in."""
    if request.param == "trained":
        return context(small.population, engine, encoder_or_none=opened(bert))
    return context(small.population, engine)


def fitted(of: World, ctx: Context, **config: Any) -> PPlug:
    method = PPlug(PPlugConfig(**{**QUICK, **config}))
    method.fit(of.train, of.dev, ctx)
    return method


def inner(method: PPlug) -> PPlugModule:
    assert method.module is not None
    return method.module


def with_history(count: int, user: int = 0) -> Example:
    return example(user, count, 1000, [document(user, item, item) for item in range(count)])


def both_slots(count: int) -> list[dict[str, int]]:
    """Lengths of the soft slots of so many rows, all of users with history."""
    return [{"instruction": 1, "persona": 1}] * count


def at_the_start(small: World, ctx: Context, **config: Any) -> tuple[PPlug, PersonaPrompts, list[Row]]:
    """A method right before training, with its rows."""
    method = PPlug(PPlugConfig(**{**QUICK, **config}))
    inputs = method._inputs(ctx)
    lm, examples = ctx.engine.language_model(), small.train.examples
    given, table = method.prepare(examples, ctx)
    method.module = method._new_module(lm, inputs, table, given)
    prompts = [p.prompt.messages for p in given]
    rows = build_rows(lm, examples, prompts, small.train.references, 64, both_slots(len(examples)))
    return method, PersonaPrompts(method.module, table, given), rows
