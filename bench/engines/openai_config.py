"""Knobs of the openai engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from bench.config import Config
from bench.keys import canonical_json

_OURS = {
    **dict.fromkeys(("model", "messages"), "the run gives it"),
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "give --max-new-tokens, and openai.max_tokens_field"),
    "n": "each request has one answer",
    "stream": "answers are read whole",
}
"""What `extra` may not hold, and why."""


class OpenAIConfig(Config):
    """Knobs of the openai engine."""

    base_url: str = ""
    """Where the server is, such as http://127.0.0.1:8000/v1 (--base-url); empty: OPENAI_BASE_URL."""
    endpoint: str = ""
    """A name for the server in keys, in place of its URL: for one that moves between hosts and ports."""
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; local servers need none."""
    context_length: int = Field(default=8192, ge=1)
    """Tokens that the model takes, prompt and answer together."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the server calls the longest answer."""
    omit: tuple[Literal["temperature", "top_p", "seed"], ...] = ()
    """What not to send, as some models refuse it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What to send besides, such as {"top_k": 20}."""
    concurrency: int = Field(default=16, ge=1)
    """Most requests in flight; fewer while the server refuses."""
    retries: int = Field(default=5, ge=0)
    """How often a request that failed is sent again; being refused for lack of room (429, 503) does not count."""
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the first retry; each later wait is twice as long, up to a minute, less a random part."""
    max_wait: float = Field(default=300.0, ge=0)
    """Longest Retry-After that is waited for, in seconds; a longer one ends the run."""
    patience: float = Field(default=900.0, gt=0)
    """Seconds without any answer, while the server refuses, after which the run ends."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for a whole request."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to reach the server."""
    read_timeout: float = Field(default=600.0, gt=0)
    """Seconds without a byte, the time that the server writes among them."""
    price_in: float | None = Field(default=None, ge=0)
    """Money for a million prompt tokens."""
    price_out: float | None = Field(default=None, ge=0)
    """Money for a million new tokens, in the same currency."""
    max_cost: float | None = Field(default=None, ge=0)
    """Most money that one command may spend (--max-cost); needs both prices."""
    max_requests: int | None = Field(default=None, ge=0)
    """Most requests that one command may send, retries among them (--max-requests)."""

    @field_validator("extra")
    @classmethod
    def _nothing_of_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in _OURS:
                raise ValueError(f"it may not hold {name}: {_OURS[name]}")
        try:
            canonical_json(extra).encode()
        except (TypeError, ValueError):
            raise ValueError("it holds a value that JSON has not, such as a date, NaN or half a character") from None
        return extra
