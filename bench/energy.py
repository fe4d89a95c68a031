"""What work draws from the wall: the devices' own energy counters, read before and after.

On NVIDIA GPUs NVML's counter of a device (millijoules since the driver was loaded; Volta and newer), through the
package nvidia-ml-py. Without an accelerator Intel's RAPL counters of the processor packages and their memory, as Linux
shows them. One or the other, never both in one figure. Counters are those of whole devices: whatever else runs there is
in it.
What cannot be measured is None, never zero, and `Gauge.told` says why.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import first_line
from bench.provenance import cores, cpu

POWERCAP = Path("/sys/class/powercap")
_WATTS = 1000.0
"""More than any processor package draws: how often a RAPL counter must be looked at, so that it never wraps unseen."""
_MIG = "a slice of a GPU (MIG) has no energy counter of its own"
_NO_PACKAGE = "NVML needs the package 'nvidia-ml-py', which is not installed; run: pip install 'dep-bench[energy]'"


class _Unavailable(Exception):
    """A counter that cannot be read, and why."""


@dataclass(frozen=True)
class Spent:
    """What a piece of work took."""

    seconds: float
    """On the wall."""
    energy_joules: float | None = None
    """Of the whole devices; None where that cannot be measured."""
    device: str | None = None
    """The accelerator's name, or without one the processor's; None for work of a service elsewhere."""
    accelerator_seconds: float | None = None
    """Seconds times accelerators at work. None in what was stored before this was counted."""
    core_seconds: float | None = None
    """Seconds times usable processor cores, for work without an accelerator."""

    def split(self, seconds: float) -> tuple[Spent, Spent]:
        """So many of the seconds, with their share of everything, and the rest."""
        share = min(1.0, seconds / self.seconds) if self.seconds else 0.0
        return self._share(share), self._share(1.0 - share)

    def _share(self, share: float) -> Spent:
        scaled = {
            name: None if (value := getattr(self, name)) is None else value * share
            for name in ("energy_joules", "accelerator_seconds", "core_seconds")
        }
        return replace(self, seconds=self.seconds * share, **scaled)


@dataclass(frozen=True)
class Reading:
    """All counters at one moment, in joules; None for one that cannot be read."""

    gpus: Mapping[str, float | None]
    """By UUID."""
    cpu: float | None


@dataclass(frozen=True)
class _Use:
    """Accelerators at work."""

    uuids: Sequence[str | None]
    """As NVML calls them; None for one that is not NVIDIA's."""
    name: str | None
    count: int


class Gauge:
    """The counters of this machine, and which of its devices this process works on."""

    def __init__(self, nvml: Any, powercap: Path, environment: Mapping[str, str], torch: Any = None) -> None:
        """`nvml` is the module pynvml or None; `torch` stands in for the module, which is else taken if imported."""
        self._environment, self._torch = environment, torch
        self._cpu, self._cores = cpu(), cores() or 1
        self._nvml, self._handles, self._names = nvml, dict[str, Any](), dict[str, str]()
        self._reasons: dict[str, str] = {}
        self._measured: set[str] = set()
        self._missing: set[str] = set()
        self._lock = threading.Lock()
        self._rapl: Rapl | None = None
        try:
            self._find_gpus()
        except _Unavailable as error:
            self._reasons["nvml"] = str(error)
        try:
            self._rapl = Rapl(powercap)
        except _Unavailable as error:
            self._reasons["rapl"] = str(error)

    def read(self) -> Reading:
        """Never raises: a counter that fails is None in this reading."""
        with self._lock:
            gpus = {uuid: self._read_gpu(uuid, handle) for uuid, handle in self._handles.items()}
        return Reading(gpus, self._read_cpu())

    def spent(
        self, start: Reading, end: Reading, seconds: float, accelerators: int | None = None, processes: int = 1
    ) -> Spent:
        """What lies between two readings.

        `accelerators` is what `Engine.accelerators` says. `processes` work together, each on one accelerator or all on
        the same processor.
        """
        if accelerators == 0:
            return Spent(seconds, None, None, 0.0, 0.0)
        use = self._use(accelerators, processes)
        if use is None:
            energy = self._told("RAPL, whole processor", _difference(start.cpu, end.cpu), self._reasons.get("rapl"))
            return Spent(seconds, energy, self._cpu, 0.0, seconds * self._cores)
        joules = [self._gpu_energy(uuid, start, end) for uuid in use.uuids]
        energy = None if None in joules or len(joules) < use.count else sum(filter(None, joules))
        if len(joules) < use.count:
            self._missing.add(self._reasons.get("nvml", "accelerators of other machines cannot be read from here"))
        return Spent(seconds, energy, use.name, seconds * use.count, 0.0)

    def told(self) -> dict[str, list[str]]:
        """What was measured by which counters so far, and why what is missing is."""
        return {"measured": sorted(self._measured), "missing": sorted(self._missing)}

    # -- which devices --------------------------------------------------------------------------------------------

    def _use(self, told: int | None, processes: int) -> _Use | None:
        """The accelerators at work; None where the processor is."""
        own = self._torch_gpus()
        if processes > 1 and own:
            here = min(processes, int(self._environment.get("LOCAL_WORLD_SIZE") or processes))
            own = {**own, **{i: self._torch_uuid(i) for i in range(min(here, self._cuda().device_count()))}}
            count = max(len(own), processes) if here < processes else len(own)
            return _Use([*own.values()], self._torch_name(min(own)), count)
        if told is not None:
            uuids = list(dict.fromkeys([*self.visible()[:told], *own.values()]))
            name = next((self._names[one] for one in uuids if one in self._names), None)
            return _Use(uuids, name, max(told, len(uuids)))
        if own:
            return _Use([*own.values()], self._torch_name(min(own)), len(own))
        mps = getattr(self._module(), "mps", None)
        if mps is not None and self._module().backends.mps.is_available() and mps.current_allocated_memory():
            return _Use([None], "Apple GPU", 1)
        return None

    def visible(self) -> list[str]:
        """UUIDs of the GPUs that a CUDA process is given, in its order: CUDA_VISIBLE_DEVICES by number or UUID.

        As in CUDA, the first entry that names no GPU ends the list. Numbers are taken in the order of the bus.
        """
        told = self._environment.get("CUDA_VISIBLE_DEVICES")
        everything = list(self._handles)
        if told is None:
            return everything
        found: list[str] = []
        for entry in (part.strip() for part in told.split(",")):
            if entry.isdecimal():
                matches = everything[int(entry) : int(entry) + 1]
            else:
                matches = [uuid for uuid in everything if entry.startswith("GPU-") and uuid.startswith(entry)]
            if len(matches) != 1 or matches[0] in found:
                break
            found += matches
        return found

    def _module(self) -> Any:
        return self._torch if self._torch is not None else sys.modules.get("torch")

    def _cuda(self) -> Any:
        return self._module().cuda

    def _torch_gpus(self) -> dict[int, str | None]:
        """Number -> UUID of the GPUs on which this process holds memory."""
        if self._module() is None or not (self._cuda().is_available() and self._cuda().is_initialized()):
            return {}
        held = [i for i in range(self._cuda().device_count()) if self._cuda().memory_reserved(i)]
        return {i: self._torch_uuid(i) for i in held}

    def _torch_uuid(self, number: int) -> str | None:
        if getattr(self._module().version, "hip", None):
            return None
        uuid = str(getattr(self._cuda().get_device_properties(number), "uuid", ""))
        return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

    def _torch_name(self, number: int) -> str:
        return str(self._cuda().get_device_name(number))

    # -- counters -------------------------------------------------------------------------------------------------

    def _find_gpus(self) -> None:
        nvml = self._nvml
        if nvml is None:
            raise _Unavailable(_NO_PACKAGE)
        try:
            nvml.nvmlInit()
            for number in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
                self._handles[uuid], self._names[uuid] = handle, _text(nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError as error:
            self._handles.clear()
            raise _Unavailable(f"NVML: {first_line(error)}") from error

    def _read_gpu(self, uuid: str, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except self._nvml.NVMLError as error:
            self._reasons[uuid] = f"NVML on {self._names[uuid]}: {first_line(error)}"
            return None

    def _read_cpu(self) -> float | None:
        try:
            return None if self._rapl is None else self._rapl.read()
        except _Unavailable as error:
            self._reasons["rapl"] = str(error)
            return None

    def _gpu_energy(self, uuid: str | None, start: Reading, end: Reading) -> float | None:
        if uuid is None:
            return self._told("", None, "this kind of accelerator has no energy counter that is read here")
        if uuid not in end.gpus:
            return self._told("", None, self._reasons.get("nvml", _MIG))
        joules = _difference(start.gpus.get(uuid), end.gpus[uuid])
        if joules is not None and joules < 0:  # the driver was loaded anew
            return self._told("", None, f"NVML on {self._names[uuid]}: its counter was set back")
        return self._told("NVML, whole GPU", joules, self._reasons.get(uuid))

    def _told(self, counter: str, joules: float | None, reason: str | None) -> float | None:
        if joules is None:
            self._missing.add(reason or "a counter could not be read")
        else:
            self._measured.add(counter)
        return joules


class Rapl:
    """The processor packages' counters and those of their memory, added up, with wraps undone."""

    def __init__(self, root: Path) -> None:
        """Raises _Unavailable without counters, or if any of them cannot be read: half a sum would mislead."""
        self._zones: list[Path] = []
        self._range: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        self._total = 0
        self._lock = threading.Lock()
        # A zone called psys holds the packages, core and uncore are within one, and intel-rapl-mmio shows them again.
        for zone in sorted(root.glob("intel-rapl:*")):
            name = self._file(zone / "name")
            if name.startswith("package") or name == "dram":
                self._zones.append(zone)
        if not self._zones:
            raise _Unavailable("this machine shows no energy counters of its processor (RAPL)")
        for zone in self._zones:
            self._range[zone] = self._number(zone / "max_energy_range_uj")
            self._last[zone] = self._number(zone / "energy_uj")
        self.period = min(self._range.values()) / 1e6 / _WATTS / 2
        """Seconds between two looks that see every wrap."""
        threading.Thread(target=self._keep_up, name="energy counters", daemon=True).start()

    def read(self) -> float:
        """Joules since this was made."""
        with self._lock:
            for zone in self._zones:
                now = self._number(zone / "energy_uj")
                gone = now - self._last[zone]
                self._total += gone if gone >= 0 else gone + self._range[zone]
                self._last[zone] = now
            return self._total / 1e6

    def _keep_up(self) -> None:
        while True:
            time.sleep(max(self.period, 1.0))
            try:
                self.read()
            except _Unavailable:
                continue

    def _number(self, path: Path) -> int:
        try:
            return int(self._file(path))
        except ValueError as error:
            raise _Unavailable("the processor's energy counters (RAPL) hold something that is no number") from error

    @staticmethod
    def _file(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError as error:
            raise _Unavailable(
                f"the processor's energy counters (RAPL) cannot be read: {error.strerror}; Linux shows them to root "
                "alone unless told otherwise"
            ) from error


class Stopwatch:
    """Seconds and joules by laps; one reading ends a lap and starts the next, so that laps add up to the whole."""

    def __init__(self, accelerators: int | None = None) -> None:
        """`accelerators` is what `Engine.accelerators` says of the engine at work."""
        self._accelerators = accelerators
        self.restart()

    def restart(self) -> None:
        """What lies behind is not counted."""
        self._reading, self._since = gauge().read(), time.perf_counter()

    def lap(self, processes: int = 1) -> Spent:
        """What the time since the last lap took, in `processes` that worked together."""
        start, since = self._reading, self._since
        self.restart()
        return gauge().spent(start, self._reading, self._since - since, self._accelerators, processes)


def _difference(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def gauge() -> Gauge:
    """The gauge of this process, made on first use."""
    global _gauge
    if _gauge is None:
        _gauge = Gauge(_pynvml(), POWERCAP, os.environ)
    return _gauge


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


_gauge: Gauge | None = None
