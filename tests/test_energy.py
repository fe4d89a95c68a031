"""Joules from made-up counters: the right devices, wraps undone, and None wherever something is unknown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import energy
from bench.energy import Gauge, Rapl, Stopwatch
from bench.meter import Meter

UUIDS = ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbcc-3")


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml:
    """GPUs whose counters (millijoules) a test sets; `broken` GPUs have none, `dead` is said by nvmlInit."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2, broken: tuple[int, ...] = (), dead: str = "") -> None:
        self.millijoules, self.broken, self.dead = [1000 * (i + 1) for i in range(count)], broken, dead

    def nvmlInit(self) -> None:  # noqa: N802
        if self.dead:
            raise NVMLError(self.dead)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return UUIDS[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"NVIDIA Fake {handle}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle in self.broken:
            raise NVMLError("Not Supported")
        return self.millijoules[handle]


def fake_torch(held: Mapping[int, str]) -> Any:
    """A torch that holds memory on GPUs, by number and UUID."""
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: bool(held),
        device_count=lambda: max(held, default=-1) + 1,
        memory_reserved=lambda i: 1 if i in held else 0,
        get_device_properties=lambda i: SimpleNamespace(uuid=held.get(i, "?").removeprefix("GPU-")),
        get_device_name=lambda i: f"NVIDIA Fake {i}",
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=None))


def zone(root: Path, folder: str, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    path = root / folder
    path.mkdir()
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (path / file).write_text(f"{value}\n")
    return path


def gauge(nvml: Any, root: Path, held: Mapping[int, str] | None = None, **environment: str) -> Gauge:
    return Gauge(nvml, root, environment, fake_torch(held or {}))


def test_joules_of_the_gpus_on_which_this_process_holds_memory(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    for held, joules, name in (
        ({0: UUIDS[0]}, 0.5, "NVIDIA Fake 0"),
        ({0: UUIDS[2]}, 7.0, "NVIDIA Fake 0"),  # CUDA's order is not the bus's
        ({0: UUIDS[0], 1: UUIDS[1]}, 2.5, "NVIDIA Fake 0"),
    ):
        made = gauge(nvml, tmp_path, held)
        start = made.read()
        nvml.millijoules = [n + more for n, more in zip(nvml.millijoules, (500, 2000, 7000), strict=True)]
        spent = made.spent(start, made.read(), 10.0)
        assert (spent.energy_joules, spent.device) == (joules, name)
        assert (spent.accelerator_seconds, spent.core_seconds) == (10.0 * len(held), 0.0)
        assert made.told() == {"measured": ["NVML, whole GPU"], "missing": []}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, [0, 1, 2]),
        ("1,0", [1, 0]),
        ("2", [2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", [0]),
        ("GPU-aaaa-1", [0]),
        ("GPU-bbc,GPU-a", [2, 0]),
        ("GPU-bb,0", []),  # names two
        ("0,0", [0]),
        ("MIG-aaaa", []),
    ],
)
def test_what_a_cuda_process_is_given(told: str | None, expected: list[int], tmp_path: Path) -> None:
    environment = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    assert gauge(FakeNvml(3), tmp_path, **environment).visible() == [UUIDS[i] for i in expected]


def test_an_engine_in_other_processes_says_on_how_many_of_the_visible_gpus_it_is(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    made = gauge(nvml, tmp_path, CUDA_VISIBLE_DEVICES="2,1")
    start = made.read()
    nvml.millijoules = [n + more for n, more in zip(nvml.millijoules, (1000, 2000, 4000), strict=True)]
    end = made.read()
    for count, joules in ((1, 4.0), (2, 6.0), (3, None)):
        spent = made.spent(start, end, 2.0, accelerators=count)
        assert (spent.energy_joules, spent.device) == (joules, "NVIDIA Fake 2")
        assert spent.accelerator_seconds == 2.0 * count


def test_a_service_costs_no_hours_here_and_its_energy_is_unknown(tmp_path: Path) -> None:
    made = gauge(FakeNvml(), tmp_path, {0: UUIDS[0]})
    spent = made.spent(made.read(), made.read(), 3.0, accelerators=0)
    assert (spent.energy_joules, spent.device, spent.accelerator_seconds, spent.core_seconds) == (None, None, 0, 0)


def test_processes_that_train_together_use_a_gpu_each(tmp_path: Path) -> None:
    nvml = FakeNvml(2)
    torch = fake_torch({0: UUIDS[0], 1: UUIDS[1]})
    torch.cuda.memory_reserved = lambda i: int(i == 0)  # the other is the other process's
    for local, joules in (("2", 3.0), ("1", None)):
        made = Gauge(nvml, tmp_path, {"LOCAL_WORLD_SIZE": local}, torch)
        start = made.read()
        nvml.millijoules = [n + more for n, more in zip(nvml.millijoules, (1000, 2000), strict=True)]
        end = made.read()
        spent = made.spent(start, end, 5.0, processes=2)
        assert (spent.energy_joules, spent.accelerator_seconds) == (joules, 10.0)
        assert made.spent(start, end, 5.0).energy_joules == 1.0
    assert made.told()["missing"] == ["accelerators of other machines cannot be read from here"]


def no_package(root: Path) -> Gauge:
    return gauge(None, root, {0: UUIDS[0]})


def no_driver(root: Path) -> Gauge:
    return gauge(FakeNvml(dead="Driver Not Loaded"), root, {0: UUIDS[0]})


def no_counter(root: Path) -> Gauge:
    return gauge(FakeNvml(2, broken=(1,)), root, {0: UUIDS[0], 1: UUIDS[1]})


def slice_of_a_gpu(root: Path) -> Gauge:
    return gauge(FakeNvml(), root, {0: "MIG-aaaa"})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_package, "pip install 'dep-bench[energy]'"),
        (no_driver, "Driver Not Loaded"),
        (no_counter, "NVIDIA Fake 1: Not Supported"),
        (slice_of_a_gpu, "MIG"),
    ],
)
def test_a_gpu_without_a_counter_gives_hours_and_the_reason_once(
    make: Callable[[Path], Gauge], reason: str, tmp_path: Path
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)  # the processor's joules never stand in for a GPU's
    made = make(tmp_path)
    for _ in range(2):
        spent = made.spent(made.read(), made.read(), 4.0)
        assert spent.energy_joules is None
        assert spent.accelerator_seconds >= 4.0
    (told,) = made.told()["missing"]
    assert reason in told


def test_the_package_has_all_that_is_asked_of_it(tmp_path: Path) -> None:
    pynvml = pytest.importorskip("pynvml")
    asked = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    assert len(asked) == 6
    assert all(callable(getattr(pynvml, name)) for name in asked)
    assert issubclass(pynvml.NVMLError, Exception)
    made = Gauge(pynvml, tmp_path, {}, fake_torch({}))  # with or without a driver on this machine
    assert set(made.read().gpus) == set(made.visible())


def test_a_counter_that_was_set_back_is_no_energy(tmp_path: Path) -> None:
    nvml = FakeNvml()
    made = gauge(nvml, tmp_path, {0: UUIDS[0]})
    start = made.read()
    nvml.millijoules[0] = 3
    assert made.spent(start, made.read(), 1.0).energy_joules is None
    assert "set back" in made.told()["missing"][0]


def test_without_an_accelerator_packages_and_memory_count_and_nothing_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 20)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 30)
    others = [zone(tmp_path, "intel-rapl:0:0", "core", 1), zone(tmp_path, "intel-rapl:2", "psys", 1)]
    others.append(zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1))
    made = gauge(FakeNvml(), tmp_path)  # GPUs there are, but nothing is on them
    start = made.read()
    for path, value in ((first, 2_000_010), (second, 500_020), (memory, 250_030), *((o, 9_000_000) for o in others)):
        (path / "energy_uj").write_text(str(value))
    spent = made.spent(start, made.read(), 2.0)
    assert spent.energy_joules == pytest.approx(2.75)
    assert spent.accelerator_seconds == 0
    assert spent.core_seconds == 2.0 * (energy.cores() or 1)
    assert made.told()["measured"] == ["RAPL, whole processor"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(start=st.integers(0, 999), steps=st.lists(st.integers(0, 999), max_size=12))
def test_a_counter_that_wraps_gives_what_was_drawn(tmp_path_factory: Any, start: int, steps: list[int]) -> None:
    """It counts modulo its range, and whoever looks at least once in a round loses nothing."""
    root = tmp_path_factory.mktemp("powercap")
    path = zone(root, "intel-rapl:0", "package-0", start, most=1000)
    counters, drawn = Rapl(root), 0
    for step in steps:
        drawn += step
        (path / "energy_uj").write_text(str((start + drawn) % 1000))
        assert counters.read() == drawn / 1e6


def test_a_wrap_between_two_readings_of_a_long_phase_is_seen(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0, most=65_000_000_000)
    counters = Rapl(tmp_path)
    assert 1000 * 2 * counters.period <= 65_000  # joules at a thousand watts between two looks


@pytest.mark.parametrize("what", ["nothing", "forbidden", "garbage", "gone"])
def test_no_energy_of_a_processor_that_shows_none(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what != "nothing":
        zone(tmp_path, "intel-rapl:0", "package-0", 5)
        second = zone(tmp_path, "intel-rapl:1", "package-1", 5)
    whole = Path.read_text

    def refuse(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name == "energy_uj" and self.parent.name == "intel-rapl:1":
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self, *args, **kwargs)

    if what == "forbidden":  # root may read anything, so the refusal is made here
        monkeypatch.setattr(Path, "read_text", refuse)
    if what == "garbage":
        (second / "energy_uj").write_text("lots")
    made = gauge(None, tmp_path)
    start = made.read()
    if what == "gone":
        (second / "energy_uj").unlink()
    spent = made.spent(start, made.read(), 1.0)
    assert spent.energy_joules is None
    assert spent.core_seconds > 0
    (reason,) = made.told()["missing"]
    expected = {"nothing": "shows no energy counters", "forbidden": "Permission denied", "garbage": "no number"}
    assert expected.get(what, "No such file") in reason
    assert str(tmp_path) not in reason


class World:
    """A clock and a GPU whose counter grows by `watts` a second."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, watts: int = 3) -> None:
        self.now, self.nvml, self.watts = 100.0, FakeNvml(1), watts
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(energy, "_gauge", gauge(self.nvml, root, {0: UUIDS[0]}))

    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.nvml.millijoules[0] += 1000 * self.watts * seconds


def test_a_phase_within_another_pauses_its_joules_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, meter = World(tmp_path, monkeypatch), Meter()
    with meter.phase("fit"):
        world.wait(2)
        with meter.phase("embed"):
            world.wait(5)
        world.wait(3)
    world.wait(100)
    with meter.phase("fit"):
        world.wait(7)
    found = {cost.stage: cost for cost in meter.settle()}
    assert {stage: cost.energy_joules for stage, cost in found.items()} == {"fit": 36.0, "embed": 15.0}
    assert {stage: cost.accelerator_seconds for stage, cost in found.items()} == {"fit": 12.0, "embed": 5.0}
    assert meter.settle() == []
    assert meter.seconds == {"fit": 12.0, "embed": 5.0}


def test_a_phase_can_be_kept_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, meter = World(tmp_path, monkeypatch), Meter()
    with meter.phase("adapt"), meter.phase("load"):
        world.wait(1)
    assert [cost.stage for cost in meter.settle(keep="adapt")] == ["load"]
    meter.add("adapt", 4.0)
    metered, told = meter.settle()  # apart, as nobody knows where the second was
    assert (metered.stage, metered.device, metered.seconds) == ("adapt", "NVIDIA Fake 0", 0.0)
    assert (told.stage, told.device, told.seconds, told.energy_joules) == ("adapt", None, 4.0, None)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["open", "close", "wait"]), st.sampled_from("abc"), st.integers(0, 9)), max_size=25
    )
)
def test_joules_add_up_to_those_of_the_time_in_which_any_phase_was_open(
    tmp_path: Path, steps: list[tuple[str, str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world, meter = World(tmp_path, patch), Meter()
        stack: list[Any] = []
        expected: dict[str, int] = {}
        for what, name, seconds in steps:
            if what == "open":
                opened = meter.phase(name)
                opened.__enter__()
                stack.append((name, opened))
            elif what == "close" and stack:
                stack.pop()[1].__exit__(None, None, None)
            else:
                world.wait(seconds)
                if stack:
                    expected[stack[-1][0]] = expected.get(stack[-1][0], 0) + 3 * seconds
        while stack:
            stack.pop()[1].__exit__(None, None, None)
        found = {cost.stage: cost.energy_joules for cost in meter.settle()}
    assert {k: v for k, v in found.items() if v} == {k: v for k, v in expected.items() if v}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(laps=st.lists(st.integers(0, 50), max_size=10))
def test_laps_add_up_to_the_whole(tmp_path: Path, laps: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path, patch)
        watch, found = Stopwatch(), []
        for seconds in laps:
            world.wait(seconds)
            found.append(watch.lap())
        assert [lap.seconds for lap in found] == laps
        assert sum(lap.energy_joules or 0 for lap in found) == 3 * sum(laps)
