"""CSV files: the same tables as from JSON Lines, and errors that name file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_world import START, item_rows, json_lines, review_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.data.spec import load_spec
from bench.data.tables import RawTables
from bench.errors import DataError, UsageError


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def load(folder: Path, kind: str, suffix: str, more: str = "") -> RawTables:
    spec = folder / f"{kind}.toml"
    files = f'reviews = "reviews.{suffix}"\nitems = "items.{suffix}"\n'
    spec.write_text(f'[source]\nkind = "{kind}"\n{files}{more}')
    loaded = load_spec(str(spec)).source.load()
    assert isinstance(loaded, RawTables)
    return loaded


def write(folder: Path, reviews: str | bytes, items: str | None = None) -> None:
    (folder / "reviews.csv").write_bytes(reviews.encode() if isinstance(reviews, str) else reviews)
    (folder / "items.csv").write_text(as_csv(item_rows(2)) if items is None else items)


HEAD = "user_id,item_id,rating,title,text,timestamp\n"
ROW = f"u,i0,4,t,words,{START}\n"

VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
REVIEW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u", "ü;1", '"q"', "7"]),
        "item_id": st.sampled_from(["i0", "i1"]),
        "rating": st.none() | st.integers(1, 5) | st.floats(0, 5),
        "title": VALUE,
        "text": VALUE,
        "timestamp": st.integers(START, START + 10**11),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(REVIEW, min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]))
def test_the_same_tables_as_from_json_lines(tmp_path: Path, rows: list[dict[str, Any]], delimiter: str) -> None:
    (tmp_path / "reviews.jsonl").write_text(json_lines(rows))
    (tmp_path / "items.jsonl").write_text(json_lines(item_rows(2)))
    for name, table in (("reviews", rows), ("items", item_rows(2))):
        (tmp_path / f"{name}.csv").write_text(as_csv(table, delimiter), newline="")
    told = load(tmp_path, "csv", "csv", f"delimiter = {json.dumps(delimiter)}\n")
    assert told == load(tmp_path, "jsonl", "jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_compressed_and_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    rows = [{**row, "title": "süß"} for row in review_rows(1, 2)]
    for name, table in (("reviews", rows), ("items", item_rows(2))):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(as_csv(table).encode(encoding)))
    named = "utf-8" if encoding == "utf-8-sig" else encoding
    loaded = load(tmp_path, "csv", "csv.gz", f'encoding = "{named}"\n')
    assert [review.title for review in loaded.reviews] == ["süß"] * 2
    assert sorted(loaded.items) == ["i0", "i1"]


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("1500000000000", 1_500_000_000_000),
        ("1.5e12", 1_500_000_000_000),
        ("2017-07-14", 1_499_990_400_000),
        ("2017-07-14T02:40:00", 1_500_000_000_000),
        ("2017-07-14 04:40:00+02:00", 1_500_000_000_000),
        ("2017-07-14T02:40:00Z", 1_500_000_000_000),
        ("", 0),
    ],
)
def test_times_are_numbers_or_dates(tmp_path: Path, written: str, moment: int) -> None:
    write(tmp_path, HEAD + f"u,i0,,t,words,{written}\n")
    (review,) = load(tmp_path, "csv", "csv").reviews
    assert review.timestamp == moment
    assert review.rating is None


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, f"user_id,item_id,text,timestamp\nu,i0,words,{START}\n\n")
    (review,) = load(tmp_path, "csv", "csv", "columns = { rating = '', title = '' }\n").reviews
    assert (review.rating, review.title, review.text) == (None, "", "words")
    with pytest.raises(DataError, match=r"reviews\.csv has no column 'rating' .* set source\.columns\.rating"):
        load(tmp_path, "csv", "csv")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (HEAD + ROW + "u,i1,four,t,words,1\n", ["line 3: rating = 'four' is not a number"]),
        (HEAD + 'u,i0,4,t,"two\nlines",1500000000000\nu,i1,nan,t,w,1\n', ["line 4: rating", "not finite"]),
        (HEAD + "u,i0,4,t,words,soon\n", ["line 2: timestamp = 'soon' is neither a number nor a date"]),
        (HEAD + "u,i0,4,t,words,1500000000\n", ["line 2: timestamp", "set timestamp_unit = 's'"]),
        (HEAD + " ,i0,4,t,words,1\n", ["line 2: user_id = ' ' is blank"]),
        (HEAD + ROW + "u,i1,4,t,one, two,1\n", ["line 3 has 7 values, not 6 as there are columns", "in quotes"]),
        (HEAD + ROW + 'u,i1,4,t,"never closed,1\n', ["line 3: not valid CSV"]),
        (HEAD + ROW + 'u,i1,4,t,"so "bad" it is",1\n', ["line 3: not valid CSV"]),
        ("", ["has no first line"]),
        ("user_id;item_id;text\n", ["one column", 'set source.delimiter = ";"']),
        (HEAD.replace("title", "text"), ["2 columns 'text'"]),
        (HEAD.encode() + ROW.encode() + b"u,i1,4,t,caf\xe9,1\n", ["is not utf-8 after line", "set source.encoding"]),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        load(tmp_path, "csv", "csv")
    assert "\n" not in str(caught.value)
    assert "reviews.csv" in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_long_text_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path, HEAD + f"u,i0,4,t,{'word ' * 60_000},{START}\n")
    assert len(load(tmp_path, "csv", "csv").reviews[0].text) == 300_000


def test_files_and_options_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.csv does not exist; set source\.items"):
        load(tmp_path, "csv", "csv")
    write(tmp_path, HEAD + ROW)
    with pytest.raises(UsageError, match=r"source\.encoding = 'utf-9' is not valid: no such encoding"):
        load(tmp_path, "csv", "csv", 'encoding = "utf-9"\n')
    with pytest.raises(UsageError, match=r"source\.delimiter = '::'"):
        load(tmp_path, "csv", "csv", 'delimiter = "::"\n')
    (tmp_path / "items.csv").write_text("item_id,title,description\ni0,a,b\ni0,c,d\n")
    with pytest.raises(DataError, match=r"items\.csv, line 3: the item id 'i0' stands twice"):
        load(tmp_path, "csv", "csv")
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(b"item_id,title,description\n")[:-9])
    (tmp_path / "reviews.csv.gz").write_bytes(gzip.compress((HEAD + ROW).encode()))
    with pytest.raises(DataError, match=r"items\.csv\.gz cannot be read after line"):
        load(tmp_path, "csv", "csv.gz")
