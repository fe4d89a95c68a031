"""The reference path: transformers' own `generate`, a padded batch after the other. What others are held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.engines import bank
from bench.engines.batching import grouped
from bench.engines.chat import Prompt
from bench.engines.contrast import Contrasting
from bench.engines.devices import wait
from bench.engines.refill import Written
from bench.engines.sampling import PerRequestSampler
from bench.engines.steering import steered
from bench.types import Request


def write(
    model: Any, prompts: Sequence[Prompt], batch: Sequence[Request], rows: int, progress: Callable[[int], object]
) -> Written:
    """New tokens of all rows, at most `rows` at a time; `progress` is told of each part that is done."""
    tokens: list[list[int]] = [[] for _ in batch]
    first = [0.0] * len(batch)
    prefill = decode = 0.0
    for part in grouped([0] * len(batch), [r.sampling for r in batch], [""] * len(batch), rows, 1):
        drawn, before, after = _decode(model, [prompts[i] for i in part], [batch[i] for i in part])
        for i, row in zip(part, drawn, strict=True):
            tokens[i], first[i] = row, prefill + decode + before
        prefill, decode = prefill + before, decode + after
        progress(len(part))
    return Written(tokens, prefill, decode, first)


def _decode(model: Any, prompts: Sequence[Prompt], batch: Sequence[Request]) -> tuple[list[list[int]], float, float]:
    """New token ids a row, prefill seconds, decode seconds. The batch shares one Sampling and one Contrast."""
    sampling, contrast, asked = batch[0].sampling, batch[0].contrast, len(batch)
    if contrast is not None:
        prompts, batch = [*prompts, *prompts], [*batch, *(replace(r, user_adapter=None) for r in batch)]
    inputs, mask = embed(model, prompts, batch)
    sampler = PerRequestSampler([r.seed for r in batch], sampling.temperature, sampling.top_p)
    own = bank.stacked([request.user_adapter for request in batch], mask.device)
    steerings = [request.steering for request in batch]
    with torch.no_grad(), bank.applied(model, own), steered(model, steerings):
        wait(inputs.device)
        start = time.perf_counter()
        output = model.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens or None,
            logits_processor=[*([Contrasting(contrast)] if contrast else []), sampler],
        )
        rows = output[:asked].tolist()
        end = time.perf_counter()
    first = sampler.first_logits_at or end
    return rows, first - start, end - first


def embed(model: Any, prompts: Sequence[Prompt], batch: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded input embeddings (rows, length, hidden) with soft vectors in their slots, and the mask."""
    device = model.get_input_embeddings().weight.device
    length = max(len(prompt.ids) for prompt in prompts)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (length - len(p.ids)) + list(p.ids) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids).clone()
        for row, (prompt, request) in enumerate(zip(prompts, batch, strict=True)):
            offset = length - len(prompt.ids)
            for name, start in prompt.slots:
                vectors = torch.as_tensor(request.soft[name], dtype=embedded.dtype, device=embedded.device)
                embedded[row, offset + start : offset + start + vectors.shape[0]] = vectors
    return embedded, mask
