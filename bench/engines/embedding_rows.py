"""Rows of a model's input embeddings straight from its safetensors, without loading the model.

An engine that is given vectors in place of ids gets real rows everywhere but in the soft slots. The rows are what the
model's own embedding layer puts out: families that scale them (Gemma) are scaled alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch

    from bench.engines.chat import Prompt
    from bench.types import FloatMatrix

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class EmbeddingRows:
    """The table of a model folder. Made of memory-mapped weights: what is not looked up is not read."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype

    @functools.cached_property
    def _table(self) -> tuple[torch.Tensor, float]:
        """Weights (vocabulary, hidden) and the factor that the layer multiplies them with."""
        name, shape, scale = _embedding_layer(self.folder)
        return _read(Path(self.folder), name, shape), scale

    def of(self, ids: Sequence[int]) -> torch.Tensor:
        """The rows of `ids`: (length, hidden)."""
        import torch

        weights, scale = self._table
        rows = weights[torch.tensor(ids, dtype=torch.long)].to(self.dtype)
        return rows * torch.tensor(scale, dtype=self.dtype) if scale != 1 else rows

    def prompt(self, prompt: Prompt, soft: Mapping[str, FloatMatrix]) -> torch.Tensor:
        """A prompt as vectors (length, hidden), soft ones in their slots. Raises UsageError for another width."""
        import torch

        embedded = self.of(prompt.ids)
        for name, start in prompt.slots:
            vectors = torch.as_tensor(soft[name], dtype=self.dtype)
            if vectors.shape[1] != embedded.shape[1]:
                raise UsageError(
                    f"soft slot {name!r} has vectors of {vectors.shape[1]} numbers, the model's are of "
                    f"{embedded.shape[1]}: they were made for another model"
                )
            embedded[start : start + vectors.shape[0]] = vectors
        return embedded


def _embedding_layer(folder: str) -> tuple[str, tuple[int, int], float]:
    """Name, shape and scale of the input embeddings, from the model's class without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{folder}: its config.json cannot be used: {first_line(error)}") from error
    layer = model.get_input_embeddings()
    name = next(name for name, weight in model.named_parameters() if weight is layer.weight)
    scale = float(getattr(layer, "scalar_embed_scale", 1.0))
    return name, (int(layer.weight.shape[0]), int(layer.weight.shape[1])), scale


def _read(folder: Path, name: str, shape: tuple[int, int]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        files = _files(folder)
        key = _key(name, files)
        with safe_open(folder / files[key], framework="pt") as file:
            weights = file.get_tensor(key)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{folder.name}: its safetensors cannot be read: {first_line(error)}") from error
    if tuple(weights.shape) != shape:
        raise UsageError(
            f"{folder.name}: its embeddings ({key}) are {tuple(weights.shape)} and not {shape} as its config.json says"
        )
    return weights


def _files(folder: Path) -> dict[str, str]:
    """Tensor -> file that holds it."""
    from safetensors import safe_open

    if (folder / _INDEX).is_file():
        return dict(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"])
    path = folder / _SINGLE if (folder / _SINGLE).is_file() else next(iter(sorted(folder.glob("*.safetensors"))))
    with safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path.name)


def _key(name: str, files: Mapping[str, str]) -> str:
    """The checkpoint's name of a parameter: checkpoints write prefixes otherwise than classes do."""
    if name in files:
        return name
    end = ".".join(name.split(".")[-2:])
    alike = [key for key in files if key == end or key.endswith(f".{end}")]
    if len(alike) != 1:
        raise UsageError(f"the weights hold {len(alike)} tensors called {end}; soft prompts need --engine hf here")
    return alike[0]
