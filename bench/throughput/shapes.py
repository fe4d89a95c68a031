"""Models of well-known shapes with random weights: as fast as the real ones, and they write nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import weights
from bench.engines.hf import HFConfig, HFEngine
from bench.errors import UnknownName
from bench.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from bench.weights import Source

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-1.5b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    "llama-3.1-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
"""Name -> family and sizes, as the models' public config.json files give them."""

_CONTEXT = 32768


class RandomEngine(HFEngine):
    """The transformers engine over weights drawn at random: for speed alone."""

    def __init__(self, shape: str, config: HFConfig | None = None) -> None:
        """Raises UnknownName for a shape that is not listed."""
        if shape not in SHAPES:
            raise UnknownName("shape for --random-weights", shape, list(SHAPES))
        source: Source = weights.resolve("smollm2-135m", "llm")  # names nothing that is read here
        super().__init__(source, config)
        self.shape = shape

    def prepare(self) -> None:
        """Nothing is fetched."""

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "model": f"random weights of the shape of {self.shape}", "revision": "none"}

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = tiny_tokenizer()
        return self._tokenizer

    def _text_config(self) -> Any:
        from transformers import AutoConfig

        family, sizes = SHAPES[self.shape]
        ends = {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
        return AutoConfig.for_model(family, **sizes, **ends, max_position_embeddings=_CONTEXT)

    def _read_weights(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(self._text_config(), dtype=getattr(torch, self.dtype))
