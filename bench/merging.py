"""Shards become one run when a folder is looked at (see `bench.shards`), and what else lies in a folder of runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import Held, UsageError
from bench.files import file_digest, json_lines, pretty_json, read_object, read_rows, write_atomic
from bench.keys import canonical_json, difference, digest
from bench.shards import PART, SHARDS, Division, Shard, division, parts, shown
from bench.stored import (
    ID_FIELD,
    LOCK,
    MANIFEST,
    PLAN,
    RECORDS,
    SCORES,
    TIMINGS,
    Listing,
    MetricInfo,
    StoredRun,
    StoredScores,
    read_scores,
    write_scores,
)

_PATIENCE = 60.0
"""Seconds to wait for somebody who merges the same run, which takes seconds."""
_NAMES = ("stage", "device")
"""What tells rows of costs apart."""
_VERSIONS = ("code.", "engine.", "encoder.", "batching.")
"""Parts of a description that machines may disagree on under one command."""


def merged(path: Path) -> StoredRun | None:
    """The whole run in a run's folder: as stored, or put together now from its shards; None while any is missing.

    Scores that all shards have by now are joined to the run's. Raises UsageError if shards contradict one another or
    the dataset, or if the folder cannot be written.
    """
    divided = division(path)
    if (path / MANIFEST).is_file():
        run = StoredRun.load(path)
    elif divided is None or divided.missing:
        return None
    else:
        try:
            with _alone(path):
                run = StoredRun.load(path) if (path / MANIFEST).is_file() else _merge(path, divided)
        except OSError as error:
            raise UsageError(
                f"all {divided.of} shards of {path} are complete, but it cannot be written ({error.strerror}); "
                "mend that and look again"
            ) from error
    if divided is not None and not divided.missing:
        _join_scores(run, divided)
    return run


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(str(path / LOCK)).acquire(timeout=_PATIENCE, poll_interval=0.1):
            yield
    except Timeout as error:
        raise Held(f"another process is writing {path}; wait for it") from error
    except NotImplementedError as error:
        raise UsageError(f"cannot lock {path} ({error}); choose an --out on a file system with locks") from error


def _merge(path: Path, divided: Division) -> StoredRun:
    """Writes the run's files, the manifest last; whatever a kill left of an earlier try is written over."""
    runs = [StoredRun.load(divided.part(shard)) for shard in divided.complete]
    description = _description(path, runs)
    lines = _records(path, runs)
    _check_examples(path, runs[0], lines)
    timings = [row for run in runs for row in read_rows(run.path / TIMINGS)]
    _write(path / RECORDS, b"".join(lines.values()))
    _write(path / TIMINGS, json_lines({**row, "index": index} for index, row in enumerate(timings)))
    plan = {"about": runs[0].plan.get("about", {}), "description": description, "key": digest(description)}
    write_atomic(path / PLAN, pretty_json(plan))
    first = runs[0].manifest
    manifest = {
        **first,
        "counts": _summed([run.manifest["counts"] for run in runs]),
        "description": description,
        "fit": next((run.manifest["fit"] for run in runs if run.manifest.get("fit")), None),
        "key": digest(description),
        "records_sha256": file_digest(path / RECORDS),
        "shards": [_told(shard, run) for shard, run in zip(divided.complete, runs, strict=True)],
        "totals": _summed([run.totals for run in runs if run.totals["examples"]] or [runs[0].totals]),
        "variant": next((run.variant for run in runs if run.variant is not None), None),
    }
    write_atomic(path / MANIFEST, pretty_json(manifest))
    return StoredRun.load(path)


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, data.decode("utf-8", "surrogatepass"))


def _description(path: Path, runs: Sequence[StoredRun]) -> dict[str, Any]:
    """What all shards are of. Raises UsageError if that is not one thing, or any shard is damaged."""
    found = [whole(run.description) for run in runs]
    for run, other in zip(runs, found, strict=True):
        if problem := run.damage():
            raise UsageError(f"{problem}; make it again with --shard {shard_of(run)} --existing overwrite")
        if paths := difference(found[0], other):
            raise UsageError(
                f"{run.path} is a shard of another run than {runs[0].path} (they differ in {', '.join(paths)}); "
                "start over with --existing overwrite"
            )
    if digest(found[0]) != path.name:
        raise UsageError(f"the shards in {path} are of the run {digest(found[0])}; put them back into its folder")
    return found[0]


def whole(description: Mapping[str, Any]) -> dict[str, Any]:
    """A shard's description without its number: that of the whole run."""
    return {key: value for key, value in description.items() if key != PART}


def shard_of(run: StoredRun) -> Shard | None:
    """Which shard a stored run is; None for a whole run."""
    part = run.description.get(PART)
    return Shard(part["index"], part["of"]) if part else None


def run_folder(run: StoredRun) -> Path:
    """The folder of the whole run that a stored run is, or is a shard of."""
    return run.path.parents[1] if shard_of(run) else run.path


def _records(path: Path, runs: Sequence[StoredRun]) -> dict[str, bytes]:
    """Example id -> line, by example id."""
    lines: dict[str, bytes] = {}
    for run in runs:
        for row in read_rows(run.path / RECORDS):
            example = str(row[ID_FIELD])
            if example in lines:
                raise UsageError(f"{run.path / RECORDS} holds example {example!r}, which another shard of {path} has")
            lines[example] = json_lines([row])
    return dict(sorted(lines.items()))


def _check_examples(path: Path, run: StoredRun, lines: Mapping[str, bytes]) -> None:
    """No example lost: the shards tell how many there are in all."""
    wanted = run.plan.get("about", {}).get("data", {}).get("examples", {}).get("test")
    if wanted is not None and wanted != len(lines):
        raise UsageError(
            f"the shards of {path} hold {len(lines)} examples, and the dataset has {wanted}; "
            "start over with --existing overwrite"
        )


def _told(shard: Shard, run: StoredRun) -> dict[str, Any]:
    """What the manifest of the whole says of one shard."""
    return {"shard": str(shard), "totals": run.totals, "provenance": run.manifest.get("provenance")}


def _summed(costs: Sequence[Any]) -> Any:
    """Costs of several shards as one: numbers added, peaks their largest, parts likewise; what is no number is kept.

    A number that one shard does not know is not known of the whole; one that a shard does not have is nothing there.
    """
    if all(isinstance(cost, Mapping) for cost in costs):
        keys = dict.fromkeys(key for cost in costs for key in cost)
        return {key: _summed_key(key, [cost[key] for cost in costs if key in cost]) for key in keys}
    if all(isinstance(cost, list) for cost in costs):  # of mappings, such as what each stage took on each device
        rows: dict[str, list[Any]] = {}
        for row in (row for cost in costs for row in cost):
            rows.setdefault(canonical_json([row.get(name) for name in _NAMES]), []).append(row)
        return [_summed(alike) for alike in rows.values()]
    if any(map(_number, costs)):
        return sum(costs) if all(map(_number, costs)) else None
    return costs[0]


def _summed_key(key: str, values: Sequence[Any]) -> Any:
    numbers = [value for value in values if _number(value)]
    return max(numbers) if numbers and key.startswith("peak") else _summed(values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- scores -----------------------------------------------------------------------------------------------------------


def _join_scores(run: StoredRun, divided: Division) -> None:
    """Adds the metrics that all shards have under one signature, and the run has not, to the run's scores.

    Nothing happens where the run cannot be written: its scores are then a matter of `python -m bench score`.
    """
    headings = [_heading(divided.part(shard)) for shard in divided.complete]
    own = _heading(run.path)
    new = [name for name in headings[0] if name not in own and all(h.get(name) == headings[0][name] for h in headings)]
    if not new:
        return
    with contextlib.suppress(OSError, Held), _alone(run.path):
        scored = [_scores(StoredRun.load(divided.part(shard))) for shard in divided.complete]
        old = _scores(run)
        infos: dict[str, MetricInfo] = dict(old.metrics) if old else {}
        values: dict[str, dict[str, Any]] = {name: dict(old.values[name]) for name in infos} if old else {}
        for name in new:
            infos[name] = MetricInfo(name, **headings[0][name])
            values[name] = {key: value for scores in scored if scores for key, value in scores.values[name].items()}
        order = [str(record[ID_FIELD]) for record in run.records]
        if any(set(values[name]) != set(order) for name in new):  # a shard's scores are damaged
            return
        names = sorted(infos)
        rows = ({"example_id": key, "scores": {name: values[name][key] for name in names}} for key in order)
        write_scores(run, [infos[name] for name in names], rows)


def missing_joined(run: StoredRun, names: Sequence[str]) -> list[str]:
    """Metrics that a merged run will yet get from its shards: one of these has not scored with them so far."""
    divided = division(run.path)
    headings = [_heading(divided.part(shard)) for shard in divided.complete] if divided else []
    return [name for name in names if any(name not in heading for heading in headings)]


def _scores(run: StoredRun) -> StoredScores | None:
    try:
        return read_scores(run)
    except UsageError:
        return None


def _heading(path: Path) -> dict[str, Any]:
    """Metric -> how its values came about, of the scores in a folder; nothing where there are none to read."""
    try:
        metrics = read_object(path / SCORES).get("metrics")
    except UsageError:
        return {}
    return dict(metrics) if isinstance(metrics, Mapping) else {}


# -- looking ----------------------------------------------------------------------------------------------------------


def find_runs(root: Path) -> Listing:
    """Everything under `root`, which may be one run's folder, a dataset's, or the whole store.

    Divided runs are merged where all shards are complete, and told of where not. Raises UsageError if there is no such
    folder. Damaged runs are reported, never returned.
    """
    if not root.is_dir():
        raise UsageError(f"no folder of runs at {root}; make one with: python -m bench run")
    runs: list[StoredRun] = []
    incomplete: list[Path] = []
    problems: list[str] = []
    divided: list[Division] = []
    for folder, children, files in os.walk(root):
        children.sort()
        path = Path(folder)
        if SHARDS not in children and MANIFEST not in files and PLAN not in files:
            continue
        children.clear()
        try:
            run = merged(path)
            found = division(path) if run is None else None
        except UsageError as error:
            problems.append(str(error))
            continue
        if run is not None:
            problem = run.damage()
            if problem:
                problems.append(problem)
            else:
                runs.append(run)
        elif found is not None:
            divided.append(found)
        else:
            incomplete.append(path)
    return Listing(tuple(runs), tuple(incomplete), tuple(problems), tuple(_notes(divided)))


def _notes(divided: Sequence[Division]) -> Iterator[str]:
    """One line on each divided run that is not whole, and on those that look like one run under several versions."""
    for one in divided:
        yield f"{one.path} is not whole: {one.told()}; make what is missing with {shown(one.missing)}"
    for number, one in enumerate(divided):
        for other in divided[number + 1 :]:
            if one.path.parent == other.path.parent and (paths := versions_apart(one, other)):
                yield (
                    f"{one.path} and {other.path} differ in {', '.join(paths)} alone: shards of one run need one set "
                    "of versions and one kind of device; make those of one of the two again"
                )


def versions_apart(one: Division, other: Division) -> list[str]:
    """In what two divided runs differ, if that is nothing but versions and devices; else nothing."""
    descriptions: list[dict[str, Any]] = []
    for divided in (one, other):
        first = next(iter(parts(divided.path).values()))
        try:
            descriptions.append(whole(read_object(first / PLAN)["description"]))
        except (KeyError, UsageError):
            return []
    paths = difference(descriptions[0], descriptions[1])
    return paths if all(path.startswith(_VERSIONS) for path in paths) else []


def strangers(path: Path) -> list[str]:
    """Lines on other divided runs, begun and not whole, that this one's shards may have been meant to belong to."""
    mine = division(path)
    if mine is None:
        return []
    others = [child for child in sorted(path.parent.iterdir()) if child != path and (child / SHARDS).is_dir()]
    found = []
    for child in others:
        other = division(child)
        if other is not None and other.missing and (paths := versions_apart(mine, other)):
            found.append(
                f"{child} has shards that differ in {', '.join(paths)} alone: they will not merge with those made here"
            )
    return found
