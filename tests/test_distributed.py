"""Several processes train as one: real processes on this machine's CPU, against the same training in one process."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_world import TINY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_engine import engine_of, lively_model, one_thread
from train_together import CASES, result

from bench import distributed
from bench.distributed import shares
from bench.training.log import JOURNAL

__all__ = ["one_thread"]

SCRIPT = Path(__file__).with_name("train_together.py")
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


# -- in this process --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_shares_hold_everything_once_and_are_balanced(lengths: list[int], count: int) -> None:
    """Greedily, longest first: no share exceeds another by more than its last, so its smallest, member."""
    lengths = sorted(lengths, reverse=True)
    found = shares(lengths, count)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in share) for share in found]
    for share, total in zip(found, sums, strict=True):
        if share:
            assert total - lengths[share[-1]] <= min(sums)
    assert not lengths or 0 in found[0]


def test_a_process_alone_is_the_main_one_and_talks_to_itself() -> None:
    assert (distributed.rank(), distributed.size()) == (0, 1)
    tensor = torch.tensor([1.0, 2.0])
    distributed.join()
    distributed.add_up(tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert distributed.from_main([1, None]) == [1, None]
    assert distributed.bytes_from_main(b"ab") == b"ab"
    distributed.fail("nobody else hears this")
    distributed.leave()


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"WORLD_SIZE": "2"}, False),  # left by a batch system that is no launcher
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, False),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, True),
    ],
)
def test_a_launcher_is_known_by_its_variables(
    environment: dict[str, str], launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() is launched
    assert distributed.launched_rank() == (1 if launched else 0)


# -- the loop ---------------------------------------------------------------------------------------------------------

SEVERAL = ("plain", "prefixed", "selected", "started_apart", "noisy", "stopped")
"""Cases that two processes go through one after the other."""


@dataclass(frozen=True)
class Ended:
    """What became of processes, in order of rank."""

    codes: list[int]
    errors: list[str]
    seconds: float


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(model: Path, folder: Path, cases: Sequence[str], processes: int = 2) -> Ended:
    """Runs cases in several processes that nothing but their environment ties together."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(SCRIPT), str(model), str(folder), *cases]
    running, began = [], time.monotonic()
    try:
        for rank in range(processes):
            bar = {"TQDM_DISABLE": "1"}
            environment = {**os.environ, **ALONE, **common, **bar, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        errors = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return Ended([process.returncode for process in running], errors, time.monotonic() - began)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def two(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have gone through all cases that come to an end."""
    folder = tmp_path_factory.mktemp("two")
    ended = start(model, folder, SEVERAL)
    assert ended.codes == [0, 0], ended.errors
    return folder


@pytest.fixture(scope="module")
def three(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three processes and fewer cases."""
    folder = tmp_path_factory.mktemp("three")
    ended = start(model, folder, ["plain", "selected"], 3)
    assert ended.codes == [0, 0, 0], ended.errors
    return folder


def found(folder: Path, case: str, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return load_file(folder / f"{case}-{rank}.safetensors"), json.loads((folder / f"{case}-{rank}.json").read_text())


def journal(folder: Path) -> list[dict[str, Any]]:
    """Lines without times, and without norms of gradients, in which the last bits of weights show most."""
    rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "grad_norm")} for row in rows]


def assert_close(left: Any, right: Any) -> None:
    """Equal, numbers to 1e-5."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), [right[key] for key in left]
    if isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_close(one, other)
    elif left is None or isinstance(left, int | str):
        assert left == right
    else:
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("many", "processes", "case"),
    [
        ("two", 2, "plain"),
        ("two", 2, "prefixed"),
        ("two", 2, "selected"),
        ("three", 3, "plain"),
        ("three", 3, "selected"),
    ],
)
def test_processes_end_as_one_process_does(
    model: Path, tmp_path: Path, request: pytest.FixtureRequest, many: str, processes: int, case: str
) -> None:
    """Weights, losses of steps and epochs and the chosen epoch; the same bits in all processes."""
    folder: Path = request.getfixturevalue(many)
    learner, log = CASES[case](engine_of(model).language_model(), tmp_path)
    for rank in range(processes):
        weights, told = found(folder, case, rank)
        for name, parameter in zip("ab", learner.parameters(), strict=False):
            torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-5)
            assert torch.equal(weights[name], found(folder, case, 0)[0][name])
        assert_close(told, result(log))
    if case == "plain":
        assert torch.equal(learner.parameters()[0], torch.ones(5))  # nobody has a gradient for it: nothing decays it
        assert_close(journal(folder / case), journal(tmp_path / case))
    if case == "selected":
        assert (log.best_epoch, len(log.epochs)) == (2, 4)


@pytest.mark.slow
def test_the_main_process_says_where_to_start(two: Path) -> None:
    for rank in (0, 1):
        assert torch.equal(found(two, "started_apart", rank)[0]["b"], found(two, "plain", 0)[0]["b"])


@pytest.mark.slow
def test_under_dropout_a_stopped_training_ends_with_the_same_bits(two: Path) -> None:
    for rank in (0, 1):
        (weights, told), (expected, before) = found(two, "stopped", rank), found(two, "noisy", rank)
        assert torch.equal(weights["a"], expected["a"])
        assert told == before


@pytest.mark.slow
@pytest.mark.parametrize(("case", "said"), [("other_rows", "same rows"), ("failing", "a row is bad")])
def test_an_error_in_one_process_ends_all_with_one_line(model: Path, tmp_path: Path, case: str, said: str) -> None:
    ended = start(model, tmp_path, [case])
    assert ended.codes == [2, 2]
    assert ended.errors[1] == ""
    (line,) = ended.errors[0].split("\n")[-2:-1]
    assert ended.errors[0].strip() == line
    assert line.startswith("error: ")
    assert said in line
    assert ended.seconds < 60


# -- the command ------------------------------------------------------------------------------------------------------

LAUNCHERS = {
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
}


def launch(launcher: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    more = ["--main_process_port" if launcher == "accelerate" else "--master-port", str(free_port())]
    command = [sys.executable, *LAUNCHERS[launcher], *more, "-m", "bench", *arguments]
    return subprocess.run(command, env={**os.environ, **ALONE}, capture_output=True, text=True, timeout=300)


def arguments(model: Path, out: Path) -> list[str]:
    knobs = [
        "lora.epochs=2",
        "lora.dropout=0",
        "lora.lr=0.05",
        "lora.batch_size=3",
        "hf.dtype=float32",
        "hf.device=cpu",
    ]
    told = ["run", "--methods", "nonperso,lora", "--dataset", "planted", "--model", str(model), "--out", str(out)]
    told += [
        "--metrics",
        "rouge1",
        "--seeds",
        "0,1",
        "--limit",
        "3",
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
        *TINY,
    ]
    return [*told, *(part for knob in knobs for part in ("--set", knob))]


def contents(out: Path) -> dict[str, Any]:
    """Texts of all runs and weights of all fits, by folder."""
    runs = {path.parent: path.read_text().splitlines() for path in sorted(out.rglob("records.jsonl"))}
    texts = {str(k.relative_to(out)): [json.loads(line)["text"] for line in v] for k, v in runs.items()}
    weights = {str(p.relative_to(out)): load_file(p) for p in sorted(out.rglob("adapter_model.safetensors"))}
    return {"texts": texts, "weights": weights}


@pytest.mark.slow
def test_a_launched_command_leaves_what_a_single_one_does(model: Path, tmp_path: Path) -> None:
    single = [sys.executable, "-m", "bench", *arguments(model, tmp_path / "single")]
    assert subprocess.run(single, env={**os.environ, **ALONE}, capture_output=True).returncode == 0
    done = launch("accelerate", arguments(model, tmp_path / "many"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Leaderboard") == 1
    assert done.stderr.count("training on") == 2  # a fit for each seed, told once
    expected, got = contents(tmp_path / "single"), contents(tmp_path / "many")
    assert got["texts"] == expected["texts"]
    assert len(expected["weights"]) == 2
    assert got["weights"].keys() == expected["weights"].keys()
    for name, tensors in expected["weights"].items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(got["weights"][name][key], tensor, rtol=1e-5, atol=1e-5)
    fit = json.loads(next((tmp_path / "many").glob("*/lora/fit-*/fit.json")).read_text())
    assert fit["processes"] == 2


@pytest.mark.slow
def test_a_launched_command_with_a_slip_in_it_ends_with_one_line(model: Path, tmp_path: Path) -> None:
    done = launch("torchrun", [*arguments(model, tmp_path), "--set", 'lora.target_modules=["nothing"]'])
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if "no layer called nothing" in line
    ]
    assert done.stderr.count("no layer called nothing") == 1
    assert len(list(tmp_path.glob("*/nonperso/*/manifest.json"))) == 2  # what came before is kept
