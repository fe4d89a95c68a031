"""Names lead to classes through entry points, built in and plugged in alike; slips get the nearest name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import registry
from bench.engines.base import Engine
from bench.errors import UnknownName, UsageError
from bench.method import Method

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """What is installed, as a list to be changed."""
    installed: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in installed if p.group == group])
    registry._points.cache_clear()
    yield installed
    registry._points.cache_clear()


@pytest.mark.parametrize("kind", sorted(registry.GROUPS))
def test_every_entry_point_of_the_project_is_found_and_loads(kind: str) -> None:
    declared = PROJECT["entry-points"][registry.GROUPS[kind]]
    assert set(registry.names(kind)) >= set(declared)
    for name in declared:
        assert registry.load(kind, name).__name__ == declared[name].partition(":")[2]
        assert registry.origin(kind, name) == f"dep-bench {PROJECT['version']}"


def test_methods_engines_and_metrics_know_their_registered_name() -> None:
    for kind, base in (("method", Method), ("engine", Engine)):
        for name, found in ((name, registry.load(kind, name)) for name in registry.names(kind)):
            assert issubclass(found, base)
            assert found.name == name
    for name, found in ((name, registry.load("metric", name)) for name in registry.names("metric")):
        assert found.name == name


def test_names_are_sorted() -> None:
    for kind in registry.GROUPS:
        assert registry.names(kind) == sorted(registry.names(kind))


def test_a_slip_gets_the_nearest_name_and_a_stranger_all_of_them() -> None:
    with pytest.raises(UnknownName, match="unknown method 'nonpreso'; did you mean 'nonperso'"):
        registry.load("method", "nonpreso")
    with pytest.raises(UnknownName, match=r"unknown engine 'zzz'\. Known: fake, hf, openai"):
        registry.load("engine", "zzz")


def test_a_plug_in_that_cannot_be_imported_is_named_with_the_reason(points: list[EntryPoint]) -> None:
    points += [
        EntryPoint("gone", "no_such_module_here:Thing", "bench.methods"),
        EntryPoint("empty", "bench.types:NoSuchThing", "bench.methods"),
    ]
    with pytest.raises(UsageError, match=r"method 'gone'.*no_such_module_here"):
        registry.load("method", "gone")
    with pytest.raises(UsageError, match=r"method 'empty'.*NoSuchThing"):
        registry.load("method", "empty")


def test_two_plug_ins_with_one_name_are_refused_and_a_copy_of_one_is_not(points: list[EntryPoint]) -> None:
    points += [EntryPoint("same", "bench.types:Example", "bench.methods")] * 2
    assert registry.names("method") == ["same"]
    registry._points.cache_clear()
    points.append(EntryPoint("same", "bench.types:Document", "bench.methods"))
    with pytest.raises(UsageError, match=r"'same': bench\.types:Example and bench\.types:Document"):
        registry.load("method", "same")


def test_without_an_installation_the_way_to_install_is_told(points: list[EntryPoint]) -> None:
    with pytest.raises(UsageError, match="pip install -e"):
        registry.load("method", "rag")
