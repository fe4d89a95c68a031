"""All (review, peer) pairs of many examples as index arrays, from the population's arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress

import numpy as np
import numpy.typing as npt

from bench.data.arrays import Ints, PopulationArrays, expand, number
from bench.keys import digest
from bench.types import Document, Example
from methods.dep.config import DepConfig

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Encode = Callable[[Sequence[str]], Floats]


@dataclass
class Texts:
    """Numbers of distinct texts: those of the population, and from there on others as they come."""

    arrays: PopulationArrays
    others: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays.texts) + len(self.others)

    def numbers(self, documents: Sequence[Document], found: Ints | None = None) -> Ints:
        """(len(documents),) the number of each document's text; `found` is what the arrays' `find` says of them."""
        known = self.arrays.texts
        found = self.arrays.find(documents) if found is None else found
        texts = np.where(found < 0, -1, self.arrays.text[found] if len(self.arrays) else -1)
        for place in np.flatnonzero(found < 0).tolist():
            text = documents[place].text
            texts[place] = known[text] if text in known else len(known) + number(self.others, text)
        return texts

    def encoded(self, wanted: Bools, encode: Encode) -> Encoded:
        """The vectors of the wanted texts (texts,), from one call of `encode`."""
        chosen = list(compress(chain(self.arrays.texts, self.others), wanted.tolist()))
        return Encoded(np.ascontiguousarray(encode(chosen), np.float32), np.cumsum(wanted) - 1)


@dataclass(frozen=True)
class Encoded:
    """Vectors of the texts that were asked for."""

    vectors: Floats
    """(rows, d)"""
    rows: Ints
    """(texts,) the row of each text; of no meaning for a text that was not asked for."""

    def __getitem__(self, texts: Ints) -> Floats:
        """The vectors (len(texts), d) of texts given by number."""
        return self.vectors[self.rows[texts]]


@dataclass(frozen=True)
class Reviews:
    """The chosen reviews of all examples, one example after another."""

    example: Ints
    """(reviews,)"""
    document: Ints
    """(reviews,) number in the population; -1 where it is not in it."""
    item: Ints
    """(reviews,) number of the item; -1 where nobody in the population wrote about it."""
    text: Ints
    """(reviews,)"""
    user: Ints
    """(examples,) number of each example's user; -1 for one the population does not know."""
    ends: Ints
    """(examples,) documents that each example may see: those numbered below this."""

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        chosen: Sequence[Sequence[Document]],
        arrays: PopulationArrays,
        texts: Texts,
        cutoff: bool,
    ) -> Reviews:
        """Numbers of the reviews chosen for each example; raises ValueError where the two differ in length."""
        flat = [d for _, documents in zip(examples, chosen, strict=True) for d in documents]
        document = arrays.find(flat)
        text = texts.numbers(flat, document)
        item = arrays.item[document] if len(arrays) else document.copy()
        for place in np.flatnonzero(document < 0).tolist():
            one = flat[place]
            document[place] = arrays.numbers.get(one.id, -1)
            item[place] = -1 if one.item_id is None else arrays.items.get(one.item_id, -1)
        return cls(
            example=np.repeat(np.arange(len(examples)), [len(documents) for documents in chosen]),
            document=document,
            item=item,
            text=text,
            user=np.array([arrays.users.get(e.user_id, -1) for e in examples], np.int64),
            ends=arrays.ends(examples, cutoff),
        )

    def __len__(self) -> int:
        return len(self.example)


@dataclass(frozen=True)
class Pairs:
    """Reviews and those they differ from, by review; a review's peers stand in the order they are summed in."""

    review: Ints
    """(pairs,) ascending."""
    peer: Ints
    """(pairs,) number of the peer's document."""

    def counts(self, reviews: int) -> Ints:
        """(reviews,) peers of each."""
        return np.bincount(self.review, minlength=reviews)

    def latest(self, most: int | None, reviews: int) -> Pairs:
        """The pairs with the last `most` peers of each review; all, where it is None."""
        if most is None:
            return self
        stops = np.cumsum(self.counts(reviews))
        kept = np.arange(len(self.review)) >= stops[self.review] - most
        return Pairs(self.review[kept], self.peer[kept])


def item_peers(reviews: Reviews, arrays: PopulationArrays, config: DepConfig) -> Pairs:
    """Documents of others on each review's item, by (timestamp, user, id)."""
    starts, counts = arrays.by_item.ranges(reviews.item, reviews.ends[reviews.example])
    review, places = expand(starts, counts)
    peer = arrays.by_item.members[places]
    others = arrays.user[peer] != reviews.user[reviews.example][review]
    others &= peer != reviews.document[review]
    return Pairs(review[others], peer[others]).latest(config.max_peers, len(reviews))


def random_peers(
    examples: Sequence[Example],
    chosen: Sequence[Sequence[Document]],
    reviews: Reviews,
    counts: Ints,
    arrays: PopulationArrays,
    seed: int,
) -> Pairs:
    """For each review `counts` documents of other users, drawn without replacement among all that it may see.

    The draw depends on the seed, the example's id, the review's id and on how many documents there are to draw from,
    so neither company nor what is written later changes it.
    """
    ends, users = reviews.ends[reviews.example], reviews.user[reviews.example]
    _, own = arrays.by_user.ranges(users, ends)
    names = [(e.id, d.id) for e, documents in zip(examples, chosen, strict=True) for d in documents]
    drawn: list[int] = []
    for name, size, wanted in zip(names, (ends - own).tolist(), counts.tolist(), strict=True):
        if wanted:
            drawn += sorted(random.Random(digest([seed, "peers", *name])).sample(range(size), wanted))
    review = np.repeat(np.arange(len(reviews)), counts)
    return Pairs(review, _others(np.array(drawn, np.int64), users[review], arrays))


def _others(places: Ints, users: Ints, arrays: PopulationArrays) -> Ints:
    """The documents at some places, each counted among the documents that are not by its user."""
    groups = arrays.by_user
    own = arrays.user[groups.members]
    # Before a user's i-th own document at number n stand n - i documents by others.
    before = groups.keys - (np.arange(len(own)) - groups.starts[own])
    known = np.maximum(users, 0)
    skipped = np.searchsorted(before, known * len(arrays) + places, side="right") - groups.starts[known]
    return places + np.where(users < 0, 0, skipped)
