"""Killed at any moment and given again, a command ends with the very records of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE

SERVER = Path(__file__).with_name("kill_server.py")
STORED = ("records.jsonl", "scores.jsonl", "scores.json")
METHODS = ("--methods", "nonperso,oracle", "--limit", "6")
COMMAND = [*FAKE, *METHODS, "--out", "{out}", "--set", "fake.max_batch=2"]


def serve(jobs: Sequence[dict[str, Any]], cache: Path | None = None) -> list[Any]:
    """What became of the jobs."""
    env = {**os.environ, **({"DEP_BENCH_CACHE": str(cache)} if cache else {})}
    command = [sys.executable, str(SERVER), json.dumps({"jobs": jobs})]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


def contents(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on what happened on the way."""
    return {str(path.relative_to(out)): path.read_bytes() for name in STORED for path in out.rglob(name)}


def left_behind(out: Path) -> list[str]:
    """Files that belong to no run and no fit."""
    return [path.name for path in out.rglob("*") if path.name.endswith(".part") or ".json." in path.name]


@dataclass(frozen=True)
class Fates:
    """A command run undisturbed, and killed in many ways and given again."""

    folder: Path
    whole: dict[str, bytes]
    appends: dict[str, Any]
    events: dict[str, Any]
    delays: list[int]
    overwrites: list[int]


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Fates:
    """All of it in one server process, which imports the libraries once."""
    folder, stream = tmp_path_factory.mktemp("fates"), random.Random(0)

    def job(name: str, *options: str, **more: Any) -> dict[str, Any]:
        return {"args": [*COMMAND, *options], "out": str(folder / name), **more}

    late = [job("late", slow=0.02, delay=stream.uniform(0.0, 0.2), marker="generating") for _ in range(6)]
    over = [job("over", "--existing", "overwrite", event=number) for number in range(3, 40, 6)]
    first, appends, events, *codes = serve(
        [
            job("whole"),
            job("append", sweep="append", step=1),
            job("event", sweep="event", step=7),
            *late,
            job("late"),
            job("over"),
            *over,
            job("over"),
        ]
    )
    assert first == 0
    delays, overwrites = codes[: len(late) + 1], codes[len(late) + 1 :]
    return Fates(folder, contents(folder / "whole"), appends, events, delays, overwrites)


def test_an_undisturbed_run_stores_records_and_scores_of_every_method(fates: Fates) -> None:
    assert len(fates.whole) == 2 * len(STORED)


def test_a_kill_in_the_middle_of_every_append(fates: Fates) -> None:
    assert len(fates.appends["moments"]) == 2 * (3 + 1)  # records and timings of three batches, and of one answer
    assert set(fates.appends["codes"]) == {0}
    for moment in fates.appends["moments"]:
        assert contents(fates.folder / f"append-{moment}") == fates.whole, moment


def test_kills_at_file_operations_from_the_first_to_the_last(fates: Fates) -> None:
    assert len(fates.events["moments"]) >= 8
    assert set(fates.events["codes"]) == {0}
    for moment in fates.events["moments"]:
        assert contents(fates.folder / f"event-{moment}") == fates.whole, moment


def test_kills_at_random_moments_one_after_the_other(fates: Fates) -> None:
    *killed, last = fates.delays
    assert -signal.SIGKILL in killed
    assert last == 0
    assert contents(fates.folder / "late") == fates.whole


def test_an_overwrite_that_is_cut_short_again_and_again(fates: Fates) -> None:
    """Locks die with their process, and a folder that was being emptied is emptied again."""
    first, *killed, last = fates.overwrites
    assert (first, last) == (0, 0)
    assert set(killed) == {-signal.SIGKILL}
    assert contents(fates.folder / "over") == fates.whole


@pytest.mark.slow
def test_a_kill_at_every_single_file_operation(tmp_path: Path, fates: Fates) -> None:
    (result,) = serve([{"args": COMMAND, "out": str(tmp_path / "runs"), "sweep": "event", "step": 1}])
    assert len(result["moments"]) >= 50
    assert set(result["codes"]) == {0}
    for moment in result["moments"]:
        assert contents(tmp_path / f"runs-{moment}") == fates.whole, moment


@pytest.mark.slow
def test_kills_while_fitting_and_while_generating_with_a_model(tmp_path: Path) -> None:
    from test_encoders import make_bert

    from bench.tiny import tiny_model

    model, encoder = tiny_model(tmp_path / "model", initializer_range=0.3), make_bert(tmp_path / "encoder")
    knobs = ["hf.device=cpu", "hf.dtype=float32", "hf.max_batch=2", "planted.users=12", "planted.items=20"]
    knobs += [f"{method}.{knob}" for method in ("lora", "dep") for knob in ("n_history=1", "epochs=2")]
    knobs += ["dep.latent_size=16", "dep.k=4", "lora.r=2"]
    command = ["run", "--methods", "lora,dep", "--model", str(model), "--encoder", str(encoder), "--out", "{out}"]
    command += ["--limit", "6", "--train-limit", "3", "--max-new-tokens", "12", "--metrics", "length_ratio"]
    command += [part for knob in knobs for part in ("--set", knob)]
    whole, out = tmp_path / "whole", tmp_path / "runs"
    moments = [
        ("lora: training on", 0.3),
        ("lora: generating", 0.1),
        ("dep: training on", 0.3),
        ("dep: generating", 0.1),
    ]
    jobs: list[dict[str, Any]] = [{"args": command, "out": str(whole)}]
    jobs += [{"args": command, "out": str(out), "marker": marker, "delay": delay} for marker, delay in moments]
    first, *codes, last = serve([*jobs, {"args": command, "out": str(out)}], tmp_path / "cache")
    assert (first, last) == (0, 0), Path(f"{whole}.log").read_text() + Path(f"{out}.log").read_text()
    assert codes.count(-signal.SIGKILL) >= 3
    assert len(contents(whole)) == 6
    assert contents(out) == contents(whole)
    assert not left_behind(out)
    texts = [json.loads(line)["text"] for line in contents(out)[min(contents(out))].splitlines() if b"text" in line]
    assert len(set(texts)) > 1
