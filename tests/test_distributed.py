"""Several processes train as one: real processes on this machine's CPU, against the same training in one process."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_world import TINY, only_run
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


@dataclass(frozen=True)
class Ended:
    """What became of the processes of a case, in order of rank."""

    codes: list[int]
    errors: list[str]
    seconds: float


Start = Callable[..., Ended]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    """Runs a case in several processes that nothing but their environment ties together."""
    running: list[subprocess.Popen[str]] = []

    def go(case: str, processes: int = 2) -> Ended:
        common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [sys.executable, str(SCRIPT), str(model), str(tmp_path), case]
        began = time.monotonic()
        for rank in range(processes):
            environment = {**os.environ, **ALONE, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        errors = [process.communicate(timeout=120)[1] for process in running]
        ended = Ended([process.returncode for process in running], errors, time.monotonic() - began)
        running.clear()
        return ended

    yield go
    for process in running:
        process.kill()
        process.wait()


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
@pytest.mark.parametrize(("case", "processes"), [("plain", 2), ("prefixed", 2), ("selected", 2), ("plain", 3)])
def test_processes_end_as_one_process_does(
    model: Path, start: Start, tmp_path: Path, case: str, processes: int
) -> None:
    """Weights, losses of steps and epochs and the chosen epoch; the same bits in all processes."""
    ended = start(case, processes)
    assert ended.codes == [0] * processes, ended.errors
    alone = tmp_path / "alone"
    alone.mkdir()
    learner, log = CASES[case](engine_of(model).language_model(), alone)
    weights = {name: p.detach() for name, p in zip("ab", learner.parameters(), strict=False)}
    for rank in range(processes):
        theirs, told = found(tmp_path, case, rank)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-5)
            assert torch.equal(theirs[name], found(tmp_path, case, 0)[0][name])
        assert_close(told, result(learner, log))
    if case == "plain":
        assert torch.equal(weights["a"], torch.ones(5))  # nobody has a gradient for it, so nothing decays it
        assert_close(journal(tmp_path / "plain"), journal(alone / "plain"))
    if case == "selected":
        assert (log.best_epoch, len(log.epochs)) == (2, 4)


@pytest.mark.slow
def test_the_main_process_says_where_to_start(start: Start, tmp_path: Path) -> None:
    assert start("started_apart").codes == [0, 0]
    assert start("plain").codes == [0, 0]
    for rank in (0, 1):
        assert torch.equal(found(tmp_path, "started_apart", rank)[0]["b"], found(tmp_path, "plain", 0)[0]["b"])


@pytest.mark.slow
def test_under_dropout_a_stopped_training_ends_with_the_same_bits(start: Start, tmp_path: Path) -> None:
    assert start("noisy").codes == [0, 0]
    assert start("stopped").codes == [0, 0]
    for rank in (0, 1):
        expected, told = found(tmp_path, "noisy", rank)
        assert torch.equal(found(tmp_path, "stopped", rank)[0]["a"], expected["a"])
        assert found(tmp_path, "stopped", rank)[1] == told


@pytest.mark.slow
@pytest.mark.parametrize(("case", "said"), [("other_rows", "same rows"), ("failing", "a row is bad")])
def test_an_error_in_one_process_ends_all_with_one_line(start: Start, case: str, said: str) -> None:
    ended = start(case)
    assert ended.codes == [2, 2]
    assert ended.errors[1] == ""
    assert ended.errors[0].count("\n") == 1, ended.errors[0]
    assert said in ended.errors[0]
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
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_a_launched_command_leaves_what_a_single_one_does(model: Path, tmp_path: Path, launcher: str) -> None:
    single = [sys.executable, "-m", "bench", *arguments(model, tmp_path / "single")]
    assert subprocess.run(single, env={**os.environ, **ALONE}, capture_output=True).returncode == 0
    done = launch(launcher, arguments(model, tmp_path / "many"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("nonperso") == 1  # one table
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
    assert only_run(tmp_path, "nonperso")
