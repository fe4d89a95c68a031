"""The public code's rules for vectors as a script would follow them: a matrix for each user, a map of sets, loops.

Samples are as the public data has them: `{"user_id", "profile": [{"asin", "timestamp", "text"}, ...], "text"}`, the
profile oldest first. Those of the test split describe the population, whatever the sample at hand is of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.data.split import Dataset
from bench.types import Example

Sample = dict[str, Any]


def public_sample(example: Example, reference: str) -> Sample:
    profile = [{"asin": d.item_id, "timestamp": d.timestamp, "text": d.text} for d in example.history]
    return {"user_id": example.user_id, "profile": profile, "text": reference}


def public_test_samples(dataset: Dataset) -> list[Sample]:
    """The test split with whole profiles, also where the dataset leaves out what is not strictly before a target."""
    known: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for document in dataset.population.documents():
        known[document.user_id].append((document.timestamp or 0, str(document.item_id), document.text))
    for example in dataset.dev.examples:
        text = dataset.dev.references[example.id]
        known[example.user_id].append((example.timestamp or 0, str(example.item_id), text))
    samples = []
    for example in dataset.test.examples:
        profile = [{"asin": i, "timestamp": t, "text": text} for t, i, text in sorted(known[example.user_id])]
        held = {(d.item_id, d.text) for d in example.history}
        assert held <= {(row["asin"], row["text"]) for row in profile}
        samples.append({"user_id": example.user_id, "profile": profile, "text": dataset.test.references[example.id]})
    return samples


@dataclass
class Found:
    """What the script computes for one sample, most recent review first."""

    own: list[torch.Tensor]
    difference: list[torch.Tensor]
    weights: list[dict[tuple[str, int], float]]
    """(user, row) of each peer -> its weight."""
    reviews: list[tuple[str, str]]
    """Item and text of the reviews that the items and the peers are of."""


class Script:
    """Reads the test split once, then gives the vectors of samples."""

    def __init__(self, samples: Sequence[Sample], embed: Callable[[str], torch.Tensor]) -> None:
        self.matrices: dict[str, torch.Tensor] = {}
        self.public: dict[str, torch.Tensor] = {}
        self.means: dict[str, torch.Tensor] = {}
        self.writers: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for sample in samples:
            user = sample["user_id"]
            rows = sorted(sample["profile"], key=lambda review: review["timestamp"])
            matrix = torch.stack([embed(text) for text in [review["text"] for review in rows] + [sample["text"]]])
            self.matrices[user] = matrix
            self.public[user] = matrix[:-2]
            self.means[user] = matrix[:-2].mean(dim=0)
            for row, review in enumerate(sample["profile"][:-2]):
                self.writers[review["asin"]].add((user, row))

    def vectors(self, sample: Sample, most: int = 8) -> Found:
        user, profile = sample["user_id"], sample["profile"]
        newest = sorted(profile, key=lambda review: review["timestamp"], reverse=True)
        backwards = torch.flip(self.matrices[user][: len(profile)], dims=[0])
        found = Found([], [], [], [])
        for place, review in enumerate(newest):
            writers = self.writers.get(review["asin"], set())
            if len(writers) <= 1:
                continue
            peers = [(name, row) for name, row in sorted(writers) if name != user]
            lengths = torch.stack([torch.norm(self.means[user] - self.means[name]) for name, _ in peers])
            total = lengths.sum()
            parts = lengths / total if total > 1e-6 * len(peers) else torch.zeros_like(lengths)
            weights = torch.softmax(parts, dim=0)
            difference = torch.zeros_like(backwards[place])
            for weight, (name, row) in zip(weights, peers, strict=True):
                difference = difference + weight * (backwards[place] - self.public[name][row])
            found.own.append(backwards[place])
            found.difference.append(difference)
            found.weights.append(dict(zip(peers, weights.tolist(), strict=True)))
            found.reviews.append((review["asin"], review["text"]))
            if len(found.own) == most:
                break
        return found
