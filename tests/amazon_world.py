"""Raw files in the layout of Amazon Reviews 2023, small and messy, and the same rows for the pipeline in memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bench.data.amazon import Prepared, prepare
from bench.data.duck import Limits
from bench.data.spec import load_spec
from bench.data.split import Dataset
from bench.data.split import prepare as build

DAY = 86_400_000
START = 1_500_000_000_000

SMALL = (
    "filter.min_text_chars=6",
    "filter.min_description_chars=4",
    "filter.max_description_chars=20",
    "filter.min_users_per_item=2",
    "filter.min_reviews_per_user=4",
    "filter.max_reviews_per_user=7",
    "filter.min_profile_users_per_item=2",
    "filter.min_profile_reviews=1",
    "split.train=1",
    'split.on_empty_history="keep"',
)

Row = dict[str, Any]


def review_line(user: str, item: str, day: int, text: str, rating: float | None = 4.0, title: Any = "title") -> Row:
    """A line of a review file."""
    return {
        "rating": rating,
        "title": title,
        "text": text,
        "images": [],
        "asin": f"{item}-red",
        "parent_asin": item,
        "user_id": user,
        "timestamp": START + day * DAY,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


def meta_line(item: str, description: Sequence[str | None] = ("a thing",), **changes: Any) -> Row:
    """A line of a meta file."""
    return {
        "main_category": "Books",
        "title": f"Item {item}",
        "average_rating": 4.5,
        "rating_number": 12,
        "features": [],
        "description": list(description),
        "price": None,
        "categories": ["Books", "Kettles"],
        "parent_asin": item,
        **changes,
    }


def plain_world(users: int = 4, items: int = 6) -> tuple[list[Row], list[Row]]:
    """Reviews of every user on every item, and the items."""
    reviews = [
        review_line(f"u{u}", f"i{i}", u + i, f"words of {u} about {i}") for u in range(users) for i in range(items)
    ]
    return reviews, [meta_line(f"i{i}") for i in range(items)]


TEXTS = [
    *(f"text number {n} on much" for n in range(20)),
    "same  text",
    " same\ttext",
    "same\u2003text\x1f",
    "sa\ue000me text",
    "same te\x00xt",
    "\U0001f600 same text \u00e9",
    "12345",
    "1234\U0001f600",
    "\u00a0\n \ue001  \x85 ",
    "",
    None,
]
TITLES = ["title", " title\n", "other", " ", "\u3000", "", None]
DESCRIPTIONS: list[list[str | None] | None] = [
    ["a thing"],
    ["Product Description", "a thing"],
    ["Product Description"],
    ["a", None, "", "b"],
    ["a thing with a description far too long"],
    ["  \n  "],
    [None],
    [],
    None,
]


@st.composite
def raw_worlds(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Few users, items and days: most pairs once or again, many ties in time and text, some rows unusable."""
    users, items = draw(st.integers(3, 5)), draw(st.integers(6, 9))
    days = st.sampled_from([0, 0, 1, 2, 3, 0.25, 4.5e-9])
    reviews = [
        review_line(f"u{u}", f"i{i}", draw(days), f"text of {u} on {i}") for u in range(users) for i in range(items)
    ]
    messy = st.builds(
        review_line,
        user=st.integers(0, users).map("u{}".format),
        item=st.integers(0, items + 1).map("i{}".format),
        day=days,
        text=st.sampled_from(TEXTS),
        rating=st.sampled_from([None, 0.0, 1.0, 5]),
        title=st.sampled_from(TITLES),
    )
    reviews += draw(st.lists(messy, min_size=10, max_size=40))
    for row in draw(st.lists(st.sampled_from(reviews), max_size=6)):
        reviews.append({**row, "title": draw(st.sampled_from(TITLES)), "rating": draw(st.sampled_from([None, 1, 2.5]))})
    for row in draw(st.lists(st.sampled_from(reviews), max_size=2)):
        row["timestamp"] = draw(st.sampled_from([0, None]))
    for row in draw(st.lists(st.sampled_from(reviews), max_size=2)):
        row.pop(draw(st.sampled_from(["rating", "title"])), None)
    meta = [meta_line(f"i{i}") for i in range(items)]
    for row in draw(st.lists(st.sampled_from(meta), max_size=2)):
        row["description"] = draw(st.sampled_from(DESCRIPTIONS))
    for row in draw(st.lists(st.sampled_from(meta), max_size=1)):
        row |= draw(st.sampled_from([{"title": None}, {"title": " "}, {"categories": []}, {"rating_number": None}]))
    return draw(st.permutations(reviews)), draw(st.permutations(meta))


def write_lines(path: Path, rows: Sequence[Row | str], escape: bool = True) -> Path:
    """JSON Lines, compressed where the name says so."""
    lines = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=escape)) + "\n" for row in rows)
    data = lines.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def prepared(folder: Path, reviews: Sequence[Row | str], meta: Sequence[Row | str], *thresholds: str) -> Prepared:
    """Raw files under `folder`, prepared into `folder/out`."""
    files = write_lines(folder / "r.jsonl", reviews), write_lines(folder / "meta.jsonl.gz", meta, escape=False)
    return prepare(*files, folder / "out", "small", (*SMALL, *thresholds), Limits("500MB", 2))


def in_memory(folder: Path, reviews: Sequence[Row], meta: Sequence[Row], spec: Path) -> Dataset:
    """The same rows through the construction in memory, with the thresholds of a spec that was written.

    That pipeline is told nothing of categories and rating counts: without them, an item loses its description here.
    """
    told = [
        row if row.get("categories") and row.get("rating_number") is not None else row | {"description": []}
        for row in meta
    ]
    write_lines(folder / "plain.jsonl", reviews)
    write_lines(folder / "told.jsonl", told)
    head, _, thresholds = spec.read_text().partition("[filter]")
    assert head
    source = '[source]\nkind = "jsonl"\nreviews = "plain.jsonl"\nitems = "told.jsonl"\n'
    columns = '[source.columns]\nitem_id = "parent_asin"\n[source.item_columns]\nitem_id = "parent_asin"\n'
    (folder / "plain.toml").write_text(f"{source}{columns}[filter]{thresholds}")
    return build(load_spec(folder / "plain.toml"))


def loaded(done: Prepared) -> Dataset:
    """What a run would use."""
    return build(load_spec(done.spec))
