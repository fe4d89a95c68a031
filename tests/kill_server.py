"""Runs commands in forked processes that die at a chosen moment, without a chance to clean up.

A program of its own: it imports the libraries once and forks from there, so that hundreds of kills take seconds.
Called with a JSON object: {"jobs": [...]}; each job holds `args` (with {out} for the folder of runs), `out`, and a
way to die. Prints one JSON array with what became of each job.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench.method_run
import bench.plan
import bench.render
import bench.store
import bench.tables
from bench.__main__ import main
from bench.data.spec import DatasetSpec
from bench.data.split import Dataset
from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.plan import RunConfig
from bench.types import Request

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_event(number: int, out: str) -> None:
    """Dies right before the `number`-th time that something under `out` is opened, renamed, made or deleted."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and any(str(argument).startswith(out) for argument in arguments):
            seen += 1
            if seen == number:
                die()

    sys.addaudithook(hook)


def die_in_append(number: int) -> None:
    """Dies in the middle of the `number`-th line-wise append, with half of it written."""
    whole, seen = bench.store.RunFolder._append, 0

    def half(self: bench.store.RunFolder, path: Path, data: bytes) -> int:
        nonlocal seen
        seen += 1
        if seen == number:
            whole(self, path, data[: len(data) // 2])
            die()
        return whole(self, path, data)

    bench.store.RunFolder._append = half  # type: ignore[method-assign]


def slow_down(seconds: float) -> None:
    run = FakeEngine.run

    def slow(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        time.sleep(seconds)
        return run(self, batch)

    FakeEngine.run = slow  # type: ignore[method-assign]


def leave_out_what_is_slow() -> None:
    """No leaderboard and no look at git and machine, on which no resumed run depends; data are prepared once."""
    vars(bench.method_run)["provenance"] = dict
    vars(bench.tables)["leaderboards"] = lambda *_, **__: []
    prepare, known = bench.plan._prepared, {}

    def prepared(spec: DatasetSpec, config: RunConfig) -> Dataset:
        key = (spec.name, config.overrides, config.limit, config.train_limit)
        if key not in known:
            known[key] = prepare(spec, config)
        return known[key]

    bench.plan._prepared = prepared


def warm_up(job: dict[str, Any]) -> None:
    """Imports and data that the forks will find here. Not for jobs with a model: threads of torch do not survive it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*job["args"], "--dry-run"])


def start(args: Sequence[str], out: str, job: dict[str, Any]) -> int:
    """Forks a process that runs the command; returns its id."""
    child = os.fork()
    if child:
        return child
    log = os.open(out + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "slow" in job:
        slow_down(job["slow"])
    if "event" in job:
        die_at_event(job["event"], out)
    if "append" in job:
        die_in_append(job["append"])
    try:
        main([argument.format(out=out) for argument in args])
    except SystemExit as ended:
        os._exit(int(str(ended.code)))
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(99)


def finish(child: int, out: str, job: dict[str, Any]) -> int:
    """Waits for the end, or brings it about: `delay` seconds after `marker` is in the log. Returns the exit code."""
    if "delay" in job:
        log, marker = Path(out + ".log"), job.get("marker", "")
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if marker in (log.read_text() if log.exists() else ""):
                time.sleep(job["delay"])
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.002)
        else:
            return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def once(job: dict[str, Any], out: str, **change: Any) -> int:
    job = {**job, **change}
    return finish(start(job["args"], out, job), out, job)


def sweep(job: dict[str, Any]) -> dict[str, Any]:
    """Dies at one moment, later by `step` in a fresh folder, and so on to the end; after each the command comes again.

    Returns the moments and what the commands that came again ended with.
    """
    moments: list[int] = []
    codes: list[int] = []
    while True:
        moment = 1 + job["step"] * len(moments)
        out = f"{job['out']}-{moment}"
        if once(job, out, **{job["sweep"]: moment}) != -signal.SIGKILL:
            return {"moments": moments, "codes": codes}
        moments.append(moment)
        codes.append(once(job, out))


if __name__ == "__main__":
    leave_out_what_is_slow()
    jobs = json.loads(sys.argv[1])["jobs"]
    if "--engine" in jobs[0]["args"]:
        warm_up(jobs[0])
    print(json.dumps([sweep(job) if "sweep" in job else once(job, job["out"]) for job in jobs]))
