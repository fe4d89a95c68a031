"""The engine of chat-completions endpoints, against a local server that misbehaves as it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from api_server import KEY, MODEL, Act, ApiServer, closed_port, fake_answer, prompt_of, serving
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from bench.config import build
from bench.engines import openai_limits
from bench.engines import openai_wire as wire
from bench.engines.openai import OpenAIEngine
from bench.engines.openai_answers import AnswerFile
from bench.engines.openai_config import OpenAIConfig
from bench.engines.openai_jobs import estimate
from bench.errors import UsageError
from bench.keys import digest
from bench.types import Generation, Message, Request, Sampling

QUICK: dict[str, Any] = {"backoff": 0.01, "timeout": 20.0}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serving() as server:
        yield server


def asks(count: int, seed: int = 0, **sampling: Any) -> list[Request]:
    """Different prompts of a few words each."""
    shape = Sampling(**{"max_new_tokens": 20, **sampling})
    return [
        Request(f"e{i}", "generate", (Message("user", f"p{i} one two three"),), shape, seed * 1000 + i)
        for i in range(count)
    ]


def engine_of(api: ApiServer | str, folder: Path | None = None, model: str = MODEL, **knobs: Any) -> OpenAIEngine:
    url = api if isinstance(api, str) else api.url
    engine = OpenAIEngine(model, OpenAIConfig(base_url=url, **{**QUICK, **knobs}))
    if folder is not None:
        engine.keep_under(folder)
    return engine


def answers(engine: OpenAIEngine, requests: Sequence[Request]) -> list[Generation]:
    try:
        return engine.answers(requests)
    finally:
        engine.close()


def expected(requests: Sequence[Request]) -> list[str]:
    """What the server writes when it is well."""
    return [
        fake_answer({"messages": [{"role": "user", "content": r.messages[0].content}], "seed": r.seed,
                     "temperature": r.sampling.temperature, "top_p": r.sampling.top_p,
                     "max_tokens": r.sampling.max_new_tokens})[0]
        for r in requests
    ]  # fmt: skip


def test_answers_come_in_order_while_many_are_asked_at_once(api: ApiServer) -> None:
    requests = asks(30)
    late = prompt_of({"messages": [{"content": requests[0].messages[0].content}]})
    api.script = lambda prompt, attempt, level: ("ok", 0.3 if prompt == late else 0.02)
    engine, told = engine_of(api, concurrency=6), []
    got = []
    for result in engine.stream([[r] for r in requests], told.append):
        got.append(result.generations[0].text)
        if len(got) == 1:  # the first was the slowest: others did not wait for it
            assert api.requests > 6
    engine.close()
    assert got == expected(requests)
    assert sum(told) == 30
    assert 1 < api.seen.most_at_once <= 6


def test_what_is_sent(api: ApiServer) -> None:
    big = Request("e", "generate", (Message("system", "be brief"), Message("user", "lone \ud800 half")),
                  Sampling(0.7, 0.9, 33), 2**63 - 5)  # fmt: skip
    (answer,) = answers(engine_of(api), [big])
    assert answer.error is None
    (body,) = api.seen.bodies
    assert body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "lone ? half"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": (2**63 - 5) % 2**31,
        "max_tokens": 33,
    }
    knobs: dict[str, Any] = {"omit": ("top_p", "temperature"), "extra": {"top_k": 5}}
    api.answer = lambda body: ("fine", 3, 1)
    answers(engine_of(api, max_tokens_field="max_completion_tokens", **knobs), asks(1, min_new_tokens=4))
    assert {*api.seen.bodies[1]} == {"model", "messages", "seed", "max_completion_tokens", "min_tokens", "top_k"}
    assert "sk-" not in api.seen.headers[0]["authorization"]


def test_the_key_of_the_environment_is_sent(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", "another")
    answers(engine_of(api), asks(1))
    answers(engine_of(api, key_variable="MY_KEY"), asks(1))
    assert [headers["authorization"] for headers in api.seen.headers] == [f"Bearer {KEY}", "Bearer another"]


SOON = 0.3
FAULTS: dict[str, Act] = {
    "HTTP 429": ("status", 429, "slow down"),
    "HTTP 429 with a wait": ("status", 429, "slow down", {"Retry-After": str(SOON)}),
    "HTTP 500": ("status", 500, "oops"),
    "HTTP 503": ("status", 503, "busy", {"Retry-After": "0"}),
    "HTTP 408": ("status", 408),
    "timed out": "hang",
    "timed out, dripping": "drip",
    "connection lost": "cut",
    "connection lost at once": "drop",
    "garbage": "garbage",
    "garbage, a list": ("garbage", "[1, 2]"),
    "garbage, half": ("garbage", '{"choices": [{"mess'),
    "no choices in the answer": "choices",
    "no choices in the answer, none": ("choices", [None]),
    "no content in the answer": "null",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_changes_nothing_but_the_time(fault: str) -> None:
    requests = asks(6)
    hit = {"p1 one two three", "p4 one two three"}
    with serving(lambda prompt, attempt, level: FAULTS[fault] if prompt in hit and attempt == 0 else "ok") as api:
        engine = engine_of(api, timeout=0.6 if "timed out" in fault else 20.0)
        got = answers(engine, requests)
    assert [answer.text for answer in got] == expected(requests)
    assert not any(answer.error or answer.estimated for answer in got)
    assert [answer.prompt_tokens for answer in got] == [11] * 6
    assert api.requests == 8
    assert dict(engine.tally.again) == {
        fault.partition(",")[0].removesuffix(" with a wait").removesuffix(" at once"): 2
    }
    assert "2 retries" in str(engine.told())


@pytest.mark.parametrize("fault", [name for name in FAULTS if "429" not in name and "503" not in name])
def test_a_lasting_fault_is_the_records_error_after_some_attempts(fault: str) -> None:
    requests = asks(4)
    with serving(lambda prompt, attempt, level: FAULTS[fault] if prompt.startswith("p2") else "ok") as api:
        engine = engine_of(api, retries=2, timeout=0.4 if "timed out" in fault else 20.0)
        got = answers(engine, requests)
    assert [answer.text for i, answer in enumerate(got) if i != 2] == [
        t for i, t in enumerate(expected(requests)) if i != 2
    ]
    assert fault.partition(",")[0].removesuffix(" at once") in str(got[2].error)
    assert "after 3 attempts" in str(got[2].error)
    assert (got[2].text, got[2].finish_reason) == ("", "error")
    assert api.attempts["p2 one two three"] == 3
    assert "1 FAILED" in str(engine.told())


TOO_LONG = {"message": "This model's maximum context length is 99 tokens.", "code": "context_length_exceeded"}


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (("status", 400, "no such parameter"), "HTTP 400: no such parameter"),
        (("status", 422, "no such parameter"), "HTTP 422"),
        (("status", 400, TOO_LONG), "too long for the model's context"),
        (
            ("status", 400, "The decoder prompt is longer than max_model_len of 2048"),
            "too long for the model's context",
        ),
        (("null", "content_filter"), "withheld by the server"),
        (("null", "length"), "larger --max-new-tokens"),
    ],
)
def test_what_would_fail_again_is_asked_once(act: Act, words: str) -> None:
    requests = asks(4)
    with serving(lambda prompt, attempt, level: act if prompt.startswith("p1") else "ok") as api:
        got = answers(engine_of(api), requests)
    assert api.requests == 4
    assert words in str(got[1].error)
    assert [answer.error for i, answer in enumerate(got) if i != 1] == [None] * 3


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (("status", 401, "bad key"), "HTTP 401: bad key"),
        (("status", 403, "not yours"), "HTTP 403: not yours"),
        (("status", 404, {"message": "no model tiny", "code": "model_not_found"}), "HTTP 404: no model tiny"),
        (("status", 400, {"message": "no model tiny", "code": "model_not_found"}), "HTTP 400: no model tiny"),
        (("status", 402, "pay first"), "HTTP 402: pay first"),
        (("status", 429, {"message": "you spent it all", "code": "insufficient_quota"}), "you spent it all"),
        (("status", 429, "later", {"Retry-After": "7200"}), "left alone for 7200 s"),
    ],
)
def test_what_fails_for_all_ends_the_run_with_everything_kept(act: Act, words: str, tmp_path: Path) -> None:
    requests = asks(20)
    bad = {"status": True}
    with serving(
        lambda prompt, attempt, level: act if bad["status"] and prompt.startswith("p7 ") else ("ok", 0.02)
    ) as api:
        engine, got = engine_of(api, tmp_path, concurrency=3), []
        with pytest.raises(UsageError, match=words) as told:
            got.extend(engine.stream([[r] for r in requests]))
        engine.close()
        assert api.attempts["p7 one two three"] == 1
        first = api.requests
        assert 8 <= first < 16  # what was in flight came home, nothing more was sent
        assert f"{first - 1} of 20 answers are kept" in str(told.value)
        assert "\n" not in str(told.value)
        assert [result.generations[0].text for result in got] == expected(requests)[:7]
        bad["status"] = False
        again = answers(engine_of(api, tmp_path), requests)
        assert api.requests == first + 20 - (first - 1)
    assert [answer.text for answer in again] == expected(requests)
    assert sum(answer.cached for answer in again) == first - 1


def test_a_server_that_is_not_there_ends_the_run() -> None:
    engine = engine_of(closed_port(), retries=1)
    with pytest.raises(UsageError, match=r"server http://127\.0\.0\.1:\d+/v1, model 'tiny': cannot be reached"):
        answers(engine, asks(3))


def test_settings_that_no_request_survives_end_the_run_early() -> None:
    with serving(lambda *_: ("status", 400, "unsupported parameter: top_p")) as api:
        with pytest.raises(UsageError, match="the first 8 requests are all rejected: HTTP 400: unsupported"):
            answers(engine_of(api, concurrency=2), asks(40))
        assert api.requests <= 9


BAD = {"502": ("status", 502, "bad gateway"), "garbage": "garbage", "no content": "null"}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_a_server_behind_a_proxy_that_is_dead_ends_the_run(fault: str, concurrency: int, tmp_path: Path) -> None:
    requests, dead = asks(30), {"is": False}
    with serving(lambda *_: BAD[fault] if dead["is"] else "ok") as api:
        answers(engine_of(api, tmp_path), requests[:6])
        dead["is"] = True
        engine = engine_of(api, tmp_path, retries=1, concurrency=concurrency)
        got: list[Any] = []
        with pytest.raises(UsageError, match="8 requests in a row got no answer") as told:
            got.extend(engine.stream([[r] for r in requests]))
        engine.close()
        assert "6 of 30 answers are kept" in str(told.value)
        assert [result.generations[0].text for result in got] == expected(requests)[:6]  # and no failure among them
        assert api.requests <= 6 + 2 * (8 + concurrency)
        dead["is"] = False
        again = answers(engine_of(api, tmp_path), requests)
    assert [answer.text for answer in again] == expected(requests)


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("count", [1, 5])
def test_a_few_requests_to_a_server_that_is_dead_are_no_failures(fault: str, count: int, tmp_path: Path) -> None:
    requests, dead = asks(count), {"is": True}
    with serving(lambda *_: BAD[fault] if dead["is"] else "ok") as api:
        engine = engine_of(api, tmp_path, retries=1)
        with pytest.raises(UsageError, match=rf"no request got an answer.*0 of {count} answers are kept"):
            list(engine.stream([[r] for r in requests]))
        engine.close()
        assert api.requests == 2 * count
        dead["is"] = False
        again = answers(engine_of(api, tmp_path), requests)
    assert [answer.text for answer in again] == expected(requests)


def test_one_that_fails_where_others_are_on_disk_is_a_failure(tmp_path: Path) -> None:
    """Else a run with one prompt that the server cannot answer would never end."""
    requests = asks(3)
    last = requests[2].messages[0].content
    with serving(lambda prompt, attempt, level: BAD["502"] if prompt == last else "ok") as api:
        answers(engine_of(api, tmp_path), requests[:2])
        got = answers(engine_of(api, tmp_path, retries=1), requests)
    assert [answer.error is None for answer in got] == [True, True, False]


def test_failures_between_answers_end_nothing() -> None:
    """Two of three fail for good, 20 in all, but never 8 in a row."""
    requests = asks(30)
    well = {r.messages[0].content for r in requests[::3]}
    with serving(lambda prompt, attempt, level: "ok" if prompt in well else BAD["502"]) as api:
        got = answers(engine_of(api, retries=1, concurrency=2), requests)
    assert [answer.error is None for answer in got] == [i % 3 == 0 for i in range(30)]


def test_requests_that_fail_while_others_are_answered_tell_nothing_of_the_server() -> None:
    """Ten fail for good at one moment, but an answer came after each one's first attempt."""
    requests = asks(11)

    def script(prompt: str, attempt: int, level: int) -> Act:
        if prompt.startswith("p10 "):
            return "ok", 0.3
        return "status", 502, "bad gateway"

    with serving(script) as api:
        got = answers(engine_of(api, retries=1, concurrency=11, backoff=2.0), requests)
    assert [answer.error is None for answer in got] == [False] * 10 + [True]


def test_rejections_are_not_stored_by_a_run_that_they_end(tmp_path: Path) -> None:
    got: list[Any] = []
    with serving(lambda *_: ("status", 400, "unsupported parameter")) as api:
        engine = engine_of(api, tmp_path, concurrency=1)
        with pytest.raises(UsageError, match="the first 8 requests are all rejected"):
            got.extend(engine.stream([[r] for r in asks(20)]))
        engine.close()
    assert got == []


def test_rejections_beside_answers_on_disk_end_nothing(tmp_path: Path) -> None:
    """What is left to ask is what was rejected before, so all of it may be."""
    requests = asks(30)
    with serving(lambda prompt, *_: "ok" if int(prompt[1:].split()[0]) < 15 else ("status", 400, "no")) as api:
        first = answers(engine_of(api, tmp_path), requests)
        again = answers(engine_of(api, tmp_path), requests)
    assert [answer.error for answer in again] == [answer.error for answer in first]
    assert [answer.text for answer in again[:15]] == expected(requests[:15])
    assert {answer.error for answer in again[15:]} == {"HTTP 400: no"}


def test_the_limit_falls_when_the_server_refuses_and_is_never_exceeded() -> None:
    requests = asks(80)
    with serving(lambda prompt, attempt, level: ("status", 429, "busy") if level > 4 else ("ok", 0.02)) as api:
        engine = engine_of(api, concurrency=16)
        got = answers(engine, requests)
    assert [answer.text for answer in got] == expected(requests)
    assert 4 < api.seen.most_at_once <= 16
    late = api.seen.levels[len(api.seen.levels) // 2 :]
    assert max(late) <= 8
    assert engine.tally.again["HTTP 429"] > 0
    assert ", down to " in str(engine.told())


def test_a_wait_in_seconds_is_kept_by_all() -> None:
    times: dict[str, float] = {}

    def script(prompt: str, attempt: int, level: int) -> Act:
        if prompt.startswith("p0") and attempt == 0:
            times["refused"] = time.monotonic()
            return "status", 429, "wait", {"Retry-After": "0.6"}
        return "ok", 0.05

    with serving(script) as api:
        answers(engine_of(api, concurrency=2), asks(8))
    others = [t for t in api.seen.times if t > times["refused"] + 0.05]  # one was on its way already
    assert min(others) - times["refused"] >= 0.6


def test_a_wait_until_a_date_is_kept() -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    header = {"Retry-After": format_datetime(until, usegmt=True)}
    with serving(lambda prompt, attempt, level: ("status", 503, "wait", header) if attempt == 0 else "ok") as api:
        (answer,) = answers(engine_of(api), asks(1))
        assert answer.error is None
        assert datetime.now(UTC) >= until
    assert api.requests == 2


def test_a_server_that_only_refuses_is_not_asked_for_ever() -> None:
    with (
        serving(lambda *_: ("status", 429, "no room")) as api,
        pytest.raises(UsageError, match=r"refuses everything for .* no room"),
    ):
        answers(engine_of(api, patience=0.3), asks(3))


def test_one_request_that_is_always_refused_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_limits, "LONGEST_BACKOFF", 0.002)

    def script(prompt: str, attempt: int, level: int) -> Act:
        return ("status", 429, "too many tokens") if prompt.startswith("p1 ") else "ok"

    with serving(script) as api:
        engine = engine_of(api, backoff=0.0001, patience=600.0)
        got = answers(engine, asks(3))
    assert [answer.error is None for answer in got] == [True, False, True]
    assert "refused 31 times" in str(got[1].error)


def test_tokens_are_estimated_where_the_server_counts_none_and_that_is_said(api: ApiServer) -> None:
    api.usage = False
    requests = asks(3)
    engine = engine_of(api)
    got = answers(engine, requests)
    assert all(answer.estimated for answer in got)
    assert [g.prompt_tokens for g in got] == [engine.count_tokens(r.messages) for r in requests]
    assert [g.output_tokens for g in got] == [estimate(g.text) for g in got]
    assert "those of 3 answers estimated" in str(engine.told())


@pytest.mark.parametrize("name", ["n", "stream", "messages", "model", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [4, True, None, "abc"])
def test_what_the_engine_sends_itself_is_refused_in_extra(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"openai\.extra = .* is not valid: it may not hold {name}: "):
        build(OpenAIConfig, {"extra": {"top_k": 3, name: value}}, "openai")


@pytest.mark.parametrize("value", [float("nan"), datetime(2026, 1, 1, tzinfo=UTC), "\ud800", [{"a": {1, 2}}]])
def test_what_is_no_json_is_refused_in_extra(value: Any) -> None:
    with pytest.raises(UsageError, match=r"openai\.extra = .* is not valid: it holds a value that JSON has not"):
        build(OpenAIConfig, {"extra": {"odd": value}}, "openai")


def test_half_a_character_in_an_answer_harms_nothing(api: ApiServer, tmp_path: Path) -> None:
    api.answer = lambda body: ("half \ud83d of it, \U0001f600", 3, 3)
    (answer,) = answers(engine_of(api, tmp_path), asks(1))
    assert answer.text == "half ? of it, \U0001f600"
    assert digest(answer.text) == digest("half ? of it, \U0001f600")
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_text(path.read_text().replace("half ?", r"half \udfff"))  # as older files may have it
    (again,) = answers(engine_of(api, tmp_path), asks(1))
    assert (again.text, again.cached) == (answer.text, True)
    api.script = lambda *_: ("status", 400, "no \ud800")
    (failed,) = answers(engine_of(api, tmp_path), asks(1, seed=1))
    assert failed.error == "HTTP 400: no ?"


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "function_call"])
def test_a_known_reason_to_end_is_kept(reason: str, api: ApiServer, tmp_path: Path) -> None:
    api.script = lambda *_: ("finish", reason)
    for _ in range(2):
        (answer,) = answers(engine_of(api, tmp_path), asks(1))
        assert answer.finish_reason == reason


@pytest.mark.parametrize("reason", [f"ended for {KEY}", [KEY], {"a": KEY}, 7, "eos"])
def test_an_unknown_reason_to_end_is_not_repeated(
    reason: Any, api: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    api.script = lambda *_: ("finish", reason)
    (answer,) = answers(engine_of(api, tmp_path), asks(1))
    assert (answer.text, answer.finish_reason) == ("fine", "other")
    (path,) = tmp_path.rglob("*.jsonl")
    assert KEY not in path.read_text()
    path.write_text(path.read_text().replace('"other"', json.dumps(reason)))  # as older files may have it
    (again,) = answers(engine_of(api, tmp_path), asks(1))
    assert (again.text, again.finish_reason, again.cached) == ("fine", "other", True)


# -- answers on disk ----------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(api: ApiServer, tmp_path: Path) -> None:
    requests = asks(5)
    first = answers(engine_of(api, tmp_path), requests)
    again = answers(engine_of(api, tmp_path), requests[::-1])[::-1]
    assert api.requests == 5
    assert [(g.text, g.prompt_tokens, g.output_tokens, g.finish_reason) for g in again] == [
        (g.text, g.prompt_tokens, g.output_tokens, g.finish_reason) for g in first
    ]
    assert not any(answer.cached for answer in first)
    assert all(answer.cached for answer in again)
    twins = [requests[0], asks(1, seed=9)[0], requests[0], asks(1, seed=9)[0]]
    got = answers(engine_of(api, tmp_path), twins)
    assert api.requests == 6  # another seed is another question, but asked once
    assert [answer.cached for answer in got] == [True, False, True, True]
    assert got[1].text == got[3].text


def test_whatever_changes_an_answer_is_asked_anew_and_nothing_else(api: ApiServer, tmp_path: Path) -> None:
    requests = asks(1)
    answers(engine_of(api, tmp_path), requests)
    for same in ({"concurrency": 2, "timeout": 9.0}, {"price_in": 1.0, "price_out": 2.0}):
        answers(engine_of(api, tmp_path, **same), requests)
    assert api.requests == 1
    answers(engine_of(api, tmp_path, extra={"top_k": 3}), requests)
    answers(engine_of(api, tmp_path, omit=("top_p",)), requests)
    answers(engine_of(api, tmp_path, model="other"), requests)
    answers(engine_of(api, tmp_path), asks(1, temperature=0.0))
    answers(engine_of(api, tmp_path, endpoint="elsewhere"), requests)
    assert api.requests == 6


def test_seeds_that_are_not_sent_are_questions_of_their_own(api: ApiServer, tmp_path: Path) -> None:
    numbers = iter(range(100))
    api.answer = lambda body: (f"answer {next(numbers)}", 3, 2)
    knobs: dict[str, Any] = {"omit": ("seed",), "concurrency": 1}
    both = [*asks(2, seed=0), *asks(2, seed=1)]
    got = answers(engine_of(api, tmp_path, **knobs), both)
    assert [answer.text for answer in got] == [f"answer {i}" for i in range(4)]
    assert all("seed" not in body for body in api.seen.bodies)
    again = answers(engine_of(api, tmp_path, **knobs), both[::-1])[::-1]
    assert [answer.text for answer in again] == [answer.text for answer in got]
    assert api.requests == 4


def test_a_server_with_a_name_may_move(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        with serving() as api:
            engine = engine_of(api, tmp_path, endpoint="mine")
            assert engine.identity()["base_url"] == "mine"
            texts.append((api.url, answers(engine, asks(2))))
    assert texts[0][0] != texts[1][0]
    assert all(answer.cached for answer in texts[1][1])


def test_errors_are_not_kept(tmp_path: Path) -> None:
    bad = {"status": True}
    with serving(lambda *_: ("status", 400, "no") if bad["status"] else "ok") as api:
        assert answers(engine_of(api, tmp_path), asks(1))[0].error
        bad["status"] = False
        assert answers(engine_of(api, tmp_path), asks(1))[0].error is None


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_cut_short_costs_its_own_answer_alone(api: ApiServer, tmp_path: Path, cut: int) -> None:
    requests = asks(4)
    first = answers(engine_of(api, tmp_path, concurrency=1), requests)
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    again = answers(engine_of(api, tmp_path), requests)
    assert [answer.text for answer in again] == [answer.text for answer in first]
    assert api.requests == 5
    assert len(AnswerFile(path)) == 4
    answers(engine_of(api, tmp_path), requests)
    assert api.requests == 5


def test_odd_lines_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = {
        "key": "k",
        "text": "t",
        "prompt_tokens": 1,
        "output_tokens": 1,
        "finish_reason": "stop",
        "estimated": False,
    }
    odd: list[Any] = [{}, [], 3, {**good, "key": 5}, {**good, "text": None}, {"key": "x", "text": "t"}]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*odd, good, {**good, "more": 1, "key": "m"}]) + "\n\xff\n"
    )
    found = AnswerFile(path)
    assert len(found) == 2
    assert found.get("k") == Generation("t", 1, 1, "stop")


# -- budgets ------------------------------------------------------------------------------------------------------


def test_the_budget_of_requests_counts_retries_and_is_never_exceeded(tmp_path: Path) -> None:
    requests = asks(12)
    with serving(lambda prompt, attempt, level: ("status", 500) if attempt == 0 else "ok") as api:
        for asked in (5, 10, 15, 20):
            with pytest.raises(UsageError, match=r"--max-requests 5 is reached: .* the same command goes on"):
                answers(engine_of(api, tmp_path, max_requests=5, concurrency=4), requests)
            assert api.requests == asked
        got = answers(engine_of(api, tmp_path, max_requests=5, concurrency=4), requests)
        assert 20 < api.requests <= 25
    assert [answer.text for answer in got] == expected(requests)
    assert max(api.seen.answered.values()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_of_money_is_never_exceeded(api: ApiServer, tmp_path: Path, seed: int) -> None:
    api.script = lambda prompt, attempt, level: ("ok", 0.01 * (sum(prompt.encode()) % 3))
    prices = {"price_in": 1000.0, "price_out": 5000.0}
    limit, requests = 1.5, asks(30, seed=seed)
    engine = engine_of(api, tmp_path, max_cost=limit, concurrency=7, **prices)
    with pytest.raises(UsageError, match=r"--max-cost 1\.5, of which .* is spent, is reached"):
        answers(engine, requests)
    paid = (api.seen.prompt_tokens * 1000 + api.seen.output_tokens * 5000) / 1e6
    assert 0 < paid <= limit
    assert engine.budget.spent == pytest.approx(paid)
    worst = (sum(map(len, [b"p29 one two three"])) + 16 + 256) * 1e-3 + 20 * 5e-3
    assert paid > limit - worst - 1e-9  # and it is used: stopped only where the next could have been too much


def test_lost_answers_count_at_their_worst(api: ApiServer) -> None:
    api.script = lambda prompt, attempt, level: "cut" if attempt == 0 else "ok"
    engine = engine_of(api, max_cost=100.0, price_in=1000.0, price_out=1000.0)
    (answer,) = answers(engine, asks(1))
    worst = (len("p0 one two three") + 16 + 256 + 20) / 1000
    assert engine.budget.spent == pytest.approx(worst + (answer.prompt_tokens + answer.output_tokens) / 1000)


WITHHELD: dict[str, Act] = {"filter": ("null", "content_filter"), "reasoning": ("null", "length")}


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("kind", WITHHELD)
def test_answers_that_were_withheld_are_paid_for(api: ApiServer, kind: str, usage: bool) -> None:
    api.script, api.usage = lambda *_: WITHHELD[kind], usage
    engine = engine_of(api, max_cost=100.0, price_in=1000.0, price_out=2000.0)
    (answer,) = answers(engine, asks(1))
    worst = (len("p0 one two three") + 16 + 256) * 1e-3 + 20 * 2e-3
    assert answer.error
    assert engine.budget.spent == pytest.approx(5e-3 + 3 * 2e-3 if usage else worst)
    told = (5, 3) if usage else (0, 0)
    assert (answer.prompt_tokens, answer.output_tokens) == told
    assert (engine.tally.prompt_tokens, engine.tally.output_tokens) == told


def test_what_is_refused_by_status_is_free(api: ApiServer) -> None:
    api.script = lambda *_: ("status", 400, "no")
    engine = engine_of(api, max_cost=100.0, price_in=1000.0, price_out=2000.0)
    assert answers(engine, asks(1))[0].error
    assert engine.budget.spent == 0


def test_the_tokens_of_all_attempts_count() -> None:
    """An attempt without choices takes 5 + 3 tokens, an answer 11 and its own."""
    requests = asks(2)
    with serving(lambda prompt, attempt, level: "choices" if attempt == 0 or prompt[:2] == "p1" else "ok") as api:
        engine = engine_of(api, retries=2, price_in=1000.0, price_out=1000.0)
        fine, failed = answers(engine, requests)
    assert fine.prompt_tokens == 11
    assert (failed.prompt_tokens, failed.output_tokens) == (15, 9)
    assert engine.tally.prompt_tokens == 5 + 11 + 15
    assert engine.tally.output_tokens == 3 + fine.output_tokens + 9
    assert engine.budget.spent == pytest.approx((engine.tally.prompt_tokens + engine.tally.output_tokens) / 1000)


def test_money_needs_prices() -> None:
    for prices in ({}, {"price_in": 1.0}, {"price_out": 1.0}):
        with pytest.raises(UsageError, match="--max-cost needs prices"):
            engine_of("http://127.0.0.1:1/v1", max_cost=1.0, **prices)


# -- secrets and addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_repeats_is_hidden(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda *_: ("echo", status)) as api:
        engine = engine_of(api, tmp_path, retries=1)
        try:
            told = str(answers(engine, asks(1))[0].error)
        except UsageError as error:
            told = f"{error} {error.__cause__} {error.__context__}"
    assert "bad header Bearer [secret]" in told
    assert KEY not in told + str(engine.told()) + caplog.text + str(engine.identity())


def test_a_key_that_the_server_writes_is_hidden(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    api.answer = lambda body: (f"your key is {KEY}, dear user", 3, 3)
    (answer,) = answers(engine_of(api, tmp_path), asks(1))
    assert answer.text == "your key is [secret], dear user"
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="the key in OPENAI_API_KEY holds") as told:
        engine_of("http://127.0.0.1:1/v1").prepare()
    assert key not in str(told.value)


def test_a_variable_of_ones_own_must_be_set() -> None:
    with pytest.raises(UsageError, match=r"openai\.key_variable names MY_KEY, which is not set"):
        engine_of("http://127.0.0.1:1/v1", key_variable="MY_KEY").prepare()


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://x/v1", "http://", "http://h:port/v1", "http://[::1/v1", "file:///etc/passwd"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        wire.address(url)


@pytest.mark.parametrize("url", ["http://u:hunter2@h/v1", "http://hunter2@h/v1", "http://h/v1?key=hunter2"])
def test_secrets_in_a_given_address_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_BASE_URL") as told:
        wire.address(url)
    assert "hunter2" not in str(told.value)


def test_an_address_of_the_environment_may_hold_secrets_which_are_not_shown(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", api.url.replace("//", "//me:hunter2@") + "?key=hunter3&api-version=7")
    engine = engine_of("")
    assert engine.identity()["base_url"] == api.url + "?api-version=7"
    api.script = lambda *_: ("status", 400, "no hunter2 or hunter3 here")
    (answer,) = answers(engine, asks(1))
    assert answer.error == "HTTP 400: no [secret] or [secret] here"
    assert api.seen.headers[0]["authorization"].startswith("Basic ")


def test_identity_holds_what_changes_outputs_and_nothing_else() -> None:
    def of(**knobs: Any) -> dict[str, str]:
        return engine_of("http://h:1/v1", **knobs).identity()

    usual = of()
    assert usual["base_url"] == "http://h:1/v1"
    assert usual["model"] == MODEL
    changing: list[dict[str, Any]] = [
        {"extra": {"a": 1}},
        {"omit": ("seed",)},
        {"max_tokens_field": "max_completion_tokens"},
    ]
    assert len({json.dumps(of(**knobs)) for knobs in [{}, *changing]}) == 4
    assert of(concurrency=1, price_in=1.0, price_out=1.0, max_cost=3.0, max_requests=4, retries=0) == usual
    keyed = set(OpenAIConfig.model_fields) - OpenAIEngine.unkeyed
    assert keyed == {"base_url", "endpoint", "max_tokens_field", "omit", "extra"}


# -- parsing ------------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "finish_reason", "prompt_tokens", "completion_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=_JSON)
def test_any_json_is_an_answer_or_a_fault(value: Any) -> None:
    try:
        reply = wire.parse(json.dumps(value))
    except (wire.Faulty, wire.Rejected):
        return
    assert reply.text == value["choices"][0]["message"]["content"]
    assert reply.usage is None or min(reply.usage.prompt_tokens, reply.usage.output_tokens) >= 0


@given(text=st.text(max_size=30))
def test_any_body_is_an_answer_or_a_fault(text: str) -> None:
    with pytest.raises(wire.Faulty):
        wire.parse(text)


@given(text=st.text(max_size=200))
def test_a_count_is_between_words_and_bytes(text: str) -> None:
    assert 0 <= estimate(text) <= len(text.encode("utf-8", "replace"))
