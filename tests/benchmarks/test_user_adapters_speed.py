"""Seconds and bytes a user of adapters of single users: side by side, one by one, and as peft does it one by one.

`pytest tests/benchmarks/test_user_adapters_speed.py --benchmark-only -s` prints the tables. DEP_BENCH_USERS,
DEP_BENCH_ROWS (past documents a user) and DEP_BENCH_ROUNDS change what is measured, OMP_NUM_THREADS the threads (the
tests' own default is one).

Real weights in the type the engine chooses, prompts of `oppu` on planted reviews, its own knobs. Rounds are
interleaved, so that whatever else the machine does hits all ways alike. The peft way is the usual script: layers put
in, AdamW over them, a user's step padded to its longest row, logits at every position, layers taken out again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import weights
from bench.data.spec import load_spec
from bench.data.split import prepare
from bench.engines.base import LanguageModel
from bench.engines.hf import HFEngine
from bench.meter import Meter
from bench.method import Context
from bench.notes import subject
from bench.training.step import schedule
from bench.training.users import LowRank, UserTask, train_users, user_adapters
from bench.types import Request, Sampling
from methods.oppu import Oppu, OppuConfig

USERS = int(os.environ.get("DEP_BENCH_USERS", "4"))
ROWS = int(os.environ.get("DEP_BENCH_ROWS", "6"))
ROUNDS = int(os.environ.get("DEP_BENCH_ROUNDS", "3"))
CONFIG = OppuConfig(user_rows=ROWS, user_epochs=1)
SHAPE = LowRank(CONFIG.user_r, CONFIG.user_alpha, CONFIG.user_modules)
TOGETHER, ONE_BY_ONE, PEFT = "side by side", "one by one", "peft, one by one"
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    if not weights.is_fetched("smollm2-135m"):
        pytest.skip("needs weights: python -m bench fetch smollm2-135m")
    return HFEngine(weights.resolve("smollm2-135m", "llm"))


@pytest.fixture(scope="module")
def world(engine: HFEngine) -> tuple[list[UserTask], list[Request]]:
    """What the first users' adapters are trained on, and what is asked for these users."""
    dataset = prepare(load_spec("planted", {"users": 40}))
    sampling = Sampling(0.0, 1.0, NEW_TOKENS, NEW_TOKENS)
    ctx = Context(dataset.task, dataset.population, engine, 0, sampling, 3072, Meter())
    method, examples = Oppu(CONFIG), dataset.test.examples[:USERS]
    lm = engine.language_model()
    tasks = [method._task(subject(example, "user", ctx), lm, ctx) for example in examples]
    return tasks, [ctx.request(example, method.prompt(example, ctx)) for example in examples]


def by_peft(lm: LanguageModel, task: UserTask) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(task.seed)
    config = LoraConfig(r=SHAPE.r, lora_alpha=SHAPE.alpha, target_modules=list(SHAPE.modules))
    model = get_peft_model(lm.model, config)
    try:
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=CONFIG.user_lr, weight_decay=CONFIG.user_weight_decay)
        rows = list(task.rows)
        random.Random(task.seed).shuffle(rows)
        size = CONFIG.user_batch_size
        steps = [rows[i : i + size] for i in range(0, len(rows), size)]
        for number, batch in enumerate(steps):
            longest = max(row.length for row in batch)
            ids, labels, mask = (torch.full((len(batch), longest), fill) for fill in (0, -100, 0))
            for i, row in enumerate(batch):
                ids[i, : row.length] = torch.tensor(row.prompt.ids + row.target)
                labels[i, len(row.prompt.ids) : row.length] = torch.tensor(row.target)
                mask[i, : row.length] = 1
            optimizer.param_groups[0]["lr"] = CONFIG.user_lr * schedule(number, len(steps), CONFIG.user_warmup)
            optimizer.zero_grad()
            given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            model(**{key: value.to(lm.device) for key, value in given.items()}).loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, CONFIG.user_max_grad_norm)
            optimizer.step()
    finally:
        model.eval()
        model.unload().requires_grad_(False)


Clocks = dict[str, list[tuple[float, float]]]
"""Way -> (wall, processor) seconds of each round: other processes leave the latter alone."""


def timed(ways: dict[str, Callable[[], Any]], benchmark: BenchmarkFixture, rounds: int) -> Clocks:
    """Round by round all ways in turn; the first one is what the benchmark reports."""
    clocks: Clocks = {name: [] for name in ways}
    (first, own), *others = ways.items()

    def clocked(name: str, work: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        clocks[name].append((time.perf_counter() - wall, time.process_time() - processor))

    def rivals() -> None:
        for name, work in others:
            clocked(name, work)

    benchmark.pedantic(lambda: clocked(first, own), setup=rivals, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
    return clocks


def told(title: str, clocks: Clocks, users: int) -> str:
    own = next(iter(clocks))
    lines = ["", title, f"{'':<20}{'s a user':>10}{'cpu s':>8}{'first is faster: wall':>28}{'cpu':>24}"]
    for name, rounds in clocks.items():
        middle = [median(values) / users for values in zip(*rounds, strict=True)]
        spreads = []
        for which in (0, 1):
            ratios = [theirs[which] / ours[which] for theirs, ours in zip(rounds, clocks[own], strict=True)]
            spreads.append(f"{median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]")
        lines.append(f"{name:<20}{middle[0]:>10.2f}{middle[1]:>8.2f}{spreads[0]:>28}{spreads[1]:>24}")
    return "\n".join(lines)


def setting(engine: HFEngine) -> str:
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"smollm2-135m, {engine.dtype}, {engine.device}, {torch.get_num_threads()} threads, {load}, {ROUNDS} rounds"


@pytest.mark.weights
def test_training_users_side_by_side_and_one_by_one(
    benchmark: BenchmarkFixture, engine: HFEngine, world: tuple[list[UserTask], list[Request]], tmp_path: Path
) -> None:
    """The first two must give the same adapters, or different things were timed."""
    tasks, _ = world
    lm, config = engine.language_model(), CONFIG.user_training()
    found: dict[str, Any] = {}

    def together() -> None:
        found[TOGETHER] = train_users(lm, tasks, SHAPE, config)

    def one_by_one() -> None:
        found[ONE_BY_ONE] = [train_users(lm, [task], SHAPE, config)[0] for task in tasks]

    ways = {TOGETHER: together, ONE_BY_ONE: one_by_one, PEFT: lambda: [by_peft(lm, task) for task in tasks]}
    clocks = timed(ways, benchmark, ROUNDS)
    kept = user_adapters(lm, tasks, SHAPE, config, len(tasks), {}, tmp_path)
    size = {path.stat().st_size for path in kept.paths.values()}
    tokens = sum(row.length for task in tasks for row in task.rows) / len(tasks)
    title = f"training: {setting(engine)}; {len(tasks)} users, {ROWS} rows and {tokens:.0f} tokens each, one epoch"
    print(told(title, clocks, len(tasks)))
    print(f"disk: {max(size):,} bytes a user in {engine.dtype}")
    benchmark.extra_info |= {"clocks": clocks, "bytes_a_user": max(size), "setting": title}
    assert len(size) == 1
    for one, other in zip(found[TOGETHER], found[ONE_BY_ONE], strict=True):
        # bfloat16 holds three digits, and AdamW's steps are of the size of lr whatever the gradient's.
        apart = max(float((x - y).abs().mean()) for n in one for x, y in zip(one[n], other[n], strict=True))
        assert apart < 0.2 * CONFIG.user_lr


@pytest.mark.weights
def test_writing_for_users_in_one_batch_and_one_by_one(
    benchmark: BenchmarkFixture, engine: HFEngine, world: tuple[list[UserTask], list[Request]], tmp_path: Path
) -> None:
    tasks, requests = world
    lm, config = engine.language_model(), CONFIG.user_training()
    kept = user_adapters(lm, [replace(t, rows=t.rows[:1]) for t in tasks], SHAPE, config, len(tasks), {}, tmp_path)
    own = [replace(r, user_adapter=str(kept.paths[t.name])) for r, t in zip(requests, tasks, strict=True)]
    ways: dict[str, Callable[[], Any]] = {
        "one batch": lambda: engine.run(own),
        "without adapters": lambda: engine.run(requests),
        "one by one": lambda: [engine.run([request]) for request in own],
    }
    clocks = timed(ways, benchmark, ROUNDS)
    print(told(f"writing: {setting(engine)}; {len(own)} users, {NEW_TOKENS} new tokens each", clocks, len(own)))
    benchmark.extra_info |= {"clocks": clocks}
