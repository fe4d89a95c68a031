"""`run --executor ray`: the work of a command divided over a Ray cluster, one engine an accelerator.

The units of work are fits, then shards of runs (method x seed x shard, see `bench.shards`), then scores of shards. A
worker is an actor with one GPU where the cluster has any, else with one CPU; it loads its engine once and keeps it from
unit to unit. A shard is handed out when its fit is there, scores when all texts are.

What is done lies in --out, nowhere else: a folder that all machines must see, which is checked before any work. Nothing
of worth is in Ray's memory. So when a worker or its node dies, another worker takes the unit up where the dead one's
files end; when this process dies, its workers die with it and the same command goes on. A unit that a worker still
holds which Ray takes for dead stays its own: the lock on its folder makes the next one wait.

Runs are divided into as many shards as there are workers, or into as many as an earlier command has begun.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import build
from bench.errors import Held, MissingPackage, UsageError, first_line
from bench.files import check_writable
from bench.fits import Say, duration
from bench.keys import difference
from bench.merging import merged
from bench.method_run import MethodRun
from bench.plan import Plan, RunConfig, make_plan, part_of
from bench.runner import prepare, say, score_run, summary
from bench.shards import Shard, division
from bench.store import Existing, RunFolder, StoredRun

_LOSSES = 8
"""Workers that one unit may lose; so many are no accident."""
_STARTS = 5
"""Workers in a row that may die before they are ready."""
_PATIENCE, _HOLDS = 20.0, 30
"""Seconds that a worker waits for a unit's folder, and how often."""
_ANSWER = 10.0
"""Seconds for a cluster to take a connection."""
_TELL = 30.0
"""Seconds without any news after which something is said."""


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    kind: str
    """fit, texts or scores."""
    number: int
    """Of the method in the plan."""
    seed: int
    shard: Shard | None = None
    path: str = ""
    """Of the stored run to score."""


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each start warns of it
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("ray", "--executor ray", "ray") from error
    return ray


# -- on the workers ---------------------------------------------------------------------------------------------------


class Worker:
    """One engine somewhere on the cluster. Mistakes of the user come back as values: Ray would wrap them in traces."""

    def __init__(self, config: dict[str, Any], folder: str) -> None:
        os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: nobody sees bars
        self.config, self.folder = config, folder
        self.scoring = False

    def look(self, token: str, text: str) -> dict[str, Any]:
        """Makes the plan here; tells what each run depends on, so that workers can be compared before any work."""
        import ray

        node = ray.util.get_node_ip_address()
        if os.path.isdir(self.folder):
            os.chdir(self.folder)  # relative paths of the command mean what they mean there
        try:
            seen = Path(token).read_text() == text
        except OSError:
            seen = False
        if not seen:
            where = self.config["out"]
            return {
                "error": f"the machine {node} does not see {where} as this one does; --executor ray needs an --out on "
                "a file system that all machines of the cluster share, under one path"
            }
        try:
            self.plan = make_plan(build(RunConfig, self.config, "run"))
            prepare(self.plan)
            runs = [
                self._told(number, seed) for number in range(len(self.plan.planned)) for seed in self.plan.config.seeds
            ]
        except UsageError as error:
            return {"error": f"{error} (on {node})"}
        return {"node": node, "runs": runs}

    def _told(self, number: int, seed: int) -> dict[str, Any]:
        run = MethodRun(self.plan, self.plan.planned[number], seed, set(), say)
        folder = RunFolder(self.plan.config.out, run.description())
        return {
            "number": number,
            "seed": seed,
            "description": folder.description,
            "folder": str(folder.path),
            "fit": run.fit_digest(),
        }

    def work(self, unit: Unit) -> dict[str, Any]:
        """Does one unit, or goes on with it. `held`: another process has its folder."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._work(unit)
            except Held as error:
                if time.monotonic() > until:
                    return {"held": str(error)}
                time.sleep(1)
            except UsageError as error:
                return {"error": str(error)}

    def _work(self, unit: Unit) -> dict[str, Any]:
        if unit.kind == "scores":
            if not self.scoring:
                self.scoring = True
                self.plan.engine.close()  # metrics bring models of their own
            run = StoredRun.load(Path(unit.path))
            new = score_run(run, self.plan.dataset, self.plan.metrics)
            return {"told": f"scored with {', '.join(new)}" if new else "scored already"}
        planned = self.plan.planned[unit.number]
        self.scoring = False
        made = MethodRun(self.plan, planned, unit.seed, set(), say, unit.shard, wait=True)
        if unit.kind == "fit":
            fit = made.only_fit()
            seconds = fit.info["seconds"] if fit else 0.0
            return {"told": f"fitted, {duration(seconds)} of training"}
        run = made.finish()
        return {"told": summary(run), "path": str(run.path)}


# -- on the machine of the command ------------------------------------------------------------------------------------


def execute_on_cluster(plan: Plan, report: Say = say) -> list[StoredRun]:
    """Has a plan's runs made on a cluster; returns them whole, in its order. See the module.

    Raises UsageError if Ray is not there, if workers do not see --out or differ in versions, for what a worker meets
    that the user can mend, and if a unit loses worker after worker.
    """
    ray = _ray()
    out = plan.config.out.resolve()
    check_writable(out)
    for name, why in plan.left_out.items():
        report(f"{name}: left out, {why}")
    token = out / f".workers-{secrets.token_hex(8)}"
    with _connected(ray, plan.config.address):
        token.write_text(token.name)
        try:
            return _Driver(ray, plan, out, token, report).finish()
        finally:
            token.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        _answers(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise UsageError(
            f"no Ray cluster at {where} ({first_line(error)}); start one (ray start --head) or leave --address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str | None) -> None:
    """Raises OSError where nobody listens: Ray itself would go on trying for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER):
            pass


class _Driver:
    """Hands units to workers and takes back what lost ones had."""

    def __init__(self, ray: Any, plan: Plan, out: Path, token: Path, report: Say) -> None:
        self.ray, self.plan, self.out, self.token, self.report = ray, plan, out, token, report
        self.workers = self._count()
        self.config = _portable(plan.config, out)
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Unit | None]] = {}
        """What is awaited -> the worker and its unit; None for one that is not ready yet."""
        self.nodes: dict[Any, str] = {}
        self.known: Mapping[str, Any] | None = None
        """What the first worker told."""
        self.todo: list[Unit] = []
        self.fitted: set[str] = set()
        self.losses: Counter[Unit] = Counter()
        self.holds: Counter[Unit] = Counter()
        self.stillborn = self.done = self.total = 0

    def _count(self) -> int:
        there = self.ray.cluster_resources()
        self.gpu = there.get("GPU", 0) >= 1
        return self.plan.config.workers or max(1, int(there.get("GPU" if self.gpu else "CPU", 1)))

    def finish(self) -> list[StoredRun]:
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        kind = "GPU" if self.gpu else "CPU"
        self.report(f"Ray: {nodes} node{'s' * (nodes > 1)}, up to {self.workers} workers with one {kind} each")
        try:
            for _ in range(self.workers):
                self._start()
            while self.known is None or self.todo or any(unit for _, unit in self.busy.values()):
                self._hand_out()
                self._await()
        finally:
            for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]:
                with contextlib.suppress(Exception):
                    self.ray.kill(worker)
        return [self._whole(told) for told in self.known["runs"]]

    def _start(self) -> None:
        remote = self.ray.remote(Worker).options(
            num_cpus=1, num_gpus=1 if self.gpu else 0, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        worker = remote.remote(self.config, os.getcwd())
        self.busy[worker.look.remote(str(self.token), self.token.name)] = worker, None

    def _hand_out(self) -> None:
        """Every idle worker gets the first unit that can be done now."""
        while self.idle and (unit := next(filter(self._ready, self.todo), None)):
            self.todo.remove(unit)
            worker = self.idle.pop(0)
            self.busy[worker.work.remote(unit)] = worker, unit

    def _ready(self, unit: Unit) -> bool:
        if unit.kind == "texts":
            fit = self._told(unit)["fit"]
            return fit is None or fit in self.fitted
        if unit.kind == "scores":  # metrics bring models of their own, which no method's peak of memory should hold
            under_way = [other for _, other in self.busy.values() if other is not None]
            return all(other.kind == "scores" for other in (*under_way, *self.todo))
        return True

    def _told(self, unit: Unit) -> dict[str, Any]:
        assert self.known is not None
        return next(t for t in self.known["runs"] if (t["number"], t["seed"]) == (unit.number, unit.seed))

    def _await(self) -> None:
        """Sleeps until a worker has something to say."""
        from ray.exceptions import RayError, RayTaskError

        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=_TELL)
        if not ready and not self.idle and all(unit is None for _, unit in self.busy.values()):
            free = {k: v for k, v in self.ray.available_resources().items() if k in ("CPU", "GPU")}
            self.report(f"waiting for workers to start; not yet given to any: {free or 'nothing'}")
        for answer in ready:
            worker, unit = self.busy.pop(answer)
            try:
                told = self.ray.get(answer)
            except RayTaskError:
                raise
            except RayError as error:
                self._lost(worker, unit, error)
                continue
            if "error" in told:
                raise UsageError(told["error"])
            if unit is None:
                self._welcome(worker, told)
            else:
                self._take(worker, unit, told)
            self.idle.append(worker)

    def _welcome(self, worker: Any, told: dict[str, Any]) -> None:
        self.stillborn = 0
        self.nodes[worker] = told["node"]
        if self.known is None:
            self.known = told
            self.todo = self._units(told["runs"])
            self.total = len(self.todo) + sum(unit.kind == "texts" for unit in self.todo)
            return
        for mine, other in zip(self.known["runs"], told["runs"], strict=True):
            if paths := difference(mine["description"], other["description"]):
                raise UsageError(
                    f"the machines {self.known['node']} and {told['node']} differ in {', '.join(paths)}; a run needs "
                    "one set of versions and one kind of device"
                )

    def _units(self, runs: Sequence[Mapping[str, Any]]) -> list[Unit]:
        fits = {told["fit"]: Unit("fit", told["number"], told["seed"]) for told in reversed(runs) if told["fit"]}
        texts = [
            Unit("texts", told["number"], told["seed"], shard)
            for told in runs
            for shard in self._shards(told["folder"])
        ]
        return [*reversed(fits.values()), *texts]

    def _shards(self, folder: str) -> list[Shard]:
        users = len({example.user_id for example in self.plan.dataset.test.examples})
        count = min(self.workers, users)
        if self.plan.config.existing is not Existing.OVERWRITE and (begun := division(Path(folder))) is not None:
            count = begun.of
        return [Shard(index + 1, count) for index in range(count)]

    def _take(self, worker: Any, unit: Unit, told: dict[str, Any]) -> None:
        """What a worker has done, or could not do as somebody else holds it."""
        if "held" in told:
            self.holds[unit] += 1
            if self.holds[unit] >= _HOLDS:
                raise UsageError(told["held"])
            self.todo.append(unit)
            return
        if unit.kind == "fit":
            self.fitted.add(self._told(unit)["fit"])
        elif unit.kind == "texts":
            scores = Unit("scores", unit.number, unit.seed, unit.shard, told["path"])
            if all(scores.path != other.path for other in self.todo if other.kind == "scores"):
                self.todo.append(scores)
            else:
                self.done += 1  # all shards of a run that was whole already are this run
        self.done += 1
        told_text = told["told"] if unit.kind == "texts" else f"{self._called(unit)}: {told['told']}"
        self.report(f"[{self.done}/{self.total}] {told_text} (on {self.nodes[worker]})")

    def _called(self, unit: Unit) -> str:
        shard = f" {unit.shard}" if unit.shard else ""
        return f"{self.plan.planned[unit.number].title}{shard} (seed {unit.seed})"

    def _lost(self, worker: Any, unit: Unit | None, error: Exception) -> None:
        """A worker is gone, alone or with its node: another one is asked for, and its unit goes to whoever is free."""
        with contextlib.suppress(Exception):
            self.ray.kill(worker)  # it may only be out of reach
        if unit is None:
            self.stillborn += 1
            if self.stillborn >= _STARTS:
                raise UsageError(f"worker after worker dies before it is ready; the last one: {first_line(error)}")
        else:
            self.losses[unit] += 1
            if self.losses[unit] >= _LOSSES:
                raise UsageError(
                    f"{self._called(unit)}: lost with its worker {_LOSSES} times, the last one: {first_line(error)}; "
                    "what is complete is kept, and the same command goes on from there"
                )
            self.todo.insert(0, unit)
            node = self.nodes.get(worker, "?")
            self.report(f"{self._called(unit)}: its worker on {node} is lost; another one goes on with it")
        self._start()

    def _whole(self, told: Mapping[str, Any]) -> StoredRun:
        run = merged(Path(told["folder"]))
        if run is None:
            divided = division(Path(told["folder"]))
            raise UsageError(f"{told['folder']} is not whole: {divided.told() if divided else 'no shard is there'}")
        score_run(run, self.plan.dataset, self.plan.metrics)  # with metrics that want all texts at once
        variant = self.plan.planned[told["number"]].variant
        return run if variant is None else run.called(variant)


def _portable(config: RunConfig, out: Path) -> dict[str, Any]:
    """The config as another machine can read it: paths from the root, nothing of who works."""
    values = config.model_dump(mode="json", exclude={"executor", "address", "workers"})
    values["out"] = str(out)
    if part_of(config.dataset) != config.dataset:
        values["dataset"] = str(Path(config.dataset).resolve())
    for name in ("model", "encoder"):
        if Path(values[name]).is_dir():
            values[name] = str(Path(values[name]).resolve())
    return values
