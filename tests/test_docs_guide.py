"""The guide leads where it says: commands are run, small numbers worked out again, lists compared with the code."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
import statistics
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_docs_pages as pages
import typer
from amazon_world import meta_line, review_line, write_lines
from test_docs_pages import DOCS, SUBSTITUTIONS, Reader, blocks

from bench.cells import COSTS
from bench.cli import app
from bench.keys import digest

ROOT = DOCS.parent
GUIDE = ("README.md", "quick-start.md", "concepts.md", "reading-the-table.md", "verbs.md")
REPORT = "python -m bench report results/runs --out report"
NEEDS_MORE = ("fetch", "throughput", "diagnose", "export", "judge")
"""Verbs that need a network, minutes or a trained model: their examples are parsed, not run."""

reader = pages.reader  # the fixture


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def squeezed(text: str) -> str:
    return " ".join(text.split())


# --- quick start -------------------------------------------------------------------------------------------------


def checkout(into: Path) -> Path:
    """A fresh clone: what installing and running need of it."""
    into.mkdir()
    for name in ("bench", "methods", "datasets", "experiments", "results/paper"):
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, into / name)
    return into


@pytest.mark.slow
def test_the_quick_start_leads_from_a_fresh_clone_to_a_report(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = "python -m pip install --no-deps --no-build-isolation --no-index --quiet --disable-pip-version-check"
    monkeypatch.setitem(SUBSTITUTIONS, "python3 -m venv .venv", "python3 -m venv --without-pip .venv")
    # The reader's environment has all packages, and the clone's own code comes first in the clone's folder.
    monkeypatch.setitem(SUBSTITUTIONS, "python -m pip install -c constraints.txt -e .", "true")
    monkeypatch.setitem(SUBSTITUTIONS, "python -m pip install --no-deps", offline)
    reader.folder = checkout(reader.folder / "dep-bench")
    reader.do("python -m bench --help")
    reports = re.search(r"^ +report ", reader.said["python -m bench --help"], re.M) is not None
    if not reports:
        monkeypatch.setitem(SUBSTITUTIONS, REPORT, "true")
    reader.follow("quick-start.md")
    said, here = reader.said, reader.folder
    run = "python -m bench run --methods nonperso,rag{} --limit 8 --max-new-tokens 64"
    assert "Item title" in said[f"{run.format('')} --dry-run"]
    assert "no leaks" in said["python -m bench data show planted"]
    assert said["python -m bench table"] == said[run.format("")]
    assert (here / "table.tex").read_text().count(r"\toprule") == 2
    assert "my_voice.py" in said["python -m bench new-method my-voice"]
    assert rows(said[run.format(",my-voice")]) == {"my-voice", "nonperso", "rag"}
    assert "no leaks" in said["python -m bench data show walks.toml"]
    own = said["python -m bench run --dataset walks.toml --methods nonperso,rag,my-voice --max-new-tokens 64"]
    assert own.startswith("Leaderboard: walks\n")
    assert rows(own) == {"my-voice", "nonperso", "rag"}
    if reports:
        assert (here / "report" / "index.html").is_file()


def rows(table: str) -> set[str]:
    """Names of the rows of its first grid."""
    grid = re.search(r"^-[- ]+\n((?:\S.*\n)+)", table, re.M)
    assert grid is not None
    return {line.split()[0] for line in grid[1].splitlines()}


def test_the_table_of_the_quick_start_has_columns_that_exist() -> None:
    """Real weights wrote it, so only its shape can be held against the code here."""
    grids = [block.text for block in blocks("quick-start.md") if block.language == "text"]
    assert len(grids) == 1
    heads = re.findall(r"^(method .*)\n-", grids[0], re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {"method", *project["entry-points"]["bench.metrics"], *(title for title, _ in COSTS.values())}
    assert len(heads) >= 2
    for head in heads:
        assert set(re.split(r"\s{2,}", head)) <= known


# --- concepts ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_on_concepts_names_what_lies_on_disk(reader: Reader) -> None:
    reader.follow("concepts.md")
    files = reader.said["find results/runs -type f"].splitlines()
    plans = [Path(file) for file in files if file.endswith("/plan.json")]
    assert len(plans) == 4  # two methods, two seeds
    page = text_of("concepts.md")
    table = page[page.index("| part | what is in it |") : page.index("Change one of them")]
    named = re.findall(r"^\| `(\w+)` \|", table, re.M)
    for plan in plans:
        description = json.loads((reader.folder / plan).read_text())["description"]
        assert sorted(named) == sorted(description)
        assert plan.parent.name == digest(description)
    hidden = {file for file in files if Path(file).name.startswith(".")}
    for file in set(files) - hidden:
        folder = "results/runs/configs/" if "/configs/" in file else Path(file).name
        assert folder in page


def test_the_picture_can_be_read() -> None:
    """By a screen reader, in light and dark, with every noun of the flow in it and nothing outside of the frame."""
    space = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring((DOCS / "concepts.svg").read_text(encoding="utf-8"))
    ids = {part.get("id"): "".join(part.itertext()) for part in picture.iter() if part.get("id")}
    labels = (picture.get("aria-labelledby") or "").split()
    assert picture.get("role") == "img"
    assert len(labels) == 2
    assert all(len(ids[label].strip()) > 20 for label in labels)
    flow = "dataset spec, split, method, requests, engine, generations, scores, records, table"
    names = [part.text for part in picture.iter(f"{space}text") if part.get("class") == "name"]
    assert sorted(map(str, names)) == sorted([*flow.split(", "), "population"])
    page = text_of("concepts.md").lower()
    assert flow in squeezed(page)
    assert flow in squeezed(ids["desc"])
    assert all(f"**{name.rstrip('s')}" in page for name in map(str, names))
    width, height = map(float, (picture.get("viewBox") or "").split()[2:])
    for part in picture.iter():
        assert 0 <= float(part.get("x", 0)) <= width
        assert 0 <= float(part.get("y", 0)) <= height
    style = "".join(part.text or "" for part in picture.iter(f"{space}style"))
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert coloured(light) == coloured(dark)


def coloured(style: str) -> set[tuple[str, str]]:
    """(selector, property) of every colour."""
    rules = re.findall(r"([.\w]+) \{([^{}]*)\}", style)
    return {(name, key) for name, rule in rules for key in re.findall(r"(fill|stroke): #", rule)}


# --- reading the table -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_on_the_table_says_what_is_printed_and_how_it_comes_about(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "python -m bench table runs"
    refused = f"{table} --dataset tea"
    monkeypatch.setitem(SUBSTITUTIONS, refused, f"! {refused} 2>&1")
    reader.follow("reading-the-table.md")
    commands = (
        f"{table} --metrics rouge1",
        table,
        table,
        f"{table} --metrics rouge1 --wins --detectable",
        refused,
        f"{table} --mixed --metrics rouge1",
    )
    shown = [block.text for block in blocks("reading-the-table.md") if block.language == "text"]
    for command, text in zip(commands, shown, strict=True):
        # Which of two rows alike is "#2" depends on the names of their folders, hence on versions of packages.
        printed = re.sub(r" #\d", "", squeezed(reader.said[command]))
        for part in filter(None, map(squeezed, text.splitlines())):
            assert part in printed, command


def test_the_worked_numbers_of_the_page_on_the_table() -> None:
    """Worked out again from the texts on the page, by hand or by another way than the table's."""
    from scipy import stats

    page = squeezed(text_of("reading-the-table.md"))
    made = {block.file: block.text for block in blocks("reading-the-table.md")}["make_tea.py"]
    assert made is not None
    texts = [line.split('"')[3::2] for line in made.splitlines() if line.startswith('    "')]
    values = [overlap(last, true) for _, last, true in texts]
    n, mean, sd = len(values), statistics.fmean(values), statistics.stdev(values)
    error, t = sd / math.sqrt(n), float(stats.t.ppf(0.975, n - 1))
    told = [f"{value:g}".replace("0.", ".") for value in values]
    assert f"`copy-last` has {', '.join(told[:-1])} and {told[-1]}: the mean is {mean:.3f}" in page
    assert f"the eight values is {sd:.3f}, divided by √{n} that is {error:.3f}, times {t:.3f}" in page
    assert f"{t * error:.3f}, so {mean:.3f} ± {t * error:.3f}" in page
    assert f"[{mean - t * error:.3f}, {mean + t * error:.3f}]" in page
    # nonperso scores 0 for everybody, so the differences are the values.
    signs = itertools.product((1, -1), repeat=n)
    ways = [abs(sum(v * s for v, s in zip(values, row, strict=True))) for row in signs]
    extreme = sum(way >= sum(values) - 1e-9 for way in ways)
    assert f"only {extreme} of the ways" in page
    assert f"{extreme}/{len(ways)} = {extreme / len(ways):.4f}" in page
    holm = 2 * extreme / len(ways)
    assert f"so both become {holm:.4f}, shown rounded up as {math.ceil(holm * 1000) / 1000}" in page
    assert f"4 × {extreme / len(ways):.4f} = {4 * extreme / len(ways):.4f}" in page
    assert 2 / 2**5 > 0.05 > 2 / 2**6
    found = re.search(r"eight users it is ([\d.]+\d)", page)
    assert found is not None
    assert power_of(float(found[1]), error, n) == pytest.approx(0.8, abs=0.002)
    assert f"copy-last {found[1]}" in page
    assert f"copy-last {sum(v > 0 for v in values)}/{values.count(0)}/0" in page
    seeds = re.search(
        r"seeds of `rag` scored ([\d.]+) and ([\d.]+), so sd is their distance divided by √2, ([\d.]+\d)", page
    )
    assert seeds is not None
    scores = [float(seeds[1]), float(seeds[2])]
    assert f"{statistics.stdev(scores):.3f}" == seeds[3]
    assert f"rag {statistics.fmean(scores):.3f}_ [0.038, 0.126] sd {seeds[3]}" in page
    # For few users the table leaves out less than 2.5 % on each side, so that the interval is about Student's.
    low, high = resampled(values, statistics.NormalDist().cdf(-math.sqrt(n / (n - 1)) * t))
    interval = re.search(r"copy-last 0\.500\* \[([\d.]+), ([\d.]+)\]", page)
    assert interval is not None
    step = 1 / 4 / n  # of the mean
    assert float(interval[1]) == pytest.approx(low, abs=1.1 * step)
    assert float(interval[2]) == pytest.approx(high, abs=1.1 * step)


def overlap(text: str, reference: str) -> float:
    """ROUGE-1 (F) of texts without repeated words."""
    ours, theirs = set(text.lower().split()), set(reference.lower().split())
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def power_of(difference: float, error: float, n: int) -> float:
    """Of a two-sided paired t-test at 5 %, from the noncentral t."""
    from scipy import stats

    critical = stats.t.ppf(0.975, n - 1)
    return float(stats.nct.sf(critical, n - 1, difference / error))


def resampled(values: list[float], tail: float, draws: int = 20_000) -> tuple[float, float]:
    """The mean of users drawn with replacement, with `tail` of the draws left out on each side."""
    chance = random.Random(1)
    means = sorted(statistics.fmean(chance.choices(values, k=len(values))) for _ in range(draws))
    cut = round(tail * draws)
    return means[cut], means[-cut - 1]


# --- verbs -------------------------------------------------------------------------------------------------------


def registered(command: Any = None, before: str = "") -> Iterator[str]:
    """Every verb of the command line, `data show` with both its words."""
    command = command or typer.main.get_command(app)
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from registered(inner, f"{before}{name} ")
        else:
            yield before + name


def entries() -> dict[str, str]:
    """Verb -> what the page says of it, up to the next verb."""
    parts = re.split(r"^\*\*`([^`]+)`\*\*", text_of("verbs.md"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_on_verbs_has_every_verb_and_no_other() -> None:
    told, there = set(entries()), set(registered())
    assert not there - told, f"docs/verbs.md lacks an entry for: {', '.join(sorted(there - told))}"
    assert not told - there, f"docs/verbs.md has entries for no verb: {', '.join(sorted(told - there))}"


def test_each_verb_has_one_example_that_parses() -> None:
    """Flags and values as the command line takes them; nothing is run."""
    for verb, entry in entries().items():
        lines = re.findall(r"^python -m bench (.*)$", entry, re.M)
        assert len(lines) == 1, verb
        assert lines[0].startswith(verb)
        arguments = lines[0].split()
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context("bench", arguments)  # raises for what it does not know


@pytest.mark.slow
def test_the_examples_of_verbs_run(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    for verb in NEEDS_MORE:
        monkeypatch.setitem(SUBSTITUTIONS, f"python -m bench {verb} ", "true ")
    words = " and more words on it" * 10
    reviews = [review_line(f"u{u}", f"i{i}", u + i, f"{u} on {i}{words}") for u in range(12) for i in range(24)]
    write_lines(reader.folder / "Books.jsonl.gz", reviews)
    write_lines(reader.folder / "meta_Books.jsonl.gz", [meta_line(f"i{i}", [words[:110]]) for i in range(24)])
    reader.follow("verbs.md")
    said = reader.said
    assert rows(said["python -m bench run --methods nonperso,rag --limit 8"]) == {"nonperso", "rag"}
    assert "| rag |" in said["python -m bench table --format markdown"]
    assert "holds to the contract" in said["python -m bench check rag --set k=2"]
    assert (reader.folder / "data" / "books" / "books.toml").exists()


# --- all of it ---------------------------------------------------------------------------------------------------


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of("README.md")))
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= linked
    assert "(docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def links() -> Iterator[tuple[str, str]]:
    for page in GUIDE:
        for target in dict.fromkeys(re.findall(r"\]\((?!https?:)([^)#]+)", text_of(page))):
            yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_of_the_guide_lead_somewhere(page: str, target: str) -> None:
    assert (DOCS / target).exists(), f"docs/{page} links to docs/{target}, which is not there"


def test_the_commands_of_the_page_on_speed_parse() -> None:
    """They take minutes, so that flags and values alone are held against the command line."""
    lines = re.findall(r"^python -m bench (.*)$", text_of("speed.md"), re.M)
    assert len(lines) == 3
    for line in lines:
        verb, *arguments = line.split()
        command: Any = typer.main.get_command(app)
        command.commands[verb].make_context("bench", arguments)  # raises for what it does not know
