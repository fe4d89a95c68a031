"""What a run cost, summed over all that worked on it, and what that is in money."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_world import FAKE, call, only_run
from fabricate import describe, make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import energy
from bench.config import build
from bench.costs import LEDGER, Cost, as_rows, from_rows, merged, paid, run_costs, total
from bench.energy import Reading, Spent
from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.errors import UsageError
from bench.fits import fit_or_load
from bench.meter import Meter
from bench.method import Context
from bench.plan import RunConfig, make_plan
from bench.prices import Prices, amount, read_prices
from bench.render import render
from bench.runner import execute, summary
from bench.store import BatchTiming, Existing, RunFolder, StoredRun, find_runs
from bench.tables import Section, leaderboard
from bench.training.log import TrainingLog
from bench.types import REVIEW_TASK, Sampling

Capture = pytest.CaptureFixture[str]
GPU = "NVIDIA H100 80GB HBM3"
WATTS = 400


class World:
    """Time that passes when told to, on a GPU that draws 400 W."""

    def __init__(self) -> None:
        self.now = 1000.0

    def read(self) -> Reading:
        return Reading({"GPU-1": WATTS * self.now}, None)

    def spent(self, start: Reading, end: Reading, seconds: float, told: int | None, processes: int) -> Spent:
        if told == 0:
            return Spent(seconds, None, None, 0.0, 0.0)
        before, after = start.gpus["GPU-1"], end.gpus["GPU-1"]
        assert before is not None
        assert after is not None
        return Spent(seconds, after - before, GPU, seconds * processes, 0.0)

    def told(self) -> dict[str, list[str]]:
        return {"measured": ["NVML, whole GPU"], "missing": []}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Loading takes 7 s, a batch of n prompts 10 n s in a stage before the last and n s in it."""
    made, run = World(), FakeEngine.run
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(energy, "_gauge", made)

    def slow(self: FakeEngine, batch: Sequence[Any]) -> BatchResult:
        made.now += len(batch) * (1 if batch[0].stage == "generate" else 10)
        return replace(run(self, batch), prefill_seconds=0.25 * len(batch), decode_seconds=0.5 * len(batch))

    def load(self: FakeEngine) -> None:
        made.now += 7

    monkeypatch.setattr(FakeEngine, "run", slow)
    monkeypatch.setattr(FakeEngine, "load", load)
    return made


def config(out: Path, methods: str = "pag", **changes: Any) -> RunConfig:
    overrides = ["planted.users=12", "planted.items=20", "fake.max_batch=4"]
    given = {"methods": methods.split(","), "engine": "fake", "metrics": ["length_ratio"], "overrides": overrides}
    return build(RunConfig, {**given, "out": out, **changes}, "run")


def do(out: Path, methods: str = "pag", **changes: Any) -> list[StoredRun]:
    return execute(make_plan(config(out, methods, **changes)), report=lambda line: None)


def by_stage(costs: Sequence[Cost]) -> dict[str, Cost]:
    return {cost.stage: cost for cost in costs}


# -- sums -------------------------------------------------------------------------------------------------------------

amounts = st.one_of(st.none(), st.integers(0, 1000).map(float))
made_costs = st.builds(
    Cost,
    stage=st.sampled_from(["load", "notes", "generate", "fit"]),
    device=st.sampled_from([None, "a", "b"]),
    seconds=st.integers(0, 1000).map(float),
    accelerator_seconds=amounts,
    core_seconds=amounts,
    energy_joules=amounts,
    calls=st.integers(0, 9),
    prompt_tokens=st.integers(0, 9),
    output_tokens=st.integers(0, 9),
)


@given(costs=st.lists(made_costs, max_size=12), cuts=st.lists(st.integers(0, 12), max_size=3))
def test_costs_of_parts_add_up_to_those_of_the_whole(costs: list[Cost], cuts: list[int]) -> None:
    """However a run was cut into processes or shards, through JSON and back; an unknown part makes a sum unknown."""
    whole = merged(costs)
    edges = [0, *sorted(cuts), len(costs)]
    parts = [merged(costs[a:b]) for a, b in itertools.pairwise(edges)]
    again = merged(cost for part in parts for cost in from_rows(json.loads(json.dumps(as_rows(part)))))
    assert sorted(map(repr, again)) == sorted(map(repr, whole))
    for name in ("seconds", "calls", "energy_joules", "accelerator_seconds"):
        values = [getattr(cost, name) for cost in costs]
        assert total(whole, name) == (None if None in values or not values else sum(values))


def test_a_run_on_two_devices_keeps_them_apart_and_stages_in_order() -> None:
    costs = [
        Cost("generate", "b", 1.0, 1.0, 0.0, 5.0),
        Cost("notes", "a", 1.0),
        Cost("load", "a", 2.0),
        Cost("generate", "b", 3.0, 3.0, 0.0, 6.0),
        Cost("generate", "a", 4.0, 8.0, 0.0, None),
    ]
    found = [(cost.stage, cost.device, cost.seconds, cost.energy_joules) for cost in merged(costs)]
    assert found == [
        ("load", "a", 2.0, None),
        ("notes", "a", 1.0, None),
        ("generate", "b", 4.0, 11.0),
        ("generate", "a", 4.0, None),
    ]


def timing(index: int, batch: Sequence[str], seconds: float) -> BatchTiming:
    more = {"energy_joules": seconds * WATTS, "device": GPU, "accelerator_seconds": seconds, "core_seconds": 0.0}
    return BatchTiming(index, len(batch), 10, 3, 0.0, 0.0, seconds, **more)  # type: ignore[arg-type]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fates=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=4))
def test_batches_that_a_kill_took_are_counted_where_they_were_paid(
    tmp_path_factory: Any, fates: list[tuple[int, bool]]
) -> None:
    """Each process writes some batches and then dies, maybe between a batch's timing and its records."""
    batches, spent, next_cost = [["a", "b"], ["c"], ["d"], ["e"]], 0.0, 1
    out = tmp_path_factory.mktemp("runs")

    def go(count: int, torn: bool) -> StoredRun | None:
        nonlocal spent, next_cost
        with RunFolder(out, describe("echo")) as folder:
            folder.open(Existing.RESUME)
            done = folder.resume(batches)
            for index in range(done, min(done + count, len(batches))):
                rows = [{"example_id": one, "error": None} for one in batches[index]]
                folder.append(index, rows, timing(index, batches[index], float(next_cost)))
                spent, next_cost = spent + next_cost, next_cost + 1
                last = index == done + count - 1
                if torn and last:
                    path = folder.file("records.jsonl")
                    path.write_bytes(path.read_bytes()[:-3])
            for _ in range(2):  # looking again counts nothing twice
                total_now = total(run_costs(folder.path, folder.path / "stages"), "seconds")
            assert total_now == (spent or None)
            return None

    for count, torn in fates:
        go(count, torn)
    go(len(batches), torn=False)
    (path,) = (plan.parent for plan in out.glob("*/*/*/plan.json"))
    (cost,) = run_costs(path, path / "stages")
    assert (cost.stage, cost.device, cost.seconds) == ("generate", GPU, spent)
    assert (cost.energy_joules, cost.accelerator_seconds) == (WATTS * spent, spent)


def test_a_kill_while_lost_batches_are_booked_books_them_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path, describe("echo")) as folder:
        folder.open(Existing.RESUME)
        folder.resume([["a"]])
        folder.append(0, [{"example_id": "a", "error": None}], timing(0, "a", 5.0))
        timings = folder.file("timings.jsonl").read_bytes()
        folder.file("records.jsonl").write_bytes(b"")
        folder.resume([["a"]])
        folder.file("timings.jsonl").write_bytes(timings)  # as if the cut had not reached the disk
        folder.resume([["a"]])
        assert total(run_costs(folder.path, folder.path), "seconds") == 5.0
        assert len(folder.file(LEDGER).read_bytes().splitlines()) == 1


# -- runs -------------------------------------------------------------------------------------------------------------


def test_every_stage_is_in_the_records_with_its_joules(world: World, tmp_path: Path) -> None:
    (run,) = do(tmp_path)
    costs = by_stage(paid(run))
    assert list(costs) == ["load", "summary", "generate"]
    asked = run.totals["stages"]["summary"]["calls"]
    seconds = {"load": 7.0, "summary": 10.0 * asked, "generate": 12.0}
    assert {stage: cost.seconds for stage, cost in costs.items()} == seconds
    assert {stage: cost.energy_joules for stage, cost in costs.items()} == {k: WATTS * v for k, v in seconds.items()}
    assert {stage: cost.accelerator_seconds for stage, cost in costs.items()} == seconds
    assert costs["generate"].prompt_tokens == run.totals["prompt_tokens"]
    assert costs["summary"].output_tokens == run.totals["stages"]["summary"]["output_tokens"]
    assert run.totals["energy_joules"] == WATTS * sum(seconds.values())
    assert [batch.energy_joules for batch in run.timings()] == [4.0 * WATTS] * 3
    assert {batch.device for batch in run.timings()} == {GPU}
    assert run.manifest["provenance"]["energy"]["measured"] == ["NVML, whole GPU"]


def test_a_resumed_run_counts_what_both_processes_paid(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = do(tmp_path / "whole")
    run, seen = FakeEngine.run, 0

    def fails(self: FakeEngine, batch: Sequence[Any]) -> BatchResult:
        nonlocal seen
        seen += batch[0].stage == "generate"
        if seen == 3:
            raise KeyboardInterrupt
        return run(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "run", fails)
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path / "killed")
    (after,) = do(tmp_path / "killed")
    assert (after.path / "records.jsonl").read_bytes() == (whole.path / "records.jsonl").read_bytes()
    undisturbed, disturbed = by_stage(paid(whole)), by_stage(paid(after))
    assert disturbed.pop("load").energy_joules == 2 * 7 * WATTS
    assert disturbed == {stage: cost for stage, cost in undisturbed.items() if stage != "load"}


def test_an_engine_of_a_service_is_billed_by_tokens_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "accelerators", lambda self: 0, raising=False)
    (run,) = do(tmp_path, "nonperso")
    cost = by_stage(paid(run))["generate"]
    assert (cost.device, cost.accelerator_seconds, cost.core_seconds, cost.energy_joules) == (None, 0, 0, None)
    prices = prices_of({"tokens": {"none": {"input": 3.0, "output": 5.0}}})  # the fake engine's model is "none"
    expected = (3 * run.totals["prompt_tokens"] + 5 * run.totals["output_tokens"]) / 1e6
    assert prices.money(cost, "none") == pytest.approx(expected)
    assert prices.money(cost, "other") == "tokens of other"


def test_a_fit_tells_its_own_costs_and_those_of_killed_processes(world: World, tmp_path: Path) -> None:
    class Learner(SimpleNamespace):
        name, version, dies = "learner", "1", True
        log: TrainingLog

        def learner(self) -> Any:
            return self

        def training_plan(self, *_: Any) -> None:
            return None

        def fit(self, train: Any, dev: Any, ctx: Any) -> None:
            world.now += 3
            with ctx.meter.phase("embed"):
                world.now += 20
            if self.dies:
                raise KeyboardInterrupt
            earlier = [Cost("fit", GPU, 50.0, 50.0, 0.0, 50.0 * WATTS)]  # as a checkpoint brings it
            self.log = TrainingLog(seconds_before=50.0, costs=earlier)
            world.now += 4

        def save(self, folder: Path) -> None:
            (folder / "weights").touch()

        def load(self, folder: Path, ctx: Any) -> None:
            pass

    method, dataset = Learner(), SimpleNamespace(name="world", train=None, dev=None)

    def go() -> Any:
        nobody: Any = None
        ctx = Context(REVIEW_TASK, nobody, FakeEngine(), 0, Sampling(), 3072, Meter())
        arguments: Any = (method, dataset, ctx, {"k": 1}, tmp_path, Existing.RESUME, lambda line: None)
        return fit_or_load(*arguments)

    with pytest.raises(KeyboardInterrupt):
        go()
    method.dies = False
    costs = by_stage(from_rows(go().info["costs"]))
    assert (costs["fit"].seconds, costs["fit"].energy_joules) == (57.0, 57.0 * WATTS)
    assert (costs["fit embed"].seconds, costs["fit embed"].energy_joules) == (20.0, 20.0 * WATTS)


# -- older runs -------------------------------------------------------------------------------------------------------


def old_run(out: Path, **more: Any) -> StoredRun:
    """A run as it was stored before costs were: no costs in totals, and timings without their new fields."""
    run = make_run(out, "rag", level=0.3, **more)
    assert run is not None
    path = run.path / "timings.jsonl"
    new = ("energy_joules", "device", "accelerator_seconds", "core_seconds")
    rows = [{k: v for k, v in json.loads(line).items() if k not in new} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StoredRun.load(run.path)


def test_older_runs_still_load_and_what_they_do_not_know_is_unknown(tmp_path: Path) -> None:
    run = old_run(tmp_path, fit={"seconds": 30.0, "embed_seconds": 4.0})
    assert [(t.energy_joules, t.device) for t in run.timings()] == [(None, None)] * 5
    costs = by_stage(paid(run))
    assert {stage: cost.seconds for stage, cost in costs.items()} == {"fit embed": 4.0, "fit": 30.0, "generate": 10.0}
    assert {(c.energy_joules, c.accelerator_seconds, c.core_seconds) for c in costs.values()} == {(None, None, None)}
    table = leaderboard(find_runs(tmp_path).runs, resamples=100, costs=True)
    lines = rows_of(table.sections, "costs")
    assert lines["rag", "generate"]["prompt_tokens"] == 24 * 300
    assert lines["rag", "generate"]["gpu_hours"] is None
    assert any("made before costs were recorded" in note for note in table.notes)


# -- prices -----------------------------------------------------------------------------------------------------------


def prices_of(table: dict[str, Any]) -> Prices:
    return build(Prices, {"currency": "EUR", **table}, "prices")


GENERATE = Cost("generate", GPU, 1800.0, 3600.0, 0.0, 7.2e6, 12, 2_000_000, 500_000)
ON_CPU = Cost("generate", "Some CPU", 1800.0, 0.0, 14_400.0, None, 12, 2_000_000, 500_000)


@pytest.mark.parametrize(
    ("cost", "table", "money"),
    [
        (GENERATE, {"accelerator": {"NVIDIA H100": 2.5}}, 2.5),
        (GENERATE, {"accelerator": {"NVIDIA H100": 2.5}, "energy": {"kwh": 0.3}}, 2.5 + 2 * 0.3),
        (GENERATE, {"energy": {"kwh": 0.3}}, 0.6),
        (GENERATE, {"accelerator": {"nvidia h100": 2, "NVIDIA H100 80GB": 3.0, "NVIDIA": 9.0}}, 3.0),
        (GENERATE, {"accelerator": {"NVIDIA H10": 2.0}}, "hours of NVIDIA H100 80GB HBM3"),
        (GENERATE, {"accelerator": {"NVIDIA A100": 2.0}}, "hours of NVIDIA H100 80GB HBM3"),
        (GENERATE, {"cpu": {"core_hour": 0.04}}, "hours of NVIDIA H100 80GB HBM3"),
        (GENERATE, {"tokens": {"gpt": {"input": 0.25, "output": 2.0}}}, 0.5 + 1.0),
        (GENERATE, {"tokens": {"other": {"input": 1, "output": 1}}}, "hours of NVIDIA H100 80GB HBM3"),
        (ON_CPU, {"cpu": {"core_hour": 0.04}}, 0.16),
        (ON_CPU, {"accelerator": {"NVIDIA": 1.0}}, "hours of processor cores"),
        (ON_CPU, {"cpu": {"core_hour": 0.04}, "energy": {"kwh": 0.3}}, "energy that was not measured"),
        (replace(ON_CPU, core_seconds=None), {"cpu": {"core_hour": 1}}, "work whose devices were not recorded"),
    ],
)
def test_prices_by_hand(cost: Cost, table: dict[str, Any], money: float | str) -> None:
    told = prices_of(table).money(cost, "gpt")
    assert told == (money if isinstance(money, str) else pytest.approx(money, rel=1e-12))


BROKEN = {
    "[cpu]\ncore_hour = 0.04": "names no currency",
    'currency = "EUR"': "holds no price",
    'currency = "EUR"\n[gpu]\nx = 1': "unknown key of",
    'currency = "EUR"\n[cpu]\ncore_hours = 1': "cpu.core_hour",
    'currency = "EUR"\n[cpu]\ncore_hour = 1\nhour = 2': "cpu.hour = 2 is not valid",
    'currency = "EUR"\n[cpu]\ncore_hour = -0.1': "greater than or equal to 0",
    'currency = "EUR"\n[accelerator]\nx = nan': "finite",
    'currency = "EUR"\n[energy]\nkwh = inf': "finite",
    'currency = "EUR"\n[energy]\nkwh = true': "valid number",
    'currency = "EUR"\n[energy]\nkwh = "0.3"': "valid number",
    'currency = "EUR"\n[tokens.a]\ninput = 1': "tokens.a.output",
    'currency = "two words"\n[energy]\nkwh = 1': "currency",
    'currency = "EUR"\n[energy': "not valid TOML",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_of_prices_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(UsageError, match=BROKEN[text]) as told:
        read_prices(tmp_path / "prices.toml")
    assert "\n" not in str(told.value)
    assert "prices.toml" in str(told.value)


@pytest.mark.parametrize("verb", ["run", "table"])
def test_prices_are_read_before_any_work(verb: str, tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "runs", "rag")
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n[cpu]\ncore_hour = -1\n')
    start = [*FAKE, "--methods", "nonperso", "--out"] if verb == "run" else ["table"]
    code, out, err = call([*start, tmp_path / "runs", "--prices", tmp_path / "prices.toml"], capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "cpu.core_hour = -1" in err
    code, _, err = call([*start, tmp_path / "runs", "--prices", tmp_path / "none.toml"], capsys)
    assert code == 2
    assert "none.toml cannot be read" in err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.4, "1234"),
        (12.34, "12.3"),
        (0.5, "0.500"),
        (0.0123, "0.012"),
        (0.00012, "0.00012"),
        (2e-7, "2.0e-07"),
    ],
)
def test_amounts_keep_two_digits_at_least(value: float, text: str) -> None:
    assert amount(value) == text


# -- tables -----------------------------------------------------------------------------------------------------------


def rows_of(sections: Sequence[Section], key: str) -> dict[tuple[Any, Any], dict[str, Any]]:
    """(method, stage) -> raw values by column."""
    found = {}
    for section in sections:
        if section.costs == key:
            for row in section.rows:
                cells = {c.key: cell.value for c, cell in zip(section.columns, row.cells, strict=True)}
                found[cells["method"], cells["stage"]] = cells
    return found


def test_a_table_of_costs_by_stage_and_for_a_thousand_texts(world: World, tmp_path: Path) -> None:
    runs = do(tmp_path, "nonperso,pag", seeds=(0, 1))
    prices = prices_of({"accelerator": {"NVIDIA H100": 36.0}})
    table = leaderboard(runs, resamples=100, prices=prices)
    lines = rows_of(table.sections, "costs")
    assert [stage for method, stage in lines if method == "nonperso"] == [
        "load", "generate", "- prefill", "- decode", "all",
    ]  # fmt: skip
    plain = lines["nonperso", "generate"]
    assert (plain["seconds"], plain["gpu_hours"], plain["core_hours"]) == (12.0, pytest.approx(12 / 3600), 0.0)
    assert plain["energy_wh"] == pytest.approx(12 * WATTS / 3600)
    assert plain["money_EUR"] == pytest.approx(0.12)  # a cent a second
    assert lines["nonperso", "- prefill"]["gpu_hours"] == pytest.approx(3 / 3600)
    assert lines["nonperso", "- decode"]["seconds"] == 6.0
    assert lines["nonperso", "- decode"]["energy_wh"] is None
    whole = lines["nonperso", "all"]
    assert (whole["seconds"], whole["money_EUR"]) == (19.0, pytest.approx(0.19))  # means over the two seeds
    asked = [run.totals["stages"]["summary"]["calls"] for run in runs if run.method == "pag"]
    each = rows_of(table.sections, "costs_per_1000")
    assert {stage for method, stage in each if method == "pag"} == {"summary", "generate", "all"}
    assert each["pag", "summary"]["seconds"] == pytest.approx(sum(asked) / 2 * 10 * 1000 / 12)
    assert each["pag", "all"]["money_EUR"] == pytest.approx((sum(asked) / 2 * 10 + 12) * 1000 / 12 / 100)
    assert each["nonperso", "all"]["energy_wh"] == pytest.approx(WATTS * 1000 / 3600)
    assert any(GPU in note for note in table.notes)
    plain_table = leaderboard(runs, resamples=100)
    assert not any(section.costs for section in plain_table.sections)
    assert table.sections[: len(plain_table.sections)] == plain_table.sections


def test_formats_for_people_and_machines_carry_costs(world: World, tmp_path: Path) -> None:
    runs = do(tmp_path, "nonperso,pag")
    prices = prices_of({"cpu": {"core_hour": 1.0}})
    table = leaderboard(runs, resamples=100, prices=prices)
    rows = {row["method"]: row for row in json.loads(render([table], "json"))}
    stages = {one["stage"]: one for one in rows["pag"]["costs"]}
    assert stages["generate"]["gpu_hours"] == pytest.approx(12 / 3600)
    assert stages["generate"]["money_EUR"] is None
    assert {one["stage"] for one in rows["nonperso"]["costs_per_1000"]} == {"generate", "all"}
    lines = {row["method"]: row for row in csv.DictReader(io.StringIO(render([table], "csv")))}
    assert float(lines["pag"]["costs_generate_seconds"]) == 12.0
    assert float(lines["nonperso"]["costs_per_1000_all_energy_wh"]) == pytest.approx(WATTS * 1000 / 3600)
    assert lines["nonperso"]["costs_summary_seconds"] == ""
    for style in ("markdown", "latex", "html", "console"):
        text = render([table], style)
        assert "Costs by stage" in text
        assert "energy Wh" in text
        assert "hours of NVIDIA H100 80GB HBM3" in " ".join(text.split())
    assert "| :--- | :--- | ---: |" in render([table], "markdown")


def test_the_line_on_a_run_tells_energy_hours_and_money(world: World, tmp_path: Path) -> None:
    (run,) = do(tmp_path, "nonperso")
    assert summary(run).endswith("0.0053 GPU-hours, 2.11 Wh")  # 19 s at 400 W
    assert summary(run, prices_of({"energy": {"kwh": 100.0}})).endswith("2.11 Wh, 0.211 EUR")
    assert "no price of hours of processor cores" not in summary(run, prices_of({"cpu": {"core_hour": 1.0}}))
    assert summary(run, prices_of({"cpu": {"core_hour": 1.0}})).endswith(f"no price of hours of {GPU}")
    assert "EUR" not in summary(old_run(tmp_path / "old"))


def test_prices_change_nothing_that_is_stored(tmp_path: Path, capsys: Capture) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "EUR"\n[cpu]\ncore_hour = 36\n[energy]\nkwh = 1\n')
    command = [*FAKE, "--methods", "nonperso", "--limit", "4", "--out", tmp_path / "runs"]
    code, out, err = call([*command, "--prices", prices], capsys)
    assert code == 0, err
    assert "Costs by stage" in out
    kept = only_run(tmp_path / "runs", "nonperso")
    told = "".join(path.read_text() for path in [*kept.glob("*.json*"), *(tmp_path / "runs").glob("configs/*")])
    assert "EUR" not in told
    assert "prices.toml" not in told
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    code, plain, _ = call(["table", tmp_path / "copy", "--costs"], capsys)
    assert code == 0
    assert "EUR" not in plain
    assert "core-hours" in plain
