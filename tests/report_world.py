"""Runs for tests of the report: made up, or made by the fake engine on texts that would do harm if a page ran them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_world import DAY, START, item_rows, review_rows, write_world
from fabricate import make_run, make_store

from bench.__main__ import main
from bench.files import file_digest
from bench.fits import FIT_FILE
from bench.keys import digest
from bench.report import report
from bench.store import StoredRun, find_runs

HOSTILE = (
    "<script>window.hurt=1</script>",
    '<img src=x onerror="window.hurt=2">',
    "</script><script>window.hurt=3</script>",
    "line\u2028and paragraph\u2029separators",
    "</style><svg onload=window.hurt=4>",
    "{{nonce}} &lt;b&gt; &amp; \U0001f600 \u202eturned \ud800 alone",
    "]]> --> <!-- `${window.hurt=5}`",
)
RESAMPLES = 200


def read(name: str, site: Path) -> Any:
    """One piece of a site's data, read without a browser."""
    text = (site / "data" / f"{name}.js").read_text(encoding="ascii")
    assert text.startswith(f"benchData({json.dumps(name)},")
    assert text.endswith(");\n")
    return json.loads(text[len(f"benchData({json.dumps(name)},") : -3])


def site_of(runs: Path, out: Path, **options: Any) -> Path:
    report([runs], out, **{"resamples": RESAMPLES, **options})
    return out


def with_texts(run: StoredRun, texts: Mapping[str, str | None]) -> None:
    """Writes other texts into a stored run, hashes and all."""
    rows = [{**record, "text": texts.get(record["example_id"], record["text"])} for record in run.records]
    (run.path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark = file_digest(run.path / "records.jsonl")
    for name in ("manifest.json", "scores.json"):
        path = run.path / name
        if path.exists():
            path.write_text(json.dumps({**json.loads(path.read_text()), "records_sha256": mark}))


def fitted(out: Path, seed: int = 0, **options: Any) -> StoredRun:
    """A dep run with a fit whose journal lies beside it: two epochs of four steps."""
    key = {"method": {"name": "dep"}, "seed": seed, **options.get("config", {})}
    fit = {"seconds": 12.0, "key": key, "best_epoch": 2, "rows": 8}
    run = make_run(out, "dep", level=0.3, seed=seed, fit=fit, **options)
    assert run is not None
    plan = json.loads((run.path / "plan.json").read_text())
    about = {"config": {"methods": ["dep"], "dataset": "gone.toml"}}
    (run.path / "plan.json").write_text(json.dumps({**plan, "about": about}))
    folder = run.path.parent / f"fit-{digest(key)}"
    folder.mkdir(exist_ok=True)
    (folder / FIT_FILE).write_text(json.dumps(fit))
    steps = [{"step": i, "epoch": 1 + i // 5, "loss": 4 - 0.25 * i} for i in range(1, 9)]
    epochs = [
        {"epoch": n, "train_loss": 4.0 - n, "dev_loss": 3.5 - n / 2, "dev_score": None, "best_epoch": n} for n in (1, 2)
    ]
    lines = [*steps[:4], epochs[0], *steps[4:], epochs[1]]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def ablated_store(out: Path) -> None:
    """The usual five methods, and two controls of dep; dep's fits have journals."""
    make_store(out)
    fitted(out, seed=5, config={"n_history": 4}, label="dep (n_history=4)", variant="four past reviews")
    make_run(out, "dep", level=0.25, config={"n_history": 0}, variant="no history")


def hostile_reviews() -> list[dict[str, Any]]:
    rows = review_rows(users=6, items=8)
    for number, row in enumerate(rows):
        bad = HOSTILE[number % len(HOSTILE)]
        row["text"] = f"{row['text']} {bad} end"
        row["title"] = bad
        row["timestamp"] = START + number * DAY
    return rows


def hostile_runs(folder: Path) -> Path:
    """nonperso under two seeds and rag on a dataset full of HTML, by the fake engine; one text each is pure harm."""
    items = [{**row, "title": f"{row['title']} {HOSTILE[i % len(HOSTILE)]}"} for i, row in enumerate(item_rows(8))]
    spec = write_world(folder / "world", hostile_reviews(), items)
    out = folder / "runs"
    command = ["run", "--engine", "fake", "--dataset", str(spec), "--metrics", "rouge1,length_ratio", "--out", str(out)]
    for more in (["--methods", "nonperso", "--seeds", "0,1"], ["--methods", "rag,copy-last"]):
        with pytest.raises(SystemExit) as done:
            main([*command, *more])
        assert done.value.code == 0
    for run in find_runs(out).runs:
        if run.method == "rag":
            names = [record["example_id"] for record in run.records]
            with_texts(run, dict(zip(names, HOSTILE, strict=False)))
    return out
