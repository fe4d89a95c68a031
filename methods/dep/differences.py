"""How a user differs from the peers who wrote about the same items, for many examples at once.

For a past review of user u on item i with peers R (Qiu et al., EMNLP 2025, section 3.2):
    d(u,i) = sum_r w_r (e(u,i) - e(r,i)),   w from the distances n_r = ||m(u) - m(r)|| of mean vectors.
The weights sum to one, so d(u,i) = e(u,i) - W E: one sparse product over all reviews.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.config import DepConfig, Weighting

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_ZERO = np.float32(1e-6)
"""Distances between mean vectors below this are rounding; also the smallest that inverse weighting divides by."""
_BLOCK = 1 << 20
"""Numbers held at once for distances: there are many more pairs than reviews."""


@dataclass(frozen=True)
class ReviewVectors:
    """Vectors of one example's chosen reviews, in their order."""

    own: Floats
    """(reviews, d): embeddings of the user's own texts, unit length."""
    difference: Floats
    """(reviews, d): weighted differences from peers; zeros where there are none."""
    has_peers: npt.NDArray[np.bool_]
    """(reviews,)"""


@dataclass
class _Interner:
    """Numbers for hashable things, in order of first sight."""

    numbers: dict[Hashable, int] = field(default_factory=dict)

    def __call__(self, thing: Hashable) -> int:
        return self.numbers.setdefault(thing, len(self.numbers))


@dataclass
class _Pairs:
    """All (review, peer) pairs of a set of examples, as index arrays."""

    texts: _Interner
    own: list[int]
    """Text of each review."""
    user_mean: list[int]
    """Mean of each review's user."""
    review: list[int]
    """Review of each pair."""
    peer_text: list[int]
    peer_mean: list[int]
    means: list[list[int]]
    """Texts that each mean runs over."""


def _collect(
    examples: Sequence[Example], chosen: Sequence[Sequence[Document]], population: Population, config: DepConfig
) -> _Pairs:
    pairs = _Pairs(_Interner(), [], [], [], [], [], [])
    mean_numbers = _Interner()
    needs_means = config.weighting != "uniform"

    def mean_of(key: Hashable, documents: Sequence[Document]) -> int:
        if key not in mean_numbers.numbers:
            pairs.means.append([pairs.texts(d.text) for d in documents])
        return mean_numbers(key)

    for example, documents in zip(examples, chosen, strict=True):
        before = example.timestamp if config.peer_cutoff else None
        for document in documents:
            review = len(pairs.own)
            pairs.own.append(pairs.texts(document.text))
            pairs.user_mean.append(mean_of(("user", example.id), example.history if needs_means else ()))
            peers = population.peers(document, example.user_id, before)
            for peer in peers[-config.max_peers :] if config.max_peers else peers:
                pairs.review.append(review)
                pairs.peer_text.append(pairs.texts(peer.text))
                # Moments that see equally many of a peer's documents see the same ones, so they share a mean.
                seen = population.history(peer.user_id, before) if needs_means else ()
                pairs.peer_mean.append(mean_of(("peer", peer.user_id, len(seen)), seen))
    return pairs


def segment_weights(distances: Floats, segments: Ints, count: int, weighting: Weighting, tau: float) -> Floats:
    """Weights of pairs that sum to one within each segment (a review's peers).

    `distances` and `segments` have shape (pairs,); a segment without pairs is allowed. Where the formula is
    undefined (linear, with all distances zero) the weights are uniform.
    """
    if weighting == "softmax":
        top = np.full(count, -np.inf, np.float32)
        np.maximum.at(top, segments, distances)
        raw: Floats = np.exp((distances - top[segments]) / np.float32(tau))
    elif weighting == "linear":
        raw = distances.astype(np.float32)
    elif weighting == "inverse":
        raw = np.reciprocal(np.maximum(distances, _ZERO))
    else:
        raw = np.ones(len(segments), np.float32)
    totals = np.bincount(segments, raw, count)
    sizes = np.bincount(segments, minlength=count)
    flat = totals[segments] <= 0
    weights: Floats = np.divide(raw, totals[segments], out=np.zeros(len(raw)), where=~flat).astype(np.float32)
    weights[flat] = 1.0 / sizes[segments][flat]
    return weights


def _averages(means: Sequence[Sequence[int]], texts: int) -> csr_array:
    """Sparse (means, texts) matrix whose product with the text vectors gives mean vectors."""
    from scipy.sparse import csr_array

    sizes = np.array([len(m) for m in means], np.int64)
    columns = np.concatenate([np.asarray(m, np.int64) for m in means]) if sizes.sum() else np.zeros(0, np.int64)
    values = np.repeat(1.0 / np.maximum(sizes, 1), sizes).astype(np.float32)
    return csr_array((values, columns, np.concatenate([[0], np.cumsum(sizes)])), shape=(len(means), texts))


def review_vectors(
    examples: Sequence[Example],
    chosen: Sequence[Sequence[Document]],
    population: Population,
    config: DepConfig,
    encode: Callable[[Sequence[str]], Floats],
) -> list[ReviewVectors]:
    """Own and difference vectors of each example's `chosen` reviews.

    `encode` maps texts to unit vectors (texts, d); it is called once, with each distinct text once.
    """
    pairs = _collect(examples, chosen, population, config)
    vectors = encode([str(text) for text in pairs.texts.numbers])
    own = vectors[np.asarray(pairs.own, np.int64)]
    segments, peer_text = np.asarray(pairs.review, np.int64), np.asarray(pairs.peer_text, np.int64)
    weights = segment_weights(_distances(pairs, vectors), segments, len(own), config.weighting, config.tau)
    has_peers = np.bincount(segments, minlength=len(own)) > 0
    difference = np.where(has_peers[:, None], own - _weighted(weights, segments, peer_text, vectors, len(own)), 0)
    bounds = np.cumsum([0, *(len(documents) for documents in chosen)])
    return [ReviewVectors(own[a:b], difference[a:b].astype(np.float32), has_peers[a:b]) for a, b in pairwise(bounds)]


def _distances(pairs: _Pairs, vectors: Floats) -> Floats:
    """||m(u) - m(r)|| of each pair; ones where no mean is needed.

    What is left between equal means by rounding counts as zero: linear weights would be made of it.
    """
    if not any(pairs.means):
        return np.ones(len(pairs.review), np.float32)
    means = _averages(pairs.means, len(vectors)) @ vectors
    users = np.asarray(pairs.user_mean, np.int64)[np.asarray(pairs.review, np.int64)]
    peers = np.asarray(pairs.peer_mean, np.int64)
    distances = np.empty(len(users), np.float32)
    rows = max(1, _BLOCK // vectors.shape[1])
    for start in range(0, len(users), rows):
        block = slice(start, start + rows)
        distances[block] = np.linalg.norm(means[users[block]] - means[peers[block]], axis=1)
    distances[distances < _ZERO] = 0
    return distances


def _weighted(weights: Floats, segments: Ints, peer_text: Ints, vectors: Floats, count: int) -> Floats:
    """Weighted sums of peers' vectors (count, d), each in its peers' order: the same bits in whatever company."""
    from scipy.sparse import csr_array

    bounds = np.concatenate([[0], np.cumsum(np.bincount(segments, minlength=count))])
    product: Floats = csr_array((weights, peer_text, bounds), shape=(count, len(vectors))) @ vectors
    return product
