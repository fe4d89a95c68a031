"""Intermediate stages: asked once, kept on disk, and the same whatever was there before."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engines.base import BatchResult
from bench.engines.fake import FakeConfig, FakeEngine
from bench.errors import UsageError
from bench.keys import request_seed
from bench.meter import Meter
from bench.method import Context
from bench.stages import StageCache, request_key, stage_costs
from bench.tiny import tiny_dataset
from bench.types import Generation, Message, Request, Sampling


class Counting(FakeEngine):
    """The fake engine, which remembers what it was asked."""

    def __init__(self, rows: int = 3) -> None:
        super().__init__(config=FakeConfig(max_batch=rows))
        self.asked: list[str] = []

    def run(self, batch: Sequence[Request]) -> BatchResult:
        self.asked += [request.example_id for request in batch]
        return super().run(batch)


def ask(number: int, text: str = "say something of it", stage: str = "summary") -> Request:
    messages = (Message("user", f"{text} {number} " + "and more " * (number % 4)),)
    return Request(f"e{number}", stage, messages, Sampling(), request_seed(0, f"e{number}", stage))


REQUESTS = [ask(number) for number in range(10)]


def undisturbed(requests: Sequence[Request]) -> list[Generation]:
    """What the engine says to each request alone."""
    return [FakeEngine().run([request]).generations[0] for request in requests]


def test_answers_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    assert StageCache(tmp_path, "summary").run(Counting(), REQUESTS) == undisturbed(REQUESTS)


def test_a_second_time_nothing_is_asked_and_everything_is_marked_as_cached(tmp_path: Path) -> None:
    StageCache(tmp_path, "summary").run(Counting(), REQUESTS)
    engine = Counting()
    again = StageCache(tmp_path, "summary").run(engine, REQUESTS)
    assert engine.asked == []
    assert all(generation.cached for generation in again)
    assert [replace(generation, cached=False) for generation in again] == undisturbed(REQUESTS)


def test_what_was_asked_just_now_is_not_marked_as_cached(tmp_path: Path) -> None:
    assert not any(generation.cached for generation in StageCache(tmp_path, "summary").run(Counting(), REQUESTS))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_texts_do_not_depend_on_what_was_cached_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("stages")
    earlier = data.draw(st.lists(st.lists(st.sampled_from(REQUESTS), max_size=6), max_size=3))
    for requests in earlier:
        StageCache(folder, "summary").run(Counting(data.draw(st.integers(1, 5))), requests)
    found = StageCache(folder, "summary").run(Counting(data.draw(st.integers(1, 5))), REQUESTS)
    assert [generation.text for generation in found] == [generation.text for generation in undisturbed(REQUESTS)]


@given(cut=st.integers(0, 4000))
@settings(max_examples=30, deadline=None)
def test_a_file_cut_anywhere_by_a_kill_is_gone_on_with(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("stages")
    StageCache(folder, "summary").run(Counting(), REQUESTS)
    path = folder / "summary.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    found = StageCache(folder, "summary").run(Counting(), REQUESTS)
    assert [generation.text for generation in found] == [generation.text for generation in undisturbed(REQUESTS)]
    engine = Counting()
    StageCache(folder, "summary").run(engine, REQUESTS)
    assert engine.asked == []


def test_only_batches_that_lack_an_answer_are_asked_again(tmp_path: Path) -> None:
    engine = Counting()
    batches = [[REQUESTS[i].example_id for i in batch] for batch in engine.plan(REQUESTS)]
    StageCache(tmp_path, "summary").run(engine, REQUESTS)
    path = tmp_path / "summary.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # the last answer of the last batch
    again = Counting()
    StageCache(tmp_path, "summary").run(again, REQUESTS)
    assert again.asked == batches[-1]


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUESTS[0], seed=1),
        replace(REQUESTS[0], sampling=Sampling(temperature=0.1)),
        replace(REQUESTS[0], example_id="e99"),
        replace(REQUESTS[0], messages=(Message("user", "other"),)),
        replace(REQUESTS[0], messages=(Message("system", REQUESTS[0].messages[0].content),)),
        replace(REQUESTS[0], stage="contrast"),
    ],
)
def test_whatever_can_change_an_answer_changes_its_key(tmp_path: Path, other: Request) -> None:
    assert request_key(other) != request_key(REQUESTS[0])
    StageCache(tmp_path, "summary").run(Counting(), [REQUESTS[0]])
    assert StageCache(tmp_path, "summary").run(Counting(), [other]) == undisturbed([other])


def test_a_request_that_comes_twice_is_asked_once(tmp_path: Path) -> None:
    twice = [REQUESTS[0], REQUESTS[1], REQUESTS[0]]
    engine = Counting(rows=1)
    found = StageCache(tmp_path, "summary").run(engine, twice)
    assert sorted(engine.asked) == ["e0", "e1"]
    assert found[0] == found[2] == undisturbed([REQUESTS[0]])[0]


def test_stages_lie_in_files_of_their_own_one_answer_a_line(tmp_path: Path) -> None:
    StageCache(tmp_path, "summary").run(Counting(), REQUESTS)
    StageCache(tmp_path, "contrast").run(Counting(), [ask(0, stage="contrast")])
    names = ["contrast.costs.jsonl", "contrast.jsonl", "summary.costs.jsonl", "summary.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    rows = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert {row["request"] for row in rows} == {request_key(request) for request in REQUESTS}


class Failing(Counting):
    """Fails on one request."""

    def run(self, batch: Sequence[Request]) -> BatchResult:
        answers = super().run(batch).generations
        return BatchResult(
            [
                Generation("", 0, 0, "error", error="too long") if request.example_id == "e3" else answer
                for request, answer in zip(batch, answers, strict=True)
            ]
        )


def test_what_a_stage_costs_is_counted_over_all_processes(tmp_path: Path) -> None:
    """Two processes: the second finds what the first asked, and pays only for the rest."""
    StageCache(tmp_path, "summary").run(Counting(), REQUESTS[:4])
    StageCache(tmp_path, "summary").run(Counting(), REQUESTS)
    StageCache(tmp_path, "contrast").run(Failing(), [ask(n, stage="contrast") for n in range(5)])
    costs = stage_costs(tmp_path)
    assert list(costs) == ["contrast", "summary"]
    assert costs["contrast"]["calls"] == 5
    assert costs["contrast"]["failed"] == 1
    assert costs["summary"]["failed"] == 0
    rows = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert costs["summary"]["calls"] == len(rows)
    for name in ("prompt_tokens", "output_tokens"):
        assert costs["summary"][name] == sum(row["generation"][name] for row in rows)
    assert costs["summary"]["wall_seconds"] > 0
    assert stage_costs(tmp_path / "nothing") == {}


@pytest.mark.parametrize("change", [{"soft": {"slot": [[0.0]]}}, {"adapter": "folder"}])
def test_soft_vectors_and_adapters_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    engine = Counting()
    with pytest.raises(UsageError, match="intermediate stages take text"):
        StageCache(tmp_path, "summary").run(engine, [*REQUESTS, replace(ask(11), **change)])  # type: ignore[arg-type]
    assert engine.asked == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "."])
def test_a_stage_whose_name_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="file name"):
        StageCache(tmp_path, name)


def test_no_requests_are_no_work(tmp_path: Path) -> None:
    assert StageCache(tmp_path, "summary").run(Counting(), []) == []


def test_a_context_runs_stages_through_its_runner_and_says_so_if_it_has_none(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    plain = Context(dataset.task, dataset.population, Counting(), 0, Sampling(), 3072, Meter())
    with pytest.raises(UsageError, match="intermediate stages"):
        plain.generate(REQUESTS, "summary")
    engine = Counting()
    ctx = replace(plain, stage_runner=lambda requests, stage: StageCache(tmp_path, stage).run(engine, requests))
    order = Random(0).sample(REQUESTS, len(REQUESTS))
    assert ctx.generate(order, "summary") == undisturbed(order)


def test_an_engines_start_is_no_cost_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that a batch waited for its engine are told apart, and the rest is the stage's."""
    engine = Counting(rows=5)
    run = engine.run

    def late(batch: Sequence[Request]) -> BatchResult:
        time.sleep(0.05)
        return replace(run(batch), load_seconds=0.04 if len(engine.asked) <= 5 else 0.0)

    monkeypatch.setattr(engine, "run", late)
    waited: list[float] = []
    StageCache(tmp_path, "summary").run(engine, REQUESTS, loaded=lambda spent: waited.append(spent.seconds))
    assert waited == [pytest.approx(0.04)]
    assert stage_costs(tmp_path)["summary"]["wall_seconds"] + 0.01 >= 0.06
