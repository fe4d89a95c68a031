"""What the machine does at most, timed on the spot: a matrix product and a copy, in the model's type, on its device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.engines.devices import wait

_SECONDS = 1.0
"""For each of the two measurements."""


@dataclass(frozen=True)
class Ceilings:
    """Rates that no engine can exceed on this machine in this moment."""

    flops: float
    """Floating-point operations a second of a large square matrix product."""
    bytes: float
    """Bytes a second of a copy, those read and those written together."""


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of repeated products and copies, about two seconds in all."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, dtype=torch.float32, device=device).to(dtype)
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(a, a), device)
    copied = _best(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product, 2 * source.numel() / copied)


def _best(work: Callable[[], object], device: torch.device) -> float:
    work()
    wait(device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _SECONDS or best == float("inf"):
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best
