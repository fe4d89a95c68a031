"""`--methods all`: every registered method that engine and dataset can serve, and why the others are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from method_world import context, world

from bench import registry
from bench.config import build
from bench.errors import UsageError
from bench.plan import Plan, RunConfig, make_plan
from bench.preview import dry_run_text
from bench.types import Capability, Generation, Request

REVIEWS = [
    {
        "user_id": f"u{user}",
        "item_id": f"i{(user + turn) % 9}",
        "rating": 4.0,
        "title": f"On {turn}",
        "text": f"Good, said {user} for the time number {turn}.",
        "timestamp": 1_500_000_000_000 + 1000 * (20 * turn + user),
    }
    for user in range(9)
    for turn in range(8)
]
SPEC = """
name = "small"
[source]
kind = "jsonl"
reviews = "reviews.jsonl"
items = "items.jsonl"
[filter]
min_text_chars = 1
min_description_chars = 0
min_users_per_item = 1
min_reviews_per_user = 4
min_profile_users_per_item = 1
min_profile_reviews = 1
[split]
train = 1
val = 1
test = 1
"""


def plan(engine: str, folder: Path, **given: Any) -> Plan:
    values = {"methods": ["all"], "engine": engine, "metrics": ["rouge1"], "dry_run": True, "limit": 2, **given}
    return make_plan(build(RunConfig, {"train_limit": 2, "out": folder, **values}, "run"))


def needs(name: str) -> frozenset[Capability]:
    found: frozenset[Capability] = registry.load("method", name).needs
    return found


def test_all_is_every_method_that_the_engine_can_serve(tmp_path: Path) -> None:
    given = plan("fake", tmp_path)
    able = {n for n in registry.names("method") if needs(n) <= {Capability.TEXT, Capability.TRUTH}}
    assert {m.name for m in given.methods} == able
    assert {"nonperso", "rag", "pag", "copy-last", "oracle"} <= able
    assert set(given.left_out) == set(registry.names("method")) - able
    assert "soft_prompt" in given.left_out["dep"]


def test_the_transformers_engine_serves_them_all(tmp_path: Path) -> None:
    given = plan("hf", tmp_path)
    assert [m.name for m in given.methods] == registry.names("method")
    assert given.left_out == {}


def test_what_is_named_comes_first_and_once(tmp_path: Path) -> None:
    given = plan("fake", tmp_path, methods=["rag", "all", "nonperso"])
    names = [m.name for m in given.methods]
    assert names[:2] == ["rag", "nonperso"]
    assert len(set(names)) == len(names)


def test_a_method_that_cannot_be_imported_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.load

    def load(kind: str, name: str) -> Any:
        if name == "rag":
            raise UsageError("method 'rag' cannot be imported: no module named 'gone'")
        return real(kind, name)

    monkeypatch.setattr(registry, "load", load)
    given = plan("fake", tmp_path)
    assert "gone" in given.left_out["rag"]
    assert "left out   " in dry_run_text(given)
    assert "no module named 'gone'" in dry_run_text(given, width=300)


def test_without_a_known_truth_the_ceiling_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    items = [{"item_id": f"i{n}", "title": f"Thing {n}", "description": "a thing"} for n in range(9)]
    for name, rows in (("reviews", REVIEWS), ("items", items)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "small.toml").write_text(SPEC)
    given = plan("fake", tmp_path, dataset=str(tmp_path / "small.toml"))
    assert "oracle" not in {m.name for m in given.methods}
    assert given.left_out["oracle"] == "dataset 'small' has no known truth"
    with pytest.raises(UsageError, match="known truth"):
        plan("fake", tmp_path, methods=["oracle", "all"], dataset=str(tmp_path / "small.toml"))


BUILT_IN = [name for name in registry.names("method") if registry.origin("method", name).startswith("dep-bench")]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_method_is_told_of(name: str) -> None:
    root = Path(__file__).parents[1]
    assert f"### {name}\n" in (root / "docs" / "methods.md").read_text() or name in FLOORS
    assert f"`{name}`" in (root / "README.md").read_text()


FLOORS = {"copy-last", "copy-nearest", "mean-peer", "oracle"}


@pytest.mark.parametrize("name", [n for n in BUILT_IN if needs(n) == {Capability.TEXT}])
def test_methods_ask_in_the_stages_that_they_tell(name: str) -> None:
    """Under their defaults, on a world where nothing is missing; llm-trsr has a stage for its other paradigm too."""
    small = world(users=8, history=14)
    asked: list[str] = []

    def run(requests: Sequence[Request], stage: str) -> list[Generation]:
        asked.append(stage)
        return [Generation(f"noted of {r.example_id}", 1, 1, "stop") for r in requests]

    method = registry.load("method", name)()
    requests = method.requests(small.test.examples, replace(context(small.population), stage_runner=run))
    told = [stage.name for stage in method.about.stages if stage.name != "merge"]
    assert list(dict.fromkeys([*asked, *(r.stage for r in requests)])) == told
