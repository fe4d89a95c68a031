"""Hidden states read and changed, against forward passes written out here, on tiny models of several families."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_engine import FAMILIES, ask, engine_of, lively_model, one_thread, texts

from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.evidence import Outcome, same
from bench.method import Context
from bench.prompts import conversation
from bench.stages import StageCache
from bench.testing import findings
from bench.types import Capability, Example, Message, Request, Sampling, Steering
from methods.nonperso import NonPerso

__all__ = ["one_thread"]

DEPTH = 4
PROMPTS = ("a", "hello there", "the sound is clear and the price is fair " * 3, "é!", "why not", "b" * 70)
GREEDY, SAMPLED = Sampling(0.0, 1.0, 12), Sampling(0.8, 0.95, 12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HFEngine]:
    """Loaded engines of four layers by family, each made once."""

    @functools.cache
    def make(family: str) -> HFEngine:
        made = engine_of(lively_model(tmp_path_factory.mktemp(family), family, num_hidden_layers=DEPTH))
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


def hooks(engine: HFEngine) -> int:
    """Hooks on any part of the engine's model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.language_model().model.modules())


@pytest.fixture
def cramped(llama: HFEngine) -> Iterator[Callable[..., None]]:
    """Makes the model run out of memory above some rows, or fail otherwise."""
    handles = []

    def limit(rows: int, message: str = "CUDA out of memory. Tried to allocate") -> None:
        def check(_: Any, args: Any, kwargs: Any) -> None:
            given = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
            if given.shape[0] > rows:
                raise torch.OutOfMemoryError(message)

        handles.append(llama.model.register_forward_pre_hook(check, with_kwargs=True))

    yield limit
    for handle in handles:
        handle.remove()


# -- reading ---------------------------------------------------------------------------------------------------------


def talk(text: str, answer: str | None = None) -> list[Message]:
    return [Message("user", text)] + ([] if answer is None else [Message("assistant", answer)])


TALKS = [talk(text, answer) for text in PROMPTS for answer in (None, "Well.", "It is good, and cheap " * 4)]


def by_hand(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation, the answer at its end standing behind the marks that open it."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": messages[0].content}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text + "".join(m.content for m in messages[1:]), add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_states_are_those_that_transformers_gives_out_one_by_one(
    engine: Callable[[str], HFEngine], family: str
) -> None:
    made, model = engine(family), plain(engine(family).folder)
    for layer in range(1, DEPTH):  # what it gives out of the last one is normed
        found = made.hidden_states(TALKS, layer)
        assert found.dtype == np.float32
        for row, messages in zip(found, TALKS, strict=True):
            with torch.no_grad():
                ids = torch.tensor([by_hand(made.tokenizer, messages)])
                wanted = model(ids, output_hidden_states=True).hidden_states[layer][0, -1]
            torch.testing.assert_close(torch.tensor(row), wanted, rtol=1e-4, atol=1e-4)


def test_the_last_layer_is_read_before_the_norm(llama: HFEngine) -> None:
    model = plain(llama.folder)
    for row, messages in zip(llama.hidden_states(TALKS, DEPTH), TALKS, strict=True):
        with torch.no_grad():
            out = model(torch.tensor([by_hand(llama.tokenizer, messages)]), output_hidden_states=True)
            normed = model.model.norm(torch.tensor(row))
        torch.testing.assert_close(normed, out.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text", "gpt2"])
def test_company_order_and_batch_size_change_no_state(engine: Callable[[str], HFEngine], family: str) -> None:
    made = engine(family)
    whole = made.hidden_states(TALKS, 2)
    scale = float(np.abs(whole).max())
    stream = random.Random(0)
    for rows, tokens in ((1, 10_000), (2, 10_000), (7, 300), (64, 10_000)):
        other = engine_of(Path(made.folder), max_batch=rows, batch_tokens=tokens)
        order = stream.sample(range(len(TALKS)), len(TALKS))
        found = other.hidden_states([TALKS[i] for i in order], 2)
        assert np.abs(found - whole[order]).max() < 1e-5 * max(1.0, scale)
    assert np.abs(made.hidden_states(TALKS[:1], 2) - whole[:1]).max() < 1e-5 * max(1.0, scale)


def test_the_same_conversations_give_the_same_bits(llama: HFEngine) -> None:
    assert np.array_equal(llama.hidden_states(TALKS, 3), llama.hidden_states(TALKS, 3))


def test_control_tokens_in_an_answer_are_words(llama: HFEngine) -> None:
    """An answer that spells the end of a turn does not end it."""
    spelled, plain_words = talk("a", "Good <|end|>"), talk("a", "Good < |end|>")
    assert np.array_equal(llama.hidden_states([spelled], 2), llama.hidden_states([plain_words], 2))


def test_a_conversation_beyond_the_context_is_read_up_to_there(tmp_path: Path) -> None:
    made = engine_of(lively_model(tmp_path, max_position_embeddings=64))
    prompt = len(by_hand(made.tokenizer, talk("a")))
    cut = talk("a", "x" * (64 - prompt))
    found = made.hidden_states([talk("a", "x" * 500), cut], 1)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_reading_halves_what_does_not_fit_and_says_what_never_does(llama: HFEngine, cramped: Any) -> None:
    whole = llama.hidden_states(TALKS, 2)
    before = hooks(llama)
    cramped(3)
    np.testing.assert_allclose(llama.hidden_states(TALKS, 2), whole, atol=1e-4)
    cramped(0)
    with pytest.raises(UsageError, match=r"out of memory while reading a text of \d+ tokens; choose a smaller"):
        llama.hidden_states(TALKS, 2)
    assert hooks(llama) == before + 2  # those that make it fail


def test_reading_does_not_take_other_errors_for_lack_of_memory(llama: HFEngine, cramped: Any) -> None:
    cramped(0, "device-side assert")
    with pytest.raises(RuntimeError, match="device-side assert"):
        llama.hidden_states(TALKS, 2)


def test_reading_leaves_nothing_in_the_model(llama: HFEngine) -> None:
    requests = [ask(text) for text in PROMPTS]
    before = texts(llama, requests)
    llama.hidden_states(TALKS, 1)
    assert hooks(llama) == 0
    assert texts(llama, requests) == before
    assert engine_of(Path(llama.folder)).hidden_states([], 1).shape == (0, llama.model.config.hidden_size)


# -- steering --------------------------------------------------------------------------------------------------------


def vector(seed: int, size: float = 4.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return size * np.random.default_rng(seed).normal(size=(1, 32)).astype(np.float32)


def slowly(model: Any, ids: list[int], steering: Steering | None, new: int, end: int) -> list[int]:
    """New ids of greedy decoding: every layer called here, the whole text anew for each token, no cache, no hook."""
    inner, prompt, written = model.model, len(ids), []
    while len(written) < new and end not in written:
        length = len(ids)
        positions = torch.arange(length)[None]
        forbidden = torch.full((length, length), -torch.inf).triu(1)[None, None]
        hidden = inner.embed_tokens(torch.tensor([ids]))
        turned = inner.rotary_emb(hidden, position_ids=positions)
        for number, layer in enumerate(inner.layers, 1):
            hidden = layer(hidden, attention_mask=forbidden, position_ids=positions, position_embeddings=turned)
            if steering is not None and number == steering.layer:
                first = 0 if steering.prompt else prompt - 1
                hidden[0, first:] += torch.tensor(np.asarray(steering.vector))[0]
        written.append(int(model.lm_head(inner.norm(hidden))[0, -1].argmax()))
        ids = [*ids, written[-1]]
    return written


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_steering_is_adding_a_vector_to_what_a_layer_gives_out(engine: Callable[[str], HFEngine], family: str) -> None:
    """Every layer, with and without the prompt, rows of other vectors and of none, all in one batch."""
    made, model = engine(family), plain(engine(family).folder)
    end = made.tokenizer.convert_tokens_to_ids("<|end|>")
    steerings: list[Steering | None] = [
        Steering(layer, vector(layer), prompt) for layer in range(1, DEPTH + 1) for prompt in (False, True)
    ]
    steerings.insert(3, None)
    requests = [
        replace(ask(PROMPTS[i % len(PROMPTS)]), steering=steering) for i, steering in enumerate([*steerings, None])
    ]
    changed = 0
    for request, found in zip(requests, texts(made, requests), strict=True):
        ids = by_hand(made.tokenizer, request.messages)
        with torch.no_grad():
            wanted = slowly(model, ids, request.steering, 12, end)
            bare = slowly(model, ids, None, 12, end)
        assert found == made.tokenizer.decode([i for i in wanted if i != end], skip_special_tokens=True)
        changed += wanted != bare
    assert changed >= 2 * DEPTH - 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_rows_text_depends_on_its_own_vector_alone(
    engine: Callable[[str], HFEngine], family: str, sampling: Sampling
) -> None:
    made = engine(family)
    steerings = [None, Steering(2, vector(1)), Steering(3, vector(2), True), Steering(2, vector(3)), None]
    requests = [
        replace(ask(text, seed=i, sampling=sampling), steering=steerings[i % len(steerings)])
        for i, text in enumerate(PROMPTS)
    ]
    together = texts(made, requests)
    assert [texts(made, [r])[0] for r in requests] == together
    assert texts(made, requests[::-1])[::-1] == together
    assert texts(made, requests[:2]) + texts(made, requests[2:]) == together
    bare = texts(made, [replace(r, steering=None) for r in requests])
    steered = [r.steering is not None for r in requests]
    assert [t for t, s in zip(together, steered, strict=True) if not s] == [
        t for t, s in zip(bare, steered, strict=True) if not s
    ]
    assert sum(a != b for a, b in zip(together, bare, strict=True)) >= 2


def test_a_plan_minds_no_vectors(llama: HFEngine) -> None:
    requests = [ask(text) for text in PROMPTS]
    assert llama.plan([replace(r, steering=Steering(1, vector(i))) for i, r in enumerate(requests)]) == llama.plan(
        requests
    )


def test_zeros_change_nothing(llama: HFEngine) -> None:
    requests = [ask(text, seed=i, sampling=SAMPLED) for i, text in enumerate(PROMPTS)]
    zero = Steering(2, np.zeros((1, 32), np.float32), True)
    assert texts(llama, [replace(r, steering=zero) for r in requests]) == texts(llama, requests)


def test_a_torch_vector_does_what_the_same_numbers_do(llama: HFEngine) -> None:
    one, other = (replace(ask("a"), steering=Steering(2, v)) for v in (vector(1), torch.tensor(vector(1))))
    assert texts(llama, [one]) == texts(llama, [other]) != texts(llama, [ask("a")])


def test_no_hook_outlives_its_batch(llama: HFEngine) -> None:
    requests = [ask(text) for text in PROMPTS]
    before = texts(llama, requests)
    weights = {name: value.clone() for name, value in llama.language_model().model.state_dict().items()}
    steered = [replace(r, steering=Steering(2, vector(i))) for i, r in enumerate(requests)]
    assert texts(llama, steered) != before
    assert hooks(llama) == 0
    assert texts(llama, requests) == before
    assert all(torch.equal(weights[name], v) for name, v in llama.language_model().model.state_dict().items())


@pytest.mark.parametrize("number", [0, -1, DEPTH + 1])
def test_no_hook_outlives_an_error(llama: HFEngine, cramped: Any, number: int) -> None:
    """Neither one of the model's own, nor one about a layer that is not there, for which another row's waits."""
    request = replace(ask("a"), steering=Steering(1, vector(0)))
    wrong = replace(ask("b"), steering=Steering(number, vector(0)))
    with pytest.raises(UsageError, match=f"layer {number} was asked for, but the model has layers 1 to {DEPTH}"):
        llama.run([request, wrong])
    with pytest.raises(UsageError, match=f"layer {number} was asked for"):
        llama.hidden_states(TALKS, number)
    assert hooks(llama) == 0
    cramped(0, "device-side assert")
    with pytest.raises(RuntimeError, match="device-side assert"):
        llama.run([request])
    assert hooks(llama) == 1  # the one that makes it fail


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_steered_batch_that_does_not_fit_is_split_and_gives_the_same(
    llama: HFEngine, cramped: Any, rows: int
) -> None:
    requests = [
        replace(ask(text, seed=i, sampling=SAMPLED), steering=Steering(1 + i % DEPTH, vector(i), i % 2 == 0))
        for i, text in enumerate(PROMPTS)
    ]
    whole = llama.run(requests).generations
    cramped(rows)
    result = llama.run(requests)
    assert result.splits > 0
    assert result.generations == whole


def test_steering_works_on_top_of_an_adapter(llama: HFEngine, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft calls
        torch.manual_seed(0)
        lora = LoraConfig(r=2, init_lora_weights=False, target_modules=["v_proj"])
        adapted = get_peft_model(plain(llama.folder), lora)
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    request = replace(ask("hello there", adapter=str(tmp_path)), steering=Steering(2, vector(5)))
    end = llama.tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        wanted = slowly(merged, by_hand(llama.tokenizer, request.messages), request.steering, 12, end)
    assert texts(llama, [request]) == [llama.tokenizer.decode([i for i in wanted if i != end])]
    bare = llama.hidden_states(TALKS[:1], 2)  # of the model without the adapter that ran last
    assert np.array_equal(bare, engine_of(Path(llama.folder)).hidden_states(TALKS[:1], 2))


def test_bfloat16_steers_too(llama: HFEngine) -> None:
    made = engine_of(Path(llama.folder), dtype="bfloat16")
    requests = [replace(ask(text), steering=Steering(2, vector(i))) for i, text in enumerate(PROMPTS)]
    assert texts(made, requests) == texts(made, requests) != texts(made, [ask(text) for text in PROMPTS])
    assert made.hidden_states(TALKS, 2).dtype == np.float32


# -- who may ask -----------------------------------------------------------------------------------------------------


def test_the_depth_is_known_without_weights(llama: HFEngine) -> None:
    made = engine_of(Path(llama.folder))
    assert made.depth == DEPTH
    assert made._model is None
    assert Capability.HIDDEN in made.capabilities


def test_an_engine_without_hidden_states_says_so() -> None:
    assert Capability.HIDDEN not in FakeEngine.capabilities
    with pytest.raises(UsageError, match="'fake' gives no access to hidden states; use --engine hf"):
        FakeEngine().depth  # noqa: B018
    with pytest.raises(UsageError, match="'fake' gives no access to hidden states; use --engine hf"):
        FakeEngine().hidden_states(TALKS, 1)


def test_a_stage_before_the_last_takes_no_steering(tmp_path: Path) -> None:
    """Its answers are kept under the text of the request alone."""
    with pytest.raises(UsageError, match="steering belong to the last one"):
        StageCache(tmp_path, "s").run(FakeEngine(), [replace(ask("a"), steering=Steering(1, vector(0)))])


def steering_method(leak: bool, declares: bool) -> type[NonPerso]:
    """A method that steers by a vector of the user's, or of how many users there are."""

    class Steers(NonPerso):
        """Steers."""

        needs = frozenset({Capability.TEXT, Capability.HIDDEN} if declares else {Capability.TEXT})

        def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
            return [
                ctx.request(
                    e,
                    conversation(ctx.task, e, []),
                    steering=Steering(1, vector(len(examples) if leak else len(e.user_id))),
                )
                for e in examples
            ]

    return Steers


def test_the_contract_kit_sees_steering() -> None:
    assert [str(f) for f in findings(steering_method(leak=False, declares=True))] == []
    leaks = findings(steering_method(leak=True, declares=True))
    assert any(f.check == "a user alone" and "steering of" in f.detail for f in leaks)
    undeclared = findings(steering_method(leak=False, declares=False))
    assert any(f.check == "declares" and "requests use hidden" in f.detail for f in undeclared)


@pytest.mark.parametrize(
    "other", [None, Steering(2, vector(0)), Steering(1, vector(0), True), Steering(1, vector(0) + 1e-3)]
)
def test_the_contract_kit_compares_all_of_a_steering(other: Steering | None) -> None:
    def outcome(steering: Steering | None) -> Outcome:
        return Outcome((replace(ask("a"), steering=steering),), {})

    one = Steering(1, vector(0))
    assert list(same("check", outcome(one), outcome(Steering(1, vector(0) + 1e-7)))) == []
    assert len(list(same("check", outcome(one), outcome(other)))) == 1
    assert len(list(same("check", outcome(other), outcome(one)))) == 1
