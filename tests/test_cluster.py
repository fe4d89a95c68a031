"""Work on a Ray cluster: handed out in order, and none lost or doubled whoever dies, on a real cluster of two nodes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import descendants
from test_runner import Learner
from test_shards import by_example, plan, prepared

from bench import cluster as subject
from bench.cluster import Unit, Worker, execute_on_cluster
from bench.errors import UsageError
from bench.plan import Executor, Plan
from bench.store import StoredRun, find_runs

ray = pytest.importorskip("ray")
HERE = Path(__file__).parent

# -- handing out, with workers in this process ------------------------------------------------------------------------


class Handle:
    """A worker as Ray shows it: calls give something to wait for."""

    def __init__(self, here: Here, worker: Worker) -> None:
        self.here, self.worker = here, worker

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> tuple[Any, ...]:
            return (self, name, *arguments)

        return type("Call", (), {"remote": staticmethod(remote)})


class Here:
    """As much of Ray as the driver needs, in this process, one call at a time, the oldest first."""

    def __init__(self, workers: int = 2) -> None:
        self.workers, self.killed, self.calls = workers, 0, []
        self.fate: Callable[[Unit | None], None] = lambda unit: None
        self.change: Callable[[int, dict[str, Any]], None] = lambda number, told: None
        self.started = 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.workers)}

    available_resources = cluster_resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}]

    def remote(self, kind: type[Worker]) -> Any:
        def make(*arguments: Any) -> Handle:
            self.started += 1
            return Handle(self, kind(*arguments))

        return type("Actor", (), {"options": staticmethod(lambda **_: type("A", (), {"remote": staticmethod(make)}))})

    def wait(self, waiting: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    def get(self, call: tuple[Any, ...]) -> Any:
        handle, name, *arguments = call
        unit = arguments[0] if name == "work" else None
        self.fate(unit)
        self.calls.append(unit)
        told = getattr(handle.worker, name)(*arguments)
        if name == "look":
            self.change(self.started, told)
        return told

    def kill(self, worker: Handle) -> None:
        self.killed += 1


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    found = Here()
    monkeypatch.setattr(subject, "_ray", lambda: found)
    monkeypatch.setattr(subject, "_connected", lambda ray, address: __import__("contextlib").nullcontext())
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.9")
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    base = learning()
    monkeypatch.setattr(subject, "make_plan", lambda config: replace(base, config=config))
    return found


def learning() -> Plan:
    """Two seeds of a method that learns, then of one that does not."""
    base = prepared("nonperso", (0, 1))
    learner = replace(base.planned[0], method=Learner(base.planned[0].method.config))
    return replace(base, planned=(learner, *base.planned))


def on_cluster(out: Path, lines: list[str] | None = None, **changes: Any) -> list[StoredRun]:
    asked = plan(out, None, learning(), executor=Executor.RAY, **changes)
    return execute_on_cluster(asked, (lines if lines is not None else []).append)


def test_fits_come_before_their_shards_and_scores_last(tmp_path: Path, here: Here) -> None:
    before = Learner.fits
    lines: list[str] = []
    runs = on_cluster(tmp_path, lines)
    assert Learner.fits == before + 2
    units = [unit for unit in here.calls if unit is not None]
    kinds = [unit.kind for unit in units]
    assert kinds.count("fit") == 2
    assert kinds[-8:] == ["scores"] * 8
    assert len(units) == len(set(units)) == 2 + 8 + 8
    for unit in units:
        if unit.kind == "texts" and unit.number == 0:
            assert units.index(Unit("fit", 0, unit.seed)) < units.index(unit)
    assert [(run.method, run.description["seed"]) for run in runs] == [
        ("rag", 0), ("rag", 1), ("nonperso", 0), ("nonperso", 1)
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("[18/18]")]
    assert here.killed == 2
    assert not list(tmp_path.glob(".workers-*"))
    assert on_cluster(tmp_path) == runs


@pytest.mark.parametrize("seed", range(1, 5))
def test_whoever_is_lost_whenever_the_runs_are_the_same(tmp_path: Path, here: Here, seed: int) -> None:
    stream = random.Random(seed)

    def fate(unit: Unit | None) -> None:
        if stream.random() < 0.2 and here.started < 40:
            raise ray.exceptions.ActorDiedError

    wanted = [run.records for run in on_cluster(tmp_path / "wanted")]
    here.fate = fate
    here.started = 0
    runs = on_cluster(tmp_path / "out")
    assert here.started > 2
    assert [run.records for run in runs] == wanted
    assert all(len(run.records) == 12 for run in runs)


def test_a_unit_that_loses_worker_after_worker_is_given_up(tmp_path: Path, here: Here) -> None:
    def fate(unit: Unit | None) -> None:
        if unit is not None and unit.kind == "fit":
            raise ray.exceptions.ActorDiedError

    here.fate = fate
    with pytest.raises(UsageError, match=r"rag \(seed .\): lost with its worker 8 times.*same command goes on"):
        on_cluster(tmp_path)

    def stillborn(unit: Unit | None) -> None:
        raise ray.exceptions.ActorDiedError

    here.fate = stillborn
    with pytest.raises(UsageError, match="worker after worker dies before it is ready"):
        on_cluster(tmp_path)


def test_workers_of_other_versions_are_refused(tmp_path: Path, here: Here) -> None:
    def change(number: int, told: dict[str, Any]) -> None:
        told["node"] = f"127.0.0.{len(here.calls)}"
        if len(here.calls) == 2:
            told["runs"][0]["description"]["code"]["peft"] = "0.1"

    here.change = change
    with pytest.raises(UsageError, match=r"127.0.0.1 and 127.0.0.2 differ in code.peft; a run needs one set"):
        on_cluster(tmp_path)


def test_a_worker_that_does_not_see_the_folder_is_refused(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Worker.look
    monkeypatch.setattr(Worker, "look", lambda self, token, text: look(self, token + "-elsewhere", text))
    with pytest.raises(UsageError, match=r"machine 127.0.0.9 does not see .* file system that all machines"):
        on_cluster(tmp_path)


def test_what_the_user_can_mend_is_told_as_such(tmp_path: Path, here: Here) -> None:
    runs = on_cluster(tmp_path)
    records = runs[0].path / "shards" / "1-of-2" / "records.jsonl"
    (runs[0].path / "manifest.json").unlink()
    records.write_bytes(b"{}\n" + records.read_bytes())
    with pytest.raises(UsageError, match=r"SHA-256 differs.*--existing overwrite"):
        on_cluster(tmp_path)


def test_without_ray_the_command_to_install_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'dep-bench\[ray\]'"):
        on_cluster(tmp_path)


# -- a real cluster ---------------------------------------------------------------------------------------------------

PLUGIN = '''
import json, os, time
from bench.method import Method
from bench.types import Message


class Slow(Method):
    """Counts words of its training texts, slowly, and writes after one stage of notes."""

    name = "slow-learner"

    def fit(self, train, dev, ctx):
        with open(os.environ["FITS"], "a") as file:
            file.write("begun\\n")
        time.sleep(0.5)
        self.words = sum(len(text.split()) for text in train.references.values()) + ctx.seed

    def save(self, folder):
        (folder / "words.json").write_text(json.dumps(self.words))

    def load(self, folder, ctx):
        self.words = json.loads((folder / "words.json").read_text())

    def requests(self, examples, ctx):
        notes = ctx.generate([ctx.request(e, [Message("user", f"{e.user_id} note")], stage="notes") for e in examples],
                             stage="notes")
        return [ctx.request(e, [Message("user", f"{self.words} {n.text}")]) for e, n in zip(examples, notes)]
'''
COMMAND = (
    "run", "--engine", "fake", "--dataset", "planted", "--metrics", "rouge1", "--methods", "slow-learner,nonperso",
    "--set", "planted.users=12", "--set", "planted.items=20", "--set", "fake.max_batch=1", "--set", "fake.seconds=0.12",
    "--max-new-tokens", "40",
)  # fmt: skip


@dataclass
class Nodes:
    """A cluster to disturb."""

    process: subprocess.Popen[str]
    env: dict[str, str]
    folder: Path
    address: str = ""

    def tell(self, order: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, out: Path, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench", *COMMAND, "--out", str(out), "--executor", "ray"]
        return subprocess.Popen(
            [*command, "--address", self.address, *flags],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=(out.parent / f"{out.name}.log").open("a"),
            text=True,
            # A shell's background jobs, and what they start, are born deaf to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def begun(self, out: Path, child: subprocess.Popen[str]) -> None:
        """Waits for the first record."""
        while child.poll() is None and not any(path.stat().st_size for path in out.glob("*/*/*/shards/*/*.jsonl")):
            time.sleep(0.05)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "slow_learner.py").write_text(PLUGIN)
    about = folder / "slow_learner-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-learner\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[bench.methods]\nslow-learner = slow_learner:Slow\n")
    path = os.pathsep.join([str(folder), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "FITS": str(folder / "fits"), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_cluster.py")],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        found = Nodes(process, env, folder, process.stdout.readline().strip())
        started = set(descendants(process.pid))
        try:
            assert found.address, (folder / "log").read_text()
            yield found
        finally:
            started |= set(descendants(process.pid))
            found.tell("quit")
            process.wait(60)
    deadline = time.monotonic() + 30
    while (left := [pid for pid in started if is_ours(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def is_ours(pid: int) -> bool:
    """Whether a process of a cluster is alive."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module")
def wanted(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Method -> records of an undivided run without a cluster, by example."""
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "bench", *COMMAND, "--out", str(out)]
    subprocess.run(command, env=nodes.env, check=True, capture_output=True)
    return {run.method: b"".join(by_example(run.path / "records.jsonl")) for run in find_runs(out).runs}


def check(out: Path, wanted: dict[str, bytes]) -> None:
    listing = find_runs(out)
    assert {run.method: (run.path / "records.jsonl").read_bytes() for run in listing.runs} == wanted
    assert (listing.incomplete, listing.problems, listing.divided) == ((), (), ())
    assert all(run.totals["examples"] == 12 and (run.path / "scores.json").exists() for run in listing.runs)


@pytest.mark.slow
def test_two_nodes_share_the_work_and_standard_output_holds_the_table_alone(
    nodes: Nodes, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    Path(nodes.env["FITS"]).unlink(missing_ok=True)
    child = nodes.start(tmp_path / "out")
    out, _ = child.communicate()
    log = (tmp_path / "out.log").read_text()
    assert child.returncode == 0, log
    assert out.startswith("Leaderboard: planted\n")
    assert "ray" not in out.lower().replace("array", "")
    assert "Ray: 2 nodes, up to 2 workers with one CPU each" in log
    assert "[9/9]" in log
    assert Path(nodes.env["FITS"]).read_text() == "begun\n"
    check(tmp_path / "out", wanted)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing_but_time(
    nodes: Nodes, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    child = nodes.start(tmp_path / "out")
    nodes.begun(tmp_path / "out", child)
    assert nodes.tell("node") == "done"
    child.communicate()
    assert child.returncode == 0, (tmp_path / "out.log").read_text()
    check(tmp_path / "out", wanted)


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_and_the_same_command_goes_on(
    nodes: Nodes, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    child = nodes.start(tmp_path / "out")
    nodes.begun(tmp_path / "out", child)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate()
    log = (tmp_path / "out.log").read_text()
    assert (child.returncode, out) == (130, ""), log
    assert "stopped; what is complete is kept, and the same command goes on from there" in log
    assert "Traceback" not in log
    child = nodes.start(tmp_path / "out")
    child.communicate()
    assert child.returncode == 0
    check(tmp_path / "out", wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_kills_at_random_moments_change_no_record(
    nodes: Nodes, wanted: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    """A worker, a node or the command itself, before the work or during it; the command is given until it ends well."""
    stream = random.Random(seed)
    out, log = tmp_path / "out", tmp_path / "out.log"
    what = ("worker", "node", "command")[seed % 3]
    child = nodes.start(out)
    if stream.random() < 0.8:
        nodes.begun(out, child)
    time.sleep(stream.uniform(0, 2))
    if what == "command":
        child.kill()
    else:
        assert nodes.tell(what) == "done"
    child.communicate()
    assert child.returncode in ((-signal.SIGKILL, 0) if what == "command" else (0,)), log.read_text()
    if child.returncode:
        child = nodes.start(out)
        child.communicate()
        assert child.returncode == 0, log.read_text()
    check(out, wanted)


@pytest.mark.slow
def test_an_address_where_nobody_is_and_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", *COMMAND, "--methods", "nonperso", "--out", str(tmp_path), "--executor"]
    done = subprocess.run([*command, "ray", "--address", "127.0.0.1:1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no Ray cluster at 127.0.0.1:1"), done.stderr
    assert json.dumps(done.stderr).count("\\n") == 1
