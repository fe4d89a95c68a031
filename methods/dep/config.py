"""Every knob of DEP, typed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from bench.training import TrainingConfig

Mode = Literal["aligned", "paper"]
Weighting = Literal["uniform", "softmax", "linear", "inverse", "share"]
PeerSource = Literal["item", "content", "random"]
Autoencoder = Literal["topk", "l1", "paper", "none"]

PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "weighting": "share",
        "peer_cutoff": False,
        "autoencoder": "paper",
        "layout": "message",
        "markers": "trained",
        "calibrate": False,
        "lr": 1e-5,
        "warmup": 0.01,
        "select": "meteor",
        "max_dev": 512,
        "max_target_tokens": 2048,
    }
)
"""What `mode = paper` puts in place of the defaults; any of it can still be set by hand."""


class DepConfig(TrainingConfig):
    """Knobs of DEP. `mode` chooses two rules and a set of defaults; docs/dep.md compares the two."""

    mode: Mode = "aligned"
    """aligned: text and soft tokens speak of the same reviews, targets stay out of means, peers' reviews are earlier.
    paper: the public code's rules for which reviews have vectors, who is a peer and what a mean runs over, and its
    weighting, autoencoder, prompt layout and learning rate as defaults."""
    n_history: int = Field(default=8, ge=0)
    """Past reviews in the prompt, each with its text, a history vector and a difference vector."""
    selection: Literal["recent", "retrieved"] = "recent"
    """Which past reviews: the most recent, or those that `retriever` ranks highest for the target."""
    retriever: Literal["bm25", "dense"] = "bm25"
    """What `selection = retrieved` ranks by; both as in rag."""
    tokens: Literal["both", "history", "difference"] = "both"
    """Which soft tokens a review gets."""
    weighting: Weighting = "softmax"
    """How peers weigh in, by the distance n between mean vectors: uniform, softmax(n / tau), linear, inverse, or
    share, which is softmax(n / sum of n) as in the public code and nearly uniform."""
    tau: float = Field(default=0.1, gt=0)
    """Temperature of the softmax weighting; the larger, the more uniform."""
    peer_source: PeerSource = "item"
    """Whose reviews a review differs from: others of the same item; those of other users nearest in content; or, as a
    control, as many random ones as it has peers."""
    nearest_peers: int = Field(default=8, ge=1)
    """Peers of a review with `peer_source = content`."""
    peer_cutoff: bool = True
    """Peers' reviews count only if written before the target."""
    max_peers: int | None = Field(default=None, ge=1)
    """Most peers of a review, the latest first; none means all."""
    shuffle: Literal["none", "vectors", "history"] = "none"
    """Controls. vectors: soft tokens come from another user's reviews, in training as in generation, while the text
    stays the user's own. history: trained as usual, but generating with another user's whole history."""
    autoencoder: Autoencoder = "topk"
    """topk: the k largest latents stay; l1: ReLU latents under an L1 penalty; paper: GELU on both sides, under a
    clamped KL penalty; none: vectors go straight into the projectors."""
    latent_size: int = Field(default=512, ge=1)
    """Latents of the autoencoder."""
    k: int = Field(default=32, ge=1)
    """Latents that stay with topk."""
    projector: Literal["mlp", "linear"] = "mlp"
    """From a code to a soft token: Linear, GELU, Linear; or one Linear."""
    calibrate: bool = True
    """Start soft tokens at the size of the model's own embeddings and apart from each other: vectors centred, codes and
    tokens scaled. Otherwise as initialised, where they are far smaller and much alike."""
    layout: Literal["turns", "message"] = "turns"
    """turns: past reviews are turns of a chat; message: everything stands in one message, the item first, as in the
    public code."""
    markers: Literal["text", "trained"] = "text"
    """What stands around a soft token: words of the prompt, or a pair of trained vectors for each kind."""
    reconstruction_weight: float = Field(default=100.0, ge=0)
    """Weight of the autoencoder's loss beside the cross entropy."""
    sparsity_weight: float = Field(default=1e-3, ge=0)
    """Weight of the L1 or KL penalty beside the smooth-L1 reconstruction, within the autoencoder's loss."""
    rho: float = Field(default=0.05, gt=0, lt=1)
    """Mean activation that the KL penalty pulls to."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate; the published 1e-5 is for a 7B model and 1,250 steps."""
    weight_decay: float = Field(default=0.025, ge=0)
    """Decay of AdamW, on everything that is trained."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training rows."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("mode") == "paper":
            return {**PAPER, **given}
        return given

    @model_validator(mode="after")
    def _paper_rules(self) -> DepConfig:
        """What the paper's rules leave no choice about."""
        if self.mode != "paper":
            return self
        fixed = {"selection": "recent", "peer_source": "item", "peer_cutoff": False, "max_peers": None}
        for knob, value in fixed.items():
            if getattr(self, knob) != value:
                raise ValueError(f"{knob}: mode=paper has rules of its own; leave {knob} out or use mode=aligned")
        return self

    def changed(self) -> dict[str, Any]:
        """The knobs that are not as the mode has them, the mode itself among them."""
        usual = DepConfig(mode=self.mode).model_dump()
        own = {knob: value for knob, value in self.model_dump().items() if value != usual[knob]}
        return own if self.mode == "aligned" else {"mode": self.mode, **own}
