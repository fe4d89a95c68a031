"""The state of training on disk, so that a process that is killed costs no more than its last minute.

One safetensors file holds everything, tensors and (in its header, as JSON) counters, and takes its name when it is
whole: there is never half a state. A state belongs to one task: data, config, seed and starting point.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import Config
from bench.engines.base import LanguageModel
from bench.files import sync_folder
from bench.keys import digest
from bench.training.rows import Row, Trainable

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Saved:
    """A state of training: named tensors on the CPU, and plain values beside them."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]


class Checkpoint:
    """The last state of one task in a folder."""

    def __init__(self, folder: Path, task: str) -> None:
        """`task` is a digest of all that the state depends on: a state of another task counts as none."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / CHECKPOINT
        self.task = task

    def load(self) -> Saved | None:
        """The state, or None if there is none, it cannot be read or it belongs to another task."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("task") != self.task:
                    return None
                return Saved({name: file.get_tensor(name) for name in file.keys()}, json.loads(header["about"]))  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def save(self, saved: Saved) -> None:
        """Puts a state in the place of the one before."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in saved.tensors.items()}
        data = save(tensors, {"task": self.task, "about": json.dumps(saved.about, sort_keys=True)})
        temporary = self.path.with_suffix(".part")  # always the same: what a kill leaves is overwritten
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        sync_folder(self.path.parent)


def task_digest(
    lm: LanguageModel,
    rows: Sequence[Row],
    dev_rows: Sequence[Row],
    trainable: Trainable,
    config: Config,
    seed: int,
) -> str:
    """A digest of all that training depends on; the language model's weights are known by the folder's owner."""
    import torch

    start = trainable.state()
    return digest(
        {
            "rows": [rows_digest(rows), rows_digest(dev_rows)],
            "config": config.model_dump(mode="json"),
            "seed": seed,
            "parameters": [[list(p.shape), str(p.dtype)] for p in trainable.parameters()],
            "start": [[name, _tensor_digest(tensor)] for name, tensor in sorted(start.items())],
            "device": lm.device.type,
            "torch": torch.__version__,
        }
    )


def rows_digest(rows: Iterable[Row]) -> str:
    """A digest of everything in rows."""
    hashed = hashlib.sha256()
    for row in rows:
        for part in ((row.index,), row.prompt.ids, row.prompt.positions, row.target):
            hashed.update(array("q", (len(part), *part)).tobytes())
    return hashed.hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> str:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators that training may draw from."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def restore_random_state(states: Mapping[str, torch.Tensor]) -> None:
    """Puts torch's generators back."""
    import torch

    torch.set_rng_state(states["cpu"])
    for kind in states.keys() - {"cpu"}:
        getattr(torch, kind).set_rng_state(states[kind])
