"""What stands before a row's first slot, computed once: with frozen weights its keys and values never change.

Only the rest of a row then goes through the model with gradients, so that neither forward nor backward spends
anything on the prefix beyond what attention reads of it. Keys and values are kept over all epochs up to a budget of
memory, and computed again (without gradients) beyond it. Equal prefixes share one entry. On a CPU a prefix is
computed alone, so that its bits depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from bench.engines.base import LanguageModel
from bench.engines.batching import by_budget
from bench.engines.slots import layer_kinds, plain_past, wholly_causal
from bench.training.past import ALIGNED, AlignedPast, MaskedPast
from bench.training.rows import Row

Ids = tuple[int, ...]
KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each layer: keys and values of one prefix, (1, heads, tokens, head size)."""

LEAST = 64
"""Tokens below which a prefix goes the plain way."""

_SHARE = {True: 0.1, False: 0.25}
"""Share of a row below which a prefix goes the plain way: putting rows together again costs about a twentieth of a
step, and attention under a mask about a quarter of it on rows of a thousand tokens (measured on a CPU)."""

_TOGETHER = 4096
"""Padded tokens of prefixes that are computed together on an accelerator."""


def supported(model: Any) -> bool:
    """Whether a family's past is keys and values alone, and positions mean the same however a row is cut."""
    config = model.config.get_text_config()
    return plain_past(config) and not set(layer_kinds(config)) - {"full_attention", "sliding_attention"}


def _alignable(config: Any) -> bool:
    """Whether plain causal attention is all that a model does, so that it can do without a mask."""
    return wholly_causal(config) and bool(config._attn_implementation == "sdpa")


class Prefixes:
    """Keys and values of rows' prefixes."""

    def __init__(self, lm: LanguageModel, budget: int, least: int = LEAST, share: float | None = None) -> None:
        """Keeps at most `budget` bytes; leaves alone what is shorter than `least` tokens or that `share` of its row."""
        self.lm, self.budget, self.least = lm, budget, least
        self.bytes = 0
        """What is kept."""
        self.computed = 0
        """Prefixes that went through the model; one that is computed again counts again."""
        self._config = lm.model.config.get_text_config()
        self._alignable = _alignable(self._config)
        self.share = _SHARE[self._alignable] if share is None else share
        self._kept: dict[Ids, KeysValues] = {}

    def length(self, row: Row) -> int:
        """Tokens of a row's prefix: up to its first slot, and never the last token of the prompt."""
        prompt = row.prompt
        tokens = prompt.positions[0] if prompt.positions else len(prompt.ids) - 1
        return tokens if tokens >= max(1, self.least, self.share * row.length) else 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open (forward and backward), attention needs no mask, where the model can do without.

        With a mask, attention's fast kernels are out of reach, which on long rows costs more than a prefix saves.
        """
        usual = self._config._attn_implementation
        if self._alignable:
            self._config._attn_implementation = ALIGNED
        try:
            yield
        finally:
            self._config._attn_implementation = usual

    def past(self, rows: Sequence[Row], length: int) -> dict[str, Any]:
        """What the model is called with beside the embeddings of the rest, padded to `length`."""
        ids = [row.prompt.ids[: self.length(row)] for row in rows]
        states = self._states(ids)
        lengths = [len(i) for i in ids]
        aligned = self._config._attn_implementation == ALIGNED
        layers: list[Any] = []
        for layer in range(len(next(iter(states.values())))):
            both = [states[i][layer] if i else None for i in ids]
            keys, values = (_stacked(both, which, max(lengths), left=not aligned) for which in (0, 1))
            layers.append(AlignedPast(keys, values, lengths) if aligned else MaskedPast(keys, values))
        starts = torch.tensor(lengths, device=self.lm.device)[:, None]
        more: dict[str, Any] = {}
        if not aligned:
            seen = torch.arange(max(lengths) + length, device=self.lm.device)[None] >= max(lengths) - starts
            more["attention_mask"] = seen.long()
        positions = starts + torch.arange(length, device=self.lm.device)[None]
        return {"past_key_values": Cache(layers=layers), "position_ids": positions, "use_cache": True, **more}

    def _states(self, wanted: Sequence[Ids]) -> dict[Ids, KeysValues]:
        found = {ids: self._kept[ids] for ids in wanted if ids in self._kept}
        missing = [ids for ids in dict.fromkeys(wanted) if ids and ids not in found]
        lengths = [len(ids) for ids in missing]
        order = sorted(range(len(missing)), key=lambda i: (-lengths[i], missing[i]))
        together = 1 if self.lm.device.type == "cpu" else len(missing)
        for batch in by_budget(lengths, order, together, _TOGETHER):
            for i, state in zip(batch, self._computed([missing[i] for i in batch]), strict=True):
                found[missing[i]] = state
                self._keep(missing[i], state)
        return found

    @torch.no_grad()
    def _computed(self, prefixes: Sequence[Ids]) -> list[KeysValues]:
        longest = max(map(len, prefixes))
        ids = torch.tensor([[*prefix, *[0] * (longest - len(prefix))] for prefix in prefixes], device=self.lm.device)
        cache = DynamicCache()
        embedded = self.lm.model.get_input_embeddings()(ids)
        self.lm.model.get_decoder()(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        self.computed += len(prefixes)
        return [
            [
                (layer.keys[i : i + 1, :, : len(prefix)].clone(), layer.values[i : i + 1, :, : len(prefix)].clone())
                for layer in cache.layers
            ]
            for i, prefix in enumerate(prefixes)
        ]

    def _keep(self, ids: Ids, state: KeysValues) -> None:
        # Rows come round once an epoch: whatever is kept first stays, as throwing out the oldest would keep nothing.
        size = sum(tensor.nbytes for layer in state for tensor in layer)
        if self.bytes + size <= self.budget:
            self._kept[ids] = state
            self.bytes += size


def _stacked(
    both: Sequence[tuple[torch.Tensor, torch.Tensor] | None], which: int, longest: int, left: bool
) -> torch.Tensor:
    """(rows, heads, longest, head size), padded with zeros on the left or on the right."""
    first = next(pair for pair in both if pair is not None)[which]
    if len(both) == 1:
        return first
    stacked = first.new_zeros(len(both), first.shape[1], longest, first.shape[3])
    for row, pair in zip(stacked, both, strict=True):
        if pair is not None:
            length = pair[which].shape[2]
            start = longest - length if left else 0
            row[:, start : start + length] = pair[which][0]
    return stacked
