"""The scripts under docs/examples do what they say, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_world import make_runs, tiny_parts
from tiny_engine import one_thread

import methods.dep
from bench.export import export

__all__ = ["one_thread"]

SMALL = ("planted.users=12", "planted.items=20", "hf.max_batch=4")
EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


def run_example(name: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a script printed; it must end well."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent.parent), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(printed: str) -> list[str]:
    """The script's four texts: Anna's and Ben's, sampled and greedy."""
    anna, ben = printed.split("== Anna\n")[1].split("== Ben\n")
    ben, greedy = ben.split("== greedy\n")
    for part, lonely in ((anna, 0), (ben, 1)):
        assert part.count("history token of length") == part.count("difference token of length") == 2
        assert part.count("nobody to compare with") == lonely
    first, second = greedy.removeprefix("Anna: ").split("\n\nBen: ")
    return [anna.partition("\n\n")[2].strip(), ben.partition("\n\n")[2].strip(), first.strip(), second.strip()]


@pytest.mark.slow
def test_the_notebook_runs_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "cache"))
    run = make_runs(tmp_path / "runs", tiny_parts(tmp_path))[0]
    export(run.path, tmp_path / "my-dep")
    # It looks for my-dep where it runs, and for the models beside it, under the names they had.
    assert len(check(run_example("dep_notebook.py", cwd=tmp_path))) == 4


@pytest.mark.weights
@pytest.mark.slow
def test_the_notebook_runs_on_real_weights(tmp_path: Path) -> None:
    run = make_runs(
        tmp_path / "runs",
        {"model": "smollm2-135m", "encoder": "minilm"},
        limit=1,
        train_limit=2,
        max_new_tokens=24,
        temperature=0.8,
        overrides=[*SMALL, "dep.epochs=1", "dep.n_history=2", "dep.max_target_tokens=48"],
    )[0]
    export(run.path, tmp_path / "my-dep")
    texts = check(run_example("dep_notebook.py", str(tmp_path / "my-dep"), cwd=tmp_path))
    assert all(len(text.split()) > 3 for text in texts), texts
    assert texts[2] != texts[3]


def test_a_missing_export_is_told(tmp_path: Path) -> None:
    from bench.errors import UsageError

    with pytest.raises(UsageError, match="python -m bench export"):
        methods.dep.load(tmp_path / "my-dep")
