"""How much may be asked of a server at once and in all: a limit that learns from refusals, a budget, how long to wait.

All of it lives in one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF = 60.0
"""Seconds that a wait grows to where the server names none."""


class BudgetReached(Exception):
    """The next request could cost more than is left."""


class Stopped(Exception):
    """The gate was closed while somebody waited at it."""


@dataclass
class Budget:
    """What may be spent, what is, and what requests in flight could still cost at worst."""

    max_requests: int | None = None
    max_cost: float | None = None
    requests: int = 0
    """Requests sent, those that failed among them."""
    spent: float = 0.0
    reserved: float = 0.0

    def fits(self, worst: float) -> bool:
        """Whether one more request of at most this cost can be sent, whatever those in flight come to."""
        if self.max_requests is not None and self.requests >= self.max_requests:
            return False
        return self.max_cost is None or self.spent + self.reserved + worst <= self.max_cost

    def told(self) -> str:
        """What there was to spend, as it is said on the command line."""
        if self.max_requests is not None and self.requests >= self.max_requests:
            return f"--max-requests {self.max_requests}"
        return f"--max-cost {self.max_cost:g}, of which {self.spent:.6g} is spent,"


class Ticket:
    """One request on its way. It counts at its worst until somebody says what it came to."""

    def __init__(self, worst: float, era: int) -> None:
        self.cost, self.era = worst, era

    def costs(self, amount: float) -> None:
        """What the request really cost; 0 for one that was refused."""
        self.cost = amount


class Silence:
    """Tells a request that fails from a server that fails them all: by what it answers meanwhile."""

    def __init__(self) -> None:
        self.answers = 0
        self.row = 0
        """Requests that failed in a row, none answered since the first attempt of each."""

    def answered(self) -> None:
        """The server answered somebody."""
        self.answers += 1
        self.row = 0

    def failed(self, before: int) -> int:
        """One more failed for good, `before` answers having come by its first attempt; returns how many in a row."""
        self.row += before == self.answers
        return self.row


class Gate:
    """Lets so many requests through at once as the server takes.

    Additive increase, multiplicative decrease (Chiu and Jain, Analysis of the increase and decrease algorithms for
    congestion avoidance in computer networks, 1989): a refusal halves the limit, once for all that was sent before the
    halving; an answer raises it by 1 / limit, so a round of answers by one.
    """

    def __init__(self, most: int, budget: Budget) -> None:
        self.most, self.budget = most, budget
        self.limit = float(most)
        self.lowest = most
        """The smallest limit there was."""
        self.in_flight = 0
        self.halvings = 0
        self._closed = False
        self._open_from = 0.0
        self._refused_since: float | None = None
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def through(self, worst: float):  # type: ignore[no-untyped-def]  # an async context manager of a Ticket
        """Waits for room, then counts as in flight. Raises BudgetReached, or Stopped once the gate is closed."""
        await self._room(worst)
        ticket = Ticket(worst, self.halvings)
        self.in_flight += 1
        self.budget.requests += 1
        self.budget.reserved += worst
        try:
            yield ticket
        finally:
            self.in_flight -= 1
            self.budget.reserved = self.budget.reserved - worst if self.in_flight else 0.0  # no dust of rounding
            self.budget.spent += ticket.cost
            self._notify()

    async def _room(self, worst: float) -> None:
        while not self._closed:
            pause = self._open_from - _now()
            if pause <= 0 and self.in_flight < int(self.limit):
                if self.budget.fits(worst):
                    return
                if not self.in_flight:  # what is in flight may come cheaper than feared
                    raise BudgetReached
            await self._change(pause if pause > 0 else None)
        raise Stopped

    def answered(self) -> None:
        """The server answered: a little more at once."""
        self._refused_since = None
        self.limit = min(self.most, self.limit + 1 / self.limit)
        self._notify()

    def refused(self, ticket: Ticket, wait: float | None) -> float:
        """The server has too much to do; returns for how many seconds it has said nothing else.

        Half as much at once, and nothing before `wait` seconds have passed, if it named any.
        """
        if ticket.era == self.halvings:
            self.halvings += 1
            self.limit = max(1.0, self.limit / 2)
            self.lowest = min(self.lowest, int(self.limit))
        if wait is not None:
            self._open_from = max(self._open_from, _now() + wait)
        if self._refused_since is None:
            self._refused_since = _now()
        return _now() - self._refused_since

    async def rest(self, seconds: float) -> None:
        """Sleeps, unless the gate is closed: then raises Stopped."""
        until = _now() + seconds
        while not self._closed and (left := until - _now()) > 0:
            await self._change(left)
        if self._closed:
            raise Stopped

    def close(self) -> None:
        """Nothing more gets through; what is in flight comes home."""
        self._closed = True
        self._notify()

    @property
    def closed(self) -> bool:
        """Whether the gate was closed."""
        return self._closed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, timeout: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()


def _now() -> float:
    return asyncio.get_running_loop().time()


def backoffs(first: float, mark: str) -> Iterator[float]:
    """Seconds to wait before the first retry, the second, ...: doubling, each cut by up to half at random.

    The draws are seeded by `mark`: requests that failed together come back one by one, and the same in every process.
    """
    stream, wait = random.Random(mark), first
    while True:
        yield wait * stream.uniform(0.5, 1.0)
        wait = min(LONGEST_BACKOFF, 2 * wait)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait as the server says: `Retry-After` in seconds or as an HTTP date (RFC 9110, 10.2.3), else
    `retry-after-ms`. None where it says nothing that can be read."""
    value = headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    with contextlib.suppress(ValueError):
        milliseconds = float(headers.get("retry-after-ms", ""))
        return max(0.0, milliseconds / 1000) if math.isfinite(milliseconds) else None
    return None
