"""Training that is stopped, at any step or in the middle of writing, ends as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from method_world import World, context, world
from test_training_loop import Table, rows_of
from test_training_prefix import row
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines.base import LanguageModel
from bench.engines.hf import HFEngine
from bench.provenance import cores
from bench.training import Row, TrainingConfig, TrainingLog, train
from bench.training.checkpoint import CHECKPOINT, Checkpoint, Saved
from bench.training.log import JOURNAL
from methods.lora import Lora, LoraConfig

__all__ = ["one_thread"]

CONFIG = TrainingConfig(epochs=3, lr=0.1, batch_size=2, warmup=0.2, checkpoint_seconds=0, weight_decay=0.1)
STEPS = 9
"""Five rows in three steps, three times."""


class Stopped(BaseException):
    """What a test puts in the place of a kill."""


class Noisy(Table):
    """Vectors under dropout, so that training draws random numbers, and a count that only its state knows."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(2, weight=0.1, seed=seed)
        self.seen = torch.zeros(1)
        self.calls_left: int | None = None

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Stopped
        vectors, auxiliary = super().soft(rows, training)
        self.seen += len(rows) * training
        if vectors is None or not training:
            return vectors, auxiliary
        return torch.nn.functional.dropout(vectors, 0.3), auxiliary

    def state(self) -> dict[str, torch.Tensor]:
        return {**super().state(), "seen": self.seen}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        super().restore(state)
        self.seen = state["seen"].clone()


@dataclass(frozen=True)
class Outcome:
    """All that must come out the same."""

    table: torch.Tensor
    seen: float
    log: dict[str, Any]
    lines: list[dict[str, Any]]


Training = Callable[..., Outcome]


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "seconds" not in key}


def journal(folder: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (folder / JOURNAL).read_text().splitlines()]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return engine_of(lively_model(tmp_path_factory.mktemp("llama"))).language_model()


@pytest.fixture(scope="module")
def go(llama: LanguageModel) -> Training:
    """Trains in a folder; stops at the `stop`-th time that it asks for vectors."""
    rows, dev = rows_of(llama, [2, 1, 0, 2, 1]), rows_of(llama, [1, 2], seed=5)

    def start(
        folder: Path | None, stop: int | None = None, config: TrainingConfig = CONFIG, seed: int = 3, **changes: Any
    ) -> Outcome:
        learner = Noisy(changes.get("start", 0))
        learner.calls_left = stop
        torch.manual_seed(11)
        log = train(llama, changes.get("rows", rows), changes.get("dev", dev), learner, config, seed, work=folder)
        told = timeless(log.to_json())
        return Outcome(learner.table.detach().clone(), float(learner.seen), told, journal(folder) if folder else [])

    return start


@pytest.fixture(scope="module")
def whole(go: Training, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return go(tmp_path_factory.mktemp("whole"))


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert torch.equal(found.table, expected.table)
    assert found.seen == expected.seen
    assert found.log == expected.log
    assert found.lines == expected.lines


def stops(go: Training, folder: Path, **changes: Any) -> Iterator[int]:
    """Stops later and later, each time in a fresh folder, until training comes to its end."""
    number = 0
    while True:
        here = folder / str(number)
        try:
            go(here, stop=number, **changes)
        except Stopped:
            yield number
            number += 1
        else:
            return


# -- the loop -------------------------------------------------------------------------------------------------------


def test_keeping_the_state_changes_nothing(go: Training, whole: Outcome) -> None:
    bare = go(None)
    assert torch.equal(bare.table, whole.table)
    assert bare.log == whole.log
    assert [line["step"] for line in whole.lines if "step" in line] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in whole.lines if "step" not in line] == [1, 2, 3]


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_stopped_anywhere_it_ends_the_same(go: Training, whole: Outcome, tmp_path: Path, seconds: float) -> None:
    """With a state after each step, and with one at the end of each epoch alone."""
    config = CONFIG.model_copy(update={"checkpoint_seconds": seconds})
    count = 0
    for number in stops(go, tmp_path, config=config):
        assert_same(go(tmp_path / str(number), config=config), whole)
        count += 1
    assert count == STEPS + 3  # the dev rows of each epoch ask once, too


def test_stopped_again_and_again_it_ends_the_same(go: Training, whole: Outcome, tmp_path: Path) -> None:
    stopped = 0
    while True:
        try:
            outcome = go(tmp_path, stop=2)  # one step at a time: the second one is always cut short
        except Stopped:
            stopped += 1
            assert stopped < 40
        else:
            break
    assert stopped >= 5
    assert_same(outcome, whole)


def test_what_was_done_is_not_done_again(go: Training, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, stop=6)
    with pytest.raises(Stopped):
        go(tmp_path, stop=0)
    assert len([line for line in journal(tmp_path) if "step" in line]) == 5
    assert len([line for line in journal(tmp_path) if "step" not in line]) == 1
    done = go(tmp_path)
    again = go(tmp_path, stop=0)  # nothing is left to ask for
    assert_same(again, done)


def test_the_seconds_of_earlier_processes_count(go: Training, llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, stop=6)
    rows, dev = rows_of(llama, [2, 1, 0, 2, 1]), rows_of(llama, [1, 2], seed=5)
    log = train(llama, rows, dev, Noisy(), CONFIG, 3, work=tmp_path)
    assert 0 < log.seconds_before < log.seconds
    (cost,) = log.costs
    assert cost.stage == "fit"
    assert 0.5 * log.seconds_before < cost.seconds <= log.seconds_before + 0.1  # without building the optimizer
    assert cost.core_seconds == pytest.approx(cost.seconds * (cores() or 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"start": 1},
        {"config": CONFIG.model_copy(update={"lr": 0.2})},
        {"rows": "others"},
        {"dev": []},
    ],
)
def test_the_state_of_another_task_is_no_start(
    go: Training, llama: LanguageModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if changes.get("rows"):
        changes = {"rows": rows_of(llama, [2, 1, 0, 2, 1], seed=9)}
    with pytest.raises(Stopped):
        go(tmp_path / "used", stop=6)
    assert_same(go(tmp_path / "used", **changes), go(tmp_path / "fresh", **changes))


def test_how_often_the_state_is_kept_makes_no_other_task(go: Training, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, stop=6)
    with pytest.raises(Stopped):
        go(tmp_path, stop=0, config=CONFIG.model_copy(update={"checkpoint_seconds": 5}))
    assert len(journal(tmp_path)) == 6


@pytest.mark.parametrize("left", [b"", b"x" * 50, None])
def test_a_damaged_state_counts_as_none(go: Training, whole: Outcome, tmp_path: Path, left: bytes | None) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, stop=6)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-7] if left is None else left)
    assert_same(go(tmp_path), whole)


def test_half_written_files_are_never_taken_up(go: Training, whole: Outcome, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        go(tmp_path, stop=6)
    state = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).with_suffix(".part").write_bytes(state[: len(state) // 2])
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"epoch":2,"step":6,"loss":3.')
    assert_same(go(tmp_path), whole)
    assert not (tmp_path / CHECKPOINT).with_suffix(".part").exists()


def test_a_state_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    tensors = {
        "a": torch.tensor(3.0),
        "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3).T,
        "c": torch.zeros(0, 4),
        "d": torch.get_rng_state(),
    }
    about = {"list": [0.1, float("nan"), float("inf")], "text": "ä", "none": None}
    Checkpoint(tmp_path, "one").save(Saved(tensors, about))
    found = Checkpoint(tmp_path, "one").load()
    assert found is not None
    assert tensors.keys() == found.tensors.keys()
    assert all(torch.equal(tensors[name], found.tensors[name]) for name in tensors)
    assert all(tensors[name].dtype == found.tensors[name].dtype for name in tensors)
    assert repr(found.about) == repr(dict(sorted(about.items())))
    assert Checkpoint(tmp_path, "two").load() is None


def test_a_kept_prefix_is_computed_again_to_the_same_bits(llama: LanguageModel, tmp_path: Path) -> None:
    """What stands before the slots is kept in memory alone, and is gone after a kill."""
    rows = [row(i, n) for i, n in enumerate((70, 0, 90, 130, 70))]

    def start(folder: Path, stop: int | None = None) -> tuple[torch.Tensor, list[float]]:
        learner = Constant(4)
        learner.calls_left = stop
        torch.manual_seed(11)
        log = train(llama, rows, [row(9, 100)], learner, CONFIG, 3, work=folder)
        return learner.table.detach().clone(), log.steps

    class Constant(Noisy):
        constant_prefix = True

        def __init__(self, size: int) -> None:
            super().__init__()
            self.table = Table(size).table

    table, steps = start(tmp_path / "whole")
    for number in range(STEPS + 3):
        with pytest.raises(Stopped):
            start(tmp_path / str(number), number)
        again, found = start(tmp_path / str(number))
        assert torch.equal(again, table)
        assert found == steps


# -- lora -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


def lora(of: World, engine: HFEngine, folder: Path, monkeypatch: pytest.MonkeyPatch | None, stop: int = 0) -> Any:
    """Adapter file, log and journal of a fit; stops right after its `stop`-th state is kept."""
    kept, save = 0, Checkpoint.save

    def counted(self: Checkpoint, saved: Saved) -> None:
        nonlocal kept
        save(self, saved)
        kept += 1
        if kept == stop:
            raise Stopped

    method = Lora(LoraConfig(epochs=2, batch_size=2, r=2, lr=0.05, dropout=0.2, checkpoint_seconds=0, n_history=2))
    folder.mkdir(exist_ok=True)
    if monkeypatch is not None:
        monkeypatch.setattr(Checkpoint, "save", counted)
    method.fit(of.train, of.dev, context(of.population, engine, work=folder))
    assert isinstance(method.log, TrainingLog)
    (folder / "out").mkdir()
    method.save(folder / "out")
    files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    return files, timeless(method.log.to_json()), journal(folder)


def test_an_adapter_under_dropout_comes_out_byte_for_byte(
    engine: HFEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = world(4)
    expected = lora(of, engine, tmp_path / "whole", None)
    for number in range(1, 4 + 2 + 1):  # four steps, two epochs
        with pytest.raises(Stopped), monkeypatch.context() as patch:
            lora(of, engine, tmp_path / str(number), patch, number)
        assert lora(of, engine, tmp_path / str(number), None) == expected, number
