"""Steps 2 to 5 of the construction over arrays: reviews as (user, item, time, text) numbers, tens of millions of them.

What `bench.data.filters` says of reviews in memory holds here for their numbers, result for result: the same one stable
order, the same greedy choice among duplicates, and `fix_point` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.filters import fix_point
from bench.data.spec import FilterConfig

Mask = NDArray[np.bool_]
Ranks = Callable[[NDArray[np.intp]], NDArray[np.int64]]
"""Numbers of edges -> the place of each one's text among them, in order of code points; equal texts share a place."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: the product keeps users apart, and spreads them over all bits."""


@dataclass(frozen=True)
class Edges:
    """One review a place. No array is written to."""

    user: NDArray[np.int32]
    """(edges,) code of the user."""
    item: NDArray[np.int32]
    """(edges,) code of the item; codes rise as the ids do, so that they order equal times as ids would."""
    time: NDArray[np.int64]
    """(edges,) milliseconds since the epoch."""
    text: NDArray[np.uint64]
    """(edges,) 64-bit hash of the clean text. Compared within a user only, where a chance match is out of reach."""

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.user)

    def only(self, chosen: NDArray[Any]) -> Edges:
        """Those that a mask or an index chooses."""
        return Edges(self.user[chosen], self.item[chosen], self.time[chosen], self.text[chosen])

    def columns(self) -> dict[str, NDArray[Any]]:
        """A table of them, with the number of each."""
        numbers = np.arange(len(self))
        return {"number": numbers, "user": self.user, "item": self.item, "time": self.time, "text": self.text}

    def tally(self) -> dict[str, int]:
        """Distinct users, distinct items and the number of reviews, as `bench.data.ready.tally` counts them."""
        return {"users": _distinct(self.user), "items": _distinct(self.item), "reviews": len(self)}


def newest(edges: Edges, ranks: Ranks) -> Mask:
    """Step 2, which stay: one review for a (user, item) and for a (user, text), chosen from the newest back.

    A review that shares neither with another one of its user is kept whatever becomes of the rest, and bars none. So
    only the others, a few in a hundred, go through the loop of `bench.data.filters.newest`.

    Args:
        edges: usable reviews, in any order.
        ranks: asked for reviews of one item by one user at one moment whose texts differ, if there are any.
    """
    kept = np.ones(len(edges), dtype=np.bool_)
    index = np.flatnonzero(_shared(_pairs(edges)) | _shared(edges.text ^ (edges.user.astype(np.uint64) * _SPREAD)))
    some = edges.only(index)
    order = np.lexsort((_places(some, index, ranks), some.item, some.time, some.user))[::-1]
    items: set[tuple[int, int]] = set()
    texts: set[tuple[int, int]] = set()
    columns = (some.user[order].tolist(), some.item[order].tolist(), some.text[order].tolist())
    for edge, user, item, text in zip(index[order].tolist(), *columns, strict=True):
        if (user, item) in items or (user, text) in texts:
            kept[edge] = False
        else:
            items.add((user, item))
            texts.add((user, text))
    return kept


def dense(edges: Edges, config: FilterConfig) -> Mask:
    """Step 3, which stay."""
    bounds = config.min_users_per_item, config.min_reviews_per_user, config.max_reviews_per_user
    return fix_point(edges.user.astype(np.intp), edges.item.astype(np.intp), *bounds)


def profiles(edges: Edges, targets: int, config: FilterConfig) -> dict[str, int]:
    """Steps 4 and 5, counted: users that stay, and what is left of their profiles.

    Args:
        edges: what step 3 leaves; every user has at least `targets`.
        targets: a user's last reviews, which are no profile.
        config: thresholds of step 5.
    """
    order = np.lexsort((edges.item, edges.time, edges.user))
    user = edges.user[order]
    ends = np.searchsorted(user, user, side="right")
    early = edges.only(order[np.arange(len(user)) < ends - targets])
    bounds = config.min_profile_users_per_item, config.min_profile_reviews
    left = early.only(fix_point(early.user.astype(np.intp), early.item.astype(np.intp), *bounds, None))
    tally = left.tally()
    return tally if config.min_profile_reviews else tally | {"users": _distinct(edges.user)}


def _places(edges: Edges, index: NDArray[np.intp], ranks: Ranks) -> NDArray[np.int64]:
    """For each edge what orders it among those of the same user, item and time: 0 where nothing has to."""
    places = np.zeros(len(edges), dtype=np.int64)
    order = np.lexsort((edges.text, edges.item, edges.time, edges.user))
    one = edges.only(order)
    same = (one.user[1:] == one.user[:-1]) & (one.item[1:] == one.item[:-1]) & (one.time[1:] == one.time[:-1])
    group = np.concatenate([[0], np.cumsum(~same)])[: len(one)]
    mixed = np.zeros(len(one), dtype=np.bool_)
    if len(one):
        mixed = np.isin(group, group[1:][same & (one.text[1:] != one.text[:-1])])
    unclear = order[mixed]
    if len(unclear):
        places[unclear] = ranks(index[unclear])
    return places


def _pairs(edges: Edges) -> NDArray[np.int64]:
    return (edges.user.astype(np.int64) << 32) | edges.item


def _shared(keys: NDArray[Any]) -> Mask:
    """Which keys stand more than once."""
    order = np.argsort(keys)
    ordered = keys[order]
    again = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(keys), dtype=np.bool_)
    shared[order[1:][again]] = True
    shared[order[:-1][again]] = True
    return shared


def _distinct(codes: NDArray[np.int32]) -> int:
    return int(np.count_nonzero(np.bincount(codes)))
