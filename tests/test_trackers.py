"""Trackers: checked before long work, told the same numbers as the journal, and never a danger to a fit."""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE, call
from test_training_loop import Table, rows_of
from test_training_resume import Noisy, Stopped
from tiny_engine import engine_of, lively_model, one_thread

from bench import trackers
from bench.engines.base import LanguageModel
from bench.errors import MissingPackage, UnknownName, UsageError
from bench.trackers import Careful, Tracker, TrackerName, check, hint, open_tracker
from bench.training import TrainingConfig, train
from bench.training.log import JOURNAL

__all__ = ["one_thread"]

SECRET = "hunter2-is-no-password"
REAL = [name for name in TrackerName if name is not TrackerName.NONE]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return engine_of(lively_model(tmp_path_factory.mktemp("llama"))).language_model()


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"epochs": 2, "lr": 0.1, "batch_size": 2, "checkpoint_seconds": 0, **changes})


# -- before anything loads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_tracker_that_is_not_installed_is_told_with_the_command_that_helps(
    name: TrackerName, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(trackers, "version", missing)
    with pytest.raises(MissingPackage):
        check(name)
    code, out, err = call([*FAKE, "--methods", "nonperso", "--out", tmp_path / "runs", "--tracker", name], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--tracker {name} needs the package '{name}'" in err
    assert f"pip install 'dep-bench[{name}]'" in err
    assert not (tmp_path / "runs").exists()


def test_every_tracker_is_an_extra_of_the_package() -> None:
    import tomllib

    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in REAL:
        assert any(line.startswith(f"{name}>=") for line in extras[name])


def test_an_unknown_tracker_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownName, match="did you mean 'wandb'"):
        check("wandbb")
    code, _, err = call(["run", "--methods", "nonperso", "--tracker", "wandbb"], capsys)
    assert code == 2
    assert all(name in err for name in TrackerName)


def test_without_a_tracker_nothing_is_needed_and_nothing_happens(tmp_path: Path) -> None:
    assert check("none") is TrackerName.NONE
    assert hint("none", tmp_path) == ""
    watcher = open_tracker("none", None, {})
    watcher.log({"a": 1.0}, 1)
    watcher.close()
    assert not list(tmp_path.iterdir())


def test_which_tracker_looks_on_makes_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*FAKE, "--methods", "nonperso", "--limit", "3", "--out", str(tmp_path / "runs")]
    assert call([*arguments, "--tracker", "none"], capsys)[0] == 0
    (plan,) = tmp_path.glob("runs/*/nonperso/*/plan.json")
    assert "tracker" not in plan.read_text()


# -- what they are told ---------------------------------------------------------------------------------------------


class Told(Tracker):
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_is_told_what_the_journal_holds(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    opened: list[tuple[Any, ...]] = []

    def started(*given: Any) -> Tracker:
        opened.append(given)
        return told

    monkeypatch.setattr(trackers, "_started", started)
    monkeypatch.setattr(trackers, "version", lambda name: "1")
    folder = tmp_path / "planted" / "lora" / "fit-12.work"
    train(llama, rows_of(llama, [2, 1, 1]), [], Table(2), config(), 7, work=folder, tracker="wandb")
    ((name, where, run, about, steps),) = opened
    assert (name, where, run, steps) == (TrackerName.WANDB, folder, "planted/lora/fit-12", 0)
    assert about["lr"] == 0.1
    assert (about["rows"], about["parameters"], about["seed"]) == (3, 64, 7)
    rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    expected, step = [], 0
    for row in rows:
        part = "step" if "step" in row else "epoch"
        step = row.get("step", step)
        numbers = {f"{part}/{key}": value for key, value in row.items() if key != part and value is not None}
        expected.append((step, numbers))
    assert told.lines == expected
    assert [step for step, _ in told.lines] == [1, 2, 2, 3, 4, 4]
    assert "epoch/dev_loss" not in told.lines[2][1]  # no dev rows, no number
    assert told.closed == 1


def test_a_tracker_that_breaks_down_costs_no_fit(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Told):
        def log(self, values: Mapping[str, float], step: int) -> None:
            super().log(values, step)
            raise OSError("no space left\non device")

    broken = Broken()
    monkeypatch.setattr(trackers, "_started", lambda *_: broken)
    monkeypatch.setattr(trackers, "version", lambda name: "1")
    plain = train(llama, rows_of(llama, [2, 1, 1]), [], Table(2), config(), 7)
    log = train(llama, rows_of(llama, [2, 1, 1]), [], Table(2), config(), 7, work=tmp_path, tracker="trackio")
    assert log.steps == plain.steps
    assert (len(broken.lines), broken.closed) == (1, 0)
    err = capsys.readouterr().err
    assert err.count("--tracker trackio failed and is left out from here on: no space left") == 1


def test_a_tracker_that_cannot_start_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tracker:
        raise RuntimeError("api_key not configured\nsee https://example.org")

    monkeypatch.setattr(trackers, "_started", fails)
    monkeypatch.setattr(trackers, "version", lambda name: "1")
    with pytest.raises(UsageError, match="--tracker wandb cannot start: api_key not configured; choose") as error:
        open_tracker("wandb", tmp_path, {})
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="needs a folder"):
        open_tracker("wandb", None, {})


def test_numbers_that_are_not_finite_are_left_out() -> None:
    told = Told()
    watcher = Careful(told, "x")
    watcher.log({"a": 1, "b": math.nan, "c": math.inf}, 3)
    watcher.log({"b": math.nan}, 4)
    assert told.lines == [(3, {"a": 1.0})]


# -- the real ones --------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains under a real tracker, stopped once on the way; gives the folder. Any connection out of here fails."""
    monkeypatch.setenv("DEP_BENCH_TEST_TOKEN", SECRET)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)

    def go(name: str) -> Path:
        folder = tmp_path / "planted" / "lora" / "fit-12.work"
        rows = rows_of(llama, [2, 1, 1])
        for stop in (3, None):
            learner = Noisy()
            learner.calls_left = stop
            try:
                train(llama, rows, rows_of(llama, [1]), learner, config(), 7, work=folder, tracker=name)
            except Stopped:
                assert stop is not None
        return folder

    return go


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    found = [(row["step"], row["loss"]) for row in rows if "step" in row]
    assert [step for step, _ in found] == [1, 2, 3, 4]
    return found


def assert_keeps_secrets(*folders: Path) -> None:
    held = b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in held
    assert b"DEP_BENCH_TEST_TOKEN" not in held
    assert len(socket.gethostname()) < 6 or socket.gethostname().encode() not in held
    assert " ".join(sys.argv[:2]).encode() not in held


def test_tensorboard_shows_each_step_once(watched: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = watched("tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert found == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses(folder)]
    assert {"step/lr", "step/grad_norm", "epoch/train_loss", "epoch/dev_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("epoch/dev_loss")] == [2, 4]
    assert_keeps_secrets(folder / "tensorboard")


def test_trackio_keeps_every_step_in_its_own_database(
    watched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    folder = watched("trackio")
    assert capsys.readouterr().out == ""  # standard output is for the leaderboard
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    told = [(step, json.loads(numbers)) for step, numbers in rows]
    found = {step: numbers["step/loss"] for step, numbers in told if "step/loss" in numbers}
    assert found == {step: pytest.approx(loss) for step, loss in losses(folder)}
    assert_keeps_secrets(tmp_path / "trackio")


WANDB = """
import sys; from pathlib import Path
from bench.trackers import open_tracker
watcher = open_tracker("wandb", Path(sys.argv[1]), {"lr": 0.25})
for step in range(1, 4):
    watcher.log({"step/loss": 1 / step}, step)
watcher.close()
"""


def test_wandb_writes_offline_into_the_folder_and_nothing_of_the_machine(tmp_path: Path) -> None:
    """In a process of its own, as wandb starts one."""
    pytest.importorskip("wandb")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment = {**kept, "DEP_BENCH_TEST_TOKEN": SECRET, "https_proxy": "http://127.0.0.1:9"}
    folder = tmp_path / "planted" / "lora" / "fit-12.work"
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(folder)], capture_output=True, text=True, env=environment, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    (run,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    data = run.read_bytes()
    assert b"planted/lora/fit-12" in data
    assert b"step/loss" in data
    assert b"0.25" in data
    assert_keeps_secrets(folder)
