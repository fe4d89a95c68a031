"""`python -m bench report`: the page's data are the table's figures, nothing in them can run, and mistakes are told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_world import FAKE, call
from fabricate import MODEL, examples, make_run, make_store
from hypothesis import given
from hypothesis import strategies as st
from report_world import HOSTILE, RESAMPLES, ablated_store, fitted, hostile_runs, read, site_of, with_texts

from bench.keys import text_digest
from bench.render import json_text
from bench.report.costs import pareto
from bench.report.curves import thinned
from bench.report.origin import folder
from bench.report.pack import script_json
from bench.store import StoredRun, find_runs, read_scores
from bench.tables import leaderboard, leaderboards

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "runs")
    return tmp_path / "runs"


# -- the table's figures ----------------------------------------------------------------------------------------------


def test_every_figure_is_the_tables(store: Path, tmp_path: Path) -> None:
    make_run(store, "rag", level=0.27, config={"n_history": 9}, missing=["e001-0"], failed=["e004-1"])
    site = site_of(store, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    runs = find_runs(store).runs
    expected = {row["method"]: row for row in json.loads(json_text(leaderboards(runs, resamples=RESAMPLES)))}
    assert [row["label"] for row in board["rows"]] == list(expected)
    for row in board["rows"]:
        theirs = expected[row["label"]]
        assert row["ceiling"] == theirs["ceiling"]
        for column in board["columns"]:
            cell = row["cells"].get(column["key"])
            if column["kind"] == "cost":
                assert cell["value"] == theirs[column["key"]]
            elif column["kind"] == "metric":
                metric = theirs["metrics"][column["key"]]
                assert {name: cell[name] for name in ("value", "low", "high", "users", "missing", "mark")} == {
                    name: metric[name] for name in ("value", "low", "high", "users", "missing", "mark")
                }
                assert cell["spread"] == (None if metric["seed_n"] is None else [metric["seed_sd"], metric["seed_n"]])


def test_every_baseline_gives_the_differences_of_a_table_under_it(store: Path, tmp_path: Path) -> None:
    site = site_of(store, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    runs = find_runs(store).runs
    labels = [row["label"] for row in board["rows"]]
    assert sorted(board["baselines"]) == sorted(labels)
    for baseline, name in board["baselines"].items():
        told = board["difference"] if baseline == board["baseline"] else read(name, site)
        assert told["baseline"] == baseline
        table = leaderboard(runs, baseline=baseline, resamples=RESAMPLES)
        expected = {row["method"]: row["difference"] for row in json.loads(json_text([table]))}
        assert sorted(told["rows"]) == sorted(label for label in labels if label != baseline)
        for label, metrics in told["rows"].items():
            assert expected[label]["baseline"] == baseline
            for metric, cell in metrics.items():
                theirs = expected[label]["metrics"][metric]
                wins = None if theirs["wins"] is None else [theirs["wins"][part] for part in ("wins", "ties", "losses")]
                assert cell["wins"] == wins
                for part in ("value", "low", "high", "p", "p_holm", "detectable", "users"):
                    assert cell[part] == theirs[part], (baseline, label, metric, part)


def test_chosen_baselines_and_metrics_are_those_shown(store: Path, tmp_path: Path) -> None:
    site = site_of(store, tmp_path / "site", baseline="rag", baselines=["dep"], metrics=["copy_rate"])
    (board,) = read("main", site)["boards"]
    assert board["baseline"] == "rag"
    assert list(board["baselines"]) == ["rag", "dep"]
    assert [metric["name"] for metric in board["metrics"]] == ["copy_rate"]


def slow_user_gaps(runs: Any, a: str, b: str, metric: str) -> dict[str, float]:
    """User -> mean difference over the examples that have a value under every seed of both, one by one."""

    def known(method: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        own = [run for run in runs if run.method == method]
        for run in own:
            scores = read_scores(run)
            assert scores is not None
            for example, value in scores.values[metric].items():
                if value is not None:
                    found.setdefault(example, []).append(value[0])
        return {example: values for example, values in found.items() if len(values) == len(own)}

    ours, theirs = known(a), known(b)
    gaps: dict[str, list[float]] = {}
    for example, user in examples(12):
        if example in ours and example in theirs:
            gaps.setdefault(user, []).append(float(np.mean(ours[example]) - np.mean(theirs[example])))
    return {user: float(np.mean(values)) for user, values in gaps.items()}


def test_differences_of_users_are_those_of_a_slow_count_whatever_is_missing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "nonperso", level=0.2, missing=["e002-0", "e005-0", "e005-1"])
    make_run(runs, "rag", level=0.27, missing=["e003-1"])
    for seed in range(2):
        make_run(runs, "dep", level=0.3, seed=seed, missing=["e002-0", "e007-1"] if seed else ["e008-0"])
    site = site_of(runs, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    labels = [row["label"] for row in board["rows"]]
    stored = find_runs(runs).runs
    for number, metric in enumerate(board["metrics"]):
        people = read(f"world-people-{number}", site)
        if metric["reducer"] != "mean":
            assert people["users"] is None
            continue
        assert people["apart"]
        for i, a in enumerate(labels):
            for j, b in enumerate(labels):
                if i == j:
                    continue
                told = people["apart"].get(f"{min(i, j)},{max(i, j)}", {})
                expected = slow_user_gaps(stored, a, b, metric["name"])
                gaps = {}
                for user in range(12):
                    own, other = people["users"][i][user], people["users"][j][user]
                    gap = None if own is None or other is None else own - other
                    if str(user) in told:
                        gap = None if told[str(user)] is None else told[str(user)] * (1 if i < j else -1)
                    if gap is not None:
                        gaps[f"u{user:03d}"] = gap
                assert gaps == pytest.approx(expected, abs=1e-6)
                sign = {True: 1, False: -1, None: 0}[metric["better"]]
                if sign:
                    won = [
                        sum(sign * g > 1e-12 for g in expected.values()),
                        sum(sign * g < -1e-12 for g in expected.values()),
                    ]
                    assert [people["wins"][i][j][0], people["wins"][i][j][2]] == won
                    share, low, high = people["rates"][i][j]
                    assert share == pytest.approx((len(expected) + won[0] - won[1]) / (2 * len(expected)), abs=1e-6)
                    assert 0 <= low <= share <= high <= 1
                else:
                    assert people["wins"][i][j] is None


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3), st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12
    )
)
def test_the_front_holds_what_no_other_beats(points: dict[str, tuple[float, float]]) -> None:
    slow = {
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points.values())
    }
    found = pareto(points)
    assert set(found) == slow
    assert len(found) == len(slow)
    assert [points[name] for name in found] == sorted(points[name] for name in found)


def test_costs_are_of_a_text_and_what_trains_nothing_has_spent_nothing(store: Path, tmp_path: Path) -> None:
    site = site_of(store, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    labels = [row["label"] for row in board["rows"]]
    costs = {cost["key"]: dict(zip(labels, cost["values"], strict=True)) for cost in board["costs"]}
    assert costs["training_seconds"] == {"oracle": 0, "dep": 201, "rag": 0, "lora": 93.4, "nonperso": 0}
    assert "calls_per_example" not in costs  # the same for all that ask
    values = {row["label"]: row["cells"]["rouge1"]["value"] for row in board["rows"]}
    (training,) = (cost for cost in board["costs"] if cost["key"] == "training_seconds")
    ranked = [label for label in labels if label != "oracle"]  # a ceiling is on no front
    paid = costs["training_seconds"]
    unbeaten = [
        a
        for a in ranked
        if not any(
            paid[b] <= paid[a] and values[b] >= values[a] and (paid[b], values[b]) != (paid[a], values[a])
            for b in ranked
        )
    ]
    assert training["front"]["rouge1"] == sorted(unbeaten, key=lambda label: paid[label])
    assert training["front"]["length_ratio"] == []


# -- nothing runs -----------------------------------------------------------------------------------------------------


@given(st.recursive(st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=8))
def test_data_in_a_script_end_no_script_and_read_back_as_they_were(value: Any) -> None:
    text = script_json(value)
    assert text.isascii()
    assert not set(text) & set("<>&\n\r")
    assert json.loads(text) == value


def test_texts_that_would_run_stand_escaped_in_data_alone(tmp_path: Path, capsys: Capture) -> None:
    site = site_of(hostile_runs(tmp_path), tmp_path / "site")
    found = ""
    for path in sorted((site / "data").glob("*.js")):
        text = path.read_text(encoding="ascii")
        assert not set(text) & set("<>&"), path
        found += text
    assert r"\u003cscript\u003ewindow.hurt" in found
    assert r"\u2028" in found
    own = (site / "index.html").read_text() + (site / "assets" / "report.js").read_text()
    assert "hurt" not in own
    texts = [
        example
        for i in range(read("main", site)["boards"][0]["examples"]["pieces"])
        for example in read(f"reviews-texts-{i}", site)
    ]
    shown = {text["text"] for example in texts for row in example["texts"] for text in row if text}
    assert set(HOSTILE[:6]) <= shown  # six users, each with one text


def test_the_page_runs_its_own_scripts_alone_and_loads_nothing_from_elsewhere(store: Path, tmp_path: Path) -> None:
    page = (site_of(store, tmp_path / "site") / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    (nonce,) = re.findall(r"^'nonce-([0-9a-f]{32})'$", rules["script-src"])
    tags = re.findall(r"<script([^>]*)>", page)
    assert tags
    assert all(f'nonce="{nonce}"' in tag and "src=" in tag for tag in tags)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//|@import|url\(""", page)
    script = (tmp_path / "site" / "assets" / "report.js").read_text()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert sink not in script


def test_the_nonce_changes_with_what_is_shown(store: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        pages.append((site_of(store, tmp_path / name) / "index.html").read_text())
        run = next(run for run in find_runs(store).runs if run.method == "rag")
        with_texts(run, {"e000-0": "another text"})
    assert pages[0] != pages[1]


def test_bundled_libraries_are_those_the_docs_name_with_their_licences() -> None:
    root = Path(__file__).resolve().parent.parent
    vendor = root / "bench" / "report" / "assets" / "vendor"
    told = (root / "docs" / "report.md").read_text()
    scripts = sorted(vendor.glob("*.js"))
    assert [path.name for path in scripts] == ["d3.min.js", "plot.min.js"]
    for path in scripts:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in told
        version = re.search(r"v(\d+\.\d+\.\d+)", path.read_text(encoding="utf-8")[:200])
        assert version is not None
        assert version[1] in told
        licence = (vendor / path.name.replace(".min.js", ".LICENSE.txt")).read_text()
        assert "Permission to use, copy, modify" in licence


# -- origin, curves, prompts ------------------------------------------------------------------------------------------


def test_every_row_tells_its_runs(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "kept" / "runs"
    code, _, err = call([*FAKE, "--methods", "nonperso,rag", "--seeds", "0,1", "--limit", "4", "--out", out], capsys)
    assert code == 0, err
    code, said, err = call(["report", out, "--out", tmp_path / "site"], capsys)
    assert code == 0, err
    assert said.strip() == str(tmp_path / "site" / "index.html")
    (board,) = read("main", tmp_path / "site")["boards"]
    rows = read("planted-origin", tmp_path / "site")
    for row, runs in zip(board["rows"], rows, strict=True):
        assert [str(run["seed"]) for run in runs] == row["seeds"] == ["0", "1"]
        for run in runs:
            assert run["folder"] == f"runs/planted/{row['method']}/{run['key']}"
            assert run["command"].startswith("python -m bench run --methods nonperso,rag")
            assert "--limit 4" in run["command"]
            assert run["description"]["method"]["name"] == row["method"]
            assert "numpy" in run["packages"]
            assert run["python"]
    whole = "".join(path.read_text() for path in (tmp_path / "site").rglob("*.js") if path.parent.name == "data")
    assert str(tmp_path) not in whole


def test_secrets_of_a_command_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "rag", batching={"max_batch": 4, "api_key": "sk-hush"})
    assert run is not None
    plan = json.loads((run.path / "plan.json").read_text())
    config = {"methods": ["rag"], "overrides": ["openai.api_key=sk-hush", "rag.k=3"], "dataset": "/somewhere/x.toml"}
    (run.path / "plan.json").write_text(json.dumps({**plan, "about": {"config": config}}))
    site = site_of(tmp_path / "runs", tmp_path / "site")
    assert "sk-hush" not in "".join(path.read_text() for path in site.rglob("*.js"))
    ((told,),) = read("world-origin", site)
    assert "--set openai.api_key=***" in told["command"].replace("'", "")
    assert "--dataset x.toml" in told["command"]


def test_folders_are_shown_from_the_root_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results" / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = Path("results/runs/a")
    assert folder(run, [Path("results/runs")]) == "results/runs/a"
    assert folder(run, [tmp_path / "results" / "runs"]) == "runs/a"
    assert folder(run, [Path("results/runs/a")]) == "results/runs/a"


def test_curves_come_from_the_journal_beside_the_fit(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "nonperso", level=0.2)
    fitted(runs)
    log = {"steps": [3.0, 2.0, 1.0, 1.0], "epochs": [{"number": 1, "train_loss": 2.5, "dev_loss": 2.0}]}
    make_run(runs, "lora", fit={"seconds": 1.0, "log": log, "best_epoch": 1})
    make_run(runs, "pplug", fit={"seconds": 1.0})
    site = site_of(runs, tmp_path / "site")
    curves = {curve["rows"][0]: curve for curve in read("world-curves", site)}
    assert set(curves) == {"dep", "lora", "pplug"}
    assert curves["dep"]["steps"] == [[i, 4 - 0.25 * i] for i in range(1, 9)]
    assert [(e["epoch"], e["step"], e["dev_loss"]) for e in curves["dep"]["epochs"]] == [(1, 4, 3.0), (2, 8, 2.5)]
    assert curves["dep"]["best_epoch"] == 2
    assert curves["lora"]["steps"] == [[1, 3.0], [2, 2.0], [3, 1.0], [4, 1.0]]
    assert [(e["epoch"], e["step"]) for e in curves["lora"]["epochs"]] == [(1, 4)]
    assert (curves["pplug"]["steps"], curves["pplug"]["from"]) == ([], None)
    assert read("main", site)["boards"][0]["curves"] == 3


@given(st.lists(st.none() | st.floats(-9, 9), max_size=40), st.integers(1, 7))
def test_long_curves_are_means_of_as_many_steps(losses: list[float | None], each: int) -> None:
    found = thinned(list(enumerate(losses, 1)), each)
    assert len(found) == -(-len(losses) // each)
    for place, (step, loss) in enumerate(found):
        block = [x for x in losses[place * each : (place + 1) * each] if x is not None]
        assert step == min((place + 1) * each, len(losses))
        assert loss == (None if not block else pytest.approx(np.mean(block), rel=1e-6, abs=1e-9))


def test_prompts_that_are_shown_have_the_hash_that_the_run_kept(tmp_path: Path, capsys: Capture) -> None:
    site = site_of(hostile_runs(tmp_path), tmp_path / "site", prompt_examples=4)
    (board,) = read("main", site)["boards"]
    labels = [row["label"] for row in board["rows"]]
    texts = read("reviews-texts-0", site)
    prompts = read("reviews-prompts-0", site)
    for place, example in enumerate(texts):
        for label, row in zip(labels, example["texts"], strict=True):
            for text in row:
                if label in ("nonperso", "rag") and place < 4:
                    shown = "\n".join(f"{role}: {content}" for role, content in prompts[text["prompt"]])
                    assert text_digest(shown) == text["prompt"]
                elif label != "copy-last":
                    assert text["prompt"] not in prompts
    reasons = dict(zip(labels, board["examples"]["no_prompt"], strict=True))
    assert reasons == {"nonperso": None, "rag": None, "copy-last": "It asks no model, so there is no prompt."}


def test_a_prompt_that_is_written_otherwise_today_is_not_shown(tmp_path: Path, capsys: Capture) -> None:
    out = hostile_runs(tmp_path)
    run = next(run for run in find_runs(out).runs if run.method == "rag")
    rows = [{**record, "prompt_sha256": "0" * 16} for record in run.records]
    (run.path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_texts(StoredRun.load(run.path), {})
    site = site_of(out, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    place = [row["label"] for row in board["rows"]].index("rag")
    assert "cannot be written again as it was" in board["examples"]["no_prompt"][place]
    assert "0" * 16 not in read("reviews-prompts-0", site)


def test_examples_hold_what_was_asked_the_reference_and_every_text(tmp_path: Path, capsys: Capture) -> None:
    from bench.plan import dataset_of
    from bench.reopen import config_of

    out = hostile_runs(tmp_path)
    site = site_of(out, tmp_path / "site")
    runs = find_runs(out).runs
    dataset = dataset_of(config_of(runs[0]))
    index = read("reviews-examples", site)
    (board,) = read("main", site)["boards"]
    assert sorted(index["ids"]) == sorted(example.id for example in dataset.test.examples)
    by_id = {example.id: example for example in dataset.test.examples}
    for number in range(board["examples"]["pieces"]):
        for one in read(f"reviews-texts-{number}", site):
            assert index["pieces"][index["ids"].index(one["id"])] == number
            assert one["reference"] == dataset.test.references[one["id"]]
            assert one["fields"][0][1] == by_id[one["id"]].fields["item_title"]
            assert one["user"] == by_id[one["id"]].user_id
            for row, texts in zip(board["rows"], one["texts"], strict=True):
                assert len(texts) == len(row["seeds"])
                for seed, text in zip(row["seeds"], texts, strict=True):
                    (run,) = (r for r in runs if r.method == row["method"] and str(r.description["seed"]) == seed)
                    (record,) = (r for r in run.records if r["example_id"] == one["id"])
                    scores = read_scores(run)
                    assert scores is not None
                    assert text["text"] == record["text"]
                    expected = [scores.values[metric["name"]][one["id"]] for metric in board["metrics"]]
                    assert text["scores"] == [None if v is None else pytest.approx(v[0], rel=1e-6) for v in expected]


# -- all sorts of runs ------------------------------------------------------------------------------------------------


def test_a_dataset_that_is_gone_is_told_and_the_rest_is_shown(store: Path, tmp_path: Path) -> None:
    site = site_of(store, tmp_path / "site")
    (board,) = read("main", site)["boards"]
    assert "does not say which dataset it came from" in board["examples"]["unknown"]
    assert str(tmp_path) not in "".join(path.read_text() for path in (site / "data").glob("*.js"))
    (piece,) = [read(f"world-texts-{i}", site) for i in range(board["examples"]["pieces"])]
    assert piece[0]["reference"] is None
    assert piece[0]["fields"] == []
    assert {text["text"] for example in piece for row in example["texts"] for text in row} == {"words"}


def test_one_run_without_a_fit_or_a_baseline_is_a_report(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "rag")
    site = site_of(tmp_path / "runs", tmp_path / "site")
    (board,) = read("main", site)["boards"]
    assert (board["baseline"], board["baselines"], board["difference"]) == (None, {}, None)
    assert (board["curves"], len(board["rows"])) == (0, 1)


def test_failed_texts_and_missing_scores_are_shown_as_such(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "nonperso", level=0.2, missing=["e000-0"])
    make_run(tmp_path / "runs", "rag", failed=["e001-0", "e001-1"])
    make_run(tmp_path / "runs", "plain", metrics=())
    everything = [example for example, _ in examples(12)]
    make_run(tmp_path / "runs", "mute", missing=everything)
    site = site_of(tmp_path / "runs", tmp_path / "site")
    (board,) = read("main", site)["boards"]
    rows = {row["label"]: row for row in board["rows"]}
    assert rows["rag"]["cells"]["failed"]["value"] == 2
    assert rows["nonperso"]["cells"]["rouge1"]["missing"] == 1
    assert rows["mute"]["cells"]["rouge1"]["value"] is None
    assert rows["plain"]["cells"]["rouge1"]["value"] is None
    labels = list(rows)
    texts = {example["id"]: example["texts"] for example in read("world-texts-0", site)}
    (failed,) = texts["e001-0"][labels.index("rag")]
    assert (failed["error"], failed["scores"]) == ("too long", [None] * 4)
    people = read("world-people-0", site)
    assert people["users"][labels.index("plain")] is None
    assert people["users"][labels.index("rag")][1] is None
    assert people["wins"][labels.index("rag")][labels.index("mute")] is None


def test_runs_that_nobody_scored_are_a_report_without_metrics(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "rag", metrics=())
    make_run(tmp_path / "runs", "nonperso", metrics=())
    (board,) = read("main", site_of(tmp_path / "runs", tmp_path / "site"))["boards"]
    assert board["metrics"] == []
    assert len(board["rows"]) == 2


def test_several_datasets_and_folders_each_have_a_board(tmp_path: Path) -> None:
    from bench.report import report

    make_run(tmp_path / "a", "rag")
    make_run(tmp_path / "a", "nonperso", level=0.2)
    make_run(tmp_path / "b", "rag", dataset={"name": "World!", "fingerprint": "beef", "selection": {}})
    report([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "world"], tmp_path / "site", resamples=RESAMPLES)
    boards = read("main", tmp_path / "site")["boards"]
    assert [(board["id"], board["title"], len(board["rows"])) for board in boards] == [
        ("world", "World!", 1),
        ("world-2", "world", 2),
    ]
    report([tmp_path / "a", tmp_path / "b"], tmp_path / "site", dataset="world", resamples=RESAMPLES)
    assert [board["title"] for board in read("main", tmp_path / "site")["boards"]] == ["world"]


def test_rows_that_are_not_comparable_are_refused_and_with_mixed_stand_apart(
    store: Path, tmp_path: Path, capsys: Capture
) -> None:
    make_run(store, "rag", level=0.4, engine={**MODEL, "model": "another-lm"})
    code, _, err = call(["report", store, "--out", tmp_path / "site"], capsys)
    assert code == 2
    assert "--mixed" in err
    assert not (tmp_path / "site").exists()
    site = site_of(store, tmp_path / "site", mixed=True)
    boards = read("main", site)["boards"]
    assert sorted(len(board["rows"]) for board in boards) == [1, 5]
    assert {board["title"] for board in boards} == {"world, model another-lm", "world, model tiny-lm"}
    table = json.loads(json_text(leaderboards(find_runs(store).runs, mixed=True, resamples=RESAMPLES)))
    for board in boards:
        for row in board["rows"]:
            group = board["title"].removeprefix("world, ")
            (same,) = (one for one in table if one["group"] == group and one["method"] == row["label"])
            assert row["cells"]["rouge1"]["low"] == same["metrics"]["rouge1"]["low"]


def test_equal_runs_give_equal_bytes_and_an_earlier_report_is_replaced(store: Path, tmp_path: Path) -> None:
    first, second = site_of(store, tmp_path / "a"), site_of(store, tmp_path / "b")
    (second / "data" / "stale.js").write_text("old")
    site_of(store, second)
    files = [sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file()) for site in (first, second)]
    assert files[0] == files[1]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files[0])


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line_and_write_nothing(store: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    out = tmp_path / "site"
    cases = [
        ([tmp_path / "nowhere", "--out", out], "no folder of runs at"),
        ([tmp_path / "empty", "--out", out], "no complete run under"),
        ([store, tmp_path / "empty", "--out", out], "no complete run under"),
        ([store, "--out", tmp_path / "full"], "holds other things than a report"),
        ([store, "--out", tmp_path / "file"], "not a folder"),
        ([store, "--out", tmp_path / "file" / "below"], "cannot write under"),
        ([store, "--out", out, "--dataset", "wrld"], "did you mean 'world'?"),
        ([store, "--out", out, "--baseline", "dpe"], "did you mean 'dep'?"),
        ([store, "--out", out, "--baselines", "dpe"], "did you mean 'dep'?"),
        ([store, "--out", out, "--metrics", "rouge"], "did you mean 'rouge1'?"),
        ([store], "missing option '--out'"),
        (["--out", out], "missing argument 'RUNS...'"),
    ]
    for arguments, message in cases:
        code, said, err = call(["report", *arguments], capsys)
        assert (code, said) == (2, ""), arguments
        assert message in err, err
        assert len(err.strip().splitlines()) == 1
        assert not out.exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(store: Path, tmp_path: Path, capsys: Capture) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, _, err = call(["report", store, "--out", locked / "site"], capsys)
    assert code == 2
    assert "cannot write under" in err


def test_damaged_and_unfinished_runs_are_left_out_and_told(store: Path, tmp_path: Path, capsys: Capture) -> None:
    make_run(store, "pag", complete=False)
    broken = next((store / "world" / "lora").iterdir())
    (broken / "records.jsonl").write_text("{}\n")
    site = site_of(store, tmp_path / "site")
    err = capsys.readouterr().err
    assert "not complete" in err
    assert "SHA-256 differs" in err
    assert "lora" not in [row["label"] for row in read("main", site)["boards"][0]["rows"]]


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_drawn_for_papers_and_are_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from xml.etree import ElementTree

    runs = tmp_path / "runs"
    ablated_store(runs)
    sites = [
        site_of(runs, tmp_path / name, figures=True, metrics=["rouge1", "bleu"], baselines=["dep"]) for name in "ab"
    ]
    found = sorted(path.name for path in (sites[0] / "figures").iterdir())
    stems = {name.rpartition(".")[0] for name in found if name.endswith(".svg")}
    assert {name.rpartition(".")[0] for name in found if name.endswith(".png")} == stems
    for part in (
        "scores-rouge1",
        "scores-bleu",
        "differences-rouge1",
        "users-rouge1",
        "cost-training_seconds-rouge1",
        "training",
    ):
        assert f"world-{part}" in stems
    assert "world-users-bleu" not in stems
    for name in found:
        data = (sites[0] / "figures" / name).read_bytes()
        assert data == (sites[1] / "figures" / name).read_bytes(), name
        if name.endswith(".svg"):
            ElementTree.fromstring(data)
        elif name.endswith(".png"):
            assert data.startswith(b"\x89PNG")


def test_without_matplotlib_figures_are_refused_with_the_way_out(
    store: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = call(["report", store, "--out", tmp_path / "site", "--figures"], capsys)
    assert code == 2
    assert "pip install 'dep-bench[plots]'" in err
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_latex_tables_compile(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex here; apt-get install texlive-latex-recommended brings one")
    runs = tmp_path / "runs"
    ablated_store(runs)
    make_run(runs, "rag", level=0.2, config={"template": r"50% & \$ #_{}~^ <>|\"", "n": 2})
    site = site_of(runs, tmp_path / "site", figures=True, metrics=["rouge1"], baselines=["dep"])
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    (site / "figures" / "paper.tex").write_text(rf"{head}\begin{{document}}\input{{tables}}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=site / "figures", capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (site / "figures" / "paper.pdf").read_bytes().startswith(b"%PDF")
