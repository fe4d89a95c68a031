"""Small LaMP and LongLaMP datasets in their published layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PREFIXES = {
    "LaMP-4": "Generate a headline for the following article: ",
    "LaMP-5": "Generate a title for the following abstract of a paper: ",
    "LaMP-6": "Generate a subject for the following email: ",
    "LaMP-7": "Paraphrase the following tweet without any explanation before or after it: ",
}
WORDS = ("river", "stone", "lamp", "paper", "cloud", "engine", "garden", "window", "market", "winter", "signal", "fox")


def words(*numbers: int, count: int = 6) -> str:
    """Some words, other ones for other numbers."""
    start = sum(number * factor for number, factor in zip(numbers, (7, 5, 3), strict=False))
    return " ".join(WORDS[(start + n * (1 + start % 5)) % len(WORDS)] + str(start % 97) for n in range(count))


def profile_item(task: str, user: int, number: int, dated: bool) -> dict[str, Any]:
    """An item as the task's files have it."""
    item: dict[str, Any] = {"id": f"{user}{number}"}
    if task == "LaMP-7":
        item["text"] = f"tweet {words(user, number)}"
    else:
        item["abstract" if task == "LaMP-5" else "text"] = f"body {words(user, number, count=20)}"
        item["title"] = f"title {words(user, number)}"
    if dated:
        item["date"] = f"2015-0{1 + number}-10"
    return item


def question(task: str, user: int, items: int = 4, dated: bool = False) -> dict[str, Any]:
    """A question with its profile."""
    asked = f"target {words(user, 50, count=20)}"
    profile = [profile_item(task, user, number, dated) for number in range(items)]
    return {"id": f"{user}", "input": PREFIXES[task] + asked, "profile": profile}


def answer(user: int) -> dict[str, str]:
    return {"id": f"{user}", "output": f"answer {words(user, 60)}"}


def write_lamp(
    folder: Path,
    task: str = "LaMP-4",
    train: Sequence[Mapping[str, Any]] | None = None,
    dev: Sequence[Mapping[str, Any]] | None = None,
    dated: bool = False,
    golds: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
) -> Path:
    """The four files of a task and a spec over them; returns the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [question(task, user, dated=dated) for user in range(6)] if train is None else train,
        "dev": [question(task, user, dated=dated) for user in range(20, 23)] if dev is None else dev,
    }
    for part, rows in parts.items():
        (folder / f"{part}_questions.json").write_text(json.dumps(rows))
        outputs = (golds or {}).get(part, [answer(int(row["id"])) for row in rows])
        (folder / f"{part}_outputs.json").write_text(json.dumps({"task": task.replace("-", "_"), "golds": outputs}))
    setting = "time" if dated else "user"
    spec = folder / "mine.toml"
    spec.write_text(f'[source]\nkind = "lamp"\ntask = "{task}"\npath = "."\nsetting = "{setting}"\n')
    return spec


def longlamp_row(task: str, user: int, number: int, items: int) -> dict[str, Any]:
    """A row as the task's table has it."""
    text = f"output {words(user, number, 40, count=30)}"
    if task == "abstract_generation":
        asked = (
            f'Generate an abstract for the title "title {words(user, number, 30)}" using the following items: 1. a 2. b'
        )
        past = [
            {
                "id": f"{n}",
                "title": f"title {words(user, n)}",
                "abstract": f"abstract {words(user, n, count=30)}",
                "year": 2001,
            }
            for n in range(items)
        ]
        return {"name": f"author {user}", "input": asked, "output": text, "profile": past}
    if task == "topic_writing":
        asked = f"Generate the content for a reddit post summary {words(user, number, 30)}"
        past = [
            {
                "author": f"u{user}",
                "content": f"post {words(user, n, count=30)}",
                "id": f"t{n}",
                "summary": f"summary {words(user, n)}",
            }
            for n in range(items)
        ]
        return {"author": f"u{user}", "input": asked, "output": text, "profile": past}
    asked = (
        'Generate the review text written by a reviewer who has a given an overall rating of "4.0" for a product with '
        f'description "what {words(user, number, 30)} is". The summary of the review text is "the "very" best".'
    )
    past = [
        {
            "description": f"thing {words(user, n)}",
            "overall": "5.0",
            "reviewText": f"review {words(user, n, count=30)}",
            "summary": f"summary {n}",
        }
        for n in range(items)
    ]
    return {"reviewerId": f"R{user}", "input": asked, "output": text, "profile": past}


def write_longlamp(
    folder: Path, task: str, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, setting: str = "user"
) -> Path:
    """The three tables of a task as the hub has them and a spec over them; returns the spec's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    users = {"train": range(4), "val": range(10, 12), "test": range(20, 23)}
    place = folder / f"{task}_{setting}"
    place.mkdir(parents=True, exist_ok=True)
    for split, several in users.items():
        table = (rows or {}).get(split, [longlamp_row(task, user, 9, 4) for user in several])
        pq.write_table(pa.Table.from_pylist(list(table)), place / f"{split}-00000-of-00001.parquet")
    spec = folder / "mine.toml"
    spec.write_text(f'[source]\nkind = "longlamp"\ntask = "{task}"\nsetting = "{setting}"\npath = "."\n')
    return spec
