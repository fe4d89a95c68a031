"""The one training loop, for soft prompts and adapters: frozen weights, logits only where a target stands.

Rows are padded to their own micro-batch alone, and the loss does not depend on how rows fall into micro-batches:
cross entropy is averaged over the target tokens of an optimizer step, the auxiliary loss over its rows.
"""

from bench.training.config import TrainingConfig
from bench.training.log import Epoch, TrainingLog
from bench.training.loop import train
from bench.training.loss import batch_loss, evaluate_loss, logits_at, target_logits
from bench.training.rows import Row, Trainable, build_rows, latest_targets, planned_tokens, target_ids
from bench.training.selection import dev_meteor

__all__ = [
    "Epoch",
    "Row",
    "Trainable",
    "TrainingConfig",
    "TrainingLog",
    "batch_loss",
    "build_rows",
    "dev_meteor",
    "evaluate_loss",
    "latest_targets",
    "logits_at",
    "planned_tokens",
    "target_ids",
    "target_logits",
    "train",
]
