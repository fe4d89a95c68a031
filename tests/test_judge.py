"""Language models as judges: strict reading, swapped positions, retries, counts, agreement; against local servers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_server import KEY, MODEL, Act, ApiServer, prompt_of, serving
from cli_world import FAKE, call, only_run
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from bench import weights
from bench.engines.fake import FakeEngine
from bench.engines.hf import HFConfig, HFEngine
from bench.judge import wording
from bench.judge.agreement import agreement
from bench.judge.metric import TRIES, Asker, JudgeScore, JudgeWin
from bench.metrics.base import ScoreInput

Capture = pytest.CaptureFixture[str]
QUICK = ("--set", "openai.backoff=0.01", "--set", "openai.retries=1", "--set", "openai.endpoint=judges")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "number"),
    [("7.5", 7.5), ("0", 0.0), ("10", 10.0), (" 8\n", 8.0), ("10.0", 10.0), ("6.25", 6.25), ("9.99", 9.99)],
)
def test_a_number_is_a_number(reply: str, number: float) -> None:
    assert wording.read_number(reply) == number


@pytest.mark.parametrize(
    "reply",
    ["", " ", "11", "10.5", "-1", "+3", "7,5", "7/10", "Score: 7", "7.", ".5", "7 8", "seven", "1e1", "nan", "07", "٧",
     "I would say 7", "7 because it is good", "100", "7\n8", "**7**"],
)  # fmt: skip
def test_anything_else_is_none(reply: str) -> None:
    assert wording.read_number(reply) is None


@given(reply=st.text(max_size=12))
def test_whatever_is_read_is_what_stands_there(reply: str) -> None:
    number = wording.read_number(reply)
    if number is not None:
        assert 0 <= number <= 10
        assert float(reply) == number


@given(whole=st.integers(0, 9), decimals=st.integers(0, 99))
def test_every_decimal_is_read(whole: int, decimals: int) -> None:
    assert wording.read_number(f"{whole}.{decimals:02d}") == pytest.approx(whole + decimals / 100)


def test_sides() -> None:
    assert [wording.read_side(reply) for reply in ("A", " b\n", "tie", "TIE")] == [1.0, 0.0, 0.5, 0.5]
    assert [wording.read_side(reply) for reply in ("", "C", "A.", "A or B", "both", "Text A", "1")] == [None] * 7


# -- asking, without a server -------------------------------------------------------------------------------------


class Scripted(FakeEngine):
    """Says what a function of the prompt says, and remembers what it was asked."""

    def __init__(self, say: Callable[[str], str]) -> None:
        super().__init__()
        self.say, self.asked = say, []

    def _answer(self, request: Any) -> Any:
        prompt = "\n".join(message.content for message in request.messages)
        self.asked.append(request)
        got = super()._answer(request)
        return type(got)(self.say(prompt), got.prompt_tokens, 1, "stop")


def items(texts: Sequence[str | None]) -> list[ScoreInput]:
    return [ScoreInput(f"e{i}", f"u{i}", text, f"reference {i}") for i, text in enumerate(texts)]


def test_replies_that_cannot_be_read_are_asked_for_again_and_then_none(tmp_path: Path) -> None:
    def say(prompt: str) -> str:
        urgency = prompt.count(wording.AGAIN)
        if "stubborn" in prompt:
            return "A fine text!"
        return "11" if "slow" in prompt and urgency < 2 else "" if "empty" in prompt and urgency < 1 else "7.5"

    engine = Scripted(say)
    metric = JudgeScore(Asker(engine, tmp_path), "m")
    done: list[int] = []
    got = metric.values(items(["good", "slow", "stubborn", "empty", None]), done.append)
    assert got == [[7.5], [7.5], None, [7.5], None]
    assert sum(done) == 4
    assert metric.asker.spent.unreadable == 2 + TRIES + 1
    assert metric.asker.spent.replies == 1 + 3 + TRIES + 2 == len(engine.asked)
    assert all(request.sampling.temperature == 0 for request in engine.asked)
    again = JudgeScore(Asker(engine, tmp_path), "m")
    assert again.values(items(["good", "slow", "stubborn", "empty", None])) == got
    assert again.asker.spent.replies == 0
    assert len(engine.asked) == 1 + 3 + TRIES + 2


def test_the_judge_sees_both_texts_and_each_in_its_place() -> None:
    (_, user) = wording.rubric_prompt("the real one", "the made one")
    assert re.search(
        r"<REFERENCE>\nthe real one\n</REFERENCE>.*<CANDIDATE>\nthe made one\n</CANDIDATE>", user.content, re.S
    )
    (_, user) = wording.pair_prompt("real", "x", "y")
    assert re.search(r"real.*<A>\nx\n</A>.*<B>\ny\n</B>", user.content, re.S)


def prefers(good: str) -> Callable[[str], str]:
    def say(prompt: str) -> str:
        first, second = re.findall(r"<[AB]>\n(.*?)\n</[AB]>", prompt)
        return "TIE" if (good in first) == (good in second) else "A" if good in first else "B"

    return say


def test_a_pair_is_judged_in_both_positions(tmp_path: Path) -> None:
    texts = {f"e{i}": text for i, text in enumerate(["bad", "good", "good", None, "bad"])}
    inputs = items(["good", "good", "bad", "good", None])
    metric = JudgeWin(Asker(Scripted(prefers("good")), tmp_path), "m", "base", texts, "k")
    assert metric.values(inputs) == [[1.0], [0.5], [0.0], None, None]
    assert (metric.consistent, metric.both) == (3, 3)


@pytest.mark.parametrize("bias", ["A", "B"])
def test_a_judge_that_looks_at_positions_alone_finds_no_winner(bias: str, tmp_path: Path) -> None:
    texts = {f"e{i}": "other" for i in range(5)}
    metric = JudgeWin(Asker(Scripted(lambda _: bias), tmp_path), "m", "base", texts, "k")
    assert metric.values(items(["own"] * 5)) == [[0.5]] * 5
    assert (metric.consistent, metric.both) == (0, 5)


def test_a_pair_with_one_verdict_is_none(tmp_path: Path) -> None:
    def say(prompt: str) -> str:
        return "A" if re.search(r"<A>\nown", prompt) else "hard to say"

    metric = JudgeWin(Asker(Scripted(say), tmp_path), "m", "base", {"e0": "other"}, "k")
    assert metric.values(items(["own"])) == [None]


def test_the_signature_tells_model_and_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = JudgeScore(Asker(FakeEngine(), tmp_path), "m").signature()
    assert f"prompt:{wording.prompt_hash(wording.RUBRIC)}" in usual
    assert "model:none" in usual
    others = [
        JudgeScore(Asker(FakeEngine(), tmp_path, temperature=0.5), "m").signature(),
        JudgeScore(Asker(FakeEngine(), tmp_path, reply_tokens=99), "m").signature(),
        JudgeWin(Asker(FakeEngine(), tmp_path), "m", "base", {}, "k").signature(),
        JudgeWin(Asker(FakeEngine(), tmp_path), "m", "base", {}, "other").signature(),
    ]
    monkeypatch.setattr(wording, "AGAIN", "please")
    others.append(JudgeScore(Asker(FakeEngine(), tmp_path), "m").signature())
    assert len({usual, *others}) == 6


# -- agreement ----------------------------------------------------------------------------------------------------


def test_agreement_equals_other_libraries() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    stream = random.Random(3)
    first = [stream.choice([None, *range(11)]) for _ in range(200)]
    second = [None if stream.random() < 0.1 else min(10, max(0, (a or 5) + stream.randint(-3, 3))) for a in first]
    found = agreement(first, second)
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    a, b = (np.array(side, dtype=float) for side in zip(*both, strict=True))
    assert found.texts == len(both)
    assert found.kappa == pytest.approx(sklearn_metrics.cohen_kappa_score(a, b, weights="quadratic"))
    ranks = [np.array([np.mean(np.flatnonzero(np.sort(x) == v)) for v in x]) for x in (a, b)]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_agreement_has_its_bounds() -> None:
    assert agreement([1, 5, 9], [1, 5, 9]).kappa == 1.0
    assert agreement([0, 10], [10, 0]).spearman == pytest.approx(-1)
    assert agreement([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], 0.5).kappa == 1.0
    assert agreement([5, 5, 5], [1, 2, 3]) == agreement([5, 5, None], [1, 2, 3]).__class__(3, None, None)
    assert agreement([1, None], [None, 2]).texts == 0


# -- the verb, against servers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two methods on a tiny world."""
    from bench.__main__ import main

    out = tmp_path_factory.mktemp("judged") / "runs"
    with pytest.raises(SystemExit) as ended:
        main([*FAKE, "--methods", "nonperso,copy-last", "--out", str(out)])
    assert ended.value.code == 0
    return out


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def by_words(body: dict[str, Any]) -> tuple[str, int, int]:
    """A judge that counts shared words: 0 to 10, or the side that shares more."""
    prompt = prompt_of(body)
    texts = {name: set(text.split()) for name, text in re.findall(r"<(\w+)>\n(.*?)\n</\1>", prompt, re.S)}
    share = {name: len(texts["REFERENCE"] & words) / max(1, len(words)) for name, words in texts.items()}
    if "CANDIDATE" in share:
        return f"{10 * share['CANDIDATE']:.1f}", len(prompt.split()), 2
    side = "A" if share["A"] > share["B"] else "B" if share["B"] > share["A"] else "TIE"
    return side, len(prompt.split()), 1


def judge(api: ApiServer, runs: Path, *more: str | Path, model: str = MODEL) -> list[str | Path]:
    return ["judge", runs, "--judge-model", model, "--base-url", api.url, *QUICK, *more]


def test_scores_stand_in_the_table_and_are_not_asked_twice(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        code, out, err = call(judge(api, runs), capsys)
        assert code == 0, err
        assert api.requests == 24
        assert "judging 2 runs: 24 prompts, about " in err
        assert f"judged with {api.seen.prompt_tokens:,} prompt and {api.seen.output_tokens:,} new tokens" in err
        code, again, err = call(judge(api, runs), capsys)
        assert (code, api.requests) == (0, 24), err
        assert again == out
    scores = [json.loads(line) for line in (only_run(runs, "copy-last") / "scores.jsonl").read_text().splitlines()]
    values = [row["scores"]["judge:tiny"] for row in scores]
    mean = sum(value[0] if isinstance(value, list) else value for value in values) / 12
    assert f"judge:tiny {mean:.3f} [" in out
    assert all({"rouge1", "length_ratio"} < set(row["scores"]) for row in scores)
    code, table, err = call(["table", runs], capsys)
    assert code == 0, err
    assert "judge:tiny" in table
    assert f"prompt:{wording.prompt_hash(wording.RUBRIC)}" in " ".join(table.split()).replace(" ", "")


def test_pairs_give_a_win_rate_with_an_interval(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        baseline = only_run(runs, "nonperso")
        code, out, err = call(judge(api, runs, "--pairwise", baseline), capsys)
        assert code == 0, err
        assert api.requests == 24
    line = re.fullmatch(
        r"copy-last \(seed 0\): judge-win:tiny:nonperso (\S+) \[(\S+), (\S+)\], 12 of 12 the same.*\n", out
    )
    assert line is not None, out
    rate, low, high = map(float, line.groups())
    assert 0 <= low <= rate <= high <= 1
    references = {}
    for name in ("copy-last", "nonperso"):
        rows = [json.loads(r) for r in (only_run(runs, name) / "records.jsonl").read_text().splitlines()]
        references[name] = {row["example_id"]: row["text"] for row in rows}
    bodies = [prompt_of(body) for body in api.seen.bodies]
    wins = 0.0
    for example, own in references["copy-last"].items():
        other = references["nonperso"][example]
        prompt = next(p for p in bodies if f"<A>\n{own}\n</A>" in p and f"<B>\n{other}\n</B>" in p)
        truth = set(re.findall(r"<REFERENCE>\n(.*?)\n</REFERENCE>", prompt, re.S)[0].split())
        shares = [len(truth & set(text.split())) / max(1, len(set(text.split()))) for text in (own, other)]
        wins += 1.0 if shares[0] > shares[1] else 0.5 if shares[0] == shares[1] else 0.0
    assert rate == pytest.approx(wins / 12, abs=5e-4)


def misbehaving(prompt: str, attempt: int, level: int) -> Act:
    """By the candidate's words: a few texts meet a server that never recovers, the rest one that comes round."""
    kind = sum(prompt.split("<CANDIDATE>")[-1].encode()) % 8
    told = prompt.count(wording.AGAIN)
    if kind == 0:
        return ("status", 500)
    if kind == 1:
        return ("choices",)
    if kind == 2 and attempt == 0 and not told:
        return ("status", 429, "busy", {"Retry-After": "0.01"})
    if kind == 3 and attempt == 0 and not told:
        return "hang"
    return "ok"


def test_a_server_that_misbehaves_loses_nothing_and_scores_nothing_wrongly(runs: Path, capsys: Capture) -> None:
    def answer(body: dict[str, Any]) -> tuple[str, int, int]:
        prompt = prompt_of(body)
        kind = sum(prompt.replace(wording.AGAIN, "").split("<CANDIDATE>")[-1].encode()) % 8
        odd = {4: "11", 5: "I like it, 7 of 10."}.get(kind)
        if kind == 6 and wording.AGAIN not in prompt:
            odd = ""
        return (odd, 9, 3) if odd is not None else ("7.5", 9, 3)

    with serving(misbehaving, answer) as api:
        code, out, err = call(judge(api, runs, "--set", "openai.timeout=0.8"), capsys)
    assert code == 0, err
    told = 0
    for name in ("nonperso", "copy-last"):
        run = only_run(runs, name)
        rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
        values = [row["scores"]["judge:tiny"] for row in rows]
        assert set(map(str, values)) <= {"7.5", "[7.5]", "None"}
        missing = sum(value is None for value in values)
        told += missing
        assert (f"{name} (seed 0): judge:tiny 7.500 [7.500, 7.500]" in out) == (missing < 12)
        assert f"{name} (seed 0): judge:tiny 7.500 [7.500, 7.500], {missing} of 12 None" in out or not missing
    prompts = {prompt_of(body).replace(wording.AGAIN, "") for body in api.seen.bodies}
    kinds = [sum(prompt.split("<CANDIDATE>")[-1].encode()) % 8 for prompt in prompts]
    assert told >= sum(kind in (0, 1, 4, 5) for kind in kinds) > 0
    code, table, err = call(["table", runs, "--metrics", "judge:tiny"], capsys)
    assert code == 0, err
    note = re.search(r"Values that are missing, counted and not averaged: ([^.]*)\.", " ".join(table.split()))
    assert note is not None, table
    assert sum(map(int, re.findall(r"\b\d+\b", note[1]))) == told


def test_a_budget_or_a_refused_key_keeps_what_was_judged(
    runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(answer=by_words) as api:
        code, _, err = call(judge(api, runs, "--max-requests", "10"), capsys)
        assert code == 2
        assert "--max-requests 10 is reached" in err
        api.script = lambda *_: ("echo", 401)
        code, out, more = call(judge(api, runs), capsys)
        assert code == 2
        assert KEY not in err + out + more
        before, api.script = api.requests, lambda *_: "ok"
        code, _, err = call(judge(api, runs), capsys)
        assert code == 0, err
        assert api.requests - before == 14


def test_judges_that_agree_and_those_that_do_not(runs: Path, capsys: Capture) -> None:
    code, _, err = call(["judge", runs, "--judges"], capsys)
    assert code == 2
    assert "no two judges" in err
    with serving(answer=by_words) as api:
        assert call(judge(api, runs), capsys)[0] == 0
        assert call(judge(api, runs, model="org/twin"), capsys)[0] == 0
        api.answer = lambda body: (f"{10 - float(by_words(body)[0]):.1f}", 3, 2)
        assert call(judge(api, runs, model="contrary"), capsys)[0] == 0
    code, out, err = call(["judge", runs, "--judges"], capsys)
    assert code == 0, err
    lines = dict(line.split(": ", 1) for line in out.replace("judge:", "").splitlines())
    assert lines["org--twin, tiny"] == "24 texts, Spearman 1.000, weighted kappa 1.000"
    assert lines["contrary, tiny"].startswith("24 texts, Spearman -1.000, weighted kappa -")


def test_an_estimate_comes_first_and_alone_if_asked(runs: Path, capsys: Capture) -> None:
    with serving(answer=by_words) as api:
        prices = ["--set", "openai.price_in=1", "--set", "openai.price_out=4"]
        code, out, err = call(judge(api, runs, "--dry-run", *prices), capsys)
        assert (code, api.requests) == (0, 0), err
    assert out == "nothing was asked\n"
    told = re.search(r"24 prompts, about ([\d,]+) tokens, up to 192 new ones, cost about (\S+) if", err)
    assert told is not None
    assert float(told[2]) == pytest.approx((int(told[1].replace(",", "")) + 4 * 192) / 1e6, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--judge-engine", "openai"), "--judge-model is missing"),
        (("--judge-model", "m"), "does not know its server"),
        (("--judge-model", "m", "--judge-engine", "opnai"), "did you mean 'openai'"),
        (("--judge-model", "m", "--base-url", "http://h/v1", "--set", "hf.dtype=auto"), "unknown part"),
        (("--judge-model", "m", "--base-url", "http://h/v1", "--pairwise", "nowhere"), "no folder of runs at nowhere"),
    ],
)
def test_slips_are_told(arguments: Sequence[str], words: str, runs: Path, capsys: Capture) -> None:
    code, _, err = call(["judge", runs, *arguments], capsys)
    assert code == 2
    assert words in err


@pytest.mark.slow
@pytest.mark.weights
def test_a_real_model_judges_at_home_and_over_http(tmp_path: Path, capsys: Capture) -> None:
    """SmolLM2 seldom keeps to the form: what counts is that both ways say the same and Nones are counted."""
    from test_openai_real import served

    assert call([*FAKE, "--methods", "copy-last", "--limit", "2", "--out", tmp_path], capsys)[0] == 0
    one = only_run(tmp_path, "copy-last")
    more = ["--set", "hf.dtype=float32", "--set", "hf.max_batch=1"]
    code, out, err = call(["judge", one, "--judge-engine", "hf", "--judge-model", "smollm2-135m", *more], capsys)
    assert code == 0, err
    home = HFEngine(weights.resolve("smollm2-135m", "llm"), HFConfig(device="cpu", dtype="float32"))
    with serving(answer=served(home)) as api:
        code, there, err = call(judge(api, one, "--set", "openai.omit=[]", model="smollm2"), capsys)
        assert code == 0, err
        assert api.requests >= 2
    assert out.split("judge:smollm2-135m")[1] == there.split("judge:smollm2")[1]
