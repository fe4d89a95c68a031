"""The run store: a crash at any byte, resumption, locks, policies, full disks, reading back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.files import read_rows, write_atomic
from bench.keys import digest
from bench.store import (
    MANIFEST,
    PLAN,
    RECORDS,
    TIMINGS,
    BatchTiming,
    Decision,
    Existing,
    RunFolder,
    StoredRun,
    check_writable,
    find_runs,
)

BATCHES = [["a", "b"], ["c"], ["d", "e", "f"]]
TEXTS = {"a": "plain", "b": "Grüße, 世界\u2028\r\n\tend", "c": "", "d": '{"x": "\\n"}', "e": "\x00\x7f", "f": "last"}


def description(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "tiny", "fingerprint": "f0", "selection": {"limit": 6}},
        "method": {"name": "echo", "version": "1", "config": {"n": 2}},
        "engine": {"name": "fake", "model": "none"},
        "seed": 0,
        **changes,
    }


def record(example: str) -> dict[str, Any]:
    return {"error": None, "example_id": example, "text": TEXTS.get(example, example)}


def timing(index: int, batch: Sequence[str], **changes: Any) -> BatchTiming:
    values: dict[str, Any] = {
        "prompt_tokens": 10 * len(batch),
        "output_tokens": 3 * len(batch),
        "prefill_seconds": 0.5,
        "decode_seconds": 0.25,
        "wall_seconds": 1.0,
        "peak_memory": 100 + index,
    }
    return BatchTiming(index, len(batch), **{**values, **changes})


def work(folder: RunFolder, batches: Sequence[Sequence[str]], stop: int | None = None) -> int:
    """Resumes and appends up to batch `stop`; returns where it began."""
    first = folder.resume(batches)
    for index in range(first, len(batches) if stop is None else stop):
        folder.append(index, [record(example) for example in batches[index]], timing(index, batches[index]))
    return first


def complete(out: Path, **changes: Any) -> StoredRun:
    with RunFolder(out, description(**changes)) as folder:
        folder.open(Existing.RESUME)
        work(folder, BATCHES)
        return folder.finish(provenance={"version": "0"}, totals={"embed_seconds": 2.0})


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the platter cannot be seen from here, and waiting for it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def whole(tmp_path: Path) -> StoredRun:
    return complete(tmp_path / "whole")


def test_layout_and_manifest(whole: StoredRun, tmp_path: Path) -> None:
    assert whole.path == tmp_path / "whole" / "tiny" / "echo" / digest(description())
    assert whole.manifest["counts"] == {"batches": 3, "examples": 6}
    assert whole.totals == {
        "examples": 6,
        "failed": 0,
        "prompt_tokens": 60,
        "output_tokens": 18,
        "prefill_seconds": 1.5,
        "decode_seconds": 0.75,
        "wall_seconds": 3.0,
        "embed_seconds": 2.0,
        "peak_memory": 102,
    }
    assert [dict(row) for row in whole.records] == [record(example) for example in "abcdef"]
    assert list(whole.timings()) == [timing(index, batch) for index, batch in enumerate(BATCHES)]
    assert whole.plan["description"] == whole.description == description()
    assert whole.key == whole.plan["key"] == whole.path.name
    lines = (whole.path / RECORDS).read_bytes()
    assert lines.count(b"\n") == 6
    assert lines.endswith(b"\n")


def test_failed_records_are_counted(tmp_path: Path) -> None:
    with RunFolder(tmp_path, description()) as folder:
        folder.open(Existing.RESUME)
        folder.resume([["a", "b"]])
        folder.append(0, [record("a"), {**record("b"), "error": "too long"}], timing(0, "ab"))
        assert folder.finish(provenance={}).totals["failed"] == 1


@pytest.mark.parametrize("name", [RECORDS, TIMINGS])
def test_a_cut_at_every_byte_resumes_to_the_same_bytes(whole: StoredRun, tmp_path: Path, name: str) -> None:
    expected = {file: (whole.path / file).read_bytes() for file in (RECORDS, TIMINGS)}
    ends = [0]
    for batch in BATCHES:
        ends.append(ends[-1] + sum(len(line) for line in expected[RECORDS].splitlines(True)[: len(batch)]))
    with RunFolder(tmp_path / "cut", description()) as folder:
        folder.open(Existing.RESUME)
        for size in range(len(expected[name]) + 1):
            for file, data in expected.items():
                folder.file(file).write_bytes(data[:size] if file == name else data)
            first = work(folder, BATCHES)
            for file, data in expected.items():
                assert folder.file(file).read_bytes() == data, size
            assert (first == 3) == (size == len(expected[name])), size


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_two_cuts_and_garbage_resume_to_the_same_bytes(data: st.DataObject, whole: StoredRun) -> None:
    expected = {file: (whole.path / file).read_bytes() for file in (RECORDS, TIMINGS)}
    with RunFolder(whole.path.parents[2] / "other", description()) as folder:
        folder.open(Existing.RESUME)
        for file, content in expected.items():
            cut = data.draw(st.integers(0, len(content)), label=file)
            zeros = data.draw(st.integers(0, 40), label="zeros after a power cut")
            folder.file(file).write_bytes(content[:cut] + bytes(zeros))
        done = work(folder, BATCHES)
        assert 0 <= done <= 3
        assert {file: folder.file(file).read_bytes() for file in expected} == expected


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), max_size=6), stops=st.lists(st.integers(0, 6), max_size=3))
def test_interrupted_plans_equal_undisturbed_ones(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], stops: list[int]
) -> None:
    ids = iter(range(100))
    batches = [[f"e{next(ids)}" for _ in range(size)] for size in sizes]
    out = tmp_path_factory.mktemp("plan")
    reached = 0
    for stop in [*stops, len(batches)]:
        with RunFolder(out, description()) as folder:
            assert folder.open(Existing.RESUME) == Decision(reuse=False, stored_batches=reached)
            assert work(folder, batches, min(max(stop, reached), len(batches))) == reached
            reached = max(reached, min(stop, len(batches)))
    with RunFolder(out, description()) as folder:
        folder.open(Existing.RESUME)
        assert folder.resume(batches) == len(batches)
        run = folder.finish(provenance={})
    assert [row["example_id"] for row in run.records] == [example for batch in batches for example in batch]


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import *
batches = [[f"x{i}-{j}" for j in range(5)] for i in range(400)]
with RunFolder(Path(sys.argv[1]), description()) as folder:
    folder.open(Existing.RESUME)
    first = folder.resume(batches)
    print(first, flush=True)
    time.sleep(float(sys.argv[3]))
    for i in range(first, len(batches)):
        folder.append(i, [{**record(e), "text": e * 3000} for e in batches[i]], timing(i, batches[i]))
    folder.finish(provenance={})
"""


def start_child(out: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(out), str(Path(__file__).parent), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_bytes(path: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = start_child(tmp_path / "whole")
    assert undisturbed.wait(120) == 0
    (one,) = find_runs(tmp_path / "whole").runs
    total, records = (one.path / RECORDS).stat().st_size, RunFolder(tmp_path / "killed", description()).file(RECORDS)
    starts = []
    for share in (0.05, 0.4, 0.7):
        child = start_child(tmp_path / "killed")
        assert child.stdout is not None
        starts.append(int(child.stdout.readline()))
        wait_for_bytes(records, int(share * total))
        child.kill()
        child.wait()
        child.stdout.close()
    last = start_child(tmp_path / "killed")
    assert last.wait(120) == 0
    assert starts == sorted(starts)
    assert starts[1] > 0
    (other,) = find_runs(tmp_path / "killed").runs
    for name in (RECORDS, TIMINGS):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    for child in (undisturbed, last):
        assert child.stdout is not None
        child.stdout.close()


def test_a_second_process_is_refused_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    child = start_child(tmp_path, pause=60)
    assert child.stdout is not None
    child.stdout.readline()
    with RunFolder(tmp_path, description()) as folder:
        with pytest.raises(UsageError, match="another process is writing"):
            folder.open(Existing.OVERWRITE)
        child.kill()
        child.wait()
        child.stdout.close()
        assert folder.open(Existing.RESUME).reuse is False


def test_the_lock_also_holds_within_a_process(tmp_path: Path) -> None:
    with RunFolder(tmp_path, description()) as first, RunFolder(tmp_path, description()) as second:
        first.open(Existing.RESUME)
        with pytest.raises(UsageError, match="another process is writing"):
            second.open(Existing.RESUME)
        first.close()
        second.open(Existing.RESUME)


@pytest.mark.parametrize(
    ("batches", "line"),
    [
        ([["b", "a"], ["c"], ["d", "e", "f"]], "line 1"),
        ([["a", "b"], ["c"], ["d", "e"]], "line 6"),
        ([["a", "b", "c"], ["d", "e", "f"]], "line 1"),
        ([["a", "b"], ["c"], ["d", "e"], ["f"]], "line 3"),
    ],
)
def test_records_that_contradict_the_plan(whole: StoredRun, batches: list[list[str]], line: str) -> None:
    (whole.path / MANIFEST).unlink()
    before = (whole.path / RECORDS).read_bytes()
    with RunFolder(whole.path.parents[2], description()) as folder:
        folder.open(Existing.RESUME)
        with pytest.raises(UsageError, match=rf"{line}: .*--existing overwrite"):
            folder.resume(batches)
    assert (whole.path / RECORDS).read_bytes() == before


def test_damage_within_the_records_is_not_mended_silently(whole: StoredRun) -> None:
    (whole.path / MANIFEST).unlink()
    data = (whole.path / RECORDS).read_bytes()
    (whole.path / RECORDS).write_bytes(data[:5] + b"\x00" + data[6:])
    with RunFolder(whole.path.parents[2], description()) as folder:
        folder.open(Existing.RESUME)
        with pytest.raises(UsageError, match=r"line 1 is damaged.*overwrite"):
            folder.resume(BATCHES)


def test_append_refuses_what_the_plan_does_not_say(tmp_path: Path) -> None:
    with RunFolder(tmp_path, description()) as folder:
        with pytest.raises(RuntimeError):
            folder.resume(BATCHES)
        folder.open(Existing.RESUME)
        with pytest.raises(RuntimeError):
            folder.append(0, [], timing(0, ""))
        folder.resume(BATCHES)
        with pytest.raises(ValueError, match="batch 0 is next"):
            folder.append(1, [record("c")], timing(1, "c"))
        with pytest.raises(ValueError, match="not those of the plan"):
            folder.append(0, [record("b"), record("a")], timing(0, "ab"))
        with pytest.raises(ValueError, match=r"NaN|nan|JSON"):
            folder.append(0, [record("a"), record("b")], timing(0, "ab", wall_seconds=float("nan")))
        with pytest.raises(RuntimeError, match="all of its batches"):
            folder.finish(provenance={})
        assert not folder.file(RECORDS).exists()
        assert not folder.file(TIMINGS).exists()


def started(out: Path) -> RunFolder:
    """A folder with one of three batches done."""
    with RunFolder(out, description()) as folder:
        folder.open(Existing.RESUME)
        work(folder, BATCHES, stop=1)
    return folder


@pytest.mark.parametrize("existing", list(Existing))
def test_policies_on_nothing(tmp_path: Path, existing: Existing) -> None:
    with RunFolder(tmp_path / "new", description()) as folder:
        if existing is Existing.ONLY_CACHED:
            with pytest.raises(UsageError, match="does not exist"):
                folder.open(existing)
            assert not (tmp_path / "new").exists()
        else:
            assert folder.open(existing) == Decision(reuse=False)
            assert folder.file(PLAN).exists()


@pytest.mark.parametrize(("existing", "kept"), [("resume", 1), ("reuse", 0), ("overwrite", 0), ("only-cached", None)])
def test_policies_on_a_partial_run(tmp_path: Path, existing: str, kept: int | None) -> None:
    folder = started(tmp_path)
    (folder.path / "artifacts").mkdir()
    with folder:
        if kept is None:
            with pytest.raises(UsageError, match="not complete"):
                folder.open(Existing(existing))
            return
        assert folder.open(Existing(existing)) == Decision(reuse=False, stored_batches=kept)
        assert folder.resume(BATCHES) == kept
        assert (folder.path / "artifacts").exists() == (existing == "resume")


@pytest.mark.parametrize("existing", list(Existing))
def test_policies_on_a_complete_run(whole: StoredRun, existing: Existing) -> None:
    with RunFolder(whole.path.parents[2], description()) as folder:
        decision = folder.open(existing)
    assert decision.reuse == (existing is not Existing.OVERWRITE)
    assert (whole.path / MANIFEST).exists() == decision.reuse
    assert (whole.path / RECORDS).exists() == decision.reuse


def test_an_emptying_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.file(".clearing").touch()
    with folder:
        assert folder.open(Existing.RESUME) == Decision(reuse=False, stored_batches=0)
        assert not folder.file(RECORDS).exists()
        assert not folder.file(".clearing").exists()


def test_a_plan_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = started(tmp_path)
    plan = json.loads(folder.file(PLAN).read_text())
    plan["description"]["method"]["version"] = "0"
    write_atomic(folder.file(PLAN), json.dumps(plan))
    with folder, pytest.raises(UsageError, match=r"method\.version.*--existing overwrite"):
        folder.open(Existing.RESUME)
    folder.file(PLAN).write_text("{")
    with folder, pytest.raises(UsageError, match=r"not valid JSON.*--existing overwrite"):
        folder.open(Existing.RESUME)
    folder.file(PLAN).unlink()
    with folder, pytest.raises(UsageError, match=r"no plan\.json.*--existing overwrite"):
        folder.open(Existing.RESUME)


@pytest.mark.parametrize("existing", [Existing.RESUME, Existing.REUSE, Existing.ONLY_CACHED])
def test_damaged_complete_runs_are_refused(whole: StoredRun, existing: Existing) -> None:
    with (whole.path / RECORDS).open("ab") as file:
        file.write(b" ")
    with RunFolder(whole.path.parents[2], description()) as folder:
        with pytest.raises(UsageError, match=r"SHA-256 differs.*--existing overwrite"):
            folder.open(existing)
        assert folder.open(Existing.OVERWRITE) == Decision(reuse=False)


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match=r"cannot write under .*--out"):
            check_writable(out)
        with RunFolder(out, description()) as folder, pytest.raises(UsageError, match="--out"):
            folder.open(Existing.RESUME)
    check_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", [RECORDS, TIMINGS])
def test_a_full_disk_keeps_the_complete_batches(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path, description()) as folder:
        folder.open(Existing.RESUME)
        work(folder, BATCHES, stop=1)
        before = {file: folder.file(file).read_bytes() for file in (RECORDS, TIMINGS)}
        folder.file(name).rename(tmp_path / "aside")
        folder.file(name).symlink_to("/dev/full")
        with pytest.raises(UsageError, match=r"disk is full; all 1 complete batches are kept.*same command"):
            folder.append(1, [record("c")], timing(1, "c"))
        folder.file(name).unlink()
        (tmp_path / "aside").rename(folder.file(name))
        assert {file: folder.file(file).read_bytes() for file in (RECORDS, TIMINGS)} == before
        folder.append(1, [record("c")], timing(1, "c"))
        assert work(folder, BATCHES) == 2


def test_a_half_written_batch_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills in the middle of the records: the write succeeds in part, the sync does not."""
    with RunFolder(tmp_path, description()) as folder:
        folder.open(Existing.RESUME)
        work(folder, BATCHES, stop=1)
        before = {file: folder.file(file).read_bytes() for file in (RECORDS, TIMINGS)}
        calls = []

        def fsync(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(UsageError, match="disk is full"):
                folder.append(1, [record("c")], timing(1, "c"))
        assert {file: folder.file(file).read_bytes() for file in (RECORDS, TIMINGS)} == before


def test_find_runs(tmp_path: Path) -> None:
    complete(tmp_path / "runs")
    complete(tmp_path / "runs", dataset={"name": "../evil: name", "fingerprint": "x"})
    damaged = complete(tmp_path / "runs", seed=1)
    (damaged.path / RECORDS).write_bytes(b"")
    gone = complete(tmp_path / "runs", seed=2)
    (gone.path / RECORDS).unlink()
    partial = started(tmp_path / "partial")
    partial.path.rename(tmp_path / "runs" / "tiny" / "echo" / "partial")
    foreign = tmp_path / "runs" / "mlflow" / "x"
    for name, text in {"a": "{", "b": "[]", "c": "{}", "d": '{"status": "complete", "description": {}}'}.items():
        (foreign / name).mkdir(parents=True)
        (foreign / name / MANIFEST).write_text(text)
    (tmp_path / "runs" / "notes").mkdir()
    listing = find_runs(tmp_path / "runs")
    assert [run.dataset for run in listing.runs] == ["../evil: name", "tiny"]
    assert all(tmp_path / "runs" in run.path.parents for run in listing.runs)
    assert listing.runs[0].path.parts[-3] == ".._evil__name"
    assert [path.name for path in listing.incomplete] == ["partial"]
    assert len(listing.problems) == 6
    assert all("\n" not in problem for problem in listing.problems)
    assert find_runs(listing.runs[1].path).runs == (listing.runs[1],)
    with pytest.raises(UsageError, match="no folder of runs"):
        find_runs(tmp_path / "nowhere")


def test_names_of_dots_stay_in_the_folder(tmp_path: Path) -> None:
    for name in ("..", ".", "", "a/b", "ü"):
        folder = RunFolder(tmp_path, description(method={"name": name}))
        assert folder.path.parent.parent == tmp_path / "tiny"
        assert folder.path.parent.name not in ("", ".", "..")


def test_read_rows_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a":1}\n[2]\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2"):
        list(read_rows(path))
    with pytest.raises(UsageError, match="cannot read"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "old")

    def fail(source: Any, target: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Input/output"):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["x.json"]


def test_the_description_is_what_makes_the_key(tmp_path: Path) -> None:
    keys: set[str] = set()
    changes: list[Mapping[str, Any]] = [{}, {"seed": 1}, {"engine": {"name": "fake", "model": "other"}}]
    for change in changes:
        keys.add(RunFolder(tmp_path, description(**change)).key)
    assert len(keys) == 3
    shuffled = dict(reversed(list(description().items())))
    assert RunFolder(tmp_path, shuffled).key in keys
