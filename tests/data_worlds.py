"""Small worlds of reviews for the data tests, specs over them, and the construction written naively."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from hypothesis import strategies as st

from bench.config import Config
from bench.data.ready import ReadySplit
from bench.data.spec import DatasetSpec, FilterConfig, SplitConfig
from bench.data.tables import RawItem, RawReview, RawTables
from bench.types import REVIEW_TASK

DAY = 86_400_000
START = 1_500_000_000_000
TEXTS = [f"text number {number} about  nothing\tmuch" for number in range(44)] + ["", "short"]

SMALL_FILTER = FilterConfig(
    min_text_chars=6,
    min_description_chars=4,
    max_description_chars=20,
    min_users_per_item=2,
    min_reviews_per_user=4,
    max_reviews_per_user=7,
    min_profile_users_per_item=2,
    min_profile_reviews=1,
)
SMALL_SPLIT = SplitConfig(train=1, val=1, test=1, on_empty_history="keep")

DESCRIPTIONS = [
    "a thing",
    "",
    "a thing with a description far too long",
    "another thing",
    "one  more",
    "third",
    "fourth",
    "fifth",
]


class MemorySource:
    """A source that hands over what it was given."""

    Config: ClassVar[type[Config]] = Config
    version = "1"

    def __init__(self, loaded: RawTables | ReadySplit) -> None:
        self.loaded = loaded

    def load(self) -> RawTables | ReadySplit:
        return self.loaded


def memory_spec(
    loaded: RawTables | ReadySplit, filters: FilterConfig = SMALL_FILTER, split: SplitConfig = SMALL_SPLIT
) -> DatasetSpec:
    """A spec named "world" over tables in memory."""
    ready = isinstance(loaded, ReadySplit)
    source = MemorySource(loaded)
    return DatasetSpec("world", "", Path("world.toml"), "memory", source, Config(), filters, split, REVIEW_TASK, ready)


def make_items(number: int, described: bool = False) -> dict[str, RawItem]:
    """Items i0, i1, ...; the second has no description and the third one that is too long, unless `described`."""
    texts = ["a fine thing"] if described else DESCRIPTIONS
    return {f"i{n}": RawItem(f"i{n}", f"Item {n}", texts[n % len(texts)]) for n in range(number)}


def make_review(
    user: str,
    item: str,
    day: int,
    text: str = "a plain text",
    rating: float | None = 4.0,
    title: str = "title",
    row: int = 0,
) -> RawReview:
    """A review on some day."""
    return RawReview(user, item, rating, title, text, START + day * DAY, row)


def numbered(reviews: Sequence[RawReview]) -> list[RawReview]:
    """The same reviews with rows 0, 1, ..."""
    return [
        RawReview(r.user_id, r.item_id, r.rating, r.title, r.text, r.timestamp, row) for row, r in enumerate(reviews)
    ]


@st.composite
def worlds(draw: st.DrawFn) -> RawTables:
    """Few users and items and days: most pairs once, some not at all or again, some texts twice, some rows unusable."""
    users, items = draw(st.integers(3, 4)), draw(st.integers(7, 11))
    days = st.integers(0, 12)
    rows = [
        make_review(f"u{user}", f"i{item}", draw(days), TEXTS[user * items + item])
        for user in range(users)
        for item in range(items)
        if draw(st.integers(0, 5))
    ]
    messy = st.builds(
        make_review,
        user=st.integers(0, users).map("u{}".format),
        item=st.integers(0, items).map("i{}".format),  # one of them beyond the table
        day=days,
        text=st.sampled_from(TEXTS),
        rating=st.sampled_from([None, 1.0, 5.0]),
        title=st.sampled_from(["title", "other", " "]),
    )
    return RawTables(numbered(draw(st.permutations(rows + draw(st.lists(messy, max_size=12))))), make_items(items))


def random_world(seed: int, users: int = 12, items: int = 14, reviews: int = 160) -> RawTables:
    """A larger world drawn from a seed."""
    random = Random(seed)
    rows = [
        make_review(
            f"u{random.randrange(users)}",
            f"i{random.randrange(items)}",
            random.randrange(60),
            f"text {random.randrange(10_000)} of some length",
            random.choice([None, 1.0, 2.0, 3.0, 4.0, 5.0]),
        )
        for _ in range(reviews)
    ]
    return RawTables(numbered(rows), make_items(items))


@dataclass(frozen=True)
class NaiveExample:
    """An example of the naive construction."""

    role: str
    user: str
    item: str
    text: str
    history: tuple[str, ...]
    """Item ids, oldest first."""


@dataclass(frozen=True)
class NaiveSplit:
    """What the naive construction gives."""

    examples: frozenset[NaiveExample]
    profiles: dict[str, tuple[str, ...]]
    """User -> item ids, oldest first."""


def naive_construction(tables: RawTables, f: FilterConfig, s: SplitConfig) -> NaiveSplit:
    """Steps 1 to 6 as their definition reads: lists, dictionaries and repeated passes, one after the other."""
    rows = _naive_usable(tables, f)
    rows = _naive_newest(rows)
    rows = _naive_dense(rows, f)
    profiles: dict[str, list[RawReview]] = {}
    targets: dict[str, list[RawReview]] = {}
    number = s.train + s.val + s.test
    for user in {row.user_id for row in rows}:
        own = sorted((r for r in rows if r.user_id == user), key=lambda r: (r.timestamp, r.item_id))
        profiles[user], targets[user] = own[: len(own) - number], own[len(own) - number :]
    _naive_profiles(profiles, f)
    roles = ["train"] * s.train + ["val"] * s.val + ["test"] * s.test
    examples = set()
    for user, profile in profiles.items():
        for n, role in enumerate(roles):
            target = targets[user][n]
            known = [r for r in profile + targets[user][:n] if r.timestamp < target.timestamp]
            history = tuple(r.item_id for r in sorted(known, key=lambda r: (r.timestamp, r.item_id)))
            examples.add(NaiveExample(role, user, target.item_id, target.text, history))
    return NaiveSplit(frozenset(examples), {u: tuple(r.item_id for r in own) for u, own in profiles.items()})


def _naive_usable(tables: RawTables, f: FilterConfig) -> list[RawReview]:
    rows = []
    for row in tables.reviews:
        item = tables.items.get(row.item_id)
        if item is None or (f.require_title and not (item.title.strip() and row.title.strip())):
            continue
        if f.require_description and not f.min_description_chars <= len(item.description) <= f.max_description_chars:
            continue
        if len(row.text) < f.min_text_chars or not row.text.strip() or (f.require_rating and row.rating is None):
            continue
        text = " ".join(row.text.split())
        rows.append(RawReview(row.user_id, row.item_id, row.rating, row.title.strip(), text, row.timestamp, row.row))
    return rows


def _naive_newest(rows: list[RawReview]) -> list[RawReview]:
    kept: list[RawReview] = []
    content = [(r.timestamp, r.item_id, r.text, r.title, r.rating is not None, r.rating or 0, r) for r in rows]
    for *_, row in sorted(content, key=lambda c: c[:-1], reverse=True):
        own = [other for other in kept if other.user_id == row.user_id]
        if all(other.item_id != row.item_id and other.text != row.text for other in own):
            kept.append(row)
    return kept


def _naive_dense(rows: list[RawReview], f: FilterConfig) -> list[RawReview]:
    while True:
        users = {item: {r.user_id for r in rows if r.item_id == item} for item in {r.item_id for r in rows}}
        reviews = {user: sum(r.user_id == user for r in rows) for user in {r.user_id for r in rows}}
        kept = [
            r
            for r in rows
            if len(users[r.item_id]) >= f.min_users_per_item
            and f.min_reviews_per_user <= reviews[r.user_id] <= f.max_reviews_per_user
        ]
        if len(kept) == len(rows):
            return kept
        rows = kept


def _naive_profiles(profiles: dict[str, list[RawReview]], f: FilterConfig) -> None:
    """One item or one user at a time: with lower bounds alone every order ends at the same place."""
    changed = True
    while changed:
        changed = False
        for item in sorted({r.item_id for own in profiles.values() for r in own}):
            holders = [user for user, own in profiles.items() if any(r.item_id == item for r in own)]
            if len(holders) < f.min_profile_users_per_item:
                for user in holders:
                    profiles[user] = [r for r in profiles[user] if r.item_id != item]
                changed = True
                break
        for user in sorted(profiles):
            if len(profiles[user]) < f.min_profile_reviews:
                del profiles[user]
                changed = True
                break
