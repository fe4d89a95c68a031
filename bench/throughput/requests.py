"""Requests of given lengths: prompts of real words, soft prompts, adapters of users; the same for every contender."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.engines.base import Engine, LanguageModel
from bench.errors import UsageError
from bench.keys import request_seed
from bench.types import Message, Request, Sampling, slot

KINDS = ("ids", "soft", "adapters")
"""Plain prompts; prompts with soft vectors; plain prompts, each with a user's own adapter."""
SOFT = 16
"""Soft vectors in a prompt, as many as DEP has (eight past reviews, two each)."""
RANK = 8
"""Of a user's adapter, which is on the projections of queries and values."""

_WORDS = [
    "the",
    "sound",
    "of",
    "this",
    "thing",
    "is",
    "clear",
    "and",
    "its",
    "price",
    "fair",
    "for",
    "what",
    "it",
    "does",
]


def lengths(low: int, high: int, count: int, seed: int) -> list[int]:
    """`count` whole numbers spread evenly over low..high, in an order drawn with `seed`."""
    step = (high - low) / max(1, count - 1)
    spread = [round(low + i * step) for i in range(count)]
    random.Random(seed).shuffle(spread)
    return spread


def prompt_of(engine: Engine, number: int, tokens: int, soft: bool = False) -> Message:
    """A prompt of as near to `tokens` tokens as whole words allow, template included.

    Prompts differ by `number` from the user's first word on, so that nobody gains from reading a beginning once. Raises
    UsageError if the template alone is longer.
    """
    stream = random.Random(number)
    words = [stream.choice(_WORDS) for _ in range(tokens)]
    place = slot("soft") if soft else ""
    tokens -= SOFT - 1 if soft else 0

    def prompt(count: int) -> Message:
        return Message("user", " ".join([str(number), *words[:count]]) + place)

    low, high = 0, len(words)
    if engine.count_tokens([prompt(0)]) > tokens:
        raise UsageError(f"--prompt-tokens {tokens} is less than the empty prompt takes; raise it")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if engine.count_tokens([prompt(middle)]) <= tokens else (low, middle - 1)
    return prompt(low)


def make(
    engine: Engine, kind: str, prompts: Sequence[int], outputs: Sequence[int], hidden: int, folder: Path
) -> list[Request]:
    """One request for each pair of lengths: greedy, and exactly so many new tokens.

    `hidden` is the width of soft vectors, `folder` where adapters of kind `adapters` lie (see `save_adapters`).
    """
    made = []
    for i, (read, written) in enumerate(zip(prompts, outputs, strict=True)):
        message = prompt_of(engine, i, read, soft=kind == "soft")
        sampling = Sampling(0.0, 1.0, written, written)
        request = Request(str(i), "generate", (message,), sampling, request_seed(0, str(i), ""))
        if kind == "soft":
            request = replace(request, soft={"soft": _vectors(i, hidden)})
        if kind == "adapters":
            request = replace(request, user_adapter=str(adapter_path(folder, i)))
        made.append(request)
    return made


def _vectors(number: int, hidden: int) -> Any:
    import torch

    noise = torch.Generator().manual_seed(number)
    return torch.randn(SOFT, hidden, generator=noise) * 0.1


def adapter_path(folder: Path, number: int) -> Path:
    """Where the adapter of a request lies."""
    return folder / f"{number}.safetensors"


def save_adapters(lm: LanguageModel, folder: Path, count: int, size: float = 0.02) -> None:
    """Random adapters of `count` users; `size` is the standard deviation of their elements."""
    import torch

    from bench.engines import bank

    layers = {
        name: layer
        for name, layer in bank.linear_layers(lm.model).items()
        if name.rsplit(".", 1)[-1] in ("q_proj", "v_proj", "query_key_value", "qkv_proj")
    }
    if not layers:
        raise UsageError(
            "this model has no projections of the usual names for users' adapters; leave them out of --kinds"
        )
    for number in range(count):
        noise = torch.Generator().manual_seed(number)
        pairs = {
            name: (
                torch.randn(RANK, layer.in_features, generator=noise) * size,
                torch.randn(layer.out_features, RANK, generator=noise) * size,
            )
            for name, layer in layers.items()
        }
        bank.save_adapter(adapter_path(folder, number), pairs, float(RANK), torch.float32)
