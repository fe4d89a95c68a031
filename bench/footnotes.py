"""What stands under a leaderboard: how its figures came about, what is missing, and what its rows are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.cells import LEVEL, number, stage_totals
from bench.comparison import (
    REFERENCE,
    RUBRIC_COLUMN,
    Entry,
    differing,
    flatten,
    judged,
    own_label,
    printable,
    settings,
    shown,
)
from bench.estimates import Estimates, Options


def notes(entries: Sequence[Entry], groups: Sequence[Estimates], options: Options, costs: bool = True) -> list[str]:
    """The footnotes of a table with these groups of rows, most important first; `costs`: it shows what they cost."""
    counts = " / ".join(f"{group.examples} examples of {group.users} users" for group in groups)
    interval = f"95 % intervals: paired bootstrap over users, {options.resamples:,} resamples"
    enough = options.metrics and any(group.users > 1 for group in groups)
    told = [f"{counts}. {interval}." if enough else f"{counts}."]
    if any(group.tests for group in groups):
        told.append(_tests(groups, options))
    if any(len(entry.runs) > 1 for entry in entries):
        seeds = sorted({str(seed) for entry in entries for seed in entry.seeds})
        told.append(
            f"Scores and training seconds are means over seeds ({', '.join(seeds)}); sd: standard deviation over "
            "seeds, which is no part of the interval."
        )
    told += _shape_notes(groups, options)
    told += _metric_notes(entries, groups, options)
    if real := [entry.label for entry in entries if entry.method == REFERENCE]:
        told.append(f"{', '.join(real)}: what the users really wrote, a ceiling, not ranked.")
    if ceilings := [entry.label for entry in entries if entry.ceiling and entry.method != REFERENCE]:
        verb = "knows" if len(ceilings) == 1 else "know"
        told.append(f"{', '.join(ceilings)} {verb} how the data were made: a ceiling, not ranked.")
    if costs:
        told.append(
            "ex/s: examples a second while generating, all stages; prompt tok/s: reading prompts; generated tok/s: "
            "writing, both in the last stage; - where no model is asked or nothing was measured."
        )
        told += _stage_notes(entries)
        told += _shard_notes(entries)
    return [*told, *_knob_notes(entries), *_identity_notes(entries, options)]


def _tests(groups: Sequence[Estimates], options: Options) -> str:
    """What p is: test, number of permutations, family."""
    families = " / ".join(str(len(group.tests)) for group in groups if group.tests)
    return (
        f"p: paired permutation test over users, two-sided, exact or with {options.resamples:,} permutations, "
        f"Holm-corrected over the {families} differences of ranked rows in metrics that have a good side; "
        f"marked: p < {LEVEL}."
    )


def _shape_notes(groups: Sequence[Estimates], options: Options) -> list[str]:
    """How to read the sections that stand beside the differences."""
    told = []
    if options.wins and any(group.baseline is not None for group in groups):
        told.append(
            "Won/tied/lost: users whose mean over examples and seeds is better than, equal to or worse than the "
            "baseline's; - for corpus metrics and those without a good side."
        )
    if options.detectable and any(group.baseline is not None for group in groups):
        told.append(
            "Smallest detectable difference: the least that a two-sided paired test at 5 % would find with a power of "
            "80 %, from the spread of the users' differences, before correction; - where they have none."
        )
    return told


def _metric_notes(entries: Sequence[Entry], groups: Sequence[Estimates], options: Options) -> list[str]:
    told = []
    lower = [name for name in options.metrics if options.infos[name].higher_is_better is False]
    neutral = [name for name in options.metrics if options.infos[name].higher_is_better is None]
    if lower:
        told.append(f"Lower is better: {printable(', '.join(lower))}.")
    if neutral:
        told.append(f"Neither high nor low is better, not ranked: {printable(', '.join(neutral))}.")
    told += _chance_notes(options)
    absent = [text for group in groups for text in _missing(group)]
    if absent:
        told.append(f"Values that are missing, counted and not averaged: {'; '.join(absent)}.")
    return told + _unscored_notes(entries, options)


def _unscored_notes(entries: Sequence[Entry], options: Options) -> list[str]:
    """Which rows lack columns that others have, and what makes them; a baseline never has those of its own wins."""
    told = []
    scored = {name for name in options.metrics if not judged(name)}
    unscored = [entry.label for entry in entries if not scored <= entry.metric_names]
    if unscored or not options.metrics:
        rows = ", ".join(unscored) or "all rows"
        told.append(f"Not fully scored: {rows}; python -m bench score does it.")
    rubrics = {name for name in options.metrics if name.startswith(RUBRIC_COLUMN)}
    if unjudged := [entry.label for entry in entries if not rubrics <= entry.metric_names]:
        told.append(f"Not judged by all judges: {', '.join(unjudged)}; python -m bench judge does it.")
    return told


def _chance_notes(options: Options) -> list[str]:
    known = [
        f"{printable(name)} {number(info.chance, info.reducer)}"
        for name in options.metrics
        if (info := options.infos[name]).chance is not None
    ]
    return [f"By chance, from a text that tells nothing of its user: {', '.join(known)}."] if known else []


def _missing(group: Estimates) -> list[str]:
    """For each row with missing values: how many of which metric."""
    rows: dict[str, dict[str, int]] = {}
    for name, by_label in group.by_metric.items():
        for label, scored in by_label.items():
            if scored.score.missing:
                rows.setdefault(label, {})[printable(name)] = scored.score.missing
    every = {label: sum(label in by_label for by_label in group.by_metric.values()) for label in rows}
    return [
        f"{label}: {next(iter(counts.values()))} of each metric"
        if len(counts) == every[label] > 1 and len(set(counts.values())) == 1
        else f"{label}: " + ", ".join(f"{count} of {name}" for name, count in counts.items())
        for label, counts in rows.items()
    ]


def _knob_notes(entries: Sequence[Entry]) -> list[str]:
    """Knobs of plain rows that are not at their defaults, and in what each variant differs from its method's row."""
    plain, variants = [], []
    for entry in entries:
        full = _full(entry, entries)
        if full is None:
            told = own_label(entry.runs[0]).removeprefix(entry.method).strip()
            if told:
                knobs = told[1:-1] if told[0] == "(" and told[-1] == ")" else told
                plain.append(f"{entry.label} ({knobs})")
            continue
        own, usual = settings(entry.runs[0]), settings(full.runs[0])
        changes = [f"{path.removeprefix('config.')}={shown(own.get(path))}" for path in differing(own, usual)]
        variants.append(f"{entry.label} ({', '.join(changes) or 'nothing'})")
    return [
        f"{heading}: {printable('; '.join(told))}."
        for heading, told in (
            ("Knobs that are not at their defaults", plain),
            ("Variants differ from the full method in", variants),
        )
        if told
    ]


def _stage_notes(entries: Sequence[Entry]) -> list[str]:
    """For each row with stages before the last: calls and seconds of each, a text."""
    told = []
    for entry in entries:
        calls, seconds, failed = (stage_totals(entry, key) for key in ("calls", "wall_seconds", "failed"))
        examples = sum(run.totals["examples"] for run in entry.runs) or 1
        stages = [
            f"{printable(stage)} {calls[stage] / examples:.3g} calls and {seconds[stage] / examples:.3g} s"
            + (f", {failed[stage]:.0f} failed" if failed[stage] else "")
            for stage in calls
        ]
        if stages:
            told.append(f"{entry.label}: {', '.join(stages)}")
    return [f"Stages before the last, for each text: {'; '.join(told)}."] if told else []


def _shard_notes(entries: Sequence[Entry]) -> list[str]:
    """Rows whose runs were put together of shards: what worked side by side is not what a clock on the wall showed."""
    counts = {e.label: {len(run.manifest.get("shards") or ()) for run in e.runs} - {0} for e in entries}
    told = [f"{label} ({', '.join(map(str, sorted(numbers)))})" for label, numbers in counts.items() if numbers]
    if not told:
        return []
    return [
        f"Made in shards: {', '.join(told)}; seconds are added up over shards, so a rate is that of one worker, and "
        "memory is the most that one took."
    ]


def _full(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The row that a variant varies: of its method's plain rows the one most like it."""
    if entry.variant is None:
        return None
    own = settings(entry.runs[0])
    rows = [other for other in entries if other.method == entry.method and other.variant is None]
    return min(rows, key=lambda other: len(differing(own, settings(other.runs[0]))), default=None)


def _identity_notes(entries: Sequence[Entry], options: Options) -> list[str]:
    """What all rows share, from the first row that asks a model."""
    speaking = next((entry for entry in entries if entry.asks_model), entries[0])
    description = speaking.runs[0].description
    dataset = {key: value for key, value in description["dataset"].items() if key != "name" and value}
    told = [f"Dataset {printable(str(description['dataset']['name']))}: {_told(dataset)}."]
    if speaking.asks_model:
        parts = [part for part in ("engine", "sampling", "prompt") if description.get(part)]
        told += [f"{part.capitalize()}: {_told(description[part])}." for part in parts]
    signatures = [options.infos[name].signature for name in options.metrics]
    if signatures:
        told.append(f"Metrics: {printable('; '.join(signatures))}.")
    return told


def _told(values: Mapping[str, Any]) -> str:
    """Settings in words, what names the thing first, what is not set left out."""
    flat = {path: value for path, value in flatten(values).items() if value not in (None, {}, [])}
    ordered = sorted(flat, key=lambda path: (path != "name", path != "model", path))
    return ", ".join(f"{printable(path)} {shown(flat[path])}" for path in ordered)
