"""The rules of the public code for whose vectors stand in a prompt: `mode = paper`.

They differ from `aligned` in what they see (every review but the two held out, whatever its time), in who counts as a
peer, and in where users wrote twice at one moment. Lists of what differs, and why, stand in docs/dep.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.data.arrays import Ints, PopulationArrays, expand
from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.config import DepConfig
from methods.dep.differences import ReviewVectors, Work
from methods.dep.means import Timelines
from methods.dep.pairs import Bools, Encode, Pairs, Reviews, Texts

REVIEWS = 8
"""Reviews with vectors in the public code."""


def paper_history(example: Example) -> list[Document]:
    """The history by time, latest first; reviews of one moment stay in their order, oldest first, as the public sort
    leaves them."""
    return sorted(example.history, key=lambda document: -(document.timestamp or 0))


def paper_reviews(example: Example, population: Population, most: int = REVIEWS) -> list[Document]:
    """The most recent reviews with peers, latest first: what the vectors' items and peers are taken from.

    A review has peers if the population holds more than one document on its item, the user's own included, that is not
    its writer's last.
    """
    return [document for document, _ in _walk(example, population.arrays(), most)]


def paper_vectors(
    examples: Sequence[Example], population: Population, config: DepConfig, encode: Encode
) -> list[ReviewVectors]:
    """Own and difference vectors of the `paper_reviews` of each example, at most `n_history` of them.

    Own vectors follow the history simply reversed, so where reviews share a moment a vector can be of another text
    than the item and the peers are: the public code's slip, kept here. `encode` maps texts to unit vectors (texts, d);
    it is called once, with each distinct text once.
    """
    arrays = population.arrays()
    texts = Texts(arrays)
    walked = [list(_walk(example, arrays, config.n_history)) for example in examples]
    reviews = Reviews.of(examples, [[own for _, own in found] for found in walked], arrays, texts, cutoff=False)
    items = [arrays.items[str(document.item_id)] for found in walked for document, _ in found]
    pairs = _peers(reviews, np.array(items, np.int64), arrays)
    work = Work(reviews, pairs, Timelines.population(arrays, reviews.user), arrays, config)
    return work.vectors(texts.encoded(work.texts(len(texts)), encode))


def _walk(example: Example, arrays: PopulationArrays, most: int) -> Iterator[tuple[Document, Document]]:
    """Reviews with peers, each with the one whose text its vector is of."""
    user = arrays.users.get(example.user_id, -1)
    found = 0
    for document, own in zip(paper_history(example), reversed(example.history), strict=True):
        if found == most:
            return
        item = -1 if document.item_id is None else arrays.items.get(document.item_id, -1)
        writers = arrays.user[_members(item, arrays)] if item >= 0 else np.zeros(0, np.int64)
        # With two documents of the user alone the public code would fail, so that is no peer here.
        if len(writers) > 1 and (writers != user).any():
            found += 1
            yield document, own


def _members(item: int, arrays: PopulationArrays) -> Ints:
    """The documents on an item, without those that are their users' last."""
    documents = arrays.by_item.members[arrays.by_item.starts[item] : arrays.by_item.starts[item + 1]]
    return documents[~_last(documents, arrays)]


def _last(documents: Ints, arrays: PopulationArrays) -> Bools:
    """Which of some documents are their users' last."""
    ends = arrays.by_user.starts[arrays.user[documents] + 1] - 1
    last: Bools = arrays.by_user.members[ends] == documents
    return last


def _peers(reviews: Reviews, items: Ints, arrays: PopulationArrays) -> Pairs:
    """Others' documents on the items (reviews,), by user and then by time."""
    review, places = expand(*arrays.by_item.ranges(items))
    peer = arrays.by_item.members[places]
    others = (arrays.user[peer] != reviews.user[reviews.example][review]) & ~_last(peer, arrays)
    review, peer = review[others], peer[others]
    order = np.lexsort((peer, arrays.user[peer], review))
    return Pairs(review[order], peer[order])
