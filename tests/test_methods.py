"""The plain methods: the right reviews in the prompt, adapters that leave no trace, an oracle that needs truth."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_world import World, context, document, example, said, world
from rank_bm25 import BM25Okapi
from tiny_engine import engine_of, lively_model, one_thread

from bench.encoders import HashEncoder
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.files import pretty_json
from bench.method import Context
from bench.testing import tiny_dataset
from bench.types import Document, Example, Message
from methods.lora import Lora, LoraConfig
from methods.nonperso import NonPerso
from methods.oracle import Oracle
from methods.rag import Rag, RagConfig

__all__ = ["one_thread"]

QUICK = {"epochs": 1, "batch_size": 2, "r": 2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small() -> World:
    return world()


def shown(of: Example, messages: tuple[Message, ...]) -> list[str]:
    """Ids of the past reviews in a prompt, in prompt order."""
    prompt = said(messages)
    there = [d for d in of.history if d.text in prompt]
    return [d.id for d in sorted(there, key=lambda d: prompt.index(d.text))]


def newest(of: Example, count: int) -> list[str]:
    return [d.id for d in reversed(of.history)][:count]


def assert_target_ends_the_prompt(of: Example, messages: tuple[Message, ...]) -> None:
    lines = messages[-1].content.splitlines()
    assert messages[-1].role == "user"
    assert lines[-4:] == [
        f"Item title: {of.fields['item_title']}",
        f"Item description: {of.fields['item_description']}",
        f"Rating: {of.fields['rating']:g}",
        f"Review title: {of.fields['title']}",
    ]


# -- nonperso --------------------------------------------------------------------------------------------------------


def test_nonperso_shows_the_target_and_nobodys_reviews(small: World) -> None:
    requests = NonPerso().requests(small.test.examples, context(small.population))
    for request, of in zip(requests, small.test.examples, strict=True):
        assert len(request.messages) == 1
        assert_target_ends_the_prompt(of, request.messages)
        prompt = said(request.messages)
        assert prompt.count("Item title") == 1
        assert not any(d.text in prompt for d in small.population.documents())
        assert "Never shown" not in prompt
        assert (request.soft, request.adapter) == ({}, None)


# -- rag -------------------------------------------------------------------------------------------------------------


def best_by_bm25(of: Example, k: int) -> list[str]:
    """As the baseline defines it: title and description of the target against those of past reviews."""

    def words(thing: Example | Document) -> list[str]:
        return f"{thing.fields['title']} {thing.fields['item_description']}".split()

    scores = BM25Okapi([words(d) for d in of.history]).get_scores(words(of))
    ranked = sorted(range(len(of.history)), key=lambda i: (scores[i], i), reverse=True)[:k]
    return [of.history[i].id for i in sorted(ranked, reverse=True)]


def best_by_cosine(of: Example, k: int) -> list[str]:
    def vector(thing: Example | Document) -> Any:
        return HashEncoder(16).encode([f"{thing.fields['title']} {thing.fields['item_description']}"])[0]

    scores = [float(np.dot(vector(of), vector(d))) for d in of.history]
    ranked = sorted(range(len(of.history)), key=lambda i: (scores[i], i), reverse=True)[:k]
    return [of.history[i].id for i in sorted(ranked, reverse=True)]


@pytest.mark.parametrize("k", [0, 1, 3, 50])
@pytest.mark.parametrize("retriever", ["bm25", "dense", "recency", "random"])
def test_rag_shows_the_retrieved_reviews_newest_first_then_the_target(small: World, retriever: str, k: int) -> None:
    method = Rag(RagConfig.model_validate({"retriever": retriever, "k": k}))
    requests = method.requests(small.test.examples, context(small.population))
    for request, of in zip(requests, small.test.examples, strict=True):
        found = shown(of, request.messages)
        if retriever == "random":
            assert found == [d for d in newest(of, 99) if d in found]
            assert len(found) == min(k, len(of.history))
        else:
            by = {"bm25": best_by_bm25, "dense": best_by_cosine, "recency": newest}[retriever]
            assert found == by(of, k)
        assert [m.role for m in request.messages] == ["user", "assistant"] * len(found) + ["user"]
        assert_target_ends_the_prompt(of, request.messages)
        assert "Never shown" not in said(request.messages)
        others = [d.text for d in small.population.documents() if d.user_id != of.user_id]
        assert not any(text in said(request.messages) for text in others)


def test_random_retrieval_differs_between_examples_and_seeds_and_repeats_itself(small: World) -> None:
    method = Rag(RagConfig(retriever="random", k=3))
    picks = [
        [
            shown(e, r.messages)
            for r, e in zip(method.requests(small.test.examples, ctx), small.test.examples, strict=True)
        ]
        for ctx in (context(small.population), context(small.population), context(small.population, seed=1))
    ]
    assert picks[0] == picks[1] != picks[2]


def test_only_dense_retrieval_wants_the_encoder() -> None:
    kinds = ("bm25", "dense", "recency", "random")
    assert [Rag(RagConfig(retriever=kind)).wants_encoder() for kind in kinds] == [False, True, False, False]


def test_a_tight_budget_leaves_out_the_oldest_retrieved_reviews_and_keeps_the_task(small: World) -> None:
    of, counts = small.test.examples[0], set()
    for budget in range(60, 700, 15):
        ctx = context(small.population, max_prompt_tokens=budget)
        request = Rag(RagConfig(retriever="recency")).requests([of], ctx)[0]
        assert ctx.engine.count_tokens(request.messages) <= budget
        assert_target_ends_the_prompt(of, request.messages)
        found = shown(of, request.messages)
        assert found == newest(of, len(found))
        counts.add(len(found))
    assert counts >= {1, 2, 3, 4, 5, 6, 7}


# -- oracle ----------------------------------------------------------------------------------------------------------


def test_the_oracle_asks_the_truth_with_fresh_noise_for_each_seed() -> None:
    dataset = tiny_dataset()
    examples = dataset.test.examples[:4]
    texts = [
        Oracle().answer(examples, context(dataset.population, truth=dataset.truth, seed=seed)) for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1]
    assert all(a != b for a, b in zip(texts[0], texts[2], strict=True))
    assert not set(texts[0]) & set(dataset.test.references.values())
    assert Oracle().requests(examples, context(dataset.population)) == []


def test_the_oracle_without_a_truth_says_what_is_missing(small: World) -> None:
    with pytest.raises(UsageError, match="known truth"):
        Oracle().answer(small.test.examples, context(small.population))


# -- lora ------------------------------------------------------------------------------------------------------------


def fitted(of: World, ctx: Context, folder: Path, **config: Any) -> Lora:
    """A method that was fitted, saved to `folder` and loaded."""
    learner = Lora(LoraConfig(**{**QUICK, **config}))
    learner.fit(of.train, of.dev, ctx)
    learner.save(folder)
    method = Lora(learner.config)
    method.load(folder, ctx)
    method.log = learner.log
    return method


def test_after_lora_the_model_is_bitwise_what_it_was(small: World, engine: HFEngine, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in engine.language_model().model.state_dict().items()}
    kinds = [type(m) for m in engine.language_model().model.modules()]
    method = fitted(small, context(small.population, engine), tmp_path, lr=0.1)
    for _ in range(2):  # right after the fit, and again after generating with the adapter
        after = engine.language_model().model
        assert before.keys() == after.state_dict().keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in after.state_dict().items())
        assert kinds == [type(m) for m in after.modules()]
        assert not after.training
        assert not any(p.requires_grad for p in after.parameters())
        engine.run(method.requests(small.test.examples[:1], context(small.population, engine)))


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("all-linear",)])
def test_the_saved_folder_loads_with_peft_and_gives_the_same_logits(
    small: World, engine: HFEngine, tmp_path: Path, modules: tuple[str, ...]
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    method = fitted(small, context(small.population, engine), tmp_path / "", lr=0.1, target_modules=modules)
    request = method.requests(small.test.examples[:1], context(small.population, engine))[0]
    ids = torch.tensor([engine.encode(request).ids])
    bare = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32)
    with torch.no_grad():
        plain = bare(ids).logits
        adapted = PeftModel.from_pretrained(bare, str(tmp_path)).eval()(ids).logits
        engine.run([request])
        ours = engine.model(ids).logits
    torch.testing.assert_close(ours, adapted)
    assert not torch.allclose(plain, adapted, atol=1e-3)
    # The definition: W x + (alpha / r) B A x, put into the weights by hand.
    state = load_file(tmp_path / "adapter_model.safetensors")
    by_hand = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32)
    layers = {name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")}
    assert {layer.rpartition(".")[2] for layer in layers} == (
        {"q_proj", "v_proj"}
        if modules != ("all-linear",)
        else {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    )
    with torch.no_grad():
        for layer in layers:
            update = state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
            weight = by_hand.get_submodule(layer.removeprefix("base_model.model.")).weight
            weight += method.config.alpha / method.config.r * update
        torch.testing.assert_close(by_hand(ids).logits, adapted, rtol=1e-4, atol=1e-4)


def test_lora_prompts_hold_the_newest_reviews_and_name_the_adapter(
    small: World, engine: HFEngine, tmp_path: Path
) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, tmp_path, n_history=3)
    for request, of in zip(method.requests(small.test.examples, ctx), small.test.examples, strict=True):
        assert shown(of, request.messages) == newest(of, 3)
        assert_target_ends_the_prompt(of, request.messages)
        assert "Never shown" not in said(request.messages)
        assert request.adapter == str(tmp_path)


def test_lora_learns_and_keeps_the_best_epoch(small: World, engine: HFEngine, tmp_path: Path) -> None:
    ctx = context(small.population, engine)
    log = fitted(small, ctx, tmp_path, epochs=4, lr=0.02, dropout=0.0).log
    assert log is not None
    losses = [epoch.dev_loss for epoch in log.epochs]
    assert log.best_epoch == 1 + losses.index(min(losses))
    assert log.steps[-1] < log.steps[0]


def test_without_validation_rows_the_last_epoch_stays_and_the_log_can_be_stored(
    small: World, engine: HFEngine, tmp_path: Path
) -> None:
    log = fitted(small, context(small.population, engine), tmp_path, epochs=2, max_dev=0).log
    assert log is not None
    assert log.best_epoch == 2
    assert [epoch["dev_loss"] for epoch in json.loads(pretty_json(log.to_json()))["epochs"]] == [None, None]


@pytest.mark.parametrize(
    ("modules", "missing"), [(("q_proj", "query"), "query"), (("all-linear", "q_proj"), "all-linear")]
)
def test_unknown_target_modules_are_named_with_those_there_are(
    small: World, engine: HFEngine, modules: tuple[str, ...], missing: str
) -> None:
    method = Lora(LoraConfig(**{**QUICK, "target_modules": modules}))
    with pytest.raises(UsageError, match=f"no layer called {missing}; it has .*q_proj") as error:
        method.fit(small.train, small.dev, context(small.population, engine))
    assert "\n" not in str(error.value)
    assert engine.language_model().model.state_dict().keys()


def test_the_saved_adapter_names_no_place_on_this_machine(small: World, engine: HFEngine, tmp_path: Path) -> None:
    fitted(small, context(small.population, engine), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] is None
    for place in (engine.folder, str(tmp_path), str(Path.home()), "/tmp"):
        assert place not in text


def test_requests_before_save_and_load_say_so(small: World) -> None:
    with pytest.raises(UsageError, match="save and load"):
        Lora().requests(small.test.examples, context(small.population))


FIT = """
import sys; from pathlib import Path
sys.path[:0] = sys.argv[3:]
import torch; torch.set_num_threads(1)
from method_world import context, world
from tiny_engine import engine_of
from methods.lora import Lora, LoraConfig
w = world(2)
m = Lora(LoraConfig(epochs=1, r=2, batch_size=2, target_modules=("all-linear",)))
m.fit(w.train, w.dev, context(w.population, engine_of(Path(sys.argv[1]))))
m.save(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_save_the_same_bytes(engine: HFEngine, tmp_path: Path) -> None:
    """Whatever order sets of names take there."""
    saved = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(random.Random(number).randrange(1000))}
        here = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", FIT, engine.folder, str(folder), here], check=True, env=environment)
        saved.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert saved[0] == saved[1]


def test_documents_of_the_world_are_distinct() -> None:
    """What the checks above rest on: no text stands within another."""
    texts = [d.text for d in world().population.documents()]
    assert not any(a in b for a in texts for b in texts if a != b)
    assert document(1, 2, 3).text != example(1, 2, 3, []).fields["title"]
