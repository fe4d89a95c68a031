"""Tiny random models as engines, lively enough that their texts depend on what they read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import weights
from bench.engines.hf import HFConfig, HFEngine
from bench.testing import tiny_model
from bench.types import Message, Request, Sampling

__all__ = ["FAMILIES", "ask", "engine_of", "lively_model", "one_thread", "texts"]

FAMILIES = ("llama", "qwen2", "gemma2", "gemma3_text", "gpt_neox", "phi3")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: threads waiting for each other would take longer than the work. Import it to use it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_of(folder: Path, **config: Any) -> HFEngine:
    """An engine over a saved model: float32 on the CPU unless told otherwise."""
    return HFEngine(weights.resolve(str(folder), "llm"), HFConfig(**{"device": "cpu", "dtype": "float32", **config}))


def lively_model(folder: Path, family: str = "llama", **config: Any) -> Path:
    """Random weights ten times the usual size, so that every token of the prompt shows in what is written."""
    return tiny_model(folder, family, **{"initializer_range": 0.3, "tie_word_embeddings": False, **config})


def ask(text: str, seed: int = 0, sampling: Sampling | None = None, **more: Any) -> Request:
    """A request of one user turn, greedy and twelve tokens long unless told otherwise."""
    return Request(text, "generate", (Message("user", text),), sampling or Sampling(0.0, 1.0, 12), seed, **more)


def texts(engine: HFEngine, requests: list[Request]) -> list[str]:
    """What the engine writes for the requests, all in one batch."""
    return [generation.text for generation in engine.run(requests).generations]
