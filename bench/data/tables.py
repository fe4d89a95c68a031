"""What every data source hands to the split code: plain tables of reviews and items, and a truth if there is one."""

from __future__ import annotations

from dataclasses import dataclass

from bench.types import Truth


@dataclass(frozen=True, slots=True)
class RawReview:
    """One review as the source holds it, before any filtering."""

    user_id: str
    item_id: str
    rating: float | None
    title: str
    text: str
    timestamp: int
    """Milliseconds since the epoch."""
    row: int
    """Position in the source, from 0: errors name it."""


@dataclass(frozen=True, slots=True)
class RawItem:
    """One item that reviews are about."""

    item_id: str
    title: str
    description: str
    category: str = ""


@dataclass(frozen=True)
class RawTables:
    """Everything a source knows."""

    reviews: list[RawReview]
    """In source order: `row` rises."""
    items: dict[str, RawItem]
    """Item id -> item."""
    truth: Truth | None = None
    """How the texts were made (planted data only). An example's id is `f"{user_id}/{item_id}"`; no id holds a slash."""
