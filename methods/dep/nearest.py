"""Peers by content: the documents of other users whose vectors are nearest to a review's."""

from __future__ import annotations

import numpy as np

from bench.data.arrays import Ints, PopulationArrays, expand
from methods.dep.config import DepConfig
from methods.dep.pairs import Encoded, Floats, Pairs, Reviews

_REVIEWS, _DOCUMENTS = 256, 16384
"""Shape of the blocks of similarities."""
_SLACK = np.float32(1e-4)
"""More than rounding can move a similarity of unit vectors in a float32 product."""
_PRODUCTS = 4096
"""Exact similarities computed at once."""


def nearest_peers(reviews: Reviews, encoded: Encoded, arrays: PopulationArrays, config: DepConfig) -> Pairs:
    """For each review the `nearest_peers` documents of other users, among those it may see, of the largest cosine.

    Exact: a product of matrices, whose last bits depend on a block's shape, only finds candidates; they are ranked by
    their products in float64, then by (timestamp, user, id). `encoded` holds every document's vector. Nothing is near
    a vector of zeros, which has no direction.
    """
    directed = np.flatnonzero(np.abs(encoded[reviews.text]).sum(axis=1))
    blocks = [directed[start : start + _REVIEWS] for start in range(0, len(directed), _REVIEWS)]
    found = [_block(block, reviews, encoded, arrays, config) for block in blocks]
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    review, peer = (np.concatenate(column) for column in zip(*found, strict=True))
    return Pairs(review, peer).latest(config.max_peers, len(reviews))


def _block(
    block: Ints, reviews: Reviews, encoded: Encoded, arrays: PopulationArrays, config: DepConfig
) -> tuple[Ints, Ints]:
    """Reviews and peers of one block of reviews."""
    rows, peers, floor = [], [], np.full(len(block), -np.inf, np.float32)
    for first in range(0, int(reviews.ends[reviews.example[block]].max()), _DOCUMENTS):
        similar = _similarities(block, first, reviews, encoded, arrays)
        if similar.shape[1] >= config.nearest_peers:
            # The k-th largest of any part is at most the k-th largest of all.
            kth = np.partition(similar, -config.nearest_peers, axis=1)[:, -config.nearest_peers]
            floor = np.maximum(floor, kth)
        row, column = np.nonzero((similar >= (floor - _SLACK)[:, None]) & (similar > -np.inf))
        rows.append(row)
        peers.append(column + first)
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return _ranked(block[np.concatenate(rows)], np.concatenate(peers), reviews, encoded, arrays, config)


def _similarities(block: Ints, first: int, reviews: Reviews, encoded: Encoded, arrays: PopulationArrays) -> Floats:
    """(reviews of the block, documents from `first` on) cosines; minus infinity for what is no peer."""
    documents = np.arange(first, min(first + _DOCUMENTS, len(arrays)))
    similar: Floats = encoded[reviews.text[block]] @ encoded[arrays.text[documents]].T
    ends, users = reviews.ends[reviews.example[block]], reviews.user[reviews.example[block]]
    similar[documents >= ends[:, None]] = -np.inf
    row, places = expand(*arrays.by_user.ranges(users))
    own = arrays.by_user.members[places] - first
    inside = (own >= 0) & (own < len(documents))
    similar[row[inside], own[inside]] = -np.inf
    return similar


def _ranked(
    review: Ints, peer: Ints, reviews: Reviews, encoded: Encoded, arrays: PopulationArrays, config: DepConfig
) -> tuple[Ints, Ints]:
    """The best candidates of each review, in the population's order."""
    exact = np.empty(len(review))
    for start in range(0, len(review), _PRODUCTS):
        part = slice(start, start + _PRODUCTS)
        own, other = encoded[reviews.text[review[part]]], encoded[arrays.text[peer[part]]]
        exact[part] = np.einsum("ij,ij->i", own.astype(np.float64), other.astype(np.float64))
    order = np.lexsort((peer, -exact, review))
    review, peer = review[order], peer[order]
    first = np.searchsorted(review, review)
    kept = np.arange(len(review)) - first < config.nearest_peers
    review, peer = review[kept], peer[kept]
    order = np.lexsort((peer, review))
    return review[order], peer[order]
