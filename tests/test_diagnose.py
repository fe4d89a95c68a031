"""`python -m bench diagnose RUN` on stored runs of tiny models: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_world import call
from export_world import make_runs, tiny_parts
from tiny_engine import one_thread

from bench.card import DIAGNOSIS
from bench.config import build
from bench.diagnose import as_text, diagnose
from bench.errors import UsageError
from bench.method import DiagnosisOptions
from bench.plan import RunConfig, make_plan
from bench.reopen import fit_folder
from bench.store import MANIFEST, PLAN, StoredRun
from methods.dep import Dep

__all__ = ["one_thread"]

QUICK = ("--generate", "0", "--probe-users", "0", "--limit", "2")
NAMES = [
    "autoencoder",
    "soft tokens",
    "nearest words",
    "influence on the real texts",
    "influence on what is written",
    "traits that a linear probe can read",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def made(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredRun]:
    """A run of dep and one of rag."""
    runs = make_runs(tmp_path_factory.mktemp("runs"), parts, ("dep", "rag"))
    return {run.method: run for run in runs}


@pytest.fixture
def copy(made: dict[str, StoredRun], tmp_path: Path) -> StoredRun:
    """The run of dep in a store of its own, to be damaged."""
    root = made["dep"].path.parents[2]
    shutil.copytree(root, tmp_path / "moved")
    return StoredRun.load(tmp_path / "moved" / made["dep"].path.relative_to(root))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_section_is_told_and_stored_beside_the_run_without_training(
    copy: StoredRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a diagnosis never trains")

    monkeypatch.setattr(Dep, "fit", refuse)
    code, out, err = call(["diagnose", copy.path, *QUICK, "--json", "--out", tmp_path / "more" / "d.json"], capsys)
    assert (code, "Traceback" in err) == (0, False)
    told = json.loads(out)
    assert [section["name"] for section in told["sections"]] == NAMES
    assert all(section["reading"] and (section["rows"] or section["note"]) for section in told["sections"])
    assert told["dataset"]["examples"] == 2
    assert told["options"] == {"generate": 0, "probe_users": 0}
    assert told["run"]["key"] == copy.key
    assert (
        json.loads((copy.path / DIAGNOSIS).read_text())
        == told
        == json.loads((tmp_path / "more" / "d.json").read_text())
    )
    assert copy.damage() is None
    code, text, _ = call(["diagnose", copy.path, *QUICK], capsys)
    assert code == 0
    assert all(name.upper() in text for name in NAMES)
    assert "KL a token" in text
    assert max(map(len, text.splitlines())) < 160


def test_texts_are_written_anew_and_traits_probed_where_asked(copy: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.metrics.rouge import Rouge1

    monkeypatch.setattr("methods.dep.diagnosis._metrics", lambda: [Rouge1()])  # METEOR needs WordNet
    told = diagnose(copy.path, 3, DiagnosisOptions(generate=2, probe_users=None))
    sections = {section["name"]: section for section in told["sections"]}
    written = {row["change"]: row for row in sections["influence on what is written"]["rows"]}
    assert {"full", "difference tokens zeroed", "all soft tokens of another user"} <= set(written)
    assert written["full"]["texts that differ"] is None
    assert "too few" in sections["traits that a linear probe can read"]["note"]  # a dozen users share few values
    assert "INFLUENCE ON WHAT IS WRITTEN" in as_text(told)


def test_an_ablations_variant_is_diagnosed_as_it_ran(parts: dict[str, Any], tmp_path: Path) -> None:
    runs = make_runs(tmp_path, parts, ablate=("history tokens only",))
    variant = next(run for run in runs if run.description["method"]["config"]["tokens"] == "history")
    told = diagnose(variant.path, 2, DiagnosisOptions(0, 0))
    assert told["method"]["config"]["tokens"] == "history"
    rows = {section["name"]: section["rows"] for section in told["sections"]}["influence on the real texts"]
    assert not any("difference" in row["change"] for row in rows)


def test_the_command_that_makes_a_lost_fit_is_told_and_nothing_is_fitted(
    copy: StoredRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit_folder(copy)
    shutil.rmtree(folder)
    code, _, err = call(["diagnose", copy.path, *QUICK], capsys)
    assert code == 2
    assert "is gone" in err
    line = err.partition("make it again with: ")[2].split()
    assert line[:6] == ["python", "-m", "bench", "run", "--methods", "dep,rag"]
    assert line[-2:] == ["--existing", "overwrite"]
    assert str(copy.path.parents[2]) in line
    assert not folder.exists()
    assert not (copy.path / DIAGNOSIS).exists()


def test_what_is_no_fitted_run_is_refused_in_one_line(
    made: dict[str, StoredRun], copy: StoredRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path, words in (
        (tmp_path / "nowhere", "no run at"),
        (copy.path.parents[2], "holds 1 runs of methods that train"),
        (made["rag"].path, "has nothing to diagnose"),
    ):
        code, _, err = call(["diagnose", path, *QUICK], capsys)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert words in err
    (copy.path / MANIFEST).unlink()
    code, _, err = call(["diagnose", copy.path, *QUICK], capsys)
    assert (code, "is not complete" in err) == (2, True)


def test_another_dataset_engine_or_code_is_refused_by_name(
    copy: StoredRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Dep, "version", "0")
        code, _, err = call(["diagnose", copy.path, *QUICK], capsys)
        assert (code, "another method.version" in err) == (2, True)
    edit(copy.path / PLAN, '"hf.dtype=float32"', '"hf.dtype=bfloat16"')
    code, _, err = call(["diagnose", copy.path, *QUICK], capsys)
    assert (code, "another engine.dtype" in err) == (2, True)
    edit(copy.path / PLAN, '"hf.dtype=bfloat16"', '"planted.noise=0.5"')
    code, _, err = call(["diagnose", copy.path, *QUICK], capsys)
    assert (code, "another state of dataset 'planted'" in err) == (2, True)


def test_a_command_line_told_by_a_run_makes_that_very_run(made: dict[str, StoredRun]) -> None:
    from bench.reopen import config_of, method_overrides

    run = made["dep"]
    overrides = (*(o for o in config_of(run).overrides if not o.startswith("dep.")), *method_overrides(run))
    plan = make_plan(build(RunConfig, {**config_of(run).model_dump(), "overrides": overrides, "dry_run": True}, "run"))
    assert plan.methods[0].config.model_dump(mode="json") == run.description["method"]["config"]


def test_a_folder_that_cannot_be_written_is_told(made: dict[str, StoredRun], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        diagnose(made["dep"].path, 1, DiagnosisOptions(0, 0), tmp_path / "file" / "d.json")
