"""Choosing tokens by two predictions at once: a batch holds each row twice, with the user's adapter and without it."""

from __future__ import annotations

import math

import torch
from transformers import LogitsProcessor

from bench.types import Contrast


def contrasted(own: torch.Tensor, other: torch.Tensor, contrast: Contrast) -> torch.Tensor:
    """Scores (rows, vocabulary) from the logits with the user's adapter and those without it.

    log p - weight * log q where p is at least `plausibility` times the largest p, minus infinity elsewhere (contrastive
    decoding, Li et al. 2023, with the weights of CoPe, Bu et al. 2025).
    """
    p, q = own.float().log_softmax(-1), other.float().log_softmax(-1)
    least = p.amax(-1, keepdim=True) + (math.log(contrast.plausibility) if contrast.plausibility else -math.inf)
    possible = (p >= least) & (p > -math.inf)
    return torch.where(possible, p - contrast.weight * q, -math.inf)


class Contrasting(LogitsProcessor):  # type: ignore[misc]
    """Gives both halves of a batch (with the users' adapters, then without them) the same contrasted scores.

    Equal scores and equal seeds then give both rows of a pair the same token, so that they stay one text.
    """

    def __init__(self, contrast: Contrast) -> None:
        self.contrast = contrast

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        own, other = scores.chunk(2)
        return contrasted(own, other, self.contrast).repeat(2, 1)
