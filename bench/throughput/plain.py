"""Transformers' own generate, as a script would call it: left-padded batches in the order of the requests.

Nothing of our engines is in it but the rendering of prompts. A row that has its number of tokens is ended by force;
its batch goes on until the longest is done, as generate does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from bench.engines import bank, chat
from bench.engines.base import BatchResult, LanguageModel
from bench.engines.devices import wait
from bench.types import Generation, Request

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Lengths(LogitsProcessor):  # type: ignore[misc]  # transformers ships no types
    """Ends each row at its own number of tokens and not before; notes when the first logits came."""

    def __init__(self, lengths: Sequence[int], ends: Sequence[int]) -> None:
        self.lengths, self.ends, self.step = torch.tensor(lengths), list(ends), 0
        self.first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.first:
            wait(scores.device)
            self.first = time.perf_counter()
        scores = scores.clone()
        scores[:, self.ends] = -torch.inf
        over = (self.lengths <= self.step).to(scores.device)
        scores[over] = -torch.inf
        scores[over, self.ends[0]] = 0
        self.step += 1
        return scores


def run(lm: LanguageModel, requests: Sequence[Request], size: int) -> list[BatchResult]:
    """One result a batch of `size` requests. Rows with users' adapters go one by one, their adapter put on by peft."""
    if any(request.user_adapter for request in requests):
        size = 1
    return [_batch(lm, requests[i : i + size]) for i in range(0, len(requests), size)]


def _batch(lm: LanguageModel, batch: Sequence[Request]) -> BatchResult:
    model, tokenizer = lm.model, lm.tokenizer
    soft = [{name: int(matrix.shape[0]) for name, matrix in r.soft.items()} for r in batch]
    prompts = [chat.encode(tokenizer, r.messages, s) for r, s in zip(batch, soft, strict=True)]
    longest = max(len(p.ids) for p in prompts)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p.ids)) + list(p.ids) for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=lm.device)
    ends = model.generation_config.eos_token_id
    lengths = [r.sampling.max_new_tokens for r in batch]
    watch = _Lengths(lengths, [ends] if isinstance(ends, int) else ends)
    given: dict[str, Any] = {"input_ids": ids}
    with torch.no_grad(), _adapter(model, batch[0].user_adapter):
        wait(lm.device)
        start = time.perf_counter()
        if any(r.soft for r in batch):
            given = {"inputs_embeds": _embedded(model, ids, prompts, batch)}
        output = model.generate(
            **given,
            attention_mask=mask,
            max_new_tokens=max(lengths),
            do_sample=False,
            logits_processor=LogitsProcessorList([watch]),
        )
        wait(lm.device)
        end = time.perf_counter()
    rows = output[:, 0 if "inputs_embeds" in given else longest :].tolist()
    texts = [tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in zip(rows, lengths, strict=True)]
    generations = [
        Generation(text, len(p.ids), n, "length") for text, p, n in zip(texts, prompts, lengths, strict=True)
    ]
    first = watch.first - start
    return BatchResult(generations, first, end - watch.first, first_token_seconds=(first,) * len(batch))


def _embedded(model: Any, ids: torch.Tensor, prompts: Sequence[chat.Prompt], batch: Sequence[Request]) -> torch.Tensor:
    states: torch.Tensor = model.get_input_embeddings()(ids).clone()
    for row, (prompt, request) in enumerate(zip(prompts, batch, strict=True)):
        before = ids.shape[1] - len(prompt.ids)
        for name, start in prompt.slots:
            vectors = torch.as_tensor(request.soft[name], dtype=states.dtype, device=states.device)
            states[row, before + start : before + start + len(vectors)] = vectors
    return states


@contextmanager
def _adapter(model: Any, path: str | None) -> Iterator[None]:
    """One user's adapter in every linear layer that it has, as peft computes it: a layer beside the layer."""
    if path is None:
        yield
        return
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    factors = bank.load_adapter(path)
    rank = next(iter(factors.values()))[0].shape[0]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(factors), lora_dropout=0.0)
    inject_adapter_in_model(config, model, adapter_name="one")
    try:
        for name, (a, b) in factors.items():
            layer = model.get_submodule(name)
            layer.lora_A["one"].weight.data.copy_(a)
            layer.lora_B["one"].weight.data.copy_(b)
        yield
    finally:
        for name in factors:
            layer = model.get_submodule(name)
            assert isinstance(layer, LoraLayer)
            model.set_submodule(name, layer.get_base_layer())
        model.__dict__.pop("peft_config", None)
