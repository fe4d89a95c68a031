"""Any OpenAI-compatible chat-completions endpoint as an engine: many requests at once, none paid for twice.

Answers go to a file under the folder of runs, named by everything that was sent, as soon as they arrive: a kill loses
at most what was in flight. The server decides how its tokens are drawn. A seed is sent with each request, but whether
the same seed gives the same text, on another day or in other company, is the server's to promise.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from bench.engines import openai_wire as wire
from bench.engines.base import BatchResult, Engine, Progress
from bench.engines.openai_answers import AnswerFile
from bench.engines.openai_config import OpenAIConfig
from bench.engines.openai_jobs import Job, cost, estimate, jobs_of
from bench.engines.openai_limits import Budget, BudgetReached, Gate, Silence, Stopped, Ticket, backoffs
from bench.errors import UsageError
from bench.files import folder_name
from bench.keys import canonical_json, digest, utf8
from bench.types import Capability, Generation, Message, Request

ANSWERS = "answers"
"""Folder under that of the runs, for what servers answered."""
_MOST_REFUSALS = 30
"""How often one request is refused while others are answered, before it counts as failed."""
_HOPELESS = 8
"""Failures without a single answer, after which the settings or the server are at fault and not the prompts."""
_NO_KEY = "none"
"""Sent where there is no key: local servers ask for none, the library does."""


@dataclass
class Tally:
    """What the work of one process took."""

    answers: int = 0
    failed: int = 0
    from_disk: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0
    """Answers whose tokens the server did not count."""
    again: Counter[str] = field(default_factory=Counter)
    """Why requests were sent again: reason -> times."""

    def count(self, usage: wire.Usage) -> None:
        self.prompt_tokens += usage.prompt_tokens
        self.output_tokens += usage.output_tokens


class _Deliver(Protocol):
    def __call__(self, places: Sequence[int], outcome: Generation | Exception) -> None: ...


class OpenAIEngine(Engine):
    """Any OpenAI-compatible endpoint: run --engine openai --base-url URL --model NAME."""

    name = "openai"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})
    Config = OpenAIConfig
    local = False
    unkeyed = frozenset(OpenAIConfig.model_fields) - {"base_url", "endpoint", "max_tokens_field", "omit", "extra"}

    def __init__(self, source: Any = None, config: OpenAIConfig | None = None) -> None:
        """`source` is the model's name on the server; None where nothing will be asked."""
        self.config = config or OpenAIConfig()
        self.model = "" if source is None else str(source)
        self._address = wire.address(self.config.base_url) if source is not None else wire.Address("", "")
        if self.config.max_cost is not None and None in (self.config.price_in, self.config.price_out):
            raise UsageError(
                "--max-cost needs prices: give what a million tokens cost with --set openai.price_in=... and "
                "--set openai.price_out=..."
            )
        self.tally = Tally()
        self._silence = Silence()
        self._failures: list[tuple[Sequence[int], Generation]] = []
        self._doomed = False
        self.budget = Budget(self.config.max_requests, self.config.max_cost)
        self._folder: Path | None = None
        self._answers: AnswerFile | None = None
        self._gate: Gate | None = None
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._secrets: tuple[str, ...] = ()

    # -- what it is ---------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        sent = {
            "max_tokens": self.config.max_tokens_field,
            "omit": sorted(self.config.omit),
            "extra": self.config.extra,
        }
        return {
            "name": self.name,
            "model": self.model,
            "revision": "as served",
            "dtype": "as served",
            "backend": "chat completions 1",
            "base_url": self._endpoint,
            "sent": canonical_json(sent),
        }

    def accelerators(self) -> int:
        return 0

    @property
    def _endpoint(self) -> str:
        return self.config.endpoint or self._address.shown

    @property
    def context_length(self) -> int:
        return self.config.context_length

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """An estimate, rather too high; what the server really counted stands in the records."""
        return sum(4 + estimate(message.content) for message in messages)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Each request by itself: it is kept as soon as it is answered, whatever becomes of the others."""
        return [[index] for index in range(len(requests))]

    # -- life ---------------------------------------------------------------------------------------------------

    def keep_under(self, folder: Path) -> None:
        self._folder = folder / ANSWERS

    def prepare(self) -> None:
        wire.library()
        wire.key_from(self.config.key_variable)

    def load(self) -> None:
        if self._loop is not None:
            return
        key = wire.key_from(self.config.key_variable)
        parts = urlsplit(self._address.url)
        secret = [parts.password, *(value for _, value in parse_qsl(parts.query)), key]
        self._secrets = tuple(one for one in secret if one)
        self._client = self._made_client(key)
        name = f"{folder_name(self.model)}-{digest([self._endpoint, self.model], 12)}.jsonl"
        self._answers = AnswerFile(None if self._folder is None else self._folder / self.name / name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()

    def _made_client(self, key: str | None) -> Any:
        openai = wire.library()
        import httpx2

        parts = urlsplit(self._address.url)
        config = self.config
        # Reading the machine's certificates takes a while, and plain http has no use for them.
        bare = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)} if parts.scheme == "http" else {}
        return openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")),
            default_query=dict(parse_qsl(parts.query)) or None,
            http_client=openai.DefaultAsyncHttpxClient(**bare),
            max_retries=0,  # ours count, wait as the server says and share one limit
            timeout=httpx2.Timeout(
                connect=config.connect_timeout, read=config.read_timeout, write=config.read_timeout, pool=None
            ),
        )

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None or self._answers is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(10)
        loop.close()
        self._answers.close()

    # -- asking -------------------------------------------------------------------------------------------------

    def run(self, batch: Sequence[Request]) -> BatchResult:
        (result,) = self.stream([batch])
        return result

    def stream(self, batches: Sequence[Sequence[Request]], progress: Progress | None = None) -> Iterator[BatchResult]:
        """As in `Engine.stream`; requests of many batches are in flight together.

        Raises UsageError where no request can succeed (key, model, unreachable server) or the budget is reached, after
        the results of all batches before the first that lacks an answer.
        """
        self.load()
        if self._loop is None:
            raise RuntimeError("load() the engine first")
        requests = [request for batch in batches for request in batch]
        arrived: SimpleQueue[tuple[Sequence[int], Generation | Exception | None]] = SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(
            self._answer(requests, lambda places, outcome: arrived.put((places, outcome))), self._loop
        )
        work.add_done_callback(lambda _: arrived.put(((), None)))
        found: dict[int, Generation] = {}
        problem: Exception | None = None
        start = 0
        try:
            for batch in batches:
                places = range(start, start + len(batch))
                start += len(batch)
                while not all(place in found for place in places):
                    got, outcome = arrived.get()
                    if outcome is None:
                        work.result()  # raises what nobody foresaw
                        raise self._told_problem(problem, len(requests), found)
                    if isinstance(outcome, Exception):
                        problem = problem or outcome
                        continue
                    for number, place in enumerate(got):  # the first one asked, the others were spared
                        found[place] = outcome if number == 0 else replace(outcome, cached=True)
                    if progress is not None:
                        progress(len(got))
                yield BatchResult([found[place] for place in places])
        finally:
            work.cancel()

    def _told_problem(self, problem: Exception | None, asked: int, found: Mapping[int, Generation]) -> UsageError:
        """Why nothing more comes, what is kept, and how to go on."""
        kept = sum(answer.error is None for answer in found.values())
        done = f"{kept} of {asked} answers are kept and not asked for again"
        if isinstance(problem, BudgetReached):
            return UsageError(
                f"{self.budget.told()} is reached: {done}; the same command goes on, with this budget once more, or "
                "with a larger one"
            )
        if isinstance(problem, OSError):
            return UsageError(f"cannot keep answers under {self._folder}: {problem.strerror}; {done}: mend that first")
        why = str(problem).rstrip(".;, ")
        return UsageError(f"server {self._address.shown}, model {self.model!r}: {why}; {done}, mend that and go on")

    async def _answer(self, requests: Sequence[Request], deliver: _Deliver) -> None:
        """Asks all of them, each thing once, in their order; `deliver` is told of every answer as it comes."""
        if self._answers is None:
            raise RuntimeError("load() the engine first")
        self._gate = gate = Gate(self.config.concurrency, self.budget)
        self._failures, self._doomed = [], False
        jobs = []
        for job in jobs_of(requests, self.model, self._endpoint, self.config):
            if (known := self._answers.get(job.key)) is not None:
                self.tally.from_disk += len(job.places)
                deliver(job.places, replace(known, cached=True))
            else:
                jobs.append(job)
        waiting = iter(jobs)
        count = min(self.config.concurrency, len(jobs))
        await asyncio.gather(*(self._work(gate, waiting, deliver) for _ in range(count)))
        if (last := self._all_silent()) is not None:
            deliver((), wire.Hopeless(f"no request got an answer, however often sent; the last: {last}"))
            return
        self._deliver_failures(deliver)

    def _all_silent(self) -> str | None:
        """The last failure where all there was to ask failed, too little for `_HOPELESS`, and nothing was answered."""
        known = self._silence.answers or self.tally.from_disk
        if known or not self._failures or self._silence.row < len(self._failures):
            return None
        return self._failures[-1][1].error

    async def _work(self, gate: Gate, jobs: Iterator[Job], deliver: _Deliver) -> None:
        """Asks one thing after the other until there is none left or nothing more is let through."""
        for job in jobs:
            try:
                answer = await self._one(gate, job)
                if answer.error is None and self._answers is not None:
                    self._answers.add(job.key, answer)
            except Stopped:
                return
            except (BudgetReached, wire.Hopeless, OSError) as problem:
                gate.close()
                self._doomed = self._doomed or not isinstance(problem, BudgetReached)
                told = wire.Hopeless(self._hidden(str(problem))) if isinstance(problem, wire.Hopeless) else problem
                deliver((), told)
                return
            if answer.error is not None:
                self._failures.append((job.places, answer))
                continue
            self._deliver_failures(deliver)
            deliver(job.places, answer)

    def _deliver_failures(self, deliver: _Deliver) -> None:
        """Failures are told once an answer shows that not all fail: what ends the run is asked again by the next."""
        failures, self._failures = self._failures, []
        for places, failure in failures if not self._doomed else []:
            deliver(places, failure)

    async def _one(self, gate: Gate, job: Job) -> Generation:
        """The answer to one thing, or its error once retries are used up."""
        waits = backoffs(self.config.backoff, job.key)
        faults = refusals = before = 0
        taken: list[wire.Usage | None] = []
        while True:
            try:
                async with gate.through(job.worst) as ticket:
                    before = before if faults or refusals else self._silence.answers
                    reply = await self._attempt(gate, ticket, job)
                return self._accepted(job, reply)
            except wire.Rejected as error:
                failure = self._failed(str(error), [*taken, error.usage])
                if not (self.tally.answers or self.tally.from_disk) and self.tally.failed >= _HOPELESS:
                    raise wire.Hopeless(f"the first {self.tally.failed} requests are all rejected: {error}") from None
                return failure
            except wire.Refused as error:
                refusals += 1
                why, wait = str(error), max(error.wait or 0.0, next(waits))
                if refusals > _MOST_REFUSALS:
                    self._check_silence(before, error)
                    return self._failed(f"refused {refusals} times while others were answered: {error}", taken)
            except wire.Faulty as error:
                faults += 1
                taken.append(error.usage)
                if faults > self.config.retries:
                    if error.unreachable:
                        raise wire.Hopeless(f"cannot be reached: {error}") from None
                    self._check_silence(before, error)
                    return self._failed(f"{error} (after {faults} attempts)", taken)
                why, wait = str(error), next(waits)
            self.tally.again[_reason(why)] += 1
            await gate.rest(wait)

    def _check_silence(self, before: int, error: Exception) -> None:
        """Raises Hopeless where request after request fails and nobody is answered meanwhile."""
        if (row := self._silence.failed(before)) >= _HOPELESS:
            raise wire.Hopeless(
                f"{row} requests in a row got no answer, however often sent; the last: {error}"
            ) from None

    async def _attempt(self, gate: Gate, ticket: Ticket, job: Job) -> wire.Reply:
        """One request, with what it cost written on its ticket."""
        try:
            reply = await wire.call(self._client, job.body, job.extra, self.config.timeout)
        except wire.Refused as error:
            ticket.costs(0.0)
            silent = gate.refused(ticket, error.wait)
            if error.wait is not None and error.wait > self.config.max_wait:
                raise wire.Hopeless(f"asks to be left alone for {error.wait:.0f} s ({error})") from None
            if silent > self.config.patience:
                raise wire.Hopeless(f"refuses everything for {silent:.0f} s now: {error}") from None
            raise
        except (wire.Faulty, wire.Rejected) as error:
            if error.usage is not None:
                ticket.costs(cost(error.usage, self.config))
                self.tally.count(error.usage)
            elif error.unbilled:
                ticket.costs(0.0)
            raise
        except wire.Hopeless:
            ticket.costs(0.0)
            raise
        if reply.usage is not None:
            ticket.costs(cost(reply.usage, self.config))
        gate.answered()
        self._silence.answered()
        return reply

    def _accepted(self, job: Job, reply: wire.Reply) -> Generation:
        text = utf8(reply.text)
        for secret in self._secrets:
            if len(secret) >= 16:  # a server that repeats a key; a short one may be a word
                text = text.replace(secret, "[secret]")
        usage = reply.usage or wire.Usage(self.count_tokens(job.request.messages), estimate(text))
        self.tally.answers += 1
        self.tally.estimated += reply.usage is None
        self.tally.count(usage)
        counts = usage.prompt_tokens, usage.output_tokens
        return Generation(text, *counts, reply.finish_reason, estimated=reply.usage is None)

    def _failed(self, why: str, taken: Sequence[wire.Usage | None]) -> Generation:
        """A request given up, with the tokens that its attempts took as far as the server told them."""
        self.tally.failed += 1
        told = [usage for usage in taken if usage is not None]
        counts = sum(usage.prompt_tokens for usage in told), sum(usage.output_tokens for usage in told)
        return Generation("", *counts, "error", error=self._hidden(why))

    def _hidden(self, text: str) -> str:
        return wire.hidden(text, self._secrets)

    # -- what it took -------------------------------------------------------------------------------------------

    def told(self) -> str | None:
        tally, parts = self.tally, []
        if not self.budget.requests and not tally.from_disk:
            return None
        parts.append(f"{self.budget.requests:,} requests for {tally.answers:,} answers")
        if tally.from_disk:
            parts.append(f"{tally.from_disk:,} more were on disk")
        if tally.failed:
            parts.append(f"{tally.failed:,} FAILED")
        reasons = ", ".join(f"{reason} {times:,}" for reason, times in sorted(tally.again.items()))
        parts.append(f"{tally.again.total():,} retries" + (f" ({reasons})" if reasons else ""))
        if self._gate is not None and self._gate.lowest < self._gate.most:
            parts.append(f"at most {self._gate.most} at once, down to {self._gate.lowest}")
        parts.append(f"{tally.prompt_tokens:,} prompt and {tally.output_tokens:,} new tokens")
        if tally.estimated:
            parts.append(f"those of {tally.estimated:,} answers estimated, as the server did not count them")
        if self.config.price_in is not None and self.config.price_out is not None:
            parts.append(f"cost at most {self.budget.spent:.6g}")
        return f"openai: {', '.join(parts)}"


def _reason(why: str) -> str:
    return why.partition(":")[0]
