"""Run configs from files, and resolved ones that can be run again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE, TINY, call
from hypothesis import given
from hypothesis import strategies as st

from bench.config import build
from bench.configfile import CONFIGS, keep, merged, read_config, resolved, run_values, toml_text
from bench.data.spec import spec_files
from bench.errors import DataError, UnknownName, UsageError
from bench.plan import RunConfig, make_plan

Text = st.text(st.characters(exclude_categories=["Cs"]))
Plain = Text | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), Plain | st.lists(Plain, max_size=30)))
def test_what_is_written_is_what_a_toml_reader_reads(values: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(values)) == values


def again(text: str) -> RunConfig:
    return build(RunConfig, run_values(tomllib.loads(text), "a file"), "run")


def config(tmp_path: Path, **given: Any) -> RunConfig:
    base = {"methods": ("nonperso",), "engine": "fake", "metrics": ("rouge1",), "limit": 2, "out": tmp_path / "runs"}
    overrides = ("planted.users=12", "planted.items=20", *given.pop("overrides", ()))
    return build(RunConfig, {**base, **given, "overrides": overrides}, "run")


@pytest.mark.parametrize(
    "given",
    [
        {"methods": ("nonperso", "rag"), "overrides": ("rag.retriever=recency", "rag.k=2"), "seeds": (3, 1)},
        {"methods": ("all",), "metrics": None},
        {"methods": ("dpl", "copy-nearest"), "temperature": 0.0, "train_limit": 3, "existing": "overwrite"},
        {"methods": ("rag",), "overrides": ("fake.max_batch=3",)},
    ],
)
def test_a_resolved_plan_is_the_plan_again(tmp_path: Path, given: dict[str, Any]) -> None:
    plan = make_plan(config(tmp_path, **given))
    text = toml_text(resolved(plan))
    other = make_plan(again(text))
    assert [(p.title, p.method.config) for p in other.planned] == [(p.title, p.method.config) for p in plan.planned]
    assert [m.signature() for m in other.metrics] == [m.signature() for m in plan.metrics]
    assert other.dataset.fingerprint == plan.dataset.fingerprint
    assert other.dataset.selection == plan.dataset.selection
    assert other.engine.config == plan.engine.config
    same = ("seeds", "limit", "train_limit", "temperature", "out", "sampling")
    assert [getattr(other.config, key) for key in same] == [getattr(plan.config, key) for key in same]
    assert toml_text(resolved(other)) == text
    assert "existing" not in text  # to run again is not to start over


def test_a_knob_of_none_survives(tmp_path: Path) -> None:
    """TOML has no null, so knobs stand as --set takes them."""
    plan = make_plan(config(tmp_path, methods=("persona-db",)))
    lines = resolved(plan)["set"]
    assert {line.partition("=")[0] for line in lines} > {"persona-db.k", "fake.max_batch"}
    nulled = run_values({"set": ["dep.max_peers=null"]}, "f")
    assert nulled == {"overrides": ["dep.max_peers=null"]}


def test_tables_and_lists_say_the_same() -> None:
    tables = tomllib.loads('[set.rag]\nk = 2\nretriever = "bm25"\n[set."copy-nearest"]\nretriever = "dense"\n')
    lists = {"set": ["rag.k=2", 'rag.retriever="bm25"', 'copy-nearest.retriever="dense"']}
    assert run_values(tables, "a") == run_values(lists, "b")


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("methods = [", DataError, "not valid TOML"),
        ('metods = ["rag"]', UnknownName, "did you mean 'methods'"),
        ("dry_run = true", UnknownName, "dry_run"),
        ("limit = true", UsageError, "limit = true is not a number"),
        ("set = 3", UsageError, "neither a list of NAME.KEY=VALUE nor tables"),
        ("[set]\nk = 3", UsageError, "neither a list of NAME.KEY=VALUE nor tables"),
        ("[set.rag]\nk = 2020-01-01", UsageError, "set.rag.k"),
        ("[set.rag]\nk = nan", UsageError, "set.rag.k"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, text: str, error: type[Exception], told: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(error) as raised:
        read_config(path)
    assert told in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_flags_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'methods = ["nonperso", "rag"]\nengine = "fake"\nlimit = 4\nmetrics = ["rouge1"]\n'
        f"out = {json.dumps(str(tmp_path / 'runs'))}\n"
        "[set.planted]\nusers = 12\nitems = 20\n[set.rag]\nk = 3\n"
    )
    code, out, err = call(["run", "--config", path, "--limit", "2", "--set", "rag.k=1"], capsys)
    assert code == 0, err
    assert "2 examples of 2 users" in out
    assert "rag (k=1)" in out
    (kept,) = (tmp_path / "runs" / CONFIGS).iterdir()
    assert err.endswith(f"again: python -m bench run --config {kept}\n")
    code, out_again, err = call(["run", "--config", kept], capsys)
    assert code == 0
    assert out_again == out
    assert err.count("taken as it is") == 2
    assert [p.name for p in (tmp_path / "runs" / CONFIGS).iterdir()] == [kept.name]


def test_a_spec_file_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "mine.toml"
    spec.write_text(spec_files()["planted"].read_text().replace('name = "planted"', 'name = "mine"'))
    monkeypatch.chdir(tmp_path)
    knobs = ("mine.users=13", "mine.items=20")
    plan = make_plan(config(tmp_path).model_copy(update={"dataset": "mine.toml", "overrides": knobs}))
    text = keep(plan).read_text()
    monkeypatch.chdir("/")
    other = make_plan(again(text))
    assert other.dataset.fingerprint == plan.dataset.fingerprint


@pytest.mark.parametrize("arguments", [["run"], ["run", "--config", "nowhere.toml"]])
def test_without_methods_or_file_nothing_runs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(arguments, capsys)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_plain_run_keeps_its_config_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call([*FAKE, "--methods", "nonperso", "--limit", "2", "--out", tmp_path], capsys)
    assert code == 0, err
    (kept,) = (tmp_path / CONFIGS).iterdir()
    assert tomllib.loads(kept.read_text())["set"][-1] == TINY[-1]


def test_what_flags_leave_out_takes_its_knobs_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'methods = ["rag", "dpl"]\ndataset = "planted"\nengine = "fake"\n'
        'set = ["rag.k=3", "dpl.k=2", "bertscore.batch_size=8", "planted.users=12", "fake.max_batch=2", "typo.k=1"]\n'
    )
    flags = {"methods": ["rag", "pag"], "overrides": ["rag.k=1"]}
    kept = ["rag.k=3", "bertscore.batch_size=8", "planted.users=12", "fake.max_batch=2", "typo.k=1", "rag.k=1"]
    assert merged(path, flags)["overrides"] == kept
    assert merged(path, {"methods": ["all"]})["overrides"] == read_config(path)["overrides"]
    assert merged(path, {"metrics": ["rouge1"]})["overrides"][-1] == "typo.k=1"
    assert "bertscore.batch_size=8" not in merged(path, {"metrics": ["rouge1"]})["overrides"]
    assert "planted.users=12" not in merged(path, {"dataset": "x/mine.toml"})["overrides"]
    assert "fake.max_batch=2" not in merged(path, {"engine": "hf"})["overrides"]
    assert merged(path, {"dataset": "planted", "engine": "fake"})["overrides"] == read_config(path)["overrides"]


def test_with_an_ablation_no_methods_knobs_are_put_aside(tmp_path: Path) -> None:
    """Its variants may be of other methods, whose knobs count."""
    path = tmp_path / "run.toml"
    path.write_text('methods = ["dep"]\nablate = ["controls"]\nset = ["lora.r=4"]\n')
    assert merged(path, {"methods": ["dep"]})["overrides"] == ["lora.r=4"]
    path.write_text('methods = ["dep"]\nset = ["lora.r=4", "planted.users=12"]\n')
    assert merged(path, {"methods": ["dep"]})["overrides"] == ["planted.users=12"]
    assert merged(path, {"dataset": "lamp-4"})["overrides"] == ["lora.r=4"]  # planted is what no file has to name


def test_knobs_of_what_all_cannot_take_are_no_mistake(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, methods=("all",), overrides=("stylevector.alpha=2.0", "dep.n_history=1")))
    assert {"stylevector", "dep"} <= set(plan.left_out)
    with pytest.raises(UnknownName, match="did you mean 'rag'"):
        make_plan(config(tmp_path, methods=("all",), overrides=("rga.k=2",)))


def test_a_wrong_type_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    for line, told in (
        ('methods = "rag"', "methods = 'rag' is not valid: Input should be a list"),
        ("out = 5", "out = 5"),
    ):
        path.write_text(line + "\n")
        code, _, err = call(["run", "--config", path], capsys)
        assert code == 2
        assert f"{path}.{told}" in err
        assert err.count("\n") == 1
