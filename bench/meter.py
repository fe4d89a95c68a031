"""Where the time goes: phases, what they cost, peak memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import distributed
from bench.costs import Cost, merged
from bench.energy import Stopwatch

PHASES = ("load", "embed", "fit", "adapt", "hidden", "prefill", "decode")
"""Phases that never overlap: embedding texts while fitting counts as embed, not as fit. `adapt` is what is trained of
single test users, whenever that was done: a run that finds it done counts it in full. `hidden` is reading the hidden
states of texts."""


def _reset_peak_rss() -> bool:
    """Asks Linux to start the resident-memory high-water mark anew. False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss() -> int:
    """Bytes of the resident-memory high-water mark: since the last reset on Linux, else of the process's life."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource
    import sys

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@dataclass
class Meter:
    """Seconds by phase, and costs. A phase opened within another one pauses it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _costs: list[Cost] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _watch: Stopwatch | None = None

    def add(self, phase: str, seconds: float, costs: Sequence[Cost] | None = None) -> None:
        """Adds seconds measured elsewhere, and what they cost, which is else unknown."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._costs = merged([*self._costs, *([Cost(phase, None, seconds)] if costs is None else costs)])

    def settle(self, *, keep: str | None = None) -> list[Cost]:
        """Hands over what was metered since the last call, by phase and device; phase `keep` stays for a later one."""
        found = [cost for cost in self._costs if cost.stage != keep]
        self._costs = [cost for cost in self._costs if cost.stage == keep]
        return found

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of the block as `name`, after the accelerator has finished its work."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        synchronize()
        if self._watch is None:
            self._watch = Stopwatch()
        elif not self._open:
            self._watch.restart()
        else:
            phase = self._open[-1]
            spent = self._watch.lap(distributed.size() if phase == "fit" else 1)
            self.add(phase, spent.seconds, [Cost.of(phase, spent)])

    def start_peak(self) -> None:
        """Starts a new high-water mark of memory."""
        _reset_peak_rss()


def synchronize() -> None:
    """Waits for CUDA, if this process uses it: a kernel still running is time not yet counted."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
