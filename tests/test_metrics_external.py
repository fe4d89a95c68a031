"""Metrics by name: registered ones, and `evaluate` modules by path or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate
import pytest

import bench.metrics
from bench.errors import UnknownName, UsageError
from bench.metrics.base import ScoreInput
from bench.metrics.bleu import Bleu
from bench.metrics.copy_rate import CopyRate
from bench.metrics.external import ExternalMetric, resolve

MODULE = """
import datasets
import evaluate


class Vowels(evaluate.Metric):
    def _info(self):
        features = datasets.Features({FEATURES})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references=None, **others):
        if "boom" in predictions[0]:
            raise RuntimeError("boom")
        assert len(predictions) == 1
        return RESULT
"""
TEXT = 'datasets.Value("string")'
PLAIN = f'{{"predictions": {TEXT}, "references": {TEXT}}}'
VOWELS = "sum(c in 'aeiou' for c in predictions[0])"


def write(folder: Path, result: str, features: str = PLAIN, name: str = "vowels") -> str:
    path = folder / f"{name}.py"
    path.write_text(MODULE.replace("{FEATURES}", features).replace("RESULT", result))
    return str(path)


def given(*predictions: str | None) -> list[ScoreInput]:
    return [ScoreInput(f"e{i}", "u", prediction, "aa") for i, prediction in enumerate(predictions)]


def test_a_registered_name() -> None:
    metric = resolve("copy_rate", {"n": 2})
    assert isinstance(metric, CopyRate)
    assert metric.config.n == 2


def test_a_local_file(tmp_path: Path) -> None:
    metric = resolve(write(tmp_path, f"{{'vowels': {VOWELS}, 'other': 7}}"), {})
    metric.preflight()
    assert (metric.name, metric.higher_is_better, metric.reducer) == ("vowels", None, "mean")
    assert metric.values(given("aei", "boom", "", None, "xyz", "u")) == [[3.0], None, [0.0], None, [0.0], [1.0]]


def test_a_folder_with_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "vowels").mkdir()
    write(tmp_path / "vowels", f"{{'only': [{VOWELS}]}}")
    assert resolve(str(tmp_path / "vowels"), {}).values(given("aei")) == [[3.0]]


@pytest.mark.parametrize(("suffix", "better"), [(":half", None), (":+half", True), (":-half", False)])
def test_a_key_picks_the_number_and_its_sign_the_good_side(tmp_path: Path, suffix: str, better: bool | None) -> None:
    metric = resolve(write(tmp_path, f"{{'whole': {VOWELS}, 'half': {VOWELS} / 2}}") + suffix, {})
    assert (metric.name, metric.higher_is_better) == ("vowels:half", better)
    assert metric.values(given("aei")) == [[1.5]]


def test_an_unclear_result_names_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "{'one': 1, 'two': 2, 'words': 'none'}")
    with pytest.raises(UsageError, match=r"more than one number.*out of: one, two$"):
        resolve(path, {}).preflight()
    with pytest.raises(UsageError, match=r"gives no 'three'.*out of: one, two$"):
        resolve(f"{path}:three", {}).preflight()
    with pytest.raises(UsageError, match="no number at all"):
        resolve(write(tmp_path, "{}", name="empty"), {}).preflight()


def test_references_are_nested_for_modules_that_want_lists(tmp_path: Path) -> None:
    features = f'{{"predictions": {TEXT}, "references": datasets.Sequence({TEXT})}}'
    metric = resolve(write(tmp_path, "{'n': len(references[0][0])}", features), {})
    assert metric.values(given("abc")) == [[2.0]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (f'{{"predictions": {TEXT}, "references": {TEXT}, "sources": {TEXT}}}', "needs more than.*: sources"),
        ('{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}', "does not judge texts"),
    ],
)
def test_modules_that_do_not_judge_texts(tmp_path: Path, features: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(write(tmp_path, "{'n': 1}", features), {}).preflight()


def test_signature_follows_the_source(tmp_path: Path) -> None:
    first = resolve(write(tmp_path, "{'n': 1}"), {}).signature()
    assert first == resolve(write(tmp_path, "{'n': 1}"), {}).signature()
    assert first != resolve(write(tmp_path, "{'n': 2}"), {}).signature()
    assert str(tmp_path) not in first


def test_a_module_that_shares_a_built_in_name_gets_a_column_of_its_own(tmp_path: Path) -> None:
    metric = resolve(write(tmp_path, "{'n': 1}", name="rouge1"), {})
    assert isinstance(metric, ExternalMetric)
    assert metric.name.startswith("rouge1@")


def test_a_metric_of_ours_by_path_is_itself() -> None:
    metric = resolve(str(Path(bench.metrics.__file__).parent / "bleu.py"), {})
    assert (metric.name, metric.reducer) == ("bleu", "corpus_bleu")
    assert metric.values(given("a b")) == Bleu().values(given("a b"))


def test_a_slip_of_the_pen() -> None:
    with pytest.raises(UnknownName, match="unknown metric 'rogue1'; did you mean 'rouge1'"):
        resolve("rogue1", {})
    with pytest.raises(UnknownName, match="did you mean 'alpha'"):
        resolve("meteor", {"alfa": 1})


def test_a_module_has_no_config(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown key"):
        resolve(write(tmp_path, "{'n': 1}"), {"n": 2})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no evaluate module at"):
        resolve(str(tmp_path / "missing.py"), {})
    broken = tmp_path / "broken.py"
    broken.write_text("def (\n")
    with pytest.raises(UsageError, match=r"'.*broken.py' cannot be loaded: SyntaxError"):
        resolve(str(broken), {})
    needy = tmp_path / "needy.py"
    needy.write_text("import a_package_nobody_has\n" + MODULE)
    with pytest.raises(UsageError, match="pip install a_package_nobody_has"):
        resolve(str(needy), {})
    hasty = write(tmp_path, "{'n': 1 / 0}", name="hasty")
    with pytest.raises(UsageError, match="fails on a plain sentence: ZeroDivisionError"):
        resolve(hasty, {}).preflight()


@pytest.mark.parametrize("name", ["chrf", "some-org/some_metric"])
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def offline(location: str, **options: Any) -> Any:
        raise FileNotFoundError("nothing there\nat all")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(UsageError, match=r"hub has no evaluate module .*, or cannot be reached") as raised:
        resolve(name, {})
    assert "\n" not in str(raised.value)
