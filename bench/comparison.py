"""Which stored runs may share a table, which of them form one row, and how a row is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.errors import UsageError
from bench.keys import canonical_json, digest
from bench.store import StoredRun, StoredScores, read_scores
from bench.stored import row_title

CEILING = "oracle"
"""The method that knows the truth behind a dataset, for runs whose manifest does not yet tell such methods."""
REFERENCE = "reference"
"""The row of the texts that users really wrote (see `bench.ceiling`); no method bears the name."""
RUBRIC_COLUMN, WIN_COLUMN = "judge:", "judge-win:"
"""What names of columns begin with whose numbers are a language model's verdicts (see `bench.judge`)."""
NO_ENGINE = "none"
"""Name of the engine of a method that asks no model; such a run has no engine, sampling or prompt to compare."""

Flat = dict[str, Any]
"""Dotted path -> value."""


def judged(column: str) -> bool:
    """Whether a column is made by `judge`, not by `score`."""
    return column.startswith((RUBRIC_COLUMN, WIN_COLUMN))


def flatten(value: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested mappings as dotted paths."""
    flat: Flat = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def printable(text: str) -> str:
    """The text on one line, without control or direction characters that could garble a table."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def shown(value: Any) -> str:
    """A value in a label or footnote: short, on one line."""
    text = value if isinstance(value, str) else canonical_json(value)
    return printable(text if len(text) <= 60 else text[:57] + "...")


@dataclass(frozen=True)
class Entry:
    """One row of a table: the runs of one method under one config, a run a seed."""

    label: str
    runs: tuple[StoredRun, ...]
    scores: tuple[StoredScores | None, ...]
    """In the order of the runs; None where a run has not been scored."""
    marks: str = ""
    """Letters of the footnotes that say in what this row differs (mixed tables only)."""

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def ceiling(self) -> bool:
        """Whether it was told the truth behind the dataset: shown, never ranked."""
        return bool(self.runs[0].manifest.get("truth", self.method == CEILING))

    @property
    def variant(self) -> str | None:
        """What an ablation calls it; None for a method as such."""
        return _variant(self.runs)

    @property
    def seeds(self) -> tuple[Any, ...]:
        return tuple(run.description.get("seed", 0) for run in self.runs)

    @property
    def asks_model(self) -> bool:
        return _asks_model(self.runs[0])

    @property
    def metric_names(self) -> set[str]:
        """Metrics that every run of the row has."""
        sets = [set(scores.metrics) if scores else set() for scores in self.scores]
        return set.intersection(*sets)

    def compared(self, metrics: Iterable[str]) -> Flat:
        """What must be equal among the rows of a table; a row says nothing of what does not concern it."""
        description = self.runs[0].description
        parts = ("dataset", "engine", "sampling", "prompt") if self.asks_model else ("dataset",)
        flat = flatten({part: description[part] for part in parts if description.get(part)})
        for name in sorted(self.metric_names & set(metrics)):
            signatures = {scores.metrics[name].signature for scores in self.scores if scores}
            flat[f"metrics.{name}"] = " and ".join(sorted(signatures))
        return flat


def _variant(runs: Sequence[StoredRun]) -> str | None:
    """A name that the runs of some seeds have is the name of all."""
    return next((run.variant for run in runs if run.variant is not None), None)


def _asks_model(run: StoredRun) -> bool:
    return bool(run.description["engine"]["name"] != NO_ENGINE)


def make_entries(runs: Sequence[StoredRun]) -> list[Entry]:
    """Rows in order of first appearance, labelled so that no two are called alike; copies of a run count once."""
    groups: dict[str, dict[str, StoredRun]] = {}
    for run in runs:
        identity = digest({key: value for key, value in run.description.items() if key != "seed"})
        groups.setdefault(identity, {}).setdefault(canonical_json(run.description.get("seed", 0)), run)
    ordered = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]
    return [
        Entry(label, tuple(group), tuple(read_scores(run) for run in group))
        for label, group in zip(_labels(ordered), ordered, strict=True)
    ]


def _labels(groups: Sequence[Sequence[StoredRun]]) -> list[str]:
    """The method's name and what an ablation calls the row; rows still alike are told apart by what differs in them.

    Of two such rows both say it; among more, a value that most of them have goes without saying, a version never.
    """
    names = [printable(row_title(group[0].method, _variant(group))) for group in groups]
    flats = [settings(group[0]) for group in groups]
    labels = []
    for name, flat in zip(names, flats, strict=True):
        twins = [other for other_name, other in zip(names, flats, strict=True) if other_name == name]
        paths = sorted({path for twin in twins for path in differing(twins[0], twin)})
        usual = {path: _usual([canonical_json(twin.get(path)) for twin in twins]) for path in paths}
        told = ", ".join(
            f"{path.removeprefix('config.')}={shown(flat.get(path))}"
            for path in paths
            if path == "version" or canonical_json(flat.get(path)) != usual[path]
        )
        labels.append(f"{name} ({told})" if told else name)
    seen: dict[str, int] = {}
    unique = []
    for label in labels:  # still alike: rows that differ only in what the mixed table's footnotes say, or after cutting
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return unique


def _usual(values: Sequence[str]) -> str | None:
    """The value that more than half of the rows have."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def own_label(run: StoredRun) -> str:
    """What the run calls itself: the method's name and the knobs that are not at their defaults."""
    return str(run.manifest.get("label") or run.method)


def settings(run: StoredRun) -> Flat:
    """What tells rows of one method apart: its version, config and encoder, and how requests were batched."""
    method = run.description["method"]
    parts = {name: run.description.get(name) for name in ("encoder", "batching")}
    return flatten(
        {
            "config": method.get("config") or {},
            "version": method.get("version"),
            **{name: part for name, part in parts.items() if part},
        }
    )


def differing(a: Flat, b: Flat) -> list[str]:
    return [path for path in sorted(set(a) | set(b)) if a.get(path) != b.get(path)]


def clashes(entries: Sequence[Entry], metrics: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Path -> value as shown -> labels of the rows that have it, for paths on which the rows disagree.

    A path that only some rows have is compared only within a part (dataset, engine, ...) that both rows have.
    """
    flats = {entry.label: entry.compared(metrics) for entry in entries}
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted({path for flat in flats.values() for path in flat}):
        part = path.partition(".")[0] + "."
        concerned = {label: flat for label, flat in flats.items() if _concerns(flat, path, part)}
        values: dict[str, list[str]] = {}
        for label, flat in concerned.items():
            values.setdefault(canonical_json(flat.get(path)), []).append(label)
        if len(values) > 1:
            found[path] = values
    return found


def _concerns(flat: Flat, path: str, part: str) -> bool:
    if part == "metrics.":  # a row without a metric shows no value of it
        return path in flat
    return any(other.startswith(part) for other in flat)


def refuse_clashes(dataset: str, found: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Raises UsageError naming every path on which rows of one table disagree, and the ways out."""
    if not found:
        return
    told = []
    for path, values in found.items():
        sides = [f"{shown(value)} for {labels[0]}" for value, labels in list(values.items())[:2]]
        told.append(f"{path} ({', '.join(sides)}{', ...' if len(values) > 2 else ''})")
    raise UsageError(
        f"runs on {printable(dataset)} cannot share a table, they differ in {', '.join(told)}; name a folder that "
        "holds comparable runs, or show them together with --mixed"
    )


def group_mixed(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """(title, rows) for each split and model; rows that ask no model join the first group of their split."""
    splits: dict[str, list[Entry]] = {}
    for entry in entries:
        splits.setdefault(canonical_json(entry.runs[0].description["dataset"]), []).append(entry)
    groups: list[tuple[Entry, list[Entry]]] = []
    for split in splits.values():
        models: dict[str, list[Entry]] = {}
        for entry in split:
            if entry.asks_model:
                models.setdefault(_model(entry), []).append(entry)
        first = next(iter(models), "")
        for entry in split:
            if not entry.asks_model:
                models.setdefault(first, []).append(entry)
        groups += [(rows[0], rows) for rows in models.values()]
    titles = [_group_title(head, [other for other, _ in groups]) for head, _ in groups]
    return [(title, _relabelled(rows)) for title, (_, rows) in zip(titles, groups, strict=True)]


def _relabelled(entries: Sequence[Entry]) -> list[Entry]:
    """Labels that tell apart these rows, whatever the rest of the table holds."""
    labels = _labels([entry.runs for entry in entries])
    return [replace(entry, label=label) for entry, label in zip(entries, labels, strict=True)]


def _model(entry: Entry) -> str:
    engine = entry.runs[0].description["engine"]
    return str(engine.get("model") or engine["name"])


def _group_title(head: Entry, heads: Sequence[Entry]) -> str:
    parts = []
    if len({_model(other) for other in heads if other.asks_model}) > 1 and head.asks_model:
        parts.append(f"model {printable(_model(head))}")
    own = flatten({"dataset": head.runs[0].description["dataset"]})
    others = [flatten({"dataset": other.runs[0].description["dataset"]}) for other in heads]
    paths = sorted({path for other in others for path in differing(own, other)})
    parts += [f"{path.removeprefix('dataset.')} {shown(own.get(path))}" for path in paths]
    return ", ".join(parts)


def mark_mixed(
    entries: Sequence[Entry], found: Mapping[str, Mapping[str, Sequence[str]]]
) -> tuple[list[Entry], list[str]]:
    """Entries with footnote letters, and the footnotes: in what a row differs from most rows of the table."""
    told: dict[str, list[str]] = {entry.label: [] for entry in entries}
    for path, values in found.items():
        usual = max(values, key=lambda value: len(values[value]))
        for value, labels in values.items():
            for label in labels if value != usual else ():
                told[label].append(f"{path} = {shown(value)} (others: {shown(usual)})")
    letters: dict[str, str] = {}
    marked = []
    for entry in entries:
        note = "; ".join(told[entry.label])
        if note and note not in letters:
            letters[note] = _letter(len(letters))
        marked.append(replace(entry, marks=letters[note]) if note else entry)
    return marked, [f"[{letter}] {note}" for note, letter in letters.items()]


def _letter(index: int) -> str:
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)
