"""plan -> fit -> generate -> score: what is stored, what is taken as it is, and what makes another run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_world import only_run, write_world

from bench.config import build
from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.keys import digest
from bench.method import Context, Method
from bench.plan import RunConfig, make_plan
from bench.runner import execute
from bench.store import StoredRun, read_scores
from bench.types import Example, LabeledSplit, Message, Request

TIMES = ("second", "wall", "time", "memory", "date")


class Calls:
    """How many requests the engine was asked."""

    def __init__(self) -> None:
        self.examples: list[str] = []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen, run = Calls(), FakeEngine.run

    def counted(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        seen.examples += [request.example_id for request in batch]
        return run(self, batch)

    monkeypatch.setattr(FakeEngine, "run", counted)
    return seen


def config(out: Path, methods: str = "rag", assign: Sequence[str] = (), **changes: Any) -> RunConfig:
    given = {
        "methods": methods.split(","),
        "engine": "fake",
        "metrics": ["rouge1", "length_ratio"],
        "overrides": ["planted.users=12", "planted.items=20", *assign],
        "out": out,
        "max_new_tokens": 40,
        **changes,
    }
    return build(RunConfig, given, "run")


def run(out: Path, methods: str = "rag", assign: Sequence[str] = (), **changes: Any) -> list[StoredRun]:
    return execute(make_plan(config(out, methods, assign, **changes)), report=lambda line: None)


def test_a_run_stores_plan_records_timings_scores_and_manifest(tmp_path: Path) -> None:
    (stored,) = run(tmp_path)
    names = {path.name for path in stored.path.iterdir()} - {".lock"}
    files = {"plan.json", "records.jsonl", "timings.jsonl", "scores.json", "scores.jsonl", "manifest.json"}
    assert names == {*files, "costs.jsonl"}
    assert stored.path.parent == tmp_path / "planted" / "rag"
    assert stored.path.name == digest(stored.description)
    dataset = make_plan(config(tmp_path)).dataset
    assert {r["example_id"]: r["user_id"] for r in stored.records} == {e.id: e.user_id for e in dataset.test.examples}
    scores = read_scores(stored)
    assert scores is not None
    assert set(scores.metrics) == {"rouge1", "length_ratio"}
    assert set(scores.values["rouge1"]) == {r["example_id"] for r in stored.records}


def test_records_hold_no_times_and_no_reference(tmp_path: Path) -> None:
    (stored,) = run(tmp_path)
    references = set(make_plan(config(tmp_path)).dataset.test.references.values())
    for record in stored.records:
        assert not [key for key in record for word in TIMES if word in key]
        assert not references & {str(value) for value in record.values()}


def test_two_runs_of_one_command_store_the_same_records_and_scores(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", "nonperso,rag,oracle"), run(tmp_path / "b", "nonperso,rag,oracle")
    for left, right in zip(first, second, strict=True):
        for name in ("records.jsonl", "scores.jsonl", "scores.json"):
            assert (left.path / name).read_bytes() == (right.path / name).read_bytes()


def test_a_complete_run_is_taken_as_it_is_and_no_engine_is_asked(tmp_path: Path, calls: Calls) -> None:
    (first,) = run(tmp_path)
    before = {path: path.read_bytes() for path in first.path.iterdir()}
    assert len(calls.examples) == 12
    for existing in ("resume", "reuse", "only-cached"):
        calls.examples.clear()
        (again,) = run(tmp_path, existing=existing)
        assert again.path == first.path
        assert calls.examples == []
        assert {path: path.read_bytes() for path in first.path.iterdir()} == before


def test_overwrite_makes_a_complete_run_anew(tmp_path: Path, calls: Calls) -> None:
    (first,) = run(tmp_path)
    (first.path / "left-over").touch()
    calls.examples.clear()
    run(tmp_path, existing="overwrite")
    assert len(calls.examples) == 12
    assert not (first.path / "left-over").exists()


@pytest.mark.parametrize(("existing", "asked"), [("resume", 8), ("reuse", 12)])
def test_a_partial_run_is_continued_or_starts_over(tmp_path: Path, calls: Calls, existing: str, asked: int) -> None:
    small = ["fake.max_batch=4"]
    (whole,) = run(tmp_path, assign=small)
    wanted = (whole.path / "records.jsonl").read_bytes()
    (whole.path / "manifest.json").unlink()
    records = whole.path / "records.jsonl"
    records.write_bytes(b"".join(wanted.splitlines(keepends=True)[:6]))  # one batch and a half
    calls.examples.clear()
    run(tmp_path, assign=small, existing=existing)
    assert len(calls.examples) == asked
    assert records.read_bytes() == wanted


def test_only_cached_never_computes(tmp_path: Path, calls: Calls) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        run(tmp_path, existing="only-cached")
    (whole,) = run(tmp_path)
    with pytest.raises(UsageError, match=r"no score of rougeL.*bench score"):
        run(tmp_path, existing="only-cached", metrics=["rouge1", "rougeL"])
    (whole.path / "manifest.json").unlink()
    calls.examples.clear()
    with pytest.raises(UsageError, match="is not complete"):
        run(tmp_path, existing="only-cached")
    assert calls.examples == []


def test_each_seed_is_a_run_with_texts_of_its_own(tmp_path: Path) -> None:
    first, second = run(tmp_path, seeds=[0, 1])
    assert (first.description["seed"], second.description["seed"]) == (0, 1)
    assert first.path != second.path
    assert [r["prompt_sha256"] for r in first.records] == [r["prompt_sha256"] for r in second.records]
    assert [r["text"] for r in first.records] != [r["text"] for r in second.records]


def test_a_limit_chooses_the_same_users_for_every_method_and_more_of_them_the_larger_it_is(tmp_path: Path) -> None:
    chosen = {}
    for limit in (3, 5):
        stored = run(tmp_path, "rag,oracle,nonperso", limit=limit)
        users = {one.method: {record["user_id"] for record in one.records} for one in stored}
        assert len(set(map(frozenset, users.values()))) == 1
        chosen[limit] = users["rag"]
        assert len(chosen[limit]) == limit
    assert chosen[3] < chosen[5]


SAME: list[dict[str, Any]] = [
    {"methods": "nonperso,rag"},
    {"metrics": ["length_ratio"]},
    {"existing": "reuse"},
    {"seeds": [0]},
    {"encoder": "org/other"},
]
OTHER: list[dict[str, Any]] = [
    {"assign": ["rag.k=3"]},
    {"assign": ["rag.retriever=recency"]},
    {"assign": ["planted.noise=0.3"]},
    {"assign": ["planted.seed=1"]},
    {"assign": ["fake.max_batch=3"]},
    {"assign": ["fake.context_length=600"]},
    {"seeds": [1]},
    {"limit": 5},
    {"temperature": 0.5},
    {"top_p": 0.9},
    {"max_new_tokens": 41},
    {"max_prompt_tokens": 500},
]


def test_what_cannot_change_an_output_leaves_the_run_where_it_is(tmp_path: Path) -> None:
    run(tmp_path)
    path = only_run(tmp_path, "rag")
    for changes in SAME:
        run(tmp_path, **{"methods": "rag", **changes})
        assert only_run(tmp_path, "rag") == path, changes


def test_whatever_can_change_an_output_makes_another_run(tmp_path: Path) -> None:
    paths = {run(tmp_path)[0].path}
    for number, changes in enumerate(OTHER, 2):
        paths |= {stored.path for stored in run(tmp_path, **changes)}
        assert len(paths) == number, changes


def test_another_version_or_engine_identity_makes_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {run(tmp_path)[0].path}
    monkeypatch.setattr("methods.rag.Rag.version", "2")
    paths.add(run(tmp_path)[0].path)
    identity = FakeEngine.identity
    for part in ("model", "revision", "dtype", "backend"):
        with monkeypatch.context() as patch:
            patch.setattr(FakeEngine, "identity", lambda self, part=part: identity(self) | {part: "other"})
            paths.add(run(tmp_path)[0].path)
    assert len(paths) == 6


class Learner(Method):
    """Counts words of its training texts."""

    name = "rag"
    fits = 0

    def fit(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        type(self).fits += 1
        self.words = sum(len(text.split()) for text in train.references.values()) + ctx.seed

    def save(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps(self.words))

    def load(self, folder: Path, ctx: Context) -> None:
        self.words = json.loads((folder / "words.json").read_text())

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return [ctx.request(example, [Message("user", f"{self.words} words")]) for example in examples]


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> type[Learner]:
    monkeypatch.setattr("bench.ablation.method_class", lambda name: Learner)
    monkeypatch.setattr(Learner, "fits", 0)
    return Learner


def test_a_fit_is_kept_when_only_the_test_users_change(tmp_path: Path, learner: type[Learner]) -> None:
    same: list[dict[str, Any]] = [{}, {"limit": 3}, {"limit": 5}, {"temperature": 0.1}, {"max_new_tokens": 41}]
    for changes in [*same, {"existing": "reuse"}]:
        run(tmp_path, **changes)
    assert learner.fits == 1
    other: list[dict[str, Any]] = [{"seeds": [1]}, {"train_limit": 4}, {"assign": ["planted.seed=1"]}]
    for number, changes in enumerate(other, 2):
        run(tmp_path, **changes)
        assert learner.fits == number
    run(tmp_path, existing="overwrite")
    assert learner.fits == 5


def test_a_fit_cut_short_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, learner: type[Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Learner, folder: Path) -> None:
        (folder / "words.json").write_text("12")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert not list(tmp_path.glob("planted/rag/fit-*[0-9a-f]/fit.json"))
    (after,) = run(tmp_path)
    assert learner.fits == 2
    (clean,) = run(tmp_path / "clean")
    assert after.records == clean.records
    assert not list(tmp_path.glob("planted/rag/*.part"))


def test_a_fit_whose_key_does_not_belong_to_it_is_refused(tmp_path: Path, learner: type[Learner]) -> None:
    run(tmp_path, limit=3)
    (path,) = tmp_path.glob("planted/rag/fit-*/fit.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": {}}))
    with pytest.raises(UsageError, match="another fit"):
        run(tmp_path)


def test_scores_of_new_metrics_join_the_old_ones(tmp_path: Path, calls: Calls) -> None:
    (first,) = run(tmp_path)
    before = read_scores(first)
    calls.examples.clear()
    (again,) = run(tmp_path, metrics=["rougeL"])
    after = read_scores(again)
    assert before is not None
    assert after is not None
    assert calls.examples == []
    assert set(after.metrics) == {"rouge1", "length_ratio", "rougeL"}
    assert after.values["rouge1"] == before.values["rouge1"]


def test_a_plug_in_that_is_no_method_or_bears_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.plan.registry.load", lambda kind, name: Path)
    with pytest.raises(UsageError, match=r"'rag' \(dep-bench .*\) is no bench\.method\.Method"):
        make_plan(config(tmp_path))
    monkeypatch.setattr("bench.plan.registry.load", lambda kind, name: Learner)
    with pytest.raises(UsageError, match=r"'nonperso' .* calls itself 'rag'"):
        make_plan(config(tmp_path, "nonperso"))


def test_a_method_on_a_real_dataset_runs_as_on_planted(tmp_path: Path) -> None:
    spec = write_world(tmp_path / "world")
    plan = make_plan(config(tmp_path / "out", dataset=str(spec), overrides=[]))
    (stored,) = execute(plan, report=lambda line: None)
    assert {r["user_id"] for r in stored.records} == {"u0", "u1", "u2"}
    assert all(r["text"] for r in stored.records)
