"""The commands as a user gives them: help at once, tables on standard output alone, everything from stored records."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE, TINY, call, only_run, process, write_world

from bench import registry
from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine

METHODS = ("--methods", "nonperso,rag,oracle")
HEAVY = ("torch", "transformers", "pandas", "datasets", "evaluate", "numpy", "pyarrow", "scipy", "pydantic", "peft")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def stored(tmp_path: Path, capsys: Capture) -> Path:
    """A folder of runs of three methods."""
    code, _, err = call([*FAKE, *METHODS, "--out", tmp_path / "runs"], capsys)
    assert code == 0, err
    return tmp_path / "runs"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["table", "--help"]])
def test_help_imports_nothing_heavy(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY) - ({"pydantic"} if len(arguments) > 1 else set())  # typer brings it for options
    assert done.stdout.startswith("Usage: python -m bench")


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    code = f"import sys, bench.cli; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_listing_methods_imports_no_torch() -> None:
    code = (
        "import sys; from bench.__main__ import main\n"
        "try: main(['list', 'methods', '--json'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False False\n")


def test_without_a_command_there_is_help(capsys: Capture) -> None:
    code, out, err = call([], capsys)
    assert (code, err) == (0, "")
    assert "throughput" in out


def test_the_version_is_that_of_the_distribution(capsys: Capture) -> None:
    assert call(["--version"], capsys) == (0, f"dep-bench {version('dep-bench')}\n", "")


def test_a_broken_spec_is_listed_as_such(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.toml").write_text("[source")
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(["list", "datasets", "--json"], capsys)
    (mine,) = (row for row in json.loads(out) if row["name"] == "mine")
    assert (code, mine["about"][:7]) == (0, "broken:")


EXPECTED = {
    "methods": {"nonperso", "rag", "lora", "dep", "oracle"},
    "datasets": {"planted", "amazon-books"},
    "models": {"smollm2-135m", "minilm"},
    "metrics": {"rouge1", "rougeL", "meteor", "bleu", "bertscore", "trait_recovery", "copy_rate", "length_ratio"},
    "engines": {"hf", "fake"},
}


@pytest.mark.parametrize("what", sorted(EXPECTED))
def test_a_listing_is_an_array_of_objects_with_names(what: str, capsys: Capture) -> None:
    code, out, err = call(["list", what, "--json"], capsys)
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert EXPECTED[what] <= {row["name"] for row in rows}
    assert all(isinstance(row["name"], str) for row in rows)
    code, out, _ = call(["list", what], capsys)
    assert code == 0
    assert EXPECTED[what] <= set(out.split())


def test_every_knob_that_is_listed_can_be_set(capsys: Capture, tmp_path: Path) -> None:
    _, out, _ = call(["list", "methods", "--json"], capsys)
    for row in json.loads(out):
        for key, knob in row["config"].items():
            assert knob["meaning"], (row["name"], key)
    (rag,) = (row for row in json.loads(out) if row["name"] == "rag")
    knobs = [part for key, knob in rag["config"].items() for part in ("--set", f"rag.{key}={knob['default']}")]
    code, _, err = call([*FAKE, "--methods", "rag", *knobs, "--out", tmp_path], capsys)
    assert code == 0, err


def test_the_table_alone_is_on_standard_output(tmp_path: Path, capsys: Capture) -> None:
    code, out, err = call([*FAKE, *METHODS, "--out", tmp_path], capsys)
    assert code == 0
    assert out.startswith("Leaderboard: planted")
    assert "rouge1" in out
    for method in ("nonperso", "rag", "oracle"):
        assert f"{method} (seed 0): 12 examples" in err
    assert "prompt tokens" in err
    assert "--limit" in err
    assert "Leaderboard" not in err
    assert "(seed 0)" not in out


def test_the_table_of_a_run_is_that_of_its_stored_records(stored: Path, capsys: Capture) -> None:
    _, again, err = call([*FAKE, *METHODS, "--out", stored], capsys)
    assert err.count("taken as it is") == 3
    code, out, err = call(["table", stored], capsys)
    assert (code, err) == (0, "")
    assert out == again


def test_two_seeds_are_two_runs_and_one_row(tmp_path: Path, capsys: Capture) -> None:
    call([*FAKE, "--methods", "nonperso,rag", "--seeds", "0,1", "--out", tmp_path], capsys)
    assert len(list(tmp_path.glob("planted/rag/*/manifest.json"))) == 2
    _, out, _ = call(["table", tmp_path, "--format", "csv"], capsys)
    assert sorted(row["method"] for row in csv.DictReader(io.StringIO(out))) == ["nonperso", "rag"]


@pytest.mark.parametrize("style", ["console", "markdown", "latex", "csv", "html", "json"])
def test_every_format_tells_every_method_with_the_dataset_gone(
    style: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_world(tmp_path / "world")
    options = [
        "--engine",
        "fake",
        "--dataset",
        str(spec),
        "--metrics",
        "rouge1,length_ratio",
        "--out",
        str(tmp_path / "runs"),
    ]
    code, _, err = call(["run", "--methods", "nonperso,rag", *options], capsys)
    assert code == 0, err
    shutil.rmtree(tmp_path / "world")
    monkeypatch.setattr("bench.data.split.prepare", None)
    code, out, err = call(["table", tmp_path / "runs", "--format", style], capsys)
    assert (code, err) == (0, "")
    assert "nonperso" in out
    assert "rag" in out


def test_json_is_what_a_machine_reads(stored: Path, capsys: Capture) -> None:
    _, out, _ = call(["table", stored, "--json"], capsys)
    _, same, _ = call(["table", stored, "--format", "json"], capsys)
    assert json.loads(out) == json.loads(same)
    assert {"nonperso", "rag", "oracle"} <= set(out.replace('"', " ").split())


def test_a_table_can_be_narrowed_and_says_what_it_cannot_do(stored: Path, capsys: Capture) -> None:
    _, out, _ = call(["table", stored, "--metrics", "rouge1", "--baseline", "rag"], capsys)
    assert "Difference to rag" in out
    assert "length_ratio" not in out
    for arguments, word in (
        (["--metrics", "rogue1"], "rouge1"),
        (["--baseline", "rga"], "rag"),
        (["--dataset", "Planted"], "did you mean 'planted'"),
    ):
        code, out, err = call(["table", stored, *arguments], capsys)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert word in err


def test_a_table_leaves_out_what_is_unfinished_or_damaged_and_says_so(stored: Path, capsys: Capture) -> None:
    (only_run(stored, "rag") / "manifest.json").unlink()
    with (only_run(stored, "oracle") / "records.jsonl").open("a") as file:
        file.write("{}\n")
    code, out, err = call(["table", stored], capsys)
    assert code == 0
    assert "rag" not in out
    assert err.count("left out: ") == 2
    assert "SHA-256 differs" in err
    assert "1 run is not complete" in err


def test_scores_made_again_are_the_same_bytes(stored: Path, capsys: Capture) -> None:
    def scores() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in stored.rglob("scores.json*")}

    before = scores()
    assert len(before) == 6
    code, out, err = call(["score", stored, "--metrics", "rouge1,length_ratio", "--force"], capsys)
    assert (code, out) == (0, "")
    assert err.count("scored with rouge1, length_ratio") == 3
    assert scores() == before
    _, _, err = call(["score", stored, "--metrics", "rouge1,length_ratio"], capsys)
    assert err.count("has all these scores already") == 3


def test_scores_can_be_added_without_a_model(stored: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "run", None)
    code, _, err = call(["score", stored, "--metrics", "copy_rate"], capsys)
    assert code == 0, err
    _, out, _ = call(["table", stored, "--format", "csv"], capsys)
    assert {"rouge1", "length_ratio", "copy_rate"} <= set(next(csv.reader(io.StringIO(out))))


def test_scoring_on_changed_data_is_refused(tmp_path: Path, capsys: Capture) -> None:
    spec = write_world(tmp_path / "world")
    options = ["--engine", "fake", "--dataset", str(spec), "--metrics", "rouge1", "--out", str(tmp_path / "runs")]
    call(["run", "--methods", "nonperso", *options], capsys)
    before = {path: path.read_bytes() for path in tmp_path.rglob("scores.json*")}
    reviews = tmp_path / "world" / "reviews.jsonl"
    reviews.write_text(reviews.read_text().replace("words of user 1", "other words of user 1"))
    code, _, err = call(["score", tmp_path / "runs", "--force", "--metrics", "rouge1"], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "another state of dataset 'reviews'" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("scores.json*")} == before


@pytest.mark.parametrize(
    "arguments",
    [["--metrics", "rouge1", "--set", "bleu.tokenize=13a"], ["--metrics", ""], ["--metrics", "rogue1"]],
)
def test_mistakes_in_scoring_are_told_before_any_score(stored: Path, arguments: list[str], capsys: Capture) -> None:
    code, _, err = call(["score", stored, *arguments], capsys)
    assert (code, err.count("\n")) == (2, 1)


def test_a_dry_run_loads_nothing_writes_nothing_and_shows_each_first_prompt(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("a model was loaded")

    for name in ("load", "prepare", "run"):
        monkeypatch.setattr(HFEngine, name, fail)
    monkeypatch.chdir(tmp_path)
    methods = "nonperso,rag,lora,dep,oracle"
    options = ["--dry-run", "--limit", "5", "--metrics", "rouge1", *TINY]
    code, out, err = call(["run", "--methods", methods, *options], capsys)
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    for method in methods.split(","):
        assert f"== {method}\n" in out
    assert out.count("first prompt, example ") == 5
    assert out.count("asks    5 prompts a seed") == 4
    assert out.count("   trains  ") == 2
    assert "--train-limit" in out
    dep = out[out.index("== dep") : out.index("== oracle")]
    assert "⟦history 1⟧" in dep
    assert "⟦difference 1⟧" in dep
    assert "test 5 examples of 5 users" in out
    assert "{'" not in out
    head = out[: out.index("\n\n")].splitlines()
    assert max(map(len, head)) <= 110


def test_a_terminal_that_lacks_a_letter_gets_its_number(stored: Path, capsys: Capture) -> None:
    command = ["table", str(stored), "--format", "markdown"]
    _, out, _ = call(command, capsys)
    assert "↑" in out
    done = process(command, env={"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.replace("↑", "\\u2191")


def test_a_reader_that_has_seen_enough_is_no_error(stored: Path) -> None:
    command = f"{sys.executable} -m bench table {stored} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"})
    assert (done.stdout, done.stderr) == ("Leaderboard: planted\n", "")


def test_colours_are_for_terminals_only(stored: Path) -> None:
    assert "\x1b" not in process(["table", str(stored)]).stdout


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    code = (
        # A shell's background jobs are started deaf to Ctrl-C; this one is to hear it.
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bench.engines.fake import FakeEngine; from bench.__main__ import main\n"
        "def run(self, batch): print('asked', flush=True); time.sleep(60)\n"
        "FakeEngine.run = run\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *FAKE, "--methods", "rag", "--out", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "asked\n"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped; ")


def test_an_entry_point_that_names_no_method_hides_no_other(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: len if name == "rag" else real(kind, name))
    code, out, _ = call(["list", "methods", "--json"], capsys)
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["rag"]["summary"].startswith("broken: no method")
    assert rows["nonperso"]["config"] == {}
