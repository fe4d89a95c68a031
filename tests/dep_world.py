"""DEP on a tiny model with random weights: the fixtures that its test files share."""

from __future__ import annotations

from typing import Any

import pytest
from method_world import World, context, world
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines.hf import HFEngine
from bench.method import Context
from methods.dep import Dep
from methods.dep.config import DepConfig

__all__ = ["QUICK", "engine", "fitted", "one_thread", "ready", "small"]

QUICK = {"epochs": 1, "latent_size": 24, "k": 6, "batch_size": 2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small() -> World:
    return world()


def fitted(of: World, ctx: Context, **config: Any) -> Dep:
    method = Dep(DepConfig(**{**QUICK, **config}))
    method.fit(of.train, of.dev, ctx)
    return method


@pytest.fixture(scope="module")
def ready(small: World, engine: HFEngine) -> Dep:
    return fitted(small, context(small.population, engine))
