"""cope: contrast on top of the adapters that oppu trains, and nothing where there is nothing to contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_world import World, context, world
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines import bank
from bench.engines.hf import HFEngine
from bench.engines.sampling import draw
from bench.errors import UsageError
from bench.method import Context
from bench.plan import RunConfig, make_plan
from bench.testing import check_method
from bench.types import Contrast, Request, Sampling
from methods.cope import Cope, CopeConfig
from methods.oppu import Oppu

__all__ = ["one_thread"]

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 2, "r": 2, "user_r": 2, "user_lr": 0.3, "user_max_grad_norm": 9.0}
SAMPLED = Sampling(0.8, 0.95, 10)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small() -> World:
    return world(users=4, history=5)


@pytest.fixture(scope="module")
def ctx(small: World, engine: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return context(small.population, engine, kept=tmp_path_factory.mktemp("kept"), sampling=SAMPLED)


@pytest.fixture(scope="module")
def shared(small: World, ctx: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    learner = Cope(CopeConfig(**QUICK))
    learner.fit(small.train, small.dev, ctx)
    learner.save(folder)
    return folder


def requests(cls: type[Oppu], small: World, shared: Path, ctx: Context, **knobs: Any) -> list[Request]:
    method = cls(cls.Config(**{**QUICK, **knobs}))
    method.load(shared, ctx)
    return method.requests(small.test.examples, ctx)


def test_it_asks_what_oppu_asks_of_the_same_adapters_and_contrasts(small: World, shared: Path, ctx: Context) -> None:
    plain = requests(Oppu, small, shared, ctx)
    found = requests(Cope, small, shared, ctx, contrast=0.3, plausibility=0.2)
    assert [replace(r, contrast=None) for r in found] == plain  # the very files that oppu trained
    assert {r.contrast for r in found} == {Contrast(0.3, 0.2)}
    assert CopeConfig().contrast == CopeConfig().plausibility == 0.1
    assert Cope.learner() is Oppu.learner()


def test_no_weight_leaves_oppu(small: World, shared: Path, ctx: Context) -> None:
    plain = requests(Oppu, small, shared, ctx)
    assert requests(Cope, small, shared, ctx, contrast=0) == plain
    texts = [g.text for g in ctx.engine.run(plain).generations]
    assert [g.text for g in ctx.engine.run(requests(Cope, small, shared, ctx)).generations] != texts


def test_a_user_without_history_is_not_contrasted(small: World, shared: Path, ctx: Context) -> None:
    newcomer = replace(small.test.examples[0], id="new", user_id="new", history=())
    method = Cope(CopeConfig(**QUICK))
    method.load(shared, ctx)
    alone, other = method.requests([newcomer, small.test.examples[1]], ctx)
    assert (alone.user_adapter, alone.contrast) == (None, None)
    assert other.contrast == Contrast(0.1, 0.1)
    batches = ctx.engine.plan([alone, other])
    assert len(batches) == 2
    assert all(ctx.engine.run([[alone, other][i] for i in batch]).generations[0].error is None for batch in batches)


def test_its_texts_are_those_of_a_loop_over_both_models(
    small: World, shared: Path, ctx: Context, engine: HFEngine
) -> None:
    """Trained adapters, sampled, each token from logits computed anew, with peft's own layers underneath."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def task_model() -> Any:
        bare = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32).eval()
        return PeftModel.from_pretrained(bare, str(shared)).merge_and_unload()

    asked = requests(Cope, small, shared, ctx, contrast=0.7, plausibility=0.02)
    found = [generation.text for generation in engine.run(asked).generations]
    other, end = task_model(), engine.tokenizer.convert_tokens_to_ids("<|end|>")
    for request, text in zip(asked, found, strict=True):
        own = task_model()
        with torch.no_grad():
            for name, (a, b) in bank.load_adapter(str(request.user_adapter)).items():
                own.get_submodule(name).weight += b @ a
        ids, written = list(engine.encode(request).ids), list[int]()
        for step in range(SAMPLED.max_new_tokens):
            with torch.no_grad():
                p, q = (m(torch.tensor([ids + written])).logits[:, -1].log_softmax(-1) for m in (own, other))
            scores = (p - 0.7 * q).masked_fill(p.exp() < 0.02 * p.exp().max(), -torch.inf)
            token = int(draw(scores, 0.8, 0.95, torch.tensor([request.seed]), step))
            if token == end:
                break
            written.append(token)
        assert engine.tokenizer.decode(written, skip_special_tokens=True) == text


def test_knobs_are_checked_and_engines_without_contrast_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plausibility"):
        CopeConfig(plausibility=1.5)
    with pytest.raises(UsageError, match=r"'cope' needs .*contrast.*user_adapter, which engine 'fake' does not give"):
        make_plan(RunConfig(methods=("cope",), engine="fake", dry_run=True, out=tmp_path))


@pytest.mark.slow
def test_it_holds_to_the_contract() -> None:
    check_method(Cope, epochs=1, r=2, user_r=2, user_rows=3, user_lr=0.05)
