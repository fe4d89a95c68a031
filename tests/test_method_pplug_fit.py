"""pplug: the input encoder, training, and what is saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_world import World, context, world
from pplug_world import bert, both_slots, cache, ctx, engine, fitted, inner, opened, small, tiny_encoder
from safetensors.torch import load_file, save_file
from tiny_engine import one_thread

from bench import weights
from bench.encoders import Encoder
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.method import Context
from bench.training import build_rows, evaluate_loss
from bench.training.log import JOURNAL
from bench.types import LabeledSplit
from methods.pplug import PPlug, PPlugConfig
from methods.pplug.modules import PersonaPrompts, trained_input
from methods.pplug.texts import input_text

__all__ = ["bert", "cache", "ctx", "engine", "one_thread", "small"]


# -- input encoder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens"])
def test_before_training_a_query_is_what_the_frozen_encoder_gives(tmp_path: Path, pooling: str) -> None:
    encoder = opened(tiny_encoder(tmp_path / "bert", pooling))
    inputs, read = trained_input(encoder)
    texts = ["one", "a much longer text, " * 20, "", "on \udce9", "five words of some kind"]
    with torch.no_grad():
        together = inputs.eval()(read(texts))
        alone = torch.cat([inputs([ids]) for ids in read(texts)])
    np.testing.assert_allclose(together.numpy(), encoder.encode(texts), atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in inputs.parameters())


@pytest.mark.weights
def test_before_training_minilm_gives_its_own_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEP_BENCH_CACHE")
    encoder = Encoder(weights.resolve("minilm", "encoder"), device="cpu")
    inputs, read = trained_input(encoder)
    texts = ["Rating: 5\nReview title: Splendid", "Item title: Lamp\n" * 90]
    with torch.no_grad():
        np.testing.assert_allclose(inputs.eval()(read(texts)).numpy(), encoder.encode(texts), atol=1e-5)


def test_training_moves_the_copy_and_not_the_encoder(small: World, engine: HFEngine, bert: Path) -> None:
    encoder = opened(bert)
    ctx = context(small.population, engine, encoder_or_none=encoder)
    texts = [input_text(ctx.task, e, PPlugConfig()) for e in small.test.examples]
    published, before = load_file(bert / "model.safetensors"), encoder.encode(texts)
    method = fitted(small, ctx, lr=0.01)
    state = inner(method).state_dict()
    moved = {name for name, value in published.items() if not value.equal(state.get(f"inputs.network.{name}", value))}
    assert {name for name in published if "pooler" not in name} == moved
    assert load_file(bert / "model.safetensors").keys() == published.keys()
    np.testing.assert_array_equal(opened(bert).encode(texts), before)


def test_an_encoder_that_cannot_be_trained_says_so(tmp_path: Path, small: World, engine: HFEngine) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match="cannot be loaded by transformers") as error:
        fitted(small, context(small.population, engine, encoder_or_none=opened(folder)))
    assert "\n" not in str(error.value)
    other = tiny_encoder(tmp_path / "mute")
    about = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in about.items() if k != "pad_token"}))
    with pytest.raises(UsageError, match="no pad token"):
        trained_input(opened(other))


# -- training ---------------------------------------------------------------------------------------------------------


def habit(user: int) -> str:
    return ("amber " * 12, "humid " * 12)[user % 2].strip()


@pytest.fixture(scope="module")
def habits() -> World:
    """Users who write one of two texts, whatever they write about: only the history tells which."""
    of = world(6)

    def rewritten(split: LabeledSplit) -> LabeledSplit:
        examples = [
            replace(e, history=tuple(replace(d, text=habit(int(e.user_id[1:]))) for d in e.history))
            for e in split.examples
        ]
        return LabeledSplit(tuple(examples), {e.id: habit(int(e.user_id[1:])) for e in examples})

    return World(rewritten(of.train), rewritten(of.dev), rewritten(of.test), of.population)


def test_it_learns_and_what_it_learns_is_personal(habits: World, engine: HFEngine, bert: Path) -> None:
    for encoder in (opened(bert), context(habits.population).encoder):
        ctx = context(habits.population, engine, encoder_or_none=encoder)
        config = {"lr": 0.01, "epochs": 12, "copies": 1, "history_text": "text", "weight_decay": 0.0}
        method = fitted(habits, ctx, **config)
        assert method.log is not None
        assert method.log.steps[-1] < method.log.steps[0] - 0.8
        own, others = (_loss(method, ctx, habits, shift) for shift in (0, 1))
        assert own < others - 0.4


def _loss(method: PPlug, ctx: Context, of: World, shift: int) -> float:
    """Loss on test targets, each with the history of the user `shift` places further on."""
    examples, lm = of.test.examples, ctx.engine.language_model()
    swapped = [replace(e, history=examples[(i + shift) % len(examples)].history) for i, e in enumerate(examples)]
    given, table = method.prepare(swapped, ctx)
    prompts = [p.prompt.messages for p in given]
    rows = build_rows(lm, swapped, prompts, of.test.references, 99, both_slots(len(swapped)))
    return evaluate_loss(lm, rows, PersonaPrompts(inner(method), table, given), method.config)


@pytest.mark.slow  # reading WordNet
def test_the_epoch_can_be_chosen_by_meteor(small: World, engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEP_BENCH_CACHE")  # where WordNet lies
    ctx = context(small.population, engine)
    log = fitted(small, ctx, select="meteor", epochs=2, max_dev=2, max_dev_new_tokens=4).log
    assert log is not None
    scores = [epoch.dev_score for epoch in log.epochs]
    assert all(0 <= score <= 1 for score in scores)
    assert log.best_epoch == 1 + scores.index(max(scores))


def test_users_without_history_can_be_trained_on(small: World, ctx: Context) -> None:
    bare = [replace(e, history=e.history[: 2 * (i % 2)]) for i, e in enumerate(small.train.examples)]
    mixed = replace(small, train=LabeledSplit(tuple(bare), small.train.references))
    nobody = LabeledSplit(tuple(replace(e, history=()) for e in bare), small.train.references)
    for of in (mixed, replace(small, train=nobody)):
        method = fitted(of, ctx)
        assert method.log is not None
        assert np.isfinite(method.log.steps).all()
        assert len(method.requests(bare, ctx)) == len(bare)


# -- artifact ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_holds_nobodys_text(small: World, ctx: Context, tmp_path: Path) -> None:
    method = fitted(small, ctx, lr=0.01)
    method.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.safetensors", "config.json"]
    before = torch.get_rng_state()
    other = PPlug(method.config)
    other.load(tmp_path, ctx)
    assert torch.equal(torch.get_rng_state(), before)
    requests = [m.requests(small.test.examples, ctx) for m in (method, other)]
    for one, two in zip(*requests, strict=True):
        assert all(np.array_equal(one.soft[name], two.soft[name]) for name in ("instruction", "persona"))
    everything = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    for needle in (ctx.encoder.source.location, str(tmp_path), *(d.text for d in small.population.documents())):
        assert needle == "hash" or needle.encode() not in everything
    numbers = sum(value.numel() for value in load_file(tmp_path / "adapter.safetensors").values())
    assert numbers == sum(p.numel() for p in inner(method).parameters()) + 2  # and the two scales: no vectors


def test_dropout_ends_with_training(small: World, ctx: Context) -> None:
    """Without validation rows, the last thing that the module saw was a training step."""
    method = fitted(small, ctx, max_dev=0)
    first, second = (method.requests(small.test.examples[:1], ctx)[0].soft["persona"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_was_saved_in_part_is_refused(small: World, ctx: Context, tmp_path: Path) -> None:
    method = fitted(small, ctx)
    method.save(tmp_path)
    state = load_file(tmp_path / "adapter.safetensors")
    save_file({name: value for name, value in state.items() if name != "instruction"}, tmp_path / "adapter.safetensors")
    with pytest.raises(RuntimeError, match="instruction"):
        PPlug(method.config).load(tmp_path, ctx)


class Stopped(BaseException):
    """What a test puts in the place of a kill."""


def stopping(at: int) -> Iterator[None]:
    """Raises at the `at`-th step of it."""
    for _ in range(at):
        yield
    raise Stopped


def outcome(small: World, ctx: Context, work: Path, out: Path, **config: Any) -> tuple[bytes, Any, list[Any]]:
    method = fitted(small, replace(ctx, work=work), **config)
    out.mkdir()
    method.save(out)
    assert method.log is not None
    lines = [json.loads(line) for line in (work / JOURNAL).read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if "seconds" not in k} for line in (method.log.to_json(), *lines)]
    return (out / "adapter.safetensors").read_bytes(), plain[0], plain[1:]


def test_a_fit_that_is_stopped_anywhere_ends_the_same(
    small: World, ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout of the trained encoder, copies and the choice of the epoch included."""
    config = {"epochs": 2, "copies": 1, "lr": 0.01, "checkpoint_seconds": 0}
    whole = outcome(small, ctx, tmp_path / "work", tmp_path / "whole", **config)
    real = PersonaPrompts.soft
    count = 0
    while True:
        steps = stopping(count)

        def soft(self: PersonaPrompts, rows: Any, training: bool, steps: Iterator[None] = steps) -> Any:
            next(steps)
            return real(self, rows, training)

        work = tmp_path / f"work {count}"
        monkeypatch.setattr(PersonaPrompts, "soft", soft)
        try:
            outcome(small, ctx, work, tmp_path / f"whole {count}", **config)
            break
        except Stopped:
            monkeypatch.setattr(PersonaPrompts, "soft", real)
            assert outcome(small, ctx, work, tmp_path / f"out {count}", **config) == whole
            count += 1
    assert count == 2 * (2 + 1)  # two steps and the dev rows of each epoch
