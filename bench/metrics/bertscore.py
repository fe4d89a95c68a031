"""BERTScore: words of the reference found again by the nearness of their contextual embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.errors import UsageError
from bench.metrics.base import Advance, Metric, ScoreInput, Vector, attempt, package_version, text_of
from bench.weights import Source, local_folder, planned_revision, resolve

EMBEDDED_LAYERS = {"minilm": 6}
"""Layers of the embedded encoders: all of them, as nobody has tuned the choice."""


class BertScoreConfig(BaseConfig):
    """Knobs of BERTScore."""

    model: str = "minilm"
    """Embedded encoder, local folder or hub id; DPL and DEP report allenai/led-base-16384."""
    num_layers: int | None = Field(None, ge=0)
    """Layer whose vectors are compared. Known for the embedded model and for hub ids in bert_score's own table."""
    batch_size: int = Field(64, ge=1)
    """Texts embedded at once; changes speed and memory, not the score."""


class BertScore(Metric):
    """BERTScore F1 (Zhang et al. 2020, bert_score; not rescaled, no idf weights).

    A text without words (empty or white space) scores 0: bert_score's own rule for empty texts, which its code no
    longer reaches with recent tokenizers. Texts longer than the model takes are cut at its end. Weights are read from
    safetensors only, and no code that comes with a model runs.
    """

    name = "bertscore"
    Config = BertScoreConfig
    config: BertScoreConfig

    def preflight(self) -> None:
        package_version("bert-score", self.name)
        self._layers()
        check_folder(self._folder())

    def _signature_parts(self) -> Mapping[str, object]:
        return {
            "f": 1,
            "model": self._source.label,
            "weights": planned_revision(self._source) or planned_revision(self._downloaded()),
            "layers": self._layers(),
            "idf": False,
            "rescaled": False,
            "empty": 0,
            "bert-score": package_version("bert-score", self.name),
            "transformers": package_version("transformers", self.name),
        }

    @cached_property
    def _source(self) -> Source:
        return resolve(self.config.model, "encoder")

    def _folder(self) -> Path:
        return local_folder(self._source)

    def _downloaded(self) -> Source:
        self._folder()
        return self._source

    def _layers(self) -> int:
        if self.config.num_layers is not None:
            return self.config.num_layers
        name = self._source.location.partition("@")[0]
        layers = EMBEDDED_LAYERS.get(name) if self._source.origin == "asset" else _tuned_layers(name)
        if layers is None:
            raise UsageError(
                f"BERTScore does not know which layer of {self.config.model} to compare; "
                "give it with --set bertscore.num_layers=N"
            )
        return layers

    @cached_property
    def _scorer(self) -> Any:
        from bert_score import BERTScorer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = self._folder()
        check_folder(folder)
        try:
            scorer = BERTScorer(model_type=str(folder), num_layers=self._layers(), batch_size=self.config.batch_size)
        except (AssertionError, OSError, ValueError) as error:
            line = str(error).strip().partition("\n")[0]
            raise UsageError(f"BERTScore cannot use {self.config.model}: {line}") from error
        _cap_length(scorer._tokenizer, scorer._model.config)
        return scorer

    def _outcomes(self, inputs: Sequence[ScoreInput], advance: Advance) -> Iterator[Vector | Exception | None]:
        # Long texts together, so that little is spent on padding; a batch that fails is taken one text at a time.
        order = sorted(range(len(inputs)), key=lambda index: len(text_of(inputs[index])), reverse=True)
        outcomes: dict[int, Vector | Exception | None] = {}
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            try:
                found: Sequence[Vector | Exception | None] = self._score([inputs[index] for index in batch])
            except UsageError:
                raise
            except Exception:
                found = [attempt(self._vector, inputs[index]) for index in batch]
            outcomes.update(zip(batch, found, strict=True))
            advance(len(batch))
        yield from (outcomes[index] for index in range(len(inputs)))

    def _vector(self, item: ScoreInput) -> Vector | None:
        return self._score([item])[0]

    def _score(self, inputs: Sequence[ScoreInput]) -> list[Vector]:
        vectors: list[Vector] = [[0.0] for _ in inputs]
        worded = [index for index, item in enumerate(inputs) if text_of(item).strip() and item.reference.strip()]
        if not worded:
            return vectors
        predictions = [text_of(inputs[index]) for index in worded]
        references = [inputs[index].reference for index in worded]
        f1 = self._scorer.score(predictions, references, batch_size=self.config.batch_size)[2]
        for index, value in zip(worded, f1.tolist(), strict=True):
            vectors[index] = [value]
        return vectors


def check_folder(folder: Path) -> None:
    """Raises UsageError unless bert_score will load the folder's safetensors with transformers' own classes.

    bert_score passes no options on to transformers, which would then fall back on pickled weights, look for adapters,
    or ask whether to run the folder's code.
    """
    from transformers import CONFIG_MAPPING

    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise UsageError(f"{folder} holds no model.safetensors: save the model with save_pretrained for BERTScore")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    family = str(config.get("model_type"))
    if family not in CONFIG_MAPPING or _names_code(folder):
        raise UsageError(f"the model in {folder} needs code of its own, which is not run: choose another one")
    if (folder / "adapter_config.json").exists():
        raise UsageError(f"{folder} holds an adapter: merge it into its model before using it for BERTScore")
    if "t5" in str(folder) and "t5" not in family:
        raise UsageError(f"bert_score takes every path with 't5' in it for a T5 model: rename or move {folder}")


def _names_code(folder: Path) -> bool:
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.is_file() and "auto_map" in json.loads(tokenizer.read_text("utf-8"))


def _tuned_layers(name: str) -> int | None:
    from bert_score.utils import model2layers

    layers: int | None = model2layers.get(name)
    return layers


def _cap_length(tokenizer: Any, config: Any) -> None:
    """Sets the tokenizer's longest text to what the model has positions for, where the tokenizer names no length.

    Such a tokenizer cuts nothing, and a text beyond the last position is an index error. Models of the RoBERTa family
    number positions from their padding id on.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if tokenizer.model_max_length < 1_000_000 or not positions:
        return
    offset = config.pad_token_id + 1 if "roberta" in str(config.model_type) else 0
    tokenizer.model_max_length = positions - offset
