"""Every knob of DEP, typed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.training import TrainingConfig

Weighting = Literal["uniform", "softmax", "linear", "inverse"]


class DepConfig(TrainingConfig):
    """Knobs of DEP in its aligned mode: what the paper describes, without the slips of its public code."""

    mode: Literal["aligned"] = "aligned"
    """aligned: text and soft tokens speak of the same reviews, targets stay out of means, peers are earlier."""
    n_history: int = Field(default=8, ge=0)
    """Most recent past reviews, each with its text, a history vector and a difference vector."""
    weighting: Weighting = "softmax"
    """How peers weigh in, by the distance n between mean vectors: uniform, softmax(n / tau), linear, inverse."""
    tau: float = Field(default=0.1, gt=0)
    """Temperature of the softmax weighting; the larger, the more uniform."""
    peer_cutoff: bool = True
    """Peers' reviews count only if written before the target."""
    max_peers: int | None = Field(default=None, ge=1)
    """Most peers of a review, the latest first; none means all."""
    autoencoder: Literal["topk", "l1"] = "topk"
    """topk: the k largest latents stay; l1: ReLU latents under an L1 penalty."""
    latent_size: int = Field(default=512, ge=1)
    """Latents of the autoencoder."""
    k: int = Field(default=32, ge=1)
    """Latents that stay with topk."""
    reconstruction_weight: float = Field(default=100.0, ge=0)
    """Weight of the smooth-L1 reconstruction loss beside the cross entropy."""
    l1_weight: float = Field(default=1e-3, ge=0)
    """Weight of the L1 penalty within the reconstruction loss."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate; the published 1e-5 is for a 7B model and 1,250 steps."""
    weight_decay: float = Field(default=0.025, ge=0)
    """Decay of AdamW, on everything that is trained."""
    warmup: float = Field(default=0.01, ge=0, le=1)
    """Share of the steps spent warming up."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training rows."""
