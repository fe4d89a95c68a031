"""What is read about an encoder from the files around its weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.encoders import read_facts
from bench.errors import UsageError


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


MODULES = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in
           (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))]  # fmt: skip
POOLING = "1_Pooling/config.json"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (8, 512, "mean")),
        ({"tokenizer_config.json": {"model_max_length": 128}}, (8, 128, "mean")),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, (8, 512, "mean")),
        ({"sentence_bert_config.json": {"max_seq_length": 8192}}, (8, 512, "mean")),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, (8, 512, "mean")),
        ({"sentence_bert_config.json": {"max_seq_length": 100}}, (8, 100, "mean")),
        ({"config.json": {"hidden_size": 8, "max_position_embeddings": 77}}, (8, 77, "mean")),
        ({"modules.json": MODULES, POOLING: {"pooling_mode_cls_token": True}}, (8, 512, "cls")),
        ({POOLING: {"pooling_mode_mean_tokens": True, "include_prompt": True}}, (8, 512, "mean")),
        ({POOLING: {"embedding_dimension": 8, "pooling_mode": "cls"}}, (8, 512, "cls")),
    ],
)
def test_facts(tmp_path: Path, files: dict[str, Any], expected: tuple[int, int, str]) -> None:
    found = read_facts(write(tmp_path, {"config.json": {"hidden_size": 8}, **files}), "x")
    assert (found.dimension, found.max_length, found.pooling) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({POOLING: {"pooling_mode_max_tokens": True}}, "pools by max_tokens"),
        ({POOLING: {"pooling_mode_lasttoken": True}}, "pools by lasttoken"),
        ({POOLING: {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, "cls_token and mean_tokens"),
        ({POOLING: {"pooling_mode_mean_sqrt_len_tokens": True}}, "pools by mean_sqrt_len"),
        ({"modules.json": [*MODULES, {"type": "x.Dense", "path": "3_Dense"}], POOLING: {}}, "has a Dense layer"),
        ({"modules.json": MODULES}, "1_Pooling/config.json, which is missing"),
        ({"config.json": {}}, "does not say hidden_size"),
        ({"config.json": "{"}, "config.json cannot be read as JSON"),
    ],
)
def test_encoders_that_cannot_be_used(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_facts(write(tmp_path, {"config.json": {"hidden_size": 8}, **files}), "x")
    assert "\n" not in str(caught.value)
