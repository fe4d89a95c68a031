"""Targets with their histories: what selection makes of raw tables, and what an already split source brings."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.data.tables import RawItem, RawReview
from bench.types import Truth

Counts = dict[str, dict[str, int]]
"""Name of a step -> users, items and reviews that are left after it (or what else the step counts)."""


class Role(enum.StrEnum):
    """What a target is for. Later members come later in a user's life."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Target:
    """A review to be written, and the user's reviews that may be known before it."""

    role: Role
    review: RawReview
    history: Sequence[RawReview]
    """In any order; whatever is not strictly before the target's time is left out later."""


@dataclass(frozen=True)
class ReadySplit:
    """A split as `bench.data.split` builds a dataset from it. All text is clean (`bench.data.clean`)."""

    targets: Sequence[Target]
    items: Mapping[str, RawItem]
    truth: Truth | None = None
    counts: Counts = field(default_factory=dict)


def tally(reviews: Sequence[RawReview]) -> dict[str, int]:
    """Distinct users, distinct items and the number of reviews."""
    users = {review.user_id for review in reviews}
    items = {review.item_id for review in reviews}
    return {"users": len(users), "items": len(items), "reviews": len(reviews)}
