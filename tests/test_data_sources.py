"""Parquet, JSON Lines and the published sets: what they give, and one clear line for what cannot be used."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_worlds import SMALL_FILTER, SMALL_SPLIT, memory_spec, random_world

from bench.data.filters import select
from bench.data.ready import ReadySplit, Role
from bench.data.spec import DatasetSpec, load_spec
from bench.data.split import prepare
from bench.data.tables import RawTables
from bench.errors import DataError

TIME = 1_500_000_000_000
Rows = list[dict[str, Any]]


def review(number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {"user_id": f"u{number}", "item_id": "a", "rating": 4.0, "title": "T", "text": "some text", "timestamp": TIME}
    return row | changes


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"item_id": name, "title": name.upper(), "description": "a thing"} | changes


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {"parquet": write_parquet, "jsonl": write_jsonl}


def spec_over(folder: Path, kind: str, reviews: Rows, items: Rows | None = None, more: str = "") -> DatasetSpec:
    WRITERS[kind](folder / "reviews", reviews)
    WRITERS[kind](folder / "items", items if items is not None else [item("a"), item("b")])
    text = f'[source]\nkind = "{kind}"\nreviews = "reviews"\nitems = "items"\n{more}'
    (folder / "spec.toml").write_text(text)
    return load_spec(str(folder / "spec.toml"))


def load(*args: Any, **kwargs: Any) -> RawTables:
    loaded = spec_over(*args, **kwargs).source.load()
    assert isinstance(loaded, RawTables)
    return loaded


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_come_as_they_stand(tmp_path: Path, kind: str) -> None:
    rows = [review(0, text=" two\n words "), review(1, rating=None, title=None), review(2, rating=None)]
    rows[2] |= {"item_id": "b", "timestamp": None}
    tables = load(tmp_path, kind, rows)
    assert [r.row for r in tables.reviews] == [0, 1, 2]
    assert [r.rating for r in tables.reviews] == [4.0, None, None]
    assert [r.title for r in tables.reviews] == ["T", "", "T"]
    assert [r.timestamp for r in tables.reviews] == [TIME, TIME, 0]
    assert tables.reviews[0].text == " two\n words "
    assert sorted(tables.items) == ["a", "b"]
    assert tables.items["b"].title == "B"
    assert tables.truth is None


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_are_mapped_and_numbers_become_ids(tmp_path: Path, kind: str) -> None:
    rows = [{"who": 7, "what": 12, "stars": 3, "body": "x", "when": TIME // 1000}]
    items = [{"what": 12, "name": "N", "about": ["Product Description", "one", "two"], "kinds": ["x", "y"]}]
    more = 'timestamp_unit = "s"\n[source.columns]\nuser_id = "who"\nitem_id = "what"\nrating = "stars"\ntitle = ""\n'
    more += 'text = "body"\ntimestamp = "when"\n[source.item_columns]\nitem_id = "what"\ntitle = "name"\n'
    more += 'description = "about"\ncategory = "kinds"\n'
    tables = load(tmp_path, kind, rows, items, more)
    [one] = tables.reviews
    assert (one.user_id, one.item_id, one.rating, one.title, one.text, one.timestamp) == ("7", "12", 3.0, "", "x", TIME)
    assert tables.items["12"].description == "one two"
    assert tables.items["12"].category == "x y"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"rating": float("inf")}, ["rating = inf", "not finite"]),
        ({"rating": float("-inf")}, ["rating = -inf", "not finite"]),
        ({"text": 12}, ["text = 12", "not text"]),
        ({"title": 3.5}, ["title = 3.5", "not text"]),
        ({"user_id": ""}, ["user_id = ''", "blank"]),
        ({"user_id": None}, ["user_id = None", "not an id"]),
        ({"item_id": "a\ue000"}, ["item_id = 'a\\ue000'"]),
        ({"item_id": 1.5}, ["item_id = 1.5", "not an id"]),
        ({"timestamp": -5}, ["timestamp = -5", "no time"]),
        ({"timestamp": TIME // 1000}, [f"timestamp = {TIME // 1000}", "timestamp_unit = 's'"]),
        ({"timestamp": TIME * 1000}, [f"timestamp = {TIME * 1000}", "no time"]),
        ({"timestamp": float("inf")}, ["timestamp = inf", "not a time"]),
        ({"timestamp": float(10**30)}, ["timestamp = 1e+30", "no time"]),
        ({"timestamp": "2016"}, ["timestamp = '2016'", "not a time"]),
    ],
)
def test_a_value_that_cannot_be_used(tmp_path: Path, kind: str, changes: dict[str, Any], parts: list[str]) -> None:
    one_type = kind == "jsonl" or "rating" in changes  # a Parquet column takes values of one type
    rows = [*(review(n) for n in range(3 if one_type else 0)), review(3, **changes)]
    found = refusal(tmp_path, kind, rows)
    where = f"row {len(rows) - 1}" if kind == "parquet" else f"line {len(rows)}"
    assert all(part in found for part in ["reviews", where, *parts]), found


@pytest.mark.parametrize("value", ["5", "five", [1], True])
def test_a_rating_that_is_no_number(tmp_path: Path, value: Any) -> None:
    found = refusal(tmp_path, "jsonl", [review(0), review(1, rating=value)])
    assert "line 2" in found
    assert "rating = " in found
    assert "not a number" in found


def test_a_rating_too_large_for_a_float(tmp_path: Path) -> None:
    assert "not finite" in refusal(tmp_path, "jsonl", [review(0, rating=10**400)])
    assert "not a time" in refusal(tmp_path, "jsonl", [review(0, timestamp=10**400)])


def test_milliseconds_taken_for_seconds(tmp_path: Path) -> None:
    found = refusal(tmp_path, "jsonl", [review()], more='timestamp_unit = "s"\n')
    assert "timestamp_unit = 'ms'" in found


def test_times_of_parquet_are_understood(tmp_path: Path) -> None:
    moment = datetime(2017, 7, 14, 2, 40, tzinfo=UTC)
    for value in (moment, moment.replace(tzinfo=None)):
        assert load(tmp_path, "parquet", [review(timestamp=value)]).reviews[0].timestamp == TIME


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_column_names_those_present(tmp_path: Path, kind: str) -> None:
    rows = [{"user": "u", "item_id": "a", "rating": 1.0, "title": "T", "text": "x", "timestamp": TIME}]
    found = refusal(tmp_path, kind, rows)
    assert "'user_id'" in found
    assert "user, item_id, rating, title, text, timestamp" in found
    without = [{key: value for key, value in review(n).items() if key != "rating"} for n in range(3)]
    found = refusal(tmp_path, kind, without)
    assert "'rating'" in found
    assert "source.columns.rating" in found
    found = refusal(tmp_path, kind, [review()], [{"item_id": "a", "title": "A"}])
    assert "'description'" in found
    assert "source.item_columns.description" in found


def test_a_key_absent_from_one_line_is_a_missing_value(tmp_path: Path) -> None:
    without = review(1)
    del without["rating"], without["title"]
    tables = load(tmp_path, "jsonl", [review(0), without])
    assert tables.reviews[1].rating is None
    assert tables.reviews[1].title == ""
    without = review(1)
    del without["text"]
    assert "line 2 has no key 'text'" in refusal(tmp_path, "jsonl", [review(0), without])


@pytest.mark.parametrize("kind", WRITERS)
def test_an_item_id_that_stands_twice(tmp_path: Path, kind: str) -> None:
    found = refusal(tmp_path, kind, [review()], [item("a"), item("b"), item("a")])
    assert "'a' stands twice" in found
    assert ("row 2" if kind == "parquet" else "line 3") in found


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    spec = spec_over(tmp_path, kind, [review()])
    (tmp_path / "reviews").unlink()
    with pytest.raises(DataError, match=r"reviews does not exist; set source\.reviews"):
        spec.source.load()
    (tmp_path / "reviews").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        spec.source.load()


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    spec = spec_over(tmp_path, "parquet", [review()])
    for content in (b"", b"PAR1 nonsense", (tmp_path / "items").read_bytes()[:-20]):
        (tmp_path / "reviews").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
            spec.source.load()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"user_id": "u", ', "not valid JSON"),
        (b"[1, 2]", "holds list"),
        (b'"text"', "holds str"),
        (b'{"user_id": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, part: str) -> None:
    spec = spec_over(tmp_path, "jsonl", [review(0)])
    with (tmp_path / "reviews").open("ab") as file:
        file.write(b"\n\n" + line + b"\n")  # blank lines count as lines, and are no rows
    with pytest.raises(DataError, match="reviews, line 4") as caught:
        spec.source.load()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_lines(tmp_path: Path) -> None:
    spec = spec_over(tmp_path, "jsonl", [review(n) for n in range(50)])
    plain = spec.source.load()
    packed = gzip.compress((tmp_path / "reviews").read_bytes())
    (tmp_path / "reviews.gz").write_bytes(packed)
    (tmp_path / "spec.toml").write_text((tmp_path / "spec.toml").read_text().replace('"reviews"', '"reviews.gz"'))
    assert load_spec(str(tmp_path / "spec.toml")).source.load() == plain
    for broken in (packed[:-12], b"plain text", packed[:40] + b"\x00\x01\x02" + packed[43:]):
        (tmp_path / "reviews.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"reviews\.gz"):
            load_spec(str(tmp_path / "spec.toml")).source.load()


def test_lone_surrogates_and_byte_order_marks(tmp_path: Path) -> None:
    spec = spec_over(tmp_path, "jsonl", [review(0, text="a \ud800 b \U0001f600")])
    (tmp_path / "items").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "items").read_bytes())
    loaded = spec.source.load()
    assert isinstance(loaded, RawTables)
    assert loaded.reviews[0].text == "a \ud800 b \U0001f600"
    assert sorted(loaded.items) == ["a", "b"]


def test_both_kinds_give_the_same_dataset(tmp_path: Path) -> None:
    world = random_world(5)
    rows = [{name: getattr(r, name) for name in review()} for r in world.reviews]
    items = [{name: getattr(i, name) for name in item()} for i in world.items.values()]
    limits = "\n".join(f"{key} = {str(value).lower()}" for key, value in SMALL_FILTER.model_dump().items())
    split = "\n".join(f"{key} = {value!r}" for key, value in SMALL_SPLIT.model_dump().items())
    made = []
    for kind in WRITERS:
        (tmp_path / kind).mkdir()
        made.append(prepare(spec_over(tmp_path / kind, kind, rows, items, f"[filter]\n{limits}\n[split]\n{split}\n")))
    expected = prepare(memory_spec(world))
    assert {dataset.fingerprint for dataset in made} == {expected.fingerprint}
    assert {dataset.selection for dataset in made} == {expected.selection}


# ---- the published sets -------------------------------------------------------------------------------------------


def published(world: RawTables) -> tuple[dict[str, Rows], Rows]:
    """The rows of DPL-main by split, and of DPL-meta, as the construction would publish a world."""
    ready = select(world, SMALL_FILTER, SMALL_SPLIT, "world")

    def struct(r: Any) -> dict[str, Any]:
        return {"rating": r.rating, "title": r.title, "text": r.text, "asin": r.item_id, "timestamp": r.timestamp}

    main: dict[str, Rows] = {role.value: [] for role in Role}
    for target in ready.targets:
        profile = [struct(r) for r in target.history]
        row = {"user_id": target.review.user_id, "profile": profile, "data": struct(target.review)}
        main[target.role.value].append(row)
    meta = [{"asin": i.item_id, "title": i.title, "description": i.description} for i in ready.items.values()]
    return main, meta


def save(folder: Path, main: dict[str, Rows], meta: Rows, form: str = "saved") -> Path:
    for name, splits in (("DPL-main", main), ("DPL-meta", {"full": meta})):
        place = folder / name / "Books"
        if form == "saved":
            parts = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
            datasets.DatasetDict(parts).save_to_disk(str(place))
        else:
            place.mkdir(parents=True)
            for split, rows in splits.items():
                half = len(rows) // 2
                pq.write_table(pa.Table.from_pylist(rows[:half] or rows), place / f"{split}-00000-of-00002.parquet")
                pq.write_table(pa.Table.from_pylist(rows[half:]), place / f"{split}-00001-of-00002.parquet")
    spec = folder / "books.toml"
    spec.write_text('[source]\nkind = "hub"\ncategory = "Books"\npath = "."\n[split]\non_empty_history = "keep"\n')
    return spec


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_published_split_equals_the_one_it_was_made_from(tmp_path: Path, form: str) -> None:
    world = random_world(5)
    main, meta = published(world)
    dataset, expected = prepare(load_spec(str(save(tmp_path, main, meta, form)))), prepare(memory_spec(world))
    assert (dataset.train, dataset.dev, dataset.test) == (expected.train, expected.dev, expected.test)
    assert dataset.population.documents() == expected.population.documents()
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.counts["targets"] == expected.counts["targets"]


def test_published_texts_are_cleaned(tmp_path: Path) -> None:
    main, meta = published(random_world(5))
    main["test"][0]["data"]["text"] = " new\n\ue000 text\x00 "
    dataset = prepare(load_spec(str(save(tmp_path, main, meta))))
    assert "new text" in dataset.test.references.values()


@pytest.mark.parametrize("what", ["twice", "item", "content", "field", "column", "meta", "split", "infinite", "empty"])
def test_published_rows_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    main, meta = published(random_world(5))
    row = main["test"][-1]
    last = len(main["test"]) - 1
    expected = {
        "twice": "stands twice",
        "item": f"(Books, test), row {last}, data: the item 'nowhere' is not among the items",
        "content": "stands elsewhere with other content",
        "field": "has no field 'asin'; it has: rating, title, text, timestamp",
        "column": "SnowCharmQ/DPL-main (Books, train) has no column 'profile'; it has: user_id, data",
        "meta": f"row {len(meta)}: the item id {meta[0]['asin']!r} stands twice, with other content",
        "split": "holds no split 'test'",
        "infinite": f"(Books, test), row {last}, data: rating = inf is not finite",
        "empty": f"(Books, test), row {last}, data: the text is empty",
    }[what]
    if what == "twice":
        main["test"].append(row)
    elif what == "item":
        row["data"]["asin"] = "nowhere"
    elif what == "content":
        row["profile"][0]["text"] = "something else"
    elif what == "field":
        for rows in main.values():
            for one in rows:
                one["data"].pop("asin")
    elif what == "column":
        for one in main["train"]:
            one.pop("profile")
    elif what == "meta":
        meta.append(meta[0] | {"title": "another"})
    elif what == "split":
        main.pop("test")
    elif what == "infinite":
        row["data"]["rating"] = float("inf")
    else:
        row["data"]["text"] = " \n"
    with pytest.raises(DataError) as caught:
        prepare(load_spec(str(save(tmp_path, main, meta))))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_item_given_twice_alike_is_taken_once(tmp_path: Path) -> None:
    main, meta = published(random_world(5))
    dataset = prepare(load_spec(str(save(tmp_path, main, [*meta, meta[0]]))))
    assert dataset.fingerprint == prepare(memory_spec(random_world(5))).fingerprint


def test_the_hub_is_asked_as_documented_and_may_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    main, meta = published(random_world(5))
    answers: dict[str, Rows] = main | {"full": meta}

    def answer(name: str, category: str, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, category, split, revision))
        return datasets.Dataset.from_list(answers[split])

    (tmp_path / "books.toml").write_text('[source]\nkind = "hub"\ncategory = "Books"\nrevision = "abc"\n')
    spec = load_spec(str(tmp_path / "books.toml"))
    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert isinstance(spec.source.load(), ReadySplit)
    mine = [("SnowCharmQ/DPL-main", "Books", role.value, "abc") for role in Role]
    assert asked == [("SnowCharmQ/DPL-meta", "Books", "full", "abc"), *mine]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"DPL-meta \(Books, full\) cannot be fetched .*no route.*source\.path"
    ) as caught:
        spec.source.load()
    assert "\n" not in str(caught.value)
