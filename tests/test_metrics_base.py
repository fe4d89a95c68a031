"""What all metrics share: vectors and failures, signatures, and the face of an `evaluate` module."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import evaluate
import pytest

import bench.metrics
from bench import registry
from bench.config import build
from bench.errors import MissingPackage, UsageError
from bench.metrics.base import Metric, ScoreInput, Vector, package_version, text_of
from bench.metrics.bertscore import BertScore
from bench.metrics.bleu import Bleu
from bench.metrics.copy_rate import CopyRate
from bench.metrics.length_ratio import LengthRatio
from bench.metrics.meteor import Meteor, wordnet_version
from bench.metrics.rouge import Rouge1, RougeL
from bench.metrics.trait_recovery import TraitRecovery
from bench.stats import REDUCERS

FOLDER = Path(bench.metrics.__file__).parent
PREDICTIONS = ["the cat sat on the mat", "", "a dog 😀"]
REFERENCES = ["a cat sat on a mat", "nothing", "the dog 😀"]
LIGHT = (Rouge1, RougeL, Bleu, CopyRate, LengthRatio, TraitRecovery)


class Fragile(Metric):
    """Length of the text, with a temper."""

    name = "fragile"

    def _vector(self, item: ScoreInput) -> Vector | None:
        text = text_of(item)
        if text == "boom":
            raise RuntimeError("library\ntraceback")
        if text == "usage":
            raise UsageError("nothing works")
        return None if text == "undefined" else [math.nan if text == "nan" else float(len(text))]


def given(*predictions: str | None) -> list[ScoreInput]:
    return [ScoreInput(f"e{i}", "u", prediction, "reference") for i, prediction in enumerate(predictions)]


def test_one_failure_costs_one_example(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        values = Fragile().values(given("abc", "boom", None, "", "nan", "undefined", "ab"))
    assert values == [[3.0], None, None, [0.0], None, None, [2.0]]
    assert [record.getMessage().partition(", first ")[0] for record in caplog.records] == [
        "fragile failed on 2 of 7 texts"
    ]
    assert "e1: RuntimeError" in caplog.text


def test_a_usage_error_is_not_a_failure_of_one_example() -> None:
    with pytest.raises(UsageError, match="nothing works"):
        Fragile().values(given("usage"))


def test_progress_counts_every_example_once() -> None:
    steps: list[int] = []
    Fragile().values(given("abc", None, "boom", "nan"), steps.append)
    assert sum(steps) == 4


def test_no_examples() -> None:
    for cls in LIGHT:
        assert cls().values([]) == []
        assert math.isnan(cls().aggregate([]))


@pytest.mark.parametrize("cls", LIGHT)
def test_a_failed_generation_has_no_value(cls: type[Metric]) -> None:
    assert cls().values(given(None)) == [None]


def test_compute_counts_failures_apart() -> None:
    result = Fragile().compute(predictions=["abc", "boom", "a"], references=["x", "y", "z"])
    assert result == {"fragile": 2.0, "fragile_failed": 1}
    assert math.isnan(Fragile().compute(predictions=["boom"], references=["x"])["fragile"])


def test_compute_takes_histories() -> None:
    result = CopyRate().compute(predictions=["a b c d"], references=[""], histories=[["x a b c d"]])
    assert result == {"copy_rate": 1.0, "copy_rate_failed": 0}


def test_evaluate_combines_metrics() -> None:
    combined = evaluate.combine([Rouge1(), RougeL(), Bleu()])
    result = combined.compute(predictions=PREDICTIONS, references=REFERENCES)
    for cls in (Rouge1, RougeL, Bleu):
        own = cls().compute(predictions=PREDICTIONS, references=REFERENCES)
        assert own == {key: result[key] for key in own}


@pytest.mark.parametrize("name", ["rouge", "bleu", "copy_rate", "length_ratio", "trait_recovery", "distinct"])
def test_evaluate_loads_the_files(name: str) -> None:
    module = evaluate.load(str(FOLDER / f"{name}.py"))
    result = module.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert set(result) == {module.name, f"{module.name}_failed"}
    assert module.name.startswith(name)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["meteor", "bertscore"])
def test_evaluate_loads_the_files_with_weights(name: str) -> None:
    result = evaluate.load(str(FOLDER / f"{name}.py")).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert 0 < result[name] < 1


def test_no_folder_is_made_in_the_home(tmp_path: Path) -> None:
    script = (
        "from bench.metrics.rouge import Rouge1\n"
        "print(Rouge1().compute(predictions=['a b'], references=['a c'])['rouge1'])"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.5"
    assert not list(tmp_path.rglob("rouge1*"))


def test_registered_metrics_describe_themselves() -> None:
    names = registry.names("metric")
    assert {"rouge1", "rougeL", "meteor", "bleu", "bertscore", "trait_recovery", "copy_rate", "length_ratio"} <= set(
        names
    )
    for name in registry.names("metric"):
        cls = registry.load("metric", name)
        assert issubclass(cls, Metric)
        assert cls.name == name
        assert (cls.__doc__ or "").splitlines()[0].endswith(".")
        assert cls.reducer in REDUCERS
        assert cls().applicable(True)
        assert cls().applicable(False) is not cls.needs_truth


CHANGES: Mapping[type[Metric], list[dict[str, object]]] = {
    Rouge1: [{"use_stemmer": True}],
    RougeL: [{"use_stemmer": True}],
    Bleu: [{"tokenize": "char"}, {"lowercase": True}],
    CopyRate: [{"n": 3}],
}


@pytest.mark.parametrize("cls", CHANGES)
def test_signature_holds_every_option(cls: type[Metric]) -> None:
    default = cls().signature()
    changed = [cls(build(cls.Config, change, cls.name)).signature() for change in CHANGES[cls]]
    assert default.startswith(f"{cls.name}|")
    assert len({default, *changed}) == 1 + len(changed)
    assert default == cls().signature()


def test_signature_holds_the_library_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cls: cls().signature() for cls in (Rouge1, RougeL, Bleu)}
    monkeypatch.setattr("bench.metrics.base.version", lambda package: "99.9")
    for cls, signature in before.items():
        assert cls().signature() != signature
        assert cls().signature().endswith(":99.9")


@pytest.mark.weights
def test_signatures_that_need_weights() -> None:
    meteor = Meteor().signature()
    assert meteor.startswith("meteor|alpha:0.9|beta:3.0|gamma:0.5|tok:nltk-word|wordnet:3.0|nltk:")
    assert Meteor(build(Meteor.Config, {"alpha": 0.8}, "meteor")).signature() != meteor
    bertscore = BertScore().signature()
    assert "|model:minilm|" in bertscore
    assert "|layers:6|" in bertscore
    assert BertScore(build(BertScore.Config, {"num_layers": 5}, "bertscore")).signature() != bertscore
    assert BertScore(build(BertScore.Config, {"batch_size": 5}, "bertscore")).signature() == bertscore


def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingPackage, match=r"bleu needs the package 'no-such-package'.*pip install no-such-package"):
        package_version("no-such-package", "bleu")


def test_wordnet_that_is_not_wordnet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bench fetch wordnet"):
        wordnet_version(tmp_path)
    data = tmp_path / "corpora" / "wordnet" / "data.adj"
    data.parent.mkdir(parents=True)
    data.write_text("something else")
    with pytest.raises(UsageError, match="is not a file of WordNet"):
        wordnet_version(tmp_path)
    data.write_text("  1 This software and database\n  2 WordNet 3.1 Copyright 2011\n")
    assert wordnet_version(tmp_path) == "3.1"
