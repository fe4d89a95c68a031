"""What the openai engine sends for a list of requests, and what that can cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.engines.openai_config import OpenAIConfig
from bench.engines.openai_wire import Usage
from bench.keys import digest, utf8
from bench.types import Request

_FRAME_TOKENS = 256
"""What a server's chat template may add to a prompt at most."""


@dataclass(frozen=True)
class Job:
    """One thing to ask, for all requests that ask the same."""

    key: str
    body: Mapping[str, Any]
    extra: Mapping[str, Any]
    worst: float
    """What it can cost at most."""
    request: Request
    places: tuple[int, ...]
    """Where in the list of requests its answer goes."""


def jobs_of(requests: Sequence[Request], model: str, endpoint: str, config: OpenAIConfig) -> list[Job]:
    """What is to be asked for these requests, each thing once, in their order."""
    same: dict[str, list[int]] = {}
    bodies: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for place, request in enumerate(requests):
        body, extra = _body(request, model, config)
        unsent = [request.seed] if "seed" in config.omit else []  # else all seeds had one answer
        key = digest([endpoint, body, extra, *unsent], 32)
        same.setdefault(key, []).append(place)
        bodies[key] = body, extra
    return [
        Job(key, *bodies[key], _worst(bodies[key][0], config), requests[places[0]], tuple(places))
        for key, places in same.items()
    ]


def _body(request: Request, model: str, config: OpenAIConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is sent: the protocol's own parameters, and those that servers added."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [asdict(message) for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed % 2**31,  # some servers read 32 bits with a sign
        config.max_tokens_field: sampling.max_new_tokens,
    }
    for message in body["messages"]:  # half of a surrogate pair is no UTF-8
        message["content"] = utf8(message["content"])
    body = {name: value for name, value in body.items() if name not in config.omit}
    least = {"min_tokens": sampling.min_new_tokens} if sampling.min_new_tokens else {}
    return body, {**least, **config.extra}


def _worst(body: Mapping[str, Any], config: OpenAIConfig) -> float:
    """What a request can cost at most: a token is at least a byte, and no answer is longer than asked for."""
    prompt = sum(len(message["content"].encode()) + 16 for message in body["messages"]) + _FRAME_TOKENS
    return cost(Usage(prompt, body[config.max_tokens_field]), config)


def cost(usage: Usage, config: OpenAIConfig) -> float:
    """Money, as far as prices are given."""
    prices = config.price_in or 0.0, config.price_out or 0.0
    return (usage.prompt_tokens * prices[0] + usage.output_tokens * prices[1]) / 1e6


def estimate(text: str) -> int:
    """About how many tokens a text is, rather too many: no tokenizer is at hand. Words of six letters are two, every
    digit, sign and letter outside ASCII is one."""
    words = re.findall(r"[A-Za-z_]+|\S", text)
    return sum(1 + len(word) // 6 for word in words)
