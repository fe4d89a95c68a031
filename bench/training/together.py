"""The same step taken by several processes: each has a share of its rows, and sums over all make it whole again.

Gradients and losses are plain sums over rows, so that the step equals the one of a single process up to the order in
which floats are added. Noise (dropout) is the exception: each process draws its own, so it depends on their number.
The main process keeps states, journal and tracker, and its numbers decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench import distributed
from bench.config import Config
from bench.errors import UsageError
from bench.keys import digest, request_seed
from bench.training.checkpoint import Saved, rows_digest
from bench.training.log import Epoch
from bench.training.rows import Row, Trainable

if TYPE_CHECKING:
    import torch


def own_share(rows: Sequence[Row], lengths: Sequence[int]) -> list[Row]:
    """The rows that this process takes, balanced by `lengths`; all of them alone. The main process always gets some."""
    if distributed.size() == 1:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], rows[i].index))
    share = distributed.shares([lengths[i] for i in order], distributed.size())[distributed.rank()]
    return [rows[order[i]] for i in share]


def start(rows: Sequence[Row], dev_rows: Sequence[Row], trainable: Trainable, config: Config, seed: int) -> None:
    """Makes sure that all processes train on the same, and starts them at the main process's starting point.

    Raises UsageError if they have other rows, config or seed than the main process.
    """
    if distributed.size() == 1:
        return
    told = digest([rows_digest(rows), rows_digest(dev_rows), config.model_dump(mode="json"), seed])
    if distributed.from_main(told) != told:
        raise UsageError("the processes of this command do not train on the same rows; give all the same data and code")
    saved = from_main(Saved(trainable.state(), {}))
    if distributed.rank() and saved is not None:
        trainable.restore(saved.tensors)


def from_main(saved: Saved | None) -> Saved | None:
    """The main process's state in every process: only that one reads a disk."""
    if distributed.size() == 1:
        return saved
    from safetensors.torch import load, save

    about = distributed.from_main(None if saved is None else json.dumps(saved.about))
    if about is None:
        return None
    data = b""
    if saved is not None and distributed.rank() == 0:
        data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in saved.tensors.items()})
    return Saved(load(distributed.bytes_from_main(data)), json.loads(about))


def own_noise(seed: int, step: int) -> None:
    """Gives every process but the main one random numbers of its own, which need no keeping: each step seeds them."""
    if distributed.rank():
        import torch

        torch.manual_seed(request_seed(seed, f"step {step}", f"process {distributed.rank()}"))


def add_up(parameters: Sequence[torch.nn.Parameter], *totals: torch.Tensor) -> None:
    """Puts sums over all processes into the gradients and the `totals` (one number each, all on one device).

    A parameter that no process has a gradient for keeps none, as the optimizer leaves such alone.
    """
    if distributed.size() == 1:
        return
    import torch

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(totals[0].device, torch.float32).reshape(-1)

    given = torch.tensor([parameter.grad is not None for parameter in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [flat(tensor) for tensor in (*gradients, given, *totals)]
    together = torch.cat(parts)
    distributed.add_up(together)
    *found, counts, sums = torch.split(together, [*(p.numel() for p in parameters), len(parameters), len(totals)])
    for parameter, gradient, count in zip(parameters, found, counts.tolist(), strict=True):
        if count:
            parameter.grad = gradient.to(parameter.device).view_as(parameter)
    for total, number in zip(totals, sums, strict=True):
        total.copy_(number)


def agreed(epoch: Epoch) -> Epoch:
    """The main process's numbers of an epoch, by which all choose alike."""
    return epoch if distributed.size() == 1 else Epoch(**distributed.from_main(asdict(epoch)))
