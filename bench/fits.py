"""Fitting once: what a method learned lies beside its runs and is loaded again, never trained twice.

`<out>/<dataset>/<method>/fit-<key>/` holds what `Method.save` wrote, `training.jsonl` where there is a training loop,
and `fit.json`, which is written before the folder gets its name: a fit that was killed leaves nothing that could be
taken for whole. What it leaves is `fit-<key>.work`, from where the next process goes on; it is gone once the fit is
saved. `fit-<key>.kept` is for what methods compute with the fit and would compute again (adapters of single users).
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import distributed
from bench.costs import LEDGER, Cost, append_costs, as_rows, ledger, merged
from bench.errors import Held, UsageError
from bench.files import folder_name, pretty_json, read_object, write_atomic
from bench.keys import digest
from bench.meter import Meter, peak_rss
from bench.method import Context, Method, TrainingPlan
from bench.store import Existing, check_writable
from bench.trackers import TrackerName, hint
from bench.training.log import JOURNAL

if TYPE_CHECKING:
    from bench.data.split import Dataset

FIT_FILE = "fit.json"
Say = Callable[[str], None]
Call = Callable[[], None]

_OWNER = ".owner"
"""Beside a fit's lock: who has it, for people. Only the lock itself counts."""

_LOOK, _TELL = 1.0, 60.0
"""Seconds between two looks at a lock that is waited for, and between two lines that say so."""

_SAMPLE = 32
"""Texts whose embedding is timed to tell how long the rest will take."""

_BACKWARD = 2.5
"""A training step through frozen weights costs about this many forward passes (measured on CPU and CUDA)."""


@dataclass(frozen=True)
class Fit:
    """A method's learned state on disk, and what it cost."""

    folder: Path
    info: Mapping[str, Any]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def fit_or_load(
    method: Method,
    dataset: Dataset,
    ctx: Context,
    key: Mapping[str, Any],
    out: Path,
    existing: Existing,
    say: Say,
    call: Call = lambda: None,
    wait: bool = False,
) -> Fit:
    """Leaves `method` loaded from its folder, fitted first if need be: then `call` has other processes fit as well.

    Always loads what was saved, so that a run that fits and one that finds the fit do the same from there on. While
    another process makes the fit, raises Held; if `wait`, waits for its end, and goes on from what it kept if it died.
    """
    folder = fit_folder(method, dataset, key, out)
    parent = folder.parent
    if existing is Existing.OVERWRITE:
        shutil.rmtree(kept_folder(folder), ignore_errors=True)
        if folder.exists():
            shutil.rmtree(folder)
    if not (folder / FIT_FILE).exists():
        check_writable(parent)
        _fit(method, dataset, ctx, key, folder, existing is Existing.RESUME, say, call, wait)
    else:
        shutil.rmtree(_work(folder), ignore_errors=True)  # left by a kill right after the fit got its name
        say(f"taking the fit at {folder}")
    info = read_object(folder / FIT_FILE)
    if info.get("key") != dict(key):
        raise UsageError(f"{folder / FIT_FILE} belongs to another fit; start over with --existing overwrite")
    method.load(folder, ctx)
    return Fit(folder, info)


def fit_folder(method: Method, dataset: Dataset, key: Mapping[str, Any], out: Path) -> Path:
    """Where the fit with this key lies."""
    return out / folder_name(dataset.name) / folder_name(method.learner().name) / f"fit-{digest(key)}"


def _made(folder: Path) -> bool:
    """Whether the fit is there; the folder is listed first, as NFS may remember for a while that it was not."""
    return folder.name in os.listdir(folder.parent) and (folder / FIT_FILE).exists()


@contextlib.contextmanager
def _alone(folder: Path, say: Say, wait: bool) -> Iterator[None]:
    """Holds the fit's lock, which the system frees if this process dies, wherever it runs.

    If somebody else has it, waits as long as that lives and says for whom; or raises Timeout unless `wait`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{folder}.lock")
    start, telling = time.monotonic(), 0.0
    while True:
        try:
            lock.acquire(timeout=_LOOK if wait else 0, poll_interval=_LOOK / 2)
            break
        except Timeout:
            if not wait:
                raise
        if (waited := time.monotonic() - start) >= telling:
            telling = waited + _TELL
            say(f"waiting for {_owner(folder)}, which makes the fit {folder.name} ({duration(waited)} by now)")
    try:
        with contextlib.suppress(OSError):
            Path(f"{folder}{_OWNER}").write_text(f"process {os.getpid()} on {platform.node() or 'this machine'}")
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(f"{folder}{_OWNER}")
        lock.release()


def _owner(folder: Path) -> str:
    try:
        return Path(f"{folder}{_OWNER}").read_text() or "another process"
    except OSError:
        return "another process"


def kept_folder(folder: Path) -> Path:
    """Where runs that share the fit in `folder` keep what they compute with it (see `Context.kept`)."""
    return folder.with_name(f"{folder.name}.kept")


def _work(folder: Path) -> Path:
    """Where a fit keeps what it goes on from after a kill."""
    return folder.with_name(f"{folder.name}.work")


def _fit(
    method: Method,
    dataset: Dataset,
    ctx: Context,
    key: Mapping[str, Any],
    folder: Path,
    resume: bool,
    say: Say,
    call: Call,
    wait: bool,
) -> None:
    from filelock import Timeout

    try:
        with _alone(folder, say, wait), ctx.engine.training():
            if _made(folder):  # made by another process since we looked
                return
            work = _prepare_work(folder, resume, say)
            ctx = replace(ctx, work=work)
            meter: Meter = ctx.meter
            with meter.phase("load"):
                ctx.engine.load()
            embedded = meter.seconds.get("embed", 0.0)
            fitted = meter.seconds.get("fit", 0.0)
            plan = method.training_plan(dataset.train, dataset.dev, ctx)
            _announce(plan, ctx, say)
            if command := hint(ctx.tracker, folder):
                say(f"watch it with: {command}")
            if distributed.size() > 1:
                say(f"training in {distributed.size()} processes")
                _embed_once(plan, ctx)
            append_costs(work / LEDGER, _named(meter.settle()))
            call()
            meter.start_peak()
            ctx.engine.peak_memory()
            with meter.phase("fit"):
                method.fit(dataset.train, dataset.dev, ctx)
            log = getattr(method, "log", None)
            told = _training_info(log.to_json()) if log is not None else {}
            before = told.pop("seconds_before", 0.0)  # by processes that were killed
            costs = [*ledger(work / LEDGER), *_earlier(log, before), *_named(meter.settle())]
            info = {
                "key": dict(key),
                "seconds": meter.seconds.get("fit", 0.0) - fitted + before,
                "embed_seconds": meter.seconds.get("embed", 0.0) - embedded,
                "peak_memory": ctx.engine.peak_memory() or peak_rss(),
                "costs": as_rows(merged(costs)),
                **({"processes": distributed.size()} if distributed.size() > 1 else {}),
                **told,
            }
            temporary = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            method.save(temporary)
            _keep_lines(work, temporary)
            write_atomic(temporary / FIT_FILE, pretty_json(info))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            shutil.rmtree(work, ignore_errors=True)  # whoever has seen the fit may be deleting it, too
    except Timeout as error:
        raise Held(f"another process is fitting {folder}; wait for it or choose another --out") from error


def _named(costs: Sequence[Cost]) -> list[Cost]:
    """Costs of a fit, in which embedding and the like are apart from that for the texts to be written."""
    return [cost if cost.stage == "fit" else replace(cost, stage=f"fit {cost.stage}") for cost in costs]


def _earlier(log: Any, seconds: float) -> Sequence[Cost]:
    """What killed processes spent on training up to where the last one went on."""
    known: Sequence[Cost] = getattr(log, "costs", [])
    return known or ([Cost("fit", None, seconds)] if seconds else [])


def _prepare_work(folder: Path, resume: bool, say: Say) -> Path:
    work = _work(folder)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    elif work.exists() and any(
        path.name != LEDGER for path in work.iterdir()
    ):  # what was paid is nothing to go on from
        say(f"an earlier process left a fit unfinished; going on from what it kept in {work}")
    work.mkdir(exist_ok=True)
    return work


def _keep_lines(work: Path, folder: Path) -> None:
    """Copies what people watch to the fit: a kill may come before that has its name, so nothing is moved."""
    if (work / JOURNAL).exists():
        shutil.copyfile(work / JOURNAL, folder / JOURNAL)
    for tracker in TrackerName:
        if (work / tracker).is_dir():
            shutil.copytree(work / tracker, folder / tracker, symlinks=True)


def _training_info(log: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seconds_before": log["seconds_before"],
        "rows": log["rows"],
        "tokens": log["tokens"],
        "parameters": log["parameters"],
        "epochs": len(log["epochs"]),
        "best_epoch": log["best_epoch"],
        "log": {"epochs": log["epochs"], "steps": log["steps"]},
    }


def _announce(plan: TrainingPlan | None, ctx: Context, say: Say) -> None:
    """Says how much is about to be trained and how long that takes here, before it starts."""
    if plan is None:
        return
    speed = ctx.engine.speed()
    total = plan.tokens * plan.epochs
    long = f", about {duration(_BACKWARD * total / speed.prefill_tokens_per_second)} here" if speed else ""
    say(
        f"training on {plan.rows:,} rows, {plan.tokens:,} tokens, {plan.epochs} epochs{long}."
        f"{_embedding(plan.texts, ctx)} Smaller with {plan.smaller}."
    )


def _embed_once(plan: TrainingPlan | None, ctx: Context) -> None:
    """Embeds before other processes are called, which find all vectors in the cache, where they share a disk."""
    if plan is not None and plan.texts:
        with ctx.meter.phase("embed"):
            ctx.encoder.encode(plan.texts, progress=True)


def _embedding(texts: Sequence[str], ctx: Context) -> str:
    """What embedding will take, from the time of a sample (whose vectors are kept: nothing is done twice)."""
    if not texts:
        return ""
    sample = texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]
    with ctx.meter.phase("embed"):
        ctx.encoder.load()
        start = time.perf_counter()
        ctx.encoder.encode(sample)
        seconds = time.perf_counter() - start
    return f" {len(texts):,} texts to embed first, about {duration(seconds / len(sample) * len(texts))}."
