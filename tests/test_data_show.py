"""`data show`: the numbers are those of the data, the verdict decides the exit code, pictures are pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from cli_world import call, review_rows, write_world
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.overview import Distribution, overview
from bench.data.spec import load_spec
from bench.data.split import prepare

SMALL = ("--set", "planted.users=12", "--set", "planted.items=20")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=40)
    | st.lists(st.integers(-3, 10**6), max_size=60)
    | st.lists(st.floats(0, 5), max_size=40)
)
def test_bars_count_every_value_once_and_shares_are_those_of_numpy(values: list[float]) -> None:
    one = Distribution("x", "x", tuple(sorted(values)))
    assert sum(count for _, count in one.bars()) == len(values)
    told = one.told()
    if values:
        for name, share in (("min", 0), ("median", 50), ("p90", 90), ("max", 100)):
            assert told[name] == np.percentile(values, share, method="inverted_cdf")
    assert len(one.bars()) <= 13


def test_bars_are_of_the_values_that_they_name() -> None:
    one = Distribution("x", "x", tuple(range(100)))
    assert one.bars() == [(f"{n} to {n + 9}", 10) for n in range(0, 90, 10)] + [("90 and more", 10)]
    few = Distribution("x", "x", (1.0, 2.0, 2.0, 4.5))
    assert few.bars() == [("1", 1), ("2", 2), ("4.5", 1)]


def test_an_overview_has_the_numbers_of_the_data(tmp_path: Path) -> None:
    dataset = prepare(load_spec(write_world(tmp_path)))  # three users on six items, a day apart, a target in each split
    told = overview(dataset).as_object()
    assert told["splits"] == {name: {"users": 3, "examples": 3} for name in ("train", "validation", "test")}
    assert told["population"] == {"users": 3, "items": 4, "documents": 12}
    spread = told["distributions"]
    assert spread["history"]["histogram"] == [["3", 3], ["4", 3], ["5", 3]]
    # Of item 3 the users wrote within milliseconds, in order; of items 4 and 5 nothing is open to others.
    assert spread["peers"]["histogram"] == [["0", 7], ["1", 1], ["2", 1]]
    assert spread["rating"]["histogram"] == [["4", 12]]
    lengths = [len(row["text"]) for row in review_rows()]
    assert spread["document_chars"]["min"] == spread["document_chars"]["max"] == lengths[0]
    assert told["steps"]["source"] == {"users": 3, "items": 6, "reviews": 18}


def test_a_clean_dataset_is_shown_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(["data", "show", "planted", *SMALL], capsys)
    assert (code, err) == (0, "")
    assert "no leaks: 120 targets" in out
    assert all(words in out for words in ("source", "12 users", "reviews before a target: min", "#####", "Rating of"))


def leaking(folder: Path) -> Path:
    """What one user writes last, word for word, is what another wrote first."""
    rows = review_rows()
    rows[5]["text"] = rows[6]["text"]
    return write_world(folder, rows)


def test_leaks_end_with_one_and_bad_input_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = leaking(tmp_path)
    code, out, _ = call(["data", "show", spec], capsys)
    assert code == 1
    assert "LEAKS: " in out
    assert "reference within reach: 1, of 1 targets" in out
    assert "test u0/i5 <- u1/i0: another user's open document, its text, similarity 1.00" in out
    code, out, _ = call(["data", "show", spec, "--audit", "none"], capsys)
    assert (code, "LEAKS" in out) == (0, False)
    for arguments, said in (
        ((tmp_path / "no.toml",), "does not exist"),
        ((spec, "--near", "0"), "give more than 0"),
        ((spec, "--set", "planted.users=3"), "unknown part of this dataset in --set 'planted'"),
    ):
        code, out, err = call(["data", "show", *arguments], capsys)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert said in err
        assert err.count("\n") == 1


def test_everything_is_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["data", "show", leaking(tmp_path), "--json"], capsys)
    told = json.loads(out)
    assert code == 1
    assert told["audit"]["leaks"] == len(told["audit"]["findings"]) == sum(told["audit"]["counts"].values())
    assert {
        "kind": "reference within reach",
        "split": "test",
        "example": "u0/i5",
        "document": "u1/i0",
        "where": "another user's open document, its text",
        "similarity": 1.0,
    } in told["audit"]["findings"]
    code, out, _ = call(["data", "show", leaking(tmp_path), "--json", "--audit", "none"], capsys)
    assert (code, "audit" in json.loads(out)) == (0, False)


def test_a_short_verdict_says_how_to_see_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_world(tmp_path)  # all texts are nearly the same
    few, all_ = (call(["data", "show", spec, *more], capsys)[1] for more in ((), ("--audit", "full")))
    count = all_.count(" <- ")
    assert few.count(" <- ") == 3
    assert f"... and {count - 3} more: --audit full" in few
    assert f"LEAKS: {count} findings" in few


def test_pictures_are_png_and_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["data", "show", write_world(tmp_path), "--audit", "none", "--plots"]
    code, out, _ = call([*arguments, tmp_path / "a" / "b"], capsys)
    assert code == 0
    names = {"history", "peers", "target_chars", "document_chars", "rating"}
    made = {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()}
    assert set(made) == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert f"{len(made)} pictures in" in out
    for name, content in made.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
    call([*arguments, tmp_path / "again"], capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == made


def test_without_matplotlib_the_command_that_installs_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call(["data", "show", "planted", "--plots", tmp_path], capsys)
    assert (code, out) == (2, "")
    assert "pip install 'dep-bench[plots]'" in err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    code, _, err = call(
        ["data", "show", write_world(tmp_path), "--audit", "none", "--plots", tmp_path / "file"], capsys
    )
    assert code == 2
    assert "the plots cannot be written to" in err
