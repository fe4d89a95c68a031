"""Decoding with continuous refill: a row that has ended makes room for the next prompt at once.

Prompts wait in the order given and take slots (see `bench.engines.slots`) as these become free; what all prompts begin
with is computed once. Prompts are read without padding; every decoding step carries the rows that are still being
written and no others. The order of everything follows from the prompts and the tokens drawn, so the same call gives
the same bytes on one machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.engines import bank
from bench.engines.chat import Prompt
from bench.engines.devices import wait
from bench.engines.sampling import draw
from bench.engines.slots import Segment, Slots, Step, attention
from bench.engines.steering import steered
from bench.types import Request, Sampling

LEAST_PREFIX = 16
"""Tokens below which what prompts have in common is read with each of them."""
_TOGETHER = {True: 8192, False: 1024}
"""Prompt tokens read in one pass, on an accelerator and on a CPU (where more only falls out of its caches)."""


@dataclass
class Row:
    """A request while it is written."""

    prompt: Prompt
    request: Request
    adapter: bank.Adapter
    tokens: list[int] = field(default_factory=list)
    first_token: float = 0.0
    """Seconds from the start until its first token."""

    @property
    def length(self) -> int:
        """Positions in its slot, the token last drawn not among them."""
        return len(self.prompt.ids) + max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class Written:
    """New token ids of each row, in the order of the prompts, and where the time went."""

    tokens: list[list[int]]
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: list[float]


class Pool:
    """Rows in slots. All requests share temperature and top-p, not lengths; none is contrasted."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        requests: Sequence[Request],
        rows: int,
        progress: Callable[[int], object],
    ) -> None:
        """At most `rows` at a time; `progress` is told of each row that has ended."""
        self.model, self.progress = model, progress
        self.ends = sorted(model.generation_config.eos_token_id)
        self.sampling = requests[0].sampling
        adapters = bank.Loaded()
        self.all = [Row(p, r, adapters.of(r.user_adapter)) for p, r in zip(prompts, requests, strict=True)]
        self.waiting = deque(self.all)
        self.active: list[Row] = []
        """The row of each slot."""
        widest = max(len(row.prompt.ids) + row.request.sampling.max_new_tokens for row in self.all)
        self.slots = Slots(min(rows, len(self.all)), widest)
        # An adapter or a vector of its own changes what a row's prefix is computed to.
        self.own = any(row.adapter or row.request.steering for row in self.all)
        self.prefix = 0 if self.own else shared_prefix(prompts)
        self._prefix_slots: Slots | None = None
        self.embed = model.get_input_embeddings()
        self.device = self.embed.weight.device
        self.limit = _TOGETHER[self.device.type != "cpu"]
        self._hooks = ExitStack()
        self._hooked: list[int] = []
        self.prefill_seconds = self.decode_seconds = 0.0
        self.taken: Callable[[torch.Tensor], object] = lambda _: None
        """Shown the logits (rows, vocabulary) that tokens are drawn from."""

    def write(self) -> Written:
        """Writes every row to its end."""
        self.began = self._now()
        with torch.no_grad(), attention(self.model), self._hooks:
            while self.waiting or self.active:
                start = self._now()
                while self.waiting and len(self.active) < self.slots.rows:
                    self._admit()
                between = self._now()
                if self.active:
                    self._step()
                self.prefill_seconds += between - start
                self.decode_seconds += self._now() - between
        return Written(
            [row.tokens for row in self.all],
            self.prefill_seconds,
            self.decode_seconds,
            [row.first_token for row in self.all],
        )

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()

    # -- reading prompts ----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Reads prompts into free slots: as many as one pass takes, one at a time if each has hooks of its own."""
        first = len(self.active)
        taken: list[Row] = []
        tokens = 0
        while self.waiting and first + len(taken) < self.slots.rows:
            tokens += len(self.waiting[0].prompt.ids) - self.prefix
            if taken and (tokens > self.limit or self.own):
                break
            taken.append(self.waiting.popleft())
        segments = [Segment(first + i, self.prefix, len(r.prompt.ids) - self.prefix) for i, r in enumerate(taken)]
        if self.prefix:
            for segment in segments:
                self.slots.copy_prefix(self._prefix(), self.prefix, segment.slot)
        self._hook(taken)
        states = torch.cat([self._embedded(row)[self.prefix :] for row in taken])
        with self.slots.reading(segments):
            logits = self._forward(states[None], segments, self.slots)
        self.active += taken
        self._take(taken, logits)
        now = self._now() - self.began
        for row in taken:
            row.first_token = now
        self._retire()

    def _forward(self, states: torch.Tensor, segments: Sequence[Segment], slots: Slots) -> torch.Tensor:
        """Logits (segments, vocabulary) behind the last position of each segment."""
        positions = torch.cat([torch.arange(s.past, s.past + s.length) for s in segments]).to(self.device)
        last = torch.tensor([s.length for s in segments], device=self.device).cumsum(0) - 1
        output = self.model(
            inputs_embeds=states,
            position_ids=positions[None],
            past_key_values=slots,
            use_cache=True,
            logits_to_keep=last,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _prefix(self) -> Slots:
        """Keys and values of what all prompts begin with, computed at first need."""
        if self._prefix_slots is None:
            slots = Slots(1, self.prefix)
            segment = Segment(0, 0, self.prefix)
            with slots.reading([segment]):
                self._forward(self._embedded(self.all[0])[None, : self.prefix], [segment], slots)
            self._prefix_slots = slots
        return self._prefix_slots

    def _embedded(self, row: Row) -> torch.Tensor:
        """Input embeddings of a prompt (tokens, hidden), soft vectors in their slots."""
        states: torch.Tensor = self.embed(torch.tensor(row.prompt.ids, device=self.device))
        if row.prompt.slots:
            states = states.clone()
        for name, start in row.prompt.slots:
            vectors = torch.as_tensor(row.request.soft[name], dtype=states.dtype, device=self.device)
            states[start : start + vectors.shape[0]] = vectors
        return states

    # -- writing ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One more token for each active row."""
        rows = self.active
        self._hook(rows)
        lengths = [row.length for row in rows]
        positions = torch.tensor(lengths, device=self.device)
        step = Step(positions, max(lengths), self.embed.weight.dtype)
        last = torch.tensor([[row.tokens[-1]] for row in rows], device=self.device)
        with self.slots.stepping(step):
            output = self.model(
                inputs_embeds=self.embed(last),
                position_ids=positions[:, None],
                past_key_values=self.slots,
                use_cache=True,
                logits_to_keep=1,
            )
        self._take(rows, output.logits[:, -1])
        self._retire()

    def _take(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Draws a token for each row."""
        if short := [i for i, r in enumerate(rows) if len(r.tokens) < r.request.sampling.min_new_tokens]:
            logits = logits.clone()
            logits[torch.tensor(short)[:, None], torch.tensor([self.ends])] = -torch.inf
        self.taken(logits)
        if self.sampling.temperature == 0:
            drawn = logits.argmax(-1)
        else:
            seeds = torch.tensor([row.request.seed for row in rows], dtype=torch.int64, device=self.device)
            steps = torch.tensor([len(row.tokens) for row in rows], device=self.device)
            drawn = draw(logits, self.sampling.temperature, self.sampling.top_p, seeds, steps)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.tokens.append(token)

    def _retire(self) -> None:
        """Takes out rows that have ended; the last slots' rows move into the gaps, so that the first slots are full."""
        ended = [i for i, row in enumerate(self.active) if self._ended(row)]
        for slot in reversed(ended):
            last = len(self.active) - 1
            if slot != last:
                self.slots.move(last, slot, self.active[last].length)
                self.active[slot] = self.active[last]
            self.active.pop()
        if ended:
            self.progress(len(ended))

    def _ended(self, row: Row) -> bool:
        return row.tokens[-1] in self.ends or len(row.tokens) >= row.request.sampling.max_new_tokens

    def _hook(self, rows: Sequence[Row]) -> None:
        """Puts the adapters and vectors of these rows upon the model, in place of those that are there."""
        if not self.own or self._hooked == [id(row) for row in rows]:
            return
        self._hooks.close()
        factors = bank.stack([row.adapter for row in rows], self.device)
        self._hooks.enter_context(bank.applied(self.model, factors))
        self._hooks.enter_context(steered(self.model, [row.request.steering for row in rows]))
        self._hooked = [id(row) for row in rows]


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts begin with, short of the first soft vector and of any prompt's last token.

    Zero where that is less than `LEAST_PREFIX`, or for a single prompt.
    """
    if len(prompts) < 2:
        return 0
    room = min(min(len(p.ids) - 1, *p.positions[:1]) if p.positions else len(p.ids) - 1 for p in prompts)
    heads = [p.ids[:room] for p in prompts]
    first, last = min(heads), max(heads)  # of all, these two have the least in common
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), room)
    return length if length >= LEAST_PREFIX else 0


def agrees(model: Any) -> bool:
    """Whether reading from slots gives the logits of a plain forward pass: two prompts that begin alike, then a token
    more for each.

    A family that does something of its own between keys and attention is found out here, whatever its configuration
    says.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    common = [(13 * i + 5) % vocabulary for i in range(LEAST_PREFIX + 4)]
    rows = [
        [*common, *((31 * i + 7) % vocabulary for i in range(12))],
        [*common, *((17 * i + 3) % vocabulary for i in range(7))],
    ]
    prompts = [Prompt(tuple(row), ()) for row in rows]
    device = model.get_input_embeddings().weight.device
    sampling = Sampling(0.0, 1.0, max_new_tokens=2, min_new_tokens=2)
    pool = Pool(model, prompts, [Request("", "", (), sampling, 0)] * 2, 2, lambda _: None)
    seen: list[torch.Tensor] = []
    pool.taken = seen.append
    try:
        found = pool.write().tokens
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a family makes of inputs that it does not expect
        return False
    with torch.no_grad():
        plain = [
            model(torch.tensor([[*row, *new]], device=device)).logits[0] for row, new in zip(rows, found, strict=True)
        ]
    wanted = [torch.stack([logits[len(row) - 1 + i] for row, logits in zip(rows, plain, strict=True)]) for i in (0, 1)]
    allowed = 1e-3 if plain[0].dtype == torch.float32 else 0.1
    kept = [i for i in range(vocabulary) if i not in pool.ends]
    return all(
        bool((a - b)[:, kept].float().abs().mean() <= allowed * b[:, kept].float().std())
        for a, b in zip(seen, wanted, strict=True)
    )
