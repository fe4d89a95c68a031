"""The engine without a model: a pure function of each request."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bench.engines.fake import FakeConfig, FakeEngine
from bench.types import Message, Request, Sampling


def ask(text: str, seed: int = 0, sampling: Sampling | None = None) -> Request:
    return Request(text, "generate", (Message("user", text),), sampling or Sampling(), seed)


@given(texts=st.lists(st.text(alphabet="ab c", max_size=30), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_an_answer_depends_on_its_request_alone(texts: list[str], seed: int) -> None:
    engine = FakeEngine()
    requests = [ask(text, seed + i) for i, text in enumerate(texts)]
    together = engine.run(requests).generations
    assert [engine.run([r]).generations[0] for r in requests] == together
    assert engine.run(requests[::-1]).generations[::-1] == together
    for request, generation in zip(requests, together, strict=True):
        words = request.messages[0].content.split() or ["nothing"]
        assert set(generation.text.split()) <= set(words)
        assert len(generation.text.split()) == generation.output_tokens <= 256
        assert generation.prompt_tokens == engine.count_tokens(request.messages)
        assert (generation.finish_reason, generation.error) == ("stop", None)


def test_seeds_and_lengths_are_heeded() -> None:
    engine = FakeEngine()
    text = " ".join(f"w{i}" for i in range(50))
    assert len({engine.run([ask(text, seed)]).generations[0].text for seed in range(20)}) == 20
    exact = Sampling(0.8, 0.95, 7, 7)
    assert {engine.run([ask(text, s, exact)]).generations[0].output_tokens for s in range(20)} == {7}


@given(sizes=st.lists(st.integers(1, 50), max_size=30), rows=st.integers(1, 6))
def test_plan_holds_every_request_once_and_never_mixes_sampling(sizes: list[int], rows: int) -> None:
    engine = FakeEngine(config=FakeConfig(max_batch=rows))
    requests = [ask(f"{i} " + "word " * n, sampling=Sampling(max_new_tokens=8 + n % 2)) for i, n in enumerate(sizes)]
    random.Random(0).shuffle(requests)
    batches = engine.plan(requests)
    assert sorted(i for batch in batches for i in batch) == list(range(len(requests)))
    assert all(len({requests[i].sampling for i in batch}) == 1 and len(batch) <= rows for batch in batches)


def test_it_says_what_it_is() -> None:
    engine = FakeEngine(config=FakeConfig(context_length=99))
    assert engine.identity()["name"] == "fake"
    assert engine.identity() == FakeEngine().identity()
    assert engine.context_length == 99
    assert engine.peak_memory() is None
    assert engine.speed() is None
