"""What work costs at least, in operations and bytes, by a model's sizes (Kaplan et al. 2020; Pope et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Numbers of a decoder that its costs follow from."""

    weights: int
    """Elements of all matrices between embedding and head."""
    head: int
    """Elements of the head that gives logits."""
    layers: int
    width: int
    """Query heads times head size."""
    shared_width: int
    """Key heads times head size."""
    element: int
    """Bytes of an element."""

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Read off a transformers model."""
        import torch

        config = model.config.get_text_config()
        head = model.get_output_embeddings().weight
        matrices = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
        matrices.pop(id(head), None)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            sum(matrices.values()),
            head.numel(),
            config.num_hidden_layers,
            config.num_attention_heads * size,
            shared * size,
            head.element_size(),
        )

    def prefill_flops(self, prompts: Sequence[int]) -> float:
        """Operations to read prompts of these lengths, with logits at their last tokens only."""
        return sum(2 * self.weights * n + 2 * self.head + 2 * n * (n + 1) * self.width * self.layers for n in prompts)

    def decode_bytes(self, prompts: Sequence[int], outputs: Sequence[int], batch: int) -> float:
        """Bytes to be read for the tokens behind the first one: weights once for `batch` tokens, a row's keys and
        values for each of its own. Rows that stand empty or padded add nothing."""
        steps = sum(n - 1 for n in outputs) / batch
        seen = sum(sum(range(p + 1, p + n)) for p, n in zip(prompts, outputs, strict=True))
        return self.element * (steps * (self.weights + self.head) + 2 * seen * self.shared_width * self.layers)
