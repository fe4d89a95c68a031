"""Fits with a training loop: where they keep what they go on from, what stays, and when they start over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from method_world import context
from tiny_engine import engine_of, lively_model, one_thread

from bench import trackers
from bench.data.split import Dataset
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.fits import FIT_FILE, Fit, fit_or_load
from bench.store import Existing
from bench.testing import tiny_dataset
from bench.training.checkpoint import CHECKPOINT, Checkpoint, Saved
from bench.training.log import JOURNAL
from methods.lora import Lora, LoraConfig

__all__ = ["one_thread"]

KEY = {"method": "lora"}
ADAPTER = "adapter_model.safetensors"


class Killed(BaseException):
    """What a test puts in the place of a kill."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset().limited(3, 4, 0)


Fitting = Callable[..., Fit]


@pytest.fixture
def fit(engine: HFEngine, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Fitting:
    """Fits below a folder; is killed right after the `kill`-th state is kept. Notes what was said."""

    def go(out: Path, existing: Existing = Existing.RESUME, kill: int = 0, **ctx: Any) -> Fit:
        kept, save = 0, Checkpoint.save

        def counted(self: Checkpoint, saved: Saved) -> None:
            nonlocal kept
            save(self, saved)
            kept += 1
            if kept == kill:
                raise Killed

        method = Lora(LoraConfig(epochs=2, batch_size=2, r=2, n_history=1, checkpoint_seconds=0))
        world = replace(context(dataset.population, engine, task=dataset.task), **ctx)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", counted)
            return fit_or_load(method, dataset, world, KEY, out, existing, said.append)

    said: list[str] = []
    go.said = said  # type: ignore[attr-defined]
    return go


def work_of(out: Path) -> list[Path]:
    return list(out.glob("planted/lora/*.work"))


def told(fit: Fit) -> dict[str, Any]:
    return {key: value for key, value in fit.info.items() if key in ("rows", "tokens", "log", "best_epoch", "epochs")}


def steps(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return [row["step"] for row in rows if "step" in row]


def test_a_killed_fit_goes_on_and_leaves_nothing_but_the_fit(fit: Any, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "killed", kill=4)
    (work,) = work_of(tmp_path / "killed")
    assert (work / CHECKPOINT).exists()
    assert steps(work) == [1, 2, 3]
    assert not list(tmp_path.glob(f"killed/planted/lora/*/{FIT_FILE}"))
    fit.said.clear()
    after = fit(tmp_path / "killed")
    assert any("going on from what it kept" in line for line in fit.said)
    assert told(after) == told(whole)
    assert (after.folder / ADAPTER).read_bytes() == (whole.folder / ADAPTER).read_bytes()
    assert steps(after.folder) == steps(whole.folder) == [1, 2, 3, 4]
    assert not work_of(tmp_path / "killed")
    assert not list(after.folder.glob("*checkpoint*"))
    assert after.info["seconds"] > 0


@pytest.mark.parametrize("existing", [Existing.OVERWRITE, Existing.REUSE])
def test_overwrite_and_reuse_start_over(fit: Any, tmp_path: Path, existing: Existing) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, kill=4)
    with pytest.raises(Killed):
        fit(tmp_path, existing, kill=1)
    (work,) = work_of(tmp_path)
    assert steps(work) == [1]
    assert not any("going on" in line for line in fit.said)


def test_what_a_kill_left_beside_a_saved_fit_is_cleared(fit: Any, tmp_path: Path) -> None:
    folder = fit(tmp_path).folder
    work = folder.with_name(f"{folder.name}.work")
    work.mkdir()
    (work / CHECKPOINT).write_bytes(b"old")
    assert fit(tmp_path).folder == folder
    assert not work.exists()


def test_an_empty_work_folder_is_no_unfinished_fit(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise UsageError("no such layer")

    with monkeypatch.context() as patch:
        patch.setattr(Lora, "fit", refuses)
        with pytest.raises(UsageError):
            fit(tmp_path)
    fit(tmp_path)
    assert not any("going on" in line for line in fit.said)


def test_a_trackers_files_stay_with_the_fit(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Files(trackers.Tracker):
        def __init__(self, folder: Path) -> None:
            self.path = folder / "tensorboard" / "events"
            self.path.parent.mkdir(exist_ok=True)

        def log(self, values: Any, step: int) -> None:
            self.path.write_text(str(step))

        def close(self) -> None: ...

    monkeypatch.setattr(trackers, "version", lambda name: "1")
    monkeypatch.setattr(trackers, "_started", lambda name, folder, *_: Files(folder))
    folder = fit(tmp_path, tracker="tensorboard").folder
    assert (folder / "tensorboard" / "events").read_text() == "4"
    assert any(line == f"watch it with: tensorboard --logdir {folder.parent}" for line in fit.said)
