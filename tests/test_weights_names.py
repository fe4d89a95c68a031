"""What a model name stands for, which folders can be used, and how contents become a revision."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from bench import weights
from bench.errors import UsageError
from bench.weights import local_folder, planned_revision, resolve, revision


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEP_BENCH_CACHE", str(folder))
    return folder


def model_folder(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "model.safetensors").write_bytes(b"abc")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_registry() -> None:
    found = weights.assets()
    assert [a.name for a in found] == ["minilm", "smollm2-135m", "wordnet"]
    assert {a.kind for a in found} == {"llm", "encoder", "data"}
    for made in found:
        assert len(made.sha256) == 64
        assert "==" in made.requirement
        assert made.size > 1e7
        assert made.license
        assert made.description
        assert "\n" not in made.description


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "own"))
    assert weights.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DEP_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "dep-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / ".cache" / "dep-bench"


def test_folder(tmp_path: Path, cache: Path) -> None:
    source = resolve(str(model_folder(tmp_path / "m")), "llm")
    assert (source.origin, source.fetched, source.label) == ("folder", True, "m")
    assert local_folder(source) == (tmp_path / "m").resolve()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("minilm", "llm", "is a text encoder and cannot serve as a language model"),
        ("smollm2-135m", "encoder", "is a language model and cannot serve as a text encoder"),
        ("wordnet", "llm", "is data"),
        ("smolm2-135m", "llm", "did you mean 'smollm2-135m'"),
        ("nothing", "encoder", "unknown encoder 'nothing'.*Known: minilm.*hub id"),
        ("./nowhere", "llm", r"no model folder \./nowhere"),
        ("/no/where", "llm", "no model folder /no/where"),
        ("a/b/c", "llm", "no model folder a/b/c"),
        ("C:\\models\\x", "llm", "no model folder"),
        ("org/na me", "llm", "no model folder"),
        ("", "llm", "unknown model ''"),
    ],
)
def test_names_that_are_none(cache: Path, name: str, kind: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(name, kind)
    assert "\n" not in str(caught.value)


def _remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(folder: Path) -> None:
    shards = {"a": "model.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _bert(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove("config.json"), "holds no config.json"),
        (_remove("model.safetensors"), r"holds no \*\.safetensors"),
        (_remove("tokenizer.json"), "holds no tokenizer"),
        (_pickled, r"holds pytorch_model\.bin but no \*\.safetensors; pickled weights can run code"),
        (_index, r"lacks 1 of its weight files, first: model-2\.safetensors"),
        (_bert, "holds a BertModel, which does not write text"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = model_folder(tmp_path / "m")
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        resolve(str(folder), "llm")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file; give the folder"):
        resolve(str(tmp_path / "model.gguf"), "llm")


# --- revisions -----------------------------------------------------------------------------------------------------


def test_revision_follows_contents_alone(tmp_path: Path, cache: Path) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    first = revision(one)
    assert first == revision(two) == revision(one)
    (one / "README.md").write_text("no part of the model")
    (one / "asset.json").write_text("{}")
    assert revision(one) == first
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        before = revision(two)
        (two / name).write_bytes((two / name).read_bytes() + b" ")
        assert revision(two) != before


def test_revision_reads_each_file_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "m")
    first = revision(folder)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert revision(folder) == first
    monkeypatch.undo()
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"xyz")  # same size, later time
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    monkeypatch.setenv("DEP_BENCH_CACHE", str(cache))
    assert revision(folder) != first


def test_revision_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "m")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "file"))
    assert revision(folder) == revision(folder)


# --- hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the hub's client that serves one model and notes how it was asked."""
    import huggingface_hub

    folder = tmp_path / "snapshots" / COMMIT
    calls: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        if options["local_files_only"] and not folder.is_dir():
            raise FileNotFoundError(repo)
        if not folder.is_dir():
            model_folder(folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_hub_id(hub: list[dict[str, Any]]) -> None:
    source = resolve("org/name@refs/pr/3", "llm")
    assert (source.origin, source.fetched, source.label) == ("hub", False, "org/name@refs/pr/3")
    assert planned_revision(source) is None
    assert hub == []  # nothing was asked for yet
    folder = local_folder(source)
    assert planned_revision(source) == COMMIT == folder.name
    assert resolve("org/name@refs/pr/3", "llm").fetched
    assert (hub[0]["repo"], hub[0]["revision"]) == ("org/name", "refs/pr/3")
    assert all(call["local_files_only"] and call["revision"] == COMMIT for call in hub[1:])
    assert local_folder(source) == folder
    for name in ("modeling_x.py", "pytorch_model.bin", "model.pt", "a.pth", "flax_model.msgpack", "onnx/config.json"):
        taken = any(fnmatch(name, p) for p in hub[0]["allow_patterns"])
        assert not taken or any(fnmatch(name, p) for p in hub[0]["ignore_patterns"])
    for name in ("1_Pooling/config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"):
        assert any(fnmatch(name, p) for p in hub[0]["allow_patterns"])


def _hub_error(kind: str) -> Exception:
    import huggingface_hub.errors as errors

    made: Exception = getattr(errors, kind).__new__(getattr(errors, kind))
    made.args = ("401 for hf_sekrettoken\nmany\nlines",)
    return made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "org/name is gated"),
        ("RepositoryNotFoundError", "the hub has no model org/name"),
        ("RevisionNotFoundError", "org/name has no revision 'v9'"),
        ("LocalEntryNotFoundError", "cannot be downloaded from the hub"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
    ],
)
def test_hub_failures(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str) -> None:
    import huggingface_hub

    def download(*_: Any, **__: Any) -> str:
        raise _hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UsageError, match=message) as caught:
        local_folder(resolve("org/name@v9", "llm"))
    assert "sekret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_naming_imports_nothing_heavy() -> None:
    code = (
        "import sys, bench.weights as w; w.assets(); w.resolve('minilm', 'encoder'); w.resolve('a/b', 'llm');"
        "print([m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
