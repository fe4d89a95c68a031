"""From what was measured to rates, shares of the machine's ceilings, ratios, and the floors they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.throughput import requests as work
from bench.throughput.costs import Sizes

if TYPE_CHECKING:
    from bench.throughput.ceilings import Ceilings
    from bench.throughput.run import Asked, Row

FLOORS = {
    "cpu": {"over_plain": 1.5, "over_one_by_one": 4.0},
    "cuda": {"over_plain": 3.0, "decode_bandwidth": 0.4, "prefill_matrix_rate": 0.5, "soft_over_ids": 0.95},
}
"""What the transformers engine is held to, by kind of device: ratios, and shares of what was measured on the spot."""


def result(
    asked: Asked,
    rows: Sequence[Row],
    ceilings: Ceilings | None,
    sizes: Sizes | None,
    identities: Mapping[str, Mapping[str, str]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """One JSON object: about, ceilings, rows, floors, left_out."""
    told = [_figures(asked, row, ceilings, sizes) for row in rows]
    _relate(told)
    device = next((one["device"] for one in identities.values() if "device" in one), "none")
    return {
        "about": {
            "model": asked.model
            if asked.random_weights is None
            else f"random weights, shape of {asked.random_weights}",
            "requests": asked.requests,
            "batch": asked.batch,
            "rounds": asked.rounds,
            "prompt_tokens": list(asked.prompt_tokens),
            "new_tokens": list(asked.new_tokens),
            "engines": {name: dict(one) for name, one in identities.items()},
        },
        "ceilings": {"flops_per_second": ceilings.flops, "bytes_per_second": ceilings.bytes} if ceilings else None,
        "rows": told,
        "floors": _floors(told, device),
        "left_out": dict(left_out),
    }


def _figures(asked: Asked, row: Row, ceilings: Ceilings | None, sizes: Sizes | None) -> dict[str, Any]:
    prompts = work.lengths(*asked.prompt_tokens, asked.requests, seed=1)
    outputs = work.lengths(*asked.new_tokens, asked.requests, seed=2)
    prefill, decode = row.prefill_seconds, row.decode_seconds
    told: dict[str, Any] = {
        "contender": row.contender,
        "kind": row.kind,
        "seconds": row.seconds,
        "examples_per_second": asked.requests / row.seconds,
        "prompt_tokens": row.prompt_tokens,
        "output_tokens": row.output_tokens,
        "prefill_tokens_per_second": row.prompt_tokens / prefill if prefill else None,
        # The first new token of a request comes out of the prefill.
        "decode_tokens_per_second": (row.output_tokens - asked.requests) / decode if decode else None,
        "first_token_seconds": row.first_token_seconds,
        "peak_memory": row.peak_memory,
        "prefill_matrix_rate": None,
        "decode_bandwidth": None,
    }
    if ceilings and sizes:
        batch = (
            1 if row.contender == "one-by-one" or (row.contender, row.kind) == ("plain", "adapters") else asked.batch
        )
        if prefill:
            told["prefill_matrix_rate"] = sizes.prefill_flops(prompts) / prefill / ceilings.flops
        if decode:
            told["decode_bandwidth"] = sizes.decode_bytes(prompts, outputs, batch) / decode / ceilings.bytes
    return told


def _relate(rows: Sequence[dict[str, Any]]) -> None:
    """Adds each row's speed over those of the plain ways, and of its soft prompts over plain ids."""
    speed = {(row["contender"], row["kind"]): row["examples_per_second"] for row in rows}
    for row in rows:
        name, kind = row["contender"], row["kind"]
        for key, over in (("over_one_by_one", ("one-by-one", kind)), ("over_plain", ("plain", kind))):
            row[key] = speed[name, kind] / speed[over] if over in speed else None
        row["soft_over_ids"] = (
            speed[name, kind] / speed[name, "ids"] if kind == "soft" and (name, "ids") in speed else None
        )


def _floors(rows: Sequence[Mapping[str, Any]], device: str) -> list[dict[str, Any]]:
    held = [row for row in rows if row["contender"] == "hf"]
    return [
        {"kind": row["kind"], "figure": name, "value": row[name], "floor": floor, "met": row[name] >= floor}
        for row in held
        for name, floor in FLOORS.get(device, {}).items()
        # Plain generate has adapters on one at a time, so that its batches are one by one.
        if row[name] is not None and (row["kind"], name) != ("adapters", "over_plain")
    ]
