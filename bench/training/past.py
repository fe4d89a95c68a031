"""A fixed past for attention: keys and values that stand before those of every call.

Two ways to the same numbers. Masked: the past is padded on the left and a mask hides the padding; every family can
do that. Aligned: each row is put together again as past, rest, padding, with zeros in place of the past's queries;
then attention is plainly causal, needs no mask, and runs on the fast kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.errors import UsageError

ALIGNED = "bench_aligned"
"""Name of the attention that reads an `AlignedPast`."""

_hand = threading.local()
"""Where a past leaves the lengths of its rows for the attention that follows in the same layer, also when a layer is
computed again for its gradients."""


class MaskedPast(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """Keys and values, padded on the left, that are never added to."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class AlignedPast(MaskedPast):
    """Keys and values, padded on the right, that each row's own go on from."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, lengths: Sequence[int]) -> None:
        super().__init__(keys, values)
        self.lengths = tuple(lengths)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if getattr(_hand, "lengths", None) is not None:
            _hand.lengths = None
            raise UsageError("this model's attention cannot start from a kept prefix; set prefix_memory_mb to 0")
        _hand.lengths = self.lengths
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, past: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        if len(set(self.lengths)) == 1:
            return torch.cat([past, rest], dim=-2)
        free = past.shape[-2]
        rows = [
            pad(torch.cat([past[i, :, :length], rest[i]], dim=-2), (0, 0, 0, free - length))
            for i, length in enumerate(self.lengths)
        ]
        return torch.stack(rows)


def _aligned_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    lengths, _hand.lengths = getattr(_hand, "lengths", None), None
    if lengths is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return plain
    rest, free = query.shape[2], key.shape[2] - query.shape[2]
    if len(set(lengths)) == 1:
        output, _ = sdpa_attention_forward(module, pad(query, (0, 0, free, 0)), key, value, None, **more)
        return output[:, free:], None
    queries = torch.stack([pad(query[i], (0, 0, n, free - n)) for i, n in enumerate(lengths)])
    output, _ = sdpa_attention_forward(module, queries, key, value, None, **more)
    return torch.stack([output[i, n : n + rest] for i, n in enumerate(lengths)]), None


AttentionInterface.register(ALIGNED, _aligned_attention)
