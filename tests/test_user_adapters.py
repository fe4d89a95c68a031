"""Adapters of single users: many in one batch, each as if alone; and texts that set them against the model below."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_world import SHAPE, Pair, merged, plain, shared_adapter, with_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import ask, engine_of, lively_model, one_thread, texts

from bench.engines import bank
from bench.engines.contrast import contrasted
from bench.engines.hf import HFEngine
from bench.engines.sampling import draw
from bench.errors import UsageError
from bench.training.users import LowRank, target_layers
from bench.types import Contrast, Request, Sampling

__all__ = ["one_thread"]

Make = Callable[[str], HFEngine]

PROMPTS = ("a", "hello there", "the sound is clear and the price is fair " * 3, "why not", "b" * 70)
SAMPLED = Sampling(0.8, 0.95, 14)
GREEDY = Sampling(0.0, 1.0, 12)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Engines by family, each made once."""
    return functools.cache(lambda family: engine_of(lively_model(tmp_path_factory.mktemp(family), family)))


@pytest.fixture(scope="module")
def llama(make: Make) -> HFEngine:
    return make("llama")


def strong(engine: HFEngine, seed: int, shape: LowRank = SHAPE) -> dict[str, Pair]:
    """A random adapter that shows in every text."""
    noise = torch.Generator().manual_seed(seed)
    layers = target_layers(engine.language_model(), shape.modules, "t")
    return {
        name: (
            torch.randn(shape.r, width, generator=noise) * 0.5,
            torch.randn(height, shape.r, generator=noise) * 0.3,
        )
        for name, (width, height) in layers.items()
    }


def directly(model: Any, engine: HFEngine, request: Request) -> str:
    """A greedy text with no code of the engine's."""
    ids = torch.tensor([engine.encode(request).ids])
    end = engine.tokenizer.convert_tokens_to_ids("<|end|>")
    new = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )[0, ids.shape[1] :]
    return str(engine.tokenizer.decode(new, skip_special_tokens=True))


@pytest.fixture(scope="module")
def shared(llama: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A peft adapter for all rows."""
    return shared_adapter(llama, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def files(llama: HFEngine, tmp_path: Path) -> list[str]:
    """Three users' adapters."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        bank.save_adapter(path, strong(llama, seed), SHAPE.alpha, torch.float32)
    return [str(path) for path in paths]


# -- serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_each_row_of_a_batch_is_written_with_its_own_users_adapter(make: Make, tmp_path: Path, family: str) -> None:
    """Against weights merged by hand, one prompt at a time."""
    engine = make(family)
    adapters = [strong(engine, seed) for seed in range(3)]
    for seed, adapter in enumerate(adapters):
        bank.save_adapter(tmp_path / str(seed), adapter, SHAPE.alpha, torch.float32)
    whose = [1, None, 0, 2, 1]
    requests = [
        ask(text, user_adapter=None if user is None else str(tmp_path / str(user)))
        for text, user in zip(PROMPTS, whose, strict=True)
    ]
    models = {user: merged(plain(engine), adapters[user] if user is not None else {}, 8 / 4) for user in set(whose)}
    expected = [directly(models[user], engine, request) for user, request in zip(whose, requests, strict=True)]
    assert texts(engine, requests) == expected
    assert len({directly(model, engine, requests[1]) for model in models.values()}) == 4  # each adapter shows


def test_users_adapters_lie_on_top_of_the_shared_one(llama: HFEngine, files: list[str], shared: str) -> None:
    requests = [ask(t, adapter=shared, user_adapter=f) for t, f in zip(PROMPTS, [*files, None], strict=False)]
    expected = []
    for user, request in enumerate(requests):
        model = merged(with_shared(llama, shared), strong(llama, user) if request.user_adapter else {}, 2.0)
        expected.append(directly(model, llama, request))
    assert texts(llama, requests) == expected
    assert expected != [directly(plain(llama), llama, request) for request in requests]


@pytest.mark.parametrize("contrast", [None, Contrast(0.4, 0.05)])
def test_a_text_does_not_depend_on_who_else_is_in_the_batch(
    llama: HFEngine, files: list[str], contrast: Contrast | None
) -> None:
    requests = [
        replace(ask(text, seed=2**62 + i, sampling=SAMPLED, user_adapter=files[i % 3]), contrast=contrast)
        for i, text in enumerate(PROMPTS)
    ]
    together = texts(llama, requests)
    assert [texts(llama, [r])[0] for r in requests] == together
    assert texts(llama, requests[::-1])[::-1] == together
    assert texts(llama, requests[:2]) + texts(llama, requests[2:]) == together


def test_nothing_of_an_adapter_stays_behind(llama: HFEngine, files: list[str], shared: str) -> None:
    bare = [ask(text) for text in PROMPTS]
    before = texts(llama, bare)
    state = {name: tensor.clone() for name, tensor in llama.language_model().model.state_dict().items()}
    with_users = [replace(r, adapter=shared, user_adapter=files[0], contrast=Contrast(0.1, 0.1)) for r in bare]
    assert texts(llama, with_users) != before

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    handle = llama.language_model().model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        llama.run(with_users)
    handle.remove()
    assert texts(llama, bare) == before
    after = llama.language_model().model
    assert not any(module._forward_hooks for module in after.modules())
    assert state.keys() == after.state_dict().keys()
    assert all(state[name].equal(tensor) for name, tensor in after.state_dict().items())


@pytest.mark.parametrize("contrast", [None, Contrast(0.4, 0.05)])
def test_a_batch_that_does_not_fit_is_split_and_keeps_its_adapters(
    llama: HFEngine, files: list[str], contrast: Contrast | None
) -> None:
    requests = [
        replace(ask(text, i, SAMPLED, user_adapter=files[i % 3]), contrast=contrast) for i, text in enumerate(PROMPTS)
    ]
    whole = llama.run(requests).generations

    def check(_: Any, args: Any, kwargs: Any) -> None:
        given = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        if given.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    handle = llama.language_model().model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        assert llama.run(requests).generations == whole
    finally:
        handle.remove()


def test_ranks_and_layers_may_differ_within_a_batch(llama: HFEngine, files: list[str], tmp_path: Path) -> None:
    shape = LowRank(7, 3.5, ("k_proj", "q_proj"))
    bank.save_adapter(tmp_path / "other", strong(llama, 9, shape), shape.alpha, torch.float32)
    one, other = ask("hello", user_adapter=files[1]), ask("hello", user_adapter=str(tmp_path / "other"))
    models = merged(plain(llama), strong(llama, 1), 2.0), merged(plain(llama), strong(llama, 9, shape), 0.5)
    expected = [directly(model, llama, one) for model in models]
    assert texts(llama, [one, other]) == expected
    assert expected[0] != expected[1]


def test_a_file_is_a_peft_state(llama: HFEngine, files: list[str]) -> None:
    """peft itself loads it, under a config of the same shape."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(plain(llama), config)
    told = set_peft_model_state_dict(model, load_file(files[2]))
    assert not told.unexpected_keys
    request = ask("hello there", user_adapter=files[2])
    assert texts(llama, [request]) == [directly(model.merge_and_unload(), llama, request)]


def test_a_damaged_a_missing_and_another_models_file_are_told(llama: HFEngine, files: list[str], make: Make) -> None:
    with pytest.raises(UsageError, match="holds no user's adapter"):
        llama.run([ask("a", user_adapter=files[0] + "x")])
    data = Path(files[0]).read_bytes()
    for broken in (data[: len(data) // 2], b"", b"{}"):
        Path(files[0]).write_bytes(broken)
        with pytest.raises(UsageError, match="holds no user's adapter"):
            llama.run([ask("a", user_adapter=files[0])])
    with pytest.raises(UsageError, match="there is no linear layer"):
        make("gpt_neox").run([ask("a", user_adapter=files[1])])
    narrow = {"model.layers.0.self_attn.q_proj": (torch.zeros(1, 2, 7), torch.zeros(1, 32, 2))}
    with (
        pytest.raises(UsageError, match=r"does not fit the model: .* is 32 to 32, the adapter's 7 to 32"),
        bank.applied(llama.model, narrow),
    ):
        pass
    assert not any(module._forward_hooks for module in llama.model.modules())


def test_layers_that_there_are_not_are_told_with_those_there_are(llama: HFEngine, make: Make) -> None:
    with pytest.raises(UsageError, match=r"oppu.user_modules: this model has no layer called query; it has .*q_proj"):
        target_layers(llama.language_model(), ("q_proj", "query"), "oppu.user_modules")
    every = {name.rpartition(".")[2] for name in target_layers(llama.language_model(), ("all-linear",), "t")}
    assert every == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # not the head
    assert target_layers(make("phi3").language_model(), ("qkv_proj",), "t")


# -- contrast ---------------------------------------------------------------------------------------------------------


def slowly(own: Any, other: Any, engine: HFEngine, request: Request) -> str:
    """Both models read everything anew for each token; scores by the definition, in float64."""
    assert request.contrast is not None
    ids = list(engine.encode(request).ids)
    start, end = len(ids), engine.tokenizer.convert_tokens_to_ids("<|end|>")
    sampling = request.sampling
    for step in range(sampling.max_new_tokens):
        with torch.no_grad():
            p, q = (m(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy() for m in (own, other))
        scores = np.log(p) - request.contrast.weight * np.log(q)
        scores[p < request.contrast.plausibility * p.max()] = -np.inf
        row = torch.tensor(scores)[None].float()
        drawn = (
            draw(row, sampling.temperature, sampling.top_p, torch.tensor([request.seed]), step)
            if (sampling.temperature)
            else row.argmax(-1)
        )
        if int(drawn) == end:
            break
        ids.append(int(drawn))
    return str(engine.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("contrast", [Contrast(0.1, 0.1), Contrast(0.9, 0.02), Contrast(0.5, 0.0)])
def test_contrast_equals_a_loop_that_reads_everything_anew(
    llama: HFEngine, files: list[str], shared: str, sampling: Sampling, contrast: Contrast
) -> None:
    requests = [
        replace(ask(t, 3 * i, sampling, adapter=shared, user_adapter=files[i % 3]), contrast=contrast)
        for i, t in enumerate(PROMPTS)
    ]
    task = with_shared(llama, shared)
    own = [merged(with_shared(llama, shared), strong(llama, user), 2.0) for user in range(3)]
    expected = [slowly(own[i % 3], task, llama, request) for i, request in enumerate(requests)]
    assert texts(llama, requests) == expected
    assert expected != texts(llama, [replace(r, contrast=None) for r in requests])


def test_no_weight_and_no_cut_is_the_users_model_alone(llama: HFEngine, files: list[str]) -> None:
    for sampling in (GREEDY, SAMPLED):
        requests = [ask(t, i, sampling, user_adapter=files[i % 3]) for i, t in enumerate(PROMPTS)]
        same = [replace(r, contrast=Contrast(0.0, 0.0)) for r in requests]
        assert texts(llama, same) == texts(llama, requests)


@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.floats(0, 2),
    st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_scores_are_what_the_definition_says(
    seed: int, rows: int, weight: float, plausibility: float, impossible: bool
) -> None:
    noise = np.random.default_rng(seed)
    own, other = noise.normal(0, 3, (rows, 11)), noise.normal(0, 3, (rows, 11))
    if impossible:  # an end token that another processor has ruled out
        own[:, 4] = other[:, 4] = -np.inf
    found = contrasted(torch.tensor(own), torch.tensor(other), Contrast(weight, plausibility)).numpy()
    for row in range(rows):
        p, q = (np.exp(x[row]) / np.exp(x[row]).sum() for x in (own, other))
        for token in range(11):
            if abs(p[token] - plausibility * p.max()) < 1e-6 * p.max():
                continue  # rounding decides
            if p[token] == 0 or p[token] < plausibility * p.max():
                assert found[row, token] == -np.inf
            else:
                assert found[row, token] == pytest.approx(np.log(p[token]) - weight * np.log(q[token]), abs=1e-4)
    assert np.isfinite(found.max(-1)).all()


def test_contrasted_requests_have_batches_of_their_own_and_count_twice(llama: HFEngine, files: list[str]) -> None:
    engine = engine_of(Path(llama.folder), max_batch=6, batch_tokens=600)
    plainly = [ask(f"{i} " + "x" * i, user_adapter=files[i % 3]) for i in range(12)]
    requests = [replace(r, contrast=Contrast(0.1, 0.1)) if i % 2 else r for i, r in enumerate(plainly)]
    batches = engine.plan(requests)
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    for batch in batches:
        assert len({requests[i].contrast for i in batch}) == 1
        asked = [requests[i] for i in batch]
        prompts = [engine.encode(request) for request in asked]
        together = engine._rows(prompts, asked)
        rows = together * (2 if asked[0].contrast else 1)
        assert together == 1 or (rows * max(len(p.ids) + 12 for p in prompts) <= 600 and rows <= 6)
    whose = engine.plan(plainly)
    assert max(len({plainly[i].user_adapter for i in batch}) for batch in whose) == 3  # users share batches
