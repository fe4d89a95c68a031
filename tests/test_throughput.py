"""The throughput sweep: prompts of the asked length, honest counts, clear errors before anything loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine
from bench.errors import UnknownName, UsageError
from bench.throughput import _row, as_text, measure, synthetic_prompt
from bench.types import Generation, Request, Sampling

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("model"), max_position_embeddings=300)


def sweep(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    settings = {"batch_sizes": [1, 2, 3], "prompt_tokens": 50, "new_tokens": 6, "requests": 4, **changes}
    overrides = ["hf.device=cpu", "hf.dtype=float32", *settings.pop("overrides", [])]
    return measure("hf", str(folder), overrides=overrides, **settings)


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(4, 400), number=st.integers(0, 30))
def test_prompts_are_as_long_as_whole_words_allow(tokens: int, number: int) -> None:
    engine = FakeEngine()
    prompt = synthetic_prompt(engine, number, tokens)
    longer = type(prompt)(prompt.role, f"{prompt.content} the")
    assert engine.count_tokens([prompt]) == tokens < engine.count_tokens([longer])  # a word is a token here
    assert number % 15 == (number + 1) % 15 or tokens == 4 or synthetic_prompt(engine, number + 1, tokens) != prompt


def test_prompts_count_the_models_own_template(folder: Path) -> None:
    engine: HFEngine = engine_of(folder)
    for tokens in (40, 41, 77):
        prompt = synthetic_prompt(engine, 3, tokens)
        assert tokens - 6 <= engine.count_tokens([prompt]) <= tokens  # bytes: the next word has up to six
    with pytest.raises(UsageError, match="--prompt-tokens 5 is less than the empty prompt takes"):
        synthetic_prompt(engine, 0, 5)


def test_a_sweep_measures_every_size_on_the_same_work(folder: Path) -> None:
    rows = sweep(folder)
    assert [row["batch_size"] for row in rows] == [1, 2, 3]
    engine: HFEngine = engine_of(folder)
    read = sum(engine.count_tokens([synthetic_prompt(engine, i, 50)]) for i in range(4))
    for row in rows:
        assert (row["requests"], row["prompt_tokens"], row["output_tokens"]) == (4, read, 24)
        assert row["examples_per_second"] == pytest.approx(4 / row["seconds"])
        # Prefill and decode are parts of the whole, so their rates bound it.
        prefill = read / row["prefill_tokens_per_second"]
        decode = (24 - 4) / row["decode_tokens_per_second"]
        assert 0 < prefill + decode <= row["seconds"]
        assert row["peak_memory"] > 1 << 20
        assert row["load_seconds"] > 0
        assert (row["engine"], row["model"], row["dtype"]) == ("hf", str(folder), "float32")


def test_the_table_shows_each_size_relative_to_the_first(folder: Path) -> None:
    rows = sweep(folder, batch_sizes=[2, 4])
    rows[1] = {**rows[1], "examples_per_second": 3 * rows[0]["examples_per_second"]}
    text = as_text(rows)
    assert "4 requests" in text
    assert "+ 6 tokens" in text
    table = [line.split() for line in text.splitlines() if line.split()[:1] in (["2"], ["4"])]
    assert [(float(line[0]), float(line[2])) for line in table] == [(2, 1.0), (4, 3.0)]


def test_an_engine_without_rates_shows_gaps() -> None:
    rows = measure("fake", "smollm2-135m", [1, 2], 30, 5, 2)
    assert rows[0]["prefill_tokens_per_second"] is None
    assert rows[0]["output_tokens"] == 10
    assert math.isfinite(rows[0]["examples_per_second"])
    assert "-" in as_text(rows).splitlines()[-1]


def test_rates_are_tokens_over_the_engines_own_seconds() -> None:
    """The first new token of a request comes out of the prefill, so the decode rate leaves it out."""

    class Timed(FakeEngine):
        def run(self, batch: Sequence[Request]) -> BatchResult:
            return BatchResult([Generation("x", 10, 5, "length") for _ in batch], 0.5, 2.0)

    requests = [Request(str(i), "g", (), Sampling(), 0) for i in range(6)]
    row = _row(Timed(), requests, 4)  # two calls
    assert row["prefill_tokens_per_second"] == 60 / 1.0
    assert row["decode_tokens_per_second"] == (30 - 6) / 4.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_sizes": []}, "--batch-sizes takes whole numbers"),
        ({"batch_sizes": [2, 0]}, "--batch-sizes takes whole numbers"),
        ({"requests": 0}, "--requests take whole numbers"),
        ({"new_tokens": 0}, "--new-tokens and --requests"),
        ({"prompt_tokens": -3}, "--prompt-tokens, "),
        ({"batch_sizes": [1, 8]}, "--requests 4 cannot fill a batch of 8"),
        ({"prompt_tokens": 298}, r"298 \+ 6 tokens exceed the model's context of 300"),
        ({"prompt_tokens": 7}, "--prompt-tokens 7 is less than the empty prompt takes"),
        ({"overrides": ["lora.r=4"]}, "unknown part of this measurement in --set 'lora'"),
        ({"overrides": ["hf.speed=9"]}, "unknown key of hf 'speed'"),
        ({"overrides": ["hf.max_batch=-1"]}, r"hf\.max_batch = -1 is not valid"),
        ({"overrides": ["hf"]}, "NAME.KEY=VALUE"),
    ],
)
def test_bad_input_is_one_clear_error(folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        sweep(folder, **changes)
    assert "\n" not in str(caught.value)


def test_unknown_engines_and_models_are_clear_errors(folder: Path) -> None:
    with pytest.raises(UnknownName, match="unknown engine 'hg'; did you mean 'hf'"):
        measure("hg", str(folder), [1], 10, 2, 1)
    with pytest.raises(UsageError):
        measure("hf", str(folder / "nowhere"), [1], 10, 2, 1)


def test_a_size_that_does_not_fit_names_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    whole = HFEngine._run_whole

    def cramped(self: HFEngine, batch: Any) -> Any:
        if any("what" in r.messages[0].content[:4] for r in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch)

    monkeypatch.setattr(HFEngine, "_run_whole", cramped)
    with pytest.raises(UsageError, match=r"batch size 2: out of memory on a prompt of .* leave larger sizes out"):
        sweep(folder, batch_sizes=[2], requests=14)
