"""`run --engine openai` as a user gives it: records, kills, budgets, secrets, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from api_server import KEY, MODEL, Act, ApiServer, serving
from cli_world import TINY, call, only_run

pytest.importorskip("openai")

Capture = pytest.CaptureFixture[str]
STORED = ("records.jsonl", "scores.jsonl", "scores.json")
ASK = ("run", "--engine", "openai", "--model", MODEL, "--dataset", "planted", "--metrics", "rouge1,length_ratio", *TINY)
ASK = (*ASK, "--max-new-tokens", "24", "--set", "openai.backoff=0.01", "--set", "openai.endpoint=local")
"""The server's port differs from test to test; its name in keys does not."""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(api: ApiServer, out: Path, *more: str | Path, methods: str = "nonperso,rag") -> list[str | Path]:
    return [*ASK, "--base-url", api.url, "--out", out, "--methods", methods, *more]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for name in STORED for path in out.rglob(name)}


def kept(out: Path) -> int:
    """Whole answers on disk."""
    return sum(path.read_bytes().count(b"\n") for path in (out / "answers").rglob("*.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """What an undisturbed run stores, and how many requests it takes."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, serving() as api:
        patch.delenv("OPENAI_API_KEY", raising=False)
        from bench.__main__ import main

        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in ask(api, out)])
        assert ended.value.code == 0
        return contents(out), api.requests


def test_records_hold_what_the_server_wrote_and_counted(tmp_path: Path, capsys: Capture) -> None:
    with serving() as api:
        code, out, err = call(ask(api, tmp_path), capsys)
    assert code == 0, err
    assert "Leaderboard: planted" in out
    records = [json.loads(line) for line in (only_run(tmp_path, "rag") / "records.jsonl").read_text().splitlines()]
    assert len(records) == 12
    assert all(record["error"] is None and record["text"] for record in records)
    other = [json.loads(line) for line in (only_run(tmp_path, "nonperso") / "records.jsonl").read_text().splitlines()]
    both = [*records, *other]
    assert sum(record["prompt_tokens"] for record in both) == api.seen.prompt_tokens
    assert sum(record["output_tokens"] for record in both) == api.seen.output_tokens
    assert "tokens_estimated" not in records[0]
    assert "openai: 24 requests for 24 answers, 0 retries" in err
    manifest = json.loads((only_run(tmp_path, "rag") / "manifest.json").read_text())
    assert manifest["description"]["engine"]["model"] == MODEL
    assert manifest["description"]["engine"]["base_url"] == "local"
    assert not {"max_requests", "concurrency", "price_in"} & {*manifest["description"]["batching"]}


def test_faults_on_the_way_change_no_record(
    tmp_path: Path, capsys: Capture, whole: tuple[dict[str, bytes], int]
) -> None:
    faults: list[Act] = [("status", 429, "busy", {"Retry-After": "0.01"}), ("status", 500), "cut", "garbage", "choices"]

    def script(prompt: str, attempt: int, level: int) -> Act:
        number = sum(prompt.encode()) % 7
        return faults[number] if attempt == 0 and number < len(faults) else "ok"

    with serving(script) as api:
        code, _, err = call(ask(api, tmp_path), capsys)
    assert code == 0, err
    assert contents(tmp_path) == whole[0]
    assert api.requests > whole[1]
    assert f" {api.requests - whole[1]} retries" in err


def test_tokens_that_nobody_counted_are_marked(tmp_path: Path, capsys: Capture) -> None:
    with serving() as api:
        api.usage = False
        code, _, err = call(ask(api, tmp_path, methods="nonperso"), capsys)
    assert code == 0, err
    records = [json.loads(line) for line in (only_run(tmp_path, "nonperso") / "records.jsonl").read_text().splitlines()]
    assert all(record["tokens_estimated"] and record["prompt_tokens"] > 0 for record in records)
    assert "those of 12 answers estimated" in err


@pytest.mark.parametrize("moment", [3, 17])
def test_a_kill_costs_at_most_what_was_in_flight(
    moment: int, tmp_path: Path, capsys: Capture, whole: tuple[dict[str, bytes], int]
) -> None:
    with serving() as api:
        api.delay = 0.15
        command = [sys.executable, "-m", "bench", *map(str, ask(api, tmp_path, "--set", "openai.concurrency=3"))]
        process = subprocess.Popen(command, env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while sum(api.seen.answered.values()) < moment and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        api.delay = 0.0
        time.sleep(0.3)  # what was in flight is answered to nobody
        before, there = api.requests, kept(tmp_path)
        assert moment - 3 <= there < whole[1]
        assert before - there <= 3
        code, _, err = call(ask(api, tmp_path), capsys)
        assert code == 0, err
        assert api.requests - before == whole[1] - there
        assert sum(times - 1 for times in api.seen.answered.values()) <= 3
    assert contents(tmp_path) == whole[0]


def test_a_budget_stops_the_run_and_the_next_one_goes_on(
    tmp_path: Path, capsys: Capture, whole: tuple[dict[str, bytes], int]
) -> None:
    with serving() as api:
        for number in (1, 2):
            code, _, err = call(ask(api, tmp_path, "--max-requests", "10"), capsys)
            assert code == 2
            last = err.strip().splitlines()[-1]
            assert last.startswith("error: --max-requests 10 is reached: ")
            assert "answers are kept and not asked for again" in last
            assert api.requests == 10 * number
        code, _, err = call(ask(api, tmp_path, "--max-requests", "10"), capsys)
        assert code == 0, err
        assert api.requests == whole[1]
        assert "4 requests for 4 answers, " in err
    assert contents(tmp_path) == whole[0]


def test_a_budget_of_money(tmp_path: Path, capsys: Capture) -> None:
    prices = ["--set", "openai.price_in=100", "--set", "openai.price_out=400"]
    with serving() as api:
        code, _, err = call(ask(api, tmp_path, "--max-cost", "0.9"), capsys)
        assert (code, api.requests) == (2, 0)
        assert "--max-cost needs prices" in err
        code, _, err = call(ask(api, tmp_path, "--max-cost", "0.9", *prices), capsys)
        assert code == 2
        assert "error: --max-cost 0.9, of which " in err
        assert 0 < (100 * api.seen.prompt_tokens + 400 * api.seen.output_tokens) / 1e6 <= 0.9
        code, _, err = call(ask(api, tmp_path, "--max-cost", "90", *prices), capsys)
        assert code == 0, err
        assert max(api.seen.answered.values()) == 1
        assert ", cost at most " in err


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_is_nowhere(status: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda prompt, attempt, level: ("echo", status)) as api:
        more = ["--set", "openai.retries=1", "--limit", "4"]
        code, out, err = call(ask(api, tmp_path, *more, methods="nonperso"), capsys)
        assert api.seen.headers[0]["authorization"] == f"Bearer {KEY}"
    assert code == (0 if status == 400 else 2)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "[secret]" in written + err
    assert KEY not in written + out + err


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path, capsys: Capture) -> None:
    with serving(lambda prompt, attempt, level: ("status", 401, "no such key")) as api:
        code, _, err = call(ask(api, tmp_path), capsys)
        assert api.requests <= 16
    assert code == 2
    assert f"error: server {api.url}, model 'tiny': HTTP 401: no such key" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "nonperso"), "engine 'openai' does not know its server: give --base-url"),
        (("--methods", "nonperso", "--base-url", "http://u:hunter2@h/v1"), "holds a user, a password or a query"),
        (
            ("--methods", "dep", "--base-url", "http://127.0.0.1:1/v1"),
            "needs soft_prompt, train, which engine 'openai'",
        ),
        (("--methods", "lora", "--base-url", "http://127.0.0.1:1/v1"), "which engine 'openai' does not give"),
        (("--methods", "stylevector", "--base-url", "http://127.0.0.1:1/v1"), "needs hidden, which engine 'openai'"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    arguments: Sequence[str], words: str, tmp_path: Path, capsys: Capture
) -> None:
    code, _, err = call([*ASK, "--out", tmp_path / "runs", *arguments], capsys)
    assert code == 2
    assert words in err
    assert "hunter2" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("budget", "flag"),
    [
        (("--max-requests", "5"), "--max-requests would hold for each worker"),
        (("--max-cost", "1"), "--max-cost would hold for each worker"),
        (("--set", "openai.max_requests=0"), "--max-requests would hold for each worker"),
        (("--max-requests", "5", "--max-cost", "1"), "--max-cost and --max-requests would hold for each worker"),
    ],
)
def test_a_budget_is_not_multiplied_by_workers(
    budget: Sequence[str], flag: str, tmp_path: Path, capsys: Capture
) -> None:
    with serving() as api:
        code, _, err = call(ask(api, tmp_path / "runs", "--executor", "ray", *budget), capsys)
        assert (code, api.requests) == (2, 0)
    assert f"error: {flag} of --executor ray by itself" in err
    assert not (tmp_path / "runs").exists()


def test_a_dead_server_leaves_no_failures_behind(
    tmp_path: Path, capsys: Capture, whole: tuple[dict[str, bytes], int]
) -> None:
    dead = {"is": True}
    with serving(lambda *_: ("status", 502, "bad gateway") if dead["is"] else "ok") as api:
        code, _, err = call(ask(api, tmp_path, "--set", "openai.retries=1"), capsys)
        assert code == 2
        assert "8 requests in a row got no answer" in err
        dead["is"] = False
        code, _, err = call(ask(api, tmp_path), capsys)
        assert code == 0, err
    assert contents(tmp_path) == whole[0]


def test_overwriting_finishes_where_only_rejections_are_left(tmp_path: Path, capsys: Capture) -> None:
    fine: set[str] = set()

    def script(prompt: str, attempt: int, level: int) -> Act:
        if len(fine) < 4:
            fine.add(prompt)
        return "ok" if prompt in fine else ("status", 400, "no")

    with serving(script) as api:
        asked = ask(api, tmp_path, "--set", "openai.concurrency=1", methods="nonperso")
        code, _, err = call(asked, capsys)
        assert code == 0, err
        stored = contents(tmp_path)
        code, _, err = call([*asked, "--existing", "overwrite"], capsys)
        assert code == 0, err
        assert api.requests == 12 + 8
    assert contents(tmp_path) == stored


def test_half_a_character_of_an_answer_that_goes_into_a_prompt(tmp_path: Path, capsys: Capture) -> None:
    with serving(answer=lambda body: ("a profile \ud800 of words", 9, 5)) as api:
        code, _, err = call(ask(api, tmp_path, "--limit", "3", methods="pag"), capsys)
    assert code == 0, err
    records = [json.loads(line) for line in (only_run(tmp_path, "pag") / "records.jsonl").read_text().splitlines()]
    assert {record["text"] for record in records} == {"a profile ? of words"}


@pytest.mark.parametrize("extra", ['{"n": 4}', '{"stream": true}', '{"max_tokens": "abc"}', '{"max_tokens": null}'])
def test_what_extra_may_not_hold_is_told_before_anything_starts(extra: str, tmp_path: Path, capsys: Capture) -> None:
    with serving() as api:
        code, _, err = call(ask(api, tmp_path / "runs", "--set", f"openai.extra={extra}"), capsys)
        assert (code, api.requests) == (2, 0)
    assert "error: openai.extra = " in err
    assert "it may not hold" in err
    assert not (tmp_path / "runs").exists()


def test_flags_of_a_server_go_with_its_engine(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = call(["run", "--methods", "nonperso", "--base-url", "http://h/v1", "--out", tmp_path], capsys)
    assert code == 2
    assert "--base-url, --max-cost and --max-requests go with --engine openai" in err


def test_a_config_file_and_a_flag_for_the_server(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "run.toml"
    lines = ['methods = ["nonperso"]', 'engine = "openai"', 'model = "tiny"', 'metrics = ["rouge1"]', "limit = 3"]
    file.write_text("\n".join([*lines, "[set.planted]", "users = 12", "items = 20", "[set.openai]", "concurrency = 2"]))
    with serving() as api:
        code, _, err = call(["run", "--config", file, "--base-url", api.url, "--out", tmp_path / "runs"], capsys)
        assert code == 0, err
        assert api.requests == 3
        (again,) = (tmp_path / "runs" / "configs").glob("*.toml")
        code, _, err = call(["run", "--config", again, "--existing", "overwrite"], capsys)
        assert code == 0, err
        assert api.requests == 3  # its answers are on disk
        assert "0 requests for 0 answers, 3 more were on disk" in err


def test_methods_of_several_stages_work(tmp_path: Path, capsys: Capture) -> None:
    with serving() as api:
        code, _, err = call(ask(api, tmp_path, "--limit", "3", methods="pag,cicl"), capsys)
    assert code == 0, err
    manifest = json.loads((only_run(tmp_path, "pag") / "manifest.json").read_text())
    (stage,) = manifest["totals"]["stages"].values()
    assert stage["prompt_tokens"] > 0
    assert stage["failed"] == 0
    assert max(api.seen.answered.values()) == 1


def test_a_dry_run_asks_nobody(capsys: Capture, tmp_path: Path) -> None:
    with serving() as api:
        code, out, err = call(ask(api, tmp_path, "--dry-run"), capsys)
    assert code == 0, err
    assert api.requests == 0
    assert "tiny on engine openai" in out
