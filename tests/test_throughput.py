"""The side-by-side measurement: the same work for all, honest counts, costs by hand, clear errors at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_world import call
from hypothesis import given
from hypothesis import strategies as st
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines.base import BatchResult
from bench.engines.chat import Prompt
from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine
from bench.engines.refill import shared_prefix
from bench.errors import UnknownName, UsageError
from bench.throughput import Asked, as_text, ceilings, figures, last_line, measure, plain, requests
from bench.throughput.costs import Sizes
from bench.throughput.run import Row, check
from bench.throughput.shapes import SHAPES, RandomEngine
from bench.types import Generation, Request, Sampling

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("model"), max_position_embeddings=300)


SMALL = Asked(
    prompt_tokens=(150, 180),
    new_tokens=(3, 9),
    requests=5,
    batch=2,
    overrides=("hf.device=cpu", "hf.dtype=float32"),
)


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return measure(replace(SMALL, model=str(folder), contenders=("one-by-one", "plain", "hf", "fake"), rounds=2))


@given(st.integers(1, 50), st.integers(0, 100), st.integers(1, 40), st.integers(0, 5))
def test_lengths_are_spread_evenly_from_end_to_end(low: int, more: int, count: int, seed: int) -> None:
    made = requests.lengths(low, low + more, count, seed)
    assert made == requests.lengths(low, low + more, count, seed)
    assert min(made) == low
    assert max(made) == low + (more if count > 1 else 0)
    gaps = [b - a for a, b in zip(sorted(made), sorted(made)[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("soft", [False, True])
def test_prompts_are_as_long_as_whole_words_allow(folder: Path, soft: bool) -> None:
    engine: HFEngine = engine_of(folder)
    for tokens in (150, 151, 199):
        message = requests.prompt_of(engine, 3, tokens, soft=soft)
        counted = engine.count_tokens([message]) + (requests.SOFT - 1 if soft else 0)
        assert tokens - 6 <= counted <= tokens  # bytes: the next word has up to five and a space
    with pytest.raises(UsageError, match="--prompt-tokens 9 is less than the empty prompt takes"):
        requests.prompt_of(engine, 0, 9)
    ids = [engine.encode(Request("", "", (requests.prompt_of(engine, i, 99),), Sampling(), 0)).ids for i in range(3)]
    assert shared_prefix([Prompt(one, ()) for one in ids]) == 0  # nobody gains from a beginning that all have


def test_all_do_the_same_work_and_write_what_each_writes_alone(folder: Path, tmp_path: Path) -> None:
    engine: HFEngine = engine_of(folder, max_batch=2)
    lm = engine.language_model()
    requests.save_adapters(lm, tmp_path, 5, size=0.3)
    prompts, outputs = requests.lengths(150, 180, 5, 1), requests.lengths(3, 9, 5, 2)
    told = {}
    for kind in requests.KINDS:
        made = requests.make(engine, kind, prompts, outputs, 32, tmp_path)
        one = [g.text for r in plain.run(lm, made, 1) for g in r.generations]
        many = [g.text for r in plain.run(lm, made, 2) for g in r.generations]
        assert one == many == [g.text for g in engine.answers(made)]
        told[kind] = one
    assert len({tuple(texts) for texts in told.values()}) == 3  # vectors and adapters show
    assert not any("lora" in name for name, _ in lm.model.named_modules())  # and nothing of them is left


def test_a_result_holds_every_contender_on_every_kind_it_can_serve(result: dict[str, Any]) -> None:
    found = {(row["contender"], row["kind"]) for row in result["rows"]}
    own = {(name, kind) for name in ("one-by-one", "plain", "hf") for kind in requests.KINDS}
    assert found == own | {("fake", "ids")}
    assert set(result["left_out"]) == {"fake, soft", "fake, adapters"}
    outputs = sum(requests.lengths(3, 9, 5, 2))
    for row in result["rows"]:
        if row["contender"] != "fake":
            assert row["output_tokens"] == outputs
            assert 5 * 140 < row["prompt_tokens"] <= sum(requests.lengths(150, 180, 5, 1))
            prefill = row["prompt_tokens"] / row["prefill_tokens_per_second"]
            decode = (outputs - 5) / row["decode_tokens_per_second"]
            assert 0 < prefill + decode <= row["seconds"]
            assert 0 < row["first_token_seconds"] < row["seconds"]
        assert row["examples_per_second"] == pytest.approx(5 / row["seconds"])
    rates = {(row["contender"], row["kind"]): row["examples_per_second"] for row in result["rows"]}
    ours = next(row for row in result["rows"] if (row["contender"], row["kind"]) == ("hf", "soft"))
    assert ours["over_plain"] == rates["hf", "soft"] / rates["plain", "soft"]
    assert ours["over_one_by_one"] == rates["hf", "soft"] / rates["one-by-one", "soft"]
    assert ours["soft_over_ids"] == rates["hf", "soft"] / rates["hf", "ids"]


def test_floors_stand_beside_what_was_found(result: dict[str, Any]) -> None:
    floors = {(f["kind"], f["figure"]): f for f in result["floors"]}
    wanted = {(k, n) for k in requests.KINDS for n in ("over_plain", "over_one_by_one")}
    assert set(floors) == wanted - {("adapters", "over_plain")}  # plain has adapters on one at a time
    for one in floors.values():
        assert one["met"] == (one["value"] >= one["floor"])
    text = as_text(result)
    assert (text.count("floor 1.5"), text.count("floor 4:")) == (2, 3)
    assert "left out: fake, soft" in text
    assert json.loads(last_line(result)) == json.loads(json.dumps(result))


def test_costs_by_hand() -> None:
    sizes = Sizes(weights=1000, head=200, layers=3, width=8, shared_width=4, element=2)
    # 5 tokens: the matrices at each, the head at one, and 1 + ... + 5 pairs of positions, two products, 3 layers
    assert sizes.prefill_flops([5]) == 2 * 1000 * 5 + 2 * 200 + 3 * (2 * 2 * 8 * 15)
    # 4 new tokens are 3 steps, which see 6, 7 and 8 positions of keys and values
    assert sizes.decode_bytes([5], [4], 1) == 2 * (3 * 1200 + 2 * 4 * 3 * (6 + 7 + 8))
    assert sizes.decode_bytes([5, 5], [4, 4], 2) == 2 * (3 * 1200 + 2 * 2 * 4 * 3 * (6 + 7 + 8))


def test_sizes_are_read_off_a_model(folder: Path) -> None:
    sizes = Sizes.of(engine_of(folder).model)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # queries, keys and values, output, three of the MLP
    assert sizes == Sizes(2 * layer, 259 * 32, 2, 32, 16, 4)


def test_ceilings_are_rates_of_this_machine() -> None:
    found = ceilings.measure(torch.device("cpu"), torch.float32)
    side = 512
    a = torch.randn(side, side)
    import time

    start = time.perf_counter()
    torch.mm(a, a)
    assert found.flops > 0.01 * 2 * side**3 / (time.perf_counter() - start)
    assert found.bytes > 1e8


def test_shares_and_rates_follow_from_seconds() -> None:
    asked = Asked(prompt_tokens=(5, 5), new_tokens=(4, 4), requests=2, batch=2)
    sizes = Sizes(1000, 200, 3, 8, 4, 2)
    row = Row("hf", "ids", 4.0, 10, 8, 0.5, 2.0, 0.1, 1)
    found = figures.result(asked, [row], ceilings.Ceilings(1e6, 1e5), sizes, {"hf": {"device": "cuda"}}, {})
    (told,) = found["rows"]
    assert told["prefill_tokens_per_second"] == 20
    assert told["decode_tokens_per_second"] == 3
    assert told["prefill_matrix_rate"] == sizes.prefill_flops([5, 5]) / 0.5 / 1e6
    assert told["decode_bandwidth"] == sizes.decode_bytes([5, 5], [4, 4], 2) / 2.0 / 1e5
    assert {f["figure"] for f in found["floors"]} == {"decode_bandwidth", "prefill_matrix_rate"}


def test_the_best_round_counts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import time

    pauses = iter([0.0, 0.3, 0.0, 0.3])  # the first is not counted

    def paused(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        time.sleep(next(pauses))
        return BatchResult([Generation("x", 1, 1, "length") for _ in batch])

    monkeypatch.setattr(FakeEngine, "run", paused)
    few = {"new_tokens": (3, 3), "requests": 2, "rounds": 3, "overrides": ()}
    (row,) = measure(replace(SMALL, model=str(folder), contenders=("fake",), kinds=("ids",), **few))["rows"]
    assert row["seconds"] < 0.3
    assert row["prefill_tokens_per_second"] is None


def test_starting_late_is_no_part_of_the_work(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import time

    def starting(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        time.sleep(0.4)
        return BatchResult([Generation("x", 1, 1, "length") for _ in batch], load_seconds=0.39)

    monkeypatch.setattr(FakeEngine, "run", starting)
    few = {"new_tokens": (3, 3), "requests": 2, "overrides": ()}
    (row,) = measure(replace(SMALL, model=str(folder), contenders=("fake",), kinds=("ids",), **few))["rows"]
    assert 0 < row["seconds"] < 0.39


def test_a_contender_that_fails_leaves_what_others_did(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(self: FakeEngine, batch: Sequence[Request]) -> BatchResult:
        return BatchResult([Generation("", 0, 0, "error", error="no room") for _ in batch])

    monkeypatch.setattr(FakeEngine, "run", fail)
    found = measure(replace(SMALL, model=str(folder), contenders=("hf", "fake"), kinds=("ids",), requests=2))
    assert [row["contender"] for row in found["rows"]] == ["hf"]
    assert "no room" in found["left_out"]["fake"]


def test_lack_of_memory_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(plain, "run", fail)
    with pytest.raises(UsageError, match="plain, ids: out of memory; lower --batch"):
        measure(replace(SMALL, model=str(folder), contenders=("plain",), kinds=("ids",)))


def test_random_weights_have_the_shape_and_the_label() -> None:
    asked = replace(
        SMALL,
        random_weights="smollm2-135m",
        contenders=("hf", "fake"),
        kinds=("soft",),
        requests=1,
        prompt_tokens=(130, 130),
        new_tokens=(2, 2),
    )
    found = measure(asked)
    assert found["about"]["model"] == "random weights, shape of smollm2-135m"
    assert found["about"]["engines"]["hf"]["model"] == "random weights of the shape of smollm2-135m"
    assert "fake" in found["left_out"]
    assert found["rows"][0]["output_tokens"] == 2


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-7b", 7.6), ("llama-3.1-8b", 8.0), ("qwen2.5-1.5b", 1.5)])
def test_shapes_have_as_many_parameters_as_the_models(name: str, billions: float) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(RandomEngine(name)._text_config())
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.06)
    assert name in SHAPES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"contenders": ()}, "no contender in --contenders"),
        ({"contenders": ("hff",)}, "unknown contender in --contenders 'hff'"),
        ({"kinds": ("id",)}, "unknown kind in --kinds 'id'"),
        ({"prompt_tokens": (0, 5)}, "--prompt-tokens takes"),
        ({"new_tokens": (9, 5)}, "--new-tokens takes"),
        ({"requests": 0}, "--requests, --batch and --rounds"),
        ({"prompt_tokens": (150, 298)}, r"307 tokens, prompt and answer, exceed the model's context of 300"),
        ({"prompt_tokens": (5, 9)}, "is less than the empty prompt takes"),
        ({"overrides": ("lora.r=4",)}, "unknown part of this measurement in --set 'lora'"),
        ({"overrides": ("hf.speed=9",)}, "unknown key of hf 'speed'"),
        ({"contenders": ("openai",)}, "a service's speed is not this machine's"),
        ({"contenders": ("fake",)}, "--kinds adapters needs one of"),
        ({"contenders": ("plain", "vllm"), "overrides": ("vllm.nonsense=1",)}, "unknown key of vllm"),
        ({"random_weights": "gpt-9"}, "unknown shape for --random-weights 'gpt-9'"),
    ],
)
def test_bad_input_is_one_clear_error(folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        measure(replace(SMALL, model=str(folder), **changes))


def test_names_are_checked_before_anything_loads() -> None:
    with pytest.raises(UnknownName):
        check(replace(SMALL, contenders=("nobody",)))


def test_the_command_prints_a_table_and_json_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kinds", "ids", "--prompt-tokens", "150:160", "--new-tokens", "3:5", "--requests", "3", "--batch", "2"]
    knobs = ["--set", "hf.device=cpu", "--set", "hf.dtype=float32"]
    code, out, err = call(["throughput", "--model", str(folder), *flags, *knobs], capsys)
    assert code == 0, err
    lines = out.strip().splitlines()
    assert {row["contender"] for row in json.loads(lines[-1])["rows"]} == {"one-by-one", "plain", "hf"}
    assert any("over plain" in line for line in lines)
