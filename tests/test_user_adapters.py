"""Adapters of single users: many in one batch, trained side by side, and the same as one alone."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_engine import ask, engine_of, lively_model, one_thread, texts

from bench.engines import bank
from bench.engines.contrast import contrasted
from bench.engines.hf import HFEngine
from bench.engines.sampling import draw
from bench.errors import UsageError
from bench.training import Row, TrainingConfig, target_ids
from bench.training import users as training
from bench.training.users import LowRank, UserTask, target_layers, train_users, user_adapters
from bench.types import Contrast, Message, Request, Sampling

__all__ = ["one_thread"]

Pair = tuple[torch.Tensor, torch.Tensor]
Make = Callable[[str], HFEngine]

WORDS = ("amber", "brisk", "cedar", "dusty")
PROMPTS = ("a", "hello there", "the sound is clear and the price is fair " * 3, "why not", "b" * 70)
SAMPLED = Sampling(0.8, 0.95, 14)
GREEDY = Sampling(0.0, 1.0, 12)
SHAPE = LowRank(4, 8.0, ("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Engines by family, each made once."""
    return functools.cache(lambda family: engine_of(lively_model(tmp_path_factory.mktemp(family), family)))


@pytest.fixture(scope="module")
def llama(make: Make) -> HFEngine:
    return make("llama")


def plain(engine: HFEngine) -> Any:
    """The model as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32).eval()


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


def merged(model: Any, adapter: Mapping[str, Pair], scale: float) -> Any:
    """The definition, W + scale * B A, put into the weights by hand."""
    with torch.no_grad():
        for name, (a, b) in adapter.items():
            model.get_submodule(name).weight += scale * b @ a
    return model


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
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("shared")
    get_peft_model(plain(llama), config).save_pretrained(str(folder))
    return str(folder)


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
    from peft import PeftModel

    requests = [ask(t, adapter=shared, user_adapter=f) for t, f in zip(PROMPTS, [*files, None], strict=False)]
    expected = []
    for user, request in enumerate(requests):
        below = PeftModel.from_pretrained(plain(llama), shared).merge_and_unload()
        model = merged(below, strong(llama, user) if request.user_adapter else {}, 2.0)
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
    from peft import PeftModel

    requests = [
        replace(ask(t, 3 * i, sampling, adapter=shared, user_adapter=files[i % 3]), contrast=contrast)
        for i, t in enumerate(PROMPTS)
    ]
    task = PeftModel.from_pretrained(plain(llama), shared).merge_and_unload()
    own = [
        merged(PeftModel.from_pretrained(plain(llama), shared).merge_and_unload(), strong(llama, user), 2.0)
        for user in range(3)
    ]
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
        rows = len(batch) * (2 if requests[batch[0]].contrast else 1)
        longest = max(len(engine.encode(requests[i]).ids) + 12 for i in batch)
        assert len(batch) == 1 or (rows * longest <= 600 and rows <= 6)
    whose = engine.plan(plainly)
    assert max(len({plainly[i].user_adapter for i in batch}) for batch in whose) == 3  # users share batches


# -- training ---------------------------------------------------------------------------------------------------------


def tasks_of(engine: HFEngine, sizes: Sequence[int], seed: int = 0) -> list[UserTask]:
    """Users with so many rows of random lengths each."""
    lm = engine.language_model()
    stream = random.Random(seed)
    made = []
    for user, size in enumerate(sizes):
        rows = []
        for index in range(size):
            words = " ".join(stream.choice(WORDS) for _ in range(stream.randint(1, 9)))
            prompt = engine.encode(ask(f"of {user}: {words}"))
            rows.append(Row(index, prompt, target_ids(lm, words[::-1] * stream.randint(1, 2), 40)))
        made.append(UserTask(f"u{user}", tuple(rows), 1000 * seed + user))
    return made


def alone_by_peft(
    engine: HFEngine, task: UserTask, shape: LowRank, config: TrainingConfig, below: str | None
) -> dict[str, torch.Tensor]:
    """One user alone: peft's layers, torch's AdamW and clipping, a row at a time with all its logits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = plain(engine)
    if below:
        model = PeftModel.from_pretrained(model, below).merge_and_unload()
    model = get_peft_model(
        model, LoraConfig(r=shape.r, lora_alpha=shape.alpha, target_modules=list(shape.modules), lora_dropout=0.0)
    ).eval()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    noise = torch.Generator().manual_seed(task.seed)
    with torch.no_grad():
        for name, parameter in named.items():
            if "lora_A" in name:
                parameter.copy_(torch.rand(parameter.numel(), generator=noise).view_as(parameter) * 2 - 1)
                parameter.mul_(parameter.shape[1] ** -0.5)
    optimizer = torch.optim.AdamW(named.values(), lr=config.lr, weight_decay=config.weight_decay)
    shuffler = random.Random(task.seed)
    total = config.epochs * -(-len(task.rows) // config.batch_size)
    step = 0
    for _ in range(config.epochs):
        rows = list(task.rows)
        shuffler.shuffle(rows)
        for first in range(0, len(rows), config.batch_size):
            batch = rows[first : first + config.batch_size]
            rising = max(1, round(config.warmup * total))
            factor = (step + 1) / rising if step < rising else (total - step) / max(1, total - rising + 1)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
            optimizer.zero_grad()
            loss: Any = 0
            for row in batch:
                ids = torch.tensor([row.prompt.ids + row.target])
                logits = model(ids).logits[0, len(row.prompt.ids) - 1 : -1]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(row.target), reduction="sum")
            (loss / sum(len(row.target) for row in batch)).backward()
            torch.nn.utils.clip_grad_norm_(named.values(), config.max_grad_norm)
            optimizer.step()
            step += 1
    return {name.replace(".default", ""): p.detach() for name, p in named.items()}


def test_drawing_at_once_and_one_by_one_are_the_same_numbers() -> None:
    """What the reference above rests on: uniform in [-1, 1) is twice uniform in [0, 1) less one."""
    one, other = (torch.Generator().manual_seed(4) for _ in range(2))
    for size in (12, 700):
        torch.testing.assert_close(
            torch.empty(size).uniform_(-1, 1, generator=one), torch.rand(size, generator=other) * 2 - 1
        )


@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0])
def test_users_trained_together_get_what_peft_and_torch_give_one_alone(
    llama: HFEngine, shared: str, with_shared: bool, max_grad_norm: float
) -> None:
    below = shared if with_shared else None
    tasks = tasks_of(llama, [7, 1, 3, 4])
    shape = LowRank(3, 6.0, ("q_proj", "v_proj"))
    config = TrainingConfig(
        epochs=2, lr=2e-3, batch_size=2, weight_decay=0.1, warmup=0.3, max_grad_norm=max_grad_norm, batch_tokens=300
    )
    found = train_users(llama.language_model(below), tasks, shape, config)
    assert not any(p.requires_grad for p in llama.language_model(below).model.parameters())
    for task, adapter in zip(tasks, found, strict=True):
        expected = alone_by_peft(llama, task, shape, config, below)
        assert len(expected) == 2 * len(adapter)
        for name, (a, b) in adapter.items():
            for end, ours in (("A", a), ("B", b)):
                theirs = expected[f"base_model.model.{name}.lora_{end}.weight"]
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert max(float(b.abs().max()) for _, b in adapter.values()) > 1e-3  # far from where it started


def distance(left: Mapping[str, Pair], right: Mapping[str, Pair]) -> float:
    return max(float((x - y).abs().max()) for name in left for x, y in zip(left[name], right[name], strict=True))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(1, 4), st.integers(100, 900), st.randoms())
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_is_trained_together_changes_no_adapter(
    llama: HFEngine, sizes: list[int], batch_size: int, batch_tokens: int, stream: random.Random
) -> None:
    config = TrainingConfig(epochs=2, lr=1e-3, batch_size=batch_size, batch_tokens=batch_tokens, max_grad_norm=0.3)
    tasks, lm = tasks_of(llama, sizes), llama.language_model()
    together = train_users(lm, tasks, SHAPE, config)
    one = stream.randrange(len(tasks))
    assert distance(train_users(lm, [tasks[one]], SHAPE, config)[0], together[one]) < 1e-5
    assert distance(together[0], together[1]) > 1e-3
    shuffled = stream.sample(range(len(tasks)), len(tasks))
    again = train_users(lm, [tasks[i] for i in shuffled], SHAPE, config)
    assert all(distance(again[place], together[i]) == 0 for place, i in enumerate(shuffled))


def test_gradient_checkpointing_changes_nothing(llama: HFEngine) -> None:
    tasks, config = tasks_of(llama, [3, 2]), TrainingConfig(epochs=1, batch_size=2, lr=1e-3)
    usual = train_users(llama.language_model(), tasks, SHAPE, config)
    again = config.model_copy(update={"gradient_checkpointing": True})
    found = train_users(llama.language_model(), tasks, SHAPE, again)
    assert max(distance(x, y) for x, y in zip(usual, found, strict=True)) < 1e-6


def test_a_loss_that_is_no_number_is_told(llama: HFEngine) -> None:
    config = TrainingConfig(epochs=4, lr=1e30, batch_size=1, max_grad_norm=1e30)
    with pytest.raises(UsageError, match=r"oppu: a user's loss is .*; lower oppu.user_lr"):
        train_users(llama.language_model(), tasks_of(llama, [3, 3]), SHAPE, config, "oppu")


# -- keeping ----------------------------------------------------------------------------------------------------------

CONFIG = TrainingConfig(epochs=1, lr=1e-3, batch_size=2)


class Killed(BaseException):
    """What a test puts in the place of a kill."""


@pytest.fixture
def keep(llama: HFEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains into a folder, two users at a time, and notes whom; is killed in the middle of the `kill`-th group."""
    trained: list[list[str]] = []

    def go(folder: Path, tasks: Sequence[UserTask], kill: int = 0, **changes: Any) -> dict[str, bytes]:
        trained.clear()
        save = bank.save_adapter

        def counted(lm: Any, group: Sequence[UserTask], *more: Any) -> Any:
            trained.append([task.name for task in group])
            return train_users(lm, group, *more)

        def fails(*arguments: Any) -> None:
            save(*arguments)
            if kill and len(trained) == kill:
                raise Killed

        given: dict[str, Any] = {"shape": SHAPE, "config": CONFIG, "together": 2, "below": {"model": "a"}, **changes}
        with monkeypatch.context() as patch:
            patch.setattr(training, "train_users", counted)
            patch.setattr(bank, "save_adapter", fails)
            found = user_adapters(llama.language_model(), tasks, folder=folder, **given)
        assert found.seconds > 0
        assert found.rows == sum(len(task.rows) for task in tasks) * given["config"].epochs
        return {name: path.read_bytes() for name, path in found.paths.items()}

    go.trained = trained  # type: ignore[attr-defined]
    return go


def test_what_a_kill_leaves_is_gone_on_with_and_ends_with_the_same_bytes(
    llama: HFEngine, keep: Any, tmp_path: Path
) -> None:
    tasks = tasks_of(llama, [5, 1, 3, 4, 2])
    whole = keep(tmp_path / "whole", tasks)
    assert keep.trained == [["u0", "u2"], ["u3", "u1"], ["u4"]]  # most steps first: few wait for others
    assert set(whole) == {task.name for task in tasks}
    for kill in (1, 2, 3):
        with pytest.raises(Killed):
            keep(tmp_path / str(kill), tasks, kill)
        assert keep(tmp_path / str(kill), tasks[::-1]) == whole
        assert len(keep.trained) == 4 - kill  # who was done is not trained again
    assert keep(tmp_path / "whole", tasks) == whole
    assert keep.trained == []


def test_whatever_an_adapter_depends_on_names_its_folder(llama: HFEngine, keep: Any, tmp_path: Path) -> None:
    tasks = tasks_of(llama, [2, 2])
    keep(tmp_path, tasks)
    shorter = [replace(tasks[0], rows=tasks[0].rows[:1]), tasks[1]]
    keep(tmp_path, tasks, together=5)
    assert keep.trained == []  # the same group
    changes: list[tuple[Sequence[UserTask], dict[str, Any]]] = [
        (shorter, {}),
        ([replace(tasks[0], seed=99), tasks[1]], {}),
        ([replace(tasks[0], name="other"), tasks[1]], {}),
        (tasks[:1], {}),
        (tasks, {"shape": replace(SHAPE, r=2)}),
        (tasks, {"shape": replace(SHAPE, alpha=1.0)}),
        (tasks, {"config": CONFIG.model_copy(update={"lr": 2e-3})}),
        (tasks, {"below": {"model": "b"}}),
    ]
    for changed, more in changes:
        keep(tmp_path, changed, **more)
        assert len(keep.trained) == 1
    assert len(list(tmp_path.glob("users-*"))) == 1 + len(changes)


def test_two_processes_do_not_train_into_one_folder(llama: HFEngine, keep: Any, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(str(tmp_path / ".lock")), pytest.raises(UsageError, match="another process is training"):
        keep(tmp_path, tasks_of(llama, [1]))


def test_files_are_of_the_models_type_and_lie_beside_what_they_took(llama: HFEngine, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    engine = engine_of(Path(llama.folder), dtype="bfloat16")
    tasks = tasks_of(engine, [2, 1])
    found = user_adapters(engine.language_model(), tasks, SHAPE, CONFIG, 2, {}, tmp_path)
    (folder,) = tmp_path.glob("users-*")
    told = json.loads((folder / "users.json").read_text())
    assert (told["users"], told["rows"]) == (2, 3)
    assert told["tokens"] == sum(row.length for task in tasks for row in task.rows)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert {tensor.dtype for tensor in load_file(found.paths["u0"]).values()} == {torch.bfloat16}
    requests = [
        Request(n, "g", (Message("user", "a"),), GREEDY, 0, user_adapter=str(p)) for n, p in found.paths.items()
    ]
    assert all(generation.error is None for generation in engine.run(requests).generations)
