"""How a user differs from the peers who wrote about the same items, for many examples at once.

For a past review of user u on item i with peers R (Qiu et al., EMNLP 2025, section 3.2):
    d(u,i) = sum_r w_r (e(u,i) - e(r,i)),   w from the distances n_r = ||m(u) - m(r)|| of mean vectors.
The weights sum to one, so d(u,i) = e(u,i) - W E: one sparse product over all reviews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bench.data.arrays import Ints, PopulationArrays, expand
from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.config import DepConfig, Weighting
from methods.dep.means import Meetings, Timelines, distances, needed_places, texts_of_means
from methods.dep.nearest import nearest_peers
from methods.dep.pairs import Encode, Encoded, Floats, Pairs, Reviews, Texts, item_peers, random_peers

_SMALLEST = np.float32(1e-6)
"""The smallest distance that inverse weighting divides by."""


@dataclass(frozen=True)
class ReviewVectors:
    """Vectors of one example's chosen reviews, in their order."""

    own: Floats
    """(reviews, d): embeddings of the user's own texts, unit length."""
    difference: Floats
    """(reviews, d): weighted differences from peers; zeros where there are none."""
    has_peers: npt.NDArray[np.bool_]
    """(reviews,)"""


def segment_weights(distances: Floats, segments: Ints, count: int, weighting: Weighting, tau: float) -> Floats:
    """Weights of pairs that sum to one within each segment (a review's peers).

    `distances` and `segments` have shape (pairs,), the latter ascending; a segment without pairs is allowed. Where the
    formula is undefined (linear or share, with all distances zero) the weights are uniform.
    """
    if weighting in ("softmax", "share"):
        scaled = _shares(distances, segments, count) if weighting == "share" else distances / np.float32(tau)
        raw: Floats = np.exp(scaled - _tops(scaled, segments))
    elif weighting == "linear":
        raw = distances.astype(np.float32)
    elif weighting == "inverse":
        raw = np.reciprocal(np.maximum(distances, _SMALLEST))
    else:
        raw = np.ones(len(segments), np.float32)
    return _shares(raw, segments, count)


def _tops(values: Floats, segments: Ints) -> Floats:
    """The largest value of each one's segment (pairs,)."""
    lengths = np.bincount(segments)
    filled = lengths[lengths > 0]
    tops: Floats = np.repeat(np.maximum.reduceat(values, np.cumsum(filled) - filled), filled) if len(values) else values
    return tops


def _shares(values: Floats, segments: Ints, count: int) -> Floats:
    """Each value's part of its segment's sum; equal parts where the sum is zero."""
    totals = np.bincount(segments, values, count)[segments]
    flat = totals <= 0
    if flat.any():
        totals[flat] = 1
    shares: Floats = np.divide(values, totals, dtype=np.float64).astype(np.float32)
    if flat.any():
        shares[flat] = 1 / np.bincount(segments, minlength=count)[segments[flat]]
    return shares


def review_vectors(
    examples: Sequence[Example],
    chosen: Sequence[Sequence[Document]],
    population: Population,
    config: DepConfig,
    encode: Encode,
    seed: int = 0,
) -> list[ReviewVectors]:
    """Own and difference vectors of each example's `chosen` reviews, by the rules of `aligned`.

    `encode` maps texts to unit vectors (texts, d); it is called once, with each distinct text once. `seed` chooses the
    peers where they are random.
    """
    arrays = population.arrays()
    texts = Texts(arrays)
    reviews = Reviews.of(examples, chosen, arrays, texts, config.peer_cutoff)
    if config.weighting == "uniform":
        timelines = Timelines.population(arrays, reviews.user)  # no mean is asked for
    else:
        timelines = Timelines.histories(population, examples, texts)
    if config.peer_source == "content":
        encoded = texts.encoded(np.ones(len(texts), np.bool_), encode)
        pairs = nearest_peers(reviews, encoded, arrays, config)
        return Work(reviews, pairs, timelines, arrays, config).vectors(encoded)
    pairs = item_peers(reviews, arrays, config)
    if config.peer_source == "random":
        pairs = random_peers(examples, chosen, reviews, pairs.counts(len(reviews)), arrays, seed)
    work = Work(reviews, pairs, timelines, arrays, config)
    return work.vectors(texts.encoded(work.texts(len(texts)), encode))


@dataclass(frozen=True)
class Work:
    """What is left to compute once reviews and peers are known."""

    reviews: Reviews
    pairs: Pairs
    timelines: Timelines
    arrays: PopulationArrays
    config: DepConfig

    @cached_property
    def _meetings(self) -> Meetings:
        return Meetings.between(self.reviews, self.pairs, self.arrays, self.timelines)

    @cached_property
    def _places(self) -> Ints:
        return needed_places(self.timelines, self._meetings)

    def texts(self, count: int) -> npt.NDArray[np.bool_]:
        """Which of all texts (count,) need a vector."""
        wanted = np.zeros(count, np.bool_)
        wanted[self.reviews.text] = True
        wanted[self.arrays.text[self.pairs.peer]] = True
        if self.config.weighting != "uniform":
            wanted[texts_of_means(self.timelines, self._places)] = True
        return wanted

    def vectors(self, encoded: Encoded) -> list[ReviewVectors]:
        """The vectors of each example's reviews."""
        count = len(self.reviews)
        own, has_peers = encoded[self.reviews.text], self.pairs.counts(count) > 0
        difference = self._peers(encoded)
        np.subtract(own, difference, out=difference)
        difference[~has_peers] = 0
        bounds = np.searchsorted(self.reviews.example, np.arange(len(self.reviews.user) + 1)).tolist()
        return [ReviewVectors(own[a:b], difference[a:b], has_peers[a:b]) for a, b in pairwise(bounds)]

    def _peers(self, encoded: Encoded) -> Floats:
        """Weighted means (reviews, d) of peers' vectors, each summed in its peers' order: company changes no bit."""
        import torch

        counts = self.pairs.counts(len(self.reviews))
        order = np.argsort(self.reviews.item, kind="stable")  # peers of an item, once read, are near at hand
        _, places = expand((np.cumsum(counts) - counts)[order], counts[order])
        sums = torch.nn.functional.embedding_bag(
            torch.from_numpy(encoded.rows[self.arrays.text[self.pairs.peer[places]]]),
            torch.from_numpy(encoded.vectors),
            torch.from_numpy(np.concatenate([[0], np.cumsum(counts[order])])),
            mode="sum",
            per_sample_weights=torch.from_numpy(self._weights(encoded)[places]),
            include_last_offset=True,
        )
        found = np.empty(tuple(sums.shape), np.float32)
        found[order] = sums.numpy()
        return found

    def _weights(self, encoded: Encoded) -> Floats:
        """(pairs,)"""
        if self.config.weighting == "uniform":
            apart = np.ones(len(self.pairs.review), np.float32)
        else:
            apart = distances(self.timelines, self._meetings, self._places, encoded)[self._meetings.of]
        config = self.config
        return segment_weights(apart, self.pairs.review, len(self.reviews), config.weighting, config.tau)
