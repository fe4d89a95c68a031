"""Every knob of training that methods share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.config import Config


class TrainingConfig(Config):
    """How to train. Methods put their own defaults in place of these."""

    epochs: int = Field(default=3, ge=1)
    """Passes over the training rows."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; linear warm-up, then linear decay to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay of AdamW, on everything that is trained."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps spent warming up."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of an optimizer step."""
    batch_tokens: int = Field(default=0, ge=0)
    """Most padded tokens that go through the model at once; the gradients of larger steps are accumulated. 0 chooses
    2,048 on a CPU, where larger batches take memory and save no time, and 16,384 on an accelerator."""
    targets_per_user: int = Field(default=1, ge=1)
    """Training targets taken from each user, the latest first: they have the longest histories."""
    max_dev: int = Field(default=64, ge=0)
    """Most validation rows that choose the epoch."""
    max_target_tokens: int = Field(default=512, ge=2)
    """Target texts are cut here."""
    select: Literal["loss", "meteor"] = "loss"
    """What chooses the epoch: the lowest loss on the validation rows, or the highest mean METEOR of what is written
    for them greedily, which takes as long as generating them once an epoch."""
    max_dev_new_tokens: int = Field(default=256, ge=1)
    """Longest text written for a validation row with select=meteor."""
    patience: int = Field(default=0, ge=0)
    """Stops after this many epochs without a better one; 0 never stops early."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    prefix_memory_mb: int = Field(default=1024, ge=0)
    """Most memory for what is computed once: keys and values of the text before a row's first soft slot. Beyond it
    they are computed again each time; 0 turns this off. Means nothing to methods that change the model itself."""
    gradient_checkpointing: bool = False
    """Keeps only the inputs of each layer and computes it again for its gradients: far less memory, half as much work
    again."""
    compile: bool = False
    """Compiles norms and feed-forward parts with torch.compile for rows of any length. Takes a minute at the start and
    a C++ compiler (on a CPU); a step was about a tenth faster on a CPU. A resumed run need not be bit for bit."""
    checkpoint_seconds: float = Field(default=60.0, ge=0, exclude=True)
    """About how often the state of training is kept, so that a killed run goes on from there; 0 keeps every step.
    Changes no result, so it is in no key."""
