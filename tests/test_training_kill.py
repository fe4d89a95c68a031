"""kill -9 while a method is fitted, at file operations, in the middle of writing and at random moments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_engine import lively_model

SCRIPT = Path(__file__).with_name("kill_training.py")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dep"])
def test_a_fit_that_is_killed_and_called_again_ends_with_the_same_bytes(tmp_path: Path, method: str) -> None:
    """Adapter, log and the lines of the journal; times apart."""
    model = lively_model(tmp_path / "model")
    command = [sys.executable, str(SCRIPT), str(model), str(tmp_path), method]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["different"] == []
    assert result["killed"]["event"] >= 4
    assert result["killed"]["write"] == 6  # the states after four steps and two epochs
    assert result["killed"]["delay"] >= 1
    assert {"log", "training.jsonl"} < set(result["files"])
