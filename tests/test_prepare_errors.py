"""Preparing raw files: what cannot be used is told in one line, and nothing half made is ever taken for whole."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from amazon_world import SMALL, Row, loaded, meta_line, plain_world, prepared, review_line, write_lines
from cli_world import call

from bench.data import amazon_stages, duck
from bench.data.amazon import prepare
from bench.data.duck import Limits, connect
from bench.errors import DataError, UsageError

duckdb = pytest.importorskip("duckdb")

THRESHOLDS = [part for value in SMALL for part in ("--set", value)]


def command(folder: Path, *more: str, reviews: str = "r.jsonl", meta: str = "meta.jsonl") -> list[str | Path]:
    """The command line for the raw files of a folder."""
    files: list[str | Path] = ["--reviews", folder / reviews, "--meta", folder / meta, "--out", folder / "out"]
    return ["prepare", "amazon2023", *files, *THRESHOLDS, "--memory-limit", "500MB", "--threads", "2", *more]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with raw files that can be prepared."""
    reviews, meta = plain_world()
    write_lines(tmp_path / "r.jsonl", reviews)
    write_lines(tmp_path / "meta.jsonl", meta)
    return tmp_path


def told(
    folder: Path, capsys: pytest.CaptureFixture[str], *more: str, reviews: str = "r.jsonl", meta: str = "meta.jsonl"
) -> str:
    """The one line that ends a command with code 2, which leaves nothing that looks complete."""
    code, out, err = call(command(folder, *more, reviews=reviews, meta=meta), capsys)
    assert (code, out) == (2, "")
    assert not (folder / "out" / "prepare.json").exists()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0])
    return lines[0]


def test_the_command_says_what_was_left_and_how_to_go_on(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(command(raw, "--name", "Kettles"), capsys)
    assert code == 0, err
    assert "Kettles.toml; look: python -m bench run" in out
    assert "targets: train 4, val 4, test 4" in out
    dry = ["run", "--methods", "nonperso", "--engine", "fake", "--dry-run", "--dataset", raw / "out" / "Kettles.toml"]
    code, out, err = call(dry, capsys)
    assert code == 0, err
    assert "words of 0 about" not in out.partition("Item i")[0]


def test_a_file_that_is_not_there(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.jsonl does not exist; set --reviews" in told(raw, capsys, reviews="nowhere.jsonl")
    assert "is a folder, not a file; set --meta" in told(raw, capsys, meta=".")


def test_a_folder_that_cannot_be_written(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "out").write_text("a file")
    code, _, err = call(command(raw), capsys)
    assert code == 2
    assert "cannot write under" in err
    (raw / "out").unlink()
    (raw / "out").mkdir(0o500)
    if not os.access(raw / "out", os.W_OK):  # root may write everywhere
        assert "cannot write under" in told(raw, capsys)


def test_a_folder_that_holds_something_else(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "out").mkdir()
    (raw / "out" / "thesis.tex").write_text("years of work")
    assert "is not empty (it holds 'thesis.tex'); choose a new folder" in told(raw, capsys)
    assert (raw / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("cut", "which"), [(20, "r"), (4, "meta")])
def test_a_gzip_file_that_is_cut_short(raw: Path, capsys: pytest.CaptureFixture[str], cut: int, which: str) -> None:
    reviews, meta = plain_world(users=4000, items=6) if which == "r" else (plain_world()[0], plain_world(1, 3000)[1])
    whole = gzip.compress((raw / write_lines(raw / "x", reviews if which == "r" else meta)).read_bytes())
    (raw / f"{which}.jsonl.gz").write_bytes(whole[:-cut])
    line = told(raw, capsys, **{"reviews" if which == "r" else "meta": f"{which}.jsonl.gz"})
    assert f"{which}.jsonl.gz is cut short or is no gzip file" in line
    assert "fetch it again" in line


def test_what_is_no_gzip_file(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(raw / "r.jsonl", raw / "r.jsonl.gz")
    assert "r.jsonl.gz cannot be read after line 0: Not a gzipped file" in told(raw, capsys, reviews="r.jsonl.gz")


def changed(change: Callable[[Row], Any]) -> Row:
    row = review_line("u", "i1", 3, "words on it")
    change(row)
    return row


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"rating": 5.0, "title"', "is not valid JSON"),
        ("[1, 2]", "holds list, not an object"),
        (changed(lambda row: row.pop("parent_asin")), "has no key 'parent_asin'; it has: rating, title"),
        (changed(lambda row: row.pop("text")), "has no key 'text'"),
        (changed(lambda row: row.pop("timestamp")), "has no key 'timestamp'"),
        (changed(lambda row: row.update(user_id=None)), "user_id = None is not an id"),
        (changed(lambda row: row.update(user_id=" ")), "user_id = ' ' is blank"),
        (changed(lambda row: row.update(parent_asin="\ue000")), "is blank or holds a character"),
        (changed(lambda row: row.update(timestamp=1_500_000_000)), "set timestamp_unit"),
        (changed(lambda row: row.update(rating=[1])), "rating = [1] is not a number"),
    ],
)
@pytest.mark.parametrize("place", [3, 1700])
def test_a_line_that_cannot_be_used_is_named(
    raw: Path, capsys: pytest.CaptureFixture[str], bad: Row | str, words: str, place: int
) -> None:
    """In the first thousand lines, which are looked at beforehand, and far behind them."""
    reviews: list[Row | str] = [*plain_world(users=300)[0]]
    write_lines(raw / "r.jsonl", [*reviews[:place], bad, *reviews[place:]])
    line = told(raw, capsys)
    assert f"r.jsonl, line {place + 1}" in line
    assert words in line


def test_a_null_is_no_missing_key(tmp_path: Path) -> None:
    reviews, meta = plain_world()
    nulls = [
        review_line("u0", "i1", 9, "words on it") | {key: None} for key in ("text", "timestamp", "rating", "title")
    ]
    left_out = prepared(tmp_path, [*reviews, *nulls], meta).counts["left_out"]
    assert left_out == {"item": 0, "text": 1, "rating": 1, "title": 1, "timestamp": 1}


def test_keys_that_no_line_has(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviews, meta = plain_world()
    write_lines(raw / "bare.jsonl", [{key: row[key] for key in row if key != "rating_number"} for row in meta])
    assert "no line of" in (line := told(raw, capsys, meta="bare.jsonl"))
    assert "has a rating_number" in line
    write_lines(raw / "bare.jsonl", [{key: row[key] for key in row if key != "rating"} for row in reviews])
    shutil.rmtree(raw / "out")
    assert "has a rating; set filter.require_rating=false" in told(raw, capsys, reviews="bare.jsonl")


def test_the_two_files_swapped(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "meta.jsonl, line 1 has no key 'user_id'" in told(raw, capsys, reviews="meta.jsonl", meta="r.jsonl")


def test_files_of_two_categories(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(raw / "meta.jsonl", [meta_line(f"other{n}") for n in range(6)])
    line = told(raw, capsys)
    assert "none of the 24 reviews" in line
    assert "give the two files of one category" in line


def test_an_item_that_stands_twice(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(raw / "meta.jsonl", [*plain_world()[1], meta_line("i3")])
    assert "the parent_asin 'i3' stands twice" in told(raw, capsys)


def test_empty_files(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / "r.jsonl").write_text("\n\n")
    assert "r.jsonl is empty" in told(raw, capsys)


def test_thresholds_that_leave_nothing_name_the_step(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'usable'" in told(raw, capsys, "--set", "filter.min_text_chars=999")
    shutil.rmtree(raw / "out")
    assert "min_users_per_item = 5" in told(raw, capsys, "--set", "filter.min_users_per_item=5")


def test_slips_in_thresholds_and_names(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'filter'" in told(raw, capsys, "--set", "filters.min_text_chars=9")
    assert "did you mean 'min_text_chars'" in told(raw, capsys, "--set", "filter.min_txt_chars=9")
    assert "fewer than the 10 targets" in told(raw, capsys, "--set", "split.train=8")
    assert "is no name for a dataset" in told(raw, capsys, "--name", "a name")
    assert not (raw / "out").exists()
    assert "DuckDB takes no memory limit 'plenty'" in told(raw, capsys, "--memory-limit", "plenty")


def test_without_duckdb_the_command_to_install_it(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"run: pip install 'dep-bench\[prepare\]'"):
        prepare(raw / "r.jsonl", raw / "meta.jsonl", raw / "out")


def test_an_old_duckdb_is_not_trusted_with_a_file_that_is_cut_short(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb, "__version__", "1.4.5")
    with pytest.raises(UsageError, match=r"DuckDB 2 or later, not 1.4.5; run: pip install 'dep-bench\[prepare\]'"):
        prepare(raw / "r.jsonl", raw / "meta.jsonl", raw / "out")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where tests run in the background of a shell, SIGINT is ignored, and nothing could interrupt them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_statement_as_it_ends_anything(tmp_path: Path) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    with connect(Limits("200MB", 1), tmp_path, "test") as database:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            database.run("SELECT sum(hash(i)) FROM range(20000000000) t(i)")  # a minute, if nothing ends it


def test_memory_and_disk_that_do_not_suffice(tmp_path: Path) -> None:
    large = "CREATE TEMP TABLE z AS SELECT i, md5(i::VARCHAR) AS m FROM range(2000000) t(i)"
    with connect(Limits("40MB", 1), tmp_path / "tmp", "test") as database:
        database.run("SET max_temp_directory_size = '1MB'")
        with pytest.raises(UsageError, match=r"the disk is full; free some space"):
            database.run(large)
    if Path("/dev/full").exists():
        with connect(Limits("200MB", 1), tmp_path / "tmp", "test") as database:
            with pytest.raises(UsageError, match=r"the disk is full"):
                database.copy("SELECT i FROM range(100000) t(i)", Path("/dev/full"))

            def starve() -> None:
                database.run("SET memory_limit = '1KB'")  # refused itself, if too much is in use
                database.run(large)

            with pytest.raises(UsageError, match=r"raise --memory-limit"):
                starve()


def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path) -> None:
    """On a file system of half a megabyte, where the machine lets us make one."""
    small = tmp_path / "small"
    small.mkdir()
    files = (
        write_lines(tmp_path / "r.jsonl", plain_world(60, 60)[0]),
        write_lines(tmp_path / "m.jsonl", plain_world(1, 60)[1]),
    )
    bench = [
        sys.executable,
        "-m",
        "bench",
        "prepare",
        "amazon2023",
        "--reviews",
        str(files[0]),
        "--meta",
        str(files[1]),
    ]
    bench += ["--out", str(small / "out"), "--threads", "1", *THRESHOLDS, "--set", "filter.max_reviews_per_user=100"]
    script = 'mount -t tmpfs -o size=512k tmpfs "$0" && head -c 500000 /dev/zero > "$0/ballast" || exit 77; "$@"; '
    script += 'echo "code $?"; ls "$0/out"; rm "$0/ballast"; "$@"; echo "code $?"; ls "$0/out"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, str(small), *bench], capture_output=True, text=True, timeout=300
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "code" not in done.stdout:
        pytest.skip(f"no file system of our own here: {done.stderr[-200:]}")
    first, second = done.stdout.split("code ")[1:]
    assert first.startswith("2\n"), done.stderr
    assert "prepare.json" not in first
    assert "full" in done.stderr or "No space left" in done.stderr
    assert second.startswith("0\n"), done.stderr
    assert "prepare.json" in second


class Killed(BaseException):
    """What ends a process without a chance to tidy up."""


def stages_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of stages, as they are made from now on."""
    made: list[str] = []
    for name in amazon_stages.STAGES:
        real = getattr(amazon_stages.Job, f"_{name}")

        def recorded(self: Any, *given: Any, name: str = name, real: Any = real) -> Any:
            made.append(name)
            return real(self, *given)

        monkeypatch.setattr(amazon_stages.Job, f"_{name}", recorded)
    return made


@pytest.mark.parametrize("victim", range(len(amazon_stages.STAGES)))
def test_a_killed_preparation_goes_on_from_its_last_whole_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    world = plain_world()
    undisturbed = prepared(tmp_path / "undisturbed", *world)
    files = write_lines(tmp_path / "r.jsonl", world[0]), write_lines(tmp_path / "meta.jsonl", world[1])
    name = f"_{amazon_stages.STAGES[victim]}"
    with monkeypatch.context() as patch:
        real = getattr(amazon_stages.Job, name)

        def half(self: Any, database: Any, folder: Path, counts: Any) -> Any:
            real(self, database, folder, counts)
            for file in folder.iterdir():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            raise Killed

        patch.setattr(amazon_stages.Job, name, half)
        with pytest.raises(Killed):
            prepare(*files, tmp_path / "out", "small", SMALL)
    assert not (tmp_path / "out" / "prepare.json").exists()
    made = stages_made(monkeypatch)
    done = prepare(*files, tmp_path / "out", "small", SMALL)
    assert made == list(amazon_stages.STAGES[victim:])
    assert done.fresh
    assert done.counts == undisturbed.counts
    for file in ("reviews.parquet", "items.parquet"):
        assert done.spec.with_name(file).read_bytes() == undisturbed.spec.with_name(file).read_bytes()
    assert loaded(done).fingerprint == loaded(undisturbed).fingerprint


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_killed_while_the_result_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    from bench.data import staged

    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    steps = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any) -> Any:
            nonlocal steps
            if "final" in str(given[0]) or Path(given[0]).name in ("small.toml", "prepare.json"):
                steps += 1
                if steps > moved:
                    raise Killed
            return real(*given)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(staged.os, "replace", counted(os.replace))
        patch.setattr(staged, "write_atomic", counted(staged.write_atomic))
        with pytest.raises(Killed):
            prepare(*files, tmp_path / "out", "small", SMALL)
    assert not (tmp_path / "out" / "prepare.json").exists()
    made = stages_made(monkeypatch)
    done = prepare(*files, tmp_path / "out", "small", SMALL)
    assert made == []
    assert loaded(done).fingerprint == loaded(prepared(tmp_path / "undisturbed", *plain_world())).fingerprint
    assert not (tmp_path / "out" / ".work").exists()


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    first = prepare(*files, tmp_path / "out", "small", SMALL)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir() if file.name != ".lock"}
    made = stages_made(monkeypatch)
    again = prepare(*files, tmp_path / "out", "small", SMALL)
    assert (made, again.fresh, again.counts) == ([], False, json.loads(json.dumps(first.counts)))
    assert "already complete, left as it is" in again.as_text()
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir() if f.name != ".lock"} == before


def test_a_folder_of_other_thresholds_or_inputs(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    prepare(*files, tmp_path / "out", "small", SMALL)
    with pytest.raises(UsageError, match=r"filter.min_text_chars: 6 there, 5 now.*choose another --out, or delete"):
        prepare(*files, tmp_path / "out", "small", (*SMALL, "filter.min_text_chars=5"))
    write_lines(files[0], [*plain_world()[0], review_line("u9", "i1", 1, "words")])
    with pytest.raises(UsageError, match=r"reviews.bytes: \d+ there, \d+ now"):
        prepare(*files, tmp_path / "out", "small", SMALL)


def test_unfinished_work_of_other_thresholds_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    with pytest.raises(DataError, match="is empty after step 'dense'"):
        prepare(*files, tmp_path / "out", "small", (*SMALL, "filter.min_users_per_item=9"))
    with pytest.raises(UsageError, match=r"holds unfinished work .*filter.min_users_per_item: 9 there, 2 now"):
        prepare(*files, tmp_path / "out", "small", SMALL)
    # Hashes of another version may be others.
    monkeypatch.setattr(duck, "version", lambda: "0.0.1")
    made = stages_made(monkeypatch)
    with pytest.raises(DataError, match="is empty after step 'dense'"):
        prepare(*files, tmp_path / "out", "small", (*SMALL, "filter.min_users_per_item=9"))
    assert made == ["items", "reviews", "edges", "kept"]


def test_a_file_that_was_changed_afterwards_is_told(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    done = prepare(*files, tmp_path / "out", "small", SMALL)
    done.spec.write_text(done.spec.read_text().replace("min_text_chars = 6", "min_text_chars = 7"))
    with pytest.raises(UsageError, match=r"small.toml is not the file that was written"):
        prepare(*files, tmp_path / "out", "small", SMALL)


def test_two_at_once(tmp_path: Path) -> None:
    from filelock import FileLock

    files = [write_lines(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate(plain_world())]
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UsageError, match="another process is preparing"):
        prepare(*files, tmp_path / "out", "small", SMALL)
