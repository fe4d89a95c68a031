"""What `data show` prints: a dataset's numbers with small histograms, and the verdict of the audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from bench.data.audit import MEANINGS, Audit, Finding
from bench.data.overview import Distribution, Overview

_BAR = 40
"""Characters of the longest bar."""
_SHOWN = 3
"""Findings of each kind in a short verdict."""


def as_object(shown: Overview, found: Audit | None) -> dict[str, Any]:
    """Both for JSON, with every finding."""
    whole = shown.as_object()
    if found is not None:
        whole["audit"] = {
            "leaks": len(found.findings),
            "counts": {kind.value: count for kind, count in found.counts().items()},
            "examples": found.examples,
            "documents": found.documents,
            "threshold": found.threshold,
            "notes": list(found.notes),
            "findings": [asdict(one) for one in found.findings],
        }
    return whole


def as_text(shown: Overview, found: Audit | None, full: bool = False) -> str:
    """Both for people; `full` lists every finding."""
    parts = [_head(shown), _steps(shown), *(_histogram(one) for one in shown.distributions if one.values)]
    if found is not None:
        parts.append("\n".join(_verdict(found, full)))
    return "\n\n".join(parts)


def _head(shown: Overview) -> str:
    held = ", ".join(f"{name} {_numbers(counts)}" for name, counts in shown.splits.items())
    truth = "; the truth behind it is known" if shown.about["truth"] else ""
    return (
        f"{shown.name}: task {shown.about['task']}, fingerprint {shown.about['fingerprint'][:16]}{truth}\n"
        f"targets            {held}\n"
        f"open to methods    {_numbers(shown.population)}"
    )


def _steps(shown: Overview) -> str:
    lines = ["after each step"]
    lines += [f"  {step:<20} {_numbers(counts)}" for step, counts in shown.steps.items()]
    return "\n".join(lines)


def _numbers(counts: Mapping[str, int]) -> str:
    def called(name: str, count: int) -> str:
        words = name.replace("_", " ")
        return words[:-1] if count == 1 and words.endswith("s") else words

    return "; ".join(f"{count:,} {called(name, count)}" for name, count in counts.items())


def _histogram(one: Distribution) -> str:
    told = one.told()
    spread = ", ".join(f"{name} {told[key]:,.10g}" for name, key in _TOLD.items())
    bars = one.bars()
    width = max(len(name) for name, _ in bars)
    most = max(count for _, count in bars) or 1
    lines = [f"{one.label}: {spread}"]
    lines += [f"  {name:>{width}}  {'#' * _length(count, most):<{_BAR}} {count:,}" for name, count in bars]
    return "\n".join(lines)


_TOLD = {"min": "min", "median": "median", "90%": "p90", "max": "max"}


def _length(count: int, most: int) -> int:
    """Something, for whatever is there at all."""
    return max(1, round(_BAR * count / most)) if count else 0


def _verdict(found: Audit, full: bool) -> Iterator[str]:
    looked = (
        f"{found.examples:,} targets and {found.documents:,} open documents looked at, near copies from a similarity "
        f"of {found.threshold:g} on"
    )
    if not found.findings:
        yield f"no leaks: {looked}"
    else:
        yield f"LEAKS: {len(found.findings):,} findings; {looked}"
    for kind, count in found.counts().items():
        if not count:
            continue
        yield f"  {kind.value}: {count:,}, of {found.examples_touched(kind):,} targets. {MEANINGS[kind]}"
        listed = [one for one in found.findings if one.kind is kind]
        yield from (f"    {_line(one)}" for one in (listed if full else listed[:_SHOWN]))
        if not full and len(listed) > _SHOWN:
            yield f"    ... and {len(listed) - _SHOWN:,} more: --audit full"
    yield from (f"  note: {note}" for note in found.notes)


def _line(one: Finding) -> str:
    alike = f", similarity {one.similarity:.2f}" if one.similarity else ""
    return f"{one.split} {one.example} <- {one.document}: {one.where}{alike}"
