"""oppu: whose documents an adapter is trained on, what rows look like, and runs that are killed and share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from method_world import World, context, said, world
from tiny_engine import engine_of, lively_model, one_thread

from bench.config import build
from bench.engines import bank
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.export import export
from bench.method import Context
from bench.plan import RunConfig, make_plan
from bench.runner import execute
from bench.store import StoredRun
from bench.testing import check_method, findings
from bench.training import users as training
from bench.training.users import UserTask
from bench.types import Capability, Document, Example, Message
from methods.lora import Lora, LoraConfig
from methods.oppu import Oppu, OppuConfig

__all__ = ["one_thread"]

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 2, "r": 2, "user_r": 2, "user_lr": 0.02}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def small() -> World:
    return world(users=3, history=5)


@pytest.fixture(scope="module")
def shared(small: World, engine: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted adapter of all users."""
    folder = tmp_path_factory.mktemp("shared")
    learner = Oppu(OppuConfig(**QUICK))
    learner.fit(small.train, small.dev, context(small.population, engine))
    learner.save(folder)
    return folder


@pytest.fixture
def ctx(small: World, engine: HFEngine, tmp_path: Path) -> Context:
    return context(small.population, engine, kept=tmp_path / "kept")


def loaded(shared: Path, ctx: Context, **knobs: Any) -> Oppu:
    method = Oppu(OppuConfig(**{**QUICK, **knobs}))
    method.load(shared, ctx)
    return method


class Spy:
    """What users' adapters were trained on: task name -> (prompt, text) of each row, as texts."""

    def __init__(self, engine: HFEngine) -> None:
        self.engine, self.groups, self.seen = engine, 0, dict[str, list[tuple[str, str]]]()

    def train(self, lm: Any, group: Sequence[UserTask], *more: Any) -> Any:
        self.groups += 1
        decode = self.engine.tokenizer.decode
        for task in group:
            texts = [(decode(row.prompt.ids), decode(row.target, skip_special_tokens=True)) for row in task.rows]
            self.seen[task.name] = texts
        return _train(lm, group, *more)


_train = training.train_users


@pytest.fixture
def spy(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> Spy:
    made = Spy(engine)
    monkeypatch.setattr(training, "train_users", made.train)
    return made


def public(small: World, user: str) -> list[Document]:
    return small.population.history(user, None)


@pytest.mark.parametrize("scope", ["user", "target"])
def test_a_user_is_trained_on_their_own_past_texts_and_on_nothing_else(
    small: World, shared: Path, ctx: Context, spy: Spy, scope: str
) -> None:
    """In the scope of a user what the population knows; in that of a target all of its history."""
    loaded(shared, ctx, scope=scope).requests(small.test.examples, ctx)
    assert len(spy.seen) == len(small.test.examples)
    for of in small.test.examples:
        rows = spy.seen[f"user {of.user_id}" if scope == "user" else of.id]
        past = public(small, of.user_id) if scope == "user" else list(of.history)
        assert [text for _, text in rows] == [document.text for document in past]
        for (prompt, _), document in zip(rows, past, strict=True):
            assert f"Item title: {document.fields['item_title']}\n" in prompt
            assert not any(d.text in prompt for d in (*of.history, *small.population.documents()))
        everything = " ".join(part for row in rows for part in row)
        assert "Never shown" not in everything
    assert len(public(small, "u0")) < len(small.test.examples[0].history)  # the two scopes do differ here


def test_a_row_shows_what_stood_before_its_document_newest_first(
    small: World, shared: Path, ctx: Context, spy: Spy
) -> None:
    loaded(shared, ctx, n_history=2, user_rows=4).requests(small.test.examples, ctx)
    for of in small.test.examples:
        past = public(small, of.user_id)
        rows = spy.seen[f"user {of.user_id}"]
        assert [text for _, text in rows] == [d.text for d in past[-4:]]
        for index, (prompt, _) in enumerate(rows, len(past) - 4):
            before = [d.text for d in past[:index]][::-1][:2]
            assert [t for t in sorted((d.text for d in past), key=prompt.find) if t in prompt] == before


def test_requests_ask_what_lora_asks_with_an_adapter_of_the_user_on_top(
    small: World, shared: Path, ctx: Context
) -> None:
    method = loaded(shared, ctx, n_history=3)
    requests = method.requests(small.test.examples, ctx)
    plain = Lora(LoraConfig(n_history=3))
    plain.load(shared, ctx)
    assert [replace(r, user_adapter=None) for r in requests] == plain.requests(small.test.examples, ctx)
    files = [r.user_adapter for r in requests]
    assert len(set(files)) == len(files)
    contents = [Path(str(file)).read_bytes() for file in files]
    assert len(set(contents)) == len(files)
    assert all(generation.error is None for generation in ctx.engine.run(requests).generations)


def test_all_targets_of_a_user_share_the_adapter_of_the_user(small: World, shared: Path, ctx: Context) -> None:
    both = [replace(e, id=f"{e.id} {n}") for e in small.test.examples for n in (1, 2)]
    requests = loaded(shared, ctx).requests(both, ctx)
    assert len({r.user_adapter for r in requests}) == len(small.test.examples)
    assert all(a.user_adapter == b.user_adapter for a, b in zip(requests[::2], requests[1::2], strict=True))
    apart = loaded(shared, ctx, scope="target").requests(both, ctx)
    assert len({r.user_adapter for r in apart}) == len(both)


def test_a_user_without_history_gets_the_shared_adapter_alone(
    small: World, shared: Path, ctx: Context, spy: Spy
) -> None:
    newcomer = replace(small.test.examples[0], id="new", user_id="new", history=())
    requests = loaded(shared, ctx).requests([newcomer, *small.test.examples[1:]], ctx)
    assert [r.user_adapter is None for r in requests] == [True, False, False]
    assert "user new" not in spy.seen
    (alone,) = loaded(shared, replace(ctx, kept=None)).requests([newcomer], replace(ctx, kept=None))
    assert alone == requests[0]


def test_seeds_and_knobs_make_other_adapters_and_equal_ones_are_found(
    small: World, shared: Path, ctx: Context, spy: Spy
) -> None:
    def paths(given: Context, **knobs: Any) -> list[str | None]:
        return [r.user_adapter for r in loaded(shared, given, **knobs).requests(small.test.examples, given)]

    first = paths(ctx)
    assert paths(ctx) == first
    assert spy.groups == 1
    assert paths(replace(ctx, seed=1)) != first
    assert paths(ctx, user_epochs=3) != first
    assert paths(ctx, users_together=2) != first
    assert spy.groups == 5  # of which two in groups of two and one
    assert ctx.meter.seconds["adapt"] > 0


def test_without_a_place_to_keep_adapters_it_says_so(small: World, shared: Path, ctx: Context) -> None:
    with pytest.raises(UsageError, match=r"oppu trains adapters of users within a run"):
        loaded(shared, ctx).requests(small.test.examples, replace(ctx, kept=None))
    with pytest.raises(UsageError, match="call save and load after fit"):
        Oppu().requests(small.test.examples, ctx)


def test_unknown_layers_are_named_as_the_knob_of_this_method(small: World, shared: Path, ctx: Context) -> None:
    with pytest.raises(UsageError, match=r"oppu\.user_modules: this model has no layer called query"):
        loaded(shared, ctx, user_modules=("query",)).requests(small.test.examples, ctx)


def test_its_fit_is_that_of_lora(small: World, engine: HFEngine, shared: Path, tmp_path: Path) -> None:
    knobs = {knob: value for knob, value in QUICK.items() if not knob.startswith("user_")}
    plain = Lora(LoraConfig(**knobs, n_history=0))
    assert Oppu(OppuConfig(**QUICK)).fit_config() == plain.fit_config()
    assert Oppu(OppuConfig(**{**QUICK, "lr": 5e-4})).fit_config() != plain.fit_config()
    assert Oppu(OppuConfig(**{**QUICK, "user_lr": 5e-4})).fit_config() == plain.fit_config()
    plain.fit(small.train, small.dev, context(small.population, engine))
    plain.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in shared.iterdir()}


def test_a_class_that_builds_on_it_has_a_fit_of_its_own() -> None:
    """Its prompts may be others."""

    class Mine(Oppu):
        name = "mine"

    assert Mine.learner() is Mine
    assert Oppu.learner() is Lora.learner() is Lora


# -- runs ------------------------------------------------------------------------------------------------------------


def config(model: str, out: Path, methods: str, assign: Sequence[str] = (), **changes: Any) -> RunConfig:
    knobs = [f"{m}.{k}={v}" for m in methods.split(",") if m != "lora" for k, v in QUICK.items()]
    knobs += [f"{m}.users_together=2" for m in methods.split(",") if m != "lora"]
    given = {
        "methods": methods.split(","),
        "model": model,
        "metrics": ["length_ratio"],
        "overrides": ["planted.users=12", "planted.items=20", "hf.dtype=float32", *knobs, *assign],
        "out": out,
        "max_new_tokens": 8,
        "limit": 4,
        "train_limit": 3,
        **changes,
    }
    return build(RunConfig, given, "run")


def run(model: str, out: Path, methods: str = "oppu", assign: Sequence[str] = (), **changes: Any) -> list[StoredRun]:
    return execute(make_plan(config(model, out, methods, assign, **changes)), report=lambda line: None)


def records(stored: StoredRun) -> bytes:
    return (stored.path / "records.jsonl").read_bytes()


class Killed(BaseException):
    """What a test puts in the place of a kill."""


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_records_and_trains_nobody_twice(
    engine: HFEngine, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run(engine.folder, tmp_path / "whole")
    assert spy.groups == 2
    save, count = bank.save_adapter, 0

    def fails(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the second of the second group
            raise Killed
        save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(bank, "save_adapter", fails)
        with pytest.raises(Killed):
            run(engine.folder, tmp_path / "killed")
    batches = HFEngine._run

    def stops(self: HFEngine, batch: Any, *more: Any) -> Any:
        if len(batch) == 1:
            raise Killed
        return batches(self, batch, *more)

    few = ["hf.max_batch=3", "hf.refill=1"]
    spy.groups = 0
    with monkeypatch.context() as patch:
        patch.setattr(HFEngine, "_run", stops)
        with pytest.raises(Killed):
            run(engine.folder, tmp_path / "killed", assign=few)
    assert spy.groups == 1
    spy.groups = 0
    (after,) = run(engine.folder, tmp_path / "killed", assign=few)
    assert spy.groups == 0
    assert records(after) == records(run(engine.folder, tmp_path / "whole", assign=few)[0])
    assert json.loads(records(whole).splitlines()[0])["text"] is not None
    assert after.totals["adapt_seconds"] > 0


@pytest.mark.slow
def test_runs_share_one_fit_and_one_set_of_users_adapters(engine: HFEngine, tmp_path: Path, spy: Spy) -> None:
    knobs = ["lora.epochs=1", "lora.batch_size=2", "lora.r=2", "lora.n_history=0"]
    lora, oppu, cope = run(engine.folder, tmp_path, "lora,oppu,cope", knobs)
    assert spy.groups == 2  # of four users, once for both methods
    assert lora.manifest["fit"] == oppu.manifest["fit"] == cope.manifest["fit"]
    assert len(list(tmp_path.glob("planted/*/fit-*/fit.json"))) == 1
    assert len(list(tmp_path.glob("planted/lora/fit-*.kept/users-*/users.json"))) == 2
    assert oppu.totals["adapt_seconds"] == pytest.approx(cope.totals["adapt_seconds"])
    assert "adapt_seconds" not in lora.totals
    assert len({records(stored) for stored in (lora, oppu, cope)}) == 3
    run(engine.folder, tmp_path, "oppu", existing="overwrite")
    assert spy.groups == 4  # overwritten: trained anew
    export(oppu.path, tmp_path / "out")
    exported = {path.name for path in (tmp_path / "out").iterdir()}
    assert exported == {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert "adapters of single users" in (tmp_path / "out" / "README.md").read_text()


def test_an_engine_without_users_adapters_is_refused_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'oppu' needs .*user_adapter, which engine 'fake' does not give"):
        make_plan(config("smollm2-135m", tmp_path, "oppu", ["fake.max_batch=1"], engine="fake"))
    assert Capability.USER_ADAPTER in HFEngine.capabilities


def test_the_preview_shows_the_prompt_without_a_model(small: World) -> None:
    messages = Oppu().preview(small.test.examples[0], context(small.population))
    assert [m.role for m in messages] == ["user"]
    assert "Item title" in said(messages)


# -- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_holds_to_the_contract() -> None:
    check_method(Oppu, epochs=1, r=2, user_r=2, user_rows=3, user_lr=0.05)


class Growing(Oppu):
    """Trains each user on the documents of all users before, as the public code does."""

    name = "growing"

    def _task(self, of: Example, lm: Any, ctx: Context) -> UserTask:
        task = super()._task(of, lm, ctx)
        self.__dict__.setdefault("rows", []).extend(task.rows)
        return replace(task, rows=tuple(self.__dict__["rows"][-5:]))  # a few will do


@pytest.mark.slow
def test_the_contract_notices_a_list_that_grows_over_users() -> None:
    found = {finding.check for finding in findings(Growing, epochs=1, r=2, user_r=2, user_rows=2, user_lr=0.05)}
    assert {"permuted users", "a user alone"} <= found


def test_prompts_of_a_users_rows_keep_to_the_budget(
    small: World, shared: Path, ctx: Context, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[Message]] = []
    method = loaded(shared, ctx, n_history=5)
    tight = replace(ctx, max_prompt_tokens=500)
    prompt = Oppu.prompt

    def noted(self: Oppu, example: Example, given: Context) -> tuple[Message, ...]:
        asked.append(prompt(self, example, given))
        return tuple(asked[-1])

    monkeypatch.setattr(Oppu, "prompt", noted)
    method.requests(small.test.examples, tight)
    counts = [engine.count_tokens(messages) for messages in asked]
    assert len(counts) > 3 * len(small.test.examples)
    assert 300 < max(counts) <= 500
