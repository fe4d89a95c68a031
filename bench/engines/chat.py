"""Messages to token ids through the tokenizer's own chat template, with places for soft vectors."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import UsageError
from bench.types import SLOT_CLOSE, SLOT_OPEN, Message

_SLOT = re.compile(f"{SLOT_OPEN}([^{SLOT_CLOSE}]+){SLOT_CLOSE}")
_SENTINEL = "\ue002"


@dataclass(frozen=True)
class Prompt:
    """Token ids of a rendered prompt; at slots stand placeholder ids, to be replaced by vectors."""

    ids: tuple[int, ...]
    slots: tuple[tuple[str, int], ...]
    """(name, first position) of each soft slot, in prompt order."""
    positions: tuple[int, ...] = ()
    """Every position that a vector fills, in prompt order."""


def check_template(tokenizer: Any, model: str) -> None:
    """Raises UsageError if the tokenizer cannot render a chat."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"model {model!r} has no chat template, so there is no way to know how to ask it: choose an "
            "instruction-tuned model, or put its chat_template.jinja into the model's folder"
        )


def disarm(text: str, tokenizer: Any) -> str:
    """Keeps a text from being read as control tokens: "<s>" in a review is two brackets, not a start of sequence.

    A space after its first character takes a token's meaning away.
    """
    pattern = _special_tokens(tokenizer)
    for _ in range(3):  # a token may stand within another one
        text, found = pattern.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        if not found:
            break
    return text


@functools.lru_cache(maxsize=4)
def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches each control token. Remembered, as some vocabularies hold thousands of them."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted((t for t in added | set(tokenizer.all_special_tokens) if len(t) > 1), key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _template(tokenizer: Any, turns: list[dict[str, str]], generate: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
    except (TemplateError, TypeError) as error:
        if not turns or turns[0]["role"] != "system" or len(turns) < 2:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"the model's chat template cannot render {len(turns)} turns: {reason}; correct chat_template.jinja "
                "in the model's folder, or choose another model"
            ) from error
        # Some templates know no system role: its text then opens the first turn.
        first = {"role": turns[1]["role"], "content": turns[0]["content"] + "\n\n" + turns[1]["content"]}
        return _template(tokenizer, [first, *turns[2:]], generate)


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The prompt as one text, up to where the model's answer starts, slot placeholders still in it."""
    turns = [{"role": m.role, "content": disarm(m.content, tokenizer)} for m in messages]
    return _template(tokenizer, turns, generate=True)


def encode(tokenizer: Any, messages: Sequence[Message], soft_lengths: Mapping[str, int]) -> Prompt:
    """Token ids of the rendered messages.

    `soft_lengths` gives the number of positions of each slot. Text between slots is tokenised piece by piece, so
    the tokens around a slot are the same whatever its length. Raises UsageError for a slot without vectors.
    """
    ids: list[int] = []
    slots: list[tuple[str, int]] = []
    positions: list[int] = []
    filler = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    pieces = _SLOT.split(render(tokenizer, messages))
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            if piece:
                ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
            continue
        if piece not in soft_lengths:
            raise UsageError(f"the prompt names soft slot {piece!r}, but no vectors came with the request")
        slots.append((piece, len(ids)))
        positions += range(len(ids), len(ids) + soft_lengths[piece])
        ids += [filler] * soft_lengths[piece]
    return Prompt(tuple(ids), tuple(slots), tuple(positions))


def count(tokenizer: Any, messages: Sequence[Message]) -> int:
    """Tokens of the rendered messages, one for each slot."""
    pieces = _SLOT.split(render(tokenizer, messages))
    texts = [piece for piece in pieces[::2] if piece]
    return len(pieces) // 2 + sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def end_of_turn(tokenizer: Any) -> int:
    """The id that closes an assistant's turn: the first control token after the answer, else the end of sequence.

    White space or words that a template writes there end nothing: an answer may hold them. Raises UsageError for a
    tokenizer that knows neither.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
    after = _template(tokenizer, turns, generate=False).partition(_SENTINEL)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after.strip() else []
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control |= set(tokenizer.all_special_ids)
    end = next((i for i in ids if i in control), tokenizer.eos_token_id)
    if end is None:
        raise UsageError("the model's tokenizer names no token that ends a text: set eos_token in its folder")
    return int(end)
