"""A folder that is made in stages and can be killed at any moment: what is whole is kept, what is not is made again.

Each stage writes into `work/NAME.part`, which is renamed to `work/NAME` when all of it is on the disk. The manifest is
written last. So a stage's folder is whole or is not there, and so is the result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import check_writable, file_digest, pretty_json, read_object, sync_folder, write_atomic
from bench.keys import difference

MANIFEST, WORK, PLAN, COUNTS, LOCK = "prepare.json", ".work", "plan.json", "counts.json", ".lock"

Make = Callable[[Path], dict[str, Any]]
"""Writes a stage's files into the folder given, and returns what is to be remembered of it as JSON values."""


class Staged:
    """A folder and what is to be made there. Use it within `open`, so that one process at a time works on it."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], tools: Mapping[str, str]) -> None:
        """Takes no lock and touches no file.

        Args:
            folder: where the result goes; made if it is not there.
            plan: all that decides what the result is. A result or unfinished work with another plan is an error.
            tools: name -> version of what writes the stages. Unfinished work of other versions is started over.
        """
        self.folder, self.plan, self.tools = folder, dict(plan), dict(tools)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Any] | None]:
        """Holds the lock. Gives the manifest of a whole result with this plan, or None: then stages are to be made.

        Raises:
            UsageError: the folder cannot be written, belongs to another process or plan, or holds something else.
        """
        from filelock import FileLock, Timeout

        check_writable(self.folder)
        try:
            with FileLock(str(self.folder / LOCK)).acquire(timeout=0):
                if (self.folder / MANIFEST).exists():
                    yield self._finished()
                else:
                    self._begin()
                    yield None
        except Timeout as error:
            message = f"another process is preparing {self.folder}; wait for it or choose another --out"
            raise UsageError(message) from error

    def stage(self, name: str, make: Make) -> dict[str, Any]:
        """Makes a stage unless it is there already. Returns what `make` returned, now or then."""
        whole = self.place(name)
        if not whole.exists():
            part = whole.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            (part / COUNTS).write_text(pretty_json(make(part)), encoding="utf-8")
            for file in part.iterdir():
                _sync(file)
            sync_folder(part)
            part.rename(whole)
            sync_folder(whole.parent)
        return read_object(whole / COUNTS)

    def place(self, name: str) -> Path:
        """The folder of a stage."""
        return self.folder / WORK / name

    @property
    def scratch(self) -> Path:
        """A folder for temporary files of any stage."""
        return self.folder / WORK / "tmp"

    def publish(self, name: str, files: Sequence[str], spec: tuple[str, str], counts: Mapping[str, Any]) -> None:
        """Moves a stage's files into the folder, writes a text file beside them, and last of all the manifest.

        Args:
            name: the stage.
            files: its files. Those that a killed run moved already stay where they are.
            spec: name and text of the text file.
            counts: goes into the manifest.
        """
        for file in files:
            if (self.place(name) / file).exists():
                os.replace(self.place(name) / file, self.folder / file)
        write_atomic(self.folder / spec[0], spec[1])
        made = {file: _facts(self.folder / file) for file in (*files, spec[0])}
        manifest = {"plan": self.plan, "versions": self.tools, "counts": dict(counts), "files": made}
        write_atomic(self.folder / MANIFEST, pretty_json(manifest))
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def _finished(self) -> Mapping[str, Any]:
        manifest = read_object(self.folder / MANIFEST)
        self._compare(manifest.get("plan"), "holds a dataset prepared")
        shutil.rmtree(self.folder / WORK, ignore_errors=True)  # a run may have been killed between manifest and this
        for file, facts in manifest["files"].items():
            if not (self.folder / file).is_file() or _facts(self.folder / file) != facts:
                what = f"{self.folder / file} is not the file that was written"
                raise UsageError(f"{what}; delete {self.folder} and prepare again, or keep your copy elsewhere")
        return manifest

    def _begin(self) -> None:
        work = self.folder / WORK
        if (work / PLAN).exists():
            found = read_object(work / PLAN)
            self._compare(found.get("plan"), "holds unfinished work")
            if found.get("versions") != self.tools:
                shutil.rmtree(work)
        elif others := [file.name for file in self.folder.iterdir() if file.name not in (WORK, LOCK)]:
            raise UsageError(f"{self.folder} is not empty (it holds {others[0]!r}); choose a new folder with --out")
        work.mkdir(exist_ok=True)
        if not (work / PLAN).exists():
            write_atomic(work / PLAN, pretty_json({"plan": self.plan, "versions": self.tools}))
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()

    def _compare(self, found: Any, what: str) -> None:
        if found == self.plan:
            return
        paths = difference(found, self.plan) if isinstance(found, dict) else ["plan"]
        told = "; ".join(f"{path}: {_at(found, path)} there, {_at(self.plan, path)} now" for path in paths[:3])
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        way = f"choose another --out, or delete {self.folder} to prepare it anew"
        raise UsageError(f"{self.folder} {what} from other inputs or thresholds ({told}{more}); {way}")


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_digest(file)}


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
