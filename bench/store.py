"""The run store: one folder a run, records appended batch by batch, the manifest written last.

`<out>/<dataset>/<method>/<key>/` holds `plan.json` (what is run; written first), `timings.jsonl` (one line a batch),
`records.jsonl` (one line an example, in the order of the batch plan), `scores.json` and `scores.jsonl` (written by
scoring) and `manifest.json` (only for a complete run). A batch's timing reaches the disk before its records do, so a
batch is complete exactly when its records are. Times lie apart, so that records of two runs compare byte by byte.
A shard of a run has the same files in a folder below (see `bench.shards`).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import costs
from bench.errors import Held, UsageError
from bench.files import (
    check_writable,
    file_digest,
    folder_name,
    json_lines,
    parse_line,
    pretty_json,
    read_object,
    read_rows,
    write_atomic,
)
from bench.keys import canonical_json, difference, digest
from bench.merging import find_runs, merged
from bench.shards import PART, SHARDS, Shard, division, parts, shown
from bench.stored import (
    DEFAULT_OUT,
    ERROR_FIELD,
    ID_FIELD,
    MANIFEST,
    PLAN,
    RECORDS,
    TIMINGS,
    BatchTiming,
    Listing,
    MetricInfo,
    StoredRun,
    StoredScores,
    read_scores,
    write_scores,
)

__all__ = [
    "DEFAULT_OUT",
    "MANIFEST",
    "PLAN",
    "RECORDS",
    "TIMINGS",
    "BatchTiming",
    "Decision",
    "Existing",
    "Listing",
    "MetricInfo",
    "RunFolder",
    "StoredRun",
    "StoredScores",
    "check_writable",
    "find_runs",
    "merged",
    "read_scores",
    "write_scores",
]

LOCK = ".lock"
CLEARING = ".clearing"
"""Stands in a folder while it is emptied: if that is cut short, the next process empties it again."""

_PATIENCE = 60.0
"""Seconds to wait for the lock of a divided run, which other shards hold for a moment when they begin and merge."""

Record = Mapping[str, Any]


class Existing(enum.StrEnum):
    """What to do with results that are already there."""

    RESUME = "resume"  # a complete run is taken as it is, a partial one is continued
    REUSE = "reuse"  # a complete run is taken as it is, a partial one starts over
    OVERWRITE = "overwrite"  # whatever is there is deleted
    ONLY_CACHED = "only-cached"  # nothing is computed: a run that is not complete is an error


@dataclass(frozen=True)
class Decision:
    """What `RunFolder.open` found: a run to reuse, or one to generate."""

    reuse: bool
    stored_batches: int = 0
    """Batches that an earlier process recorded; `RunFolder.resume` says how many of them fit the plan."""


class RunFolder:
    """The folder of one run while it is being made. A context manager: leaving it frees the lock.

    Usage: `open` decides, `resume` cuts the files back to whole batches, `append` adds one batch, `finish` completes.
    """

    def __init__(self, out: Path, description: Mapping[str, Any], shard: Shard | None = None) -> None:
        """`description` is everything that can change a record; `description["dataset"]["name"]` and
        `description["method"]["name"]` name the folders, its digest the run. A `shard` has a folder in the run's."""
        self.description = json.loads(canonical_json(description))
        self.key = digest(self.description)
        dataset, method = str(description["dataset"]["name"]), str(description["method"]["name"])
        self.path = out / folder_name(dataset) / folder_name(method) / self.key
        self.shard = shard
        self._lock: Any = None
        self._batches: list[list[str]] | None = None
        self._done = 0

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the lock. Safe to call twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.path / name

    def open(self, existing: Existing, about: Mapping[str, Any] | None = None) -> Decision:
        """Decides by what is there; unless a complete run is reused, takes the lock and writes `plan.json`.

        `about` is for people (command, provenance) and changes nothing. Raises UsageError if another process holds
        the folder, if the folder holds another or a damaged run, or if `only-cached` finds no complete run.
        """
        if existing is not Existing.OVERWRITE and merged(self.path) is not None and self._complete():
            return Decision(reuse=True)
        if self.shard is not None:
            self._enter_shard(self.shard, existing)
            if existing is not Existing.OVERWRITE and self._complete():
                return Decision(reuse=True)
        if existing is Existing.ONLY_CACHED:
            state = "is not complete" if self.file(PLAN).exists() else "does not exist"
            raise UsageError(f"--existing only-cached: the run {self.path} {state}; run it with --existing resume")
        self._acquire()
        try:
            if existing is not Existing.OVERWRITE and self._complete():  # finished while we waited for the lock
                self.close()
                return Decision(reuse=True)
            if existing is Existing.RESUME:
                self._check_undivided()
            if existing is not Existing.RESUME or self.file(CLEARING).exists():
                self._clear()
            return Decision(reuse=False, stored_batches=self._claim(about or {}))
        except OSError as error:
            self.close()
            raise UsageError(f"cannot prepare {self.path}: {error.strerror}; choose another --out") from error
        except BaseException:
            self.close()
            raise

    def _enter_shard(self, shard: Shard, existing: Existing) -> None:
        """From here on this is the folder of a shard, once the run's folder is known to hold its like alone."""
        if existing is not Existing.ONLY_CACHED:
            self._acquire(_PATIENCE)
            try:
                self._admit(shard, existing)
            except OSError as error:
                raise UsageError(f"cannot prepare {self.path}: {error.strerror}; choose another --out") from error
            finally:
                self.close()
        self.path = self.path / SHARDS / shard.folder
        self.description = {**self.description, PART: asdict(shard)}
        self.key = digest(self.description)

    def _admit(self, shard: Shard, existing: Existing) -> None:
        """Makes the shard's folder, or refuses to beside an undivided run or a division into another number.

        To overwrite, such are deleted first, as is what was merged of earlier shards.
        """
        others = {part: folder for part, folder in parts(self.path).items() if part.of != shard.of}
        alone = self.file(PLAN).exists() and not self.file(SHARDS).exists()
        if existing is Existing.OVERWRITE:
            for folder in others.values():
                _delete_free(folder)
            self._clear(keep=SHARDS)
        elif others:
            raise UsageError(
                f"{self.path} is divided into {next(iter(others)).of} shards, so there is no --shard {shard}; give "
                "that number, or start over with --existing overwrite"
            )
        elif alone:
            raise UsageError(
                f"{self.path} was begun without --shard; go on without it, or start over with --existing overwrite"
            )
        self.file(SHARDS).mkdir(exist_ok=True)
        (self.file(SHARDS) / shard.folder).mkdir(exist_ok=True)

    def _check_undivided(self) -> None:
        """Refuses an undivided run where there are shards, some of which are missing."""
        divided = division(self.path)
        if divided is not None:
            raise UsageError(
                f"{self.path} is not whole: {divided.told()}; make what is missing with {shown(divided.missing)}, or "
                "start over with --existing overwrite"
            )

    def _complete(self) -> bool:
        if not self.file(MANIFEST).exists():
            return False
        self._same(self.file(MANIFEST))
        problem = StoredRun.load(self.path).damage()
        if problem:
            raise UsageError(f"{problem}; start it over with --existing overwrite")
        return True

    def _same(self, path: Path) -> None:
        try:
            stored = read_object(path).get("description")
        except UsageError as error:
            raise UsageError(f"{error}; start over with --existing overwrite") from error
        if stored != self.description:
            paths = difference(stored, self.description) if isinstance(stored, dict) else ["description"]
            raise UsageError(
                f"{path} belongs to another run (they differ in {', '.join(paths)}); "
                "start over with --existing overwrite"
            )

    def _acquire(self, wait: float = 0.0) -> None:
        from filelock import FileLock, Timeout

        check_writable(self.path)
        lock = FileLock(str(self.file(LOCK)))
        try:
            lock.acquire(timeout=wait, poll_interval=0.1)
        except Timeout as error:
            raise Held(f"another process is writing {self.path}; wait for it or choose another --out") from error
        except (NotImplementedError, OSError) as error:
            raise UsageError(f"cannot lock {self.path} ({error}); choose an --out on a local file system") from error
        self._lock = lock

    def _clear(self, keep: str = LOCK) -> None:
        """Deletes all but the lock and `keep`. The manifest goes first: half a folder must never look complete."""
        self.file(CLEARING).touch()
        with contextlib.suppress(FileNotFoundError):
            self.file(MANIFEST).unlink()
        for child in self.path.iterdir():
            if child.name in (LOCK, CLEARING, keep):
                continue
            if child.name == SHARDS:
                for folder in parts(self.path).values():
                    _delete_free(folder)
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        self.file(CLEARING).unlink()

    def _claim(self, about: Mapping[str, Any]) -> int:
        """Writes the plan, or checks the one that is there. Returns the number of batches that are timed."""
        if self.file(PLAN).exists():
            self._same(self.file(PLAN))
        elif self.file(RECORDS).exists():
            raise UsageError(f"{self.file(RECORDS)} has no {PLAN} beside it; start over with --existing overwrite")
        else:
            plan = {"about": dict(about), "description": self.description, "key": self.key}
            write_atomic(self.file(PLAN), pretty_json(plan))
        timings = self.file(TIMINGS)
        return timings.read_bytes().count(b"\n") if timings.exists() else 0

    def resume(self, batches: Sequence[Sequence[str]]) -> int:
        """Cuts the files back to whole batches of the plan and returns how many of those there are.

        `batches` are lists of example ids. Raises UsageError if the records contradict the plan.
        """
        if self._lock is None:
            raise RuntimeError("open() the run folder first")
        self._batches = [list(batch) for batch in batches]
        records, timings = _Tail(self.file(RECORDS)), _Tail(self.file(TIMINGS))
        planned = [example for batch in self._batches for example in batch]
        for number, row in enumerate(records.rows):
            if number >= len(planned) or row.get(ID_FIELD) != planned[number]:
                wanted = repr(planned[number]) if number < len(planned) else "nothing"
                raise UsageError(
                    f"{records.path}, line {number + 1}: example {row.get(ID_FIELD)!r} where the plan has {wanted}; "
                    "start the run over with --existing overwrite"
                )
        for number, (row, batch) in enumerate(zip(timings.rows, self._batches, strict=False)):
            if (row.get("index"), row.get("examples")) != (number, len(batch)):
                raise UsageError(
                    f"{timings.path}, line {number + 1}: not batch {number} of {len(batch)} examples, which the plan "
                    "has there; start the run over with --existing overwrite"
                )
        self._done = _whole_batches(len(records.rows), self._batches, at_most=len(timings.rows))
        costs.lost(self.file(costs.LEDGER), timings.rows[self._done :])
        records.cut(sum(len(batch) for batch in self._batches[: self._done]))
        timings.cut(self._done)
        return self._done

    def append(self, batch_index: int, records: Sequence[Record], timing: BatchTiming) -> None:
        """Writes one batch so that it survives a crash. Raises UsageError if the disk is full or fails.

        Raises ValueError if batch, order or ids are not those of the plan: a mistake of the program, not of its user.
        """
        if self._batches is None:
            raise RuntimeError("resume() the run folder first")
        if batch_index != self._done or batch_index >= len(self._batches) or timing.index != batch_index:
            raise ValueError(f"batch {batch_index} (timing {timing.index}) given, batch {self._done} is next")
        batch = self._batches[batch_index]
        if [record[ID_FIELD] for record in records] != batch or timing.examples != len(batch):
            raise ValueError(f"the records of batch {batch_index} are not those of the plan")
        data = json_lines(records)
        timing_data = json_lines([asdict(timing)])
        timings_size = self._append(self.file(TIMINGS), timing_data)
        try:
            self._append(self.file(RECORDS), data)
        except UsageError:
            with contextlib.suppress(OSError):
                os.truncate(self.file(TIMINGS), timings_size)
            raise
        self._done += 1

    def _append(self, path: Path, data: bytes) -> int:
        """Appends durably and returns the size before; after a failure the file is as it was."""
        try:
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(size)
                    raise
        except OSError as error:
            raise self._write_error(path, error) from error
        return size

    def _write_error(self, path: Path, error: OSError) -> UsageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"{error.strerror}"
        cure = "free some space" if full else "mend that"
        return UsageError(
            f"cannot write {path}: {reason}; all {self._done} complete batches are kept: {cure} and give the same "
            "command again"
        )

    def finish(
        self,
        *,
        provenance: Mapping[str, Any],
        fit: Mapping[str, Any] | None = None,
        label: str | None = None,
        variant: str | None = None,
        truth: bool = False,
        totals: Mapping[str, Any] | None = None,
    ) -> StoredRun:
        """Writes the manifest, which makes the run complete, and returns the run.

        Totals are summed from the stored batches, so that a resumed run counts what an earlier process did;
        `totals` adds to them or replaces them (embed_seconds, peak_memory). `label` and `variant` are how tables call
        the run, `truth` says whether the method was told how the data were made; none of them is part of its key.
        """
        if self._batches is None or self._done != len(self._batches):
            raise RuntimeError("a run is finished only after all of its batches are appended")
        for name in (RECORDS, TIMINGS):  # a run of no batches has files all the same
            self.file(name).touch()
        manifest = {
            "counts": {"batches": self._done, "examples": sum(map(len, self._batches))},
            "description": self.description,
            "fit": None if fit is None else dict(fit),
            "key": self.key,
            "label": label,
            "provenance": dict(provenance),
            "records_sha256": file_digest(self.file(RECORDS)),
            "status": "complete",
            "totals": {**_totals(self.file(RECORDS), self.file(TIMINGS)), **(totals or {})},
            "truth": truth,
            "variant": variant,
        }
        try:
            write_atomic(self.file(MANIFEST), pretty_json(manifest))
        except OSError as error:
            raise self._write_error(self.file(MANIFEST), error) from error
        return StoredRun.load(self.path)

    def name_variant(self, variant: str) -> None:
        """Gives a complete run that has no name in an ablation this one, so that later tables have it too.

        The name is a convenience: a folder that another process holds, or that cannot be written, is left as it is.
        """
        with contextlib.suppress(UsageError, OSError):
            self._acquire()
            manifest = read_object(self.file(MANIFEST))
            if manifest.get("variant") is None:
                write_atomic(self.file(MANIFEST), pretty_json({**manifest, "variant": variant}))


def _delete_free(folder: Path) -> None:
    """Deletes a shard's folder. Raises Held if a process is writing it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(str(folder / LOCK)).acquire(timeout=0):
            shutil.rmtree(folder)
    except Timeout as error:
        raise Held(f"another process is writing {folder}; wait for it or choose another --out") from error


class _Tail:
    """A JSON-lines file as a crash may have left it: the rows of its sound beginning, and where each ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.ends = [0]
        lines = list(BytesIO(path.read_bytes())) if path.exists() else []
        for number, line in enumerate(lines):
            row = parse_line(line)
            if row is None:
                if any(parse_line(later) is not None for later in lines[number + 1 :]):
                    raise UsageError(
                        f"{path}, line {number + 1} is damaged; start the run over with --existing overwrite"
                    )
                break
            self.rows.append(row)
            self.ends.append(self.ends[-1] + len(line))

    def cut(self, rows: int) -> None:
        """Keeps the first `rows` rows and nothing after them."""
        if self.path.exists() and self.path.stat().st_size != self.ends[rows]:
            with self.path.open("r+b") as file:
                file.truncate(self.ends[rows])
                os.fsync(file.fileno())


def _whole_batches(records: int, batches: Sequence[Sequence[str]], at_most: int) -> int:
    done, used = 0, 0
    while done < min(at_most, len(batches)) and used + len(batches[done]) <= records:
        used += len(batches[done])
        done += 1
    return done


_NOT_SUMMED = ("index", "peak_memory", "energy_joules", "device", "accelerator_seconds", "core_seconds")
"""Of a batch's timing; what it cost is told by stage, see `bench.costs`."""


def _totals(records: Path, timings: Path) -> dict[str, Any]:
    failed = sum(row.get(ERROR_FIELD) is not None for row in read_rows(records))
    rows = list(read_rows(timings))
    summed = [f.name for f in fields(BatchTiming) if f.name not in _NOT_SUMMED]
    totals: dict[str, Any] = {name: sum(row[name] for row in rows) for name in summed}
    peaks = [row["peak_memory"] for row in rows if row["peak_memory"] is not None]
    return {**totals, "embed_seconds": 0.0, "failed": failed, "peak_memory": max(peaks, default=None)}
