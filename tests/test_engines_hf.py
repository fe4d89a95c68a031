"""The transformers engine against plain `generate`, one prompt at a time, on tiny random models of several families."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_engine import FAMILIES, ask, engine_of, lively_model, one_thread, texts

from bench.engines import reference
from bench.engines.devices import choose_device, choose_dtype
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.types import Generation, Message, Request, Sampling, slot

__all__ = ["one_thread"]

PROMPTS = ("a", "hello there", "the sound is clear and the price is fair " * 3, "é!", "why not", "b" * 70)
SAMPLED = Sampling(0.8, 0.95, 16)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HFEngine]:
    """Loaded engines by family, each made once."""

    @functools.cache
    def make(family: str) -> HFEngine:
        made = engine_of(lively_model(tmp_path_factory.mktemp(family), family))
        made.load()
        return made

    return make


@pytest.fixture(scope="module")
def llama(engine: Callable[[str], HFEngine]) -> HFEngine:
    return engine("llama")


def plain(folder: str) -> Any:
    """The model as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def directly(model: Any, tokenizer: Any, request: Request, ends: list[int] | None = None) -> tuple[str, int, str]:
    """(text, new tokens, finish reason) of a greedy request, with no code of the engine."""
    ends = ends or [tokenizer.convert_tokens_to_ids("<|end|>")]
    turns = [{"role": m.role, "content": m.content} for m in request.messages]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = model.generate(
        ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )[0, ids["input_ids"].shape[1] :].tolist()
    stopped = new[-1] in ends
    kept = new[:-1] if stopped else new
    return tokenizer.decode(kept, skip_special_tokens=True), len(new), "stop" if stopped else "length"


def facts(generation: Generation) -> tuple[str, int, str]:
    return generation.text, generation.output_tokens, generation.finish_reason


# -- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_greedy_batch_equals_plain_generate_one_by_one(engine: Callable[[str], HFEngine], family: str) -> None:
    made = engine(family)
    requests = [ask(text, sampling=Sampling(0.0, 1.0, 20)) for text in PROMPTS]
    generations = made.run(requests).generations
    model = plain(made.folder)
    assert [facts(g) for g in generations] == [directly(model, made.tokenizer, r) for r in requests]
    assert len({g.text for g in generations}) >= 4  # the models are lively enough for this to mean something
    assert [g.prompt_tokens for g in generations] == [made.count_tokens(r.messages) for r in requests]


def test_end_tokens_of_the_checkpoint_stop_a_row_and_are_counted(tmp_path: Path) -> None:
    folder = lively_model(tmp_path)
    ends = list(range(5, 250, 5))
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    made = engine_of(folder)
    requests = [ask(f"{text} {i}") for i, text in enumerate(PROMPTS * 3)]
    found = [facts(g) for g in made.run(requests).generations]
    model = plain(made.folder)
    end = made.tokenizer.convert_tokens_to_ids("<|end|>")
    assert found == [directly(model, made.tokenizer, r, [end, *ends]) for r in requests]
    assert {reason for _, _, reason in found} == {"stop", "length"}


def test_habits_of_the_checkpoint_have_no_influence(tmp_path: Path) -> None:
    bare = engine_of(lively_model(tmp_path / "bare"))
    folder = lively_model(tmp_path / "habits")
    habits: dict[str, Any] = {
        "do_sample": True,
        "top_k": 1,
        "top_p": 0.1,
        "temperature": 9.0,
        "repetition_penalty": 4.0,
    }
    habits |= {"no_repeat_ngram_size": 1, "max_length": 3, "eos_token_id": 1, "suppress_tokens": list(range(9, 99))}
    (folder / "generation_config.json").write_text(json.dumps(habits))
    made = engine_of(folder)
    for sampling in (Sampling(0.0, 1.0, 20), SAMPLED):
        requests = [ask(text, seed=i, sampling=sampling) for i, text in enumerate(PROMPTS)]
        assert texts(made, requests) == texts(bare, requests)


def test_lengths_can_be_fixed(llama: HFEngine) -> None:
    requests = [ask(t, seed=i, sampling=Sampling(1.5, 1.0, 9, 9)) for i, t in enumerate(PROMPTS * 4)]
    assert {(g.output_tokens, g.finish_reason) for g in llama.run(requests).generations} == {(9, "length")}
    result = llama.run(requests[:2])
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0


# -- soft vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_of_real_tokens_in_slots_give_the_text_of_those_tokens(
    engine: Callable[[str], HFEngine], family: str
) -> None:
    """Several slots of several lengths, in one batch with rows that have none."""
    made = engine(family)

    def rows(text: str) -> torch.Tensor:
        ids = torch.tensor(made.tokenizer(text, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            embedded: torch.Tensor = made.model.get_input_embeddings()(ids)
        return embedded

    def both(name: str, *parts: str) -> tuple[Request, Request]:
        """The same prompt with every second part as a slot, and as plain text."""
        content = "".join(slot(f"s{i}") if i % 2 else part for i, part in enumerate(parts))
        vectors = {f"s{i}": rows(part) for i, part in enumerate(parts) if i % 2}
        soft = {key: value if len(value) > 2 else value.numpy() for key, value in vectors.items()}
        sampling = Sampling(0.0, 1.0, 12)
        return (
            Request(name, "generate", (Message("user", content),), sampling, 0, soft),
            Request(name, "generate", (Message("user", "".join(parts)),), sampling, 0),
        )

    pairs = [
        both("one", "the sound is ", "c", "lear"),
        both("two", "", "xyz", " and then ", "ab", " to the end of it all " * 3),
        both("none", "nothing soft here"),
        both("all", "", "every word of it", ""),
    ]
    soft, hard = ([pair[i] for pair in pairs] for i in (0, 1))
    assert texts(made, soft) == texts(made, hard)
    assert [g.prompt_tokens for g in made.run(soft).generations] == [len(made.encode(r).ids) for r in hard]


def test_what_the_vectors_say_matters(llama: HFEngine) -> None:
    hidden = llama.model.config.hidden_size
    noise = np.random.default_rng(0).normal(size=(3, 1, hidden)).astype(np.float32)
    requests = [
        Request(str(i), "g", (Message("user", f"a{slot('v')}b"),), Sampling(0.0, 1.0, 12), 0, {"v": vector})
        for i, vector in enumerate(noise)
    ]
    assert len(set(texts(llama, requests))) == 3


# -- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_requests_text_is_the_same_alone_in_a_batch_and_permuted(
    engine: Callable[[str], HFEngine], family: str
) -> None:
    made = engine(family)
    requests = [ask(text, seed=2**62 + i, sampling=SAMPLED) for i, text in enumerate(PROMPTS)]
    together = texts(made, requests)
    assert [texts(made, [r])[0] for r in requests] == together
    assert texts(made, requests[::-1])[::-1] == together
    assert texts(made, requests[:2]) + texts(made, requests[2:]) == together
    assert len({texts(made, [ask("a", seed=s, sampling=SAMPLED)])[0] for s in range(12)}) >= 11


def test_first_tokens_follow_the_models_nucleus(llama: HFEngine) -> None:
    request = ask("hello there", sampling=Sampling(1.3, 0.8, 1))
    with torch.no_grad():
        logits = plain(llama.folder)(torch.tensor([llama.encode(request).ids])).logits[0, -1].double()
    probabilities = (logits / 1.3).softmax(-1).numpy()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(probabilities[order].cumsum(), 0.8)) + 1]
    expected = probabilities[kept] / probabilities[kept].sum()
    prompts, rows = [llama.encode(request)], 512
    batches = [[ask("hello there", seed=i, sampling=request.sampling) for i in range(n, n + rows)] for n in (0, rows)]
    written = [reference.write(llama.model, prompts * rows, batch, rows, lambda _: None) for batch in batches]
    drawn = [row[0] for part in written for row in part.tokens]
    counts = np.bincount(drawn, minlength=len(probabilities))
    assert counts[kept].sum() == 2 * rows
    common = expected * 2 * rows >= 5
    observed = np.append(counts[kept][common], counts[kept][~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * 2 * rows
    nonzero = wanted > 0
    assert stats.chisquare(observed[nonzero], wanted[nonzero]).pvalue > 1e-3


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cramped(llama: HFEngine) -> Any:
    """Makes the model run out of memory above some rows, or some padded tokens a row."""
    handles = []

    def limit(rows: int = 99, length: int = 10_000, message: str = "CUDA out of memory. Tried to allocate") -> None:
        def check(_: Any, args: Any, kwargs: Any) -> None:
            given = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
            if given.shape[0] > rows or given.shape[1] > length:
                raise torch.OutOfMemoryError(message)

        handles.append(llama.model.register_forward_pre_hook(check, with_kwargs=True))

    yield limit
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_split_and_gives_the_same(llama: HFEngine, cramped: Any, rows: int) -> None:
    requests = [ask(text, seed=i, sampling=SAMPLED) for i, text in enumerate(PROMPTS)]
    whole = llama.run(requests).generations
    cramped(rows)
    result = llama.run(requests)
    assert result.generations == whole
    assert result.prefill_seconds > 0


def test_a_row_that_does_not_fit_comes_back_as_an_error_and_spares_the_others(llama: HFEngine, cramped: Any) -> None:
    requests = [ask(text) for text in PROMPTS]
    whole = llama.run(requests).generations
    longest = max(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    cramped(length=len(PROMPTS[longest]))
    found = llama.run(requests).generations
    failed = found.pop(longest)
    assert (failed.text, failed.finish_reason) == ("", "error")
    assert failed.error is not None
    assert "out of memory on a prompt of" in failed.error
    assert found == whole[:longest] + whole[longest + 1 :]


def test_other_errors_are_not_taken_for_lack_of_memory(llama: HFEngine) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("device-side assert")

    handle = llama.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="device-side assert"):
            llama.run([ask("a"), ask("b")])
    finally:
        handle.remove()


# -- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refill", [1, 4])
@pytest.mark.parametrize(("rows", "tokens"), [(4, 300), (16, 120), (1, 10_000), (3, 40)])
def test_a_plan_is_pure_complete_unmixed_and_within_budget(
    llama: HFEngine, rows: int, tokens: int, refill: int
) -> None:
    knobs = {"max_batch": rows, "batch_tokens": tokens, "refill": refill}
    made = engine_of(Path(llama.folder), **knobs)
    stream = random.Random(0)
    requests = [
        ask(f"{i} " + "x" * stream.randint(0, 90), i, stream.choice([SAMPLED, Sampling(0, 1, 12)])) for i in range(40)
    ]
    requests = [
        Request(r.example_id, r.stage, r.messages, r.sampling, r.seed, adapter=stream.choice([None, "a", "b"]))
        for r in requests
    ]
    batches = made.plan(requests)
    assert batches == made.plan(list(requests)) == engine_of(Path(llama.folder), **knobs).plan(requests)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    for batch in batches:
        assert len({(requests[i].adapter, requests[i].sampling) for i in batch}) == 1
        longest = max(len(made.encode(requests[i]).ids) + requests[i].sampling.max_new_tokens for i in batch)
        assert len(batch) <= rows * refill
        assert len(batch) == 1 or longest * len(batch) <= tokens * refill
    assert made._model is None  # a plan needs no weights


# -- loading --------------------------------------------------------------------------------------------------------


def test_identity_and_context_are_known_without_weights(tmp_path: Path) -> None:
    made = engine_of(lively_model(tmp_path, max_position_embeddings=777))
    before = made.identity()
    assert made.context_length == 777
    assert made.speed() is None
    assert made._model is None
    made.load()
    assert made.identity() == before
    assert {"name", "model", "revision", "dtype", "device", "backend"} <= set(before)
    speed = made.speed()
    assert speed is not None
    assert min(speed.prefill_tokens_per_second, speed.decode_tokens_per_second) > 0


def test_a_context_shorter_than_the_warm_up_text_is_no_hindrance(tmp_path: Path) -> None:
    made = engine_of(lively_model(tmp_path, "gpt2", max_position_embeddings=48))
    assert made.context_length == 48
    request = ask("short")
    assert facts(made.run([request]).generations[0]) == directly(plain(made.folder), made.tokenizer, request)


def test_a_closed_engine_loads_again(tmp_path: Path) -> None:
    made = engine_of(lively_model(tmp_path))
    first = texts(made, [ask("hello")])
    made.close()
    assert made._model is None
    assert texts(made, [ask("hello")]) == first


def test_bfloat16_runs_soft_and_plain(llama: HFEngine) -> None:
    made = engine_of(Path(llama.folder), dtype="bfloat16")
    vectors = np.random.default_rng(0).normal(size=(2, llama.model.config.hidden_size)).astype(np.float32)
    soft = Request("s", "g", (Message("user", f"a{slot('v')}"),), SAMPLED, 3, {"v": vectors})
    requests = [soft, *(ask(text, i, SAMPLED) for i, text in enumerate(PROMPTS))]
    assert texts(made, requests) == texts(made, requests)
    assert made.model.dtype == torch.bfloat16
    assert made.identity()["dtype"] == "bfloat16"


def test_a_pad_token_without_an_embedding_does_no_harm(tmp_path: Path) -> None:
    folder = lively_model(tmp_path)
    made = engine_of(folder)
    expected = texts(made, [ask(text) for text in PROMPTS])
    tokenizer = made.tokenizer
    tokenizer.add_special_tokens({"pad_token": "<|new pad|>"})
    tokenizer.save_pretrained(folder)
    again = engine_of(folder)
    assert again.tokenizer.pad_token_id >= again.model.get_input_embeddings().weight.shape[0]
    assert texts(again, [ask(text) for text in PROMPTS]) == expected


def test_devices_and_types_that_are_not_there() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch sees no such device here"):
            choose_device("cuda")
        assert choose_device("auto") == "cpu"
    assert choose_dtype("float32", "cpu") == "float32"
    assert choose_dtype("auto", "cpu") in ("bfloat16", "float32")
