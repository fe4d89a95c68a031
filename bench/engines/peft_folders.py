"""LoRA adapters as plain peft folders, for engines that read nothing else: written anew, or several made one.

Updates of one layer add up, W + B1 A1 + B2 A2, and that is the update of rank r1 + r2 whose A holds both A's rows and
whose B holds both B's columns: exactly, so a shared adapter and a user's own can be served as one. The scale alpha / r
is put into B and ranks are filled up with zeros, so that what is written has one rank and scale 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pairs = Mapping[str, tuple["Tensor", "Tensor"]]
"""Layer -> A (r, in) and B (out, r), the latter scaled."""

_PREFIX = "base_model.model."
_ENDS = (".lora_A.weight", ".lora_B.weight")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_CHANGES = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "megatron_config",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "arrow_config",
    "corda_config",
)
"""Settings of peft with which an adapter is more than B A beside each layer."""
_BASE_INITS = ("pissa", "olora", "corda", "loftq")
"""Ways to initialise that change the base weights when peft loads the adapter."""


def read(folder: str) -> dict[str, tuple[Tensor, Tensor]]:
    """A peft folder as pairs, B scaled as its config says. Raises UsageError for what is no plain LoRA."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder)
    try:
        config = json.loads((path / _CONFIG).read_text("utf-8"))
        with safe_open(path / _WEIGHTS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{folder} is no adapter folder as peft writes them: {first_line(error)}") from error
    _check_plain(config, tensors, folder)
    names = [key.removesuffix(_ENDS[0]) for key in tensors if key.endswith(_ENDS[0])]
    pairs = {}
    for name in names:
        layer = name.removeprefix(_PREFIX)
        a, b = tensors[name + _ENDS[0]], tensors[name + _ENDS[1]]
        pairs[layer] = (a, b * _scale(config, layer))
    return pairs


def _check_plain(config: Mapping[str, Any], tensors: Mapping[str, Any], folder: str) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise UsageError(f"{folder} is a peft adapter of type {config['peft_type']}, not LoRA; use --engine hf")
    changes = [name for name in _CHANGES if config.get(name)]
    if config.get("bias", "none") != "none":
        changes.append("bias")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_INITS):
        changes.append("init_lora_weights")
    others = sorted(key for key in tensors if not key.endswith(_ENDS))
    lonely = sorted(k for k in tensors if k.endswith(_ENDS[0]) and k.removesuffix(_ENDS[0]) + _ENDS[1] not in tensors)
    if changes or others or lonely:
        what = changes[0] if changes else (others or lonely)[0]
        raise UsageError(f"{folder} is more than plain LoRA on linear layers ({what}); use --engine hf for it")


def _scale(config: Mapping[str, Any], layer: str) -> float:
    """alpha / r of a layer (over the root of r for rsLoRA), with peft's patterns for single layers."""
    rank = _by_pattern(config.get("rank_pattern"), layer, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, usual: Any) -> Any:
    """A key of a pattern is a layer's name or its end, from a dot on; the first that matches counts."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), usual)


def added(parts: Sequence[Pairs]) -> dict[str, tuple[Tensor, Tensor]]:
    """One adapter whose update of each layer is the sum of the parts' updates. Raises UsageError for unlike shapes."""
    import torch

    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for part in parts:
        for layer, (a, b) in part.items():
            if layer not in sums:
                sums[layer] = (a, b)
                continue
            other_a, other_b = sums[layer]
            if (other_a.shape[1], other_b.shape[0]) != (a.shape[1], b.shape[0]):
                raise UsageError(f"two adapters of one request are of different models: {layer}")
            kind = torch.promote_types(a.dtype, other_a.dtype)
            sums[layer] = (torch.cat([other_a.to(kind), a.to(kind)]), torch.cat([other_b.to(kind), b.to(kind)], dim=1))
    return sums


def rank_of(pairs: Pairs) -> int:
    """The largest rank of any layer."""
    return max((int(a.shape[0]) for a, _ in pairs.values()), default=0)


def write(folder: Path, pairs: Pairs, dtype: torch.dtype | None = None) -> None:
    """Writes a peft folder of one rank and scale 1, in `dtype` or in the type that each tensor has."""
    import torch
    from safetensors.torch import save_file

    rank = max(1, rank_of(pairs))
    tensors = {}
    for layer, (a, b) in pairs.items():
        fill = rank - a.shape[0]
        padded = torch.nn.functional.pad(a, (0, 0, 0, fill)), torch.nn.functional.pad(b, (0, fill))
        for end, tensor in zip(_ENDS, padded, strict=True):
            tensors[f"{_PREFIX}{layer}{end}"] = tensor.to("cpu", dtype or tensor.dtype).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({layer.rpartition(".")[2] for layer in pairs}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
