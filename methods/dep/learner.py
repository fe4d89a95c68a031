"""DEP's module as something that the shared training loop trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bench.training import Row
from methods.dep.differences import ReviewVectors
from methods.dep.modules import DepModule
from methods.dep.prompting import Prepared

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(vectors: ReviewVectors, device: torch.device) -> Tensors:
    """Own (reviews, d), difference (reviews, d) and has_peers (reviews,)."""
    arrays = (vectors.own, vectors.difference, vectors.has_peers)
    own, difference, has_peers = (torch.from_numpy(a).to(device) for a in arrays)
    return own, difference, has_peers


def soft_tokens(module: DepModule, parts: Sequence[Tensors], slots: Sequence[int]) -> torch.Tensor:
    """Soft vectors of several prompts in prompt order: (soft positions, hidden)."""
    shown = [tuple(column[:n] for column in part) for part, n in zip(parts, slots, strict=True)]
    own, difference, has_peers = (torch.cat(column) for column in zip(*shown, strict=True))
    tokens: torch.Tensor = module(own, difference, has_peers)
    return tokens.flatten(0, 2)


class SoftPrompts:
    """Looks up a row's vectors by its index and gives its soft tokens."""

    constant_prefix = True
    """Nothing before a row's first slot depends on what is learned."""

    def __init__(self, module: DepModule, device: torch.device, inputs: Sequence[Prepared], weight: float) -> None:
        """`weight` is that of the autoencoder's loss beside the cross entropy."""
        self.module, self.weight = module, weight
        self.inputs = [tensors(prepared.vectors, device) for prepared in inputs]
        self.slots = [prepared.slots for prepared in inputs]

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.module.parameters())

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        parts = [self.inputs[row.index] for row in rows]
        self.module.train(training)
        tokens = soft_tokens(self.module, parts, [self.slots[row.index] for row in rows])
        own, difference, has_peers = (torch.cat(column) for column in zip(*parts, strict=True))
        owner = torch.repeat_interleave(torch.tensor([len(p[0]) for p in parts], device=own.device))
        losses = self.module.row_losses(own, difference, has_peers, owner, len(parts))
        return tokens, self.weight * losses.sum()

    def state(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)
