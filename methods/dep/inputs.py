"""A user's reviews, peers' reviews and a target as a person has them, checked and turned into what methods take."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from bench.config import Config, build
from bench.data.clean import clean, is_clean_id, review_id
from bench.data.population import Population
from bench.data.rows import EARLIEST, LATEST
from bench.errors import UsageError
from bench.keys import digest
from bench.types import Document, Example, FieldValue

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class ReviewRow(Config):
    """One review, or a target."""

    user_id: str | None = None
    item_id: str | None = None
    item_title: str | None = None
    item_description: str | None = None
    rating: float | None = Field(default=None, strict=True)
    title: str | None = None
    """Of the review."""
    text: str | None = None
    timestamp: int | None = None
    """A datetime (UTC where it names no zone), or milliseconds since 1970."""

    @field_validator("user_id", "item_id", mode="before")
    @classmethod
    def _id(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and not is_clean_id(value):
            raise ValueError("an id is not blank and holds no control character")
        return value

    @field_validator("item_title", "item_description", "title", "text")
    @classmethod
    def _clean(cls, value: str | None) -> str | None:
        return None if value is None else clean(value)

    @field_validator("timestamp", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            value = round((aware - _EPOCH) / datetime.timedelta(milliseconds=1))
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not EARLIEST <= value <= LATEST:
            raise ValueError("a time is a datetime, or milliseconds since 1970 between 1980 and 2100")
        return round(value)

    @property
    def fields(self) -> dict[str, FieldValue]:
        """The task's fields, as a dataset has them."""
        return {
            "item_title": self.item_title or "",
            "item_description": self.item_description or "",
            "rating": self.rating,
            "title": self.title or "",
        }


@dataclass(frozen=True)
class Case:
    """One thing to write, and everybody whose reviews are known for it."""

    example: Example
    population: Population


def make_case(reviews: Any, peers: Any, target: Any, where: str = "") -> Case:
    """The case of one target. `where` leads every message ("cases[3]: ").

    Raises UsageError, one line that names the row and the key, for whatever does not hold: no text, a text in the
    target, an unknown key, a review that is not before the target, peers without a user, times for some rows only.
    """
    own = [_row(given, f"{where}reviews[{i}]") for i, given in enumerate(_rows(reviews, f"{where}reviews"))]
    others = [_row(given, f"{where}peers[{i}]") for i, given in enumerate(_rows(peers, f"{where}peers"))]
    asked = _row(_mapping(target, f"{where}target"), f"{where}target")
    _check_target(asked, where)
    _check_texts(own, others, where)
    user = _user(own, asked, where)
    _check_times(own, others, asked, where)
    others = [row for row in others if row.user_id != user]  # nobody is their own peer
    items = _Items([*own, *others, asked])
    documents = _Documents(items)
    history = [documents.make(row, user) for row in own]
    history.sort(key=lambda d: (d.timestamp or 0, (d.item_id or "") if d.timestamp else ""))
    population = Population([*history, *(documents.make(row, str(row.user_id)) for row in others)])
    item = items.of(asked)
    place = item, asked.timestamp
    return Case(Example(review_id(user, item), user, asked.fields, tuple(history), *place), population)


# -- rows -------------------------------------------------------------------------------------------------------------


def _rows(given: Any, where: str) -> list[Mapping[str, Any]]:
    """The rows of a list of dicts or a DataFrame; none for None."""
    if given is None:
        return []
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        given = given.to_dict(orient="records")
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UsageError(f"{where} is {_kind(given)}; give a list of dicts or a DataFrame, one row a review")
    return [_mapping(row, f"{where}[{i}]") for i, row in enumerate(given)]


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) and hasattr(given, "to_dict") and not hasattr(given, "columns"):
        given = given.to_dict()  # a row of a DataFrame
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} is {_kind(given)}; give a dict such as {{'item_title': ..., 'rating': 4}}")
    return {str(key): _plain(value) for key, value in given.items()}


def _kind(given: Any) -> str:
    return "one dict" if isinstance(given, Mapping) else f"of type {type(given).__name__}"


def _plain(value: Any) -> Any:
    """A value without numpy's or pandas' wrapping; None for what they write where there is none."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _row(values: Mapping[str, Any], where: str) -> ReviewRow:
    return build(ReviewRow, values, where)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_target(target: ReviewRow, where: str) -> None:
    if target.text is not None:
        raise UsageError(f"{where}target has a text, which is what is to be written; take it out")
    if not target.item_title:
        raise UsageError(f"{where}target has no item_title; give the title of the item to write about")


def _check_texts(own: Sequence[ReviewRow], others: Sequence[ReviewRow], where: str) -> None:
    for what, rows in (("reviews", own), ("peers", others)):
        for number, row in enumerate(rows):
            if not row.text:
                raise UsageError(f"{where}{what}[{number}] has no text; every review needs one")
            if what == "peers" and row.user_id is None:
                raise UsageError(f"{where}peers[{number}] has no user_id; peers are told apart by it")
            if not row.item_title and (what == "reviews" or row.item_id is None):
                wanted = "item_title" if what == "reviews" else "item_title or item_id"
                raise UsageError(f"{where}{what}[{number}] has no {wanted}; give what it is about")


def _user(own: Sequence[ReviewRow], target: ReviewRow, where: str) -> str:
    """The user who is written for; where nobody says who that is, a name made of what they wrote."""
    named = sorted({row.user_id for row in (*own, target) if row.user_id is not None})
    if len(named) > 1:
        raise UsageError(f"{where}reviews and target are of several users ({named[0]}, {named[1]}); give those of one")
    return named[0] if named else f"user-{digest([row.text for row in own])}"


def _check_times(own: Sequence[ReviewRow], others: Sequence[ReviewRow], target: ReviewRow, where: str) -> None:
    for what, rows in (("reviews", own), ("peers", others)):
        timed = [row.timestamp is not None for row in rows]
        if any(timed) and not all(timed):
            raise UsageError(f"{where}{what}[{timed.index(False)}] has no timestamp and others have; give all or none")
    if target.timestamp is None:
        return
    for number, row in enumerate(own):
        if row.timestamp is not None and row.timestamp >= target.timestamp:
            raise UsageError(f"{where}reviews[{number}] is not before the target; leave it out or mend the timestamps")
    if others and others[0].timestamp is None:
        raise UsageError(
            f"{where}target has a timestamp and peers have none, so that none of them could be shown to be earlier; "
            "give peers timestamps or leave out the target's"
        )


# -- items and documents ----------------------------------------------------------------------------------------------


class _Items:
    """Which item a row is about: by its id; where it has none, by its title."""

    def __init__(self, rows: Iterable[ReviewRow]) -> None:
        self.by_title: dict[str, set[str]] = {}
        for row in rows:
            if row.item_id is not None and row.item_title:
                self.by_title.setdefault(row.item_title, set()).add(row.item_id)

    def of(self, row: ReviewRow) -> str:
        if row.item_id is not None:
            return row.item_id
        known = self.by_title.get(row.item_title or "", set())
        return next(iter(known)) if len(known) == 1 else f"title {row.item_title}"


class _Documents:
    """Rows as documents with ids as a dataset gives them; who wrote twice of an item gets a number behind."""

    def __init__(self, items: _Items) -> None:
        self.items = items
        self.made: dict[str, int] = {}

    def make(self, row: ReviewRow, user: str) -> Document:
        item = self.items.of(row)
        name = review_id(user, item)
        count = self.made[name] = self.made.get(name, 0) + 1
        name = name if count == 1 else f"{name}/{count}"  # no id of one review holds two slashes
        return Document(name, user, row.text or "", row.fields, item, row.timestamp)
