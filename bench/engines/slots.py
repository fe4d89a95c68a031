"""Keys and values in slots: each row of a batch has one, as long as the longest row needs, and nothing is ever moved.

A row is written from position 0 of its slot, so that padding stands behind it and a position is an index. What a
prompt's forward pass computes lands in the slots of its rows, one after the other, without padding between them; a
decoding step adds one position to each of the first rows. Attention reads the slots in place: keys and values that
heads share (grouped queries, Ainslie et al. 2023) are never unpacked to the number of heads. The heads are laid side by
side as queries of one head, or left to the kernel where that is quicker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from bench.errors import UsageError

SLOTS = "bench_slots"
"""Name of the attention that reads a `Slots`."""
STRIDE = 64
"""Attention of a decoding step reads a multiple of so many positions."""

_hand = threading.local()
"""Where `Slots.update` leaves word for the attention that follows in the same layer."""


@dataclass(frozen=True)
class Segment:
    """A row's share of a forward pass over prompts: `length` new positions behind `past` that its slot holds."""

    slot: int
    past: int
    length: int


class Slots(Cache):  # type: ignore[misc]  # transformers ships no types
    """Keys and values of up to `rows` rows of `width` positions."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(layers=[])
        self.rows, self.width = rows, -(-width // STRIDE) * STRIDE
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._segments: tuple[Segment, ...] = ()
        self._step: Step | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given to the model, so this is asked for nothing."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a layer's new keys and values into the slots, and tells the attention that follows to read them."""
        if getattr(_hand, "layer", None) is not None:
            _hand.layer = None
            raise UsageError("this model's attention cannot read slots; use --set hf.path=reference")
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in store:  # zeros: what is masked out must still be a number
                shape = (self.rows, states.shape[1], self.width, states.shape[3])
                store[layer_idx] = torch.zeros(shape, dtype=states.dtype, device=states.device)
            self._write(store[layer_idx], states)
        _hand.layer = (self, layer_idx)
        return key_states, value_states

    def _write(self, store: torch.Tensor, states: torch.Tensor) -> None:
        if self._step is not None:
            store[self._step.rows, :, self._step.positions] = states[:, :, 0]
            return
        start = 0
        for part in self._segments:
            new = states[0, :, start : start + part.length]
            store[part.slot, :, part.past : part.past + part.length] = new
            start += part.length

    def attend(self, layer: int, query: torch.Tensor, scale: float | None) -> torch.Tensor:
        """Attention of `query` (rows, heads, length, head size) over what the slots hold: same shape."""
        keys, values = self.keys[layer], self.values[layer]
        if self._step is not None:
            return self._step.attend(query, keys, values, scale)
        parts, start = [], 0
        for part in self._segments:
            end = part.past + part.length
            own = query[:, :, start : start + part.length]
            parts.append(_causal(own, keys[part.slot, None, :, :end], values[part.slot, None, :, :end], scale))
            start += part.length
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @contextmanager
    def reading(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Inside, a forward pass of shape (1, sum of lengths) is over these segments of prompts."""
        self._segments = tuple(segments)
        try:
            yield
        finally:
            self._segments, _hand.layer = (), None

    @contextmanager
    def stepping(self, step: Step) -> Iterator[None]:
        """Inside, a forward pass of shape (rows, 1) adds one position to each of the first rows."""
        self._step = step
        try:
            yield
        finally:
            self._step, _hand.layer = None, None

    def copy_prefix(self, other: Slots, length: int, slot: int) -> None:
        """Takes the first `length` positions of the other's only slot into `slot`."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, store in theirs.items():
                if layer not in mine:
                    mine[layer] = store.new_zeros(self.rows, store.shape[1], self.width, store.shape[3])
                mine[layer][slot, :, :length] = store[0, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one slot over those of another."""
        for stores in (self.keys, self.values):
            for store in stores.values():
                store[target, :, :length] = store[source, :, :length]


class Step:
    """One decoding step of the first rows: where each writes, and what each may read."""

    def __init__(self, positions: torch.Tensor, longest: int, dtype: torch.dtype) -> None:
        """`positions` (rows,): the position that each row adds; `longest` the largest of them."""
        self.positions = positions
        self.rows = torch.arange(len(positions), device=positions.device)
        self.reach = -(-(longest + 1) // STRIDE) * STRIDE
        unseen = torch.arange(self.reach, device=positions.device) > positions[:, None]
        mask = torch.zeros(unseen.shape, dtype=dtype, device=positions.device).masked_fill_(unseen, -torch.inf)
        self.mask = mask[:, None, None]

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        rows, heads, _, size = query.shape
        shared = keys.shape[1]
        seen, read = keys[:rows, :, : self.reach], values[:rows, :, : self.reach]
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # One query a head is quicker here than several laid side by side, by a fifth; in float32 it is slower.
            return scaled_dot_product_attention(
                query, seen, read, attn_mask=self.mask, scale=scale, enable_gqa=heads != shared
            )
        grouped = query.view(rows, shared, heads // shared, size)
        mask = self.mask.expand(rows, 1, heads // shared, self.reach)
        output = scaled_dot_product_attention(grouped, seen, read, attn_mask=mask, scale=scale)
        return output.reshape(rows, heads, 1, -1)


def _causal(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention of one row whose queries are the last of its keys' positions."""
    past = keys.shape[2] - query.shape[2]
    more: dict[str, Any] = {"scale": scale, "enable_gqa": keys.shape[1] != query.shape[1]}
    if past == 0:
        return scaled_dot_product_attention(query, keys, values, is_causal=True, **more)
    if query.device.type == "cuda":
        bias = causal_lower_right(query.shape[2], keys.shape[2])
        return scaled_dot_product_attention(query, keys, values, attn_mask=bias, **more)
    # Queries of zeros in the past's place keep it plainly causal: quicker here than attention under a mask.
    output = scaled_dot_product_attention(pad(query, (0, 0, past, 0)), keys, values, is_causal=True, **more)
    return output[:, :, past:]


def _slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    layer, _hand.layer = getattr(_hand, "layer", None), None
    # A model that makes a mask of its own, or hands over more than plain attention knows, sees otherwise than causally.
    known = ("softcap", "s_aux", "sliding_window")
    if layer is None or attention_mask is not None or any(more.get(name) is not None for name in known):
        raise UsageError("this model's attention cannot read slots; use --set hf.path=reference")
    slots, number = layer
    return slots.attend(number, query, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(SLOTS, _slot_attention)


def layer_kinds(config: Any) -> list[str]:
    """Kind of attention of each layer, empty where a family has only one."""
    return list(getattr(config, "layer_types", None) or [])


def wholly_causal(config: Any) -> bool:
    """Whether every layer looks at all that stands before, and through no window."""
    kinds = layer_kinds(config)
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)


def plain_past(config: Any) -> bool:
    """Whether layers keep keys and values of their own, and positions mean the same however a row is cut."""
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    moving = any(part.get("rope_type") in ("dynamic", "longrope") for part in scalings)
    return not (moving or bool(getattr(config, "num_kv_shared_layers", 0)))


def supported(model: Any) -> bool:
    """Whether plain causal attention over keys and values is all that a model's past is, by its configuration."""
    config = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None)
    backend = bool(getattr(model, "_supports_attention_backend", False))
    return plain_past(config) and wholly_causal(config) and not capped and backend


@contextmanager
def attention(model: Any) -> Iterator[None]:
    """Inside, the model's attention reads slots."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = SLOTS
    try:
        yield
    finally:
        config._attn_implementation = before
