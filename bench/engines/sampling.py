"""Drawing one token a row, each row from its own stream of random numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import LogitsProcessor

if TYPE_CHECKING:
    import torch

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


def gumbel(seeds: torch.Tensor, step: int, tokens: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for `tokens` (rows, k): a pure function of row seed (rows,), step and token id, on any device."""
    stream = seeds + _signed(step * _GOLDEN & ((1 << 64) - 1))
    state = _mix(_mix(stream)[:, None] + tokens * _GOLDEN)
    uniform = (((state >> 40) & ((1 << 24) - 1)).float() + 0.5) / (1 << 24)
    return -(-uniform.log()).log()


def draw(logits: torch.Tensor, temperature: float, top_p: float, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """One token id a row of `logits` (rows, vocabulary), by nucleus sampling (Holtzman et al. 2020).

    The largest log-probability plus Gumbel noise wins, which draws from the distribution exactly; and as the noise
    belongs to the token, logits that differ by rounding nearly always give the same token. Returns int64 (rows,).
    """
    scaled = logits.float() / temperature
    probabilities = scaled.softmax(-1)
    width = min(_SHORTLIST, logits.shape[-1])
    values, tokens = probabilities.topk(width, dim=-1)
    chosen = _winner(values, tokens, top_p, seeds, step)
    if width < logits.shape[-1]:
        for row in (values.sum(-1) < top_p).nonzero().flatten().tolist():
            one = slice(row, row + 1)
            everything, order = probabilities[one].sort(dim=-1, descending=True)
            chosen[one] = _winner(everything, order, top_p, seeds[one], step)
    return chosen


def _winner(values: torch.Tensor, tokens: torch.Tensor, top_p: float, seeds: torch.Tensor, step: int) -> torch.Tensor:
    # A token belongs to the nucleus if the mass before it is below top_p: the first always does.
    outside = (values.cumsum(-1) - values) >= top_p
    scores = (values.log() + gumbel(seeds, step, tokens)).masked_fill(outside, -float("inf"))
    return tokens.gather(-1, scores.argmax(-1, keepdim=True))[:, 0]


class PerRequestSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token possible a row, drawn with the row's own seed, so that greedy decoding takes it.

    Also notes when the first logits arrived, which is when the prompt had been read.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self.seeds = list(seeds)
        self.temperature, self.top_p = temperature, top_p
        self.step = 0
        self.first_logits_at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if self.first_logits_at is None:
            if scores.is_cuda:
                torch.cuda.synchronize()
            self.first_logits_at = time.perf_counter()
        if self.temperature == 0:
            return scores
        seeds = torch.tensor(self.seeds, dtype=torch.int64, device=scores.device)
        tokens = draw(scores, self.temperature, self.top_p, seeds, self.step)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
