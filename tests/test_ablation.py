"""Ablations: which rows a run gets, how they are called and compared, and that nothing is learned twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ablation_world import Taps, register
from cli_world import FAKE, call, only_run
from fabricate import make_run

from bench.config import build
from bench.errors import UnknownName, UsageError
from bench.method import Context, Method, Variant
from bench.plan import Plan, RunConfig, make_plan
from bench.preview import dry_run_text
from bench.render import render
from bench.rescore import rescore
from bench.runner import execute
from bench.store import StoredRun, find_runs
from bench.tables import Table, leaderboard
from bench.types import Capability, Example, Request

CONTROLS = [
    ("taps", {}),
    ("taps: no lesson", {"lesson": "none"}),
    ("taps: whispered", {"whisper": True}),
    ("taps: 1 reviews", {"n": 1}),
    ("taps: 2 reviews", {"n": 2}),
    ("taps: 8 reviews", {"n": 8}),
    ("rag: same reviews", {"k": 4}),
]
"""Title and changed knobs of the rows of `--methods taps --ablate controls`: four reviews are the full method."""


class Echo(Taps):
    """A second method with variants of its own: one knows the truth, one sets a knob that is not there."""

    name = "echo"

    def ablations(self) -> Mapping[str, Sequence[Variant]]:
        return {
            "controls": [Variant("one review", {"n": 1})],
            "ceilings": [Variant("the truth", {}, "oracle")],
            "faulty": [Variant("no such knob", {"m": 1})],
            "soft": [Variant("soft tokens", {}, "needy")],
        }


class Needy(Method):
    """Needs what the fake engine does not give."""

    name = "needy"
    needs = frozenset({Capability.SOFT_PROMPT})

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        raise AssertionError("this is refused before anything runs")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Taps, Echo, Needy)
    monkeypatch.setattr(Taps, "fits", [])


def plan(out: Path, methods: str, ablate: str, assign: Sequence[str] = (), **changes: Any) -> Plan:
    given = {
        "methods": methods.split(","),
        "ablate": ablate.split(",") if ablate else [],
        "engine": "fake",
        "metrics": ["rouge1", "length_ratio"],
        "overrides": ["planted.users=12", "planted.items=20", *assign],
        "out": out,
        "max_new_tokens": 40,
        **changes,
    }
    return make_plan(build(RunConfig, given, "run"))


def run(out: Path, methods: str, ablate: str, assign: Sequence[str] = (), **changes: Any) -> list[StoredRun]:
    return execute(plan(out, methods, ablate, assign, **changes), report=lambda line: None)


def rows(planned: Plan) -> list[tuple[str, dict[str, Any]]]:
    return [(one.title, one.method.config.changed()) for one in planned.planned]


def titles(out: Path, methods: str, ablate: str, assign: Sequence[str] = ()) -> list[str]:
    return [title for title, _ in rows(plan(out, methods, ablate, assign))]


def labels(table: Table) -> set[str]:
    return {str(row.cells[0].value) for row in table.sections[0].rows}


# --- the plan ----------------------------------------------------------------------------------------------------


def test_a_method_is_followed_by_its_variants_but_for_the_one_that_it_is(tmp_path: Path) -> None:
    assert rows(plan(tmp_path, "taps", "controls")) == CONTROLS
    assert rows(plan(tmp_path, "taps", "")) == CONTROLS[:1]


def test_variants_start_from_what_the_user_set(tmp_path: Path) -> None:
    assign = ["taps.n=2", "taps.lesson=short", "rag.retriever=recency"]
    assert rows(plan(tmp_path, "taps", "controls", assign)) == [
        ("taps", {"n": 2, "lesson": "short"}),
        ("taps: no lesson", {"n": 2, "lesson": "none"}),
        ("taps: whispered", {"n": 2, "lesson": "short", "whisper": True}),
        ("taps: 1 reviews", {"n": 1, "lesson": "short"}),
        ("taps: 4 reviews", {"lesson": "short"}),
        ("taps: 8 reviews", {"n": 8, "lesson": "short"}),
        ("rag: same reviews", {"k": 2, "retriever": "recency"}),
    ]


def test_named_methods_stay_and_equal_rows_come_once(tmp_path: Path) -> None:
    names = [title for title, _ in CONTROLS]
    assert titles(tmp_path, "nonperso,taps,oracle", "controls") == ["nonperso", *names, "oracle"]
    assert titles(tmp_path, "taps,rag", "controls") == [*names, "rag"]
    equal = titles(tmp_path, "taps,rag", "controls", ["rag.k=4"])
    assert equal == [*names[:-1], "rag"]  # what was named keeps its plain name
    assert titles(tmp_path, "taps", "controls,sizes") == names
    assert titles(tmp_path, "taps,echo", "controls") == [*names, "echo", "echo: one review"]


def test_an_item_may_be_one_variant_or_an_ablation_that_only_one_method_has(tmp_path: Path) -> None:
    assert titles(tmp_path, "taps", "no lesson") == ["taps", "taps: no lesson"]
    assert titles(tmp_path, "taps", "8 reviews,no lesson") == ["taps", "taps: 8 reviews", "taps: no lesson"]
    assert titles(tmp_path, "rag,taps,echo", "one review") == ["rag", "taps", "echo", "echo: one review"]


def test_the_baseline_is_the_first_method_that_was_expanded(tmp_path: Path) -> None:
    assert plan(tmp_path, "nonperso,taps,echo", "controls").baseline == "taps"
    assert plan(tmp_path, "nonperso,taps,echo", "one review").baseline == "echo"
    assert plan(tmp_path, "nonperso,taps", "").baseline is None


def test_what_no_method_has_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown ablation 'control'; did you mean 'controls'\? Known: .*no lesson"):
        plan(tmp_path, "rag,taps", "control")
    with pytest.raises(UsageError, match=r"--ablate: no ablation is known of rag, nonperso; see: .*list methods"):
        plan(tmp_path, "rag,nonperso", "controls")
    with pytest.raises(UsageError, match="--ablate names controls more than once"):
        plan(tmp_path, "taps", "controls,controls")
    with pytest.raises(UsageError, match="variant 'no such knob' of echo does not go with these settings: unknown key"):
        plan(tmp_path, "echo", "faulty")
    with pytest.raises(UnknownName, match=r"part of this run in --set 'rag'"):
        plan(tmp_path, "taps", "sizes", ["rag.k=2"])


def test_every_row_is_checked_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'needy' needs soft_prompt, which engine 'fake' does not give"):
        plan(tmp_path, "echo", "soft")
    assert plan(tmp_path, "echo", "ceilings").methods[1].needs == {Capability.TRUTH}
    assert plan(tmp_path, "taps", "").encoder is None
    assert plan(tmp_path, "taps", "same reviews", ["rag.retriever=dense"]).encoder is not None


def test_a_dry_run_shows_rows_counts_and_shared_fits(tmp_path: Path) -> None:
    text = dry_run_text(plan(tmp_path, "taps", "controls", seeds=[0, 1]))
    assert "(1 method + 6 variants) x 2 seeds" in text
    assert [line[3:] for line in text.splitlines() if line.startswith("== ")] == [title for title, _ in CONTROLS]
    assert "   knobs   lesson=none" in text
    assert text.count("takes the fit of taps") == 4
    assert text.count("   trains  ") == 6
    assert text.count("first prompt") == 1
    assert text.count("prompts a seed") == len(CONTROLS)


# --- running -----------------------------------------------------------------------------------------------------


def test_runs_are_called_by_their_variant_and_learn_nothing_twice(tmp_path: Path) -> None:
    runs = run(tmp_path, "taps", "controls", seeds=[0, 1])
    assert [stored.title for stored in runs] == [title for title, _ in CONTROLS for _ in range(2)]
    assert Taps.fits == ["plain", "plain", "none", "none"]
    run(tmp_path, "taps", "controls", seeds=[0, 1], existing="overwrite")
    assert Taps.fits == ["plain", "plain", "none", "none"] * 2
    stored = json.loads((runs[2].path / "manifest.json").read_text())
    assert (stored["variant"], stored["label"], stored["truth"]) == ("no lesson", "taps (lesson=none)", False)
    assert "variant" not in stored["description"]
    assert stored["description"]["method"]["config"]["lesson"] == "none"


def test_the_fit_key_is_what_rows_are_said_to_share(tmp_path: Path) -> None:
    """What the dry run promises of shared fits is what is on disk."""
    planned = plan(tmp_path, "taps", "controls")
    run(tmp_path, "taps", "controls")
    promised = {one.fit_identity for one in planned.planned} - {None}
    assert len(promised) == len(list(tmp_path.glob("planted/taps/fit-*/fit.json"))) == 2


def test_a_run_from_before_gets_its_name(tmp_path: Path) -> None:
    (before,) = run(tmp_path, "taps", "", ["taps.n=8"])
    assert before.variant is None
    runs = {stored.title: stored for stored in run(tmp_path, "taps", "sizes")}
    assert runs["taps: 8 reviews"].path == before.path
    assert StoredRun.load(before.path).variant == "8 reviews"  # so that later tables have it too
    assert StoredRun.load(before.path).damage() is None
    # In another ablation it is the full method, whatever it was called before; that name stays in the store.
    (full, *_) = run(tmp_path, "taps", "sizes", ["taps.n=8"])
    assert (full.path, full.title) == (before.path, "taps")
    assert StoredRun.load(before.path).variant == "8 reviews"


def test_only_cached_writes_no_name(tmp_path: Path) -> None:
    for assign in ((), ["taps.n=8"]):
        run(tmp_path, "taps", "", assign)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    runs = run(tmp_path, "taps", "8 reviews", existing="only-cached")
    assert [stored.title for stored in runs] == ["taps", "taps: 8 reviews"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_another_process_holds_is_not_renamed(tmp_path: Path) -> None:
    from filelock import FileLock

    (before,) = run(tmp_path, "taps", "", ["taps.n=8"])
    with FileLock(str(before.path / ".lock")):
        runs = run(tmp_path, "taps", "8 reviews")
    assert runs[1].title == "taps: 8 reviews"
    assert StoredRun.load(before.path).variant is None


def test_an_ablation_is_rescored_and_told_in_the_plan(tmp_path: Path) -> None:
    (full, *_) = run(tmp_path, "taps", "sizes,no lesson")
    assert full.plan["about"]["config"]["ablate"] == ["sizes", "no lesson"]
    rescore(tmp_path, ["copy_rate"], [], force=False)
    assert "copy_rate" in json.loads((full.path / "scores.json").read_text())["metrics"]


def test_the_command_prints_one_table_against_the_full_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FAKE, "--methods", "nonperso,taps,oracle", "--ablate", "controls", "--out", tmp_path]
    code, out, err = call(command, capsys)
    assert code == 0, err
    assert out.count("Leaderboard:") == 1
    assert "Difference to taps, 12 users" in out
    assert "taps: no lesson (lesson=none)" in " ".join(out.split())
    assert "taps: no lesson (seed 0)" in err
    _, again, _ = call(["table", tmp_path], capsys)
    assert [line for line in again.splitlines() if line.startswith("taps: ")] == [
        line for line in out.splitlines() if line.startswith("taps: ")
    ]
    assert "Difference to taps, 12 users" in again
    code, told, _ = call(["table", tmp_path, "--baseline", "taps: 1 reviews", "--json"], capsys)
    bases = {row["method"]: (row["difference"] or {}).get("baseline") for row in json.loads(told)}
    assert (code, bases["taps"], bases["taps: 1 reviews"]) == (0, "taps: 1 reviews", None)
    assert [row["method"] for row in json.loads(told) if row["ceiling"]] == ["oracle"]
    assert only_run(tmp_path, "nonperso").exists()


def test_the_listing_tells_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(["list", "methods", "--json"], capsys)
    found = {row["name"]: row["ablations"] for row in json.loads(out)}
    assert found["nonperso"] == {}
    assert [v["name"] for v in found["taps"]["controls"]][:2] == ["no lesson", "whispered"]
    assert found["taps"]["controls"][-1] == {"name": "same reviews", "method": "rag", "changes": {"k": 4}}
    _, out, _ = call(["list", "methods"], capsys)
    assert "controls, sizes" in out


# --- tables ------------------------------------------------------------------------------------------------------


def stored(out: Path, method: str, config: Mapping[str, Any], **more: Any) -> None:
    level = 0.2 + 0.01 * len(json.dumps(config)) / 10
    make_run(out, method, level=level, config={"n": 4, "lesson": "plain", **config}, **more)


def board(out: Path, **options: Any) -> Table:
    return leaderboard(find_runs(out).runs, resamples=100, **options)


def test_rows_of_one_method_are_told_apart_by_what_differs_alone(tmp_path: Path) -> None:
    own = "dep (batch_size=4, epochs=1, lr=0.003)"
    for config in ({}, {"n": 8}, {"lesson": "none"}, {"n": 8, "lesson": "none"}, {"n": 2}):
        stored(tmp_path, "dep", {"epochs": 1, **config}, label=own)
    # plain lessons are most common, no number of reviews is
    assert labels(board(tmp_path)) == {
        "dep (n=4)",
        "dep (n=8)",
        "dep (lesson=none, n=4)",
        "dep (lesson=none, n=8)",
        "dep (n=2)",
    }
    stored(tmp_path, "dep", {"epochs": 2})
    stored(tmp_path, "dep", {"epochs": 3})
    assert labels(board(tmp_path)) == {
        "dep",
        "dep (n=8)",
        "dep (lesson=none)",
        "dep (lesson=none, n=8)",
        "dep (n=2)",
        "dep (epochs=2)",
        "dep (epochs=3)",
    }


def test_two_variants_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for epochs in (1, 2):
        stored(tmp_path, "dep", {"epochs": epochs})
        stored(tmp_path, "dep", {"epochs": epochs, "lesson": "none"}, variant="no lesson")
    assert labels(board(tmp_path)) == {
        "dep (epochs=1)",
        "dep (epochs=2)",
        "dep: no lesson (epochs=1)",
        "dep: no lesson (epochs=2)",
    }
    assert [section.baseline for section in board(tmp_path).sections] == [None]  # two full methods, none chosen
    with pytest.raises(UsageError, match=r"several rows are of method 'dep'; .*dep \(epochs=1\), dep \(epochs=2\)$"):
        board(tmp_path, baseline="dep")
    assert board(tmp_path, baseline="dep (epochs=2)").sections[1].baseline == "dep (epochs=2)"


def test_the_full_method_is_the_baseline_and_its_name_means_it_alone(tmp_path: Path) -> None:
    stored(tmp_path, "nonperso", {})
    stored(tmp_path, "dep", {}, label="dep (epochs=1)")
    stored(tmp_path, "dep", {"lesson": "none"}, variant="no lesson")
    stored(tmp_path, "dep", {"n": 1}, variant="1 reviews")
    stored(tmp_path, "rag", {}, variant="same reviews", label="rag (k=4)")
    table = board(tmp_path)
    assert labels(table) == {"nonperso", "dep", "dep: no lesson", "dep: 1 reviews", "rag: same reviews"}
    assert [section.baseline for section in table.sections] == [None, "dep"]
    assert board(tmp_path, baseline="dep").sections[1].baseline == "dep"
    assert board(tmp_path, baseline="nonperso").sections[1].baseline == "nonperso"
    assert board(tmp_path, baseline="rag").sections[1].baseline == "rag: same reviews"
    (plain,) = [note for note in table.notes if note.startswith("Knobs")]
    assert "dep (epochs=1)" in plain
    assert "rag: same reviews (k=4)" in plain
    (varied,) = [note for note in table.notes if note.startswith("Variants")]
    assert "dep: 1 reviews (n=1)" in varied
    assert "dep: no lesson (lesson=none)" in varied
    tests = {row.cells[0].value: row.cells[1].p for row in table.sections[1].rows}
    assert set(tests) == labels(table) - {"dep"}
    assert None not in tests.values()


def test_a_name_that_some_seeds_have_is_the_name_of_the_row(tmp_path: Path) -> None:
    for seed in range(2):
        stored(tmp_path, "dep", {}, seed=seed)
        stored(tmp_path, "dep", {"n": 1}, seed=seed, variant="1 reviews" if seed else None)
    assert labels(board(tmp_path)) == {"dep", "dep: 1 reviews"}


@pytest.mark.parametrize("width", [100, 200])
def test_sixteen_rows_of_six_metrics_keep_the_width(tmp_path: Path, width: int) -> None:
    from bench.store import MetricInfo

    metrics = [MetricInfo(f"metric{i}", f"metric{i}|v1", True) for i in range(6)]
    stored(tmp_path, "dep", {}, metrics=metrics)
    for number in range(15):
        stored(tmp_path, "dep", {"n": 10 + number}, metrics=metrics, variant=f"a control with number {number}")
    table = board(tmp_path)
    text = render([table], "console", width=width)
    assert max(map(len, text.splitlines())) <= width
    differences = text.partition("Difference to dep")[2]
    heads = [line.split()[1:] for line in differences.splitlines() if line.startswith("method ")]
    assert [name for head in heads for name in head] == [metric.name for metric in metrics]
    assert len(heads) == (3 if width == 100 else 2)
