"""A package of its own brings a method: installed for real, found, listed, run and held to the contract."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the plug-in into, from a copy, without network or build isolation."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(PLUGIN, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        check=True,
        timeout=120,
    )
    return target


def python(installed: Path, *arguments: str, cwd: Path | None = None) -> str:
    """Standard output of a fresh interpreter that sees the plug-in."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_with_its_line_and_where_it_comes_from(installed: Path) -> None:
    rows = {row["name"]: row for row in json.loads(python(installed, "-m", "bench", "list", "methods", "--json"))}
    assert {"nonperso", "rag", "lora", "dep", "oracle"} < rows.keys()
    described = json.dumps(rows["lastreview"])
    assert "The user's newest review as the only example" in described
    assert "dep-bench-lastreview" in described


def test_without_it_the_name_is_unknown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--methods", "lastreview", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert "lastreview" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_it_runs_to_a_table(installed: Path, tmp_path: Path) -> None:
    options = ["--engine", "fake", "--metrics", "rouge1,length_ratio", "--limit", "3", "--out", str(tmp_path / "runs")]
    table = python(installed, "-m", "bench", "run", "--methods", "lastreview,nonperso", *options, cwd=tmp_path)
    assert "lastreview" in table
    assert "rouge1" in table
    records = list((tmp_path / "runs").rglob("*lastreview*/**/records.jsonl"))
    assert len(records) == 1
    assert len(records[0].read_text().splitlines()) == 3
    again = python(installed, "-m", "bench", "table", str(tmp_path / "runs"), "--json", cwd=tmp_path)
    assert "lastreview" in again


def test_it_holds_to_the_contract(installed: Path) -> None:
    code = (
        "from bench import registry, testing; testing.check_method(registry.load('method', 'lastreview')); print('ok')"
    )
    assert python(installed, "-c", code).strip() == "ok"
