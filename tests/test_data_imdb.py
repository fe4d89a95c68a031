"""The construction on real movie reviews, against counts from the public pipeline.

The reviews are not part of the project. Set DEP_BENCH_IMDB to a folder that holds `reviews.parquet` and
`items.parquet` (47,824 movie reviews by 1,273 users), and these tests run.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median_high

import pytest

from bench.data.spec import load_spec
from bench.data.split import Dataset, describe, prepare

FOLDER = os.environ.get("DEP_BENCH_IMDB")
pytestmark = pytest.mark.skipif(not FOLDER, reason="DEP_BENCH_IMDB names no folder of movie reviews")

LOOSE = """
[filter]
min_text_chars = 100
require_description = false
min_users_per_item = 3
min_reviews_per_user = 10
min_profile_users_per_item = 2
min_profile_reviews = 4
[split]
train = 3
"""
STRICT = "[split]\n"


def dataset_with(folder: Path, text: str, empty: str = "error") -> Dataset:
    source = f'[source]\nkind = "parquet"\nreviews = "{FOLDER}/reviews.parquet"\nitems = "{FOLDER}/items.parquet"\n'
    (folder / "imdb.toml").write_text(f'{source}{text}on_empty_history = "{empty}"\n')
    return prepare(load_spec(str(folder / "imdb.toml")))


def test_counts_of_the_public_pipeline(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path, STRICT)
    assert dataset.counts["source"]["reviews"] == 47_824, "this is another set of movie reviews"
    assert (len(dataset.train), len(dataset.dev), len(dataset.test)) == (6208, 776, 776)
    assert dataset.counts["profiles"]["users"] == 776
    assert dataset.counts["profiles"]["items"] == 543
    found = describe(dataset)
    assert found["target_chars"]["median"] == 1521
    assert (found["profile_reviews"]["median"], found["profile_reviews"]["max"]) == (22, 449)
    references = [
        len(text) for split in (dataset.train, dataset.dev, dataset.test) for text in split.references.values()
    ]
    assert median_high(references) == 1521


def test_counts_with_loose_thresholds(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path, LOOSE)
    assert (len(dataset.train), len(dataset.dev), len(dataset.test)) == (2664, 888, 888)
    assert dataset.counts["profiles"]["users"] == 888


def test_two_users_wrote_everything_on_one_day(tmp_path: Path) -> None:
    kept = dataset_with(tmp_path, STRICT)
    assert sum(not example.history for example in kept.train.examples) == 19
    dataset = dataset_with(tmp_path, STRICT, "drop")
    assert len(dataset.train) == 6208 - dataset.counts["histories"]["targets_without_history"]
    for split in (dataset.train, dataset.dev, dataset.test):
        for example in split.examples:
            assert example.history
            assert all((document.timestamp or 0) < (example.timestamp or 0) for document in example.history)
