"""How fast an engine reads and writes: batch sizes swept side by side on synthetic prompts of one length."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench import registry, weights
from bench.config import build, parse_overrides
from bench.engines.base import Engine
from bench.errors import UnknownName, UsageError
from bench.keys import request_seed
from bench.meter import Meter, peak_rss
from bench.types import Message, Request, Sampling

_WORDS = (
    "the",
    "sound",
    "of",
    "this",
    "thing",
    "is",
    "clear",
    "and",
    "its",
    "price",
    "fair",
    "for",
    "what",
    "it",
    "does",
)


def synthetic_prompt(engine: Engine, number: int, tokens: int) -> Message:
    """A prompt of as near to `tokens` tokens as whole words allow, template included; prompts differ by `number`.

    Raises UsageError if the template alone is longer.
    """

    def prompt(count: int) -> Message:
        return Message("user", " ".join(_WORDS[(number + i) % len(_WORDS)] for i in range(count)))

    low, high = 0, tokens
    if engine.count_tokens([prompt(0)]) > tokens:
        raise UsageError(f"--prompt-tokens {tokens} is less than the empty prompt takes; raise it")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if engine.count_tokens([prompt(middle)]) <= tokens else (low, middle - 1)
    return prompt(low)


def measure(
    engine_name: str,
    model: str,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    requests: int,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row a batch size: examples/s, prefill and decode tokens/s (real tokens), peak memory in bytes.

    Every size does the same requests; a round that is not counted comes first. Raises UsageError for bad input.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError("--batch-sizes takes whole numbers from 1 up, such as 1,4,8")
    if min(prompt_tokens, new_tokens, requests) < 1:
        raise UsageError("--prompt-tokens, --new-tokens and --requests take whole numbers from 1 up")
    if requests < max(batch_sizes):
        raise UsageError(
            f"--requests {requests} cannot fill a batch of {max(batch_sizes)}; raise it or leave out larger sizes"
        )
    parts = parse_overrides(overrides)
    if unknown := [part for part in parts if part != engine_name]:
        raise UnknownName("part of this measurement in --set", unknown[0], [engine_name])
    kind = registry.load("engine", engine_name)
    engine: Engine = kind(weights.resolve(model, "llm"), build(kind.Config, parts.get(engine_name, {}), engine_name))
    engine.prepare()
    if prompt_tokens + new_tokens > engine.context_length:
        raise UsageError(
            f"{prompt_tokens} + {new_tokens} tokens exceed the model's context of {engine.context_length}; "
            "lower --prompt-tokens or --new-tokens"
        )
    meter = Meter()
    with meter.phase("load"):
        engine.load()
    sampling = Sampling(0.8, 0.95, new_tokens, new_tokens)
    made = [
        Request(
            str(i), "generate", (synthetic_prompt(engine, i, prompt_tokens),), sampling, request_seed(0, str(i), "")
        )
        for i in range(requests)
    ]
    engine.run(made[: max(batch_sizes)])
    rows = [_row(engine, made, size) for size in batch_sizes]
    about = {"engine": engine_name, "model": model, **{k: engine.identity()[k] for k in ("dtype", "backend")}}
    return [{**about, **row, "load_seconds": meter.seconds["load"]} for row in rows]


def _row(engine: Engine, requests: Sequence[Request], size: int) -> dict[str, Any]:
    meter = Meter()
    meter.start_peak()
    engine.peak_memory()
    prefill = decode = 0.0
    read = written = splits = 0
    start = time.perf_counter()
    for first in range(0, len(requests), size):
        result = engine.run(requests[first : first + size])
        if failed := [g.error for g in result.generations if g.error]:
            raise UsageError(f"batch size {size}: {failed[0]}; leave larger sizes out of --batch-sizes")
        prefill, decode = prefill + result.prefill_seconds, decode + result.decode_seconds
        splits += result.splits
        read += sum(g.prompt_tokens for g in result.generations)
        written += sum(g.output_tokens for g in result.generations)
    wall = time.perf_counter() - start
    return {
        "batch_size": size,
        "requests": len(requests),
        "prompt_tokens": read,
        "output_tokens": written,
        "seconds": wall,
        "examples_per_second": len(requests) / wall if wall else None,
        "prefill_tokens_per_second": read / prefill if prefill else None,
        # The first new token comes out of the prefill.
        "decode_tokens_per_second": (written - len(requests)) / decode if decode else None,
        "peak_memory": engine.peak_memory() or peak_rss(),
        "splits": splits,
    }


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table, with the speed of each relative to the first."""
    from tabulate import tabulate

    first = rows[0]
    head = (
        f"{first['engine']}, {first['model']}, {first['dtype']}, {first['backend']}; "
        f"{first['prompt_tokens'] // first['requests']} + {first['output_tokens'] // first['requests']} tokens, "
        f"{first['requests']} requests, loaded in {first['load_seconds']:.1f} s"
    )
    base = first["examples_per_second"]
    body = [
        {
            "batch": row["batch_size"],
            "examples/s": row["examples_per_second"],
            "ratio": row["examples_per_second"] / base if base else None,
            "prefill tok/s": row["prefill_tokens_per_second"],
            "decode tok/s": row["decode_tokens_per_second"],
            "peak GiB": row["peak_memory"] / 2**30,
            **({"out of memory, halved": row["splits"]} if any(r["splits"] for r in rows) else {}),
        }
        for row in rows
    ]
    return f"{head}\n\n{tabulate(body, headers='keys', floatfmt='.2f', missingval='-')}"
