"""Phases that never overlap, and a high-water mark that can be set back."""

from __future__ import annotations

import contextlib
import mmap
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import meter
from bench.meter import PHASES, Meter, peak_rss


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_phase_within_another_pauses_it(clock: Clock) -> None:
    metered = Meter()
    with metered.phase("fit"):
        clock.now += 2
        with metered.phase("embed"):
            clock.now += 5
            with metered.phase("load"):
                clock.now += 11
        clock.now += 3
    clock.now += 100
    with metered.phase("fit"):
        clock.now += 7
    assert metered.seconds == {"fit": 12, "embed": 5, "load": 11}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["open", "close", "wait"]), st.sampled_from(PHASES), st.integers(0, 9)), max_size=30
    )
)
def test_phases_add_up_to_the_time_in_which_any_was_open(steps: list[tuple[str, str, int]]) -> None:
    clock, metered = Clock(), Meter()
    stack: list[tuple[str, object]] = []
    expected: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        for what, name, seconds in steps:
            if what == "open":
                opened = metered.phase(name)
                opened.__enter__()
                stack.append((name, opened))
            elif what == "close" and stack:
                stack.pop()[1].__exit__(None, None, None)  # type: ignore[attr-defined]
            else:
                clock.now += seconds
                if stack:
                    expected[stack[-1][0]] = expected.get(stack[-1][0], 0) + seconds
        while stack:
            stack.pop()[1].__exit__(None, None, None)  # type: ignore[attr-defined]
    assert {k: v for k, v in metered.seconds.items() if v} == {k: v for k, v in expected.items() if v}


def test_an_error_closes_its_phase(clock: Clock) -> None:
    metered = Meter()
    with metered.phase("fit"):
        with contextlib.suppress(KeyError), metered.phase("embed"):
            clock.now += 2
            raise KeyError
        clock.now += 1
    assert metered.seconds == {"embed": 2, "fit": 1}


def test_seconds_measured_elsewhere_are_added() -> None:
    metered = Meter()
    metered.add("prefill", 1.5)
    metered.add("prefill", 2.0)
    metered.add("decode", 1.0)
    assert metered.seconds == {"prefill": 3.5, "decode": 1.0}


def test_real_time_is_what_the_clock_on_the_wall_says() -> None:
    metered = Meter()
    start = time.perf_counter()
    with metered.phase("load"):
        time.sleep(0.02)
        with metered.phase("embed"):
            time.sleep(0.02)
    wall = time.perf_counter() - start
    assert metered.seconds["load"] >= 0.02
    assert metered.seconds["embed"] >= 0.02
    assert sum(metered.seconds.values()) == pytest.approx(wall, abs=0.005)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process reset its mark")
def test_the_peak_of_memory_is_that_since_the_last_start() -> None:
    if not meter._reset_peak_rss():
        pytest.skip("this kernel does not let the mark be reset")
    size = 200 << 20
    metered = Meter()
    metered.start_peak()
    before = peak_rss()
    block = mmap.mmap(-1, size)  # fresh pages, where the heap might reuse resident ones
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    high = peak_rss()
    assert high - before > 0.9 * size
    block.close()
    assert abs(peak_rss() - high) < 0.1 * size  # Linux counts resident pages in batches
    metered.start_peak()
    assert peak_rss() < high - 0.5 * size
