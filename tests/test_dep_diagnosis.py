"""What DEP tells of its inside, against slow and direct computations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dep_world import engine, one_thread, small
from dep_world import fitted as fitted_quickly
from hypothesis import given, settings
from hypothesis import strategies as st
from method_world import World, context, world

from bench.engines.hf import HFEngine
from bench.method import Context, Diagnosis, DiagnosisOptions, Section
from bench.types import LabeledSplit
from methods.dep import Dep, influence
from methods.dep.diagnosis import autoencoder, diagnose, nearest_words, spread
from methods.dep.traits import population_examples, readable
from methods.dep.view import View

__all__ = ["engine", "one_thread", "small"]

CHEAP = DiagnosisOptions(generate=0, probe_users=0)


def fitted(of: World, ctx: Context, **config: Any) -> Dep:
    return fitted_quickly(of, ctx, **{"n_history": 3, "max_target_tokens": 24, **config})


@pytest.fixture(scope="module")
def ready(small: World, engine: HFEngine) -> Dep:
    return fitted(small, context(small.population, engine))


def section(found: Diagnosis, name: str) -> Section:
    (one,) = [s for s in found if s.name == name]
    return one


def by_change(of: Section) -> dict[str, Mapping[str, Any]]:
    return {row["change"]: row for row in of.rows}


# -- on the reference text --------------------------------------------------------------------------------------------


def direct(engine: HFEngine, view: View, references: Mapping[str, str], at: int, tokens: Any) -> torch.Tensor:
    """Log-probabilities (targets, vocabulary) of one example, from all logits of one unpadded row, in float64.

    `tokens` (slots, kinds, width, hidden), or None to leave the slots out.
    """
    lm, example = engine.language_model(), view.examples[at]
    request = view.method.request(example, view.prepared[at], view.ctx)
    names = [f"{kind} {i + 1}" for i in range(view.prepared[at].slots) for kind in view.kinds]
    pieces: list[torch.Tensor] = []
    text = lm.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in request.messages], tokenize=False, add_generation_prompt=True
    )
    embed = lm.model.get_input_embeddings()
    for number, name in enumerate(names):
        before, _, text = text.partition(f"\ue000{name}\ue001")
        pieces.append(embed(torch.tensor(lm.tokenizer(before)["input_ids"])))
        if tokens is not None:
            pieces.append(tokens.reshape(len(names), -1, tokens.shape[-1])[number])
    pieces.append(embed(torch.tensor(lm.tokenizer(text)["input_ids"])))
    most = view.method.config.max_target_tokens
    target = [*lm.tokenizer(references[example.id])["input_ids"][: most - 1], lm.tokenizer.eos_token_id]
    prompt = torch.cat(pieces)
    whole = torch.cat([prompt, embed(torch.tensor(target))])
    with torch.no_grad():
        logits = lm.model(inputs_embeds=whole[None]).logits[0].double()
    chosen = logits[len(prompt) - 1 : len(whole) - 1]
    return torch.cat([torch.log_softmax(chosen, -1), torch.tensor(target)[:, None].double()], dim=1)


def slow_effects(engine: HFEngine, view: View, references: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Change -> (KL, change of log-likelihood) of each example, written out term by term."""
    changed = influence.changes(view.tokens, view.kinds, view.users, view.ctx.seed)
    cases: dict[str, Any] = {**changed, influence.LEFT_OUT: [None] * len(view.examples)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for at in range(len(view.examples)):
        full = direct(engine, view, references, at, view.tokens[at])
        for name, tokens in cases.items():
            other = direct(engine, view, references, at, tokens[at])
            divergence, gain = [], []
            for p, q in zip(full.tolist(), other.tolist(), strict=True):
                divergence.append(sum(math.exp(a) * (a - b) for a, b in zip(p[:-1], q[:-1], strict=True)))
                gain.append(q[int(p[-1])] - p[int(p[-1])])
            found[name].append((float(np.mean(divergence)), float(np.mean(gain))))
    return found


@pytest.mark.parametrize("changes", [{}, {"markers": "trained", "layout": "message"}, {"tokens": "difference"}])
def test_effects_on_references_equal_a_slow_direct_computation(
    small: World, engine: HFEngine, changes: dict[str, Any]
) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, **changes)
    split = small.test
    rows = by_change(section(diagnose(method, split, ctx, CHEAP), "influence on the real texts"))
    slow = slow_effects(engine, View(method, split.examples, ctx), split.references)
    assert set(rows) == {*slow, influence.SAME}
    for name, pairs in slow.items():
        assert rows[name]["KL a token"]["mean"] == pytest.approx(np.mean([kl for kl, _ in pairs]), rel=1e-3, abs=1e-6)
        likelihood = rows[name]["change of log-likelihood a token"]
        assert likelihood["mean"] == pytest.approx(np.mean([gain for _, gain in pairs]), rel=1e-3, abs=2e-6)
        assert likelihood["low"] <= likelihood["mean"] <= likelihood["high"]
        assert rows[name]["KL a token"]["mean"] > 1e-5  # the model is lively: every change shows
    same = rows[influence.SAME]
    assert abs(same["KL a token"]["mean"]) < 1e-6
    assert abs(same["change of log-likelihood a token"]["mean"]) < 1e-5


def test_the_changes_touch_what_they_name_and_nothing_else() -> None:
    tokens = [torch.randn(n, 2, 3, 4) for n in (3, 1, 0, 2)]
    found = influence.changes(tokens, ["history", "difference"], ["a", "b", "c", "d"], seed=0)
    assert list(found) == [
        "difference tokens zeroed",
        "history tokens zeroed",
        "all soft tokens zeroed",
        "difference tokens of another user",
        "all soft tokens of another user",
    ]
    for name, changed in found.items():
        for own, other in zip(tokens, changed, strict=True):
            assert torch.equal(own[:, :, [0, 2]], other[:, :, [0, 2]])  # markers stay
            if name.startswith("difference"):
                assert torch.equal(own[:, 0], other[:, 0])
            if name == "history tokens zeroed":
                assert torch.equal(own[:, 1], other[:, 1])
            if "zeroed" in name:
                assert not len(own) or not torch.equal(own, other)
    everyone = torch.cat([t[:, :, 1] for t in tokens])
    for own, other in zip(tokens, found["all soft tokens of another user"], strict=True):
        for row in other[:, :, 1]:
            assert any(torch.equal(row, known) for known in everyone)
            assert not any(torch.equal(row, known) for known in own[:, :, 1])


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), max_size=12), st.integers(0, 5))
def test_swaps_go_between_users_in_one_ring(users: list[str | None], seed: int) -> None:
    donors = influence.deranged(users, seed)
    real = {user for user in users if user is not None}
    if len(real) < 2:
        assert donors is None
        return
    assert donors is not None
    given_by = {user: users[donor] for user, donor in zip(users, donors, strict=True) if user is not None}
    assert all(giver is not None and giver != user for user, giver in given_by.items())
    assert set(given_by.values()) == real  # everybody gives to exactly one
    assert all(donor == index for index, (user, donor) in enumerate(zip(users, donors, strict=True)) if user is None)


# -- in what is written -----------------------------------------------------------------------------------------------


def test_texts_in_full_are_those_of_the_run_and_metrics_are_paired(small: World, ready: Dep, engine: HFEngine) -> None:
    from bench.metrics.base import ScoreInput
    from bench.metrics.rouge import Rouge1

    ctx = context(small.population, engine)
    view = View(ready, small.test.examples, ctx)
    base = ready.requests(small.test.examples, ctx)
    names = [[(f"history {i + 1}", f"difference {i + 1}") for i in range(p.slots)] for p in view.prepared]
    again = [influence.with_tokens(r, n, t) for r, n, t in zip(base, names, view.tokens, strict=True)]
    for left, right in zip(base, again, strict=True):
        assert left.soft.keys() == right.soft.keys()
        for name, vectors in left.soft.items():
            np.testing.assert_allclose(np.asarray(right.soft[name]), np.asarray(vectors), atol=1e-6)
    zeroed = influence.changes(view.tokens, view.kinds, view.users, 0)["all soft tokens zeroed"]
    requests = {
        influence.FULL: again,
        "zeroed": [influence.with_tokens(r, n, t) for r, n, t in zip(base, names, zeroed, strict=True)],
    }
    texts: dict[int, list[str | None]] = {}

    def write(asked: Any) -> list[str | None]:
        return texts.setdefault(len(texts), influence.engine_texts(ctx, asked, lambda _: None))

    rows = influence.generated_rows(write, requests, small.test.examples, small.test.references, [Rouge1()])
    assert texts[0] == [engine.run([request]).generations[0].text for request in base]
    scores = []
    for number in (0, 1):
        pairs = zip(small.test.examples, texts[number], strict=True)
        values = Rouge1().values([ScoreInput(e.id, e.user_id, t, small.test.references[e.id]) for e, t in pairs])
        scores.append(float(np.mean([v[0] for v in values if v])))
    assert [row["rouge1"] for row in rows] == [pytest.approx(score) for score in scores]
    assert rows[0]["rouge1, difference"] is None
    assert rows[1]["rouge1, difference"]["mean"] == pytest.approx(scores[1] - scores[0])
    differ = np.mean([a != b for a, b in zip(texts[0], texts[1], strict=True)])
    assert rows[1]["texts that differ"] == differ > 0


# -- autoencoder and tokens -------------------------------------------------------------------------------------------


def test_the_autoencoders_figures_equal_their_definitions(small: World, ready: Dep, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    view = View(ready, small.test.examples, ctx)
    rows = {row["vectors"]: row for row in autoencoder(view).rows}
    assert set(rows) == {"history vectors", "difference vectors", "all"}
    prepared = ready.prepare(small.test.examples, ctx)
    own = np.concatenate([p.vectors.own for p in prepared])
    different = np.concatenate([p.vectors.difference[p.vectors.has_peers] for p in prepared])
    assert ready.module is not None
    coder = ready.module.autoencoder
    assert coder is not None
    used_at_all, centres = [], ready.module.centre.numpy()
    for name, vectors in {"history vectors": own - centres[0], "difference vectors": different - centres[1]}.items():
        with torch.no_grad():
            latents = torch.relu(coder.encoder(torch.from_numpy(vectors) - coder.decoder.bias)).numpy()
            kept = np.where(latents >= np.sort(latents, axis=1)[:, [-6]], latents, 0)
            copies = coder.decoder(torch.from_numpy(kept)).numpy()
        row, used = rows[name], kept > 0
        used_at_all.append(used.any(axis=0))
        explained = 1 - ((vectors - copies) ** 2).sum() / ((vectors - vectors.mean(axis=0)) ** 2).sum()
        cosines = (vectors * copies).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(copies, axis=1)
        assert row["count"] == len(vectors)
        assert row["explained variance"] == pytest.approx(explained, abs=1e-4)
        assert row["cosine"] == pytest.approx(cosines.mean(), abs=1e-4)
        assert row["L0"] == pytest.approx(used.sum(axis=1).mean())
        assert row["dead"] == pytest.approx(1 - used.any(axis=0).mean())
    assert rows["all"]["dead"] == pytest.approx(1 - np.any(used_at_all, axis=0).mean())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 99))
def test_mean_cosines_equal_a_loop_over_pairs(owners: list[int], seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((len(owners), 5)) + 0.5
    groups: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(owners)):
        for j in range(i):
            cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            groups[owners[i] == owners[j]].append(float(cosine))
    different, same = spread(torch.from_numpy(vectors), [str(owner) for owner in owners])
    for found, cosines in ((different, groups[False]), (same, groups[True])):
        assert found == (pytest.approx(np.mean(cosines), abs=1e-9) if cosines else None)


def test_a_soft_token_that_is_a_word_is_named_by_that_word(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method, lm = fitted(small, ctx), engine.language_model()
    view = View(method, small.test.examples[:1], ctx)
    word = int(lm.tokenizer("Q")["input_ids"][0])
    view.__dict__["tokens"] = [lm.model.get_input_embeddings()(torch.tensor([word])).expand(3, 2, 1, -1) * 3]
    for row in nearest_words(view, lm).rows:
        assert row["nearest"].startswith("'Q' 1.00, ")


def test_tokens_of_one_size_for_all_users_show_as_a_collapse(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, projector="linear")
    assert method.module is not None
    assert method.module.difference is not None
    with torch.no_grad():
        next(iter(method.module.difference.parameters())).zero_()
    rows = {r["what"]: r for r in section(diagnose(method, small.test, ctx, CHEAP), "soft tokens").rows}
    assert rows["difference tokens"]["cosine, different users"] == pytest.approx(1.0)
    assert rows["history tokens"]["cosine, different users"] < 0.99
    weights = engine.language_model().model.get_input_embeddings().weight
    expected = float(weights.norm(dim=-1).mean())
    assert rows["embeddings of the language model"]["norm"] == pytest.approx(expected, rel=1e-4)
    history = torch.cat(View(method, small.test.examples, ctx).of_kind("history")).norm(dim=-1)
    assert rows["history tokens"]["norm"] == pytest.approx(float(history.mean()))
    assert rows["history tokens"]["5 %"] <= rows["history tokens"]["50 %"] <= rows["history tokens"]["95 %"]


# -- every config, and nobody at all ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"mode": "paper"},
        {"tokens": "history"},
        {"autoencoder": "none"},
        {"autoencoder": "l1", "shuffle": "vectors"},
        {"shuffle": "history", "selection": "retrieved"},
        {"n_history": 0},
    ],
    ids=str,
)
def test_every_config_can_be_diagnosed(small: World, engine: HFEngine, config: dict[str, Any]) -> None:
    ctx = context(small.population, engine)
    method = fitted(small, ctx, **config)
    found = diagnose(method, small.test, ctx, CHEAP)
    assert all(s.reading and (s.rows or s.note) for s in found)
    if config.get("autoencoder") == "none":
        assert section(found, "autoencoder").note == "There is no autoencoder under this config."
    if config.get("n_history") == 0:
        assert not section(found, "influence on the real texts").rows
    if config.get("tokens") == "history":
        changes = by_change(section(found, "influence on the real texts"))
        assert not any("difference" in name for name in changes)
        assert "history tokens of another user" in changes


def test_a_single_user_cannot_be_swapped(small: World, ready: Dep, engine: HFEngine) -> None:
    one = small.test.examples[0]
    alone = LabeledSplit((one,), {one.id: small.test.references[one.id]})
    found = diagnose(ready, alone, context(small.population, engine), CHEAP)
    rows = by_change(section(found, "influence on the real texts"))
    assert set(rows) == {f"{w} tokens zeroed" for w in ("difference", "history", "all soft")} | {influence.LEFT_OUT}
    assert rows[influence.LEFT_OUT]["KL a token"]["low"] is None  # one user gives no interval


# -- what can be read -------------------------------------------------------------------------------------------------


class Known:
    """A truth in which odd users write unlike even ones."""

    def traits(self, user_id: str) -> Mapping[str, str]:
        number = int(user_id[1:])
        return {"habit": f"value {number % 2}: own word {number}", "name": user_id}

    def write(self, example_id: str, seed: int) -> str:
        raise NotImplementedError

    def recovered(self, user_id: str, text: str) -> Mapping[str, bool]:
        raise NotImplementedError


def test_examples_of_the_population_hold_what_was_before_their_target(small: World, engine: HFEngine) -> None:
    ctx = context(small.population, engine)
    found = population_examples(ctx, None)
    assert [e.user_id for e in found] == ctx.population.users()
    for example in found:
        everything = ctx.population.history(example.user_id, None)
        assert example.id == everything[-1].id
        assert list(example.history) == everything[:-1]
    assert len(population_examples(ctx, 2)) == 2


def test_a_habit_of_half_the_users_is_read_and_their_names_are_not(engine: HFEngine, tmp_path: Path) -> None:
    many = world(users=24)
    ctx = context(many.population, engine)
    method = fitted(many, ctx, epochs=1)
    found = readable(method, replace(ctx, truth=Known()), None, permutations=19)
    means = {row["read from"]: row for row in found[0].rows}
    kinds = ("vectors", "codes", "tokens")
    assert set(means) == {f"{kind} {what}" for kind in ("history", "difference") for what in kinds}
    (trait,) = found[1].rows
    assert (trait["trait"], trait["users"], trait["values"], trait["chance"]) == ("habit", 24, 2, 0.5)
    assert all(0 <= trait[name]["value"] <= 1 and 0 < trait[name]["p"] <= 1 for name in means)
    # Users' texts hold a word of eight that goes with odd and even: it is in the vectors of what they wrote.
    assert means["history vectors"]["balanced accuracy"] > 0.9
    assert means["history vectors"]["p"] <= 0.05


def test_without_a_truth_nothing_is_probed(small: World, ready: Dep, engine: HFEngine) -> None:
    found = diagnose(ready, small.test, context(small.population, engine), CHEAP)
    assert "does not know" in section(found, "traits that a linear probe can read").note
