"""What is shipped: no Python where it would shadow a library, a wheel with the right files, no trace of a machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked() -> list[Path]:
    """Files that the repository holds or is about to; all files of the tree where there is no repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if done is None or done.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", ["datasets", "results"])
def test_folders_that_would_shadow_a_library_hold_no_python(folder: str) -> None:
    assert not [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pyi", ".pyc", ".so")]


def test_from_the_root_datasets_is_the_library() -> None:
    code = "import datasets; print(datasets.__file__, datasets.load_dataset)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.partition(" ")[0]).is_relative_to(ROOT / "datasets")


def test_python_dash_m_from_the_root_finds_the_library() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "list", "metrics"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rouge1" in done.stdout


def test_every_entry_point_resolves() -> None:
    for group, points in PROJECT["entry-points"].items():
        installed = {point.name: point for point in entry_points(group=group)}
        for name, value in points.items():
            module, _, attribute = value.partition(":")
            assert getattr(import_module(module), attribute) is installed[name].load()
    module, _, attribute = PROJECT["scripts"]["dep-bench"].partition(":")
    assert callable(getattr(import_module(module), attribute))


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("dep-bench")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "bench"]
    done = subprocess.run([*command, "run", "--methods", "rga"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown method 'rga'; did you mean 'rag'?")


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {
        str(path.relative_to(source))
        for package in ("bench", "methods")
        for path in (source / package).rglob("*")
        if path.is_file()
    }
    shipped = {"specs": "datasets", "experiments": "experiments", "published": "results/paper"}
    data = {f"bench/data/{name}/{p.name}" for name, folder in shipped.items() for p in (source / folder).iterdir()}
    assert held == code | data
    assert "bench/data/specs/planted.toml" in held
    assert any(name.endswith(".toml") and name.startswith("bench/data/planted") for name in held)
    assert {name.partition("/")[0] for name in held} == {"bench", "methods"}


def test_no_file_tells_of_a_machine_or_of_work_left() -> None:
    words = re.compile(rb"(?<![\w.])/(?:root|work|home)/|\bTO" + rb"DO\b|\bFIX" + rb"ME\b")
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if words.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line[:80]!r}")
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    for package in ("bench", "methods"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.read_text().startswith('"""'), path
