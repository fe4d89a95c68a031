"""Prompts, batch plans, the sampling step: `pytest tests/benchmarks/test_batching_speed.py --benchmark-only`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.engines import chat
from bench.engines.batching import grouped
from bench.engines.fake import FakeEngine
from bench.engines.sampling import draw
from bench.meter import Meter
from bench.method import Context
from bench.prompts import conversation, fit_prompt
from bench.testing import tiny_tokenizer
from bench.types import REVIEW_TASK, Document, Example, Message, Sampling

PROMPTS = 64


class ByteEngine(FakeEngine):
    """Counts tokens as an engine with a real tokenizer does: rendered by the template, then tokenised."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return chat.count(self.tokenizer, messages)


def words(stream: random.Random, count: int) -> str:
    return " ".join(stream.choice(("price", "sound", "is", "the", "fair", "clear", "of")) for _ in range(count))


def make_examples() -> list[Example]:
    stream = random.Random(0)

    def fields() -> dict[str, Any]:
        title, about, verdict = words(stream, 6), words(stream, 80), words(stream, 4)
        return {"item_title": title, "item_description": about, "rating": 4.0, "title": verdict}

    def history(user: int) -> tuple[Document, ...]:
        return tuple(Document(f"{user}-{i}", str(user), words(stream, 150), fields()) for i in range(8))

    return [Example(str(i), str(i), fields(), history(i)) for i in range(PROMPTS)]


@pytest.mark.parametrize("budget", [20_000, 4_000, 1_500], ids=["whole", "some documents", "one shortened"])
def test_prompts_brought_under_a_budget(benchmark: BenchmarkFixture, budget: int) -> None:
    nobody = cast(Any, None)
    ctx = Context(REVIEW_TASK, nobody, ByteEngine(), 0, Sampling(), budget, Meter())
    examples = make_examples()

    def build(example: Example, documents: Sequence[Document]) -> list[Message]:
        return conversation(ctx.task, example, documents)

    fitted = benchmark(lambda: [fit_prompt(build, e, e.history[::-1], ctx) for e in examples])
    assert all(f.tokens <= budget for f in fitted)
    assert benchmark.stats is not None
    benchmark.extra_info["prompts_per_second"] = round(PROMPTS / benchmark.stats.stats.median)


def test_a_plan_of_ten_thousand_requests(benchmark: BenchmarkFixture) -> None:
    stream = random.Random(0)
    lengths = [stream.randint(100, 3000) for _ in range(10_000)]
    groups = [stream.choice("ab") for _ in lengths]
    names = [str(i) for i in range(len(lengths))]
    batches = benchmark(grouped, lengths, groups, names, 64, 100_000)
    assert sum(map(len, batches)) == 10_000


@pytest.mark.parametrize("vocabulary", [49_152, 152_064])
@pytest.mark.parametrize("sharpness", [4.0, 0.5], ids=["usual", "flat"])
def test_a_sampling_step_of_sixteen_rows(benchmark: BenchmarkFixture, vocabulary: int, sharpness: float) -> None:
    """Flat logits (as of an untrained model) reach beyond the shortlist, so that the vocabulary is sorted."""
    logits = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0)) * sharpness
    seeds = torch.arange(16)
    tokens = benchmark(draw, logits, 0.8, 0.95, seeds, 0)
    assert tokens.shape == (16,)
