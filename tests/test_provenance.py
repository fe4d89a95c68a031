"""What a run was made with is said, and who made it and where is not."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bench import provenance as module
from bench.provenance import provenance


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_machine() -> None:
    found = provenance()
    assert found["packages"]["transformers"] == version("transformers")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_git_commit_and_dirty_flag(tmp_path: Path) -> None:
    assert module._git(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert module._git(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert module._git(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.txt").write_text("b")
    assert module._git(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": True}


def test_an_installed_copy_inside_a_checkout_is_not_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert module._git(tmp_path / "site-packages") is None


def test_survives_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert module._git(tmp_path) is None
    assert provenance()["git"] is None


def test_says_nothing_about_person_or_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sekret")
    text = json.dumps(provenance())
    words = {word for value in _strings(provenance()) for word in value.split()}
    assert getpass.getuser() not in words
    assert socket.gethostname() not in words
    assert "hf_sekret" not in text
    assert not any(value.startswith("/") or ":\\" in value for value in _strings(provenance()))


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bench.provenance import provenance; assert provenance()['device'] is None;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_gpu_name_only_if_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def get_device_name() -> str:
            return "Some GPU"

    class Torch:
        cuda = Cuda

    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert provenance()["device"] == "Some GPU"
    monkeypatch.delitem(sys.modules, "torch")
    assert provenance()["device"] is None
