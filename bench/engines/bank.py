"""A bank of adapters: each row of a batch gets a low-rank update of its own (Hu et al. 2022), so users share batches.

A row's update of a linear layer is B A x, with A (r, in) and B (out, r) of the row's user; both come stacked over the
rows, and two batched products do it for all of them at once. Rows without an adapter have zeros. Whatever lies below
(the bare model, or one with a peft adapter for all rows) stays as it is.

A user's file holds peft's names for the two matrices of each layer, and alpha in its header: safetensors, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

Factors = Mapping[str, tuple["Tensor", "Tensor"]]
"""Layer -> A (rows, r, in) and B (rows, out, r), the latter scaled by alpha / r."""

Adapter = Mapping[str, tuple["Tensor", "Tensor"]]
"""One user's: layer -> A (r, in) and B (out, r), the latter scaled; empty for none."""

_PREFIX = "base_model.model."
"""Stands before a layer's name in a peft model, and in files as peft writes them."""
_INNER = {"base_layer", "lora_A", "lora_B"}
"""Parts of a layer that carries a peft adapter."""
_ENDS = (".lora_A.weight", ".lora_B.weight")


def linear_layers(model: Any) -> dict[str, Any]:
    """Linear layers by the names that they have in the bare model; those under a peft adapter come with it."""
    found = {}
    for name, module in model.named_modules():
        linear = isinstance(getattr(module, "base_layer", module), torch.nn.Linear)
        if linear and not _INNER & set(name.split(".")):
            found[name.removeprefix(_PREFIX)] = module
    return found


@contextmanager
def applied(model: Any, factors: Factors) -> Iterator[None]:
    """While open, each row that goes through the model gets its own update; afterwards the model is as before.

    Inputs of the layers must be (rows, length, in). Computed in the type of these inputs. Raises UsageError for a layer
    that the model lacks or that has another shape.
    """
    there = linear_layers(model)
    handles = []
    try:
        for name, (a, b) in factors.items():
            layer = there.get(name)
            if layer is None or (layer.in_features, layer.out_features) != (a.shape[2], b.shape[1]):
                raise UsageError(f"a user's adapter does not fit the model: {_told(name, layer, a, b)}")
            handles.append(layer.register_forward_hook(_update(a, b)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _told(name: str, layer: Any, a: Tensor, b: Tensor) -> str:
    if layer is None:
        return f"there is no linear layer {name}"
    return f"{name} is {layer.in_features} to {layer.out_features}, the adapter's {a.shape[2]} to {b.shape[1]}"


def _update(a: Tensor, b: Tensor) -> Any:
    def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given = inputs[0]
        if given.dim() != 3 or given.shape[0] != a.shape[0]:
            raise ValueError(f"adapters of {a.shape[0]} rows for inputs of shape {tuple(given.shape)}")
        low = torch.bmm(given, a.to(given.dtype).transpose(1, 2))
        return output + torch.bmm(low, b.to(given.dtype).transpose(1, 2)).to(output.dtype)

    return hook


# -- files ------------------------------------------------------------------------------------------------------------


def save_adapter(path: Path, layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float, dtype: torch.dtype) -> None:
    """Writes one user's A (r, in) and B (out, r), the latter not yet scaled, and brings them to the disk."""
    from safetensors.torch import save

    tensors = {}
    for name, pair in layers.items():
        for end, tensor in zip(_ENDS, pair, strict=True):
            tensors[f"{_PREFIX}{name}{end}"] = tensor.detach().to("cpu", dtype).contiguous()
    with path.open("wb") as file:
        file.write(save(tensors, {"alpha": repr(alpha)}))
        file.flush()
        os.fsync(file.fileno())


def load_adapter(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """One user's adapter: layer -> A (r, in) and B (out, r), scaled. Raises UsageError for what is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            alpha = float((file.metadata() or {})["alpha"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        names = [key.removesuffix(_ENDS[0]) for key in tensors if key.endswith(_ENDS[0])]
        pairs = {name.removeprefix(_PREFIX): (tensors[name + _ENDS[0]], tensors[name + _ENDS[1]]) for name in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} holds no user's adapter ({first_line(error)}); remove its folder and give the same command again"
        ) from error
    return {name: (a, b * (alpha / a.shape[0])) for name, (a, b) in pairs.items()}


class Loaded:
    """Adapters by path, each file read once."""

    def __init__(self) -> None:
        self._known: dict[str, Adapter] = {}

    def of(self, path: str | None) -> Adapter:
        """The adapter of a file, an empty one for no file. Raises UsageError for a file that holds none."""
        if path is None:
            return {}
        if path not in self._known:
            self._known[path] = load_adapter(path)
        return self._known[path]


def stacked(paths: Sequence[str | None], device: torch.device) -> Factors:
    """The adapters of a batch's rows, zeros for a row without one; nothing at all if no row has one."""
    loaded = Loaded()
    return stack([loaded.of(path) for path in paths], device, paths)


def stack(rows: Sequence[Adapter], device: torch.device, names: Sequence[str | None] = ()) -> Factors:
    """As `stacked`, of adapters at hand; `names` are what an error calls them."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for row in rows:
        for name, (a, b) in row.items():
            rank = max(a.shape[0], shapes[name][0]) if name in shapes else a.shape[0]
            shapes[name] = (rank, a.shape[1], b.shape[0])
    factors = {}
    for name, (rank, width, height) in shapes.items():
        kind = next(row[name][0].dtype for row in rows if name in row)
        a, b = torch.zeros(len(rows), rank, width, dtype=kind), torch.zeros(len(rows), height, rank, dtype=kind)
        for i, row in enumerate(rows):
            if name in row:
                own_a, own_b = row[name]
                if (own_a.shape[1], own_b.shape[0]) != (width, height):
                    named = names[i] if names else "a row's"
                    raise UsageError(f"{named} is an adapter of another model than others of its batch: {name}")
                a[i, : own_a.shape[0]], b[i, :, : own_b.shape[1]] = own_a, own_b
        factors[name] = (a.to(device), b.to(device))
    return factors
