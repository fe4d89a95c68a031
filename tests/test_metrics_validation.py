"""Whether the metrics of personalisation do what they are for: on texts whose authors are known.

The real texts of users are set against real texts of others, with as many users and the test that the table uses. On
planted data also against what the world's own generator writes for the user (the oracle). Movie reviews, which are not
part of the project, are taken where DEP_BENCH_IMDB names their folder (see test_data_imdb).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench.data.spec import load_spec
from bench.data.split import Dataset, prepare
from bench.metrics.author_encoder import AuthorEncoder, AuthorEncoderRank
from bench.metrics.author_ngram import AuthorNgram, AuthorNgramRank
from bench.metrics.base import Metric
from bench.metrics.peer_difference import PeerDifference, PeerDifferenceConfig
from bench.metrics.style_distance import StyleDistance
from bench.scoring import join
from bench.stats import Floats, paired_permutation
from bench.types import Document

IMDB = os.environ.get("DEP_BENCH_IMDB")
USERS = 24

OFFLINE = [AuthorNgram(), AuthorNgramRank(), StyleDistance()]
ENCODED = [AuthorEncoder(), AuthorEncoderRank(), PeerDifference()]
FROM_HISTORY = PeerDifference(PeerDifferenceConfig(against="history"))
"""Uses no reference, so that the real texts have no advantage of their own."""


def name_of(metric: Metric) -> str:
    return metric.name


def texts_by_row(dataset: Dataset) -> dict[str, list[str]]:
    """The real texts, those of other users in their place, and what the latest peer wrote of the same item."""
    examples, references = dataset.test.examples, dataset.test.references
    real = [references[example.id] for example in examples]
    half = len(real) // 2
    rows = {"reference": real, "shuffled": real[half:] + real[:half]}
    rows["peer"] = []
    for example in examples:
        target = Document(example.id, example.user_id, "", {}, example.item_id, example.timestamp)
        peers = dataset.population.peers(target, example.user_id, example.timestamp)
        rows["peer"].append(peers[-1].text if peers else "")
    if dataset.truth is not None:
        rows["oracle"] = [dataset.truth.write(example.id, 7) for example in examples]
    return rows


def scores(metric: Metric, dataset: Dataset) -> dict[str, Floats]:
    """Row -> (1, examples, 1), NaN where there is none."""
    found = {}
    for row, texts in texts_by_row(dataset).items():
        records = [
            {"example_id": example.id, "text": text, "error": None}
            for example, text in zip(dataset.test.examples, texts, strict=True)
        ]
        values = metric.values(join(records, dataset.test, dataset.truth, dataset.population))
        found[row] = np.array([[np.nan] if value is None else value for value in values])[None]
    return found


def told(found: Mapping[str, Floats], good: str) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean of each row, and p of each row's difference to the good one."""
    means = {row: float(np.nanmean(values)) for row, values in found.items()}
    users = np.arange(next(iter(found.values())).shape[1])
    return means, paired_permutation(found, users, baseline=good, permutations=2000)


def check_better(
    metric: Metric, dataset: Dataset, good: str, told_apart: tuple[str, ...] = ("shuffled", "peer")
) -> None:
    """The good row scores better than others' texts, and is told from those in `told_apart`."""
    means, p = told(scores(metric, dataset), good)
    print(f"{dataset.name} {metric.name}: " + ", ".join(f"{row} {m:.3f} (p {p.get(row)})" for row, m in means.items()))
    sign = 1 if metric.higher_is_better else -1
    for row in ("shuffled", "peer"):
        assert sign * means[good] > sign * means[row], f"{row} scores better than {good}"
        value = p[row]
        assert value is not None
        assert value < 0.05 or row not in told_apart, f"{row} is not told from {good}"


@pytest.fixture(scope="module")
def planted() -> Dataset:
    return prepare(load_spec("planted", {})).limited(USERS, None, 0)


@pytest.mark.parametrize("good", ["oracle", "reference"])
@pytest.mark.parametrize("metric", OFFLINE, ids=name_of)
def test_on_planted_the_own_user_is_told_from_others(metric: Metric, good: str, planted: Dataset) -> None:
    check_better(metric, planted, good)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("good", ["oracle", "reference"])
@pytest.mark.parametrize("metric", ENCODED, ids=name_of)
def test_on_planted_the_encoder_tells_users_apart(metric: Metric, good: str, planted: Dataset) -> None:
    check_better(metric, planted, good)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("good", ["oracle", "reference"])
def test_on_planted_users_differ_from_peers_as_they_always_do(good: str, planted: Dataset) -> None:
    check_better(FROM_HISTORY, planted, good)


@pytest.fixture(scope="module")
def imdb(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    source = f'kind = "parquet"\nreviews = "{IMDB}/reviews.parquet"\nitems = "{IMDB}/items.parquet"\n'
    spec: Path = tmp_path_factory.mktemp("imdb") / "imdb.toml"
    spec.write_text(f'[source]\n{source}[split]\non_empty_history = "drop"\n')
    return prepare(load_spec(str(spec))).limited(USERS, None, 0)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(not IMDB, reason="DEP_BENCH_IMDB names no folder of movie reviews")
@pytest.mark.parametrize("metric", [*OFFLINE, *ENCODED], ids=name_of)
def test_real_reviews_are_told_from_those_of_other_users(metric: Metric, imdb: Dataset) -> None:
    # A peer's review of the same film has the film's topics, which the encoder takes for those of the film's viewer:
    # its share of hits is too coarse for so few users to tell the two apart, its rank is not.
    only_others = type(metric) is AuthorEncoder
    check_better(metric, imdb, "reference", ("shuffled",) if only_others else ("shuffled", "peer"))
