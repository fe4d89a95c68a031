"""Runs made in shards: together they are the undivided run, whoever makes them in whatever order, and are told of."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE, call
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import Learner, config

from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.errors import Held, UsageError
from bench.merging import merged
from bench.metrics.base import Metric, ScoreInput
from bench.plan import Plan, make_plan
from bench.rescore import left_out
from bench.runner import execute, fit_all, score_run
from bench.shards import Shard, division
from bench.store import Existing, StoredRun, find_runs, read_scores
from bench.types import Request

METHODS = "nonperso,pag,copy-last"
METRICS = ("rouge1", "bleu", "length_ratio")


@lru_cache
def prepared(methods: str = METHODS, seeds: tuple[int, ...] = (0,)) -> Plan:
    """A plan to vary: preparing its dataset is what takes time."""
    return make_plan(config(Path("nowhere"), methods, ["fake.max_batch=2"], metrics=METRICS, seeds=seeds, dry_run=True))


def plan(out: Path, shard: str | None = None, base: Plan | None = None, **changes: Any) -> Plan:
    base = base or prepared()
    return replace(base, config=base.config.model_copy(update={"out": out, "shard": shard, **changes}))


def run(out: Path, shard: str | None = None, base: Plan | None = None, **changes: Any) -> list[StoredRun]:
    return execute(plan(out, shard, base, **changes), report=lambda line: None)


def by_example(path: Path) -> list[bytes]:
    """Lines of a JSON-lines file in the order of their examples."""
    return sorted(path.read_bytes().splitlines(keepends=True), key=lambda line: json.loads(line)["example_id"])


def one_run(out: Path, method: str) -> Path:
    (path,) = (p for p in out.glob(f"*/{method}/*") if not p.name.startswith("fit-"))
    return path


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredRun]:
    out = tmp_path_factory.mktemp("undivided")
    return {stored.method: stored for stored in run(out)}


# -- which users ------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=4)), st.integers(1, 9), st.randoms())
def test_shards_of_any_number_are_disjoint_whole_and_even(users: list[str], of: int, stream: Any) -> None:
    found = [Shard(i, of).users(users) for i in range(1, of + 1)]
    assert set().union(*found) == set(users)
    assert sum(map(len, found)) == len(set(users))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    stream.shuffle(users)
    assert [Shard(i, of).users(users) for i in range(1, of + 1)] == found


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/4/2", "1.5/4"])
def test_a_shard_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard.*(form i/n|there are shards 1/)"):
        Shard.parse(text)


# -- equal to the undivided run ---------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 14), st.randoms())
def test_merged_shards_equal_the_undivided_run(
    tmp_path_factory: pytest.TempPathFactory, undivided: dict[str, StoredRun], of: int, stream: Any
) -> None:
    """More shards than the dozen users among them; made in any order, a stage before the last in one method."""
    out = tmp_path_factory.mktemp("shards")
    numbers = list(range(1, of + 1))
    stream.shuffle(numbers)
    for number in numbers[:-1]:
        assert all(not (stored.path / "../../records.jsonl").exists() for stored in run(out, f"{number}/{of}"))
    for stored in run(out, f"{numbers[-1]}/{of}"):
        whole = undivided[stored.method]
        assert stored.path.name == whole.path.name
        assert (stored.path / "records.jsonl").read_bytes() == b"".join(by_example(whole.path / "records.jsonl"))
        assert (stored.path / "scores.jsonl").read_bytes() == b"".join(by_example(whole.path / "scores.jsonl"))
        mine, others = (json.loads((r.path / "scores.json").read_text()) for r in (stored, whole))
        assert mine["metrics"] == others["metrics"]
        for total in ("examples", "prompt_tokens", "output_tokens", "failed"):
            assert stored.totals[total] == whole.totals[total]
        assert stored.manifest["counts"]["examples"] == 12
        assert {**stored.plan, "about": 0} == {**whole.plan, "about": 0}
        assert [row["shard"] for row in stored.manifest["shards"]] == [f"{i}/{of}" for i in range(1, of + 1)]
        peaks = [row["totals"]["peak_memory"] or 0 for row in stored.manifest["shards"]]
        assert (stored.totals["peak_memory"] or 0) == max(peaks)
        wall = sum(row["totals"]["wall_seconds"] for row in stored.manifest["shards"])
        assert stored.totals["wall_seconds"] == pytest.approx(wall)


def test_a_merged_run_is_a_run_like_any_other(tmp_path: Path, undivided: dict[str, StoredRun]) -> None:
    for shard in ("1/2", "2/2"):
        run(tmp_path, shard)
    for again in (
        run(tmp_path),
        run(tmp_path, "1/2"),
        run(tmp_path, "3/7"),
        run(tmp_path, existing=Existing.ONLY_CACHED),
    ):
        assert [stored.path for stored in again] == [one_run(tmp_path, method) for method in METHODS.split(",")]
    rescored = StoredRun.load(one_run(tmp_path, "nonperso"))
    score_run(rescored, prepared().dataset, prepared().metrics, force=True)
    scores, wanted = read_scores(rescored), read_scores(undivided["nonperso"])
    assert scores is not None
    assert wanted is not None
    assert scores.values == wanted.values


def test_a_table_of_shards_is_the_table_of_the_whole(
    tmp_path: Path, undivided: dict[str, StoredRun], capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in ("3/3", "1/3", "2/3"):
        run(tmp_path, shard)
    told = []
    for out in (tmp_path, undivided["nonperso"].path.parents[2]):
        code, text, _ = call(["table", out, "--json"], capsys)
        assert code == 0
        told.append({row["method"]: (row["metrics"], row.get("difference")) for row in json.loads(text)})
    assert told[0] == told[1]


# -- what is missing --------------------------------------------------------------------------------------------------


def test_a_table_tells_which_shards_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = prepared("nonperso")
    for shard in ("1/4", "3/4"):
        run(tmp_path, shard, base)
    path = one_run(tmp_path, "nonperso")
    code, _, err = call(["table", tmp_path], capsys)
    assert code == 2
    assert f"{path} is not whole: of its 4 shards 2 and 4 are missing; make what is missing with --shard 2/4" in err
    (path / "shards" / "3-of-4" / "manifest.json").unlink()
    (note,) = left_out(find_runs(tmp_path))
    assert "of its 4 shards 2, 3 and 4 are missing (1 begun)" in note
    code, _, err = call(["diagnose", path], capsys)
    assert "of its 4 shards" in err


def test_a_reader_merges_what_the_last_shard_could_not(tmp_path: Path, undivided: dict[str, StoredRun]) -> None:
    base = prepared("nonperso")
    for shard in ("1/2", "2/2"):
        run(tmp_path, shard, base)
    path = one_run(tmp_path, "nonperso")
    wanted = {name: (path / name).read_bytes() for name in ("records.jsonl", "timings.jsonl", "scores.jsonl")}
    for removed in (["manifest.json"], ["manifest.json", "plan.json", "records.jsonl", "scores.json"]):
        for name in removed:  # a merge cut short
            (path / name).unlink()
        (found,) = find_runs(tmp_path).runs
        assert found.path == path
        assert {name: (path / name).read_bytes() for name in wanted} == wanted
        assert read_scores(found) is not None


class Company(Metric):
    """One over the number of texts that are judged together."""

    name = "company"

    def observe(self, inputs: Sequence[ScoreInput]) -> None:
        self.count = len(inputs)

    def values(self, inputs: Sequence[ScoreInput], advance: Any = None) -> list[Any]:
        return [[1 / len(inputs)] for _ in inputs]

    def _vector(self, item: ScoreInput) -> None:
        raise NotImplementedError


def test_a_metric_that_looks_at_all_texts_judges_the_whole(tmp_path: Path) -> None:
    base = prepared("nonperso")
    base = replace(base, metrics=(*base.metrics, Company()))
    for shard in ("1/2", "2/2"):
        run(tmp_path, shard, base)
    (found,) = find_runs(tmp_path).runs
    scores = read_scores(found)
    assert scores is not None
    assert set(scores.values["company"].values()) == {(1 / 12,)}
    assert set(scores.metrics) == {*METRICS, "company"}


def test_scores_that_come_late_join_the_merged_run(tmp_path: Path) -> None:
    base = prepared("nonperso")
    run(tmp_path, "1/2", base)
    run(tmp_path, "2/2", replace(base, metrics=base.metrics[:1]))
    (found,) = find_runs(tmp_path).runs
    scores = read_scores(found)
    assert scores is not None
    assert set(scores.metrics) == {"rouge1"}
    part = StoredRun.load(found.path / "shards" / "2-of-2")
    score_run(part, base.dataset, base.metrics)
    scores = read_scores(find_runs(tmp_path).runs[0])
    assert scores is not None
    assert set(scores.metrics) == set(METRICS)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_another_number_of_shards_is_refused_until_overwritten(tmp_path: Path) -> None:
    base = prepared("nonperso")
    run(tmp_path, "1/3", base)
    with pytest.raises(UsageError, match=r"divided into 3 shards, so there is no --shard 1/2.*overwrite"):
        run(tmp_path, "1/2", base)
    with pytest.raises(UsageError, match=r"of its 3 shards 2 and 3 are missing.*--shard 2/3"):
        run(tmp_path, None, base)
    run(tmp_path, "1/2", base, existing=Existing.OVERWRITE)
    found = division(one_run(tmp_path, "nonperso"))
    assert found is not None
    assert (found.of, found.complete) == (2, (Shard(1, 2),))
    (stored,) = run(tmp_path, None, base, existing=Existing.OVERWRITE)
    assert division(stored.path) is None
    assert len(stored.records) == 12


def test_shards_beside_a_run_begun_whole_are_refused(tmp_path: Path) -> None:
    base = prepared("nonperso")
    (stored,) = run(tmp_path, None, base)
    (stored.path / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"begun without --shard; go on without it"):
        run(tmp_path, "1/2", base)
    run(tmp_path, "1/2", base, existing=Existing.OVERWRITE)
    assert not (stored.path / "records.jsonl").exists()


def test_overwriting_a_shard_that_somebody_writes_is_refused(tmp_path: Path) -> None:
    base = prepared("nonperso")
    run(tmp_path, "1/2", base)
    lock = one_run(tmp_path, "nonperso") / "shards" / "1-of-2" / ".lock"
    with FileLock(str(lock)), pytest.raises(Held, match="another process is writing"):
        run(tmp_path, None, base, existing=Existing.OVERWRITE)
    with FileLock(str(lock)), pytest.raises(Held, match="another process is writing"):
        run(tmp_path, "1/3", base, existing=Existing.OVERWRITE)


def test_shards_of_other_versions_do_not_merge_and_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undivided: dict[str, StoredRun]
) -> None:
    base = prepared("nonperso")
    run(tmp_path, "1/2", base)
    monkeypatch.setattr("bench.method_run.HARNESS_VERSION", "other")
    lines: list[str] = []
    execute(plan(tmp_path, "2/2", base), lines.append)
    assert any("differ in code.harness alone: they will not merge" in line for line in lines)
    notes = left_out(find_runs(tmp_path))
    assert len(notes) == 3
    assert "differ in code.harness alone: shards of one run need one set of versions" in notes[-1]


def test_shards_that_lost_doubled_or_changed_something_are_not_merged(tmp_path: Path) -> None:
    base = prepared("nonperso")
    for shard in ("1/2", "2/2"):
        run(tmp_path, shard, base)
    path = one_run(tmp_path, "nonperso")
    (path / "manifest.json").unlink()
    first, second = (path / "shards" / f"{i}-of-2" for i in (1, 2))
    records = (first / "records.jsonl").read_bytes()
    manifest = json.loads((first / "manifest.json").read_text())
    (first / "records.jsonl").write_bytes(records[:-3] + b"9}\n")
    with pytest.raises(UsageError, match=r"SHA-256 differs.*--shard 1/2 --existing overwrite"):
        merged(path)
    (problem,) = find_runs(tmp_path).problems
    assert "SHA-256 differs" in problem

    def restore(data: bytes) -> None:
        import hashlib

        (first / "records.jsonl").write_bytes(data)
        told = {**manifest, "records_sha256": hashlib.sha256(data).hexdigest()}
        (first / "manifest.json").write_text(json.dumps(told))

    restore(b"".join(records.splitlines(keepends=True)[1:]))
    with pytest.raises(UsageError, match="hold 11 examples, and the dataset has 12"):
        merged(path)
    restore(records + (second / "records.jsonl").read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match=r"which another shard of .* has"):
        merged(path)
    restore(records)
    assert merged(path) is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "5/4"], "--shard 5/4: there are shards 1/4 to 4/4"),
        (["--shard", "1/2", "--fit-only"], "leave --shard out"),
        (["--shard", "1/2", "--executor", "ray"], "leave --shard out"),
        (["--workers", "2"], "go with --executor ray"),
    ],
)
def test_flags_that_contradict_one_another(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call([*FAKE, "--methods", "nonperso", "--out", tmp_path, *flags], capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_the_command_says_what_is_missing_and_the_last_shard_shows_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FAKE, "--methods", "nonperso", "--out", tmp_path]
    code, out, err = call([*command, "--shard", "2/2"], capsys)
    assert (code, out) == (0, "")
    assert "of its 2 shards 1 is missing" in err
    code, out, err = call([*command, "--shard", "1/2"], capsys)
    assert code == 0
    assert "Leaderboard: planted" in out
    assert "Made in shards: nonperso (2)" in " ".join(out.split())
    assert len(list((tmp_path / "configs").iterdir())) == 1


# -- kills and fits ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of a process."""


@given(st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=6, deadline=None)
def test_shards_that_are_killed_and_run_again_end_the_same(
    tmp_path_factory: pytest.TempPathFactory, undivided: dict[str, StoredRun], of: int, survives: int
) -> None:
    out, base, run_batch = tmp_path_factory.mktemp("killed"), prepared("nonperso"), FakeEngine.run
    left = survives

    def dies(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return run_batch(self, batch)

    for number in range(1, of + 1):
        left = survives
        try:
            FakeEngine.run = dies  # type: ignore[method-assign]
            run(out, f"{number}/{of}", base)
        except Killed:
            FakeEngine.run = run_batch  # type: ignore[method-assign]
            run(out, f"{number}/{of}", base)
        finally:
            FakeEngine.run = run_batch  # type: ignore[method-assign]
    (found,) = find_runs(out).runs
    wanted = b"".join(by_example(undivided["nonperso"].path / "records.jsonl"))
    assert (found.path / "records.jsonl").read_bytes() == wanted


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A method that learns (two seeds: two fits), before one that does not."""
    base = prepared("nonperso", (0, 1))
    monkeypatch.setattr(Learner, "fits", 0)
    learner = replace(base.planned[0], method=Learner(base.planned[0].method.config))
    return replace(base, planned=(learner, *base.planned))


def test_shards_share_one_fit_and_one_made_before_is_taken(tmp_path: Path, learning: Plan) -> None:
    for shard in ("1/2", "2/2"):
        run(tmp_path / "a", shard, learning)
    assert Learner.fits == 2
    lines: list[str] = []
    folders = fit_all(plan(tmp_path / "b", None, learning), lines.append)
    assert Learner.fits == 4
    assert len(folders) == 2
    assert fit_all(plan(tmp_path / "b", None, learning), lines.append) == folders
    for shard in ("1/2", "2/2"):
        run(tmp_path / "b", shard, learning, existing=Existing.OVERWRITE)
    assert Learner.fits == 4
    for name in ("a", "b"):
        assert len(find_runs(tmp_path / name).runs) == 4


def test_a_shard_does_other_work_while_another_process_fits_and_then_waits_for_it(
    tmp_path: Path, learning: Plan
) -> None:
    (fit, _) = fit_all(plan(tmp_path / "known", None, learning), lambda line: None)
    place = tmp_path / "out" / fit.relative_to(tmp_path / "known")
    place.parent.mkdir(parents=True)
    lock, lines = FileLock(f"{place}.lock", thread_local=False), []
    lock.acquire()
    Path(f"{place}.owner").write_text("process 7 on elsewhere")

    def told(line: str) -> None:
        lines.append(line)
        if line.startswith("rag 1/1: waiting"):
            threading.Timer(0.2, lock.release).start()

    before = Learner.fits
    runs = execute(plan(tmp_path / "out", "1/1", learning), told)
    assert Learner.fits == before + 2
    done = [line.partition(":")[0] for line in lines if "12 examples" in line and "generating" not in line]
    assert done == ["rag 1/1 (seed 1)", "nonperso 1/1 (seed 0)", "nonperso 1/1 (seed 1)", "rag 1/1 (seed 0)"]
    assert any("waiting for process 7 on elsewhere, which makes the fit" in line for line in lines)
    assert [(r.method, r.description["seed"]) for r in runs] == [
        ("rag", 0), ("rag", 1), ("nonperso", 0), ("nonperso", 1)
    ]  # fmt: skip
