"""Methods on data whose items nobody shares: they run, and those that compare with others find them by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lamp_world as world
import pytest
from cli_world import call
from method_world import context
from tiny_engine import engine_of, lively_model, one_thread

from bench import registry
from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.engines.hf import HFEngine
from bench.method import Context
from bench.types import Capability, Generation, Request
from methods.dep.config import DepConfig
from methods.dep.prompting import prepare as prepare_prompts

__all__ = ["one_thread"]

TEXT = [n for n in registry.names("method") if registry.load("method", n).needs == {Capability.TEXT}]
TRAINED = {
    "dep": {"epochs": 1, "latent_size": 8, "k": 4, "batch_size": 2, "peer_source": "content"},
    "lora": {"epochs": 1, "n_history": 2, "batch_size": 2},
    "pplug": {"epochs": 1, "batch_size": 2},
    "stylevector": {},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return engine_of(lively_model(tmp_path_factory.mktemp("model")))


def dataset(folder: Path, task: str, dated: bool) -> Dataset:
    return prepare(load_spec(str(world.write_lamp(folder, task, dated=dated))))


def noted(requests: Sequence[Request], stage: str) -> list[Generation]:
    return [Generation(f"{stage} noted", 1, 1, "stop") for _ in requests]


def over(data: Dataset, engine: HFEngine | None = None) -> Context:
    """A context over the dataset, which answers every stage before the last with a few words."""
    return context(data.population, engine, task=data.task, stage_runner=noted)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(("task", "dated"), [("LaMP-7", False), ("LaMP-4", True)])
def test_methods_that_ask_a_model_write_for_every_target(tmp_path: Path, name: str, task: str, dated: bool) -> None:
    data = dataset(tmp_path, task, dated)
    method = registry.load("method", name)()
    ctx = over(data)
    method.fit(data.train, data.dev, ctx)
    requests = method.requests(data.test.examples, ctx)
    assert [request.example_id for request in requests] == [example.id for example in data.test.examples]
    prompts = " ".join(message.content for request in requests for message in request.messages)
    assert not [text for text in data.test.references.values() if text in prompts]


@pytest.mark.parametrize("name", TRAINED)
def test_methods_that_train_write_for_every_target(tmp_path: Path, name: str, engine: HFEngine) -> None:
    data = dataset(tmp_path, "LaMP-5", False)
    method = registry.load("method", name)
    made = method(method.Config(**TRAINED[name]))
    ctx = over(data, engine)
    made.fit(data.train, data.dev, ctx)
    (tmp_path / "fit").mkdir()
    made.save(tmp_path / "fit")
    loaded = method(made.config)
    loaded.load(tmp_path / "fit", ctx)
    requests = loaded.requests(data.test.examples, ctx)
    assert len(engine.run(requests).generations) == len(data.test)


@pytest.mark.parametrize("dated", [False, True])
def test_dep_finds_peers_by_content_where_items_have_none(tmp_path: Path, dated: bool) -> None:
    data = dataset(tmp_path, "LaMP-4", dated)
    ctx = over(data)
    for source, found in (("content", True), ("item", False)):
        config = DepConfig(peer_source=source, n_history=2)
        several = prepare_prompts(data.test.examples, config, ctx, ctx.encoder.encode)
        assert [flag for one in several for flag in one.vectors.has_peers.tolist()] == [found] * 2 * len(data.test)


def test_dep_in_paper_mode_has_no_peers_there(tmp_path: Path) -> None:
    data = dataset(tmp_path, "LaMP-4", True)
    ctx = over(data)
    several = prepare_prompts(data.test.examples, DepConfig(mode="paper"), ctx, ctx.encoder.encode)
    assert [one.slots for one in several] == [0] * len(data.test)


def test_mean_peer_falls_back_on_the_users_own_latest(tmp_path: Path) -> None:
    data = dataset(tmp_path, "LaMP-7", False)
    method = registry.load("method", "mean-peer")()
    answers = method.answer(data.test.examples, over(data))
    assert answers == [example.history[-1].text for example in data.test.examples]


def test_a_dry_run_says_that_nobody_shares_an_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = world.write_lamp(tmp_path)
    code, out, _ = call(["run", "--engine", "fake", "--dataset", spec, "--methods", "rag", "--dry-run"], capsys)
    assert code == 0
    said = " ".join(out.split())
    assert "nobody else wrote about the article of any of them" in said
    assert "--set dep.peer_source=content" in said
    assert "Headline" not in said.partition("first prompt")[0]
    code, out, _ = call(["run", "--engine", "fake", "--dataset", "planted", "--methods", "rag", "--dry-run"], capsys)
    assert "nobody else" not in out


def test_a_later_target_of_anybody_is_nobodys_peer(tmp_path: Path) -> None:
    """Without times all documents are open, so no target may be among them, train or not."""
    data = dataset(tmp_path, "LaMP-4", False)
    written = {text for split in (data.train, data.dev, data.test) for text in split.references.values()}
    assert not written & {document.text for document in data.population.documents()}
    renamed = replace(data.test.examples[0], user_id="somebody")
    assert data.population.history(renamed.user_id, None) == []
