"""An exported DEP in a notebook: it writes what the run wrote, takes what people have, and tells what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from export_world import case, make_runs, row, target, tiny_encoder, tiny_parts
from test_dep_inputs import ASKED, peer, review
from tiny_engine import lively_model, one_thread

import methods.dep
from bench.config import build
from bench.data.split import Dataset
from bench.encoders import HashEncoder
from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.evidence import no_network
from bench.export import export
from bench.keys import text_digest
from bench.plan import RunConfig, dataset_of
from bench.types import Example
from methods.dep import Writer
from methods.dep.inputs import make_case

__all__ = ["one_thread"]


@dataclass(frozen=True)
class Made:
    """Runs of one fit, exported, and the data behind them."""

    greedy: Path
    sampled: Path
    texts: dict[str, dict[str, str]]
    """"greedy" or "sampled" -> example id -> stored text."""
    prompts: dict[str, str]
    """Example id -> hash of the stored run's prompt."""
    dataset: Dataset
    parts: dict[str, Any]
    root: Path

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.dataset.test.examples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEP_BENCH_CACHE", str(folder / "cache"))
        parts = tiny_parts(folder)
        runs = {
            name: make_runs(folder / "runs", parts, temperature=temperature)[0]
            for name, temperature in (("greedy", 0.0), ("sampled", 0.8))
        }
        for name, run in runs.items():
            export(run.path, folder / name)
        make_runs(folder / "runs", parts, ("lora",))
        texts = {name: {r["example_id"]: r["text"] for r in run.records} for name, run in runs.items()}
        prompts = {r["example_id"]: r["prompt_sha256"] for r in runs["greedy"].records}
        dataset = dataset_of(build(RunConfig, runs["greedy"].plan["about"]["config"], "test"))
        yield Made(folder / "greedy", folder / "sampled", texts, prompts, dataset, parts, folder)


@pytest.fixture(scope="module")
def writer(made: Made) -> Writer:
    return methods.dep.load(made.greedy, **made.parts)


# -- the same as the run ----------------------------------------------------------------------------------------------


def test_it_writes_what_the_run_wrote(made: Made, writer: Writer) -> None:
    for example in made.examples:
        assert writer.write(*case(example, made.dataset)) == made.texts["greedy"][example.id]
    assert len(set(made.texts["greedy"].values())) > 1


def test_many_at_once_are_what_the_run_wrote_greedy_and_sampled(made: Made) -> None:
    cases = [case(example, made.dataset) for example in made.examples]
    for folder, name in ((made.greedy, "greedy"), (made.sampled, "sampled")):
        texts = methods.dep.load(folder, **made.parts).write_many(cases)
        assert texts == [made.texts[name][example.id] for example in made.examples]
    assert made.texts["greedy"] != made.texts["sampled"]


def test_prompts_and_soft_tokens_are_those_of_the_run(made: Made, writer: Writer) -> None:
    from dataclasses import replace

    ctx = replace(writer.ctx, population=made.dataset.population)
    theirs = writer.method.requests(made.examples, ctx)
    for example, other in zip(made.examples, theirs, strict=True):
        one = make_case(*case(example, made.dataset))
        mine = writer.method.requests([one.example], replace(ctx, population=one.population))[0]
        assert one.example == example
        assert (mine.messages, mine.seed) == (other.messages, other.seed)
        joined = "\n".join(f"{m.role}: {m.content}" for m in mine.messages)
        assert text_digest(joined) == made.prompts[example.id]
        assert mine.soft.keys() == other.soft.keys()
        for name, matrix in mine.soft.items():
            np.testing.assert_allclose(np.asarray(matrix), np.asarray(other.soft[name]), atol=1e-6)


def test_the_order_of_rows_changes_nothing(made: Made, writer: Writer) -> None:
    example = made.examples[0]
    reviews, peers, asked = case(example, made.dataset)
    assert writer.write(reviews[::-1], peers[::-1], asked) == made.texts["greedy"][example.id]


def test_data_frames_are_lists_of_dicts(made: Made, writer: Writer) -> None:
    example = made.examples[0]
    reviews, peers, asked = case(example, made.dataset)
    frames = pd.DataFrame(reviews), pd.DataFrame(peers)
    frames[0]["timestamp"] = pd.to_datetime(frames[0]["timestamp"], unit="ms")
    frames[1]["item_description"] = None
    text = writer.write(*frames, pd.DataFrame([asked]).iloc[0])
    assert text == made.texts["greedy"][example.id]


def test_it_needs_neither_network_nor_pickles(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)
    with no_network() as attempts:
        fresh = methods.dep.load(made.greedy, **made.parts)
        assert fresh.write(*case(made.examples[0], made.dataset)) == made.texts["greedy"][made.examples[0].id]
    assert attempts == []


def test_folders_are_found_by_the_names_of_the_run(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.root)  # which holds both models under the names they had
    fresh = methods.dep.load("greedy", device="cpu")
    assert fresh.write(*case(made.examples[0], made.dataset)) == made.texts["greedy"][made.examples[0].id]


def test_models_that_are_loaded_serve_again(made: Made, writer: Writer) -> None:
    other = methods.dep.load(made.sampled, model=writer.ctx.engine, encoder=writer.ctx.encoder)  # type: ignore[arg-type]
    assert other.ctx.engine is writer.ctx.engine
    assert (
        other.write(*case(made.examples[0], made.dataset), temperature=0) == made.texts["greedy"][made.examples[0].id]
    )


# -- options ----------------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_text_and_another_seed_another(made: Made, writer: Writer) -> None:
    one = case(made.examples[0], made.dataset)
    texts = [writer.write(*one, temperature=1.0, top_p=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    short = writer.write(*one, max_new_tokens=3)
    assert made.texts["greedy"][made.examples[0].id].startswith(short)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": -1}, "options.temperature"),
        ({"temperature": math.nan}, "options.temperature"),
        ({"top_p": 0}, "options.top_p"),
        ({"max_new_tokens": 0}, "options.max_new_tokens"),
        ({"seed": "x"}, "options.seed"),
    ],
)
def test_options_are_checked(made: Made, writer: Writer, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        writer.write([], [], {"item_title": "Thing"}, **options)


@pytest.mark.parametrize("reviews", [[], None, [review("A")], [review(f"I{i}", f"text {i}") for i in range(40)]])
def test_any_number_of_reviews_is_enough(writer: Writer, reviews: Any) -> None:
    assert isinstance(writer.write(reviews, [peer("A")], ASKED), str)


def test_cases_are_triples(writer: Writer) -> None:
    with pytest.raises(UsageError, match=r"cases\[1\] is not of the form"):
        writer.write_many([([], [], ASKED), ([], ASKED)])  # type: ignore[list-item]
    assert writer.write_many([]) == []


# -- explain ----------------------------------------------------------------------------------------------------------


def test_it_explains_without_the_language_model(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFEngine, "load", lambda self: pytest.fail("the model was loaded"))
    fresh = methods.dep.load(made.greedy, **made.parts)
    reviews = [review(f"Item {i}", f"Short text {i}.", item_id=f"i{i}") for i in range(5)]
    told = fresh.explain(reviews, [peer("Item 4"), peer("Item 2")], ASKED)
    assert [shown.item_title for shown in told.reviews] == ["Item 4", "Item 3", "Item 2"]
    assert [shown.has_peers for shown in told.reviews] == [True, False, True]
    one = make_case(reviews, [peer("Item 4"), peer("Item 2")], ASKED)
    soft = fresh.method.requests([one.example], fresh._context(one, methods.dep.loading.Options()))[0].soft
    for number, shown in enumerate(told.reviews, 1):
        assert set(shown.norms) == {"history", "difference"}
        for kind, norm in shown.norms.items():
            assert norm == pytest.approx(float(np.sqrt((np.asarray(soft[f"{kind} {number}"]) ** 2).sum())))
    assert fresh.method.module is not None
    no_peers = fresh.method.module.no_peers
    assert no_peers is not None
    assert told.reviews[1].norms["difference"] == pytest.approx(float(no_peers.detach().norm()), rel=1e-5)
    assert "⟦history 1⟧" in str(told)
    assert "2. Item 3: history" in str(told)
    assert "(no peers)" in str(told)


# -- loading ----------------------------------------------------------------------------------------------------------


def spoiled(made: Made, tmp_path: Path, *keys: str, value: Any) -> Path:
    """A copy of the export with one value of its config changed."""
    folder = Path(shutil.copytree(made.greedy, tmp_path / "spoiled"))
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_no_export_of_a_dep(made: Made, tmp_path: Path) -> None:
    (lora,) = (path.parent for path in (made.root / "runs" / "planted" / "lora").glob("*/manifest.json"))
    export(lora, tmp_path / "lora")
    (fit,) = (made.root / "runs" / "planted" / "dep").glob("fit-*/")
    for folder, words in (
        (tmp_path / "nowhere", "is no export of a DEP"),
        (tmp_path, "is no export of a DEP"),
        (fit, "is not of an export"),
        (tmp_path / "lora", "holds a 'lora', not a DEP"),
    ):
        with pytest.raises(UsageError, match=words):
            methods.dep.load(folder, **made.parts)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("bench", "format"), 99, "has format 99"),
        (("bench", "task"), None, "damaged \\(at task\\)"),
        (("bench", "sampling", "temperature"), "x", "damaged \\(at sampling"),
        (("hidden_size",), None, "damaged \\(at hidden_size\\)"),
        (("bench", "files"), {}, "adapter.safetensors is missing or not the file"),
        (("bench", "method", "config"), {"n_histry": 3}, "did you mean 'n_history'"),
        (("bench", "method", "config"), {"shuffle": "vectors"}, "is a control"),
        (("bench", "task", "fields"), [{"name": "article", "label": "Article"}], "learned to write reviews"),
        (("bench", "method", "config"), {"latent_size": 9}, "does not fit config.json"),
        (("bench", "engine", "model"), "gone", "load\\(..., model=FOLDER\\)"),
        (("bench", "encoder", "name"), "gone", "load\\(..., encoder=FOLDER\\)"),
    ],
)
def test_a_config_that_was_changed(made: Made, tmp_path: Path, keys: tuple[str, ...], value: Any, words: str) -> None:
    folder = spoiled(made, tmp_path, *keys, value=value)
    parts = {} if value == "gone" else made.parts
    if keys[-2:] == ("encoder", "name"):
        parts = {"model": made.parts["model"]}
    with pytest.raises(UsageError, match=words) as told:
        methods.dep.load(folder, **parts)
    assert "\n" not in str(told.value)


def test_weights_that_were_cut_short(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.greedy, tmp_path / "cut"))
    data = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(data[:-1])
    with pytest.raises(UsageError, match="missing or not the file that was exported"):
        methods.dep.load(folder, **made.parts)


def test_models_of_another_size(made: Made, tmp_path: Path) -> None:
    wide = lively_model(tmp_path / "wide", hidden_size=64, head_dim=16)
    with pytest.warns(UserWarning, match="revision"), pytest.raises(UsageError, match=r"hidden size 64, .* of 32"):
        methods.dep.load(made.greedy, model=wide, encoder=made.parts["encoder"])
    with pytest.raises(UsageError, match=r"vectors of 16 numbers, .* takes 32"):
        methods.dep.load(made.greedy, model=made.parts["model"], encoder=HashEncoder(16))


def test_models_with_other_weights_are_told(made: Made, tmp_path: Path) -> None:
    other = lively_model(tmp_path / "other", seed=5)
    with pytest.warns(UserWarning, match="model 'other' has revision"):
        methods.dep.load(made.greedy, model=other, encoder=made.parts["encoder"])
    tiny_encoder(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("more\n")
    with pytest.warns(UserWarning, match="encoder 'bert' has revision"):
        methods.dep.load(made.greedy, model=made.parts["model"], encoder=tmp_path / "bert")


def test_another_version_of_dep_is_told(made: Made, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path, "bench", "method", "version", value="0")
    with pytest.warns(UserWarning, match="version 0 of dep"):
        methods.dep.load(folder, **made.parts)


def test_a_device_that_is_not_there(made: Made) -> None:
    with pytest.raises(UsageError, match=r"load\.device = 'gpu'"):
        methods.dep.load(made.greedy, **made.parts, device="gpu")


def test_rows_of_the_world_are_whole(made: Made) -> None:
    example = made.examples[0]
    assert set(row(example.history[0])) == {*target(example), "text"}
