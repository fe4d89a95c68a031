"""Tiny models with adapters on them, by peft and by hand, for tests of users' adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.engines.hf import HFEngine
from bench.training.users import LowRank

Pair = tuple[torch.Tensor, torch.Tensor]
"""A (r, in) and B (out, r) of one layer."""

SHAPE = LowRank(4, 8.0, ("q_proj", "v_proj"))


def plain(engine: HFEngine) -> Any:
    """The model as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32).eval()


def with_shared(engine: HFEngine, folder: str) -> Any:
    """The same with a peft adapter merged into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(engine), folder).merge_and_unload()


def shared_adapter(engine: HFEngine, folder: Path) -> str:
    """A random peft adapter for all rows, saved."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        get_peft_model(plain(engine), config).save_pretrained(str(folder))
    return str(folder)


def merged(model: Any, adapter: Mapping[str, Pair], scale: float) -> Any:
    """The definition, W + scale * B A, put into the weights by hand."""
    with torch.no_grad():
        for name, (a, b) in adapter.items():
            model.get_submodule(name).weight += scale * b @ a
    return model
