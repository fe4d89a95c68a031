"""Preparing raw files gives the dataset that the construction in memory gives, whatever is in them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from amazon_world import (
    TEXTS,
    TITLES,
    Row,
    in_memory,
    loaded,
    meta_line,
    plain_world,
    prepared,
    raw_worlds,
    review_line,
    write_lines,
)
from data_worlds import SMALL_FILTER, worlds
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from bench.data import clean as reference
from bench.data import filters
from bench.data.amazon import prepare
from bench.data.duck import Limits, clean, connect, is_clean_id, says_something
from bench.data.edges import Edges, dense, newest, profiles
from bench.data.ready import tally
from bench.data.spec import load_spec
from bench.data.split import prepare as build
from bench.data.tables import RawReview, RawTables
from bench.errors import DataError

duckdb = pytest.importorskip("duckdb")

FOLDER = os.environ.get("DEP_BENCH_IMDB")
STEPS = ("source", "left_out", "usable", "newest", "dense", "profiles", "targets")


def check_equal(folder: Path, reviews: list[Row], meta: list[Row], *thresholds: str) -> bool:
    """Compares everything with the construction in memory; whether anything was left."""
    try:
        done = prepared(folder, reviews, meta, *thresholds)
    except DataError as error:
        spec = prepared(folder / "other", *plain_world(), *thresholds).spec
        with pytest.raises(DataError) as caught:
            in_memory(folder, reviews, meta, spec)
        # The last words tell what was left after each step before.
        told, expected_words = (str(one).partition(" is empty after ")[2] for one in (error, caught.value))
        assert told == expected_words != ""
        return False
    expected = in_memory(folder, reviews, meta, done.spec)
    found = loaded(done)
    assert found.fingerprint == expected.fingerprint
    assert found.selection == expected.selection
    assert {step: done.counts[step] for step in STEPS} == {step: expected.counts[step] for step in STEPS}
    assert found.counts["source"] == expected.counts["dense"], "loading again filters nothing"
    return True


@given(raw_worlds(), st.sampled_from([(), ("filter.require_rating=false", "filter.require_title=false")]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_equals_the_construction_in_memory(world: tuple[list[Row], list[Row]], thresholds: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        event("something left" if check_equal(Path(folder), *world, *thresholds) else "empty")


def test_a_world_with_every_kind_of_tie_is_left_whole_enough(tmp_path: Path) -> None:
    reviews, meta = plain_world(users=4, items=6)
    day = 30
    # Same user, item and moment with other texts: the last by code points counts, and bars that text elsewhere.
    reviews += [review_line("u0", "i0", day, text) for text in ("Zebra and all", "apple and all", "\U0001f600 and all")]
    reviews += [
        review_line("u0", "i1", day - 1, "\U0001f600  and\nall"),
        review_line("u0", "i1", day - 2, "apple and all"),
    ]
    # Alike but for title and rating, and but for white space.
    reviews += [review_line("u1", "i2", day, "one  text", rating, title) for rating in (1, 2) for title in ("a", "b ")]
    reviews += [review_line("u1", "i2", day, "one text", 5, "a")]
    assert check_equal(tmp_path, reviews, meta, "filter.max_reviews_per_user=50")
    kept = {(r.user_id, r.item_id): r for r in tables_of(tmp_path / "out" / "small.toml").reviews}
    assert kept["u0", "i0"].text == "\U0001f600 and all"
    assert kept["u0", "i1"].text == "apple and all"
    assert (kept["u1", "i2"].title.strip(), kept["u1", "i2"].rating) == ("b", 2.0)


def tables_of(spec: Path) -> RawTables:
    tables = load_spec(spec).source.load()
    assert isinstance(tables, RawTables)
    return tables


def test_only_items_with_categories_and_a_rating_count(tmp_path: Path) -> None:
    reviews, meta = plain_world(users=4, items=8)
    meta[0] |= {"categories": []}
    meta[1] |= {"categories": None}
    meta[2] |= {"rating_number": None}
    strict = prepared(tmp_path / "strict", reviews, meta)
    assert strict.counts["left_out"]["item"] == 12
    loose = ("items.require_categories=false", "items.require_rating_number=false", "filter.max_reviews_per_user=9")
    assert prepared(tmp_path / "loose", reviews, meta, *loose).counts["left_out"]["item"] == 0


def test_reviews_of_items_without_a_meta_row_are_counted_apart(tmp_path: Path) -> None:
    reviews, meta = plain_world()
    done = prepared(tmp_path, reviews, [*meta[1:], meta_line("i0", ["far too long a description of a thing"])][1:])
    assert done.counts["left_out"]["item"] == 8
    assert done.counts["unlisted"]["of_source"] == 4
    assert "4 reviews have no row in meta" in done.as_text()
    assert done.counts["source"]["items"] == 6


def test_same_files_whatever_the_order_of_lines_and_threads(tmp_path: Path) -> None:
    reviews, meta = plain_world(users=6, items=7)
    one = prepared(tmp_path / "one", reviews, meta)
    other = prepared(tmp_path / "other", reviews[::-1], meta[::-1])
    for name in ("reviews.parquet", "items.parquet"):
        assert one.spec.with_name(name).read_bytes() == other.spec.with_name(name).read_bytes()


@pytest.mark.skipif(not FOLDER, reason="DEP_BENCH_IMDB names no folder of movie reviews")
def test_counts_of_the_public_pipeline(tmp_path: Path) -> None:
    """Movie reviews as raw lines; categories and rating counts, which they do not have, are taken as given."""
    import pyarrow.parquet as pq

    lines = [
        {**row, "parent_asin": row["item_id"], "asin": "", "images": []}
        for row in pq.read_table(f"{FOLDER}/reviews.parquet").to_pylist()
    ]
    items = [
        meta_line(row["item_id"], ["Product Description", row["description"] or ""], title=row["title"])
        for row in pq.read_table(f"{FOLDER}/items.parquet").to_pylist()
    ]
    files = write_lines(tmp_path / "r.jsonl.gz", lines), write_lines(tmp_path / "meta.jsonl", items)
    done = prepare(*files, tmp_path / "imdb")
    assert done.counts["source"]["reviews"] == 47_824, "this is another set of movie reviews"
    assert done.counts["targets"] == {"train": 6208, "val": 776, "test": 776}
    assert (done.counts["profiles"]["users"], done.counts["profiles"]["items"]) == (776, 543)
    dataset = loaded(done)
    assert (len(dataset.train), len(dataset.dev), len(dataset.test)) == (6208, 776, 776)
    source = f'[source]\nkind = "parquet"\nreviews = "{FOLDER}/reviews.parquet"\nitems = "{FOLDER}/items.parquet"\n'
    (tmp_path / "direct.toml").write_text(source)
    assert dataset.fingerprint == build(load_spec(tmp_path / "direct.toml")).fingerprint


PIECES = [
    "a",
    "b c",
    " ",
    "  ",
    "\t",
    "\n",
    "\x00",
    "\ue000",
    "\ue001",
    "\u2003",
    "\x1c",
    "\x85",
    "\u200b",
    "\U0001f600",
]


def test_clean_text_in_the_database_is_clean_text(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [*TITLES, *TEXTS, *("".join(random.choice(PIECES, size)) for size in random.integers(0, 12, 3000))]
    texts += [f"x{char}y{char}{char}z{char}" for char in map(chr, range(0x3100)) if not 0xD800 <= ord(char) < 0xE000]
    known = [text for text in texts if text is not None]
    with connect(Limits("200MB", 1), tmp_path, "test") as database:
        database.give("given", {"number": np.arange(len(known)), "text": np.array(known, dtype=object)})
        sql = f"{clean('text')}, {says_something('text')}, {is_clean_id('text')}, length(text)"
        rows = database.run(f"SELECT {sql} FROM given ORDER BY number")
    expected = [(reference.clean(t), bool(reference.clean(t)), reference.is_clean_id(t), len(t)) for t in known]
    assert rows == expected


def edges_of(reviews: list[RawReview]) -> Edges:
    """The same reviews as numbers; items in order of their ids."""
    users, items, texts = (
        {key: n for n, key in enumerate(sorted(keys))}
        for keys in ({r.user_id for r in reviews}, {r.item_id for r in reviews}, {r.text for r in reviews})
    )
    return Edges(
        np.array([users[r.user_id] for r in reviews], dtype=np.int32),
        np.array([items[r.item_id] for r in reviews], dtype=np.int32),
        np.array([r.timestamp for r in reviews], dtype=np.int64),
        np.array([texts[r.text] for r in reviews], dtype=np.uint64),
    )


@given(worlds(), st.booleans(), st.integers(0, 2), st.integers(5, 8))
@settings(deadline=None)
def test_steps_over_numbers_equal_the_steps_over_reviews(
    tables: RawTables, spread: bool, least: int, most: int
) -> None:
    config = SMALL_FILTER.model_copy(update={"min_profile_reviews": least, "max_reviews_per_user": most})
    usable, _ = filters.usable_reviews(tables.reviews, filters.usable_items(tables.items, config), config)
    if not spread:  # many ties: all on one day
        usable = [replace(review, timestamp=1) for review in usable]
    edges = edges_of(usable)

    def ranks(index: np.ndarray) -> np.ndarray:
        event("ties")
        return np.array([sorted(r.text for r in usable).index(usable[n].text) for n in index.tolist()])

    def keys(chosen: list[RawReview]) -> list[tuple[str, str, int, str]]:
        return sorted((r.user_id, r.item_id, r.timestamp, r.text) for r in chosen)

    after = filters.newest(usable)
    mask = newest(edges, ranks)
    assert keys([usable[n] for n in np.flatnonzero(mask)]) == keys(after)
    assert edges.only(mask).tally() == tally(after)
    after = filters.dense(after, config)
    left = edges.only(mask)
    left = left.only(dense(left, config))
    assert left.tally() == tally(after)
    parts = filters.keep_profiles(filters.divide(after, 3), config)
    counted = tally([r for profile, _ in parts.values() for r in profile]) | {"users": len(parts)}
    assert profiles(left, 3, config) == counted
