"""A comparison for people and for machines: console, markdown, json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench.cells import LEVEL, number, p_text, wins_text
from bench.compare.changes import Change
from bench.compare.figures import Comparison, MetricTest
from bench.compare.sides import A, B, Side
from bench.compare.wrap import beside, wrap
from bench.comparison import differing, own_label, printable, settings, shown
from bench.errors import UnknownName
from bench.render import escape_markdown
from bench.stats import Estimate, SeedSpread

WIDTH = 100
_LONGEST = 1_000
"""Letters of a text that the console shows; json has all."""
_HEADS = ("metric", "A", "B", "B - A", "p", "p Holm", "won/tied/lost", "detectable")


def report(found: Comparison, style: str = "console") -> str:
    """The comparison in one of `STYLES`, with a newline at the end. Raises UnknownName for another style."""
    if style not in STYLES:
        raise UnknownName("comparison format", style, STYLES)
    return STYLES[style](found) + "\n"


# --- what every format tells -------------------------------------------------------------------------------------


def _side(letter: str, side: Side) -> str:
    seeds = [str(seed) for seed in side.entry.seeds]
    told = f"{letter}: {own_label(side.entry.runs[0]) if side.entry.variant is None else side.title}"
    return printable(f"{told}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}, {side.path}")


def _heading(found: Comparison) -> str:
    return f"Comparison on {printable(found.dataset)}: {found.examples} examples of {found.users} users"


def _row(test: MetricTest) -> list[str]:
    reducer = test.info.reducer
    clear = test.p_holm is not None and test.p_holm < LEVEL
    return [
        printable(test.info.name),
        _number(test.a, reducer),
        _number(test.b, reducer),
        _interval(test.difference, reducer),
        _p(test.p),
        _p(test.p_holm) + ("!" if clear else ""),
        "-" if test.wins is None else wins_text(test.wins),
        "-" if test.detectable is None else number(test.detectable, reducer),
    ]


def _number(estimate: Estimate, reducer: str, sign: bool = False) -> str:
    return "-" if estimate.value is None else number(estimate.value, reducer, sign)


def _interval(estimate: Estimate, reducer: str) -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate, reducer, sign=True)
    ends = f"[{number(estimate.low, reducer, True)}, {number(estimate.high, reducer, True)}]"
    return f"{_number(estimate, reducer, sign=True)} {ends}"


def _p(p: float | None) -> str:
    return "-" if p is None else p_text(p).removeprefix("p").removeprefix("=")


def notes(found: Comparison) -> list[str]:
    """How the figures came about and how to read them."""
    told = []
    if found.clashes:
        told.append(f"Compared in spite of (--mixed): {'; '.join(map(str, found.clashes))}.")
    if own := _differing(found):
        told.append(f"A and B differ in {own}.")
    ranked = sum(test.p_holm is not None for test in found.tests)
    told += [
        f"B - A with its 95 % interval: paired bootstrap over users, {found.resamples:,} resamples. p: paired "
        f"permutation test over users, two-sided; p Holm: corrected over the {ranked} metrics that have a good side; "
        f"!: below {LEVEL}.",
        "won/tied/lost: users for whom B's mean over examples and seeds is better than, equal to or worse than A's; - "
        "for corpus metrics and those without a good side. detectable: the least true difference that such a test "
        "would find with a power of 80 %, uncorrected.",
    ]
    lower = [test.info.name for test in found.tests if test.info.higher_is_better is False]
    if lower:
        told.append(f"Lower is better: {printable(', '.join(lower))}.")
    neutral = [test.info.name for test in found.tests if test.info.higher_is_better is None]
    if neutral:
        told.append(f"Neither high nor low is better: {printable(', '.join(neutral))}.")
    return [*told, *_seed_notes(found), *_missing_notes(found)]


def _differing(found: Comparison) -> str:
    """Knobs in which two sides of one method differ."""
    runs = found.a.entry.runs[0], found.b.entry.runs[0]
    if runs[0].method != runs[1].method:
        return ""
    a, b = map(settings, runs)
    told = [
        f"{path.removeprefix('config.')} (A: {shown(a.get(path))}, B: {shown(b.get(path))})" for path in differing(a, b)
    ]
    return printable(", ".join(told))


def _seed_notes(found: Comparison) -> list[str]:
    told = []
    for letter, side in ((A, found.a), (B, found.b)):
        spreads = [(test, test.spread_a if letter == A else test.spread_b) for test in found.tests]
        sds = [f"{printable(t.info.name)} {number(s.sd, t.info.reducer)}" for t, s in spreads if s is not None]
        if sds:
            told.append(
                f"Standard deviation of {letter} over its {len(side.entry.runs)} seeds, which is no part of the "
                f"interval: {', '.join(sds)}."
            )
    if len(found.a.entry.runs) != len(found.b.entry.runs):
        told.append("A and B have unlike numbers of seeds: means over seeds are exchanged, and p is approximate.")
    return told


def _missing_notes(found: Comparison) -> list[str]:
    lacking = [(t.info.name, found.examples - _scored(t, found)) for t in found.tests]
    absent = [f"{printable(name)} {count}" for name, count in lacking if count]
    told = [f"Examples left out, as a side has no value for them: {', '.join(absent)}."] if absent else []
    sides = ((A, found.a.entry.metric_names, found.b.entry), (B, found.b.entry.metric_names, found.a.entry))
    for letter, names, other in sides:
        if only := sorted(names - other.metric_names):
            told.append(f"Only {letter} was scored with: {printable(', '.join(only))}.")
    return told


def _scored(test: MetricTest, found: Comparison) -> int:
    """Examples that the difference is of."""
    return found.union - test.difference.missing


# --- console -----------------------------------------------------------------------------------------------------


def as_console(found: Comparison, width: int = WIDTH) -> str:
    """Plain text of at most `width` columns (names of metrics longer than 14 letters aside)."""
    from tabulate import tabulate

    lines = [_heading(found), *wrap(_side(A, found.a), width), *wrap(_side(B, found.b), width), ""]
    heads = [*_HEADS[:6], "W/T/L", "detects"]
    align = ("left", *("right",) * (len(heads) - 1))
    rows = [_row(test) for test in found.tests]
    lines += [tabulate(rows, heads, tablefmt="simple", disable_numparse=True, colalign=align), ""]
    for note in notes(found):
        note = note.replace("won/tied/lost:", "W/T/L:").replace("detectable:", "detects:")
        first, *rest = wrap(note, width - 2)
        lines += [first, *(f"  {line}" for line in rest)]
    if found.changes:
        lines += ["", f"Changed most in {printable(found.by)}:"]
    for place, change in enumerate(found.changes, 1):
        lines += ["", *_console_change(place, change, found, width)]
    return "\n".join([*lines, *([""] if _after(found) else []), *wrap(_after(found), width)]).rstrip()


def _after(found: Comparison) -> str:
    """Why no examples are shown, if they were wanted."""
    if found.left_out is not None:
        return f"Examples are not shown: {found.left_out}"
    if found.wanted and not found.changes:
        return f"No example differs in {found.by}."
    return ""


def _title(place: int, change: Change, found: Comparison) -> str:
    reducer = found.by_reducer
    gap = number(change.b - change.a, reducer, True)
    means = ", means over seeds" if len(found.a.entry.runs) + len(found.b.entry.runs) > 2 else ""
    scores = f"{number(change.a, reducer)} -> {number(change.b, reducer)} ({gap}{means})"
    return printable(f"{place}. {found.by} {scores}, user {change.user_id}, example {change.example_id}")


def _console_change(place: int, change: Change, found: Comparison, width: int) -> list[str]:
    title = wrap(_title(place, change, found), width)
    half = (width - 3) // 2
    lines = [*title, "-" * width]
    for label, value in change.asked.items():
        lines += wrap(f"{label}: {_value(value)}", width)
    lines += wrap(f"Reference: {_cut(change.reference)}", width)
    heads = [wrap(_head(*one, found), half) for one in _texts(change, found)]
    lines += ["", *beside(heads[0], heads[1], half)]
    texts = [wrap(_cut(text), half) for text in (change.text_a, change.text_b)]
    return [*lines, *beside(texts[0], texts[1], half)]


def _value(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "-" if value is None else shown(value) if not isinstance(value, str) else value


def _texts(change: Change, found: Comparison) -> list[tuple[str, Side, float, object]]:
    return [(A, found.a, change.shown_a, change.seed_a), (B, found.b, change.shown_b, change.seed_b)]


def _head(letter: str, side: Side, score: float, seed: object, found: Comparison) -> str:
    seeds = f", seed {seed}" if len(side.entry.runs) > 1 else ""
    return printable(f"{letter}: {side.title}{seeds}, {found.by} {number(score, found.by_reducer)}")


def _cut(text: str) -> str:
    rest = len(text) - _LONGEST
    return text if rest <= 0 else f"{text[:_LONGEST]} [... {rest:,} more characters]"


# --- markdown ----------------------------------------------------------------------------------------------------


def as_markdown(found: Comparison) -> str:
    """GitHub-flavoured markdown, texts in full."""
    grid = [list(_HEADS), [":---", *["---:"] * (len(_HEADS) - 1)]]
    grid += [[escape_markdown(cell) for cell in _row(test)] for test in found.tests]
    lines = [f"## {escape_markdown(_heading(found))}", ""]
    lines += [f"- {escape_markdown(_side(letter, side))}" for letter, side in ((A, found.a), (B, found.b))]
    lines += ["", *(f"| {' | '.join(cells)} |" for cells in grid), ""]
    lines += [f"- {escape_markdown(note)}" for note in notes(found)]
    for place, change in enumerate(found.changes, 1):
        lines += ["", f"### {escape_markdown(_title(place, change, found))}", ""]
        asked = [(label, _value(value)) for label, value in change.asked.items()]
        lines += [f"- {_plain(f'{label}: {value}')}" for label, value in (*asked, ("Reference", change.reference))]
        heads = [_plain(_head(*one, found)) for one in _texts(change, found)]
        lines += ["", f"| {' | '.join(heads)} |", "| :--- | :--- |"]
        lines.append(f"| {_plain(change.text_a)} | {_plain(change.text_b)} |")
    after = _after(found)
    return "\n".join([*lines, *(["", _plain(after)] if after else [])])


def _plain(text: str) -> str:
    """On one line, escaped: a line break would end the cell."""
    return escape_markdown(" ".join(printable(text).split()))


# --- json --------------------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> str:
    """One object, numbers raw, texts in full."""
    told = {
        "dataset": found.dataset,
        "examples": found.examples,
        "users": found.users,
        "resamples": found.resamples,
        "a": _json_side(found.a),
        "b": _json_side(found.b),
        "differ_in": [asdict(clash) for clash in found.clashes],
        "metrics": [_json_test(test, found) for test in found.tests],
        "by": found.by,
        "changes": [asdict(change) for change in found.changes],
        "changes_left_out": found.left_out,
    }
    return json.dumps(told, indent=1, ensure_ascii=True, allow_nan=False)


def _json_side(side: Side) -> dict[str, Any]:
    runs = [str(run.path) for run in side.entry.runs]
    method = side.entry.runs[0].description["method"]
    return {"title": side.title, "method": method, "seeds": list(side.entry.seeds), "runs": runs}


def _json_test(test: MetricTest, found: Comparison) -> dict[str, Any]:
    spread: dict[str, SeedSpread | None] = {"a": test.spread_a, "b": test.spread_b}
    scores = {"a": test.a, "b": test.b}
    return {
        "metric": test.info.name,
        "signature": test.info.signature,
        "higher_is_better": test.info.higher_is_better,
        "examples": _scored(test, found),
        **{key: _ends(estimate) | _json_spread(spread[key]) for key, estimate in scores.items()},
        "difference": _ends(test.difference) | {"users": test.difference.users},
        "p": test.p,
        "p_holm": test.p_holm,
        "wins": None if test.wins is None else asdict(test.wins),
        "detectable": test.detectable,
    }


def _ends(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _json_spread(spread: SeedSpread | None) -> dict[str, float | int | None]:
    return {"seed_sd": spread.sd if spread else None, "seed_n": spread.seeds if spread else None}


STYLES: dict[str, Callable[[Comparison], str]] = {"console": as_console, "markdown": as_markdown, "json": as_json}
"""Format name -> renderer. JSON is in ASCII: no terminal is garbled by what a model wrote."""
