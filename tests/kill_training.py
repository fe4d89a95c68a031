"""Fits methods in forked processes that are killed at chosen moments, and again until the end.

A program of its own: it loads the model once, on one thread, and forks from there. Called with the folder of a tiny
model, a folder to work in and the name of a method; prints one JSON object: how many processes were killed, and in
which folders what came out differs from an undisturbed fit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from method_world import context, world
from tiny_engine import engine_of

from bench import registry
from bench.engines.hf import HFEngine
from bench.training import checkpoint, log

COMMON = {"epochs": 2, "batch_size": 2, "checkpoint_seconds": 0, "n_history": 2, "lr": 0.05}
KNOBS: dict[str, dict[str, Any]] = {"lora": {"r": 2, "dropout": 0.2}, "dep": {"latent_size": 8, "k": 4}}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_file_event(number: int, work: Path) -> None:
    """Dies right before the `number`-th time that something in the folder is opened or renamed."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename") and str(arguments[0]).startswith(str(work)):
            seen += 1
            if seen == number:
                die()

    sys.addaudithook(hook)


def die_in_write(number: int) -> None:
    """Dies in the middle of writing the `number`-th state, and of a line of the journal before it."""
    replace, seen = os.replace, 0

    def half(source: Any, target: Any) -> None:
        nonlocal seen
        if str(target).endswith(checkpoint.CHECKPOINT):
            seen += 1
            if seen == number:
                data = Path(source).read_bytes()
                Path(source).write_bytes(data[: len(data) // 2])
                journal = Path(target).with_name(log.JOURNAL)
                journal.write_bytes(journal.read_bytes()[:-9])
                die()
        replace(source, target)

    os.replace = half  # type: ignore[assignment]


def fit(engine: HFEngine, name: str, folder: Path) -> None:
    of, cls = world(4), registry.load("method", name)
    method = cls(cls.Config.model_validate({**COMMON, **KNOBS[name]}))
    method.fit(of.train, of.dev, context(of.population, engine, work=folder / "work"))
    (folder / "out").mkdir()
    method.save(folder / "out")
    told = method.log.to_json()
    (folder / "out" / "log").write_text(json.dumps({k: v for k, v in told.items() if "seconds" not in k}))


def once(engine: HFEngine, name: str, folder: Path, way: str = "", moment: float = 0) -> bool:
    """Fits in a process of its own. Returns whether it was killed."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        if way == "event":
            die_at_file_event(int(moment), folder / "work")
        elif way == "write":
            die_in_write(int(moment))
        code = 1
        try:
            fit(engine, name, folder)
            code = 0
        finally:
            os._exit(code)
    if way == "delay":
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{folder}: a fit ended with {code}")
    return code != 0


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}
    rows = [json.loads(line) for line in (folder / "work" / log.JOURNAL).read_text().splitlines()]
    files[log.JOURNAL] = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows]).encode()
    return files


def main(model: Path, here: Path, name: str) -> dict[str, Any]:
    import peft  # noqa: F401  # once, before all forks

    engine = engine_of(model)
    engine.load()
    started = time.perf_counter()
    once(engine, name, here / "whole")
    long = time.perf_counter() - started
    whole = contents(here / "whole")
    killed, different = {"event": 0, "write": 0, "delay": 0}, []
    for way, step in (("event", 4), ("write", 1)):
        moment = 1
        while once(engine, name, here / f"{way}{moment}", way, moment):
            killed[way] += 1
            once(engine, name, here / f"{way}{moment}")
            if contents(here / f"{way}{moment}") != whole:
                different.append(f"{way}{moment}")
            moment += step
    for share in (0.3, 0.5, 0.6, 0.4):
        if not (here / "delay" / "out").exists():
            killed["delay"] += once(engine, name, here / "delay", "delay", share * long)
    if not (here / "delay" / "out").exists():
        once(engine, name, here / "delay")
    if contents(here / "delay") != whole:
        different.append("delay")
    return {"killed": killed, "different": different, "files": sorted(whole)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
