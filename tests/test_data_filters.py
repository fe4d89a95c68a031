"""The construction of targets and profiles, against its definition written naively."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from data_worlds import (
    SMALL_FILTER,
    SMALL_SPLIT,
    make_items,
    make_review,
    memory_spec,
    naive_construction,
    numbered,
    random_world,
    worlds,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bench.data.filters import fix_point, newest, select, usable_items, usable_reviews
from bench.data.ready import ReadySplit
from bench.data.spec import FilterConfig, SplitConfig
from bench.data.split import Dataset, prepare
from bench.data.tables import RawItem, RawTables
from bench.errors import DataError

FILTERS = st.builds(
    FilterConfig,
    min_text_chars=st.sampled_from([0, 6]),
    min_description_chars=st.just(4),
    max_description_chars=st.just(20),
    require_rating=st.booleans(),
    require_title=st.booleans(),
    require_description=st.booleans(),
    min_users_per_item=st.integers(1, 3),
    min_reviews_per_user=st.integers(4, 5),
    max_reviews_per_user=st.sampled_from([6, 8, 500]),
    min_profile_users_per_item=st.integers(0, 2),
    min_profile_reviews=st.integers(0, 2),
)
SPLITS = st.builds(
    SplitConfig, train=st.integers(1, 2), val=st.just(1), test=st.just(1), on_empty_history=st.just("keep")
)


def examples_of(dataset: Dataset) -> set[tuple[str, str, str, str, tuple[str, ...]]]:
    """Role, user, item, text and history of each example, as `NaiveExample` holds them."""
    return {
        (role, one.user_id, str(one.item_id), split.references[one.id], tuple(str(d.item_id) for d in one.history))
        for role, split in (("train", dataset.train), ("val", dataset.dev), ("test", dataset.test))
        for one in split.examples
    }


def check_against_definition(tables: RawTables, filters: FilterConfig, split: SplitConfig) -> bool:
    """Compares everything with the naive construction; whether anything was left."""
    expected = naive_construction(tables, filters, split)
    if not expected.examples:
        with pytest.raises(DataError, match=r"is empty|holds no reviews"):
            prepare(memory_spec(tables, filters, split))
        return False
    dataset = prepare(memory_spec(tables, filters, split))
    assert examples_of(dataset) == {(e.role, e.user, e.item, e.text, e.history) for e in expected.examples}
    train = {(e.user, e.item) for e in expected.examples if e.role == "train"}
    profiles = {(user, item) for user, own in expected.profiles.items() for item in own}
    assert {(d.user_id, d.item_id) for d in dataset.population.documents()} == profiles | train
    assert dataset.counts["profiles"] == {
        "users": len(expected.profiles),
        "items": len({item for _, item in profiles}),
        "reviews": len(profiles),
    }
    return True


@given(worlds(), FILTERS, SPLITS)
@settings(max_examples=150, deadline=None)
def test_equals_the_definition(tables: RawTables, filters: FilterConfig, split: SplitConfig) -> None:
    event("something left" if check_against_definition(tables, filters, split) else "empty")


def test_equals_the_definition_on_larger_worlds() -> None:
    left = sum(check_against_definition(random_world(seed), SMALL_FILTER, SMALL_SPLIT) for seed in range(30))
    assert left >= 15, "too few worlds survive the filters for the comparison to mean anything"


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), unique=True, max_size=60),
    st.integers(0, 4),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(2, 6)),
)
@settings(deadline=None)
def test_fix_point_equals_passes_over_dictionaries(
    edges: list[tuple[int, int]], min_users: int, min_reviews: int, max_reviews: int | None
) -> None:
    users, items = (np.array([edge[side] for edge in edges], dtype=np.intp) for side in (0, 1))
    mask = fix_point(users, items, min_users, min_reviews, max_reviews)
    left = list(edges)
    while True:
        per_user, per_item = Counter(user for user, _ in left), Counter(item for _, item in left)
        most = max_reviews if max_reviews is not None else len(edges)
        kept = [(u, i) for u, i in left if per_item[i] >= min_users and min_reviews <= per_user[u] <= most]
        if kept == left:
            break
        left = kept
    assert [edge for edge, alive in zip(edges, mask, strict=True) if alive] == left


def test_newest_keeps_one_review_for_item_and_for_text() -> None:
    reviews = [
        make_review("u", "a", 1, "first words"),
        make_review("u", "a", 3, "second words"),  # the newest on a
        make_review("u", "b", 2, "second words"),  # its text stands again later
        make_review("u", "c", 0, "first words"),  # the text of a review that itself gives way
        make_review("v", "b", 2, "second words"),  # another user's
    ]
    assert [(r.user_id, r.item_id, r.text) for r in newest(reviews)] == [
        ("u", "c", "first words"),
        ("u", "a", "second words"),
        ("v", "b", "second words"),
    ]


def test_lengths_are_those_of_the_source_before_white_space_goes() -> None:
    config = FilterConfig(min_text_chars=10, min_description_chars=8, max_description_chars=9)
    items = {key: RawItem(key, key, text) for key, text in {"a": "12  5678", "b": "12 5678", "c": "1234567890"}.items()}
    assert sorted(usable_items(items, config)) == ["a"]
    reviews = [make_review("u", "a", 1, "123     90"), make_review("u", "a", 2, "123456789")]
    kept, left_out = usable_reviews(reviews, items, config)
    assert [review.text for review in kept] == ["123 90"]
    assert left_out["text"] == 1


def test_counts_what_step_one_leaves_out() -> None:
    config = FilterConfig(min_text_chars=5)
    reviews = [
        make_review("u", "unknown", 1),
        make_review("u", "a", 2, "tiny"),
        make_review("u", "a", 2, " \ue000 \x00  "),
        make_review("u", "a", 3, rating=None),
        make_review("u", "a", 4, title=" \n"),
        make_review("u", "a", -int(1e9)),
        make_review("u", "a", 5),
    ]
    kept, left_out = usable_reviews(reviews, make_items(1) | {"a": RawItem("a", "A", "")}, config)
    assert len(kept) == 1
    assert left_out == {"item": 1, "text": 2, "rating": 1, "title": 1, "timestamp": 1}


def test_no_review_at_all() -> None:
    with pytest.raises(DataError, match="holds no reviews"):
        select(RawTables([], {}), SMALL_FILTER, SMALL_SPLIT, "dataset 'world'")


def test_an_empty_result_names_step_thresholds_and_what_came_before() -> None:
    reviews = numbered([make_review(f"u{u}", f"i{i}", i, f"text {i} of {u}") for u in range(3) for i in range(6)])
    tables = RawTables(reviews, make_items(6, described=True))

    def message(**changes: object) -> str:
        config = SMALL_FILTER.model_copy(update=changes)
        with pytest.raises(DataError) as caught:
            select(tables, config, SMALL_SPLIT, "dataset 'world'")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    short = message(min_text_chars=5000)
    assert "'usable'" in short
    assert "18 text shorter than filter.min_text_chars = 5000" in short
    thin = message(min_users_per_item=4)
    assert "'dense'" in thin
    assert "min_users_per_item = 4" in thin
    assert "18 after 'newest'" in thin
    profiles = message(min_profile_reviews=4)
    assert "'profiles'" in profiles
    assert "min_profile_reviews = 4" in profiles
    assert "18 after 'dense'" in profiles


def test_targets_follow_profile_in_one_stable_order() -> None:
    reviews = numbered([make_review(f"u{u}", f"i{i}", 1, f"text {i} of {u}") for i in range(6) for u in range(2)])
    config = SMALL_FILTER.model_copy(update={"min_profile_reviews": 3})
    ready = select(RawTables(reviews, make_items(6, described=True)), config, SMALL_SPLIT, "world")
    assert isinstance(ready, ReadySplit)
    assert [t.review.item_id for t in ready.targets] == ["i3", "i4", "i5"] * 2
