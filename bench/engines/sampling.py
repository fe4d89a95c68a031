"""Drawing one token a row, each row from its own stream of random numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from bench.engines.devices import wait

_SHORTLIST = 1024
"""Tokens looked at first: their mass nearly always exceeds top-p, which saves sorting the whole vocabulary."""


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed number that torch's int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014) on int64, whose products wrap around."""
    state = (state ^ (state >> 30) & ((1 << 34) - 1)) * _FIRST
    state = (state ^ (state >> 27) & ((1 << 37) - 1)) * _SECOND
    return state ^ (state >> 31) & ((1 << 33) - 1)


def gumbel(seeds: torch.Tensor, step: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for `tokens` (rows, k): a pure function of row seed (rows,), step and token id, on any device.

    Rows may be at different steps, which `step` (rows,) then tells.

    Forty random bits are spent near zero, where the large values come from that let an improbable token win.
    """
    # Counted from one: zero is a fixed point of the mixer. Products of int64 wrap around.
    along = _signed((step + 1) * _GOLDEN & ((1 << 64) - 1)) if isinstance(step, int) else (step + 1) * _GOLDEN
    stream = seeds + along
    state = _mix(_mix(stream)[:, None] + (tokens + 1) * _GOLDEN)
    uniform = (((state >> 24) & ((1 << 40) - 1)).float() + 0.5) / (1 << 40)
    # Float32 rounds the topmost values to one, which would be infinite noise.
    return -(-torch.log1p(-uniform.clamp(max=1 - 2**-24))).log()


def draw(
    logits: torch.Tensor, temperature: float, top_p: float, seeds: torch.Tensor, step: int | torch.Tensor
) -> torch.Tensor:
    """One token id a row of `logits` (rows, vocabulary), by nucleus sampling (Holtzman et al. 2020).

    The largest log-probability plus Gumbel noise wins, which draws from the distribution exactly; and as the noise
    belongs to the token, logits that differ by rounding nearly always give the same token. Of equally probable
    tokens the lower ids enter the nucleus first. Returns int64 (rows,).
    """
    logs = (logits.float() / temperature).log_softmax(-1)
    width = min(_SHORTLIST, logits.shape[-1])
    if top_p >= 1:
        everything = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape)
        return _winner(logs, everything, seeds, step)
    tokens = logs.topk(width, dim=-1).indices.sort(dim=-1).values
    values, order = logs.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
    mass = values.exp().cumsum(-1)
    chosen = _winner(_nucleus(values, mass, top_p), tokens.gather(-1, order), seeds, step)
    if width < logits.shape[-1]:
        # Tokens that tie with the shortlist's last one may have been left out of it, so the mass above them counts.
        above = mass.masked_fill(values == values[:, -1:], 0.0).amax(-1)
        flat = (above < top_p).nonzero().flatten()
        if len(flat):
            values, order = logs[flat].sort(dim=-1, descending=True, stable=True)
            at = step if isinstance(step, int) else step[flat]
            chosen[flat] = _winner(_nucleus(values, values.exp().cumsum(-1), top_p), order, seeds[flat], at)
    return chosen


def _nucleus(logs: torch.Tensor, mass: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities in falling order, those outside the nucleus at minus infinity."""
    before = mass.roll(1, -1)
    before[:, 0] = -1.0  # the first always belongs
    return logs.masked_fill(before >= top_p, -float("inf"))


def _winner(logs: torch.Tensor, tokens: torch.Tensor, seeds: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
    best = (logs + gumbel(seeds, step, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(-1, best)[:, 0]


class PerRequestSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token possible a row, drawn with the row's own seed, so that greedy decoding takes it.

    Also notes when the first logits arrived, which is when the prompt had been read.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64)
        self.temperature, self.top_p = temperature, top_p
        self.step = 0
        self.first_logits_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.first_logits_at is None:
            wait(scores.device)
            self.first_logits_at = time.perf_counter()
        if self.temperature == 0:
            return scores
        tokens = draw(scores, self.temperature, self.top_p, self.seeds.to(scores.device), self.step)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
