"""A quantised GGUF file with a byte-level BPE tokenizer, turned into safetensors and a tokenizer of its own.

The tokenizer is built here rather than by the automatic conversion of transformers, which loses the splitting of
numbers into digits, pads on the right and knows no maximum length.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL = 3
"""GGUF token type of special tokens."""
_USER_DEFINED = 4
_DIGIT_SPLITTING = frozenset({"smollm"})
"""Values of tokenizer.ggml.pre that mean: each digit by itself, then byte-level words."""


def convert(gguf: Path, folder: Path, progress: bool = True) -> None:
    """Writes bf16 safetensors, config, generation config, tokenizer and chat template into an existing folder.

    Raises UsageError for a tokenizer that is not byte-level BPE with single digits: guessing would give wrong ids.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    tokenizer = build_tokenizer(read_fields(gguf))
    with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            # Without dequantize=True the model counts as quantised for good, and save_pretrained refuses.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def read_fields(gguf: Path) -> dict[str, Any]:
    """The metadata of a GGUF file: key -> value."""
    from gguf import GGUFReader

    return {key: found.contents() for key, found in GGUFReader(str(gguf)).fields.items()}


def build_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file's metadata describes: left padding, the model's context as maximum length."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _DIGIT_SPLITTING:
        raise UsageError(f"cannot convert a GGUF tokenizer of kind {kind!r} with pre-tokenizer {pre!r}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    types: list[int] = fields["tokenizer.ggml.token_type"]

    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t, kind in added if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in added if kind == _USER_DEFINED])

    special = {
        f"{role}_token": tokens[fields[key]]
        for role, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if key in fields
    }
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=int(fields[f"{fields['general.architecture']}.context_length"]),
        clean_up_tokenization_spaces=False,
        **special,
    )
    wrapped.chat_template = fields.get("tokenizer.chat_template")
    return wrapped
