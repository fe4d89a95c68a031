"""Limits of asking: AIMD, budgets, back-offs, Retry-After."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engines.openai_limits import (
    LONGEST_BACKOFF,
    Budget,
    BudgetReached,
    Gate,
    Silence,
    Stopped,
    backoffs,
    retry_after,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_seconds_and_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@given(value=st.text(max_size=40))
def test_no_header_is_too_odd(value: str) -> None:
    found = retry_after({"retry-after": value, "retry-after-ms": value}, NOW)
    assert found is None or 0 <= found < float("inf")


@given(first=st.floats(0.01, 5), mark=st.text(max_size=8))
def test_backoffs_double_within_jitter_and_are_the_same_each_time(first: float, mark: str) -> None:
    waits = list(islice(backoffs(first, mark), 12))
    assert waits == list(islice(backoffs(first, mark), 12))
    for number, wait in enumerate(waits):
        whole = min(LONGEST_BACKOFF, first * 2**number)
        assert whole / 2 <= wait <= whole


def test_backoffs_of_two_requests_differ() -> None:
    assert list(islice(backoffs(1, "a"), 4)) != list(islice(backoffs(1, "b"), 4))


@given(events=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=40))
def test_silence_counts_failures_since_the_last_answer(events: list[int | None]) -> None:
    """None is an answer; a number is a failure whose first attempt lies so many events back."""
    silence, known, before = Silence(), [], [0]
    for place, event in enumerate(events):
        if event is None:
            silence.answered()
        else:
            start = max(0, place - event)
            row = silence.failed(before[start])
            known.append((start, place))
            last = max((i for i in range(place) if events[i] is None), default=-1)
            assert row == sum(last < first for first, end in known)
        before.append(silence.answers)


def test_the_limit_is_halved_once_a_round_and_grows_by_one_a_round() -> None:
    async def scene() -> None:
        gate = Gate(16, Budget())
        async with gate.through(0) as first, gate.through(0) as second:
            gate.refused(first, None)
            assert gate.limit == 8
            gate.refused(second, None)  # sent before the halving: tells nothing new
            assert gate.limit == 8
        async with gate.through(0) as third:
            gate.refused(third, None)
            assert gate.limit == 4
        for _ in range(4):
            gate.answered()
        assert 4.8 < gate.limit <= 5.0
        for _ in range(1000):
            gate.answered()
        assert gate.limit == 16
        assert (gate.lowest, gate.most) == (4, 16)
        for _ in range(20):
            async with gate.through(0) as ticket:
                gate.refused(ticket, None)
        assert gate.limit == 1

    asyncio.run(scene())


def test_a_named_wait_holds_everybody_back() -> None:
    async def scene() -> None:
        gate, clock = Gate(4, Budget()), asyncio.get_running_loop().time
        async with gate.through(0) as ticket:
            start = clock()
            gate.refused(ticket, 0.2)

        async def enter() -> float:
            async with gate.through(0):
                return clock() - start

        assert min(await asyncio.gather(enter(), enter())) >= 0.2

    asyncio.run(scene())


def test_a_closed_gate_lets_nobody_through_and_wakes_sleepers() -> None:
    async def scene() -> None:
        gate = Gate(1, Budget())

        async def enter() -> None:
            async with gate.through(0):
                raise AssertionError

        async with gate.through(0):
            waiting = [asyncio.create_task(enter()), asyncio.create_task(gate.rest(1e6))]
            await asyncio.sleep(0)
            gate.close()
            for task in waiting:
                with pytest.raises(Stopped):
                    await asyncio.wait_for(task, 10)

    asyncio.run(scene())


@settings(deadline=None, max_examples=60)
@given(
    worst=st.lists(st.floats(0.1, 10), min_size=1, max_size=30),
    shares=st.lists(st.sampled_from([0.0, 0.3, 1.0, None]), min_size=30, max_size=30),
    most=st.integers(1, 8),
    max_cost=st.floats(0, 60),
    max_requests=st.one_of(st.none(), st.integers(0, 30)),
)
def test_no_budget_is_ever_exceeded(
    worst: list[float], shares: list[float | None], most: int, max_cost: float, max_requests: int | None
) -> None:
    """Whatever requests turn out to cost, up to their worst; without an answer (None) the worst is what counts."""

    async def scene() -> None:
        budget = Budget(max_requests, max_cost)
        gate, really = Gate(most, budget), []

        async def one(price: float, share: float | None, turns: int) -> None:
            async with gate.through(price) as ticket:
                assert gate.in_flight <= most
                really.append(0.0)
                place = len(really) - 1
                really[place] = price  # it may come to that at any moment
                assert sum(really) <= max_cost + 1e-9
                for _ in range(turns):
                    await asyncio.sleep(0)
                if share is not None:
                    really[place] = price * share
                    ticket.costs(price * share)

        jobs = [one(price, share, i % 4) for i, (price, share) in enumerate(zip(worst, shares, strict=False))]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(result is None or isinstance(result, BudgetReached) for result in results)
        assert budget.requests == len(really) == sum(result is None for result in results)
        assert max_requests is None or budget.requests <= max_requests
        assert budget.spent == pytest.approx(sum(really))
        assert budget.reserved == 0
        if len(really) < len(worst):  # stopped for a reason: the cheapest one left out fitted no more
            least = min(p for p, r in zip(worst, results, strict=True) if r is not None)
            assert budget.requests == max_requests or budget.spent + least > max_cost - max(worst)

    asyncio.run(scene())
