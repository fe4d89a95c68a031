"""The fast path against a forward pass over the whole text for each token, and against transformers' own generate."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_user_adapters import strong
from tiny_engine import ask, engine_of, lively_model, one_thread

from bench.engines import bank, refill, slots
from bench.engines.chat import Prompt
from bench.engines.hf import HFEngine
from bench.engines.sampling import draw, gumbel
from bench.errors import UsageError
from bench.types import Message, Request, Sampling, Steering, slot

__all__ = ["one_thread"]

Make = Callable[..., HFEngine]

FAST = ("llama", "qwen2", "qwen3", "gpt_neox", "granite")
"""Families whose past is plain keys and values."""
OTHER = ("gemma2", "gemma3_text")
"""Families that cap scores or look through windows."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Engines by family and knobs, each made once."""
    folder = functools.cache(lambda family: lively_model(tmp_path_factory.mktemp(family), family))
    return functools.cache(lambda family="llama", **knobs: engine_of(folder(family), **knobs))


def many(count: int, temperature: float = 0.8, seed: int = 0) -> list[Request]:
    """Requests of all lengths, half of them with a common beginning, each to write another number of tokens."""
    stream = random.Random(seed)
    made = []
    for i in range(count):
        head = "what all of them begin with, " if stream.random() < 0.5 else ""
        least = stream.randint(0, 6)
        sampling = Sampling(temperature, 0.9, least + stream.randint(1, 14), least)
        made.append(replace(ask(head + "x" * stream.randint(0, 60) + str(i), seed=i), sampling=sampling))
    return made


def slowly(engine: HFEngine, request: Request) -> list[int]:
    """New tokens of one request: the whole text through the model for each, nothing kept, no batch."""
    model, ends = engine.model, engine.model.generation_config.eos_token_id
    embed = model.get_input_embeddings()
    prompt = engine.encode(request)
    states = embed(torch.tensor(prompt.ids)).clone()
    for name, start in prompt.slots:
        vectors = torch.as_tensor(request.soft[name], dtype=states.dtype)
        states[start : start + len(vectors)] = vectors
    tokens: list[int] = []
    while len(tokens) < request.sampling.max_new_tokens:
        with torch.no_grad():
            logits = model(inputs_embeds=states[None], use_cache=False).logits[:, -1]
        if len(tokens) < request.sampling.min_new_tokens:
            logits[:, ends] = -torch.inf
        if request.sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            seeds = torch.tensor([request.seed])
            token = int(draw(logits, request.sampling.temperature, request.sampling.top_p, seeds, len(tokens)))
        tokens.append(token)
        if token in ends:
            break
        states = torch.cat([states, embed(torch.tensor([token]))])
    return tokens


def pool(engine: HFEngine, requests: list[Request], rows: int) -> list[list[int]]:
    prompts = [engine.encode(request) for request in requests]
    return refill.Pool(engine.model, prompts, requests, rows, lambda _: None).write().tokens


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_refilled_rows_equal_a_forward_pass_over_the_whole_text(make: Make, family: str, rows: int) -> None:
    engine = make(family)
    requests = many(12)
    engine.load()
    assert engine._fast
    assert pool(engine, requests, rows) == [slowly(engine, request) for request in requests]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_paths_write_the_same(make: Make, temperature: float) -> None:
    requests = many(17, temperature, seed=1)
    fast, reference = make(max_batch=4), make(max_batch=4, path="reference")
    found, wanted = fast.answers(requests), reference.answers(requests)
    assert (fast._fast, reference._fast) == (True, False)
    assert found == wanted
    assert len({generation.text for generation in found}) == 17


def test_a_common_beginning_is_read_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    engine.load()
    requests = [ask("the very same beginning of every prompt " + str(i), seed=i) for i in range(6)]
    read: list[int] = []
    whole = refill.Pool._forward

    def counted(self: refill.Pool, states: torch.Tensor, *more: object) -> torch.Tensor:
        read.append(states.shape[1])
        return whole(self, states, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(refill.Pool, "_forward", counted)
    found = pool(engine, requests, 2)
    lengths = [len(engine.encode(request).ids) for request in requests]
    prefix = refill.shared_prefix([engine.encode(request) for request in requests])
    assert prefix > 40
    assert sum(read) == prefix + sum(length - prefix for length in lengths)
    assert found == [slowly(engine, request) for request in requests]


def test_soft_vectors_stand_in_their_slots_also_behind_a_common_beginning(make: Make) -> None:
    engine = make()
    noise = torch.Generator().manual_seed(0)
    requests = [
        replace(
            ask(str(i), seed=i),
            messages=(Message("user", f"here is what all begin with {slot('a')} then {i} and {slot('b')}!"),),
            soft={name: torch.randn(n, 32, generator=noise) for name, n in (("a", 2), ("b", 1 + i % 3))},
        )
        for i in range(7)
    ]
    engine.load()
    assert pool(engine, requests, 3) == [slowly(engine, request) for request in requests]


def test_users_adapters_and_steering_stay_with_their_rows_while_places_change(make: Make, tmp_path: Path) -> None:
    engine, reference = make(max_batch=3), make(max_batch=3, path="reference")
    noise = torch.Generator().manual_seed(0)
    paths: list[str | None] = [None]
    for seed in range(3):
        path = tmp_path / f"{seed}.safetensors"
        bank.save_adapter(path, strong(reference, seed), 4.0, torch.float32)
        paths.append(str(path))
    vectors = [torch.randn(1, 32, generator=noise) * 3 for _ in range(3)]
    requests = [
        replace(
            request,
            user_adapter=paths[i % 4],
            steering=Steering(1 + i % 2, vectors[i % 3], prompt=i % 5 == 0) if i % 3 else None,
        )
        for i, request in enumerate(many(11, 0.0, seed=2))
    ]
    found = engine.answers(requests)
    assert found == reference.answers(requests)
    assert [g.text for g in found] != [g.text for g in engine.answers(many(11, 0.0, seed=2))]


@pytest.mark.parametrize("family", OTHER)
def test_other_families_take_the_reference_path(make: Make, family: str) -> None:
    engine = make(family, max_batch=2)
    requests = many(7)
    engine.load()
    assert not engine._fast
    assert engine.answers(requests) == make(family, max_batch=2, path="reference").answers(requests)
    with pytest.raises(UsageError, match=r"use hf\.path=auto"):
        make(family, path="fast").load()


def test_a_family_whose_attention_is_not_what_its_configuration_says_is_found_out(make: Make) -> None:
    engine = make()
    engine.load()
    assert refill.agrees(engine.model)
    handles = [
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out: out * (out.shape[1] % 2 + 1))
        for layer in engine.model.model.layers
    ]
    try:
        assert not refill.agrees(engine.model)
    finally:
        for handle in handles:
            handle.remove()
    assert refill.agrees(engine.model)


def test_attention_is_put_back_also_after_an_error(make: Make) -> None:
    engine = make()
    engine.load()
    before = engine.model.config._attn_implementation
    seen: list[str] = []

    def fail() -> None:
        with slots.attention(engine.model):
            seen.append(engine.model.config._attn_implementation)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [slots.SLOTS]
    assert engine.model.config._attn_implementation == before


def test_progress_tells_each_row_once(make: Make) -> None:
    engine = make(max_batch=2, refill=3)
    requests = many(9)
    told: list[int] = []
    batches = [[requests[i] for i in batch] for batch in engine.plan(requests)]
    results = list(engine.stream(batches, told.append))
    assert sum(told) == 9
    assert len(told) > len(batches)
    for result in results:
        assert len(result.first_token_seconds) == len(result.generations)
        assert all(0 < s <= result.prefill_seconds + result.decode_seconds + 1e-3 for s in result.first_token_seconds)


prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=5)


@given(prompts, st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_the_shared_prefix_is_the_longest_that_is_allowed(rows: list[list[int]], soft: list[int]) -> None:
    rows = [[1] * 20 + row for row in rows]
    made = [Prompt(tuple(r), (), (20 + s,) if s < len(r) else ()) for r, s in zip(rows, soft, strict=False)]
    wanted = 0
    while len(made) > 1 and all(
        wanted < len(p.ids) - 1
        and (not p.positions or wanted < p.positions[0])
        and p.ids[wanted] == made[0].ids[wanted]
        for p in made
    ):
        wanted += 1
    assert refill.shared_prefix(made) == (wanted if wanted >= refill.LEAST_PREFIX else 0)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(0, 2**62))
def test_rows_at_different_steps_get_the_noise_of_their_own_step(steps: list[int], seed: int) -> None:
    seeds = torch.tensor([seed + i for i in range(len(steps))])
    tokens = torch.arange(50).expand(len(steps), 50)
    together = gumbel(seeds, torch.tensor(steps), tokens)
    for i, step in enumerate(steps):
        assert torch.equal(together[i], gumbel(seeds[i : i + 1], step, tokens[:1])[0])


def test_attention_under_a_mask_of_the_models_own_is_refused() -> None:
    some = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UsageError, match=r"hf\.path=reference"):
        slots._slot_attention(torch.nn.Module(), some, some, some, torch.zeros(1, 1, 3, 3))


def test_the_speed_is_measured_on_prompts_that_differ(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    engine.load()
    seen: list[int] = []
    write = HFEngine._write

    def watched(self: HFEngine, prompts: list[Prompt], *more: object) -> object:
        if len(prompts[0].ids) > 64:
            seen.append(refill.shared_prefix(prompts))
        return write(self, prompts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(HFEngine, "_write", watched)
    engine._warm_up()
    assert seen == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [1, 3, 6])
def test_a_steps_attention_is_a_softmax_over_what_each_row_has(dtype: torch.dtype, shared: int) -> None:
    stream = torch.Generator().manual_seed(shared)
    query, keys, values = (
        torch.randn(shape, generator=stream).to(dtype)
        for shape in ((3, 6, 1, 8), (5, shared, 128, 8), (5, shared, 128, 8))
    )
    positions = torch.tensor([0, 40, 100])
    found = slots.Step(positions, 100, dtype).attend(query, keys, values, 0.3)
    for row, position in enumerate(positions.tolist()):
        for head in range(6):
            own = head // (6 // shared)
            seen, read = (part[row, own, : position + 1].double() for part in (keys, values))
            wanted = torch.softmax(0.3 * seen @ query[row, head, 0].double(), 0) @ read
            allowed = 1e-5 if dtype == torch.float32 else 0.02
            assert (found[row, head, 0].double() - wanted).abs().max() < allowed


def test_weights_lie_at_cache_lines(make: Make) -> None:
    engine = make()
    engine.load()
    assert all(parameter.data_ptr() % 64 == 0 for parameter in engine.model.parameters())
