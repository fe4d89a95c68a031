"""Published tables run again: figures as published, ours as the leaderboard has them, at the scale that is told."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_world import call

from bench import experiments, paper, registry
from bench.errors import UnknownName, UsageError
from bench.experiments import load, read_published
from bench.papertable import Block, paper_table
from bench.plan import make_plan
from bench.runner import execute
from bench.store import find_runs
from bench.tables import leaderboards
from bench.workload import workloads

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("dep-table1", "dpl-table1")
SMALL = ("--laptop", "--engine", "fake", "--limit", "3", "--metrics", "rouge1,bleu", "--set", "planted.users=14")
PROMPTED = ("--methods", "nonperso,rag,dpl,oracle")


# -- what was published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_table_is_there(name: str) -> None:
    table = read_published(name)
    raw = json.loads((ROOT / "results" / "paper" / f"{name}.json").read_text())
    assert len(raw["rows"]) == len(table.rows) * len(table.datasets)
    assert set(table.figures) == {
        (size, method, dataset, metric)
        for size, method in table.rows
        for dataset in table.datasets
        for metric in table.metrics
    }
    for (_, _, _, metric), figure in table.figures.items():
        assert 0 < figure.value < (100 if metric == "bleu" else 1)
    assert "arXiv" in table.venue


def test_figures_are_those_of_the_papers() -> None:
    """Read off the papers' tables."""
    dep, dpl = read_published("dep-table1"), read_published("dpl-table1")
    assert dep.figures["7B", "DEP", "Books", "rouge1"].value == 0.3745
    assert dep.figures["7B", "DEP", "Books", "bleu"].value == 13.53
    assert dep.figures["32B", "Non-Perso", "Movies_and_TV", "bertscore"].value == 0.4702
    first = dpl.figures["", "Non-Perso", "Movies_and_TV", "rouge1"]
    assert (first.value, first.std, first.significant) == (0.2279, 0.0022, False)
    assert [name for _, name in dpl.rows][-1] == "DPL"


@pytest.mark.parametrize("name", NAMES)
def test_the_published_settings_are_a_run_that_could_be_planned(name: str) -> None:
    experiment = load(name)
    asked = paper.prepare(experiment, {})
    assert asked.scale == ()
    assert {cell.dataset for cell in asked.cells} == set(experiment.published.datasets)
    config = asked.cells[0].config
    assert (config.temperature, config.top_p, config.max_new_tokens) == (0.8, 0.95, 2048)
    assert config.model.startswith("Qwen/Qwen2.5-")
    published = {name for _, name in experiment.published.rows}
    assert set(experiment.paper.rows) == published
    assert set(config.methods) == set(experiment.paper.rows.values())


def test_a_size_brings_its_model() -> None:
    experiment = load("dep-table1")
    assert paper.prepare(experiment, {}).cells[0].config.model == "Qwen/Qwen2.5-7B-Instruct"
    asked = paper.prepare(experiment, {}, size="32B")
    assert asked.cells[0].config.model == "Qwen/Qwen2.5-32B-Instruct"
    with pytest.raises(UsageError, match="no size '70B'; it has: 7B, 32B"):
        paper.prepare(experiment, {}, size="70B")


def overrides(asked: paper.PaperRun, number: int = 0) -> list[str]:
    return list(asked.cells[number].config.overrides)


def test_all_keeps_the_published_knobs_and_a_choice_those_of_the_chosen() -> None:
    experiment = load("dep-table1")
    every = overrides(paper.prepare(experiment, {"methods": ["all"]}))
    assert every == list(experiment.run["overrides"])
    assert 'dep.mode="paper"' in every
    some = overrides(paper.prepare(experiment, {"methods": ["rag"], "metrics": ["rouge1"]}))
    assert some == ["rag.k=8", 'rag.retriever="bm25"']


def test_the_scale_tells_what_counts_in_the_end() -> None:
    experiment = load("dep-table1")
    given = {"methods": ["rag"], "overrides": ["rag.k=8"]}
    assert not [one for one in paper.prepare(experiment, given).scale if one.startswith("knobs")]
    told = paper.prepare(experiment, given, laptop=True).scale[-1]
    assert told == "knobs bertscore.model=minilm"
    told = paper.prepare(experiment, {"methods": ["rag"]}, laptop=True).scale[-1]
    assert told == "knobs rag.k=4, bertscore.model=minilm"
    two = {"methods": ["rag"], "overrides": ["a.users=3", "b.users=4"]}
    asked = paper.prepare(experiment, two, datasets=["Books=x/a.toml", "CDs_and_Vinyl=x/b.toml"])
    assert asked.scale[-1] == "knobs a.users=3, b.users=4"
    assert overrides(asked, 0)[-1] == "a.users=3"
    assert overrides(asked, 1)[-1] == "b.users=4"


def edited(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = (ROOT / "experiments" / f"{name}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_changed_copy_is_another_scale(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "dep-table1",
        ("max_new_tokens = 2048", "max_new_tokens = 16"),
        ("k = 8", "k = 2"),
        ("[set.pag]", "[set.planted]\nusers = 14\n\n[set.fake]\nmax_batch = 2\n\n[set.pag]"),
    )
    asked = paper.prepare(load(str(path)), {"engine": "fake", "methods": ["rag"]}, datasets=["planted"])
    assert "new tokens 16 (published: 2048)" in asked.scale
    assert asked.scale[-1] == "knobs rag.k=2, planted.users=14, fake.max_batch=2"
    elsewhere = paper.prepare(load(str(path)), {"methods": ["rag"], "engine": "hf"}, datasets=["Books"])
    assert not {"planted", "fake"} & {one.partition(".")[0] for one in overrides(elsewhere)}
    assert paper.prepare(load(str(edited(tmp_path, "dep-table1"))), {}).scale == ()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('metrics = ["rouge1", "meteor", "bleu", "bertscore"]', "", "has no metrics"),
        ('methods = ["nonperso", "rag", "pag", "dpl", "pplug", "dep"]', "", "has no methods"),
        ('methods = ["nonperso", "rag", "pag", "dpl", "pplug", "dep"]', "methods = 3", "methods = 3 is not valid"),
        ('metrics = ["rouge1", "meteor", "bleu", "bertscore"]', "metrics = [{a = 1}]", "is not valid"),
        ('model = "Qwen/Qwen2.5-7B-Instruct"', 'model = "smollm2-135m"', "is none of paper.sizes"),
    ],
)
def test_a_copy_that_no_run_can_be_made_of(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = edited(tmp_path, "dep-table1", (old, new))
    with pytest.raises(UsageError, match=told) as raised:
        load(str(path))
    assert str(path) in str(raised.value)


# -- ours beside it ----------------------------------------------------------------------------------------------------


def rows_of(out: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["group"], row["method"]): row for row in json.loads(out)}


def test_paper_and_ours_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dep-table1", *SMALL, *PROMPTED, "--datasets", "planted,Books=planted", "--out", tmp_path]
    code, out, err = call([*command, "--format", "json"], capsys)
    assert code == 0, err
    found = rows_of(out)
    board = {row["method"]: row for row in json.loads(_table(tmp_path, capsys))}
    raw = json.loads((ROOT / "results" / "paper" / "dep-table1.json").read_text())
    books = {(r["size"], r["method"]): r for r in raw["rows"] if r["dataset"] == "Books"}
    title = "Books, ours on planted"
    for label, method in (("Non-Perso", "nonperso"), ("RAG", "rag"), ("DPL", "dpl")):
        metrics = found[title, f"{label} (7B)"]["metrics"]
        for metric in ("rouge1", "bleu"):
            ours, published = board[method]["metrics"][metric], books["7B", label][metric]
            assert metrics[f"{metric}_paper"]["value"] == published
            assert metrics[f"{metric}_ours"]["value"] == ours["value"]
            assert metrics[f"{metric}_ours"]["low"] == ours["low"]
            assert metrics[f"{metric}_diff"]["value"] == pytest.approx(ours["value"] - published)
        assert found["planted", f"{label} (7B)"]["metrics"]["rouge1_paper"]["value"] is None
        assert found[title, f"{label} (32B)"]["metrics"]["rouge1_ours"]["value"] is None
        assert found[title, f"{label} (32B)"]["metrics"]["rouge1_paper"]["value"] == books["32B", label]["rouge1"]
    assert found[title, "DEP (7B)"]["metrics"]["rouge1_ours"]["value"] is None
    assert found[title, "oracle"]["metrics"]["rouge1_paper"]["value"] is None
    assert found[title, "oracle"]["metrics"]["rouge1_ours"]["value"] == board["oracle"]["metrics"]["rouge1"]["value"]

    code, again, err = call([*command, "--format", "json"], capsys)
    assert again == out
    assert err.count("taken as it is") == 2 * 4  # both blocks are on the same data


def _table(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    code, out, err = call(["table", folder, "--json"], capsys)
    assert code == 0, err
    return out


def test_the_heading_tells_the_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dpl-table1", *SMALL, "--methods", "nonperso,rag", "--datasets", "Books=planted"]
    for form in ("console", "markdown", "latex", "csv", "html"):
        code, out, err = call([*command, "--out", tmp_path, "--format", form], capsys)
        assert code == 0, err
        assert "0.2711" in out  # Non-Perso on Books
        if form == "csv":
            continue
        assert "ours at another scale: engine fake, model smollm2-135m, encoder minilm" in out
        assert "test users 3 (published: all)" in out
        told = " ".join(out.split())
        assert "ours minus paper" in told
        assert "0.0058" in out  # its standard deviation
        assert "Not measured here: meteor, judge" in told.replace("\\", "").replace("{", "").replace("}", "")


def test_runs_of_another_dataset_do_not_reach_the_table(tmp_path: Path) -> None:
    """A block shows the runs it is given, and all its figures are theirs."""
    experiment = load("dpl-table1")
    given = {"methods": ["nonperso"], "engine": "fake", "limit": 2, "metrics": ["rouge1"], "out": tmp_path}
    asked = paper.prepare(experiment, {**given, "overrides": ["planted.users=14"]}, datasets=["planted"])
    runs = execute(make_plan(asked.cells[0].config), report=lambda line: None)
    table = paper_table(experiment, "", asked.scale, [Block("planted", None, runs, ["rouge1"])], resamples=50)
    (board,) = leaderboards(find_runs(tmp_path).runs, resamples=50)
    ours = {row.cells[0].value: row.cells[2].value for row in table.sections[0].rows}
    assert ours.pop("Non-Perso") == board.sections[0].rows[0].cells[1].value
    assert set(ours.values()) == {None}


# -- what it would take ------------------------------------------------------------------------------------------------


def test_a_dry_run_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dep-table1", *SMALL, *PROMPTED, "--seeds", "0,1", "--datasets", "planted", "--out", tmp_path]
    code, out, err = call([*command, "--dry-run"], capsys)
    assert code == 0, err
    assert not list(tmp_path.iterdir())
    config = make_plan(
        paper.prepare(
            load("dep-table1"),
            {
                "engine": "fake",
                "limit": 3,
                "metrics": ["rouge1", "bleu"],
                "methods": ["nonperso", "rag", "dpl", "oracle"],
                "overrides": ["planted.users=14"],
                "seeds": [0, 1],
            },
            datasets=["planted"],
            laptop=True,
        )
        .cells[0]
        .config
    )
    prompts = 2 * sum(stage.prompts for load_ in workloads(config) for stage in load_.stages)
    assert f"in all: 8 runs, {prompts:,} prompts" in out
    assert prompts >= 2 * (3 + 3 + 3)
    assert "oracle: 2 runs, no model" in out
    assert "assumed for 135m parameters" in out


def test_rates_are_the_roofline_of_the_named_size() -> None:
    rates = paper.assumed_rates("Qwen/Qwen2.5-7B-Instruct")
    assert rates is not None
    assert rates.read == pytest.approx(0.4 * 989e12 / 14e9)
    assert rates.write == pytest.approx(0.5 * 3.35e12 / 14e9 * 32)
    takes = paper.Takes(read=10**6, written=10**5, trained=10**6)
    assert rates.hours(takes) == pytest.approx((3e6 / rates.read + 1e5 / rates.write) / 3600)
    small = paper.assumed_rates("smollm2-135m")
    assert small is not None
    assert small.read == pytest.approx(0.4 * 989e12 / 270e6)
    assert paper.assumed_rates("my-model") is None
    assert paper.assumed_rates("qwen2.5") is None


def test_measured_rates_are_those_of_the_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = paper.prepare(load("dep-table1"), {"out": tmp_path, "model": "m"}).cells[0].config
    assert paper.measured_rates(config) is None

    class Run:
        def __init__(self, model: str, *numbers: float) -> None:
            names = ("prompt_tokens", "prefill_seconds", "output_tokens", "decode_seconds")
            self.totals = dict(zip(names, numbers, strict=True))
            self.description = {"engine": {"name": "hf", "model": model, "device": "cpu"}}

    class Listing:
        runs = (
            *(Run("m", 1000, 2, 300, 3), Run("m", 2000, 1, 100, 1)),
            *(Run("other", 9e9, 1, 9e9, 1), Run("m", 0, 0, 0, 0)),
        )

    monkeypatch.setattr(paper, "find_runs", lambda _: Listing)
    monkeypatch.setattr(paper, "_label", lambda model: model)
    rates = paper.measured_rates(config)
    assert rates is not None
    assert (rates.read, rates.write) == (1000, 100)
    assert math.isclose(rates.hours(paper.Takes(read=3_600_000)), 1)
    assert "measured in 2 runs" in rates.source


def test_a_dry_run_leaves_out_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dep-table1", *SMALL, "--datasets", "planted", "--out", tmp_path]
    assert call([*command, "--methods", "nonperso,rag"], capsys)[0] == 0
    code, out, err = call([*command, "--methods", "nonperso,rag,dpl", "--seeds", "0,1", "--dry-run"], capsys)
    assert code == 0, err
    assert "nonperso: 1 runs, 3 prompts" in out
    assert out.count("(1 more are there already)") == 2
    assert "in all: 4 runs" in out
    code, out, err = call([*command, "--methods", "rag", "--max-new-tokens", "5", "--dry-run"], capsys)
    assert "in all: 1 runs" in out


def test_only_what_was_asked_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what an earlier call scored, perhaps with another model."""
    command = ["paper", "dep-table1", *SMALL, "--methods", "rag", "--datasets", "planted", "--out", tmp_path]
    assert call(command, capsys)[0] == 0
    code, out, _ = call([*command, "--metrics", "bleu", "--format", "json"], capsys)
    assert code == 0
    rag = rows_of(out)["planted", "RAG (7B)"]["metrics"]
    assert rag["bleu_ours"]["value"] is not None
    assert rag["rouge1_ours"]["value"] is None


def test_seeds_have_their_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dep-table1", *SMALL, "--methods", "rag", "--datasets", "planted", "--out", tmp_path]
    code, out, err = call([*command, "--seeds", "0,1"], capsys)
    assert code == 0, err
    assert "] sd 0." in out


def test_a_mistake_in_a_dry_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "dep-table1", *SMALL, *PROMPTED, "--out", tmp_path]
    for wrong in (["--datasets", "planted,Books=missing.toml"], ["--datasets", "planted", "--set", "rag.kk=3"]):
        for dry in ([], ["--dry-run"]):
            code, out, err = call([*command, *wrong, *dry], capsys)
            assert (code, out) == (2, "")
            assert "missing.toml does not exist" in err or "did you mean 'k'" in err
    assert not list(tmp_path.rglob("records.jsonl"))


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dep-tabel1"], "did you mean 'dep-table1'"),
        (["dep-table1", "--datasets", "Book=planted"], "has no dataset 'Book'; it has: Books"),
        (["dep-table1", "--datasets", "planted,planted"], "gives planted twice"),
        (["dep-table1", "--datasets", "x/my.toml,y/my.toml"], "gives my twice; once is enough, and files need names"),
        (["dep-table1", "--metrics", "copy_rate"], "unknown metric of dep-table1 'copy_rate'"),
        (["dep-table1", "--metrics", ""], "--metrics names none; the table has: rouge1"),
        (["dep-table1", "--size", "70B"], "no size '70B'"),
        (["dep-table1", "--seeds", "one"], "--seeds"),
        (["dep-table1", *SMALL, "--methods", "rga", "--datasets", "planted"], "did you mean 'rag'"),
        (["all-methods"], "has no table [paper]; run it with: python -m bench run --config"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(["paper", *arguments, "--out", tmp_path], capsys)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_broken_experiment_names_the_key(tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "dpl-table1.toml").read_text()
    for old, new, error, told in (
        ('CICL = "cicl"', 'CIRCL = "cicl"', UnknownName, "paper.rows"),
        ("[paper.laptop]", "[paper.laptop]\nbatch = 3", UnknownName, "batch"),
        ('figures = "dpl-table1"', 'figures = "dpl-table9"', UnknownName, "dpl-table9"),
        ('Books = "amazon-books"', "Books = 3", UsageError, "paper.datasets"),
    ):
        assert old in text
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(old, new))
        with pytest.raises(error) as raised:
            experiments.load(str(path))
        assert told in str(raised.value)


def test_every_experiment_here_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((ROOT / "experiments").glob("*.toml"))
    assert {file.stem for file in files} == {"all-methods", *NAMES}
    for file in files:
        small = [
            "--dataset",
            "planted",
            "--model",
            "smollm2-135m",
            "--encoder",
            "minilm",
            "--limit",
            "1",
            "--out",
            tmp_path,
        ]
        plan = ["--metrics", "rouge1", "--max-prompt-tokens", "1024", "--train-limit", "2", "--dry-run"]
        code, out, err = call(["run", "--config", file, *small, *plan], capsys)
        assert code == 0, err
        assert out.count("\n== ") == len(make_methods(file))


def make_methods(file: Path) -> list[str]:
    """What a file's methods come to on planted."""
    named = tomllib.loads(file.read_text())["methods"]
    return registry.names("method") if named == ["all"] else named
