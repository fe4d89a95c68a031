"""Rows a second of training soft prompts, beside the public recipe and a Hugging Face Trainer.

`pytest tests/benchmarks/test_training.py --benchmark-only -s` prints the table. DEP_BENCH_ROWS and DEP_BENCH_ROUNDS
change how many rows and rounds it takes, OMP_NUM_THREADS the threads (the tests' own default is one).

Real weights in the type the engine chooses, prompts of `dep` with eight histories on planted reviews, at full length.
The Trainer runs twice: all rows of a step at once, padded to the longest, and one row at a time, without padding.
Rounds are interleaved, so that whatever else the machine does hits all ways alike. Floating point operations are
4 x parameters x real tokens: forward and backward through frozen weights, padding not counted, attention neither.
A round is one step from a fresh start: what is kept from one epoch to the next does not show.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from training_rivals import SLOTS, Learner, SoftPrompts, train_padded, train_with_trainer

from bench import weights
from bench.data.spec import load_spec
from bench.data.split import prepare
from bench.engines.base import LanguageModel
from bench.engines.hf import HFEngine
from bench.meter import Meter
from bench.method import Context
from bench.training import Row, TrainingConfig, build_rows, train
from bench.types import REVIEW_TASK, SLOT_CLOSE, SLOT_OPEN, Message, Sampling
from methods.dep import Dep

ROWS = int(os.environ.get("DEP_BENCH_ROWS", "4"))
ROUNDS = int(os.environ.get("DEP_BENCH_ROUNDS", "3"))
PROMPT, ANSWER = 3072, 2049
"""What the public recipe pads prompts and answers to."""
SEED = 0
OURS, PADDED, TRAINER, TRAINER_ALONE = "ours", "(a) padded", "(b) Trainer", "(b) Trainer, 1 row at once"
GOALS = {PADDED: 5.0, TRAINER: 1.5, TRAINER_ALONE: 1.5}


@dataclass
class Way:
    """One way to train, and what its rounds took."""

    run: Callable[[Sequence[Row]], list[float]]
    rows: Callable[[int], Sequence[Row]]
    """The rows of a round, one optimizer step."""
    wall: list[float] = dataclass_field(default_factory=list)
    """Seconds a row, of each round."""
    cpu: list[float] = dataclass_field(default_factory=list)
    """Processor seconds a row, of each round: what other processes leave alone."""
    losses: list[list[float]] = dataclass_field(default_factory=list)

    def round(self, number: int) -> None:
        rows = self.rows(number)
        wall, cpu = time.perf_counter(), time.process_time()
        self.losses.append(self.run(rows))
        self.wall.append((time.perf_counter() - wall) / len(rows))
        self.cpu.append((time.process_time() - cpu) / len(rows))


def make_rows(engine: HFEngine, lm: LanguageModel, count: int) -> list[Row]:
    """Rows of dep's own prompts, of lengths spread evenly over those of all planted users."""
    split = prepare(load_spec("planted", {"users": 40})).train
    method, nobody = Dep(), cast(Any, None)
    ctx = Context(REVIEW_TASK, nobody, engine, SEED, Sampling(), PROMPT, Meter())
    dense = [e for e in split.examples if len(e.history) >= SLOTS // 2]
    # Users in turn, so that rows are of different people as in training.
    latest = list({e.user_id: e for e in dense}.values())
    messages = [method.preview(e, ctx) for e in latest]
    slots = [dict.fromkeys(_slots(m), 1) for m in messages]
    rows = build_rows(lm, latest, messages, split.references, ANSWER, slots)
    rows = sorted((r for r in rows if len(r.prompt.positions) == SLOTS), key=lambda r: (r.length, r.index))
    chosen = [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
    return [Row(i, row.prompt, row.target) for i, row in enumerate(chosen)]


def _slots(messages: Sequence[Message]) -> list[str]:
    return re.findall(f"{SLOT_OPEN}([^{SLOT_CLOSE}]+){SLOT_CLOSE}", "".join(m.content for m in messages))


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating point operations a second of a large matrix product, the best of a few."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def make_ways(lm: LanguageModel, rows: Sequence[Row], folder: Path) -> dict[str, Way]:
    embeddings = lm.model.get_input_embeddings().weight
    rms = float(embeddings.float().pow(2).mean().sqrt())

    def config(given: Sequence[Row]) -> TrainingConfig:
        return TrainingConfig(epochs=1, batch_size=len(given), lr=1e-3)

    def fresh() -> SoftPrompts:
        return SoftPrompts(len(rows), embeddings.shape[1], rms, SEED)

    def padded(given: Sequence[Row]) -> list[float]:
        return train_padded(lm.model, given, fresh(), config(given), SEED, PROMPT + ANSWER)

    def trainer(given: Sequence[Row], at_once: int) -> list[float]:
        return train_with_trainer(lm.model, given, fresh(), config(given), SEED, at_once, folder)

    def ours(given: Sequence[Row]) -> list[float]:
        return train(lm, given, [], Learner(fresh()), config(given), SEED).steps

    return {
        # All padded rows cost the same: one a round, the next in turn, stands for all.
        PADDED: Way(padded, lambda number: [rows[number % len(rows)]]),
        TRAINER: Way(lambda given: trainer(given, len(given)), lambda _: rows),
        TRAINER_ALONE: Way(lambda given: trainer(given, 1), lambda _: rows),
        OURS: Way(ours, lambda _: rows),
    }


def ratios(ways: dict[str, Way], name: str, clock: str) -> list[float]:
    """Of each round: how many times as long as ours `name` took for a row."""
    return [a / b for a, b in zip(getattr(ways[name], clock), getattr(ways[OURS], clock), strict=True)]


def summary(ways: dict[str, Way], rows: Sequence[Row], parameters: int, rates: Sequence[float]) -> dict[str, Any]:
    tokens = mean(row.length for row in rows)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        seconds = median(way.wall)
        flops = 4 * parameters * tokens / seconds
        found[name] = {
            "rows_per_second": 1 / seconds,
            "seconds_per_row": way.wall,
            "cpu_seconds_per_row": way.cpu,
            "tokens_per_second": tokens / seconds,
            "model_flops_per_second": flops,
            "share_of_matrix_rate": flops / median(rates),
            "ours_faster_wall": ratios(ways, name, "wall"),
            "ours_faster_cpu": ratios(ways, name, "cpu"),
        }
    return found


def table(found: dict[str, Any], about: dict[str, Any]) -> str:
    lines = ["", *(f"{key}: {value}" for key, value in about.items()), ""]
    lines.append(
        f"{'':<28}{'rows/s':>8}{'tokens/s':>10}{'GFLOP/s':>9}{'of rate':>9}{'cpu s/row':>11}"
        f"{'ours is faster: wall':>27}{'cpu':>22}"
    )
    for name, way in found.items():
        spreads = [
            f"{median(way[key]):.2f}x [{min(way[key]):.2f}, {max(way[key]):.2f}]"
            for key in ("ours_faster_wall", "ours_faster_cpu")
        ]
        lines.append(
            f"{name:<28}{way['rows_per_second']:>8.4f}{way['tokens_per_second']:>10.1f}"
            f"{way['model_flops_per_second'] / 1e9:>9.1f}{way['share_of_matrix_rate']:>9.1%}"
            f"{median(way['cpu_seconds_per_row']):>11.1f}{spreads[0]:>27}{spreads[1]:>22}"
        )
    for name, goal in GOALS.items():
        got = median(found[name]["ours_faster_wall"])
        lines.append(f"goal against {name}: {goal}x, {'met' if got >= goal else 'MISSED'} at {got:.2f}x")
    return "\n".join(lines)


@pytest.mark.weights
def test_three_ways_to_train_side_by_side(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Times interleaved rounds; the first losses must agree, or different things were timed."""
    if not weights.is_fetched("smollm2-135m"):
        pytest.skip("needs weights: python -m bench fetch smollm2-135m")
    engine = HFEngine(weights.resolve("smollm2-135m", "llm"))
    lm = engine.language_model()
    rows = make_rows(engine, lm, ROWS)
    ways = make_ways(lm, rows, tmp_path)
    rates: list[float] = []

    def rivals() -> None:
        rates.append(matrix_rate(lm.model.dtype))
        number = len(ways[OURS].wall)
        for name in (PADDED, TRAINER, TRAINER_ALONE):
            ways[name].round(number)

    def ours() -> None:
        ways[OURS].round(len(ways[OURS].wall))

    benchmark.pedantic(ours, setup=rivals, rounds=ROUNDS, iterations=1)  # type: ignore[no-untyped-call]

    parameters = sum(p.numel() for p in lm.model.parameters())
    found = summary(ways, rows, parameters, rates)
    lengths = [f"{len(row.prompt.ids)}+{len(row.target)}" for row in rows]
    about = {
        "model": f"smollm2-135m, {parameters / 1e6:.1f}M parameters, {lm.model.dtype}, frozen",
        "rows": f"{len(rows)} at full length (prompt+answer tokens: {', '.join(lengths)}); "
        f"(a) pads to {PROMPT}+{ANSWER} and takes one of them a round, as all cost the same then",
        "threads": f"{torch.get_num_threads()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "matrix rate": f"{median(rates) / 1e9:.0f} GFLOP/s measured",
        "rounds": f"{ROUNDS}, interleaved; medians [least, most]",
    }
    print(table(found, about))
    benchmark.extra_info |= {"about": about, "ways": json.loads(json.dumps(found))}
    for name in (TRAINER, TRAINER_ALONE):
        # bfloat16 holds three digits; in float32 the curves agree to 1e-3 (tests/test_training_equal.py).
        assert ways[name].losses[0] == pytest.approx(ways[OURS].losses[0], rel=0.02)
