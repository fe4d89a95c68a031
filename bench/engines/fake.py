"""An engine without a model: deterministic and instant, for tests and `--dry-run`."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from bench.config import Config
from bench.engines.base import BatchResult, Engine
from bench.engines.batching import grouped
from bench.keys import digest
from bench.types import Capability, Generation, Message, Request


class FakeConfig(Config):
    """Knobs of the fake engine."""

    max_batch: int = Field(default=16, ge=1)
    """Most requests in a batch."""
    context_length: int = Field(default=8192, ge=1)
    """Tokens the pretended model takes."""
    seconds: float = Field(default=0.0, ge=0)
    """That a batch pretends to take."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a byte-pair vocabulary makes of an English text: a token per four characters of a word."""
    return sum(1 + len(word) // 6 for word in re.findall(r"\w+|[^\w\s]", text))


class FakeEngine(Engine):
    """Answers with words of the prompt, chosen by the request's seed: a pure function of the request."""

    name = "fake"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})
    Config = FakeConfig

    def __init__(self, source: Any = None, config: FakeConfig | None = None) -> None:
        self.config = config or FakeConfig()

    def identity(self) -> dict[str, str]:
        return {"name": self.name, "model": "none", "revision": "1", "dtype": "none", "backend": "fake 1"}

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(4 + estimate_tokens(message.content) for message in messages)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        lengths = [self.count_tokens(request.messages) for request in requests]
        groups = [request.sampling for request in requests]
        return grouped(lengths, groups, [r.example_id for r in requests], self.config.max_batch, 1 << 30)

    def run(self, batch: Sequence[Request]) -> BatchResult:
        time.sleep(self.config.seconds)
        return BatchResult([self._answer(request) for request in batch])

    def _answer(self, request: Request) -> Generation:
        words = " ".join(message.content for message in request.messages).split()
        stream = random.Random(digest([request.seed, words]))
        count = stream.randint(1, max(1, min(40, request.sampling.max_new_tokens)))
        count = max(count, request.sampling.min_new_tokens)
        text = " ".join(stream.choice(words or ["nothing"]) for _ in range(count))
        return Generation(text, self.count_tokens(request.messages), count, "stop")
