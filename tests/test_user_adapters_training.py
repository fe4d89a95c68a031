"""Users' adapters trained side by side: each as peft and torch give it alone, and kept through kills."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_world import SHAPE, Pair, plain, shared_adapter, with_shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_engine import ask, engine_of, lively_model, one_thread

from bench.engines import bank
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.training import Row, TrainingConfig, target_ids
from bench.training import users as training
from bench.training.users import LowRank, UserTask, train_users, user_adapters

__all__ = ["one_thread"]

WORDS = ("amber", "brisk", "cedar", "dusty")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def shared(llama: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A peft adapter for all rows."""
    return shared_adapter(llama, tmp_path_factory.mktemp("shared"))


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
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        with_shared(engine, below) if below else plain(engine),
        LoraConfig(r=shape.r, lora_alpha=shape.alpha, target_modules=list(shape.modules), lora_dropout=0.0),
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


@pytest.mark.parametrize("on_top", [False, True])
@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0])
def test_users_trained_together_get_what_peft_and_torch_give_one_alone(
    llama: HFEngine, shared: str, on_top: bool, max_grad_norm: float
) -> None:
    below = shared if on_top else None
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
    requests = [ask(name, user_adapter=str(path)) for name, path in found.paths.items()]
    assert all(generation.error is None for generation in engine.run(requests).generations)
