"""Amazon Reviews 2023 as its authors give it -> a dataset of the size that is left, for any category and thresholds.

Steps 1 to 3 of the construction (`bench.data.filters`) are what makes tens of millions of reviews few, so they are
done here at scale: DuckDB reads the lines twice and turns ids into numbers, NumPy chooses. What is left is written as
Parquet beside a spec with the same thresholds, and steps 4 to 6 are those of any other dataset when it is loaded.
Loading goes through steps 1 to 3 again, which then change nothing: all that was kept is usable and no duplicate, nobody
has more reviews than at the first pass, and a fix point is its own fix point. So a dataset is the same however it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.config import build, parse_overrides
from bench.data import duck
from bench.data.amazon_lines import ITEM_COLUMNS, REVIEW_COLUMNS, check_head
from bench.data.amazon_stages import RESULT, ItemConfig, Job
from bench.data.ready import Role
from bench.data.spec import FilterConfig, SplitConfig, check_thresholds, is_name
from bench.data.staged import Staged
from bench.errors import DataError, UnknownName, UsageError
from bench.files import toml_value

FORMAT = 1
"""Of the plan in the manifest."""


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready to be run."""

    spec: Path
    """For `--dataset`."""
    counts: Mapping[str, Mapping[str, int]]
    """As `bench.data.split.Dataset.counts`, up to the targets; besides, what meta holds and does not list."""
    fresh: bool
    """Made now; else it was there already."""

    def as_text(self) -> str:
        """What was left after each step, and how to go on."""
        rows = [(step, self.counts[step]) for step in ("source", "usable", "newest", "dense", "profiles")]
        lines = [f"{'':<10}{'reviews':>12}{'users':>12}{'items':>12}"]
        lines += [f"{step:<10}{n['reviews']:>12,}{n['users']:>12,}{n['items']:>12,}" for step, n in rows]
        left_out = ", ".join(f"{what} {count:,}" for what, count in self.counts["left_out"].items() if count)
        unlisted = self.counts["unlisted"]["of_source"]
        lines.append(f"left out by step 1: {left_out or 'nothing'}; {unlisted:,} reviews have no row in meta")
        lines.append("targets: " + ", ".join(f"{role} {self.counts['targets'][role]:,}" for role in Role))
        state = "wrote" if self.fresh else "already complete, left as it is:"
        lines.append(f"{state} {self.spec}; look: python -m bench run --methods rag --dry-run --dataset {self.spec}")
        return "\n".join(lines)


def prepare(
    reviews: Path,
    meta: Path,
    out: Path,
    name: str | None = None,
    overrides: Sequence[str] = (),
    limits: duck.Limits | None = None,
) -> Prepared:
    """Makes the dataset `out/NAME.toml`, or goes on with making it, or finds it complete.

    Args:
        reviews: JSON Lines, plain or .gz: rating, title, text, parent_asin, user_id, timestamp (ms).
        meta: JSON Lines, plain or .gz: parent_asin, title, description and categories (lists), rating_number.
        out: a folder, new or empty or an earlier one with the same inputs and thresholds.
        name: of the dataset; None: that of the folder.
        overrides: thresholds, such as filter.min_text_chars=100, split.train=3, items.require_categories=false.
        limits: what DuckDB may use.

    Raises:
        DataError: an input cannot be read or leaves nothing.
        UsageError: thresholds, folder, memory or disk will not do. MissingPackage: DuckDB is not installed.
    """
    tools = {"dep-bench": version("dep-bench"), "duckdb": duck.version()}
    filters, split, item_config = _thresholds(overrides)
    name = _checked(name or out.resolve().name)
    for file, key in ((reviews, "--reviews"), (meta, "--meta")):
        if not file.is_file():
            raise DataError(f"{file} {'is a folder, not a file' if file.is_dir() else 'does not exist'}; set {key}")
    plan = {
        "format": FORMAT,
        "source": "amazon2023",
        "name": name,
        "reviews": _identity(reviews),
        "meta": _identity(meta),
        "filter": filters.model_dump(),
        "split": split.model_dump(),
        "items": item_config.model_dump(),
    }
    staged = Staged(out, plan, tools)
    with staged.open() as done:
        counts = done["counts"] if done else None
        if counts is None:
            check_head(meta, ITEM_COLUMNS)
            check_head(reviews, REVIEW_COLUMNS)
            job = Job(name, reviews, meta, filters, split, item_config, limits or duck.Limits(), staged)
            counts = job.run()
            if plan["reviews"] != _identity(reviews) or plan["meta"] != _identity(meta):
                raise DataError(f"{reviews} or {meta} changed while it was read; delete {out} and prepare again")
            spec = f"{name}.toml", _spec(name, f"{reviews.name}, {meta.name}", filters, split)
            staged.publish("final", RESULT, spec, counts)
    return Prepared(out / f"{name}.toml", counts, not done)


def _thresholds(overrides: Sequence[str]) -> tuple[FilterConfig, SplitConfig, ItemConfig]:
    given = parse_overrides(overrides)
    for section in given:
        if section not in ("filter", "split", "items"):
            raise UnknownName("section of thresholds", section, ("filter", "split", "items"))
    filters = build(FilterConfig, given.get("filter", {}), "filter")
    split = build(SplitConfig, given.get("split", {}), "split")
    check_thresholds("--set", "parquet", filters, split, ready=False)
    return filters, split, build(ItemConfig, given.get("items", {}), "items")


def _checked(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{name!r} is no name for a dataset (letters, digits, '.', '_', '-'); give one with --name")
    return name


def _identity(file: Path) -> dict[str, Any]:
    facts = file.stat()
    return {"file": file.name, "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _spec(name: str, origin: str, filters: FilterConfig, split: SplitConfig) -> str:
    about = f"Amazon Reviews 2023, from {origin}"
    lines = [
        "# Written by `python -m bench prepare`. The files hold what steps 1 to 3 leave under these thresholds:",
        "# to loosen one, prepare again into another folder.",
        f"name = {toml_value(name)}",
        f"about = {toml_value(about)}",
        "",
        "[source]",
        'kind = "parquet"',
        *(f"{key} = {toml_value(file)}" for key, file in zip(("reviews", "items"), RESULT, strict=True)),
        "",
        "[source.item_columns]",
        'category = "category"',
    ]
    for section, config in (("filter", filters), ("split", split)):
        lines += ["", f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in config.model_dump().items())]
    return "\n".join(lines) + "\n"
