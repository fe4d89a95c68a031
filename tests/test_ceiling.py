"""The real texts as a row of the table: stored, scored, shown, not ranked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import FAKE, call, only_run, process

from bench.store import StoredRun, read_scores

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ceiling")
    done = process([*FAKE, "--methods", "nonperso,copy-last", "--limit", "6", "--out", out])
    assert done.returncode == 0, done.stderr
    return out


def test_the_real_texts_become_a_row_that_is_not_ranked(stored: Path, capsys: Capture) -> None:
    code, _, err = call(["ceiling", stored], capsys)
    assert code == 0, err
    assert "6 real texts" in err
    run = StoredRun.load(only_run(stored, "reference"))
    assert not run.damage()
    assert run.description["dataset"] == StoredRun.load(only_run(stored, "nonperso")).description["dataset"]
    scores = read_scores(run)
    assert scores is not None
    assert set(scores.metrics) == {"rouge1", "length_ratio"}
    assert {value for by_example in scores.values.values() for value in by_example.values()} == {(1.0,)}
    code, out, err = call(["table", stored, "--json"], capsys)
    assert code == 0, err
    rows = json.loads(out)["tables"][0]["rows"] if "tables" in json.loads(out) else json.loads(out)
    assert "reference" in json.dumps(rows)
    code, out, _ = call(["table", stored], capsys)
    assert "reference: what the users really wrote, a ceiling, not ranked." in " ".join(out.split())
    lines = [line for line in out.splitlines() if line.startswith(("reference", "nonperso", "copy-last"))]
    assert lines[2].startswith("reference"), "a ceiling stands below the ranked rows"


def test_again_it_is_taken_as_it_is_and_gets_the_metrics_asked_for(stored: Path, capsys: Capture) -> None:
    assert call(["ceiling", stored], capsys)[0] == 0
    before = only_run(stored, "reference") / "records.jsonl"
    text = before.read_bytes()
    code, _, err = call(["ceiling", stored, "--metrics", "copy_rate", "--set", "copy_rate.n=3"], capsys)
    assert code == 0, err
    assert before.read_bytes() == text
    scores = read_scores(StoredRun.load(only_run(stored, "reference")))
    assert scores is not None
    assert set(scores.metrics) == {"rouge1", "length_ratio", "copy_rate"}
    assert scores.metrics["copy_rate"].signature.startswith("copy_rate|n:3")


def test_the_row_can_be_scored_like_any_other(stored: Path, capsys: Capture) -> None:
    assert call(["ceiling", stored], capsys)[0] == 0
    code, _, err = call(["score", stored, "--metrics", "rougeL"], capsys)
    assert code == 0, err
    scores = read_scores(StoredRun.load(only_run(stored, "reference")))
    assert scores is not None
    assert "rougeL" in scores.metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "rouge7"], "rouge1"),
        (["--metrics", "rouge1", "--set", "copy_rate.n=3"], "copy_rate"),
        (["--metrics", ""], "--metrics"),
    ],
)
def test_mistakes_are_told(stored: Path, arguments: list[str], message: str, capsys: Capture) -> None:
    code, _, err = call(["ceiling", stored, *arguments], capsys)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_without_a_run_there_is_no_ceiling(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = call(["ceiling", tmp_path], capsys)
    assert code == 2
    assert "no complete run" in err
