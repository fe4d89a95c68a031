"""StyleVector: the vector is what the paper defines, rests on the own past alone, and no past is no steering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_world import World, context, said, world
from tiny_engine import engine_of, lively_model, one_thread

from bench.cells import plain_cell
from bench.comparison import Entry
from bench.config import build
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.meter import Meter
from bench.method import Context
from bench.plan import RunConfig, make_plan
from bench.runner import execute, summary
from bench.stages import StageCache
from bench.testing import check_method
from bench.types import Document, Example, Generation, Message, Request
from methods.nonperso import NonPerso
from methods.rag import Rag, RagConfig
from methods.stylevector import StyleVector, StyleVectorConfig, whole_sentences

__all__ = ["one_thread"]

DEPTH = 4
TOKENS = 8


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model"), num_hidden_layers=DEPTH))


@pytest.fixture(scope="module")
def small() -> World:
    return world()


class Stages:
    """Answers with words that belong to the document asked for, and remembers what it was asked."""

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.asked: list[Request] = []
        self.fails = fails

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        assert stage == "generic"
        self.asked += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Generation:
        if request.example_id in self.fails:
            return Generation("", 0, 0, "error", error="out of memory")
        return Generation(f" {generic(request.example_id)}\n", 3, 3, "stop")


def generic(document_id: str) -> str:
    return f"A thing like {document_id}."


def setting(
    small: World, engine: HFEngine, fails: Sequence[str] = (), **config: Any
) -> tuple[StyleVector, Context, Stages]:
    stages = Stages(fails)
    method = StyleVector(StyleVectorConfig.model_validate({"generic_tokens": TOKENS, "alpha": 1.0, **config}))
    return method, context(small.population, engine, stage_runner=stages.run), stages


def added(request: Request) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a request has added to its hidden states."""
    assert request.steering is not None
    vector: np.ndarray[Any, np.dtype[np.float32]] = np.asarray(request.steering.vector)
    assert vector.shape == (1, 32)
    assert vector.dtype == np.float32
    return vector[0]


def as_example(document: Document) -> Example:
    return Example(document.id, document.user_id, document.fields, ())


def by_definition(
    engine: HFEngine, ctx: Context, documents: Sequence[Document], layer: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """s(u) from `output_hidden_states` of transformers' own model, one text at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32).eval()

    def last(prompt: Sequence[Message], text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        rendered = engine.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = engine.tokenizer(rendered + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[layer][0, -1]
        return np.asarray(states.double())

    prompts = [NonPerso().requests([as_example(d)], ctx)[0].messages for d in documents]
    differences = [
        last(prompt, d.text) - last(prompt, generic(d.id)) for prompt, d in zip(prompts, documents, strict=True)
    ]
    return np.mean(differences, axis=0)


# -- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"scope": "target", "shown": 2, "positions": "all", "layer": 2}])
def test_it_holds_to_the_contract(config: dict[str, Any]) -> None:
    check_method(StyleVector, n_history=2, generic_tokens=6, alpha=1.0, **config)


# -- the vector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "number"), [(0.5, 2), (3, 3), (0.01, 1), (1, 1), (0.7, 3)])
def test_the_vector_is_the_mean_difference_at_the_last_token_of_the_layer(
    small: World, engine: HFEngine, layer: float, number: int
) -> None:
    method, ctx, _ = setting(small, engine, layer=layer, n_history=3, alpha=2.0)
    for example, request in zip(small.test.examples, method.requests(small.test.examples, ctx), strict=True):
        wanted = 2.0 * by_definition(engine, ctx, small.population.history(example.user_id, None)[-3:], number)
        assert request.steering is not None
        assert (request.steering.layer, request.steering.prompt) == (number, False)
        np.testing.assert_allclose(added(request), wanted, atol=1e-4)
        assert np.abs(wanted).max() > 0.1


def test_in_the_scope_of_a_target_all_before_it_counts(small: World, engine: HFEngine) -> None:
    """A validation target among it, which a user's own vector must not hold."""
    method, ctx, _ = setting(small, engine, scope="target", n_history=2)
    for example, request in zip(small.test.examples, method.requests(small.test.examples, ctx), strict=True):
        assert {d.id for d in example.history[-2:]} & {e.id for e in small.dev.examples}
        np.testing.assert_allclose(added(request), by_definition(engine, ctx, example.history[-2:], 2), atol=1e-4)


def test_the_vector_grows_with_alpha_and_says_where_it_goes(small: World, engine: HFEngine) -> None:
    once, twice, back, everywhere = (
        setting(small, engine, **config)
        for config in ({}, {"alpha": 2.0}, {"alpha": -0.5}, {"positions": "all", "n_history": 8})
    )
    one, two, minus, whole = (
        method.requests(small.test.examples[:2], ctx) for method, ctx, _ in (once, twice, back, everywhere)
    )
    for i in range(2):
        np.testing.assert_allclose(added(two[i]), 2 * added(one[i]), rtol=1e-5)
        np.testing.assert_allclose(added(minus[i]), -0.5 * added(one[i]), rtol=1e-5)
        steering = whole[i].steering
        assert steering is not None
        assert steering.prompt
        np.testing.assert_allclose(added(whole[i]), added(one[i]), rtol=1e-5)


def test_company_and_order_change_no_vector(small: World, engine: HFEngine) -> None:
    method, ctx, _ = setting(small, engine)
    examples = small.test.examples
    whole = [added(r) for r in method.requests(examples, ctx)]
    turned = [added(r) for r in method.requests(examples[::-1], ctx)][::-1]
    alone = [added(method.requests([e], ctx)[0]) for e in examples]
    single = replace(ctx, engine=engine_of(Path(engine.folder), max_batch=1))
    for other in (turned, alone, [added(r) for r in method.requests(examples, single)]):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert all(np.abs(whole[0] - other).max() > 0.1 for other in whole[1:])


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_each_document_is_asked_for_once_as_if_it_had_no_user(small: World, engine: HFEngine) -> None:
    """All targets of a user share their documents, and two readings of each are all that is read."""
    method, ctx, stages = setting(small, engine, n_history=3)
    examples = [*small.test.examples, *small.dev.examples]
    requests = method.requests(examples, ctx)
    wanted = [d for e in small.test.examples for d in reversed(small.population.history(e.user_id, None)[-3:])]
    assert [r.example_id for r in stages.asked] == [d.id for d in wanted]
    assert len({r.seed for r in stages.asked}) == len(wanted)
    for request, document in zip(stages.asked, wanted, strict=True):
        assert request.sampling.max_new_tokens == TOKENS
        assert request.messages == NonPerso().requests([as_example(document)], ctx)[0].messages
        assert document.text not in said(request.messages)
    for test, dev in zip(requests[:4], requests[4:], strict=True):
        assert np.array_equal(added(test), added(dev))


def test_texts_are_read_once_and_the_time_is_metered(
    small: World, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = HFEngine.hidden_states

    def counted(self: HFEngine, conversations: Any, layer: int, progress: bool = False) -> Any:
        calls.append(len(conversations))
        return real(self, conversations, layer, progress)

    monkeypatch.setattr(HFEngine, "hidden_states", counted)
    method, ctx, _ = setting(small, engine, n_history=2)
    ctx = replace(ctx, meter=Meter())
    method.requests([*small.test.examples, *small.dev.examples], ctx)
    assert calls == [2 * 2 * len(small.test.examples)]
    assert ctx.meter.seconds["hidden"] > 0


@pytest.mark.parametrize("shown", [0, 2])
def test_without_alpha_it_is_the_prompt_alone(small: World, engine: HFEngine, shown: int) -> None:
    """nonperso, or rag by recency where reviews are shown: the same requests and texts, and nothing else is asked."""
    method, ctx, stages = setting(small, engine, alpha=0.0, shown=shown)
    other = Rag(RagConfig(k=shown, retriever="recency")) if shown else NonPerso()
    requests, plain = (m.requests(small.test.examples, ctx) for m in (method, other))
    assert requests == plain
    assert stages.asked == []
    assert engine.answers(requests) == engine.answers(plain)
    steered = setting(small, engine, alpha=4.0, shown=shown)[0].requests(small.test.examples, ctx)
    assert [r.messages for r in steered] == [r.messages for r in plain]
    assert [g.text for g in engine.answers(steered)] != [g.text for g in engine.answers(plain)]


def test_whoever_wrote_nothing_is_written_for_without_steering(small: World, engine: HFEngine) -> None:
    """Beside users who are steered, and as nonperso writes."""
    method, ctx, stages = setting(small, engine, alpha=4.0)
    newcomer = replace(small.test.examples[1], history=())
    examples = [small.test.examples[0], newcomer, small.test.examples[2]]
    requests = method.requests(examples, ctx)
    assert [r.steering is None for r in requests] == [False, True, False]
    assert not any(r.example_id.startswith("u1/") for r in stages.asked)
    plain = NonPerso().requests([newcomer], ctx)
    assert requests[1] == plain[0]
    assert engine.answers(requests)[1].text == engine.answers(plain)[0].text
    assert method.requests([newcomer], ctx)[0].steering is None
    assert setting(small, engine, n_history=0)[0].requests(examples, ctx)[0].steering is None


def test_documents_of_which_one_side_is_missing_count_for_nothing(small: World, engine: HFEngine) -> None:
    example = small.test.examples[0]
    past = small.population.history(example.user_id, None)[-3:]
    method, ctx, _ = setting(small, engine, n_history=3, fails=[past[1].id])
    found = added(method.requests([example], ctx)[0])
    np.testing.assert_allclose(found, by_definition(engine, ctx, [past[0], past[2]], 2), atol=1e-4)
    method, ctx, _ = setting(small, engine, n_history=3, fails=[d.id for d in past])
    assert method.requests([example], ctx)[0].steering is None


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It is good. I like it.", "It is good. I like it."),
        ("It is good! I like", "It is good!"),
        ("So it is 3.5 inches wi", "So it is 3.5 inches wi"),
        ('He said "why?" and then', 'He said "why?"'),
        ("Well... (no.) An", "Well... (no.)"),
        ("很好。我喜", "很好。"),
        ("Fine :)", "Fine :)"),
        ("", ""),
    ],
)
def test_a_text_is_cut_back_to_whole_sentences(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_a_generic_text_that_was_cut_off_is_read_up_to_its_last_whole_sentence(
    small: World, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, ctx, stages = setting(small, engine)
    whole = [added(r) for r in method.requests(small.test.examples, ctx)]

    def cut_off(request: Request) -> Generation:
        return Generation(f"{generic(request.example_id)} And then it w", 9, 9, "length")

    monkeypatch.setattr(stages, "_answer", cut_off)
    for vector, request in zip(whole, method.requests(small.test.examples, ctx), strict=True):
        assert np.array_equal(vector, added(request))


def test_the_stage_runs_on_a_real_engine_and_is_kept(small: World, engine: HFEngine, tmp_path: Path) -> None:
    method, ctx, _ = setting(small, engine, n_history=2)
    ctx = replace(ctx, stage_runner=lambda r, stage: StageCache(tmp_path, stage).run(engine, r))
    first, again = (method.requests(small.test.examples, ctx) for _ in range(2))
    assert [added(r).tolist() for r in first] == [added(r).tolist() for r in again]
    assert len((tmp_path / "generic.jsonl").read_text().splitlines()) == 2 * len(small.test.examples)
    assert engine.answers(first) == engine.answers(again)


def test_a_dry_run_shows_the_stage_without_a_model(small: World) -> None:
    stages = Stages()
    ctx = context(small.population, stage_runner=stages.run)
    example = small.test.examples[0]
    messages = StyleVector(StyleVectorConfig(n_history=2)).preview(example, ctx)
    assert messages == NonPerso().requests([example], ctx)[0].messages
    assert len(stages.asked) == 2


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "named"), [(DEPTH + 1, DEPTH + 1), (99.0, 99)])
def test_a_layer_beyond_the_model_is_refused_before_anything_is_asked(
    small: World, engine: HFEngine, layer: float, named: int
) -> None:
    method, ctx, stages = setting(small, engine, layer=layer)
    unloaded = engine_of(Path(engine.folder))
    for call in (
        lambda: method.requests(small.test.examples, ctx),
        lambda: method.preflight(unloaded),
    ):
        with pytest.raises(UsageError, match=f"stylevector.layer={named} was asked for, but the model has {DEPTH} "):
            call()
    assert stages.asked == []
    assert unloaded._model is None


@pytest.mark.parametrize("layer", [0, -1, 1.5, "middle"])
def test_what_is_no_layer_is_refused_with_the_config(layer: Any) -> None:
    with pytest.raises(UsageError, match=r"stylevector\.layer"):
        build(StyleVectorConfig, {"layer": layer}, "stylevector")


def run_config(out: Path, **changes: Any) -> RunConfig:
    given: dict[str, Any] = {
        "methods": ["nonperso", "stylevector"],
        "metrics": ["rouge1"],
        "overrides": ["planted.users=12", "planted.items=20"],
        "out": out,
    }
    return build(RunConfig, {**given, **changes}, "run")


def test_a_run_finds_out_before_its_first_method(engine: HFEngine, tmp_path: Path) -> None:
    overrides = ["planted.users=12", "planted.items=20", "stylevector.layer=5"]
    plan = make_plan(run_config(tmp_path, model=engine.folder, overrides=overrides))
    with pytest.raises(UsageError, match=r"stylevector\.layer=5"):
        execute(plan, report=lambda line: None)
    assert not list(tmp_path.rglob("records.jsonl"))


def test_a_run_tells_what_reading_took(engine: HFEngine, tmp_path: Path) -> None:
    """Which counts among what a text costs, beside the stage."""
    overrides = ["planted.users=12", "planted.items=20", "stylevector.n_history=2", "stylevector.generic_tokens=6"]
    config = run_config(tmp_path, model=engine.folder, overrides=overrides, limit=2, max_new_tokens=8)
    plain, steered = execute(make_plan(config), report=lambda line: None)
    assert "hidden_seconds" not in plain.totals
    assert steered.totals["hidden_seconds"] > 0
    assert steered.totals["stages"]["generic"]["calls"] == 4
    elapsed = sum(steered.totals[f"{part}_seconds"] for part in ("wall", "hidden"))
    elapsed += steered.totals["stages"]["generic"]["wall_seconds"]
    rate = plain_cell(Entry("stylevector", (steered,), (None,)), "examples_per_second").value
    assert rate == pytest.approx(2 / elapsed)
    assert "hidden states read in" in summary(steered)
    assert "hidden" not in summary(plain)


def test_an_engine_without_hidden_states_is_refused_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'stylevector' needs hidden, which engine 'fake' does not give"):
        make_plan(run_config(tmp_path, engine="fake"))
