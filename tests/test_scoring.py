"""Joining records with references, asking metrics, storing and merging their columns."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.errors import DataError, UsageError
from bench.metrics.base import Metric, ScoreInput, Vector, text_of
from bench.metrics.bleu import Bleu
from bench.metrics.length_ratio import LengthRatio
from bench.metrics.rouge import Rouge1
from bench.scoring import Scores, join, missing_metrics, score, write_scores
from bench.store import BatchTiming, Existing, RunFolder, StoredRun, read_scores
from bench.types import Document, Example, LabeledSplit

TEXTS: dict[str, str | None] = {"b": "good car 😀", "a": "a good car", "d": None, "c": ""}
REFERENCES = {"a": "a good auto", "b": "good car 😀", "c": "reference", "d": "another", "unused": "x"}


def make_split() -> LabeledSplit:
    def history(user: str) -> tuple[Document, ...]:
        return tuple(Document(f"{user}{i}", user, f"past {i} of {user}", {}) for i in range(2))

    return LabeledSplit(tuple(Example(i, f"user-{i}", {}, history(f"user-{i}")) for i in REFERENCES), REFERENCES)


def make_run(out: Path, texts: dict[str, str | None] | None = None) -> StoredRun:
    records = [
        {"example_id": i, "user_id": f"user-{i}", "text": text, "error": None if text is not None else "no answer"}
        for i, text in (TEXTS if texts is None else texts).items()
    ]
    description: dict[str, Any] = {"dataset": {"name": "tiny"}, "method": {"name": "echo"}, "engine": {"name": "fake"}}
    with RunFolder(out, description) as folder:
        folder.open(Existing.OVERWRITE)
        folder.resume([[record["example_id"] for record in records]])
        folder.append(0, records, BatchTiming(0, len(records), 1, 1, 0.0, 0.0, 0.0))
        return folder.finish(provenance={}, totals={})


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    return make_run(tmp_path)


def scored(run: StoredRun, metrics: Sequence[Metric]) -> Scores:
    return score(join(run.records, make_split()), metrics, progress=False)


class Fragile(Metric):
    """One that breaks on one text."""

    name = "fragile"
    higher_is_better = False

    def _vector(self, item: ScoreInput) -> Vector | None:
        return [1 / len(text_of(item))]


def test_join_keeps_order_and_marks_failures(run: StoredRun) -> None:
    inputs = join(run.records, make_split())
    assert [(item.example_id, item.prediction) for item in inputs] == list(TEXTS.items())
    assert inputs[0] == ScoreInput(
        "b", "user-b", "good car 😀", "good car 😀", ("past 0 of user-b", "past 1 of user-b"), None
    )


def test_a_record_with_an_error_has_no_prediction() -> None:
    record = {"example_id": "a", "user_id": "user-a", "text": "half a te", "error": "out of memory"}
    assert join([record], make_split())[0].prediction is None


def test_join_refuses_other_data() -> None:
    with pytest.raises(DataError, match="example 'z', which the split lacks"):
        join([{"example_id": "z", "text": "", "error": None}], make_split())


def test_scores_count_what_has_no_value(run: StoredRun) -> None:
    scores = scored(run, [Rouge1(), Fragile()])
    assert scores.example_ids == tuple(TEXTS)
    assert scores.values["rouge1"] == ((1.0,), (pytest.approx(2 / 3),), None, (0.0,))
    assert scores.values["fragile"] == ((1 / 10,), (1 / 10,), None, None)
    assert [(scores.scored(name), scores.failed(name)) for name in ("rouge1", "fragile")] == [(3, 1), (2, 2)]
    info = scores.metrics[1]
    assert (info.name, info.signature, info.higher_is_better, info.reducer) == ("fragile", "fragile", False, "mean")


def test_progress_writes_to_stderr_alone(run: StoredRun, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = join(run.records, make_split())
    assert score(inputs, [Rouge1()], progress=True) == score(inputs, [Rouge1()], progress=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "rouge1" in captured.err
    assert "4/4" in captured.err


def test_twins_are_refused(run: StoredRun) -> None:
    with pytest.raises(UsageError, match="metric 'rouge1' is given twice"):
        scored(run, [Rouge1(), Rouge1()])
    item = ScoreInput("a", "u", "x", "y")
    with pytest.raises(UsageError, match="example 'a' is given twice"):
        score([item, item], [Rouge1()], progress=False)


def test_written_scores_are_read_again_exactly(run: StoredRun) -> None:
    scores = scored(run, [Rouge1(), Bleu(), Fragile()])
    write_scores(run, scores)
    stored = read_scores(run)
    assert stored is not None
    assert stored.metrics == {info.name: info for info in scores.metrics}
    for name, values in scores.values.items():
        assert stored.values[name] == dict(zip(scores.example_ids, values, strict=True))
    lines = [json.loads(line) for line in (run.path / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [line["example_id"] for line in lines] == list(TEXTS)
    assert lines[2]["scores"] == {"bleu": None, "fragile": None, "rouge1": None}


def test_files_are_the_same_bytes_whatever_the_order(run: StoredRun, tmp_path: Path) -> None:
    twin = make_run(tmp_path / "twin")
    write_scores(run, scored(run, [Rouge1(), Bleu()]))
    other = score(join(twin.records, make_split())[::-1], [Bleu(), Rouge1()], progress=False)
    write_scores(twin, other)
    for name in ("scores.json", "scores.jsonl"):
        assert (run.path / name).read_bytes() == (twin.path / name).read_bytes()


def test_merging_equals_scoring_at_once(run: StoredRun, tmp_path: Path) -> None:
    twin = make_run(tmp_path / "twin")
    write_scores(run, scored(run, [Rouge1(), Bleu()]))
    assert [metric.name for metric in missing_metrics(run, [Rouge1(), LengthRatio(), Bleu()])] == ["length_ratio"]
    write_scores(run, scored(run, [LengthRatio()]))
    write_scores(twin, scored(twin, [Rouge1(), Bleu(), LengthRatio()]))
    assert (run.path / "scores.jsonl").read_bytes() == (twin.path / "scores.jsonl").read_bytes()
    assert (run.path / "scores.json").read_bytes() == (twin.path / "scores.json").read_bytes()


def test_without_merging_other_columns_go(run: StoredRun) -> None:
    write_scores(run, scored(run, [Rouge1()]))
    write_scores(run, scored(run, [LengthRatio()]), merge=False)
    stored = read_scores(run)
    assert stored is not None
    assert set(stored.metrics) == {"length_ratio"}


def test_another_signature_is_scored_again(run: StoredRun) -> None:
    write_scores(run, scored(run, [Rouge1(), LengthRatio()]))
    stemmed = Rouge1(Rouge1.Config(use_stemmer=True))
    assert missing_metrics(run, [stemmed, LengthRatio()]) == [stemmed]
    write_scores(run, scored(run, [stemmed]))
    stored = read_scores(run)
    assert stored is not None
    assert stored.metrics["rouge1"].signature == stemmed.signature()
    assert set(stored.metrics) == {"rouge1", "length_ratio"}


def test_scores_of_other_records_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_scores(run, scored(run, [Rouge1()]))
    kept = {name: (run.path / name).read_bytes() for name in ("scores.json", "scores.jsonl")}
    again = make_run(tmp_path, {**TEXTS, "a": "other words"})
    for name, content in kept.items():
        (again.path / name).write_bytes(content)
    assert len(missing_metrics(again, [Rouge1()])) == 1
    write_scores(again, scored(again, [LengthRatio()]))
    stored = read_scores(again)
    assert stored is not None
    assert set(stored.metrics) == {"length_ratio"}


def test_damaged_scores_are_replaced(run: StoredRun) -> None:
    write_scores(run, scored(run, [Rouge1()]))
    (run.path / "scores.jsonl").write_bytes(b'{"example_id": "b", "sco')
    assert len(missing_metrics(run, [Rouge1()])) == 1
    write_scores(run, scored(run, [Rouge1()]))
    assert read_scores(run) is not None


def test_scores_must_be_of_the_runs_examples(run: StoredRun) -> None:
    partial = score(join(run.records, make_split())[:2], [Rouge1()], progress=False)
    with pytest.raises(UsageError, match="are not of the records in"):
        write_scores(run, partial)
