"""Real models behind a chat-completions endpoint: one served here, and whichever the environment names."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from api_server import MODEL, serving
from cli_world import TINY, call, only_run

pytest.importorskip("openai")

from bench import weights
from bench.engines.hf import HFConfig, HFEngine
from bench.engines.openai import OpenAIEngine
from bench.engines.openai_config import OpenAIConfig
from bench.files import read_rows
from bench.types import Message, Request, Sampling

URL, NAME = os.environ.get("DEP_BENCH_OPENAI_URL", ""), os.environ.get("DEP_BENCH_OPENAI_MODEL", "")


def served(engine: HFEngine) -> Any:
    """Answers of the transformers engine, as `ApiServer` wants them."""
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[str, int, int, str]:
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"])
        with lock:
            (got,) = engine.run([Request("x", "generate", messages, sampling, body["seed"])]).generations
        return got.text, got.prompt_tokens, got.output_tokens, got.finish_reason

    return answer


@pytest.mark.weights
def test_a_model_served_over_http_writes_what_it_writes_at_home() -> None:
    home = HFEngine(weights.resolve("smollm2-135m", "llm"), HFConfig(device="cpu", dtype="float32"))
    asked = ["What is the capital of France? One word.", "Name a colour.", "Say hello to Ann."]
    requests = [
        Request(f"e{i}", "generate", (Message("user", text),), Sampling(0.8 * (i % 2), 0.95, 8), 11 + i)
        for i, text in enumerate(asked)
    ]
    with serving(answer=served(home)) as api:
        engine = OpenAIEngine(MODEL, OpenAIConfig(base_url=api.url, concurrency=2))
        got = engine.answers(requests)
        engine.close()
    alone = [home.run([request]).generations[0] for request in requests]
    assert [(g.text, g.prompt_tokens, g.output_tokens) for g in got] == [
        (g.text, g.prompt_tokens, g.output_tokens) for g in alone
    ]
    assert "Paris" in got[0].text
    for request, answer in zip(requests, got, strict=True):  # guessed without a tokenizer, the template's frame apart
        assert 0.5 < engine.count_tokens(request.messages) / (answer.prompt_tokens - 20) < 2.5


@pytest.mark.skipif(not (URL and NAME), reason="DEP_BENCH_OPENAI_URL and DEP_BENCH_OPENAI_MODEL name no server")
def test_the_server_that_the_environment_names_serves_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--engine", "openai", "--base-url", URL, "--model", NAME, "--methods", "nonperso,rag,pag", *TINY]
    more = ["--limit", "6", "--max-new-tokens", "32", "--temperature", "0", "--metrics", "rouge1", "--out", tmp_path]
    room = ["--set", "openai.context_length=2048", "--max-prompt-tokens", "1000"]
    code, out, err = call([*command, *more, *room], capsys)
    assert code == 0, err
    assert "Leaderboard: planted" in out
    for method in ("nonperso", "rag", "pag"):
        records = list(read_rows(only_run(tmp_path, method) / "records.jsonl"))
        assert len(records) == 6
        assert all(r["error"] is None and r["text"] and r["prompt_tokens"] > 0 for r in records)
    code, _, err = call([*command, *more, *room, "--existing", "overwrite"], capsys)
    assert code == 0, err
    assert "openai: 0 requests for 0 answers" in err
