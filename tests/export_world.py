"""A run of DEP on a planted world of a dozen users, with a tiny model and a tiny encoder, to be exported and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_engine import lively_model

from bench.config import build
from bench.data.split import Dataset
from bench.plan import RunConfig, make_plan
from bench.runner import execute
from bench.store import StoredRun
from bench.testing import tiny_tokenizer
from bench.types import Document, Example

KNOBS = (
    "dep.epochs=2",
    "dep.n_history=3",
    "dep.latent_size=16",
    "dep.k=4",
    "dep.max_target_tokens=64",
    "lora.epochs=1",
    "lora.n_history=1",
    "lora.max_target_tokens=64",
)
WORLD = ("planted.users=12", "planted.items=20", "hf.dtype=float32", "hf.max_batch=4")


def tiny_encoder(folder: Path, width: int = 32) -> Path:
    """A random BERT that reads bytes."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_parts(folder: Path) -> dict[str, Any]:
    """Language model and encoder, as options of a run."""
    return {"model": str(lively_model(folder / "tiny-lm")), "encoder": str(tiny_encoder(folder / "tiny-bert"))}


def make_runs(out: Path, parts: dict[str, Any], methods: Sequence[str] = ("dep",), **changes: Any) -> list[StoredRun]:
    """Complete, scored runs on three test users; greedy and twelve tokens long unless told otherwise."""
    used = [knob for knob in KNOBS if knob.partition(".")[0] in methods]
    config = {
        "methods": methods,
        "metrics": ["rouge1", "length_ratio"],
        "limit": 3,
        "train_limit": 3,
        "temperature": 0.0,
        "max_new_tokens": 12,
        "max_prompt_tokens": 1400,
        "overrides": [*WORLD, *used],
        "out": out,
        **parts,
        **changes,
    }
    return execute(make_plan(build(RunConfig, config, "run")), lambda line: None)


# -- examples of a dataset as a person would have them ----------------------------------------------------------------


def row(document: Document) -> dict[str, Any]:
    """A review as a dict."""
    place = {"user_id": document.user_id, "item_id": document.item_id, "timestamp": document.timestamp}
    return {**place, **document.fields, "text": document.text}


def target(example: Example) -> dict[str, Any]:
    """What is asked, as a dict."""
    place = {"user_id": example.user_id, "item_id": example.item_id, "timestamp": example.timestamp}
    return {**place, **example.fields}


def case(example: Example, dataset: Dataset) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Reviews, everybody else's reviews, and the target of an example."""
    others = [row(d) for d in dataset.population.documents() if d.user_id != example.user_id]
    return [row(d) for d in example.history], others, target(example)
