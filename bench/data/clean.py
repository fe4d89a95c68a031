"""Text and ids as the harness wants them: clean, and safe as parts of a longer id."""

from __future__ import annotations

import re

from bench.types import SLOT_CLOSE, SLOT_OPEN

_FORBIDDEN = re.compile(f"[\x00\ud800-\udfff{SLOT_OPEN}{SLOT_CLOSE}]")
"""NUL, lone surrogates (no encoder takes them) and the characters around a slot's name (no text may forge a slot)."""


def clean(text: str) -> str:
    """`text` without forbidden characters, each run of white space one space, none at the ends."""
    return " ".join(_FORBIDDEN.sub("", text).split())


def is_clean_id(text: str) -> bool:
    """Whether an id is not blank and holds no forbidden character."""
    return not (text == "" or text.isspace() or _FORBIDDEN.search(text))


def review_id(user_id: str, item_id: str) -> str:
    """`user/item`, unique for each pair: a slash within an id is written %2F, a percent sign %25."""
    return f"{_escape(user_id)}/{_escape(item_id)}"


def _escape(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")
