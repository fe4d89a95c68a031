"""Where losses can be watched besides the log: TensorBoard, Trackio or Weights & Biases, on this machine by default.

No tracker needs a network or an account: TensorBoard and wandb write into the fit's folder, Trackio into its own
database. Whoever sets WANDB_MODE or TRACKIO_SPACE_ID sends the same elsewhere. Only losses, rates and the method's
knobs are told: no environment, no command line, no name of the machine.
"""

from __future__ import annotations

import contextlib
import enum
import io
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.errors import MissingPackage, UnknownName, UsageError, first_line
from bench.keys import digest

PROJECT = "dep-bench"


class TrackerName(enum.StrEnum):
    """Trackers there are. Each is an extra and a package of the same name."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    TRACKIO = "trackio"
    WANDB = "wandb"


def check(name: str) -> TrackerName:
    """The tracker of that name. Raises UnknownName, or MissingPackage if its package is not installed."""
    if name not in set(TrackerName):
        raise UnknownName("tracker", name, [each.value for each in TrackerName])
    wanted = TrackerName(name)
    if wanted is not TrackerName.NONE:
        try:
            version(wanted.value)
        except PackageNotFoundError:
            raise MissingPackage(wanted.value, f"--tracker {wanted}", extra=wanted.value) from None
    return wanted


def hint(name: str, folder: Path) -> str:
    """How to look at what a tracker was told, for a fit that lies in `folder`."""
    return {
        TrackerName.NONE: "",
        TrackerName.TENSORBOARD: f"tensorboard --logdir {folder.parent}",
        TrackerName.TRACKIO: f"trackio show --project {PROJECT}",
        TrackerName.WANDB: f"wandb sync {folder / 'wandb'}/offline-run-*",
    }[check(name)]


class Tracker(ABC):
    """Takes named numbers at steps. A step that is told again (after a kill) brings the same numbers."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers that are not finite are left out by the caller."""

    @abstractmethod
    def close(self) -> None:
        """Nothing comes after this."""


class _TensorBoard(Tracker):
    def __init__(self, folder: Path, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Whatever an earlier process told beyond the step that training goes on from is dropped by the reader.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1, flush_secs=10)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio(Tracker):
    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        import trackio

        with _stdout_kept_clean():
            trackio.init(
                project=PROJECT,
                name=run,
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._library: Any = trackio

    def log(self, values: Mapping[str, float], step: int) -> None:
        with _stdout_kept_clean():
            self._library.log(dict(values), step=step)

    def close(self) -> None:
        with _stdout_kept_clean():
            self._library.finish()  # not the run's own, which would be called, and speak, again at exit


class _Wandb(Tracker):
    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        # Git state, code, packages, machine and console are none of a tracker's business.
        settings = wandb.Settings(
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            console="off",
            silent=True,
            host="-",
            program="-",
        )
        self._run: Any = wandb.init(
            project=PROJECT,
            name=run,
            id=digest(run),
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE") or "offline",
            config=dict(config),
            settings=settings,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Careful:
    """A tracker, or none, that never costs a fit: what fails later than at the start is said once, and that is all."""

    def __init__(self, tracker: Tracker | None, name: str) -> None:
        self._tracker, self._name = tracker, name

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tells the numbers that are finite."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if self._tracker is not None and finite:
            with self._survived():
                self._tracker.log(finite, step)

    def close(self) -> None:
        if self._tracker is not None:
            with self._survived():
                self._tracker.close()

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = None
            told = f"--tracker {self._name} failed and is left out from here on: {first_line(error)}"
            print(told, file=sys.stderr, flush=True)


def open_tracker(name: str, folder: Path | None, config: Mapping[str, Any], steps: int = 0) -> Careful:
    """The tracker of a fit that keeps its files in `folder` and has taken `steps` steps already.

    `config` is told with the run, whose name is the last three parts of the folder's path. Raises UsageError if the
    tracker cannot start, or has no folder to write to.
    """
    wanted = check(name)
    if wanted is TrackerName.NONE:
        return Careful(None, name)
    if folder is None:
        raise UsageError(f"--tracker {name} needs a folder to write to: give the fit a work folder")
    run = "/".join(folder.with_suffix("").parts[-3:])
    try:
        return Careful(_started(wanted, folder, run, config, steps), name)
    except Exception as error:  # of many kinds, each library's own
        raise UsageError(f"--tracker {name} cannot start: {first_line(error)}; choose --tracker none") from error


def _started(name: TrackerName, folder: Path, run: str, config: Mapping[str, Any], steps: int) -> Tracker:
    if name is TrackerName.TENSORBOARD:
        return _TensorBoard(folder, steps)
    return _Trackio(run, config) if name is TrackerName.TRACKIO else _Wandb(folder, run, config)


def _stdout_kept_clean() -> contextlib.redirect_stdout[io.StringIO]:
    """Standard output holds the leaderboard alone."""
    return contextlib.redirect_stdout(io.StringIO())
