"""A measurement as a table for people, and as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_text(result: Mapping[str, Any]) -> str:
    """Head, one table, floors and what was left out."""
    from tabulate import tabulate

    body = [
        {
            "": row["contender"],
            "requests": row["kind"],
            "examples/s": row["examples_per_second"],
            "over one by one": row["over_one_by_one"],
            "over plain": row["over_plain"],
            "prefill tok/s": row["prefill_tokens_per_second"],
            "of matrix rate": row["prefill_matrix_rate"],
            "decode tok/s": row["decode_tokens_per_second"],
            "of bandwidth": row["decode_bandwidth"],
            "first token s": row["first_token_seconds"],
            "peak GiB": None if row["peak_memory"] is None else row["peak_memory"] / 2**30,
        }
        for row in result["rows"]
    ]
    parts = [_head(result), tabulate(body, headers="keys", floatfmt=".2f", missingval="-")]
    if result["floors"]:
        parts.append("\n".join(map(_floor, result["floors"])))
    if result["left_out"]:
        parts.append("\n".join(f"left out: {name}: {why}" for name, why in result["left_out"].items()))
    return "\n\n".join(parts)


def last_line(result: Mapping[str, Any]) -> str:
    """All of it on one line."""
    return json.dumps(result, sort_keys=True)


def _head(result: Mapping[str, Any]) -> str:
    about = result["about"]
    engines = "; ".join(
        f"{name}: {one['dtype']}{', ' + one['device'] if 'device' in one else ''}, {one['backend']}"
        for name, one in about["engines"].items()
    )
    low, high = about["prompt_tokens"], about["new_tokens"]
    lines = [
        f"{about['model']}; {engines}",
        f"{about['requests']} requests, prompts of {low[0]} to {low[1]} tokens, {high[0]} to {high[1]} new ones, "
        f"{about['batch']} at a time, best of {about['rounds']}",
    ]
    if ceilings := result["ceilings"]:
        lines.append(
            f"measured here: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s in a matrix product, "
            f"{ceilings['bytes_per_second'] / 1e9:,.1f} GB/s in a copy"
        )
    return "\n".join(lines)


def _floor(one: Mapping[str, Any]) -> str:
    names = {
        "over_plain": "times the examples/s of plain unsorted batches",
        "over_one_by_one": "times the examples/s of one by one",
        "decode_bandwidth": "of the measured bandwidth while decoding",
        "prefill_matrix_rate": "of the measured matrix rate while reading prompts",
        "soft_over_ids": "times the examples/s of plain ids",
    }
    met = "met" if one["met"] else "MISSED"
    return f"hf, {one['kind']}: {one['value']:.2f} {names[one['figure']]}; floor {one['floor']:g}: {met}"
