"""What the pages on adding things say is done as they say it: their files are written, their commands are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from amazon_world import meta_line, review_line, write_lines
from api_server import prompt_of, serving

from bench import registry
from bench.check import MEANINGS
from bench.data.amazon_stages import ItemConfig
from bench.data.spec import FilterConfig, SplitConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"

NAMED = ("metrics", "on-a-cluster", "report", "your-own-data")
PAGES = sorted([*DOCS.glob("adding-*.md"), *(DOCS / f"{name}.md" for name in NAMED)])

SUBSTITUTIONS = {
    # All that is run otherwise than it is written: no weights, no network, a world of a dozen users.
    "python -m bench fetch smollm2-135m minilm wordnet": "true",
    "python -m bench run --methods": "python -m bench run --engine fake --metrics rouge1,length_ratio "
    "--set planted.users=12 --set planted.items=20 --methods",
    "python -m bench run --dataset": "python -m bench run --engine fake --metrics rouge1 --dataset",
    "python -m pip install -e .": "python -m pip install --no-deps --no-build-isolation --no-index --quiet "
    "--disable-pip-version-check -e .",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    file: str | None
    """The file it is, where the line before it names one (`path`:)."""


_BLOCK = re.compile(r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text()
    return [Block(m["language"], m["text"], m["file"]) for m in _BLOCK.finditer(text)]


@dataclass
class Reader:
    """Somebody who does what a page says, block by block, with a Python of their own."""

    folder: Path
    python: Path
    """Folder of the interpreter."""
    said: dict[str, str] = field(default_factory=dict)
    """Command -> what it printed."""

    def follow(self, page: str) -> None:
        for block in blocks(page):
            if block.file is not None:
                (self.folder / block.file).write_text(block.text)
            elif block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    self.do(line.partition(" #")[0].strip())

    def do(self, command: str) -> None:
        """One line of a shell; `cd` stays."""
        run = command
        for written, instead in SUBSTITUTIONS.items():
            run = run.replace(written, instead)
        environment = {**os.environ, "PATH": f"{self.python}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        # `python` is the reader's own; where the shell ends up is told on the last line.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{run}\npwd"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{run}\n{done.stdout}\n{done.stderr}"
        out, _, folder = done.stdout.rstrip("\n").rpartition("\n")
        self.folder, self.said[command] = Path(folder), out


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Works in an empty folder, in an environment that sees what this one has and keeps what is installed to itself."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    there = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    # `addsitedir` also reads the .pth files there, such as those of editable installations.
    (own / "outer.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in there))
    (tmp_path / "desk").mkdir()
    return Reader(tmp_path / "desk", home / ("Scripts" if os.name == "nt" else "bin"))


@pytest.mark.slow
def test_the_page_on_methods_leads_to_a_row_on_the_leaderboard(reader: Reader) -> None:
    reader.follow("adding-a-method.md")
    said = reader.said
    checks = [out for command, out in said.items() if "bench check" in command]
    assert len(checks) == 2
    assert all("my-voice (my_voice:MyVoice) holds to the contract" in out for out in checks)
    rows = re.findall(r"^(\S+) +\d", said["python -m bench table"], re.M)
    assert sorted(rows[:3]) == ["my-voice", "nonperso", "rag"]
    assert "I write about" in said["python -m bench run --methods nonperso,rag,my-voice --limit 16 --dry-run"]
    ablated = said["python -m bench run --methods nonperso,my-voice --ablate parts --limit 16"]
    assert all(words in ablated for words in ("no note", "no past reviews", "habits"))


@pytest.mark.slow
def test_the_page_on_the_rest_gives_things_that_work(reader: Reader) -> None:
    reader.follow("adding-a-dataset-metric-or-engine.md")
    said = reader.said
    assert "exclamation marks" in said["python -m bench list metrics"]
    assert "Boils, rests." in said["python -m bench run --dataset kettles.toml --methods nonperso,rag --dry-run"]
    for name in ("counting", "kettles"):
        table = next(
            out
            for command, out in said.items()
            if f"--dataset {name}.toml --methods" in command and "parrot" in command
        )
        assert f"Leaderboard: {name}" in table
        assert "shouting" in table
    # Bob shouts once and the parrot never: Ann's text is 0 marks away, Bob's 1.
    assert "0.5" in said["python -m bench table --dataset kettles"]


@pytest.mark.slow
@pytest.mark.weights
def test_the_page_on_metrics_ends_in_a_table_with_the_real_texts(reader: Reader) -> None:
    reader.follow("metrics.md")
    table = next(out for command, out in reader.said.items() if "bench table" in command)
    assert re.findall(r"^(reference|nonperso|copy-last|mean-peer|rag) ", table, re.M)[4:5] == ["reference"]
    assert "By chance, from a text that tells nothing of its user: author_ngram_rank" in " ".join(table.split())


def test_the_page_on_metrics_names_every_metric() -> None:
    text = (DOCS / "metrics.md").read_text()
    assert [name for name in registry.names("metric") if f"`{name}`" not in text] == []


@pytest.mark.slow
def test_the_page_on_papers_gives_tables(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    small = " --engine fake --limit 2 --set planted.users=14 --methods nonperso,rag"
    monkeypatch.setitem(SUBSTITUTIONS, " --methods nonperso,rag", small)
    reader.follow("reproducing-papers.md")
    dry, dep, dpl, published = reader.said.values()
    assert "in all: 6 runs" in dry
    assert "measured in" not in dry
    assert "dep-table1, ours at another scale: engine fake" in dep
    assert "0.2711 ±0.0058" in dpl  # Non-Perso on Books
    assert "Books, ours on planted" in dpl
    assert "ours: the published settings" in published
    assert "Books (amazon-books): left out" in " ".join(published.split())  # no network in tests


@pytest.mark.slow
def test_the_page_on_reports_gives_one(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(SUBSTITUTIONS, "python -m pip install 'dep-bench[plots]'", "true")
    reader.follow("report.md")
    page = reader.folder / "report" / "index.html"
    assert page.is_file()
    assert list(reader.said.values())[1].strip() == "report/index.html"
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg", ".tex"}


@pytest.mark.slow
def test_the_page_on_engines_gives_runs_on_a_server(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setitem(SUBSTITUTIONS, "pip install 'dep-bench[openai]'", "true")
    monkeypatch.setitem(SUBSTITUTIONS, "--model NAME", "--model tiny --set openai.backoff=0.01")
    monkeypatch.setitem(
        SUBSTITUTIONS,
        "python -m bench run --engine openai",
        "python -m bench run --metrics rouge1 --set planted.users=12 --set planted.items=20 --engine openai",
    )
    with serving() as api:
        monkeypatch.setitem(SUBSTITUTIONS, "http://127.0.0.1:8000/v1", api.url)
        reader.follow("engines.md")
    runs = [out for command, out in reader.said.items() if "bench run" in command]
    assert len(runs) == 3
    assert all("Leaderboard: planted" in out for out in runs)
    assert api.requests == 24  # eight users twice, then the other four: what is there is not asked for again


@pytest.mark.slow
def test_the_page_on_judges_gives_verdicts(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    fake = "python -m bench run --engine fake --metrics rouge1 --set planted.users=8 --set planted.items=20"
    reader.do(f"{fake} --dataset planted --methods nonperso,rag")
    monkeypatch.setitem(SUBSTITUTIONS, "--judge-model NAME", "--judge-model one")
    monkeypatch.setitem(SUBSTITUTIONS, "--judge-model OTHER", "--judge-model two")

    def verdict(body: dict[str, Any]) -> tuple[str, int, int]:
        prompt = prompt_of(body)
        return ("TIE" if "<A>" in prompt else f"{len(prompt) % 9 + (body['model'] == 'two')}"), 9, 1

    with serving(answer=verdict) as api:
        monkeypatch.setitem(SUBSTITUTIONS, "http://127.0.0.1:8000/v1", api.url)
        reader.follow("judging.md")
    dry, first, table, pairs, _, agreed = [*reader.said.values()][1:]
    assert dry == "nothing was asked"
    assert "rag (seed 0): judge:one " in first
    assert "judge:one" in table
    assert "judge-win:one:nonperso 0.500" in pairs
    assert "judge:one, judge:two: 16 texts, Spearman 1.000" in agreed


@pytest.mark.slow
def test_the_page_on_own_data_gives_datasets_that_work(reader: Reader) -> None:
    pytest.importorskip("matplotlib")
    reader.follow("your-own-data.md")
    said = reader.said
    for name, users in (("tea", 2), ("posts", 2), ("tea-parquet", 2)):
        out = said[f"python -m bench data show {name}.toml"]
        assert out.startswith(f"{name}: task ")
        assert f"test {users} users" in out
    assert (
        "Subject of the thread: The weather"
        in said["python -m bench run --dataset posts.toml --methods nonperso,rag --dry-run"]
    )
    assert 'I said "no"; twice.' in said["python -m bench run --dataset posts.toml --methods nonperso,rag --dry-run"]
    assert "Leaderboard: tea-parquet" in said["python -m bench run --dataset tea-parquet.toml --methods nonperso,rag"]
    whole = json.loads(said["python -m bench data show tea.toml --audit full --json"])
    assert whole["audit"]["leaks"] == 0
    assert len(list((reader.folder / "pictures").glob("*.svg"))) == 5


SBATCH = """#!/bin/bash
# Runs a job at once, task after task of an array: what it needs of Slurm.
array=1-1
for argument in "$@"; do
  case $argument in
    --array=*) array=${argument#*=} ;;
    --export=ALL,*) export "${argument#--export=ALL,}" ;;
    --*) ;;
    *) file=$argument ;;
  esac
done
for SLURM_ARRAY_TASK_ID in $(seq "${array%-*}" "${array#*-}"); do
  export SLURM_ARRAY_TASK_ID
  bash "$file" >> "job-$STEP.log"
done
echo 17
"""


@pytest.mark.slow
def test_the_page_on_clusters_makes_the_same_table_in_each_way(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    small = "--engine fake --metrics rouge1,length_ratio --set planted.users=12 --set planted.items=20"
    monkeypatch.setitem(SUBSTITUTIONS, " --methods nonperso,rag,dep", " --methods nonperso,rag")
    monkeypatch.setitem(SUBSTITUTIONS, "accelerate launch --multi_gpu --num_processes 4 -m", "python -m")
    monkeypatch.setitem(SUBSTITUTIONS, "--methods dep", f"{small} --methods nonperso")
    monkeypatch.setitem(SUBSTITUTIONS, "--address auto --workers 8", "--workers 2")
    monkeypatch.setitem(SUBSTITUTIONS, "ray start --head", "true")
    monkeypatch.setitem(SUBSTITUTIONS, "ray stop", "true")
    monkeypatch.setitem(SUBSTITUTIONS, "in 1 2 3 4;", "in 1 2;")  # fewer shards take less time
    monkeypatch.setitem(SUBSTITUTIONS, "$i/4", "$i/2")
    monkeypatch.setitem(SUBSTITUTIONS, "--array=1-4", "--array=1-2")
    script = (DOCS / "examples" / "slurm-array.sbatch").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (reader.folder / "slurm-array.sbatch").write_text(
        script.replace("shards=4", "shards=2").replace("nonperso,rag,dep", f"nonperso,rag {small}")
    )
    (reader.python / "sbatch").write_text(SBATCH)
    (reader.python / "sbatch").chmod(0o755)
    reader.folder.joinpath("runs").mkdir()
    tables = []
    for block in blocks("on-a-cluster.md"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.partition(" #")[0].strip()
            if re.match(r"\w+=", command):  # a variable that a later line uses
                command, later = f"{command}; echo ${command.partition('=')[0]}", command.partition("=")[0]
                reader.do(command)
                monkeypatch.setenv(later, reader.said[command].strip())
            else:
                reader.do(command)
        found = reader.folder / "runs"
        if found.exists() and any(found.rglob("manifest.json")):
            reader.do("python -m bench table runs --json")
            tables.append(json.loads(reader.said["python -m bench table runs --json"]))
            shards = {path.parent.name for path in found.rglob("shards/*/manifest.json")}
            assert shards == {"1-of-2", "2-of-2"}
            found.rename(reader.folder / f"runs-{len(tables)}")
    assert len(tables) == 3
    scores = [{row["method"]: row["metrics"] for row in table} for table in tables]
    assert scores[0] == scores[1] == scores[2]
    assert "Leaderboard: planted" in (reader.folder / "job-table.log").read_text()


@pytest.mark.slow
def test_the_page_on_raw_files_gives_datasets_that_run(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.setitem(SUBSTITUTIONS, "pip install 'dep-bench[prepare]'", "true")
    monkeypatch.setitem(SUBSTITUTIONS, "python -m bench run", "python -m bench run --engine fake")
    words = " and more words on it" * 10
    reviews = [review_line(f"u{u}", f"i{i}", u + i, f"{u} on {i}{words}") for u in range(12) for i in range(24)]
    write_lines(reader.folder / "Books.jsonl.gz", reviews)
    write_lines(reader.folder / "meta_Books.jsonl.gz", [meta_line(f"i{i}", [words[:110]]) for i in range(24)])
    reader.follow("preparing-amazon-2023.md")
    first, loose = (out for command, out in reader.said.items() if "bench prepare" in command)
    assert "targets: train 96, val 12, test 12" in first
    assert "targets: train 72, val 12, test 12" in loose
    assert (reader.folder / "data" / "books" / "books.toml").exists()
    assert any("and more words" in out for command, out in reader.said.items() if "bench run" in command)
    named = set(re.findall(r"`(?:filter|split|items)\.(\w+)`", (DOCS / "preparing-amazon-2023.md").read_text())) - {
        "parquet"
    }
    assert named == {key for config in (FilterConfig, SplitConfig, ItemConfig) for key in config.model_fields}


@pytest.mark.slow
def test_the_page_on_costs_shows_a_bill(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBSTITUTIONS, "pip install 'dep-bench[energy]'", "true")
    reader.follow("costs.md")
    said = reader.said
    bill = said["python -m bench table --prices prices.toml"]
    assert re.search(r"^method +stage +s +GPU-hours +core-hours +energy Wh ", bill, re.M)
    # The page's prices hold one for energy, which not every machine can measure.
    assert re.search(r"^method .* EUR$", bill, re.M) or "where the prices lack: energy that was not measured" in bill
    assert "EUR" not in said["python -m bench table --costs"]
    assert [row["stage"] for row in json.loads((reader.folder / "costs.json").read_text())[0]["costs"]][-1] == "all"


def test_the_code_on_the_pages_is_tidy(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    for page in PAGES:
        for number, block in enumerate(blocks(page.name)):
            if block.language == "python":
                assert block.file is not None, f"{page.name}: code that nothing runs"
                (tmp_path / f"block_{number}_{block.file}").write_text(block.text)
    rules = ["--isolated", "--line-length", "120"]
    for command in (["check", *rules, "--select", "E,F,W,I,UP,B,SIM,RET,RUF,N"], ["format", *rules, "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_every_substitution_is_needed() -> None:
    text = "".join(path.read_text() for path in PAGES)
    assert [written for written in SUBSTITUTIONS if written not in text] == []


def test_the_page_names_every_check_of_the_contract() -> None:
    text = (DOCS / "adding-a-method.md").read_text()
    table = text[text.index("| check | holds if |") :]
    named = {name for row in re.findall(r"^\| ([^|]+) \|", table, re.M) for name in row.split(", ")}
    assert named - {"check", "---"} == set(MEANINGS)


def links() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            yield page.name, target


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_lead_somewhere(page: str, target: str) -> None:
    assert (DOCS / page).parent.joinpath(target).exists()
