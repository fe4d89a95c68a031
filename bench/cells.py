"""Cells of a table: scores with intervals, differences, speeds and memory as people read them, raw values beside."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.comparison import Entry
from bench.estimates import PValue
from bench.stats import Estimate, Scored, SeedSpread, Wins
from bench.store import MetricInfo

EMPTY = "-"
LEVEL = 0.05
"""Corrected p below which a difference is marked."""


class Mark(enum.StrEnum):
    """What is to be seen at a glance in a cell."""

    NONE = ""
    BEST = "best"
    SECOND = "second"
    CLEAR = "clear"  # a difference whose corrected p is below LEVEL


@dataclass(frozen=True)
class Cell:
    """One value: as shown, and raw."""

    text: str = EMPTY
    value: float | int | str | None = None
    low: float | None = None
    high: float | None = None
    users: int | None = None
    missing: int = 0
    p: float | None = None
    """Of a difference alone."""
    p_holm: float | None = None
    """Corrected for the other differences of its section."""
    spread: SeedSpread | None = None
    """Of a score over seeds, where there are several."""
    wins: Wins | None = None
    """Of a difference: users who are better off than with the baseline, as well, and worse."""
    detectable: float | None = None
    """Of a difference: the smallest that these users would show."""
    mark: Mark = Mark.NONE


def _decimals(reducer: str) -> int:
    return 2 if reducer == "corpus_bleu" else 3


def _number(value: float, decimals: int, sign: bool = False) -> str:
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text  # no negative zero


def estimate_cell(estimate: Estimate | None, reducer: str, sign: bool = False) -> Cell:
    if estimate is None or estimate.value is None:
        return Cell(missing=estimate.missing if estimate else 0)
    digits = _decimals(reducer)
    text = _number(estimate.value, digits, sign)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{_number(estimate.low, digits, sign)}, {_number(estimate.high, digits, sign)}]"
    return Cell(text, estimate.value, estimate.low, estimate.high, estimate.users, estimate.missing)


def score_cell(scored: Scored | None, reducer: str) -> Cell:
    """A score with its interval over users and, where there are several seeds, its standard deviation over them."""
    cell = estimate_cell(scored.score if scored else None, reducer)
    if scored is None or scored.spread is None or cell.value is None:
        return cell
    return replace(cell, text=f"{cell.text} sd {number(scored.spread.sd, reducer)}", spread=scored.spread)


def difference_cell(scored: Scored | None, info: MetricInfo, test: PValue | None = None) -> Cell:
    """A difference with its interval and, where it was tested, its corrected p, which alone decides on the mark."""
    cell = estimate_cell(scored.difference if scored else None, info.reducer, sign=True)
    if scored is None or cell.value is None:
        return cell
    cell = replace(cell, wins=wins_of(scored, info), detectable=scored.detectable)
    if test is None:
        return cell
    mark = Mark.CLEAR if test.holm < LEVEL else Mark.NONE
    return replace(cell, text=f"{cell.text} {p_text(test.holm)}", p=test.raw, p_holm=test.holm, mark=mark)


def wins_of(scored: Scored, info: MetricInfo) -> Wins | None:
    """Wins by the metric's good side; None for a metric without one, and for a corpus metric."""
    if scored.wins is None or info.higher_is_better is None:
        return None
    return scored.wins if info.higher_is_better else scored.wins.turned()


def wins_cell(difference: Cell) -> Cell:
    """Wins, ties and losses of a difference's cell."""
    wins = difference.wins
    return Cell() if wins is None else Cell(wins_text(wins), wins_text(wins))


def wins_text(wins: Wins) -> str:
    return f"{wins.wins}/{wins.ties}/{wins.losses}"


def detectable_cell(difference: Cell, reducer: str) -> Cell:
    """The smallest detectable difference of a difference's cell."""
    size = difference.detectable
    return Cell() if size is None else Cell(number(size, reducer), size)


def number(value: float, reducer: str, sign: bool = False) -> str:
    """A score of a metric with this reducer, or a difference of two, as people read it."""
    return _number(value, _decimals(reducer), sign)


def p_text(p: float) -> str:
    """p to three decimals, rounded up: no test looks better than it is, and 0.051 is never shown as 0.050."""
    return "p<0.001" if p < 0.001 else f"p={math.ceil(p * 1000 - 1e-9) / 1000:.3f}"


def label_cell(entry: Entry) -> Cell:
    marks = f" [{entry.marks}]" if entry.marks else ""
    return Cell(entry.label + marks, entry.label)


def _total(entry: Entry, key: str) -> float:
    return float(sum(run.totals.get(key) or 0 for run in entry.runs))


def stage_totals(entry: Entry, key: str) -> dict[str, float]:
    """A cost of each stage before the last, summed over the entry's runs; nothing for runs without such stages."""
    found: dict[str, float] = {}
    for run in entry.runs:
        for stage, costs in (run.totals.get("stages") or {}).items():
            found[stage] = found.get(stage, 0) + float(costs[key])
    return found


def _examples_per_second(entry: Entry) -> float | None:
    """Over all that a text takes the model: the stages before the last one and reading hidden states, too."""
    elapsed = _total(entry, "wall_seconds") + sum(stage_totals(entry, "wall_seconds").values())
    elapsed += _total(entry, "hidden_seconds")
    return _total(entry, "examples") / elapsed if elapsed > 0 else None


def _calls(entry: Entry) -> float | None:
    """Calls of the model for a text, those for its user shared among the user's texts."""
    examples = _total(entry, "examples")
    if not entry.asks_model or not examples:
        return None
    return 1 + sum(stage_totals(entry, "calls").values()) / examples


def _rate(entry: Entry, amount: str, seconds: str) -> float | None:
    elapsed = _total(entry, seconds)
    return _total(entry, amount) / elapsed if elapsed > 0 else None


def _token_rate(amount: str, seconds: str) -> Callable[[Entry], float | None]:
    return lambda entry: _rate(entry, amount, seconds) if entry.asks_model else None


def _fit_seconds(entry: Entry) -> float | None:
    """Mean over the seeds that were fitted, the training of single test users included."""
    fitted = [(run.manifest["fit"], run.totals) for run in entry.runs if run.manifest.get("fit")]
    seconds = [float(fit["seconds"]) + float(totals.get("adapt_seconds") or 0) for fit, totals in fitted]
    return sum(seconds) / len(seconds) if seconds else None


def _peak(entry: Entry) -> float | None:
    """The highest mark of generating and of fitting."""
    costs = [run.totals for run in entry.runs] + [run.manifest.get("fit") or {} for run in entry.runs]
    return max((cost["peak_memory"] for cost in costs if cost.get("peak_memory")), default=None)


def _embed_seconds(entry: Entry) -> float | None:
    """Mean over seeds of what fitting and generating spent on embedding; texts embedded before cost nothing."""
    costs = [(run.totals, run.manifest.get("fit") or {}) for run in entry.runs]
    seconds = [sum(float(part.get("embed_seconds") or 0) for part in parts) for parts in costs]
    return sum(seconds) / len(seconds) if any(seconds) else None


def _decode_rate(entry: Entry) -> float | None:
    """New tokens a second after the first of each text, which comes out of the prefill."""
    elapsed = _total(entry, "decode_seconds")
    written = _total(entry, "output_tokens") - _total(entry, "examples") + _total(entry, "failed")
    return max(0.0, written) / elapsed if elapsed > 0 and entry.asks_model else None


COSTS: dict[str, tuple[str, Callable[[Entry], float | None]]] = {
    "calls_per_example": ("LLM calls", _calls),
    "examples_per_second": ("ex/s", _examples_per_second),
    "prompt_tokens_per_second": ("prompt tok/s", _token_rate("prompt_tokens", "prefill_seconds")),
    "generated_tokens_per_second": ("generated tok/s", _decode_rate),
    "training_seconds": ("training s", _fit_seconds),
    "embedding_seconds": ("embed s", _embed_seconds),
    "peak_memory_bytes": ("peak memory", _peak),
}
"""Key -> heading and how to compute it."""


def plain_cell(entry: Entry, key: str) -> Cell:
    if key == "method":
        return label_cell(entry)
    if key == "seeds":
        return Cell(str(len(entry.runs)), len(entry.runs))
    if key == "failed":
        failed = int(_total(entry, "failed"))
        return Cell(str(failed), failed)
    value = COSTS[key][1](entry)
    if value is None:
        return Cell()
    return Cell(_memory(value) if key == "peak_memory_bytes" else _figure(value), value)


def _figure(value: float) -> str:
    """Three digits or so: 0.012, 1.23, 12.3, 1234."""
    magnitude = abs(value)
    decimals = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{decimals}f}"


def _memory(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{_figure(size / scale)} {unit}"
    return f"{size:.0f} B"
