"""Adapters as vLLM reads them: what a request carries (shared, a user's own, or both) as one peft folder in a cache."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.engines import peft_folders
from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

Adapter = tuple[str, int, str]
"""Name, number and folder, as vLLM's LoRARequest takes them."""


class AdapterShelf:
    """Writes each combination of adapters once, into a folder that lives as long as the engine."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made: dict[tuple[str, ...], Adapter] = {}
        self._ranks: dict[str, dict[str, int]] = {}
        self._shared: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self._count = 0

    def rank(self, shared: str | None, own: str | None) -> int:
        """The rank that both together have at most; reads headers alone of users' files."""
        sums: dict[str, int] = {}
        for ranks in (*([self._shared_ranks(shared)] if shared else []), *([self._own_ranks(own)] if own else [])):
            for layer, rank in ranks.items():
                sums[layer] = sums.get(layer, 0) + rank
        return max(sums.values(), default=0)

    def get(self, shared: str | None, own: str | None) -> Adapter:
        """The adapter of a request that carries these, at least one of them, written if need be."""
        key = tuple(_mark(path) for path in (shared, own) if path)
        return self._made.get(key) or self._make(key, self._sum(shared, own))

    def blank(self, shared: str | None, own: str | None) -> Adapter:
        """An adapter of the layers of these two that changes nothing."""
        key = ("blank", *(_mark(path) for path in (shared, own) if path))
        if key not in self._made:
            zeros = {layer: (a[:1] * 0, b[:, :1] * 0) for layer, (a, b) in self._sum(shared, own).items()}
            self._make(key, zeros)
        return self._made[key]

    def _sum(self, shared: str | None, own: str | None) -> dict[str, tuple[Tensor, Tensor]]:
        return peft_folders.added(
            [*([self._read_shared(shared)] if shared else []), *([_read_own(own)] if own else [])]
        )

    def _make(self, key: tuple[str, ...], pairs: peft_folders.Pairs) -> Adapter:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="dep-bench-adapters-")
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        peft_folders.write(folder, pairs)
        self._made[key] = (f"adapter-{self._count}", self._count, str(folder))
        return self._made[key]

    def clear(self) -> None:
        """Removes what was written. Numbers are not given again."""
        self._made.clear()
        self._ranks.clear()
        self._shared.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _read_shared(self, folder: str) -> dict[str, tuple[Tensor, Tensor]]:
        mark = _mark(folder)
        if mark not in self._shared:
            self._shared = {mark: peft_folders.read(folder)}
        return self._shared[mark]

    def _shared_ranks(self, folder: str) -> dict[str, int]:
        return {layer: int(a.shape[0]) for layer, (a, _) in self._read_shared(folder).items()}

    def _own_ranks(self, path: str) -> dict[str, int]:
        mark = _mark(path)
        if mark not in self._ranks:
            self._ranks[mark] = _header(path)
        return self._ranks[mark]


def _read_own(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    from bench.engines import bank

    return bank.load_adapter(path)


def _header(path: str) -> dict[str, int]:
    """Layer -> rank of a user's file."""
    from safetensors import SafetensorError, safe_open

    end = ".lora_A.weight"
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.endswith(end)]  # noqa: SIM118 - no mapping
            ranks = {key: int(file.get_slice(key).get_shape()[0]) for key in keys}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} holds no user's adapter: {first_line(error)}") from error
    return {key.removesuffix(end).removeprefix("base_model.model."): rank for key, rank in ranks.items()}


def _mark(path: str) -> str:
    """Tells a file or folder from what later stands in its place."""
    place = Path(path)
    file = place / "adapter_model.safetensors" if place.is_dir() else place
    try:
        stat = file.stat()
    except OSError as error:
        raise UsageError(f"there is no adapter at {path}: {first_line(error)}") from error
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
