"""The command line in tests: run here or in a process of its own, on worlds so small that a run takes no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main

TINY = ("--set", "planted.users=12", "--set", "planted.items=20")
FAKE = ("run", "--engine", "fake", "--dataset", "planted", "--metrics", "rouge1,length_ratio", *TINY)
"""A run without a model on a planted world of a dozen users; methods and --out are still to be given."""

DAY = 86_400_000
START = 1_500_000_000_000

SPEC = """
name = "reviews"
[source]
kind = "jsonl"
reviews = "reviews.jsonl"
items = "items.jsonl"
[filter]
min_text_chars = 1
min_description_chars = 1
min_users_per_item = 1
min_reviews_per_user = 4
min_profile_users_per_item = 1
min_profile_reviews = 1
[split]
train = 1
val = 1
test = 1
"""


def call(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command run in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def process(
    arguments: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same command in a process of its own."""
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)


def review_rows(users: int = 3, items: int = 6) -> list[dict[str, Any]]:
    """Every user on every item, a day apart."""
    return [
        {
            "user_id": f"u{user}",
            "item_id": f"i{item}",
            "rating": 4.0,
            "title": "a title",
            "text": f"words of user {user} about item {item}",
            "timestamp": START + item * DAY + user,
        }
        for user in range(users)
        for item in range(items)
    ]


def item_rows(items: int = 6) -> list[dict[str, Any]]:
    """Items with all that a filter may ask for."""
    return [{"item_id": f"i{n}", "title": f"Item {n}", "description": f"what item {n} is like"} for n in range(items)]


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_world(
    folder: Path,
    reviews: Sequence[Mapping[str, Any]] | str | None = None,
    items: Sequence[Mapping[str, Any]] | None = None,
    spec: str = SPEC,
) -> Path:
    """A dataset of one's own, as spec and two files; returns the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = review_rows() if reviews is None else reviews
    (folder / "reviews.jsonl").write_text(rows if isinstance(rows, str) else json_lines(rows))
    (folder / "items.jsonl").write_text(json_lines(item_rows() if items is None else items))
    (folder / "reviews.toml").write_text(spec)
    return folder / "reviews.toml"


def only_run(out: Path, method: str) -> Path:
    """The folder of the only run of a method."""
    (path,) = (plan.parent for plan in out.glob(f"*/{method}/*/plan.json"))
    return path
