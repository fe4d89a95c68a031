"""Where the time goes: phases, real (unpadded) tokens, peak memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """Seconds by phase. A phase opened within another one pauses it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def add(self, phase: str, seconds: float) -> None:
        """Adds seconds measured elsewhere."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

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
        now = time.perf_counter()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now

    def start_peak(self) -> None:
        """Starts a new high-water mark of memory."""
        _reset_peak_rss()


def synchronize() -> None:
    """Waits for CUDA, if this process uses it: a kernel still running is time not yet counted."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
