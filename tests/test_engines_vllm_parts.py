"""What the vllm engine is made of, without vLLM: adapters as peft folders, embedding rows, settings."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from cli_world import TINY, call
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import FAMILIES, ask, engine_of, lively_model, one_thread

from bench import weights
from bench.engines import bank, peft_folders, reference
from bench.engines import vllm as module
from bench.engines.embedding_rows import EmbeddingRows
from bench.engines.vllm import VLLMConfig, VLLMEngine
from bench.engines.vllm_adapters import AdapterShelf
from bench.engines.vllm_session import Answer, Ask, Needs, Session, sampling_settings
from bench.errors import MissingPackage, UsageError
from bench.types import Capability, Contrast, Message, Sampling, slot

__all__ = ["one_thread"]

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    """An engine that believes vLLM to be there, and never starts it."""
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    return VLLMEngine(weights.resolve(str(folder), "llm"), VLLMConfig(dtype="float32"))


# -- adapters ---------------------------------------------------------------------------------------------------------


def pair(rank: int, width: int = 6, height: int = 5, seed: int = 0) -> Pair:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(rank, width, generator=drawn), torch.randn(height, rank, generator=drawn)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_adapters_added_give_the_sum_of_their_updates(ranks: list[int], seed: int) -> None:
    parts = [{"m.q": pair(rank, seed=seed + i)} for i, rank in enumerate(ranks)]
    a, b = peft_folders.added(parts)["m.q"]
    assert a.shape[0] == sum(ranks)
    torch.testing.assert_close(b @ a, sum(part["m.q"][1] @ part["m.q"][0] for part in parts), rtol=1e-4, atol=1e-5)


def test_what_is_written_reads_back_as_the_same_updates_of_one_rank(tmp_path: Path) -> None:
    pairs = {"m.q": pair(2), "m.v": pair(5, 4, 3)}
    peft_folders.write(tmp_path, pairs)
    again = peft_folders.read(str(tmp_path))
    assert {a.shape[0] for a, _ in again.values()} == {5}
    for layer, (a, b) in pairs.items():
        torch.testing.assert_close(again[layer][1] @ again[layer][0], b @ a)


@pytest.mark.parametrize(
    "more",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}],
)
def test_a_peft_folder_is_read_as_peft_applies_it(folder: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def bare() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        targets = ["q_proj", "v_proj", "down_proj"]
        config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False, **more)
        get_peft_model(bare(), config).save_pretrained(str(tmp_path))
    merged = PeftModel.from_pretrained(bare(), str(tmp_path)).merge_and_unload()
    before = bare().state_dict()
    pairs = peft_folders.read(str(tmp_path))
    changed = {n for n, w in merged.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {f"{layer}.weight" for layer in pairs}
    for layer, (a, b) in pairs.items():
        delta = merged.get_submodule(layer).weight - before[f"{layer}.weight"]
        torch.testing.assert_close(b @ a, delta, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all"), ("init_lora_weights", "pissa_niter_4")],
)
def test_what_is_more_than_lora_is_refused(tmp_path: Path, setting: str, value: Any) -> None:
    peft_folders.write(tmp_path, {"m.q": pair(2)})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(UsageError, match=rf"more than plain LoRA.*\({setting}\); use --engine hf"):
        peft_folders.read(str(tmp_path))


def test_other_tensors_other_kinds_and_no_adapter_at_all_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    peft_folders.write(tmp_path, {"m.q": pair(2)})
    save_file({"base_model.model.m.embed.lora_embedding_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="lora_embedding_A"):
        peft_folders.read(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UsageError, match="type IA3"):
        peft_folders.read(str(tmp_path))
    with pytest.raises(UsageError, match="no adapter folder"):
        peft_folders.read(str(tmp_path / "none"))


def test_the_shelf_serves_a_shared_adapter_with_a_users_own_as_their_sum(tmp_path: Path) -> None:
    shared, own = {"m.q": pair(2, seed=1), "m.k": pair(3, seed=2)}, {"m.q": pair(4, seed=3), "m.v": pair(1, seed=4)}
    peft_folders.write(tmp_path / "shared", shared)
    bank.save_adapter(tmp_path / "own", own, 8.0, torch.float32)
    both = (str(tmp_path / "shared"), str(tmp_path / "own"))
    shelf = AdapterShelf()
    assert [shelf.rank(both[0], None), shelf.rank(None, both[1]), shelf.rank(*both)] == [3, 4, 3 + 4]
    name, number, place = shelf.get(*both)
    assert (name, number) == ("adapter-1", 1)
    assert shelf.get(*both) == (name, number, place)  # written once
    assert shelf.get(None, both[1])[1] == 2
    found = peft_folders.read(place)
    expected = {
        "m.q": shared["m.q"][1] @ shared["m.q"][0] + 8 / 4 * own["m.q"][1] @ own["m.q"][0],
        "m.k": shared["m.k"][1] @ shared["m.k"][0],
        "m.v": 8 / 1 * own["m.v"][1] @ own["m.v"][0],
    }
    assert found.keys() == expected.keys()
    for layer, update in expected.items():
        torch.testing.assert_close(found[layer][1] @ found[layer][0], update, rtol=1e-4, atol=1e-5)
    blank = peft_folders.read(shelf.blank(*both)[2])
    assert blank.keys() == expected.keys()
    assert not any((b @ a).any() for a, b in blank.values())
    bank.save_adapter(tmp_path / "own", {**own, "m.o": pair(9)}, 8.0, torch.float32)  # another file in its place
    assert shelf.get(*both)[1] == 4
    shelf.clear()
    assert not Path(place).exists()


def test_adapters_that_cannot_be_are_told(tmp_path: Path) -> None:
    shelf = AdapterShelf()
    with pytest.raises(UsageError, match="no adapter at"):
        shelf.rank(str(tmp_path / "none"), None)
    (tmp_path / "file").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="holds no user's adapter"):
        shelf.rank(None, str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"different models: m\.q"):
        peft_folders.added([{"m.q": pair(1)}, {"m.q": pair(1, width=7)}])


# -- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_what_the_models_own_layer_puts_out(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    place = lively_model(tmp_path, family)
    layer = AutoModelForCausalLM.from_pretrained(place, dtype=dtype).get_input_embeddings()
    ids = [5, 0, 200, 5]
    assert torch.equal(EmbeddingRows(str(place), dtype).of(ids), layer(torch.tensor(ids)))


def test_rows_come_from_sharded_weights_too(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(EmbeddingRows(str(tmp_path), torch.float32).of([7]), model.get_input_embeddings().weight[[7]])


def test_a_prompt_as_vectors_is_what_the_hf_engine_embeds(folder: Path) -> None:
    hf = engine_of(folder)
    soft = {"h": np.ones((2, 32), np.float32), "d": np.full((1, 32), 0.5, np.float32)}
    request = ask(f"One {slot('h')} two {slot('d')}.", soft=soft)
    prompt = hf.encode(request)
    expected, _ = reference.embed(hf.model, [prompt], [request])
    assert torch.equal(EmbeddingRows(str(folder), torch.float32).prompt(prompt, request.soft), expected[0])
    with pytest.raises(UsageError, match="made for another model"):
        EmbeddingRows(str(folder), torch.float32).prompt(prompt, {"h": np.ones((2, 8)), "d": np.ones((1, 8))})


# -- settings ---------------------------------------------------------------------------------------------------------


def test_greedy_requests_have_no_seed_and_others_have_their_own() -> None:
    greedy = sampling_settings(Sampling(0.0, 0.9, 30), 7, 100, [2, 5])
    assert greedy["temperature"] == 0.0
    assert "seed" not in greedy
    drawn = sampling_settings(Sampling(0.8, 0.95, 30, min_new_tokens=4), (1 << 63) - 1, 100, [2, 5])
    assert (drawn["temperature"], drawn["top_p"], drawn["seed"]) == (0.8, 0.95, (1 << 63) - 1)
    assert (drawn["max_tokens"], drawn["min_tokens"], drawn["stop_token_ids"]) == (30, 4, [2, 5])
    # Nothing of the checkpoint's: neither its end tokens nor top-k, penalties and the like.
    assert drawn["ignore_eos"] is True
    assert not {"top_k", "repetition_penalty", "min_p"} & drawn.keys()


def test_answers_end_where_the_context_does() -> None:
    settings = sampling_settings(Sampling(0.0, 1.0, 30, min_new_tokens=30), 0, 12, [2])
    assert (settings["max_tokens"], settings["min_tokens"]) == (12, 12)


def test_vllm_is_started_for_what_is_asked() -> None:
    assert Needs().arguments(16) == {"enable_prompt_embeds": False, "enable_prefix_caching": True}
    soft = Needs(soft=True).arguments(16)
    assert (soft["enable_prompt_embeds"], soft["enable_prefix_caching"]) == (True, False)
    lora = Needs(rank=12, adapters=40).arguments(16)
    assert (lora["enable_lora"], lora["max_lora_rank"], lora["max_loras"]) == (True, 16, 16)
    assert lora["enable_prefix_caching"] is False
    assert Needs(rank=8, adapters=3).arguments(16)["max_loras"] == 3
    with pytest.raises(UsageError, match="rank 600"):
        Needs(rank=600, adapters=1).arguments(16)


def test_ends_are_those_of_the_hf_engine(engine: VLLMEngine, folder: Path) -> None:
    hf = engine_of(folder)
    assert engine._ends() == hf.model.generation_config.eos_token_id


def test_arguments_pass_the_knobs_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    knobs = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "quantization": "fp8", "max_model_len": 512}
    config = VLLMConfig(**knobs, kv_cache_gib=0.5, args={"block_size": 32})  # type: ignore[arg-type]
    engine = VLLMEngine(weights.resolve(str(folder), "llm"), config)
    given = engine.arguments(Needs())
    assert {name: given[name] for name in knobs} == knobs
    assert (given["kv_cache_memory_bytes"], given["block_size"]) == (1 << 29, 32)
    assert engine.context_length == 512
    assert engine.identity()["quantization"] == "fp8"


# -- the engine without vLLM ------------------------------------------------------------------------------------------


def test_without_the_package_there_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"engine 'vllm' needs .* run: pip install 'dep-bench\[vllm\]'"):
        VLLMEngine(weights.resolve(str(folder), "llm"))


def test_fits_are_shared_with_the_hf_engine(engine: VLLMEngine, folder: Path) -> None:
    hf = engine_of(folder)
    assert engine.training_identity() == hf.identity()
    assert engine.identity()["name"] == "vllm"
    assert Capability.TRAIN in engine.capabilities


def test_while_training_the_trained_weights_answer(engine: VLLMEngine, folder: Path) -> None:
    with engine.training():
        engine.load()
        lm = engine.language_model()
        before = engine.run([ask("Hello there")]).generations
        with torch.no_grad():
            lm.model.get_output_embeddings().weight.copy_(lm.model.get_output_embeddings().weight.roll(1, 0))
        after = engine.run([ask("Hello there")]).generations
    assert before == engine_of(folder).run([ask("Hello there")]).generations
    assert before != after
    assert engine._hf._model is None  # given back


class Scripted:
    """In place of a session: notes what it was started for, and answers with the prompt's own tokens."""

    started: ClassVar[list[dict[str, Any]]] = []
    context_length = 300
    ends = (1,)
    seconds = 5.0

    def __init__(self, arguments: dict[str, Any], ends: Sequence[int]) -> None:
        self.started.append(arguments)
        self.asked: list[Ask] = []

    def serve(self, asks: Sequence[Ask], most: int, progress: Any) -> tuple[list[Answer], float, float]:
        self.asked += asks
        return [Answer([70, 71, 1]) for _ in asks], 1.0, 2.0

    def forget(self) -> None: ...
    def close(self) -> None: ...
    def add_adapter(self, adapter: Any) -> None: ...
    def log_probability(self, prompt: Any) -> tuple[int, float]:
        return 7, (-1.0 if "prompt_token_ids" in prompt else self.by_vectors)

    by_vectors = -1.0


@pytest.fixture
def scripted(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    monkeypatch.setattr(module, "Session", Scripted)
    monkeypatch.setattr(Scripted, "started", [])
    return engine


def test_one_start_serves_a_plan_and_its_seconds_are_told_once(scripted: VLLMEngine) -> None:
    requests = [ask("One"), ask(f"Two {slot('h')}", soft={"h": np.ones((1, 32), np.float32)}), ask("Three")]
    batches = scripted.plan(requests)
    told: list[int] = []
    results = list(scripted.stream([[requests[i] for i in batch] for batch in [*batches, *batches]], told.append))
    assert [result.load_seconds for result in results] == [5.0, 0.0]
    assert [a["enable_prompt_embeds"] for a in Scripted.started] == [True]
    generation = results[0].generations[0]
    assert (generation.output_tokens, generation.finish_reason) == (3, "stop")
    session: Any = scripted._session
    made = [one.prompt() for one in session.asked[:3]]
    assert sorted("prompt_embeds" in prompt for prompt in made) == [False, False, True]
    assert sorted(one.vectors > 0 for one in session.asked[:3]) == [False, False, True]
    scripted.plan([ask("One")])
    list(scripted.stream([[ask("One")]]))
    assert len(Scripted.started) == 2  # text alone is served by a vLLM that can do no more, whatever ran before


def test_embeddings_that_vllm_takes_otherwise_are_refused(
    scripted: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "by_vectors", -2.0)
    with pytest.raises(UsageError, match=r"another form than transformers.*use --engine hf"):
        scripted.run([ask(slot("h"), soft={"h": np.ones((1, 32), np.float32)})])


def test_it_does_not_start_among_processes_that_train_together(
    scripted: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.distributed, "size", lambda: 2)
    with pytest.raises(UsageError, match=r"train with --engine hf there, then .* takes the fit"):
        scripted.run([ask("One")])


def test_soft_prompts_and_adapters_at_once_are_refused(scripted: VLLMEngine, tmp_path: Path) -> None:
    peft_folders.write(tmp_path, {"m.q": pair(2)})
    soft = ask(slot("h"), soft={"h": np.ones((1, 32), np.float32)})
    with pytest.raises(UsageError, match="not both at once; use --engine hf"):
        scripted.plan([soft, ask("One", adapter=str(tmp_path))])


def test_plans_are_a_function_of_the_requests(scripted: VLLMEngine) -> None:
    requests = [ask("a" * n) for n in (5, 9, 2, 7)]
    scripted.config = VLLMConfig(max_batch=3)
    assert scripted.plan(requests) == scripted.plan(requests) == [[1, 3, 0], [2]]
    with pytest.raises(UsageError, match="contrast"):
        scripted.plan([ask("a", contrast=Contrast(0.5, 0.1))])


class Stepped:
    """vLLM's engine as a session sees it: two tokens a request, one a step; notes how much is under way."""

    def __init__(self, refuses: str = "") -> None:
        self.left: dict[str, int] = {}
        self.most, self.refuses = 0, refuses
        self.aborted: list[str] = []

    def add_request(self, name: str, prompt: dict[str, Any], params: Any, lora_request: Any = None) -> None:
        if prompt["text"] == self.refuses:
            raise ValueError("bad prompt")
        self.left[name] = 2
        self.most = max(self.most, len(self.left))

    def step(self) -> list[Any]:
        out = []
        for name in list(self.left):
            self.left[name] -= 1
            done = self.left[name] == 0
            piece = SimpleNamespace(token_ids=[5 - self.left[name]], finish_reason="stop" if done else None)
            out.append(SimpleNamespace(request_id=name, outputs=[piece], finished=done))
            if done:
                del self.left[name]
        return out

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names


def session_over(engine: Stepped, rows: int = 3) -> Session:
    session = Session.__new__(Session)
    session._engine, session.rows, session._count = engine, rows, 0
    session.ends, session.context_length = [1], 50
    return session


@pytest.fixture(autouse=True)
def plain_params(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.engines.vllm_session.sampling_params", sampling_settings)


def made(text: str, length: int = 10, vectors: int = 0) -> Ask:
    return Ask(length, vectors, Sampling(), 0, lambda: {"text": text})


@pytest.mark.parametrize(("vectors", "most"), [(0, 3), (10, 2), (100, 1)])
def test_no_more_is_under_way_than_fits(vectors: int, most: int) -> None:
    engine = Stepped()
    told: list[int] = []
    answers, prefill, decode = session_over(engine).serve(
        [made(str(i), 10, vectors) for i in range(7)], 25, told.append
    )
    assert [answer.tokens for answer in answers] == [[4, 5]] * 7
    assert engine.most == most
    assert sum(told) == 7
    assert prefill > 0
    assert decode > 0


def test_a_prompt_over_the_context_and_a_refused_one_fail_alone() -> None:
    asks = [made("a"), made("long", length=50), made("bad"), made("b", length=49)]
    told: list[int] = []
    answers, _, _ = session_over(Stepped(refuses="bad")).serve(asks, 100, told.append)
    assert [bool(answer.error) for answer in answers] == [False, True, True, False]
    assert answers[1].error == "the prompt has 50 tokens, the model's context 50"
    assert "bad prompt" in (answers[2].error or "")
    assert sum(told) == 4


def test_what_is_under_way_is_taken_back_when_something_breaks() -> None:
    engine = Stepped()

    def broken() -> dict[str, Any]:
        raise UsageError("made for another model")

    with pytest.raises(UsageError):
        session_over(engine).serve([made("a"), Ask(5, 0, Sampling(), 0, broken)], 9, None)
    assert engine.aborted == ["1"]


def test_tokens_are_counted_as_the_hf_engine_counts_them(engine: VLLMEngine, folder: Path) -> None:
    messages = (Message("user", f"Hello {slot('h')} there"),)
    assert engine.count_tokens(messages) == engine_of(folder).count_tokens(messages)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_page_are_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As dry runs: what they would start takes vLLM, and is run by `tox -e vllm`."""
    page = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text()
    commands = re.findall(r"^python -m bench (run .*?)(?: +#.*)?$", page, re.M)
    assert commands
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    for command in commands:
        code, _, err = call([*command.split(), *TINY, "--dry-run"], capsys)
        assert code == 0, err
    tox = (Path(__file__).parent.parent / "tox.ini").read_text()
    assert all(f"[testenv:{name}]" in tox for name in re.findall(r"^tox -e (\w+)$", page, re.M))


def test_the_page_names_knobs_that_there_are() -> None:
    page = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text()
    named = set(re.findall(r"\bvllm\.(\w+)(?:=|`)", page)) - {"md"}
    assert named
    assert named <= VLLMConfig.model_fields.keys()


def test_the_environment_pins_every_requirement() -> None:
    """It is installed without dependencies, so a requirement that the file lacks would be missing."""
    root = Path(__file__).parent.parent
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (root / "constraints-vllm-cpu.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], "pytest", "hypothesis", "pytest-benchmark"]
    assert {re.split(r"[<>=\[ ]", name)[0] for name in needed} - pinned <= {"pip"}
