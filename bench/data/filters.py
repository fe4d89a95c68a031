"""From raw tables to targets and profiles: steps 1 to 5 of DPL's construction, with the counts after each.

Source: Qiu et al., "Measuring What Makes You Unique: Difference-Aware User Modeling for Enhancing LLM Personalization"
(DPL, Findings of ACL 2025). Where reviews share a timestamp one stable order holds everywhere, by (timestamp, item id),
so that neither the order of a table's rows nor the run changes a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from bench.data.clean import clean
from bench.data.ready import Counts, ReadySplit, Role, Target, tally
from bench.data.spec import FilterConfig, SplitConfig
from bench.data.tables import RawItem, RawReview, RawTables
from bench.errors import DataError

Parts = dict[str, tuple[list[RawReview], list[RawReview]]]
"""User id -> (profile, targets), each oldest first."""


def select(tables: RawTables, config: FilterConfig, split: SplitConfig, where: str) -> ReadySplit:
    """Targets and profiles by steps 1 to 5, then histories before ties in time are left out.

    Args:
        tables: reviews and items as the source holds them.
        config: thresholds of steps 1, 3 and 5.
        split: targets per user.
        where: what errors call the dataset.

    Raises:
        DataError: nothing is left after a step; the message names the step, its thresholds and what came before.
    """
    counts: Counts = {"source": tally(tables.reviews)}
    if not tables.reviews:
        raise DataError(f"{where} holds no reviews; check the source's reviews table")
    items = usable_items(tables.items, config)
    reviews, counts["left_out"] = usable_reviews(tables.reviews, items, config)
    _record(counts, "usable", reviews, where, left_out_for(counts["left_out"], config))
    reviews = newest(reviews)
    counts["newest"] = tally(reviews)
    reviews = dense(reviews, config)
    _record(counts, "dense", reviews, where, dense_thresholds(config))
    parts = keep_profiles(divide(reviews, split.train + split.val + split.test), config)
    profiles = [review for profile, _ in parts.values() for review in profile]
    counts["profiles"] = tally(profiles) | {"users": len(parts)}
    if not parts:
        raise DataError(emptied(where, "profiles", counts, profile_thresholds(config)))
    targets = [target for user in sorted(parts) for target in _targets(*parts[user], split)]
    used = {review.item_id for profile, late in parts.values() for review in (*profile, *late)}
    clean_items = {item: _clean_item(items[item]) for item in sorted(used)}
    return ReadySplit(targets, clean_items, tables.truth, counts)


def usable_items(items: Mapping[str, RawItem], config: FilterConfig) -> dict[str, RawItem]:
    """Step 1, items: a title, and a description whose length as given by the source is within bounds."""
    low, high = config.min_description_chars, config.max_description_chars
    return {
        key: item
        for key, item in items.items()
        if (clean(item.title) or not config.require_title)
        and (not config.require_description or (low <= len(item.description) <= high and clean(item.description)))
    }


def usable_reviews(
    reviews: Sequence[RawReview], items: Mapping[str, RawItem], config: FilterConfig
) -> tuple[list[RawReview], dict[str, int]]:
    """Step 1, reviews: those that can be used, with clean text and title, and how many were left out for what.

    The length of a text is that of the source's text, before white space is collapsed. A review that lacks several
    things counts under the first of: item, text, rating, title, timestamp.
    """
    left_out: Counter[str] = Counter(dict.fromkeys(("item", "text", "rating", "title", "timestamp"), 0))
    kept: list[RawReview] = []
    for review in reviews:
        text, title = clean(review.text), clean(review.title)
        if review.item_id not in items:
            left_out["item"] += 1
        elif not text or len(review.text) < config.min_text_chars:
            left_out["text"] += 1
        elif config.require_rating and review.rating is None:
            left_out["rating"] += 1
        elif config.require_title and not title:
            left_out["title"] += 1
        elif review.timestamp <= 0:
            left_out["timestamp"] += 1
        else:
            kept.append(replace(review, text=text, title=title))
    return kept, dict(left_out)


def newest(reviews: Sequence[RawReview]) -> list[RawReview]:
    """Step 2: one review for a (user, item) and for a (user, text), the newest kept; by user, oldest first."""
    kept: list[RawReview] = []
    for _, group in groupby(sorted(reviews, key=_stable_order), key=lambda review: review.user_id):
        items: set[str] = set()
        texts: set[str] = set()
        own: list[RawReview] = []
        for review in reversed(list(group)):
            if review.item_id not in items and review.text not in texts:
                items.add(review.item_id)
                texts.add(review.text)
                own.append(review)
        kept += reversed(own)
    return kept


def dense(reviews: Sequence[RawReview], config: FilterConfig) -> list[RawReview]:
    """Step 3: the fix point of leaving out items with too few users and users with too few or too many reviews."""
    bounds = config.min_users_per_item, config.min_reviews_per_user, config.max_reviews_per_user
    mask = fix_point(_codes([r.user_id for r in reviews]), _codes([r.item_id for r in reviews]), *bounds)
    return [reviews[index] for index in np.flatnonzero(mask).tolist()]


def divide(reviews: Sequence[RawReview], targets: int) -> Parts:
    """Step 4: each user's last `targets` reviews apart from the ones before. Takes reviews by user, oldest first."""
    parts: Parts = {}
    for user, group in groupby(reviews, key=lambda review: review.user_id):
        own = list(group)
        parts[user] = own[:-targets], own[-targets:]
    return parts


def keep_profiles(parts: Parts, config: FilterConfig) -> Parts:
    """Step 5: the fix point over profiles alone, of items with too few users and users with too few reviews."""
    profiles = [review for profile, _ in parts.values() for review in profile]
    users, items = _codes([r.user_id for r in profiles]), _codes([r.item_id for r in profiles])
    mask = fix_point(users, items, config.min_profile_users_per_item, config.min_profile_reviews, None)
    kept: dict[str, list[RawReview]] = {user: [] for user in parts}
    for index in np.flatnonzero(mask).tolist():
        kept[profiles[index].user_id].append(profiles[index])
    return {
        user: (kept[user], targets)
        for user, (_, targets) in parts.items()
        if len(kept[user]) >= config.min_profile_reviews
    }


def fix_point(
    users: NDArray[np.intp], items: NDArray[np.intp], min_users: int, min_reviews: int, max_reviews: int | None
) -> NDArray[np.bool_]:
    """Which (user, item) edges stay when thin items and thin or heavy users are left out until nothing changes.

    Items and users are judged on the same counts in each pass. With an upper bound that matters: a user above it goes,
    although the next pass might have brought the user below it.

    Args:
        users: code of each edge's user, 0 to n-1.
        items: code of each edge's item, likewise. No (user, item) stands twice.
        min_users: fewest edges of an item.
        min_reviews: fewest edges of a user.
        max_reviews: most edges of a user; None: no bound.
    """
    alive = np.ones(len(users), dtype=np.bool_)
    left = len(users)
    while left:
        per_item, per_user = np.bincount(items[alive]), np.bincount(users[alive])
        good_items, good_users = per_item >= min_users, per_user >= min_reviews
        if max_reviews is not None:
            good_users &= per_user <= max_reviews
        index = np.flatnonzero(alive)
        alive[index] = good_items[items[index]] & good_users[users[index]]
        before, left = left, int(alive.sum())
        if left == before:
            break
    return alive


def _targets(profile: list[RawReview], late: list[RawReview], split: SplitConfig) -> list[Target]:
    """Step 6 up to ties in time: a target's history is the profile and the user's targets before it."""
    roles = [Role.TRAIN] * split.train + [Role.VAL] * split.val + [Role.TEST] * split.test
    return [Target(role, late[n], [*profile, *late[:n]]) for n, role in enumerate(roles)]


def _stable_order(review: RawReview) -> tuple[str, int, str, str, str, bool, float]:
    """User, time, item; then content, so that two reviews of one item at one moment have an order too."""
    rating = review.rating
    content = review.text, review.title, rating is not None, rating or 0.0
    return review.user_id, review.timestamp, review.item_id, *content


def _codes(names: Sequence[str]) -> NDArray[np.intp]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _clean_item(item: RawItem) -> RawItem:
    return replace(item, title=clean(item.title), description=clean(item.description))


def _record(counts: Counts, step: str, reviews: Sequence[RawReview], where: str, reason: str) -> None:
    counts[step] = tally(reviews)
    if not reviews:
        raise DataError(emptied(where, step, counts, reason))


def emptied(where: str, step: str, counts: Counts, reason: str) -> str:
    """What to say where a step leaves nothing: the step, why, and how many reviews there were after each before it."""
    steps = [name for name, count in counts.items() if "reviews" in count and name != step]
    trail = ", ".join(f"{counts[name]['reviews']} after {name!r}" for name in steps)
    return f"{where} is empty after step {step!r} ({reason}); reviews before it: {trail}; loosen [filter]"


def left_out_for(left_out: Mapping[str, int], config: FilterConfig) -> str:
    """How many reviews step 1 left out for what, for `emptied`."""
    means = {
        "item": "item unknown, untitled or with a description outside the bounds",
        "text": f"text shorter than filter.min_text_chars = {config.min_text_chars}",
        "rating": "no rating",
        "title": "no title",
        "timestamp": "no timestamp",
    }
    return "left out: " + ", ".join(f"{count} {means[what]}" for what, count in left_out.items() if count)


def dense_thresholds(config: FilterConfig) -> str:
    """The thresholds of step 3, for `emptied`."""
    return _shown(config, "min_users_per_item", "min_reviews_per_user", "max_reviews_per_user")


def profile_thresholds(config: FilterConfig) -> str:
    """The thresholds of step 5, for `emptied`."""
    return _shown(config, "min_profile_users_per_item", "min_profile_reviews")


def _shown(config: FilterConfig, *keys: str) -> str:
    return ", ".join(f"{key} = {getattr(config, key)}" for key in keys)
