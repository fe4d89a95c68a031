"""Each wrapped metric equals its library called directly on the same texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.metrics.base import Metric, ScoreInput
from bench.metrics.bertscore import BertScore
from bench.metrics.bleu import Bleu, BleuConfig
from bench.metrics.meteor import Meteor, MeteorConfig
from bench.metrics.rouge import Rouge1, RougeConfig, RougeL, lcs_length
from bench.weights import fetch

FIXED = [
    ("The cat sat on the mat.", "A cat was sitting on a mat."),
    ("Great album!! 😀 Would buy again…", "great album, would not buy again 😀"),
    ("line one\nline two\r\n\tindented", "line two\nline one"),
    ("", "something real"),
    ("something", ""),
    ("", ""),
    ("   \n", "blank against words"),
    ("\u200b\u200d", "invisible"),
    ("Ünïcödé naïve café", "unicode naive cafe"),
    ("本当に良いアルバム", "本当に 良い アルバム"),
    ("he enjoys big automobiles", "she enjoyed large cars"),
    ("same text, word for word", "same text, word for word"),
    ("word " * 700, "word " * 650 + "other"),
]
WORDS = st.sampled_from(
    ["the", "a", "cat", "cats", "sat", "running", "ran", "good", "great", "car", "auto", "big,", ".", "it's", "😀", "é"]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=30).map(" ".join))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


def inputs(pairs: Sequence[tuple[str, str]]) -> list[ScoreInput]:
    return [ScoreInput(str(i), "u", prediction, reference) for i, (prediction, reference) in enumerate(pairs)]


def firsts(metric: Metric, pairs: Sequence[tuple[str, str]]) -> list[float]:
    vectors = metric.values(inputs(pairs))
    assert all(vector is not None and len(vector) == 1 for vector in vectors)
    return [vector[0] for vector in vectors if vector is not None]


def check_rouge(pairs: Sequence[tuple[str, str]], stemmer: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
    expected = [scorer.score(reference, prediction) for prediction, reference in pairs]
    config = RougeConfig(use_stemmer=stemmer)
    assert firsts(Rouge1(config), pairs) == [score["rouge1"].fmeasure for score in expected]
    assert firsts(RougeL(config), pairs) == [score["rougeL"].fmeasure for score in expected]


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_on_fixed_texts(stemmer: bool) -> None:
    check_rouge(FIXED, stemmer)


@given(PAIRS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_rouge(pairs: list[tuple[str, str]], stemmer: bool) -> None:
    check_rouge(pairs, stemmer)


@given(st.lists(st.integers(0, 4), max_size=40), st.lists(st.integers(0, 4), max_size=40))
def test_lcs_length_equals_the_table(left: list[int], right: list[int]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(left, right) == table[-1][-1]


def check_bleu(pairs: Sequence[tuple[str, str]], config: BleuConfig) -> None:
    import sacrebleu

    from bench.stats import REDUCERS

    expected = sacrebleu.corpus_bleu(
        [prediction for prediction, _ in pairs],
        [[reference for _, reference in pairs]],
        tokenize=config.tokenize,
        lowercase=config.lowercase,
    )
    metric = Bleu(config)
    vectors = [vector for vector in metric.values(inputs(pairs)) if vector is not None]
    sums = [sum(column) for column in zip(*vectors, strict=True)]
    assert len(vectors) == len(pairs)
    assert sums == [*expected.counts, *expected.totals, expected.sys_len, expected.ref_len]
    assert metric.aggregate(vectors) == pytest.approx(expected.score, abs=1e-9)

    import numpy as np

    reduced = REDUCERS[metric.reducer](np.asarray(sums, dtype=float), np.asarray(len(pairs)))
    assert float(reduced) == pytest.approx(expected.score, abs=1e-9)


@pytest.mark.parametrize("config", [BleuConfig(), BleuConfig(lowercase=True), BleuConfig(tokenize="intl")])
def test_bleu_on_fixed_texts(config: BleuConfig) -> None:
    check_bleu(FIXED, config)


@given(PAIRS)
@settings(deadline=None, max_examples=60)
def test_bleu(pairs: list[tuple[str, str]]) -> None:
    check_bleu(pairs, BleuConfig())


def test_bleu_of_nothing_is_nan() -> None:
    assert math.isnan(Bleu().aggregate([]))


@pytest.fixture(scope="module")
def meteor() -> Meteor:
    metric = Meteor()
    metric.preflight()
    return metric


@pytest.fixture(scope="module")
def wordnet_path() -> Path:
    import nltk

    folder = fetch("wordnet")
    if str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
    return folder


def check_meteor(metric: Meteor, pairs: Sequence[tuple[str, str]]) -> None:
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    split = NLTKWordTokenizer().tokenize
    options = metric.config.model_dump()
    expected = [single_meteor_score(split(reference), split(prediction), **options) for prediction, reference in pairs]
    assert firsts(metric, pairs) == expected


@pytest.mark.weights
def test_meteor_on_fixed_texts(meteor: Meteor, wordnet_path: Path) -> None:
    check_meteor(meteor, FIXED)
    check_meteor(Meteor(MeteorConfig(alpha=0.5, beta=1.0, gamma=0.2)), FIXED)
    synonyms, stems, unrelated = firsts(meteor, [("car", "auto"), ("enjoys", "enjoyed"), ("window", "car")])
    assert synonyms > 0
    assert stems > 0
    assert unrelated == 0


@pytest.mark.weights
@given(PAIRS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_meteor(meteor: Meteor, wordnet_path: Path, pairs: list[tuple[str, str]]) -> None:
    check_meteor(meteor, pairs)


@pytest.mark.weights
def test_bertscore_equals_bert_score() -> None:
    from bert_score import BERTScorer

    pairs = [pair for pair in FIXED if pair[0].strip() and pair[1].strip()]  # bert_score itself fails on blank ones
    scorer = BERTScorer(model_type=str(fetch("minilm")), num_layers=6)
    f1 = scorer.score([prediction for prediction, _ in pairs], [reference for _, reference in pairs])[2]
    metric = BertScore()
    metric.preflight()
    assert firsts(metric, pairs) == pytest.approx(f1.tolist(), abs=1e-6)
    blank = [pair for pair in FIXED if pair not in pairs]
    assert firsts(metric, blank) == [0.0] * len(blank)
    assert metric.compute(
        predictions=[prediction for prediction, _ in pairs], references=[reference for _, reference in pairs]
    )["bertscore"] == pytest.approx(float(f1.mean()), abs=1e-6)
