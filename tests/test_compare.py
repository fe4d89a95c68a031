"""`python -m bench compare A B`: the same figures as the statistics give, refusals, and the examples that changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_world import TINY, call, write_world
from fabricate import MODEL, make_run

from bench.__main__ import main
from bench.compare import as_console, compare_sides, report
from bench.compare.wrap import columns
from bench.errors import UnknownName, UsageError
from bench.files import file_digest
from bench.plan import dataset_of
from bench.reopen import config_of
from bench.stats import holm, paired_bootstrap, paired_permutation
from bench.store import MetricInfo, StoredRun, find_runs, read_scores

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """rag under one seed, dep under three; 12 users with two examples each."""
    make_run(tmp_path, "rag", level=0.27, missing=["e003-0"])
    for seed in range(3):
        make_run(tmp_path, "dep", level=0.3, seed=seed, missing=["e004-1"] if seed == 1 else [])
    return tmp_path / "world" / "rag", tmp_path / "world" / "dep"


def stored(folder: Path, metric: str) -> np.ndarray:
    """(seeds, examples, d), NaN where there is no value, in the order of example ids."""
    rows = []
    for run in sorted(find_runs(folder).runs, key=lambda run: run.description["seed"]):
        scores = read_scores(run)
        assert scores is not None
        values = scores.values[metric]
        width = max(len(value) for value in values.values() if value)
        rows.append([values[key] or (np.nan,) * width for key in sorted(values)])
    return np.array(rows, dtype=float)


def test_the_figures_are_those_of_the_statistics_on_what_both_have(pair: tuple[Path, Path]) -> None:
    found = compare_sides(*pair, resamples=300)
    assert [test.info.name for test in found.tests] == ["rouge1", "bleu", "copy_rate", "length_ratio"]
    users = np.repeat(np.arange(12), 2)
    raw = []
    for test in found.tests:
        a, b = stored(pair[0], test.info.name), stored(pair[1], test.info.name)
        assert (len(a), len(b)) == (1, 3)
        gone = np.isnan(np.concatenate([a, b])).any(axis=(0, 2))
        assert gone.sum() == 2
        values = {"A": a[:, ~gone], "B": b[:, ~gone]}
        options: dict[str, Any] = {"reducer": test.info.reducer, "baseline": "A"}
        expected = paired_bootstrap(values, users[~gone], resamples=300, **options)
        assert expected["B"].difference is not None
        for ours, theirs in ((test.a, expected["A"].score), (test.b, expected["B"].score)):
            assert (ours.value, ours.low, ours.high) == (theirs.value, theirs.low, theirs.high)
        assert test.difference.value == pytest.approx(test.b.value - test.a.value, abs=1e-9)  # type: ignore[operator]
        assert (test.difference.low, test.difference.high) == pytest.approx(
            (expected["B"].difference.low, expected["B"].difference.high), abs=1e-12
        )
        assert (test.spread_a, test.spread_b) == (None, expected["B"].spread)
        assert test.detectable == pytest.approx(expected["B"].detectable, rel=1e-9)
        p = paired_permutation(values, users[~gone], permutations=300, **options)["B"]
        assert test.p == p
        raw.append(p if test.info.higher_is_better is not None else None)
        if test.info.name == "rouge1":
            means = [v.mean(axis=(0, 2)) for v in values.values()]
            gaps = [(means[1] - means[0])[users[~gone] == user].mean() for user in range(12)]
            assert test.wins is not None
            assert test.wins.wins == sum(gap > 0 for gap in gaps)
            assert test.wins.wins + test.wins.losses == 12
    assert raw.count(None) == 1  # one without a good side
    ranked = [test.p_holm for test, p in zip(found.tests, raw, strict=True) if p is not None]
    assert ranked == holm([p for p in raw if p is not None])
    assert {test.p_holm for test, p in zip(found.tests, raw, strict=True) if p is None} == {None}
    assert (found.examples, found.users) == (24, 12)
    by_name = {test.info.name: test for test in found.tests}
    assert by_name["bleu"].wins is None
    assert by_name["length_ratio"].wins is None
    assert by_name["copy_rate"].wins is not None


def test_less_is_a_win_where_less_is_better(tmp_path: Path) -> None:
    for method, level in (("low", 0.1), ("high", 0.9)):
        make_run(tmp_path, method, level=level)
    found = compare_sides(tmp_path / "world" / "low", tmp_path / "world" / "high", resamples=50)
    test = next(test for test in found.tests if test.info.name == "copy_rate")
    assert test.difference.value is not None
    assert test.wins is not None
    assert (test.wins.wins > test.wins.losses) == (test.difference.value < 0)
    a, b = (
        stored(tmp_path / "world" / name, "copy_rate")[0, :, 0].reshape(12, 2).mean(axis=1) for name in ("low", "high")
    )
    assert (test.wins.wins, test.wins.losses) == ((b < a).sum(), (b > a).sum())


@pytest.mark.parametrize(
    ("changes", "path", "values"),
    [
        ({"engine": {**MODEL, "model": "other"}}, "engine.model", ("tiny-lm", "other")),
        (
            {"sampling": {"temperature": 0.0, "top_p": 0.95, "max_new_tokens": 256}},
            "sampling.temperature",
            ("0.8", "0.0"),
        ),
        ({"prompt": {"max_prompt_tokens": 2048}}, "prompt.max_prompt_tokens", ("1024", "2048")),
        (
            {"dataset": {"name": "world", "fingerprint": "f00d", "selection": {"limit": 8}}},
            "dataset.selection.limit",
            ("null", "8"),
        ),
        ({"metrics": (MetricInfo("rouge1", "rouge1|stem:yes", True),)}, "metrics.rouge1", ("stem:no", "stem:yes")),
    ],
)
def test_sides_under_other_settings_are_refused_unless_mixed(
    tmp_path: Path, capsys: Capture, changes: dict[str, Any], path: str, values: tuple[str, str]
) -> None:
    make_run(tmp_path, "rag")
    make_run(tmp_path, "dep", **changes)
    sides = [str(tmp_path / "world" / method) for method in ("rag", "dep")]
    code, out, err = call(["compare", *sides], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    told = re.search(re.escape(path) + r" \(A: (.*?), B: (.*?)\)", err)
    assert told is not None
    assert all(value in side for value, side in zip(values, told.groups(), strict=True))
    assert "--mixed" in err
    assert ("--force" in err) == path.startswith("metrics.")
    code, out, _ = call(["compare", *sides, "--mixed"], capsys)
    assert code == 0
    assert path in out


@pytest.mark.parametrize("changed", [{"fingerprint": "beef"}, {"name": "other"}])
def test_other_data_are_refused_always(tmp_path: Path, capsys: Capture, changed: dict[str, str]) -> None:
    dataset = {"name": "world", "fingerprint": "f00d", "selection": {"limit": None}}
    make_run(tmp_path, "rag")
    make_run(tmp_path, "dep", dataset={**dataset, **changed})
    runs = {run.method: run.path for run in find_runs(tmp_path).runs}
    code, out, err = call(["compare", runs["rag"], runs["dep"], "--mixed"], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    ((key, value),) = changed.items()
    assert f"dataset.{key} (A: {dataset[key]}, B: {value})" in err


def test_what_is_no_side_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"A: .* holds 2 rows \(dep, rag\); give the folder of one, such as .*world/dep$"
    ):
        compare_sides(tmp_path, pair[1])
    with pytest.raises(UsageError, match="no folder of runs"):
        compare_sides(pair[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="B: no complete run under"):
        compare_sides(pair[0], tmp_path / "empty")
    with pytest.raises(UsageError, match="the same runs"):
        compare_sides(pair[0], find_runs(pair[0]).runs[0].path)
    with pytest.raises(UnknownName, match="did you mean 'rouge1'"):
        compare_sides(*pair, metrics=["rogue1"])
    with pytest.raises(UnknownName, match="--by"):
        compare_sides(*pair, by="meteor")
    make_run(tmp_path, "pag", metrics=())
    with pytest.raises(UsageError, match="python -m bench score"):
        compare_sides(pair[0], tmp_path / "world" / "pag")


def test_seeds_of_one_method_and_knobs_are_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "dep", seed=seed)
    make_run(tmp_path, "dep", config={"n_history": 8})
    runs = {
        (r.description["seed"], r.description["method"]["config"]["n_history"]): r.path
        for r in find_runs(tmp_path).runs
    }
    text = report(compare_sides(runs[0, 2], runs[1, 2], resamples=20))
    assert "A: dep, seed 0" in text
    assert "B: dep, seed 1" in text
    text = report(compare_sides(runs[0, 2], runs[0, 8], resamples=20))
    assert "A and B differ in n_history (A: 2, B: 8)." in text


def test_without_the_data_the_tests_are_shown_and_the_reason(pair: tuple[Path, Path]) -> None:
    found = compare_sides(*pair, resamples=50)
    assert found.changes == ()
    for style in ("console", "markdown"):
        text = report(found, style)
        assert "rouge1" in text
        assert "Examples are not shown: " in " ".join(text.split())
    assert "does not say which dataset" in json.loads(report(found, "json"))["changes_left_out"]
    assert "not shown" not in report(compare_sides(*pair, resamples=50, examples=0))


# --- examples ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[StoredRun]]:
    """Real runs on a small planted world: nonperso and rag under two seeds."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        command = ["run", "--engine", "fake", "--dataset", "planted", "--metrics", "rouge1,bleu", *TINY]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--methods", "nonperso,rag", "--seeds", "0,1", "--out", str(out)])
        assert ended.value.code == 0
    found: dict[str, list[StoredRun]] = {}
    for run in find_runs(out).runs:
        found.setdefault(run.method, []).append(run)
    return found


def rows_of(runs: list[StoredRun], metric: str) -> dict[str, list[float]]:
    """Example id -> its score under each seed."""
    from bench.stats import corpus_bleu

    found: dict[str, list[float]] = {}
    for run in runs:
        scores = read_scores(run)
        assert scores is not None
        for example, value in scores.values[metric].items():
            assert value is not None
            score = value[0] if metric == "rouge1" else float(corpus_bleu(np.array(value), np.float64(1)))  # type: ignore[arg-type]
            found.setdefault(example, []).append(score)
    return found


@pytest.mark.parametrize("by", ["rouge1", "bleu"])
def test_the_examples_are_those_that_changed_most(runs: dict[str, list[StoredRun]], by: str) -> None:
    folders = [runs[method][0].path.parent for method in ("nonperso", "rag")]
    found = compare_sides(folders[0], folders[1], by=by, examples=4, resamples=20)
    assert found.left_out is None
    a, b = rows_of(runs["nonperso"], by), rows_of(runs["rag"], by)
    gaps = {example: abs(np.mean(b[example]) - np.mean(a[example])) for example in a}
    expected = sorted((gap for gap in gaps.values() if gap > 0), reverse=True)[:4]
    assert [abs(change.b - change.a) for change in found.changes] == pytest.approx(expected, abs=1e-9)
    dataset = dataset_of(config_of(runs["rag"][0]))
    asked = {example.id: example for example in dataset.test.examples}
    for change in found.changes:
        assert gaps[change.example_id] == pytest.approx(abs(change.b - change.a), abs=1e-9)
        assert change.reference == dataset.test.references[change.example_id]
        assert change.asked["Item title"] == asked[change.example_id].fields["item_title"]
        assert change.asked["Rating"] == asked[change.example_id].fields["rating"]
        assert change.asked["Review title"] == asked[change.example_id].fields["title"]
        assert "Item description" not in change.asked
        assert change.seed_a == change.seed_b
        for method, seed, text, score in (
            ("nonperso", change.seed_a, change.text_a, change.shown_a),
            ("rag", change.seed_b, change.text_b, change.shown_b),
        ):
            (run,) = (run for run in runs[method] if run.description["seed"] == seed)
            (record,) = (record for record in run.records if record["example_id"] == change.example_id)
            assert record["text"] == text
            assert score == pytest.approx(rows_of([run], by)[change.example_id][0], abs=1e-9)


def test_the_console_shows_all_of_it_in_a_hundred_columns(runs: dict[str, list[StoredRun]], capsys: Capture) -> None:
    folders = [runs[method][0].path.parent for method in ("nonperso", "rag")]
    code, out, err = call(["compare", *folders, "--examples", "3"], capsys)
    assert (code, err) == (0, "")
    found = compare_sides(folders[0], folders[1], examples=3)
    assert out == report(found)
    assert max(map(columns, out.splitlines())) <= 100
    squeezed = " ".join(out.split())
    for change in found.changes:
        assert f"Reference: {' '.join(change.reference.split())}" in squeezed
        assert f"Item title: {change.asked['Item title']}" in squeezed
        for side, text in enumerate((change.text_a, change.text_b)):
            halves = [line.partition(" | ")[2] if side else line[:48] for line in out.splitlines()]
            assert " ".join(text.split()) in " ".join(" ".join(halves).split())


def test_json_and_markdown_hold_texts_in_full(runs: dict[str, list[StoredRun]], capsys: Capture) -> None:
    folders = [runs[method][0].path.parent for method in ("nonperso", "rag")]
    found = compare_sides(folders[0], folders[1], examples=2)
    code, out, _ = call(["compare", *folders, "--examples", "2", "--json"], capsys)
    told = json.loads(out)
    assert code == 0
    assert [change["text_b"] for change in told["changes"]] == [change.text_b for change in found.changes]
    for row, test in zip(told["metrics"], found.tests, strict=True):
        assert (row["metric"], row["p"], row["p_holm"]) == (test.info.name, test.p, test.p_holm)
        assert (row["difference"]["value"], row["detectable"]) == (test.difference.value, test.detectable)
        assert (row["a"]["seed_n"], row["b"]["seed_sd"]) == (2, test.spread_b.sd if test.spread_b else None)
    _, out, _ = call(["compare", *folders, "--examples", "2", "--format", "markdown"], capsys)
    grid = [len(re.findall(r"(?<!\\)\|", line)) for line in out.splitlines() if line.startswith("|")]
    assert grid == [9] * 4 + [3] * 6


def test_hostile_texts_neither_garble_the_terminal_nor_break_the_markdown(
    runs: dict[str, list[StoredRun]], tmp_path: Path
) -> None:
    hostile = "\x1b[2J\x07 a|b `c`\r\n\n\u202egnp\u200b " + "x" * 300 + " 漢字かな" * 30 + " e\u0301" * 20
    folders = []
    for method in ("nonperso", "rag"):
        shutil.copytree(runs[method][0].path, tmp_path / method)
        folders.append(tmp_path / method)
    change = compare_sides(folders[0], folders[1], examples=1, resamples=20).changes[0]
    path = folders[1] / "records.jsonl"
    rows = [{**json.loads(line), "text": hostile} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("manifest.json", "scores.json"):
        told = json.loads((folders[1] / name).read_text())
        told["records_sha256"] = file_digest(path)
        (folders[1] / name).write_text(json.dumps(told))
    found = compare_sides(folders[0], folders[1], examples=1, resamples=20)
    assert found.changes[0].example_id == change.example_id
    assert found.changes[0].text_b == hostile
    for style in ("console", "markdown"):
        text = report(found, style)
        assert all(c == "\n" or c.isprintable() for c in text)
    assert max(map(columns, as_console(found).splitlines())) <= 100
    assert report(found, "json").isascii()
    lines = [line for line in report(found, "markdown").splitlines() if "xxx" in line]
    assert len(lines) == 1
    assert len(re.findall(r"(?<!\\)\|", lines[0])) == 3


def test_sides_that_write_alike_have_no_example_to_show(tmp_path: Path, runs: dict[str, list[StoredRun]]) -> None:
    shutil.copytree(runs["rag"][0].path, tmp_path / "twin")
    told = json.loads((tmp_path / "twin" / "manifest.json").read_text())
    told["description"]["method"]["version"] = "0"
    (tmp_path / "twin" / "manifest.json").write_text(json.dumps(told))
    found = compare_sides(runs["rag"][0].path, tmp_path / "twin", resamples=20)
    assert "No example differs in rouge1." in report(found)
    assert all(test.p == 1.0 and test.detectable is None for test in found.tests)


def test_changed_data_are_told_and_the_tests_shown(tmp_path: Path, capsys: Capture) -> None:
    spec = write_world(tmp_path / "world")
    options = ["--engine", "fake", "--dataset", str(spec), "--metrics", "rouge1", "--out", str(tmp_path / "runs")]
    call(["run", "--methods", "nonperso,copy-last", *options], capsys)
    sides = [tmp_path / "runs" / "reviews" / method for method in ("nonperso", "copy-last")]
    _, out, _ = call(["compare", *sides, "--examples", "1"], capsys)
    assert "Reference: words of user" in out
    reviews = tmp_path / "world" / "reviews.jsonl"
    reviews.write_text(reviews.read_text().replace("words of user 1", "other words of user 1"))
    code, out, _ = call(["compare", *sides], capsys)
    assert code == 0
    assert "rouge1" in out
    assert "another state of dataset 'reviews'" in " ".join(out.split())
    shutil.rmtree(tmp_path / "world")
    code, out, _ = call(["compare", *sides], capsys)
    assert code == 0
    assert "Examples are not shown: " in " ".join(out.split())
