"""Every knob of pplug, typed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.training import TrainingConfig


class PPlugConfig(TrainingConfig):
    """Knobs of pplug. Defaults are those of the paper and its public code."""

    n_history: int = Field(default=0, ge=0)
    """Most recent past documents that stand in the prompt as text as well; in the paper none does."""
    history_text: Literal["fields", "text"] = "fields"
    """What is embedded of a past document. fields: its text and its fields, as the public code joins both sides of a
    past pair where the task is to write; text: its text alone."""
    input_encoder: Literal["trained", "linear"] = "trained"
    """Where the query comes from. trained: a copy of the encoder, all of it trained in float32, as in the paper; it is
    saved with the fit (four bytes a parameter: 90 MB for minilm) and takes four times that on disk while training.
    linear: the frozen encoder's vector times a trained square matrix, which is cheap; an encoder without weights, a
    stand-in, always gets that."""
    input_prefix: str = ""
    """Put before the input for the input encoder: the instruction that some encoders want before a query."""
    temperature: float = Field(default=1.0, gt=0)
    """Inner products are divided by it before the softmax. All vectors have length one, so that at 1, as in the paper,
    the largest weight is at most e^2 times the smallest."""
    copies: int = Field(default=10, ge=0)
    """Copies of a training row, each with another part of its history left out."""
    drop: float = Field(default=0.5, ge=0, lt=1)
    """Most that a copy leaves out, as a share of the history; at least one document stays."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; linear warm-up, then linear decay to zero."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of AdamW, on everything that is trained."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps spent warming up."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the training rows, copies included."""
