"""Targets with their histories: what selection makes of raw tables, and what an already split source brings."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.data.tables import RawItem, RawReview
from bench.types import Document, Truth

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


@dataclass(frozen=True, slots=True)
class Written:
    """A target of a source that has a task of its own, as a document, and what its user wrote before."""

    role: Role
    document: Document
    """With the text that is to be written. Only one with a time of its own can be open to other users."""
    history: Sequence[Document]
    """Oldest first."""
    moment: int | None = None
    """Milliseconds since the epoch; only what is strictly earlier may be known. None: there are no times."""


@dataclass(frozen=True)
class ReadyDocuments:
    """A split of documents that have the fields of the source's own task. All text is clean."""

    targets: Sequence[Written]
    truth: Truth | None = None
    counts: Counts = field(default_factory=dict)


def tally(reviews: Sequence[RawReview]) -> dict[str, int]:
    """Distinct users, distinct items and the number of reviews."""
    users = {review.user_id for review in reviews}
    items = {review.item_id for review in reviews}
    return {"users": len(users), "items": len(items), "reviews": len(reviews)}
