"""The training loop against one row at a time: losses, gradients and final weights, on two families."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from tiny_engine import engine_of, lively_model, one_thread

from bench.engines.base import LanguageModel
from bench.engines.chat import end_of_turn
from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.testing import tiny_dataset
from bench.training import (
    Row,
    TrainingConfig,
    batch_loss,
    build_rows,
    evaluate_loss,
    latest_targets,
    planned_tokens,
    target_ids,
    train,
)
from bench.training.step import schedule
from bench.types import Example, LabeledSplit, Message, slot

__all__ = ["one_thread"]

FAMILIES = ("llama", "gemma2")  # the second caps its logits and scales its embeddings
CONFIG = TrainingConfig(epochs=3, lr=0.05, batch_size=4, warmup=0.2, max_dev=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    @functools.cache
    def make(family: str) -> LanguageModel:
        more = {"final_logit_softcapping": 2.0} if family == "gemma2" else {}
        return engine_of(lively_model(tmp_path_factory.mktemp(family), family, **more)).language_model()

    return make


@pytest.fixture(scope="module")
def llama(model: Callable[[str], LanguageModel]) -> LanguageModel:
    return model("llama")


def rows_of(lm: LanguageModel, slots: Sequence[int], wide: int = 1, seed: int = 0) -> list[Row]:
    """One row for each number of slots, of all lengths."""
    stream = random.Random(seed)
    examples, prompts, references, lengths = [], [], {}, []
    for i, count in enumerate(slots):
        content = "".join("ab"[: stream.randint(0, 2)] + slot(f"s{j}") for j in range(count))
        examples.append(Example(f"e{i}", "u", {}, ()))
        prompts.append([Message("user", content + "x" * stream.randint(1, 20) + str(i))])
        references[f"e{i}"] = "".join(stream.choice("abc de") for _ in range(stream.randint(0, 15)))
        lengths.append({f"s{j}": wide for j in range(count)})
    return build_rows(lm, examples, prompts, references, 512, lengths)


class Table:
    """A table of vectors to learn, of which a row takes as many as it has soft positions; as small as it gets."""

    def __init__(self, size: int, hidden: int = 32, weight: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(size, hidden, generator=generator) * 0.3)
        self.weight = weight
        self.modes: list[bool] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.table]

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        self.modes.append(training)
        parts = [self.table[: len(row.prompt.positions)] for row in rows]
        if not sum(map(len, parts)):
            return None, None
        auxiliary = torch.stack([part.pow(2).sum() for part in parts]).sum() if self.weight else None
        return torch.cat(parts), self.weight * auxiliary if auxiliary is not None else None

    def state(self) -> dict[str, torch.Tensor]:
        self.states.append({"table": self.table.detach().clone()})
        return {"table": self.table}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.table.copy_(state["table"])


def naive_loss(lm: LanguageModel, row: Row, vectors: torch.Tensor | None) -> torch.Tensor:
    """Summed cross entropy of one row by the model's own loss, labels and all, unpadded."""
    ids = torch.tensor([[*row.prompt.ids, *row.target]])
    embedded = lm.model.get_input_embeddings()(ids)[0]
    pieces = list(embedded)
    for i, position in enumerate(row.prompt.positions):
        assert vectors is not None
        pieces[position] = vectors[i]
    labels = ids.clone()
    labels[0, : len(row.prompt.ids)] = -100
    output = lm.model(inputs_embeds=torch.stack(pieces)[None], labels=labels)
    loss: torch.Tensor = output.loss * len(row.target)
    return loss


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


# -- loss and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("slots", "wide"), [([0, 0, 0, 0], 1), ([2, 0, 3, 1, 2], 1), ([1, 2, 0], 3)])
def test_loss_and_all_gradients_equal_one_row_at_a_time(
    model: Callable[[str], LanguageModel], family: str, slots: list[int], wide: int
) -> None:
    lm = model(family)
    rows = rows_of(lm, slots, wide)
    table = Table(max(1, max(slots) * wide))
    vectors, _ = table.soft(rows, training=True)
    watched = {**dict(lm.model.named_parameters()), "table": table.table}
    try:
        lm.model.requires_grad_(True)
        loss, tokens = batch_loss(lm, rows, vectors)
        ours = torch.autograd.grad(loss, list(watched.values()), allow_unused=True)
        naive = torch.stack([naive_loss(lm, row, table.table[: len(row.prompt.positions)]) for row in rows]).sum()
        theirs = torch.autograd.grad(naive, list(watched.values()), allow_unused=True)
    finally:
        lm.model.requires_grad_(False)
    assert tokens == sum(len(row.target) for row in rows)
    assert float(loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-5)
    for name, a, b in zip(watched, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or close(a, b, 2e-5), name
    assert (ours[-1] is not None) == any(slots)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_target_positions_reach_the_output_layer(model: Callable[[str], LanguageModel], family: str) -> None:
    lm = model(family)
    rows = rows_of(lm, [0, 2, 1, 0])
    seen = []
    handle = lm.model.get_output_embeddings().register_forward_hook(lambda *args: seen.append(args[2].shape))
    try:
        batch_loss(lm, rows, Table(2).soft(rows, training=False)[0])
        assert seen == [(1, sum(len(row.target) for row in rows), lm.model.config.vocab_size)]
        lm.model(input_ids=torch.tensor([[1, 2, 3]]))  # closed again: everything passes
        assert seen[-1][:2] == (1, 3)
    finally:
        handle.remove()


def test_vectors_must_fill_the_soft_positions_exactly(llama: LanguageModel) -> None:
    rows = rows_of(llama, [2, 1])
    for count in (0, 2, 4):
        with pytest.raises(ValueError, match=f"{count} vectors for 3 soft positions"):
            batch_loss(llama, rows, torch.zeros(count, 32))
    with pytest.raises(ValueError, match="0 vectors for 3"):
        batch_loss(llama, rows, None)


def test_dev_loss_is_the_mean_over_target_tokens(llama: LanguageModel) -> None:
    rows = rows_of(llama, [1, 0, 2, 1, 0])
    table = Table(2)
    with torch.no_grad():
        total = sum(float(naive_loss(llama, row, table.table)) for row in rows)
    expected = total / sum(len(row.target) for row in rows)
    for budget in (1, 60, 5000):
        found = evaluate_loss(llama, rows, table, TrainingConfig(batch_tokens=budget))
        assert found == pytest.approx(expected, rel=1e-5)
    assert set(table.modes) == {False}
    assert math.isnan(evaluate_loss(llama, [], table, CONFIG))


# -- the loop -------------------------------------------------------------------------------------------------------


def naive_training(
    lm: LanguageModel, rows: list[Row], table: Table, config: TrainingConfig, rates: list[float]
) -> list[float]:
    """Full-batch training in a dozen lines. Returns the loss before each step."""
    optimizer = torch.optim.AdamW([table.table], weight_decay=config.weight_decay)
    tokens = sum(len(row.target) for row in rows)
    losses = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        parts = [table.table[: len(row.prompt.positions)] for row in rows]
        loss = torch.stack([naive_loss(lm, row, part) for row, part in zip(rows, parts, strict=True)]).sum() / tokens
        auxiliary = table.weight * torch.stack([part.pow(2).sum() for part in parts]).sum() / len(rows)
        (loss + auxiliary).backward()  # type: ignore[no-untyped-call]
        norm = table.table.grad.norm()  # type: ignore[union-attr]
        if norm > config.max_grad_norm:
            table.table.grad.mul_(config.max_grad_norm / (norm + 1e-6))  # type: ignore[union-attr]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_a_naive_loop(model: Callable[[str], LanguageModel], family: str) -> None:
    lm = model(family)
    rows = rows_of(lm, [2, 1, 0, 2, 1])
    config = TrainingConfig(epochs=5, lr=0.1, batch_size=8, warmup=0.4, weight_decay=0.1, max_grad_norm=0.05)
    ours, theirs = Table(2, weight=0.1), Table(2, weight=0.1)
    log = train(lm, rows, [], ours, config, seed=0)
    rates = [0.05, 0.1, 0.1 * 3 / 4, 0.1 * 2 / 4, 0.1 * 1 / 4]
    losses = naive_training(lm, rows, theirs, config, rates)
    assert log.steps == pytest.approx(losses, rel=1e-4)
    assert close(ours.table, theirs.table, 1e-4)
    assert not close(ours.table, Table(2).table, 1e-2)
    assert (log.rows, log.parameters, log.tokens) == (5, 64, 5 * sum(row.length for row in rows))


def test_micro_batches_change_nothing(llama: LanguageModel) -> None:
    rows, dev = rows_of(llama, [2, 1, 0, 2, 1, 2, 0, 1, 1]), rows_of(llama, [1, 2], seed=5)

    def outcome(budget: int) -> tuple[list[float], list[float], torch.Tensor]:
        table = Table(2, weight=0.1)
        config = CONFIG.model_copy(update={"batch_tokens": budget})
        log = train(llama, rows, dev, table, config, seed=3)
        return log.steps, [x for e in log.epochs for x in (e.train_loss, e.train_auxiliary, e.dev_loss)], table.table

    whole = outcome(10_000)
    for budget in (1, 90, 200):
        steps, epochs, table = outcome(budget)
        assert steps == pytest.approx(whole[0], rel=1e-5)
        assert epochs == pytest.approx(whole[1], rel=1e-5)
        assert close(table, whole[2])


def test_the_language_model_stays_bitwise_the_same(llama: LanguageModel) -> None:
    before = {name: value.clone() for name, value in llama.model.state_dict().items()}
    train(llama, rows_of(llama, [2, 1]), [], Table(2), CONFIG, seed=0)
    after = llama.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in llama.model.parameters())
    assert not llama.model.training


def test_the_same_seed_gives_the_same_and_another_one_another_order(llama: LanguageModel) -> None:
    rows = rows_of(llama, [2, 1, 0, 2, 1, 2])
    config = CONFIG.model_copy(update={"batch_size": 2})

    def outcome(seed: int) -> tuple[list[float], torch.Tensor]:
        table = Table(2)
        return train(llama, rows, [], table, config, seed).steps, table.table

    first, again, other = outcome(1), outcome(1), outcome(2)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert first[0] != other[0]


def test_training_learns_and_says_so(llama: LanguageModel) -> None:
    prompts = [[Message("user", f"{slot('v')}")]] * 2
    examples = [Example(f"e{i}", "u", {}, ()) for i in range(2)]
    rows = build_rows(llama, examples, prompts, {"e0": "abab", "e1": "abab"}, 64, [{"v": 8}] * 2)
    config = TrainingConfig(epochs=40, lr=0.3, batch_size=2, weight_decay=0, max_grad_norm=10)
    table = Table(8)
    log = train(llama, rows, [], table, config, seed=0)
    assert log.steps[-1] < 0.5 * log.steps[0]
    assert evaluate_loss(llama, rows, table, config) < 0.5 * log.steps[0]


def test_the_epoch_with_the_lowest_dev_loss_is_kept(llama: LanguageModel) -> None:
    """Dev rows ask the opposite of what is learned, so that the best epoch is not the last one."""
    prompts = [[Message("user", slot("v"))]]
    example = [Example("e", "u", {}, ())]
    rows, dev = (build_rows(llama, example, prompts, {"e": t}, 64, [{"v": 4}]) for t in ("aaaaaa", "zzz"))
    table = Table(4)
    config = TrainingConfig(epochs=8, lr=0.5, batch_size=1, warmup=0)
    log = train(llama, rows, dev, table, config, seed=0)
    losses = [epoch.dev_loss for epoch in log.epochs]
    assert log.best_epoch == 1 + losses.index(min(losses)) < 8
    assert evaluate_loss(llama, dev, table, config) == pytest.approx(min(losses), rel=1e-6)
    assert [epoch.number for epoch in log.epochs] == list(range(1, 9))
    assert set(table.modes) == {True, False}


def test_without_dev_rows_the_last_epoch_is_kept(llama: LanguageModel) -> None:
    table = Table(2)
    log = train(llama, rows_of(llama, [2, 1]), [], table, CONFIG, seed=0)
    assert log.best_epoch == 3
    assert all(math.isnan(epoch.dev_loss) for epoch in log.epochs)
    assert torch.equal(table.table, table.states[-1]["table"])
    assert not torch.equal(table.states[-1]["table"], table.states[0]["table"])


def test_rows_without_any_slot_teach_nothing_and_do_no_harm(llama: LanguageModel) -> None:
    table = Table(2)
    before = table.table.detach().clone()
    log = train(llama, rows_of(llama, [0, 0, 0]), rows_of(llama, [0]), table, CONFIG, seed=0)
    assert torch.equal(table.table, before)
    assert all(map(math.isfinite, log.steps))


def test_no_rows_and_a_diverging_loss_are_clear_errors(llama: LanguageModel) -> None:
    with pytest.raises(UsageError, match="fit: there is no training row"):
        train(llama, [], [], Table(1), CONFIG, seed=0)
    broken = Table(2)
    with torch.no_grad():
        broken.table.fill_(float("nan"))
    with pytest.raises(UsageError, match=r"the loss at step 1 of 3 is nan; lower the learning rate \(lr = 0.05\)"):
        train(llama, rows_of(llama, [2, 1]), [], broken, CONFIG, seed=0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (10, 0.0), (10, 0.3), (100, 0.05), (7, 1.0)])
def test_the_learning_rate_rises_then_falls_to_just_above_zero(steps: int, warmup: float) -> None:
    rates = [schedule(step, steps, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0
    assert top + 1 == max(1, round(warmup * steps))
    assert all(0 < rate <= 1 for rate in rates)
    rising, falling = rates[: top + 1], [*rates[top:], schedule(steps, steps, warmup)]
    for part in (rising, falling):  # straight lines
        differences = [b - a for a, b in itertools.pairwise(part)]
        assert all(d == pytest.approx(differences[0]) for d in differences)
    assert falling[-1] == 0


# -- rows -----------------------------------------------------------------------------------------------------------


def test_targets_are_cut_and_closed_by_the_end_of_a_turn(llama: LanguageModel) -> None:
    end = end_of_turn(llama.tokenizer)
    whole = llama.tokenizer("a fine thing", add_special_tokens=False)["input_ids"]
    assert target_ids(llama, "a fine thing", 512) == (*whole, end)
    assert target_ids(llama, "a fine thing", 5) == (*whole[:4], end)
    assert target_ids(llama, "", 5) == (end,)


def test_a_users_text_teaches_no_control_tokens(llama: LanguageModel) -> None:
    ids = target_ids(llama, "well <|end|> then", 512)
    assert ids.count(end_of_turn(llama.tokenizer)) == 1


def test_the_latest_targets_of_each_user_are_taken_in_the_splits_order() -> None:
    def example(user: str, time: int | None, name: str) -> Example:
        return Example(name, user, {}, (), timestamp=time)

    given = [
        example("b", 3, "b3"),
        example("a", 1, "a1"),
        example("b", 9, "b9"),
        example("a", 7, "a7"),
        example("b", 9, "b8"),
        example("c", None, "c0"),
    ]
    split = LabeledSplit(tuple(given), {e.id: "x" for e in given})

    def chosen(per_user: int, most: int | None = None) -> list[str]:
        return [e.id for e in latest_targets(split, per_user, most)]

    assert chosen(1) == ["b9", "a7", "c0"]
    assert chosen(2) == ["b8", "b9", "a1", "a7", "c0"]
    assert chosen(9, 3) == ["b3", "b8", "b9"]
    assert chosen(1, 0) == []


def test_planned_tokens_are_those_of_prompts_and_targets() -> None:
    train_split, engine = tiny_dataset().train, FakeEngine()
    ctx: Any = type("Context", (), {"engine": engine})

    def prompt(example: Example) -> list[Message]:
        return [Message("user", str(example.fields["title"]))]

    def exact(examples: Sequence[Example]) -> int:
        return sum(
            engine.count_tokens(prompt(e)) + engine.count_tokens([Message("user", train_split.references[e.id])])
            for e in examples
        )

    few = train_split.examples[:20]
    assert planned_tokens(few, train_split.references, prompt, ctx) == exact(few)
    many = train_split.examples
    assert len(many) > 40
    estimate = planned_tokens(many, train_split.references, prompt, ctx)
    assert estimate == pytest.approx(exact(many), rel=0.25)
    assert planned_tokens([], {}, prompt, ctx) == 0
