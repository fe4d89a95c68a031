"""`data show`: prepares a dataset, looks at it, and says what it holds and what leaks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.config import parse_overrides
from bench.data.audit import audit, check_threshold
from bench.data.overview import overview
from bench.data.plots import need_matplotlib, save_plots
from bench.data.report import as_object, as_text
from bench.data.spec import load_spec
from bench.data.split import prepare
from bench.errors import UnknownName


def show(
    dataset: str, assignments: Sequence[str], level: str, near: float, plots: Path | None, as_json: bool
) -> tuple[str, bool]:
    """The text to print, and whether there are leaks.

    Args:
        dataset: name or path of a spec.
        assignments: `--set NAME.KEY=VALUE`, options of the dataset's source.
        level: "short", "full" or "none".
        near: similarity from which on two texts are near copies.
        plots: folder for pictures; None for none.
        as_json: one object in place of text; it holds every finding.

    Raises:
        UsageError: whatever the user can mend, before anything is read where that is possible.
    """
    check_threshold(near)
    if plots is not None:
        need_matplotlib()
    name = Path(dataset).stem if dataset.endswith(".toml") else dataset
    overrides = parse_overrides(assignments)
    for part in overrides:
        if part != name:
            raise UnknownName("part of this dataset in --set", part, [name])
    prepared = prepare(load_spec(dataset, overrides.get(name, {})))
    shown = overview(prepared)
    found = None if level == "none" else audit(prepared, near)
    made = [] if plots is None else save_plots(shown, plots)
    leaks = found is not None and bool(found.findings)
    if as_json:
        return json.dumps(as_object(shown, found), indent=1, ensure_ascii=False), leaks
    parts = [as_text(shown, found, level == "full")]
    if made:
        parts.append(f"{len(made)} pictures in {plots}")
    return "\n\n".join(parts), leaks
