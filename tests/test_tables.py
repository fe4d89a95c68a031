"""Leaderboards from made-up runs: grouping, ranking, refusals, differences, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import METRICS, MODEL, describe, examples, make_run, make_store

from bench.cells import COSTS, Mark, estimate_cell, p_text
from bench.errors import UnknownName, UsageError
from bench.estimates import METRIC_ORDER
from bench.plan import DEFAULT_METRICS
from bench.render import STYLES, escape_latex, escape_markdown, render, wants_ansi
from bench.stats import Estimate, corpus_bleu, holm, paired_permutation
from bench.store import MetricInfo, find_runs, read_scores, write_scores
from bench.tables import Section, Table, leaderboard, leaderboards


def board(out: Path, **options: Any) -> Table:
    return leaderboard(find_runs(out).runs, **{"resamples": 400, **options})


def column(section: Section, key: str) -> dict[str, Any]:
    """Row label -> cell."""
    keys = [c.key for c in section.columns]
    return {str(row.cells[0].value): row.cells[keys.index(key)] for row in section.rows}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path)
    return tmp_path


def raw_scores(out: Path, method: str, metric: str) -> list[list[tuple[float, ...]]]:
    """The stored values of each run of a method."""
    found = [read_scores(run) for run in find_runs(out).runs if run.method == method]
    return [[v for v in scores.values[metric].values() if v is not None] for scores in found if scores]


def test_scores_are_means_over_examples_and_seeds(store: Path) -> None:
    scores, differences = board(store).sections
    for method in ("nonperso", "rag", "lora", "dep", "oracle"):
        rouge = [np.mean(values) for values in raw_scores(store, method, "rouge1")]
        assert len(rouge) == (3 if method == "dep" else 1)
        assert column(scores, "rouge1")[method].value == pytest.approx(np.mean(rouge), abs=1e-12)
        bleu = [corpus_bleu(np.sum(v, axis=0), np.float64(len(v))) for v in raw_scores(store, method, "bleu")]  # type: ignore[arg-type]
        assert column(scores, "bleu")[method].value == pytest.approx(np.mean(bleu), abs=1e-9)
        cell = column(scores, "rouge1")[method]
        assert cell.low < cell.value < cell.high
        if method != "nonperso":
            gap = np.mean(rouge) - np.mean(raw_scores(store, "nonperso", "rouge1"))
            assert column(differences, "rouge1")[method].value == pytest.approx(gap, abs=1e-12)
    assert "nonperso" not in column(differences, "rouge1")
    assert column(scores, "seeds")["dep"].value == 3


def test_several_seeds_show_their_standard_deviation_beside_the_interval(store: Path) -> None:
    scores, differences = board(store).sections
    for metric in ("rouge1", "copy_rate"):
        each = [np.mean(values) for values in raw_scores(store, "dep", metric)]
        cell = column(scores, metric)["dep"]
        assert cell.spread is not None
        assert (cell.spread.sd, cell.spread.seeds) == (pytest.approx(np.std(each, ddof=1), rel=1e-9), 3)
        assert cell.text.endswith(f"] sd {np.std(each, ddof=1):.3f}")
        assert column(scores, metric)["rag"].spread is None
        assert " sd " not in column(scores, metric)["rag"].text + column(differences, metric)["dep"].text
    assert any("sd: standard deviation over seeds" in note for note in board(store).notes)


def test_wins_and_detectable_differences_stand_beside_the_differences_on_request(store: Path) -> None:
    plain = board(store)
    table = board(store, wins=True, detectable=True)
    assert table.sections[:2] == plain.sections
    _, _, wins, smallest = table.sections
    users = np.repeat(np.arange(12), 2)
    for metric, sign in (("rouge1", 1), ("copy_rate", -1)):
        base = np.array(raw_scores(store, "nonperso", metric)).mean(axis=(0, 2))
        for method in ("rag", "lora", "dep", "oracle"):
            gaps = sign * (np.array(raw_scores(store, method, metric)).mean(axis=(0, 2)) - base)
            by_user = [gaps[users == user].mean() for user in range(12)]
            counts = [
                sum(gap > 0 for gap in by_user),
                sum(gap == 0 for gap in by_user),
                sum(gap < 0 for gap in by_user),
            ]
            assert column(wins, metric)[method].text == "/".join(map(str, counts))
            # with two examples each the error is s / sqrt(n); 3.0784 is the noncentrality of 11 degrees of freedom
            size = 3.0784 * np.std(by_user, ddof=1) / np.sqrt(12)
            assert column(smallest, metric)[method].value == pytest.approx(size, rel=2e-3)
    assert {cell.text for key in ("bleu", "length_ratio") for cell in column(wins, key).values()} == {"-"}
    assert all(cell.value > 0 for cell in column(smallest, "bleu").values())
    assert next(note for note in table.notes if note not in plain.notes).startswith("Won/tied/lost")
    for style in STYLES:
        text = render([table], style)
        assert ("Smallest detectable difference" in text) == (style not in ("csv", "json"))
    assert render([table], "json") == render([plain], "json")
    assert render([table], "csv") == render([plain], "csv")
    rows = {row["method"]: row for row in json.loads(render([plain], "json"))}
    told = rows["rag"]["difference"]["metrics"]["copy_rate"]
    assert (
        "/".join(str(told["wins"][key]) for key in ("wins", "ties", "losses")) == column(wins, "copy_rate")["rag"].text
    )
    assert told["detectable"] == column(smallest, "copy_rate")["rag"].value
    assert rows["dep"]["metrics"]["rouge1"]["seed_n"] == 3
    assert rows["rag"]["metrics"]["rouge1"]["seed_sd"] is None
    line = next(row for row in csv.DictReader(io.StringIO(render([plain], "csv"))) if row["method"] == "dep")
    assert float(line["rouge1_seed_sd"]) == rows["dep"]["metrics"]["rouge1"]["seed_sd"]
    assert int(line["rouge1_difference_wins"]) == rows["dep"]["difference"]["metrics"]["rouge1"]["wins"]["wins"]
    assert line["bleu_difference_wins"] == ""


def test_best_and_second_go_by_direction_and_leave_out_the_oracle(store: Path) -> None:
    scores = board(store).sections[0]
    for name, sign in (("rouge1", 1), ("bleu", 1), ("copy_rate", -1)):
        cells = {label: cell for label, cell in column(scores, name).items() if label != "oracle"}
        ranking = sorted(cells, key=lambda label: -sign * cells[label].value)
        assert [cells[label].mark for label in ranking] == [Mark.BEST, Mark.SECOND, Mark.NONE, Mark.NONE]
        assert column(scores, name)["oracle"].mark is Mark.NONE
    assert {cell.mark for cell in column(scores, "length_ratio").values()} == {Mark.NONE}
    assert [row.ceiling for row in scores.rows] == [False] * 4 + [True]
    values = [row.cells[1].value for row in scores.rows if not row.ceiling]
    assert scores.columns[1].key == "rouge1"
    assert values == sorted(values, key=lambda v: -float(v or 0))
    assert any("oracle" in note and "not ranked" in note for note in board(store).notes)


def test_equal_values_share_a_place(tmp_path: Path) -> None:
    for method in ("abc", "xyz", "uvw"):  # names of one length draw the same scores
        make_run(tmp_path, method, level=0.3 if method != "uvw" else 0.1)
    cells = column(board(tmp_path).sections[0], "rouge1")
    assert [cells[m].mark for m in ("abc", "xyz", "uvw")] == [Mark.BEST, Mark.BEST, Mark.NONE]


def test_costs(store: Path) -> None:
    table = board(store)
    scores = table.sections[0]
    assert column(scores, "examples_per_second")["rag"].value == pytest.approx(24 / 10)
    assert column(scores, "examples_per_second")["dep"].value == pytest.approx(24 / 10)
    assert column(scores, "prompt_tokens_per_second")["rag"].value == pytest.approx(300 * 24 / 2.5)
    assert column(scores, "generated_tokens_per_second")["rag"].value == pytest.approx((50 - 1) * 24 / 6.25)
    assert column(scores, "prompt_tokens_per_second")["oracle"].text == "-"
    assert column(scores, "generated_tokens_per_second")["oracle"].text == "-"
    assert column(scores, "training_seconds")["dep"].value == 201.0
    assert column(scores, "training_seconds")["nonperso"].text == "-"
    assert column(scores, "peak_memory_bytes")["dep"].text == "700 MiB"
    assert column(scores, "peak_memory_bytes")["rag"].text == "3.00 GiB"
    assert "failed" not in [c.key for c in scores.columns]
    assert [c.key for c in scores.columns if c.kind == "cost"] == ["seeds", *COSTS]


def test_failures_and_missing_values_are_counted(store: Path) -> None:
    make_run(store, "pag", level=0.5, failed=["e000-0"], missing=["e001-1"])
    table = board(store)
    scores, differences = table.sections
    assert {label: cell.value for label, cell in column(scores, "failed").items() if cell.value} == {"pag": 1}
    assert column(scores, "rouge1")["pag"].missing == 2
    assert column(differences, "rouge1")["pag"].missing == 2
    known = raw_scores(store, "pag", "rouge1")[0]
    assert len(known) == 22
    assert column(scores, "rouge1")["pag"].value == pytest.approx(np.mean(known))
    assert any("pag: 2 of each metric" in note for note in table.notes)


def test_configs_of_one_method_are_told_apart(tmp_path: Path) -> None:
    for retriever in ("bm25", "dense"):
        make_run(tmp_path, "rag", level=0.3, config={"retriever": retriever, "n_history": 4})
    make_run(tmp_path, "dep", encoder={"model": "minilm"})
    make_run(tmp_path, "dep", encoder={"model": "bge"})
    make_run(tmp_path, "lora", label="lora (rank=16)")
    table = board(tmp_path)
    assert set(column(table.sections[0], "rouge1")) == {
        "rag (retriever=bm25)",
        "rag (retriever=dense)",
        "dep (encoder.model=bge)",
        "dep (encoder.model=minilm)",
        "lora",
    }
    assert any("not at their defaults: lora (rank=16)." in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"engine": {**MODEL, "model": "other"}}, "engine.model"),
        ({"engine": {**MODEL, "dtype": "bfloat16"}}, "engine.dtype"),
        ({"sampling": {"temperature": 0.0, "top_p": 0.95, "max_new_tokens": 256}}, "sampling.temperature"),
        ({"prompt": {"max_prompt_tokens": 2048}}, "prompt.max_prompt_tokens"),
        ({"dataset": {"name": "world", "fingerprint": "beef", "selection": {"limit": None}}}, "dataset.fingerprint"),
        ({"dataset": {"name": "world", "fingerprint": "f00d", "selection": {"limit": 8}}}, "dataset.selection.limit"),
        ({"metrics": (MetricInfo("rouge1", "rouge1|stem:yes|v1", True),)}, "metrics.rouge1"),
    ],
)
def test_rows_that_differ_are_refused_unless_mixed(store: Path, changes: dict[str, Any], path: str) -> None:
    make_run(store, "pag", level=0.5, **changes)
    with pytest.raises(UsageError, match=rf"differ in {re.escape(path)} .*--mixed") as caught:
        board(store)
    assert "\n" not in str(caught.value)
    table = board(store, mixed=True)
    (footnote,) = [note for note in table.notes if note.startswith("[a]")]
    assert path in footnote
    marked = [
        row.cells[0].text for s in table.sections if s.baseline is None for row in s.rows if "[a]" in row.cells[0].text
    ]
    assert marked == ["pag [a]"]


def test_a_table_orders_the_default_metrics_as_a_run_does() -> None:
    assert sorted(DEFAULT_METRICS, key=METRIC_ORDER.index) == list(DEFAULT_METRICS)


def test_rows_of_several_versions_all_say_which(tmp_path: Path) -> None:
    for version, k in (("1", 8), ("1", 4), ("2", 4)):
        make_run(tmp_path, "mine", version=version, config={"k": k})
    make_run(tmp_path, "rag")
    labels = {str(row.cells[0].value) for row in leaderboard(find_runs(tmp_path).runs).sections[0].rows}
    assert labels == {"mine (k=8, version=1)", "mine (version=1)", "mine (version=2)", "rag"}


def test_runs_that_ask_no_model_clash_with_nobody(store: Path) -> None:
    make_run(store, "oracle", level=0.6, seed=1, sampling={"temperature": 0.0})
    table = board(store)
    assert len([row for row in table.sections[0].rows if row.ceiling]) == 2


def test_mixed_tables_rank_within_a_split_and_model(store: Path) -> None:
    for method in ("nonperso", "rag"):
        make_run(store, method, level=0.9, engine={**MODEL, "model": "big"})
    table = board(store, mixed=True)
    groups = [s for s in table.sections if s.baseline is None]
    assert [s.group for s in groups] == ["model tiny-lm", "model big"]
    assert [set(column(s, "rouge1")) for s in groups] == [
        {"dep", "lora", "nonperso", "oracle", "rag"},
        {"nonperso", "rag"},
    ]
    assert all(Mark.BEST in {cell.mark for cell in column(s, "rouge1").values()} for s in groups)
    assert [s.baseline for s in table.sections if s.baseline] == ["nonperso", "nonperso"]
    rows = json.loads(render([table], "json"))
    assert len(rows) == 7
    assert {row["group"] for row in rows} == {"model tiny-lm", "model big"}


def test_several_datasets_are_several_tables(store: Path) -> None:
    make_run(store, "rag", dataset={"name": "books", "fingerprint": "1", "selection": {}})
    tables = leaderboards(find_runs(store).runs, resamples=50)
    assert [table.dataset for table in tables] == ["books", "world"]
    assert len(tables[0].sections) == 1
    for style in STYLES:
        text = render(tables, style)
        assert "books" in text
        assert "world" in text
    assert len(json.loads(render(tables, "json"))) == 6
    with pytest.raises(UsageError, match="one dataset"):
        leaderboard(find_runs(store).runs)
    with pytest.raises(UsageError, match="no complete run"):
        leaderboards([])


def test_metrics_are_chosen_and_ordered(store: Path) -> None:
    section = board(store, metrics=["copy_rate", "rouge1"]).sections[0]
    assert [c.key for c in section.columns if c.kind == "metric"] == ["copy_rate", "rouge1"]
    assert next(iter(column(section, "copy_rate"))) == "nonperso"
    with pytest.raises(UnknownName, match="did you mean 'rouge1'"):
        board(store, metrics=["rogue1"])


def test_the_baseline_is_chosen(store: Path) -> None:
    table = board(store, baseline="rag")
    assert table.sections[1].baseline == "rag"
    assert set(column(table.sections[1], "rouge1")) == {"nonperso", "lora", "dep", "oracle"}
    with pytest.raises(UnknownName, match="baseline 'nope'"):
        board(store, baseline="nope")
    make_run(store, "rag", config={"n_history": 8})
    with pytest.raises(UsageError, match="several rows are of method 'rag'"):
        board(store, baseline="rag")
    assert board(store, baseline="rag (n_history=8)").sections[1].baseline == "rag (n_history=8)"


def test_p_is_of_ranked_rows_and_metrics_and_corrected_together(store: Path) -> None:
    table = board(store)
    section = table.sections[1]
    users = np.repeat(np.arange(12), 2)

    def values(method: str, metric: str) -> np.ndarray:
        """(seeds, examples, d), in the order of the records."""
        return np.array(raw_scores(store, method, metric))

    raw = {}
    for metric, reducer in (("rouge1", "mean"), ("bleu", "corpus_bleu"), ("copy_rate", "mean")):
        for method in ("rag", "lora", "dep"):
            pair = {"nonperso": values("nonperso", metric), method: values(method, metric)}
            p = paired_permutation(pair, users, reducer=reducer, baseline="nonperso", permutations=400)
            raw[method, metric] = p[method]
    corrected = dict(zip(raw, holm([p for p in raw.values() if p is not None]), strict=True))
    assert len(corrected) == 9
    for metric in (c.key for c in section.columns if c.kind == "metric"):
        for method, cell in column(section, metric).items():
            assert (cell.p, cell.p_holm) == (raw.get((method, metric)), corrected.get((method, metric)))
            assert (cell.mark is Mark.CLEAR) == (corrected.get((method, metric), 1.0) < 0.05)
            assert ("p=" in cell.text or "p<" in cell.text) == ((method, metric) in corrected)
    (told,) = [note for note in table.notes if note.startswith("p: ")]
    assert "Holm-corrected over the 9 differences" in told
    assert "400 permutations" in told


def test_a_section_says_how_many_users_its_differences_are_of(store: Path) -> None:
    section = board(store).sections[1]
    assert section.title == "Difference to nonperso, 12 users"
    make_run(store, "pag", level=0.5, missing=["e001-0", "e001-1"])
    section = board(store).sections[1]
    assert section.title == "Difference to nonperso, 11-12 users"
    users = {label: cell.users for label, cell in column(section, "rouge1").items()}
    assert users == {**dict.fromkeys(("rag", "lora", "dep", "oracle"), 12), "pag": 11}


def test_p_is_rounded_up() -> None:
    texts = {
        0.00099: "p<0.001",
        0.001: "p=0.001",
        0.0496: "p=0.050",
        0.05: "p=0.050",
        0.0501: "p=0.051",
        1.0: "p=1.000",
    }
    assert {p: p_text(p) for p in texts} == texts


def test_runs_without_scores_show_their_cost(store: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    make_run(store, "pag", metrics=())
    table = board(store)
    assert column(table.sections[0], "rouge1")["pag"].text == "-"
    assert column(table.sections[0], "examples_per_second")["pag"].text == "2.40"
    assert any(note.startswith("Not fully scored: pag;") for note in table.notes)
    bare = tmp_path_factory.mktemp("bare")
    make_run(bare, "pag", metrics=())
    assert [s.baseline for s in board(bare).sections] == [None]
    assert any("all rows" in note or "pag" in note for note in board(bare).notes if "scored" in note)


def test_scores_of_other_records_or_cut_short_are_not_shown(store: Path) -> None:
    run = next(run for run in find_runs(store).runs if run.method == "rag")
    heading = json.loads((run.path / "scores.json").read_text())
    (run.path / "scores.json").write_text(json.dumps({**heading, "records_sha256": "0"}))
    assert read_scores(run) is None
    (run.path / "scores.json").write_text(json.dumps(heading))
    rows = (run.path / "scores.jsonl").read_text()
    (run.path / "scores.jsonl").write_text(rows[:-20])
    with pytest.raises(UsageError, match=r"scores\.jsonl cannot be read as scores.*python -m bench score"):
        board(store)
    write_scores(run, METRICS[:1], [{"example_id": "stranger", "scores": {"rouge1": 0.5}}])
    with pytest.raises(UsageError, match="'stranger' does not fit the records"):
        board(store)
    write_scores(run, METRICS[:1], [{"example_id": "e000-0", "scores": {"rouge1": [0.5, 0.5]}}])
    with pytest.raises(UsageError, match="'e000-0' does not fit the records"):
        board(store)
    write_scores(run, [MetricInfo("own", "own", True, "median")], [])
    with pytest.raises(UnknownName, match="reducer 'median'"):
        board(store)


def test_one_user_has_no_interval(tmp_path: Path) -> None:
    for method in ("nonperso", "rag"):
        make_run(tmp_path, method, users=1)
    table = board(tmp_path)
    assert re.fullmatch(r"0\.\d{3}", column(table.sections[0], "rouge1")["rag"].text)
    assert table.notes[0] == "2 examples of 1 users."
    for style in STYLES:
        assert render([table], style)


def test_incomplete_and_damaged_runs_are_not_shown(store: Path) -> None:
    assert make_run(store, "pag", complete=False) is None
    listing = find_runs(store)
    assert len(listing.incomplete) == 1
    assert "pag" not in column(leaderboard(listing.runs, resamples=10).sections[0], "rouge1")


def test_a_copied_run_counts_once(store: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil

    before = board(store)
    run = next(run for run in find_runs(store).runs if run.method == "rag")
    shutil.copytree(run.path, store / "copy")
    assert board(store) == before


# --- formats -----------------------------------------------------------------------------------------------------

HOSTILE = '<script>alert("1")</script> | **b** \\textbf{x} & 50% $y$ #1 _u_ ~z^ [l](http://x)\n\x1b[31mred\u202e'


class Cells(HTMLParser):
    """Texts of table cells, and tags met."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for section in table.sections for row in section.rows]


def test_html_holds_every_cell(store: Path) -> None:
    table = board(store)
    parsed = Cells(render([table], "html"))
    body = [row for row in parsed.rows if row[0] != "method"]
    assert body == texts(table)
    page = render([table], "html")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('class="best"') == 3
    assert page.count('class="second"') == 3


def test_markdown_holds_every_cell(store: Path) -> None:
    table = board(store)
    rows = []
    for line in render([table], "markdown").splitlines():
        if line.startswith("| ") and ":--" not in line and not line.startswith("| method"):
            cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
            rows.append([re.sub(r"\\(.)", r"\1", re.sub(r"\*\*|</?u>", "", cell)) for cell in cells])
    assert rows == texts(table)
    assert render([table], "markdown").count("<u>0") == 2


def test_latex_holds_every_cell(store: Path) -> None:
    table = board(store)
    rows = []
    for line in render([table], "latex").splitlines():
        if line.startswith("{} "):
            cells = line.removeprefix("{} ").removesuffix(r" \\").split(" & ")
            rows.append(
                [re.sub(r"\\(?:textbf|underline)\{([^}]*)\}", r"\1", cell).replace("\\_", "_") for cell in cells]
            )
    assert rows == texts(table)


@pytest.mark.parametrize("ansi", [False, True])
@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_the_console_holds_every_cell_and_keeps_the_width(store: Path, ansi: bool, width: int) -> None:
    table = board(store)
    text = render([table], "console", ansi=ansi, width=width)
    plain = re.sub(r"\x1b\[\d+m", "", text)
    squeezed = re.sub(r"[*_!]? +", " ", plain)
    for row in texts(table):
        for cell in row:
            assert cell in squeezed or re.sub(r"(?<!\d)0\.", ".", cell.replace("p=1.000", "p=1.00")) in squeezed
    if width >= 80:
        assert max(map(len, plain.splitlines())) <= width
    assert ("\x1b[1m" in text) == ansi
    assert ("*: best" in text) == (not ansi)
    assert plain.isascii()


def test_csv_parses_back_to_the_raw_numbers(store: Path) -> None:
    table = board(store)
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(render([table], "csv")))}
    scores, differences = table.sections
    for section, suffix in ((scores, ""), (differences, "_difference")):
        for metric in (c.key for c in section.columns if c.kind == "metric"):
            for label, cell in column(section, metric).items():
                line = rows[label]
                parts = (f"{metric}{suffix}", f"{metric}{suffix}_low", f"{metric}{suffix}_high")
                assert [float(line[part]) for part in parts] == [cell.value, cell.low, cell.high]
                for part, p in (("p", cell.p), ("p_holm", cell.p_holm)) if suffix else ():
                    assert line[f"{metric}_difference_{part}"] == ("" if p is None else str(p))
    assert rows["nonperso"]["rouge1_difference"] == ""
    assert rows["oracle"]["ceiling"] == "True"
    assert float(rows["dep"]["training_seconds"]) == 201.0
    assert rows["dep"]["baseline"] == "nonperso"


def test_json_is_one_array_of_raw_numbers(store: Path) -> None:
    table = board(store)
    rows = {row["method"]: row for row in json.loads(render([table], "json"))}
    scores, differences = table.sections
    for label, row in rows.items():
        for metric, raw in row["metrics"].items():
            cell = column(scores, metric)[label]
            assert (raw["value"], raw["low"], raw["high"]) == (cell.value, cell.low, cell.high)
            assert raw["mark"] == (cell.mark.value or None)
        if label == "nonperso":
            assert row["difference"] is None
        else:
            assert row["difference"]["baseline"] == "nonperso"
            gap = column(differences, "bleu")[label]
            told = row["difference"]["metrics"]["bleu"]
            assert (told["high"], told["p"], told["p_holm"]) == (gap.high, gap.p, gap.p_holm)
            assert (gap.p is None) == (label == "oracle")
    assert rows["oracle"]["ceiling"] is True
    assert rows["oracle"]["prompt_tokens_per_second"] is None


def test_hostile_names_are_shown_and_do_no_harm(tmp_path: Path) -> None:
    make_run(tmp_path, "nonperso", dataset={"name": HOSTILE, "fingerprint": HOSTILE, "selection": {HOSTILE: 1}})
    make_run(
        tmp_path,
        "rag",
        level=0.4,
        label=HOSTILE,
        dataset={"name": HOSTILE, "fingerprint": HOSTILE, "selection": {HOSTILE: 1}},
    )
    table = board(tmp_path)
    page = render([table], "html")
    assert Cells(page).tags == Cells(render([board_of_plain(tmp_path / "plain")], "html")).tags
    assert "&lt;script&gt;" in page
    markdown = render([table], "markdown")
    assert "<script>" not in markdown
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 2  # scores and differences: no row has more columns than its head
    latex = render([table], "latex")
    assert r"\textbackslash{}textbf\{x\} \& 50\% \$y\$ \#1 \_u\_ \textasciitilde{}z\textasciicircum{}" in latex
    assert latex.count(r"\\") == latex.count(r"\\" + "\n")
    for style in STYLES:
        text = render([table], style)
        assert "\x1b" not in text
        assert "\u202e" not in text
    rows = list(csv.DictReader(io.StringIO(render([table], "csv"))))
    assert len(rows) == 2
    assert all(None not in row for row in rows)


def board_of_plain(out: Path) -> Table:
    for method in ("nonperso", "rag"):
        make_run(out, method)
    return board(out)


def test_escapes() -> None:
    assert escape_latex("a_b & 5% {x} \\ ~ ^ # $") == (
        r"a\_b \& 5\% \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \$"
    )
    assert escape_markdown("a|b *c* <d> [e](f) `g` \\") == r"a\|b \*c\* &lt;d&gt; \[e\](f) \`g\` " + "\\\\"


def test_rounding_never_shows_a_negative_zero() -> None:
    cell = estimate_cell(Estimate(-0.0001, -0.0004, 0.0004, 5, 0), "mean", sign=True)
    assert cell.text == "+0.000 [+0.000, +0.000]"
    assert estimate_cell(Estimate(-0.0001, None, None, 1, 0), "mean").text == "0.000"
    assert estimate_cell(Estimate(-0.01, -0.2, 0.0, 5, 0), "mean", sign=True).text == "-0.010 [-0.200, +0.000]"


def test_what_chance_would_score_is_told_where_it_is_known(tmp_path: Path) -> None:
    metrics = (METRICS[0], MetricInfo("author", "author|v1", True, "mean", 0.05))
    for method in ("nonperso", "rag"):
        make_run(tmp_path, method, metrics=metrics)
    (note,) = [note for note in board(tmp_path).notes if "chance" in note]
    assert note == "By chance, from a text that tells nothing of its user: author 0.050."
    assert not [note for note in board(tmp_path, metrics=["rouge1"]).notes if "chance" in note]


def test_unknown_format() -> None:
    with pytest.raises(UnknownName, match="did you mean 'markdown'"):
        render([], "markdwn")


def test_ansi_only_on_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_ansi(Terminal())
    assert not wants_ansi(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_ansi(Terminal())


def test_the_fabricated_runs_are_what_they_claim(store: Path) -> None:
    run = next(run for run in find_runs(store).runs if run.method == "rag")
    assert run.description == describe("rag")
    assert [(r["example_id"], r["user_id"]) for r in run.records] == examples(12)
