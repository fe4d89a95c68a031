"""The five stages of preparing Amazon Reviews 2023, each a few statements of SQL or a few passes over arrays.

    items    meta lines -> every item with a number, and the details of those that step 1 keeps
    reviews  review lines -> ids, time, why step 1 leaves one out, a hash of the clean text; no text
    edges    -> the usable ones as numbers
    kept     -> those that steps 2 and 3 keep, by id
    final    review lines again -> the whole reviews that were kept, and their items

Sorting and joining spill to disk. Only the numbers of usable reviews are held in memory: 24 bytes each, and what a pass
over them needs. In joins the larger side is written first, and is the one that streams past.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.config import Config
from bench.data.amazon_lines import ITEM_COLUMNS, REVIEW_COLUMNS, find_flaw
from bench.data.duck import Duck, Limits, clean, connect, is_clean_id, lines_of, quoted, says_something
from bench.data.edges import Edges, dense, newest, profiles
from bench.data.filters import dense_thresholds, emptied, left_out_for, profile_thresholds
from bench.data.ready import Counts
from bench.data.rows import EARLIEST, LATEST
from bench.data.spec import FilterConfig, SplitConfig
from bench.data.staged import Staged
from bench.errors import DataError

STAGES = ("items", "reviews", "edges", "kept", "final")
RESULT = ("reviews.parquet", "items.parquet")
"""What the last stage leaves."""

Maker = Callable[[Duck, Path, Counts], Counts]
"""Connection, folder to write into and the counts so far -> what the stage adds to them."""

_REASONS = ("item", "text", "rating", "title", "timestamp")
"""Why step 1 leaves a review out, in the order in which it looks; in tables they are numbered from 1."""

_UNSURE, _WRONG = 1, 2
"""Flaws of a line: a null that may be a missing key, and what no line may hold."""

_REVIEW = {
    "user_id": "VARCHAR",
    "parent_asin": "VARCHAR",
    "rating": "DOUBLE",
    "title": "VARCHAR",
    "text": "VARCHAR",
    "timestamp": "DOUBLE",
}
_META = {
    "parent_asin": "VARCHAR",
    "title": "VARCHAR",
    "description": "VARCHAR[]",
    "categories": "VARCHAR[]",
    "rating_number": "DOUBLE",
}
_TIME = "coalesce(TRY_CAST(round_even(r.timestamp, 0) AS BIGINT), 0)"
_DESCRIPTION = (
    "array_to_string(list_transform(CASE WHEN description[1] = 'Product Description' THEN description[2:] "
    "ELSE coalesce(description, []) END, lambda part: coalesce(part, '')), ' ')"
)
"""As `bench.data.rows` joins a description."""


class ItemConfig(Config):
    """What step 1 asks of items beyond title and description, which other sources do not tell."""

    require_categories: bool = True
    """At least one category."""
    require_rating_number: bool = True
    """A rating count."""


@dataclass(frozen=True)
class Job:
    """One preparation. The caller holds the folder open."""

    name: str
    reviews: Path
    meta: Path
    filters: FilterConfig
    split: SplitConfig
    items: ItemConfig
    limits: Limits
    staged: Staged

    def run(self) -> Counts:
        """Makes all stages that are not there yet, and returns the counts after each step. Raises as `prepare`."""
        makers = (self._items, self._reviews, self._edges, self._kept, self._final)
        counts: Counts = {}
        for number, (name, maker) in enumerate(zip(STAGES, makers, strict=True), 1):
            counts |= self.staged.stage(name, self._made(f"{number}/{len(STAGES)} {name}", maker, dict(counts)))
        return counts

    def _made(self, title: str, maker: Maker, counts: Counts) -> Callable[[Path], Counts]:
        def made(folder: Path) -> Counts:
            with connect(self.limits, self.staged.scratch, title) as database:
                return maker(database, folder, counts)

        return made

    def _items(self, database: Duck, folder: Path, counts: Counts) -> Counts:
        table = folder / "items.parquet"
        asked = {key: condition for key, (needed, condition) in self._item_conditions().items() if needed}
        database.copy(
            f"SELECT parent_asin, {' AND '.join(['true', *asked.values()])} AS usable, "
            "CASE WHEN usable THEN title END AS title, CASE WHEN usable THEN description END AS description, "
            "CASE WHEN usable THEN array_to_string(categories, ', ') END AS category, "
            "coalesce(title, '') <> '' AS has_title, description <> '' AS has_description, "
            "coalesce(len(categories), 0) > 0 AS has_categories, rating_number IS NOT NULL AS has_rating_number "
            f"FROM (SELECT * REPLACE ({_DESCRIPTION} AS description) FROM {lines_of(self.meta, _META)})",
            table,
            self.meta,
            self._tell_meta,
        )
        rows, named, distinct, usable, *has = database.row(
            f"SELECT count(*), count_if({is_clean_id('parent_asin')}), count(DISTINCT parent_asin), count_if(usable), "
            f"{', '.join(f'count_if(has_{key})' for key in asked)} FROM {quoted(table)}"
        )
        if named < rows:
            self._tell_meta(None)
            raise DataError(f"{self.meta}: {rows - named} lines have an unusable parent_asin; leave them out")
        if distinct < rows:
            (twice,) = database.row(
                f"SELECT min(parent_asin) FROM (SELECT parent_asin FROM {quoted(table)} GROUP BY 1 HAVING count(*) > 1)"
            )
            raise DataError(f"{self.meta}: the parent_asin {twice!r} stands twice; keep one line an item")
        for key, count in zip(asked, has, strict=True):
            if not count:
                raise DataError(f"no line of {self.meta} has a {key}, so no item is left; is it the meta file?")
        database.copy(
            f"SELECT parent_asin, usable, CAST(row_number() OVER (ORDER BY parent_asin) - 1 AS INTEGER) AS code "
            f"FROM {quoted(table)}",
            folder / "ids.parquet",
        )
        return {"meta": {"items": rows, "usable_items": usable}}

    def _item_conditions(self) -> dict[str, tuple[bool, str]]:
        """Key -> whether step 1 looks at it, and what it asks."""
        filters = self.filters
        bounds = f"length(description) BETWEEN {filters.min_description_chars} AND {filters.max_description_chars}"
        return {
            "title": (filters.require_title, says_something("title")),
            "description": (filters.require_description, f"{bounds} AND {says_something('description')}"),
            "categories": (self.items.require_categories, "coalesce(len(categories), 0) > 0"),
            "rating_number": (self.items.require_rating_number, "rating_number IS NOT NULL"),
        }

    def _reviews(self, database: Duck, folder: Path, counts: Counts) -> Counts:
        table = folder / "reviews.parquet"
        conditions = {"item": "coalesce(i.usable, false)"} | self._review_conditions()
        reasons = " ".join(f"WHEN NOT ({conditions[name]}) THEN {n}" for n, name in enumerate(_REASONS, 1))
        wrong = (
            "r.user_id IS NULL OR r.parent_asin IS NULL OR coalesce(isinf(r.rating), false) OR "
            f"NOT coalesce(r.timestamp = 0 OR round_even(r.timestamp, 0) BETWEEN {EARLIEST} AND {LATEST}, true)"
        )
        unsure = "r.text IS NULL OR r.timestamp IS NULL"
        line = (
            f"SELECT r.user_id, r.parent_asin, r.text, i.code AS item, {_TIME} AS time, "
            f"CAST(CASE {reasons} ELSE 0 END AS UTINYINT) AS reason, "
            f"CAST(CASE WHEN {wrong} THEN {_WRONG} WHEN {unsure} THEN {_UNSURE} ELSE 0 END AS UTINYINT) AS flaw, "
            "r.rating IS NOT NULL AS has_rating, r.title IS NOT NULL AS has_title "
            f"FROM {lines_of(self.reviews, _REVIEW)} r "
            f"LEFT JOIN {self._table('items', 'ids')} i ON r.parent_asin = i.parent_asin"
        )
        database.copy(
            "SELECT user_id, item, CASE WHEN item IS NULL THEN parent_asin END AS stranger, time, reason, flaw, "
            f"has_rating, has_title, CASE WHEN reason = 0 THEN hash({clean('text')}) END AS words FROM ({line})",
            table,
            self.reviews,
            self._tell_reviews,
        )
        self._check_reviews(database, table)
        return {}

    def _review_conditions(self) -> dict[str, str]:
        """What step 1 asks of a review `r` whose item is usable."""
        filters = self.filters
        return {
            "text": f"{says_something('r.text')} AND length(r.text) >= {filters.min_text_chars}",
            "rating": "r.rating IS NOT NULL" if filters.require_rating else "true",
            "title": says_something("r.title") if filters.require_title else "true",
            "timestamp": f"{_TIME} > 0",
        }

    def _check_reviews(self, database: Duck, table: Path) -> None:
        rows, known, unsure, wrong, rated, titled, unnamed = database.row(
            f"SELECT count(*), count(item), count_if(flaw = {_UNSURE}), count_if(flaw = {_WRONG}), "
            f"count_if(has_rating), count_if(has_title), count_if(NOT {is_clean_id('stranger')}) FROM {quoted(table)}"
        )
        if unsure or wrong or unnamed:
            self._tell_reviews(None)
        if wrong or unnamed:
            raise DataError(f"{self.reviews}: {wrong + unnamed} lines hold an unusable id, time or rating; mend them")
        for key, count, needed in (
            ("rating", rated, self.filters.require_rating),
            ("title", titled, self.filters.require_title),
        ):
            if needed and not count:
                raise DataError(f"no line of {self.reviews} has a {key}; set filter.require_{key}=false to do without")
        if not known:
            raise DataError(
                f"none of the {rows} reviews of {self.reviews} is of an item of {self.meta}; "
                "give the two files of one category"
            )

    def _edges(self, database: Duck, folder: Path, counts: Counts) -> Counts:
        users, rows = folder / "users.parquet", self._table("reviews", "reviews")
        database.copy(
            "SELECT user_id, CAST(row_number() OVER () - 1 AS INTEGER) AS code "
            f"FROM (SELECT DISTINCT user_id FROM {rows})",
            users,
        )
        named, unnamed = database.row(f"SELECT count(*), count_if(NOT {is_clean_id('user_id')}) FROM {quoted(users)}")
        if unnamed:
            self._tell_reviews(None)
            raise DataError(f"{self.reviews}: {unnamed} users have an id that is blank or holds a forbidden character")
        reviews, items, strangers, unlisted = database.row(
            f"SELECT count(*), count(DISTINCT item), count(DISTINCT stranger), count(stranger) FROM {rows}"
        )
        source = {"users": named, "items": items + strangers, "reviews": reviews}
        found = dict(database.run(f"SELECT reason, count(*) FROM {rows} GROUP BY reason"))
        left_out = {name: found.get(number, 0) for number, name in enumerate(_REASONS, 1)}
        added: Counts = {"unlisted": {"of_source": unlisted}, "source": source, "left_out": left_out}
        edges = f"SELECT u.code AS user, r.item, r.time, r.words AS text FROM {rows} r "
        edges += f"JOIN {quoted(users)} u ON r.user_id = u.user_id WHERE r.reason = 0"
        database.copy(edges, folder / "edges.parquet")
        if not found.get(0):
            empty = {"users": 0, "items": 0, "reviews": 0}
            raise DataError(
                emptied(self.where, "usable", added | {"usable": empty}, left_out_for(left_out, self.filters))
            )
        return added

    def _kept(self, database: Duck, folder: Path, counts: Counts) -> Counts:
        edges = _read_edges(self.staged.place("edges") / "edges.parquet")
        added: Counts = {"usable": edges.tally()}
        edges = edges.only(newest(edges, lambda index: self._ranks(database, edges.only(index))))
        added["newest"] = edges.tally()
        print(f"{database.title}: {len(edges):,} reviews after step 2", file=sys.stderr)
        edges = edges.only(dense(edges, self.filters))
        added["dense"] = edges.tally()
        print(f"{database.title}: {len(edges):,} reviews after step 3", file=sys.stderr)
        if not len(edges):
            raise DataError(emptied(self.where, "dense", counts | added, dense_thresholds(self.filters)))
        split = self.split
        added["profiles"] = profiles(edges, split.train + split.val + split.test, self.filters)
        users = added["profiles"]["users"]
        if not users:
            raise DataError(emptied(self.where, "profiles", counts | added, profile_thresholds(self.filters)))
        added["targets"] = {"train": users * split.train, "val": users * split.val, "test": users * split.test}
        database.give("edges", edges.columns())
        database.copy(self._named("edges"), folder / "kept.parquet")
        return added

    def _ranks(self, database: Duck, tied: Edges) -> NDArray[np.int64]:
        """The places of the clean texts of a few reviews among each other, for which the file is read once more."""
        database.give("tied", tied.columns())
        lines = self._lines_of_kept(self._named("tied"))
        rows = database.run(f"SELECT k.number, min({clean('r.text')}) FROM {lines} GROUP BY k.number", self.reviews)
        texts = dict(rows)
        place = {text: number for number, text in enumerate(sorted(set(texts.values())))}
        return np.array([place[texts[number]] for number in range(len(tied))], dtype=np.int64)

    def _named(self, edges: str) -> str:
        """SQL for edges with ids in place of codes."""
        return (
            f"SELECT e.number, u.user_id, i.parent_asin, e.time, e.text FROM {self._table('edges', 'users')} u "
            f'JOIN {edges} e ON u.code = e."user" JOIN {self._table("items", "ids")} i ON e.item = i.code'
        )

    def _lines_of_kept(self, kept: str) -> str:
        """SQL for usable lines `r` with the review `k` that each is; more than one line only where these are alike."""
        return (
            f"{lines_of(self.reviews, _REVIEW)} r JOIN ({kept}) k "
            f"ON r.user_id = k.user_id AND r.parent_asin = k.parent_asin AND {_TIME} = k.time "
            f"WHERE {' AND '.join(self._review_conditions().values())} AND hash({clean('r.text')}) = k.text"
        )

    def _final(self, database: Duck, folder: Path, counts: Counts) -> Counts:
        found, kept = folder / "found.parquet", self._table("kept", "kept")
        database.copy(
            "SELECT r.user_id, r.parent_asin AS item_id, r.rating, r.title, r.text, k.time AS timestamp "
            f"FROM {self._lines_of_kept(f'SELECT * FROM {kept}')}",
            found,
            self.reviews,
            self._tell_reviews,
        )
        wanted = counts["dense"]["reviews"]
        rows, distinct = database.row(f"SELECT count(*), count(DISTINCT (user_id, item_id)) FROM {quoted(found)}")
        if distinct != wanted:
            raise DataError(f"{self.reviews} changed while it was read; delete {self.staged.folder} and prepare again")
        # Lines alike in user, item, time and text: the one that the stable order has last.
        title = clean("coalesce(title, '')")
        content = f"{title} DESC, rating DESC NULLS LAST, text, title"
        one = f"QUALIFY row_number() OVER (PARTITION BY user_id, item_id ORDER BY {content}) = 1"
        database.copy(
            f"SELECT * FROM {quoted(found)} {one if rows > distinct else ''} ORDER BY user_id, timestamp, item_id",
            folder / RESULT[0],
        )
        database.copy(
            f"SELECT parent_asin AS item_id, title, description, category FROM {self._table('items', 'items')} "
            f"WHERE usable AND parent_asin IN (SELECT parent_asin FROM {kept}) ORDER BY item_id",
            folder / RESULT[1],
        )
        found.unlink()
        return {}

    @property
    def where(self) -> str:
        """What errors call the dataset."""
        return f"dataset {self.name!r} ({self.reviews})"

    def _table(self, stage: str, name: str) -> str:
        return quoted(self.staged.place(stage) / f"{name}.parquet")

    def _tell_reviews(self, near: int | None) -> None:
        find_flaw(self.reviews, REVIEW_COLUMNS, near)

    def _tell_meta(self, near: int | None) -> None:
        find_flaw(self.meta, ITEM_COLUMNS, near)


def _read_edges(file: Path) -> Edges:
    """Column by column, so that no more than one of them is there twice."""
    import pyarrow.parquet as pq

    names = ("user", "item", "time", "text")
    return Edges(*(pq.read_table(file, columns=[name]).column(name).to_numpy() for name in names))
