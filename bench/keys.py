"""One way to turn values into keys: canonical JSON, then a hash. Also the seed of a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of `value` in canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def text_digest(text: str, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of a text in UTF-8 (lone surrogates kept)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def request_seed(run_seed: int, example_id: str, stage: str) -> int:
    """A seed in [0, 2**63) from run seed, example and stage: neither order nor batch size changes it."""
    raw = hashlib.sha256(canonical_json([run_seed, example_id, stage]).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1


def rank_hash(seed: int, name: str) -> str:
    """A pseudo-random sort key: users are chosen by the smallest, so every method gets the same ones."""
    return digest(["rank", seed, name], 32)


def difference(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths at which two key descriptions differ."""
    paths: list[str] = []
    for key in sorted(set(a) | set(b)):
        left, right, path = a.get(key), b.get(key), f"{prefix}{key}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            paths += difference(left, right, path + ".")
        elif left != right:
            paths.append(path)
    return paths


def utf8(text: str) -> str:
    """The text as UTF-8 can hold it: half of a surrogate pair, which JSON may hold, becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
