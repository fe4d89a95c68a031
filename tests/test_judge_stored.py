"""Judging what lies in a store: seeds and baselines, requests that failed, places to write, odd texts, hints."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_server import prompt_of, serving
from cli_world import FAKE, call, only_run
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from fabricate import describe, make_run
from test_judge import Scripted, by_words, items, judge

from bench import weights
from bench.engines.hf import HFConfig, HFEngine
from bench.errors import UsageError
from bench.files import file_digest, json_lines, read_rows
from bench.judge import Options, _folder, _label, wording
from bench.judge.metric import TRIES, Asker, JudgeScore, baseline_key
from bench.metrics.base import ScoreInput
from bench.store import MetricInfo, StoredRun, find_runs, read_scores
from bench.tables import leaderboard
from bench.types import Generation, Message

Capture = pytest.CaptureFixture[str]
LOCAL = ("--judge-engine", "fake", "--judge-model", "smollm2-135m")
"""A judge that keeps no answers itself, and says what is no verdict."""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two methods with two seeds on a tiny world, and the real texts, which have one seed."""
    from bench.__main__ import main

    out = tmp_path_factory.mktemp("judged") / "runs"
    for command in ([*FAKE, "--methods", "nonperso,rag", "--seeds", "0,1", "--out", str(out)], ["ceiling", str(out)]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
    return out


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def of(root: Path, method: str) -> list[StoredRun]:
    """The runs of a method, by seed."""
    found = [run for run in find_runs(root).runs if run.method == method]
    return sorted(found, key=lambda run: int(run.description["seed"]))


def rewrite(run: StoredRun, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes stored records as if they had been written so."""
    records = run.path / "records.jsonl"
    records.write_bytes(json_lines([change(row) for row in read_rows(records)]))
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["records_sha256"] = file_digest(records)
    (run.path / "manifest.json").write_text(json.dumps(manifest))


# -- seeds and baselines ------------------------------------------------------------------------------------------


def test_rows_with_other_seeds_share_a_table_of_wins(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        code, out, err = call(judge(api, runs, "--pairwise", runs / "planted" / "nonperso"), capsys)
        assert code == 0, err
    column = "judge-win:tiny:nonperso"
    assert len(re.findall(column, out)) == 3, "two seeds of rag, one of the real texts"
    scores = [read_scores(run) for method in ("rag", "reference") for run in of(runs, method)]
    assert len({found.metrics[column].signature for found in scores if found}) == 1
    code, table, err = call(["table", runs], capsys)
    assert code == 0, err
    assert column in table
    code, _, err = call(["report", runs, "--out", runs.parent / "report"], capsys)
    assert code == 0, err


def test_each_seed_meets_the_baseline_of_its_own_seed(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        assert call(judge(api, runs, "--pairwise", runs / "planted" / "nonperso"), capsys)[0] == 0
    asked = [re.findall(r"<[AB]>\n(.*?)\n</[AB]>", prompt_of(body), re.S) for body in api.seen.bodies]
    for own, other in zip(of(runs, "rag"), of(runs, "nonperso"), strict=True):
        texts = {row["example_id"]: row["text"] for row in other.records}
        for row in own.records:
            assert [row["text"], texts[row["example_id"]]] in asked


ROWS = st.lists(
    st.tuples(st.sampled_from(["0", "1"]), st.text("ab", max_size=2), st.none() | st.text(max_size=3)),
    unique_by=lambda row: row[:2],
    min_size=1,
)


@given(rows=ROWS, stream=st.randoms(use_true_random=False))
def test_the_order_of_records_is_no_part_of_a_baseline(rows: list[Any], stream: Any) -> None:
    mixed = list(rows)
    stream.shuffle(mixed)
    assert baseline_key(mixed) == baseline_key(rows)
    seed, example, text = rows[0]
    for other in ((seed, example, f"{text}!"), (seed, example + "c", text), ("2", example, text)):
        assert baseline_key([other, *rows[1:]]) != baseline_key(rows)


def test_runs_of_two_splits_meet_their_own_baseline(runs: Path, capsys: Capture) -> None:
    command = [*FAKE, "--methods", "nonperso,rag", "--limit", "4", "--out", runs]
    assert call(command, capsys)[0] == 0
    shutil.rmtree(runs / "planted" / "reference")
    with serving(answer=by_words) as api:
        code, _, err = call(judge(api, runs, "--pairwise", runs / "planted" / "nonperso", "--dry-run"), capsys)
    assert code == 0, err
    assert f"judging 3 runs: {2 * (12 + 12 + 4)} prompts" in err


def test_two_runs_of_one_seed_are_no_baseline(runs: Path, capsys: Capture) -> None:
    first = of(runs, "nonperso")[0].path
    shutil.copytree(first, first.parent / "copy")
    with serving(answer=by_words) as api:
        code, _, err = call(judge(api, runs, "--pairwise", first.parent), capsys)
    assert (code, api.requests) == (2, 0)
    assert "holds two runs of nonperso" in err
    assert str(first) in err
    assert str(first.parent / "copy") in err


def test_a_baseline_of_other_examples_is_refused(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    assert call([*FAKE, "--methods", "nonperso", "--limit", "4", "--out", tmp_path / "few"], capsys)[0] == 0
    with serving(answer=by_words) as api:
        code, _, err = call(judge(api, runs, "--pairwise", tmp_path / "few"), capsys)
    assert code == 2
    assert "are of other examples" in err


# -- verdicts that were cut, and requests that failed -------------------------------------------------------------


def test_a_verdict_that_was_cut_off_is_none(tmp_path: Path) -> None:
    class Cut(Scripted):
        def _answer(self, request: Any) -> Generation:
            got: Generation = super()._answer(request)
            text = request.messages[-1].content
            cut = "endless" in text or ("long" in text and wording.AGAIN not in text)
            return Generation("7" if cut else "6", 1, 1, "length" if cut else got.finish_reason)

    metric = JudgeScore(Asker(Cut(str), tmp_path), "m")
    assert metric.values(items(["short", "long", "endless"])) == [[6.0], [6.0], None]
    assert metric.asker.spent.unreadable == 1 + TRIES


def test_a_server_that_cuts_a_verdict_is_asked_again(runs: Path, capsys: Capture) -> None:
    def answer(body: dict[str, Any]) -> tuple[str, int, int, str]:
        again = wording.AGAIN in prompt_of(body)
        return ("4", 9, 1, "stop") if again else ("10", 9, 8, "length")

    one = of(runs, "rag")[0].path
    with serving(answer=answer) as api:
        code, out, err = call(judge(api, one), capsys)
    assert code == 0, err
    assert "judge:tiny 4.000 [4.000, 4.000]" in out


@pytest.mark.parametrize("verdict", ["0", "7", "10", "7.5", "10.0", "A", "TIE", " tie\n"])
def test_a_verdict_and_the_end_of_its_turn_fit_into_a_reply(verdict: str) -> None:
    """No vocabulary with bytes to fall back on takes more tokens than bytes."""
    assert len(verdict.encode()) + 1 <= Options("", "").reply_tokens


@pytest.mark.slow
@pytest.mark.weights
def test_a_real_model_ends_its_verdict_within_the_default_reply(tmp_path: Path) -> None:
    engine = HFEngine(weights.resolve("smollm2-135m", "llm"), HFConfig(device="cpu", dtype="float32"))
    asked = ("What is 3+4? Reply with the number only.", "What is 5 plus 5? Only the number.")
    told = Message("system", "Answer with one number and nothing else. Example: 7")
    turns = [[told, *[Message("user", ask), Message("assistant", "7")] * 2, Message("user", ask)] for ask in asked]
    prompts = [(f"e{i}", tuple(messages)) for i, messages in enumerate(turns)]
    replies = engine.answers(Asker(engine, tmp_path, reply_tokens=Options("", "").reply_tokens).requests(prompts))
    assert [reply.finish_reason for reply in replies] == ["stop", "stop"]
    asker = Asker(engine, tmp_path, reply_tokens=Options("", "").reply_tokens)
    assert asker.verdicts(prompts, wording.read_number, lambda _: None) == [
        *map(float, (reply.text for reply in replies))
    ]
    one = Asker(engine, tmp_path, reply_tokens=1)
    assert one.verdicts(prompts, wording.read_number, lambda _: None) == [None, None]


def test_requests_that_failed_are_asked_again_and_they_alone(runs: Path, capsys: Capture) -> None:
    def broken(prompt: str) -> bool:
        return sum(prompt.split("<CANDIDATE>")[-1].encode()) % 3 == 0

    one = of(runs, "rag")[0].path
    with serving(lambda prompt, *_: ("status", 400) if broken(prompt) else "ok", lambda _: ("5", 3, 1)) as api:
        code, out, err = call(judge(api, one), capsys)
        assert code == 0, err
        failed = sum(broken(prompt) for prompt in {prompt_of(body) for body in api.seen.bodies})
        assert 0 < failed < 12
        assert f", {failed} of 12 None" in out
        assert f"{failed} requests without one" in err
        assert "are asked again by the same command" in err
        before, api.script = api.requests, lambda *_: "ok"
        code, out, err = call(judge(api, one), capsys)
        assert (code, api.requests - before) == (0, failed), err
        assert "None" not in out
        assert "asked again" not in err
        code, _, err = call(judge(api, one), capsys)
        assert (code, api.requests - before) == (0, failed)
        assert "judging 0 runs" in err


def test_what_no_reply_can_settle_is_left_alone(tmp_path: Path) -> None:
    class Failing(Scripted):
        down = True

        def _answer(self, request: Any) -> Generation:
            got: Generation = super()._answer(request)
            bad = self.down and "lost" in request.messages[-1].content
            return Generation("", 0, 0, "error", error="no") if bad else got

    engine = Failing(lambda prompt: "prose" if "vague" in prompt else "7")
    metric = JudgeScore(Asker(engine, tmp_path), "m")
    texts = items(["fine", "vague", "lost", None])

    def settled(*which: ScoreInput) -> bool:
        again = JudgeScore(Asker(engine, tmp_path), "m")
        return again.asker.settled(again.prompts(which), again.read)

    assert not settled(*texts)
    assert metric.values(texts) == [[7.0], None, None, None]
    assert settled(texts[0], texts[1], texts[3])
    assert settled(texts[3])
    assert not settled(texts[2])
    assert not settled(*texts)
    engine.down = False
    before = len(engine.asked)
    assert JudgeScore(Asker(engine, tmp_path), "m").values(texts) == [[7.0], None, [7.0], None]
    assert len(engine.asked) == before + 1
    assert settled(*texts)


def test_texts_without_a_readable_verdict_make_no_work_for_a_local_judge(runs: Path, capsys: Capture) -> None:
    one = of(runs, "rag")[0].path
    code, out, err = call(["judge", one, *LOCAL], capsys)
    assert code == 0, err
    assert "judging 1 runs: 12 prompts" in err
    assert "None" in out
    code, again, err = call(["judge", one, *LOCAL], capsys)
    assert code == 0, err
    assert "judging 0 runs: 0 prompts" in err
    assert again == out


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("tiny", "tiny"),
        ("org1/x", "org1--x"),
        ("org2/x/", "org2--x"),
        ("qwen2.5:7b", "qwen2.5-7b"),
        ("reg/org/m:free", "reg--org--m-free"),
        ("a,b c", "a-b-c"),
        ("/somewhere/models/mine", "mine"),
        ("./mine:1", "mine-1"),
    ],
)
def test_a_label_keeps_the_organisation_and_no_colon(model: str, label: str) -> None:
    assert _label(model) == label


def test_judges_with_colons_agree(runs: Path, capsys: Capture) -> None:
    one = of(runs, "rag")[0].path
    models = ("org1/q:7b", "org2/q:7b")
    with serving(answer=by_words) as api:
        for model in models:
            assert call(judge(api, one, model=model), capsys)[0] == 0
            code, _, err = call(judge(api, one, "--pairwise", runs / "planted" / "nonperso", model=model), capsys)
            assert code == 0, err
    code, out, err = call(["judge", one, "--judges"], capsys)
    assert code == 0, err
    assert [line.split(": 12 texts")[0] for line in out.splitlines()] == [
        "judge-win:org1--q-7b:nonperso, judge-win:org2--q-7b:nonperso",
        "judge:org1--q-7b, judge:org2--q-7b",
    ]
    code, _, err = call(["table", one, "--metrics", "judge:org2--q-7b"], capsys)
    assert code == 0, err


# -- places -------------------------------------------------------------------------------------------------------


def test_answers_lie_in_the_folder_of_runs_or_with_a_run_that_was_moved(
    runs: Path, tmp_path: Path, capsys: Capture
) -> None:
    one = of(runs, "rag")[0].path
    assert call(["judge", one, *LOCAL], capsys)[0] == 0
    assert len(list((runs / "answers" / "judge").iterdir())) == 1
    alone = tmp_path / "a" / "b" / "c" / "alone"
    shutil.copytree(one, alone)
    code, _, err = call(["judge", alone, "--force", *LOCAL], capsys)
    assert code == 0, err
    assert len(list((alone / "answers" / "judge").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.rglob("answers")) == ["answers"] * 2
    assert len(find_runs(alone).runs) == 1


def test_a_run_needs_no_three_folders_above(tmp_path: Path) -> None:
    run = StoredRun(Path("/r"), {"description": describe("rag")})
    assert _folder(Path("/r"), run) == Path("/r")
    made = make_run(tmp_path, "rag")
    assert made is not None
    assert _folder(made.path, made) == tmp_path


def test_a_place_that_cannot_be_written_is_told_before_anything_is_asked(
    runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    one = of(runs, "rag")[0].path
    with serving(answer=by_words) as api:
        code, told, err = call(judge(api, one), capsys)
        assert code == 0, err
        before = api.requests
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        code, _, err = call(judge(api, runs), capsys)
        assert (code, api.requests) == (2, before)
        assert call(judge(api, one), capsys)[:2] == (0, told), "what is judged can be read all the same"
    assert f"cannot write under {runs}: Permission denied" in err
    assert "Traceback" not in err


def test_answers_that_cannot_be_kept_are_an_error_in_one_line(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    (runs / "answers").write_text("in the way")
    code, _, err = call(["judge", runs, *LOCAL], capsys)
    assert code == 2
    assert f"cannot keep answers in {runs / 'answers' / 'judge'}" in err
    assert "Traceback" not in err
    engine = Scripted(str)
    unreadable = tmp_path / "answers" / "judge" / f"{Asker(engine, tmp_path).mark}.jsonl"
    unreadable.mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot read the answers in"):
        Asker(engine, tmp_path)


# -- odd texts ----------------------------------------------------------------------------------------------------


@given(text=st.text(st.characters(categories=["Ll", "Cs", "So"]), max_size=8))
def test_prompts_are_always_utf8(text: str) -> None:
    for messages in (wording.rubric_prompt(text, text), wording.pair_prompt(text, text, text)):
        content = messages[-1].content
        assert content.encode().decode() == content
        kept = "".join("?" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
        assert f"\n{kept}\n" in content


def test_stored_texts_with_half_a_surrogate_pair_are_judged(runs: Path, capsys: Capture) -> None:
    for method in ("nonperso", "rag"):
        for run in of(runs, method):
            rewrite(run, lambda row: {**row, "text": f"\ud83d {row['text']} \udc00"})
    baseline = runs / "planted" / "nonperso"
    with serving(answer=by_words) as api:
        for command in (judge(api, runs), judge(api, runs, "--pairwise", baseline), ["judge", runs, *LOCAL]):
            code, out, err = call(command, capsys)
            assert code == 0, err
            assert "rag (seed 1): judge" in out
    assert any("<CANDIDATE>\n? " in prompt_of(body) for body in api.seen.bodies)


# -- hints --------------------------------------------------------------------------------------------------------


RUBRIC, WIN = (MetricInfo(name, f"{name}|v1", True) for name in ("judge:m", "judge-win:m:nonperso"))


def test_a_table_names_the_command_that_makes_a_column(tmp_path: Path) -> None:
    rouge = MetricInfo("rouge1", "rouge1|v1", True)
    make_run(tmp_path, "nonperso", metrics=(rouge, RUBRIC))
    make_run(tmp_path, "rag", metrics=(rouge, RUBRIC, WIN))
    board = leaderboard(find_runs(tmp_path).runs, resamples=50)
    assert not [note for note in board.notes if note.startswith("Not ")], "a baseline has no wins against itself"
    make_run(tmp_path, "pag", metrics=(rouge,))
    board = leaderboard(find_runs(tmp_path).runs, resamples=50)
    assert [note for note in board.notes if note.startswith("Not ")] == [
        "Not judged by all judges: pag; python -m bench judge does it."
    ]
    make_run(tmp_path, "dep", metrics=(RUBRIC, WIN))
    board = leaderboard(find_runs(tmp_path).runs, resamples=50)
    assert "Not fully scored: dep; python -m bench score does it." in board.notes


def test_a_ceiling_does_not_ask_for_judges_by_metric(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        assert call(judge(api, runs), capsys)[0] == 0
    shutil.rmtree(only_run(runs, "reference").parent)
    code, _, err = call(["ceiling", runs], capsys)
    assert code == 0, err
    assert "judge:" not in err
    assert "name them with --metrics" not in err
