"""Datasets: no look-ahead, no leaks, fingerprints that see every character, limits that choose the same users."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from statistics import median_high
from typing import Any

import pytest
from data_worlds import (
    SMALL_FILTER,
    SMALL_SPLIT,
    START,
    make_items,
    make_review,
    memory_spec,
    numbered,
    random_world,
    worlds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.clean import clean, is_clean_id, review_id
from bench.data.ready import ReadySplit, Role, Target
from bench.data.spec import DatasetSpec, SplitConfig, load_spec
from bench.data.split import Dataset, describe, prepare
from bench.data.tables import RawReview, RawTables
from bench.errors import DataError, UnknownName, UsageError
from bench.keys import rank_hash
from bench.types import SLOT_CLOSE, SLOT_OPEN, Document, Example


def plain_world(users: int = 5, items: int = 6) -> RawTables:
    """Everybody wrote about everything, one item a day."""
    reviews = [make_review(f"u{u}", f"i{i}", i, f"what {u} says of {i}") for u in range(users) for i in range(items)]
    return RawTables(numbered(reviews), make_items(items, described=True))


def all_examples(dataset: Dataset) -> list[Example]:
    return [example for split in (dataset.train, dataset.dev, dataset.test) for example in split.examples]


def all_documents(dataset: Dataset) -> dict[str, Document]:
    found = {document.id: document for document in dataset.population.documents()}
    return found | {document.id: document for example in all_examples(dataset) for document in example.history}


def or_none(spec: DatasetSpec) -> Dataset | None:
    try:
        return prepare(spec)
    except DataError:
        return None


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_rows_changes_nothing(tables: RawTables, random: Random) -> None:
    shuffled, items = list(tables.reviews), list(tables.items.items())
    random.shuffle(shuffled)
    random.shuffle(items)
    one, other = or_none(memory_spec(tables)), or_none(memory_spec(RawTables(numbered(shuffled), dict(items))))
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    assert one.fingerprint == other.fingerprint
    assert one.selection == other.selection
    assert (one.train, one.dev, one.test) == (other.train, other.dev, other.test)
    assert one.population.documents() == other.population.documents()
    assert dict(one.counts) == dict(other.counts)


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_nothing_at_or_after_the_target_is_in_a_history(tables: RawTables) -> None:
    dataset = or_none(memory_spec(tables))
    if dataset is None:
        return
    for example in all_examples(dataset):
        times = [document.timestamp or 0 for document in example.history]
        assert times == sorted(times)
        assert all(time < (example.timestamp or 0) for time in times)
        assert {document.user_id for document in example.history} <= {example.user_id}
        assert example.id not in {document.id for document in example.history}


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_held_out_texts_are_not_in_the_population(tables: RawTables) -> None:
    dataset = or_none(memory_spec(tables))
    if dataset is None:
        return
    public = {document.id for document in dataset.population.documents()}
    assert not public & {example.id for split in (dataset.dev, dataset.test) for example in split.examples}
    assert {example.id for example in dataset.train.examples} <= public
    held_out = {example.id for split in (dataset.dev, dataset.test) for example in split.examples}
    for example in all_examples(dataset):
        assert not {d.id for d in example.history if d.id in held_out and d.user_id != example.user_id}


def test_ties_in_time_are_no_history() -> None:
    days = [0, 1, 2, 3, 3, 4]
    reviews = [make_review(f"u{u}", f"i{i}", days[i], f"what {u} says of {i}") for u in range(2) for i in range(6)]
    dataset = prepare(memory_spec(RawTables(numbered(reviews), make_items(6, described=True))))
    histories = {example.id: [d.item_id for d in example.history] for example in all_examples(dataset)}
    assert histories["u0/i3"] == ["i0", "i1", "i2"]
    assert histories["u0/i4"] == ["i0", "i1", "i2"]  # i3 came on the same day
    assert histories["u0/i5"] == ["i0", "i1", "i2", "i3", "i4"]
    assert dataset.counts["histories"] == {"not_before_target": 2, "targets_without_history": 0}


def test_fields_ids_and_shared_documents() -> None:
    tables = plain_world()
    dataset = prepare(memory_spec(tables))
    [example] = [one for one in dataset.test.examples if one.user_id == "u1"]
    assert example.id == "u1/i5"
    assert example.fields == {
        "item_title": "Item 5",
        "item_description": "a fine thing",
        "rating": 4.0,
        "title": "title",
    }
    assert set(example.fields) == {field.name for field in dataset.task.fields}
    assert dataset.test.references[example.id] == "what 1 says of 5"
    public = {document.id: document for document in dataset.population.documents()}
    assert example.history[0] is public["u1/i0"]
    assert [one.user_id for one in dataset.test.examples] == [f"u{n}" for n in range(5)]


def test_an_example_reaches_no_reference() -> None:
    dataset = prepare(memory_spec(plain_world()))
    for split in (dataset.train, dataset.dev, dataset.test):
        for example in split.examples:
            reachable = repr([getattr(example, field.name) for field in fields(example)])
            assert split.references[example.id] not in reachable


def test_ids_with_slashes_stay_apart() -> None:
    names = ["a/b", "a", "a%2Fb", "a%"]
    ids = {review_id(user, item) for user in names for item in [*names, "b/a", "b"]}
    assert len(ids) == len(names) * 6
    assert all(name.count("/") == 1 for name in ids)
    assert review_id("u 1", "Item (2015)") == "u 1/Item (2015)"


@given(st.text(st.sampled_from("ab \n\t\x00\ue000\ue001\ud800\udfff\u00a0\u3000")))
def test_clean_text_is_single_spaced_and_free_of_forbidden_characters(text: str) -> None:
    done = clean(text)
    assert done == clean(done) == " ".join(done.split())
    assert not set(done) & set(f"\x00\ud800\udfff\n\t{SLOT_OPEN}{SLOT_CLOSE}")
    assert [c for c in done if c in "ab"] == [c for c in text if c in "ab"]
    done.encode()
    if is_clean_id(text):
        text.encode()
        assert text.strip()


def test_source_texts_are_cleaned_everywhere() -> None:
    tables = plain_world()
    dirty = [
        replace(r, text=f" {r.text}\n\n{SLOT_OPEN}dep{SLOT_CLOSE} \ud800 end\x00 ", title=" a\t b ")
        for r in tables.reviews
    ]
    items = {
        key: replace(item, title=f"\n{item.title} ", description="a   thing") for key, item in tables.items.items()
    }
    dataset = prepare(memory_spec(RawTables(dirty, items)))
    assert dataset.test.references["u1/i5"] == "what 1 says of 5 dep end"
    [example] = [one for one in dataset.test.examples if one.user_id == "u1"]
    assert example.fields["title"] == "a b"
    assert example.fields["item_description"] == "a thing"
    assert example.fields["item_title"] == "Item 5"


@pytest.mark.parametrize("what", ["error", "drop", "keep"])
def test_a_target_whose_history_is_hidden_by_equal_times_alone(what: str) -> None:
    reviews = [make_review("u0", f"i{i}", max(i, 1), f"first {i}") for i in range(6)]
    reviews += [make_review("u1", f"i{i}", 7 if i < 4 else 9, f"second {i}") for i in range(6)]
    split = SplitConfig.model_validate({"train": 1, "val": 1, "test": 1, "on_empty_history": what})
    dataset = prepare(memory_spec(RawTables(numbered(reviews), make_items(6, described=True)), split=split))
    kept = {example.id for example in dataset.train.examples}
    assert kept == ({"u0/i3"} if what == "drop" else {"u0/i3", "u1/i3"})
    assert dataset.counts["targets"] == {"train": 2, "val": 2, "test": 2}
    assert dataset.counts["histories"]["targets_without_history"] == 1


@pytest.mark.parametrize("what", ["error", "drop", "keep"])
def test_a_target_before_which_its_user_wrote_nothing(what: str) -> None:
    reviews = [make_review("u0", f"i{i}", i + 1, f"first {i}") for i in range(6)]
    reviews += [make_review("u1", f"i{i}", i + 1, f"second {i}") for i in range(3, 6)]
    split = SplitConfig.model_validate({"train": 1, "val": 1, "test": 1, "on_empty_history": what})
    fewest = {
        "min_reviews_per_user": 3,
        "min_profile_reviews": 0,
        "min_users_per_item": 1,
        "min_profile_users_per_item": 1,
    }
    loose = SMALL_FILTER.model_copy(update=fewest)
    tables = RawTables(numbered(reviews), make_items(6, described=True))
    spec = memory_spec(tables, filters=loose, split=split)
    if what == "error":
        with pytest.raises(DataError, match=r"'u1' has no history before the train target 'u1/i3'.*on_empty_history"):
            prepare(spec)
        return
    kept = {example.id for example in prepare(spec).train.examples}
    assert kept == ({"u0/i3"} if what == "drop" else {"u0/i3", "u1/i3"})


def test_a_split_left_empty_by_dropping() -> None:
    reviews = [make_review(f"u{u}", f"i{i}", 7 if i < 4 else 9, f"{u} on {i}") for u in range(2) for i in range(6)]
    split = SplitConfig(train=1, val=1, test=1, on_empty_history="drop")
    with pytest.raises(DataError, match=r"the split train is empty: all its 2 targets"):
        prepare(memory_spec(RawTables(numbered(reviews), make_items(6, described=True)), split=split))


def edited(tables: RawTables, user: str, item: str, **changes: Any) -> RawTables:
    return replace(
        tables,
        reviews=[replace(r, **changes) if (r.user_id, r.item_id) == (user, item) else r for r in tables.reviews],
    )


@pytest.mark.parametrize("item", [f"i{n}" for n in range(6)])
@pytest.mark.parametrize(
    "changes", [{"text": "what 1 says of !"}, {"title": "titlf"}, {"rating": 4.5}, {"rating": None}, {"user_id": "u1b"}]
)
def test_fingerprint_sees_every_change_of_what_is_used(item: str, changes: dict[str, Any]) -> None:
    config = SMALL_FILTER.model_copy(update={"require_rating": False, "min_reviews_per_user": 3})
    tables = plain_world()
    before = prepare(memory_spec(tables, config))
    after = prepare(memory_spec(edited(tables, "u1", item, **changes), config))
    assert before.fingerprint != after.fingerprint


def test_fingerprint_sees_items_times_and_task_and_nothing_else() -> None:
    tables = plain_world()
    spec = memory_spec(tables)
    before = prepare(spec)
    moved = edited(tables, "u1", "i5", timestamp=START + 5 * 86_400_000 + 1)
    assert prepare(memory_spec(moved)).fingerprint != before.fingerprint
    items = tables.items | {"i0": replace(tables.items["i0"], description="a finf thing")}
    assert prepare(memory_spec(replace(tables, items=items))).fingerprint != before.fingerprint
    task = replace(spec.task, target_label="Text")
    assert prepare(replace(spec, task=task)).fingerprint != before.fingerprint
    unused = [*tables.reviews, make_review("stranger", "i0", 3)]
    assert prepare(memory_spec(replace(tables, reviews=unused))).fingerprint == before.fingerprint
    assert prepare(replace(spec, name="renamed")).fingerprint == before.fingerprint
    assert prepare(memory_spec(tables)).fingerprint == before.fingerprint


class KnownTruth:
    def write(self, example_id: str, seed: int) -> str:
        return example_id

    def traits(self, user_id: str) -> dict[str, str]:
        return {}

    def recovered(self, user_id: str, text: str) -> dict[str, bool]:
        return {}


def test_truth_is_passed_on_and_its_source_is_in_the_fingerprint() -> None:
    truth = KnownTruth()
    spec = memory_spec(replace(plain_world(), truth=truth))
    dataset = prepare(spec)
    assert dataset.truth is truth
    assert dataset.fingerprint != prepare(memory_spec(plain_world())).fingerprint
    spec.source.version = "2"  # type: ignore[attr-defined]
    assert prepare(spec).fingerprint != dataset.fingerprint


def big_world() -> Dataset:
    return prepare(memory_spec(plain_world(users=12)))


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_limited_chooses_users_by_rank(test: int, train: int, seed: int) -> None:
    dataset = big_world()
    limited = dataset.limited(test=test, train=train, seed=seed)
    ranked = sorted({e.user_id for e in dataset.test.examples}, key=lambda user: rank_hash(seed, user))
    for split, whole, number in (
        (limited.test, dataset.test, test),
        (limited.dev, dataset.dev, train),
        (limited.train, dataset.train, train),
    ):
        assert {e.user_id for e in split.examples} == set(ranked[:number])
        assert list(split.examples) == [e for e in whole.examples if e.user_id in set(ranked[:number])]
        assert set(split.references) == {e.id for e in split.examples}
    assert limited.fingerprint == dataset.fingerprint
    assert limited.population is dataset.population
    assert (limited.selection == dataset.selection) == (test >= 12 and train >= 12)
    assert limited.selection == dataset.limited(test, train, seed).selection


def test_limited_to_nothing_in_particular_is_everything() -> None:
    dataset = big_world()
    same = dataset.limited(None, None, 7)
    assert (same.train, same.dev, same.test, same.selection) == (
        dataset.train,
        dataset.dev,
        dataset.test,
        dataset.selection,
    )


@pytest.mark.parametrize(("test", "train"), [(0, None), (-3, None), (None, 0), (None, -1)])
def test_limits_below_one(test: int | None, train: int | None) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        big_world().limited(test, train, 0)


def ready(*targets: tuple[Role, RawReview, list[RawReview]]) -> DatasetSpec:
    return memory_spec(ReadySplit([Target(*target) for target in targets], make_items(6)))


def life(user: str = "u") -> list[RawReview]:
    return [make_review(user, f"i{n}", n, f"{user} on {n}") for n in range(6)]


def test_a_ready_split_is_taken_as_it_is() -> None:
    past = life()
    dataset = prepare(
        ready((Role.TRAIN, past[3], past[:3]), (Role.VAL, past[4], past[1:4]), (Role.TEST, past[5], past[:5]))
    )
    assert [d.id for d in dataset.dev.examples[0].history] == ["u/i1", "u/i2", "u/i3"]
    assert [d.id for d in dataset.population.documents()] == ["u/i0", "u/i1", "u/i2", "u/i3"]
    assert [d.id for d in dataset.test.examples[0].history][-1] == "u/i4"  # the user's own, seen by nobody else


def test_an_example_that_stands_twice() -> None:
    past = life()
    rows = [(Role.TRAIN, past[3], past[:3]), (Role.VAL, past[4], past[:4]), (Role.TEST, past[3], past[:3])]
    with pytest.raises(DataError, match=r"'u/i3' stands twice \(train, test\)"):
        prepare(ready(*rows))


def test_a_profile_that_holds_what_is_held_out() -> None:
    past = life()
    rows = [(Role.TRAIN, past[3], past[:3]), (Role.VAL, past[4], past[:4]), (Role.TEST, past[5], past[:6])]
    with pytest.raises(DataError, match=r"profile of the test example 'u/i5' holds the test target 'u/i5'"):
        prepare(ready(*rows))
    rows[0], rows[2] = (Role.TRAIN, past[3], [*past[:3], past[4]]), (Role.TEST, past[5], past[:5])
    with pytest.raises(DataError, match=r"profile of the train example 'u/i3' holds the val target 'u/i4'"):
        prepare(ready(*rows))


def test_a_ready_split_without_one_of_its_parts() -> None:
    past = life()
    with pytest.raises(DataError, match="the split test is empty, as the source holds no test targets"):
        prepare(ready((Role.TRAIN, past[3], past[:3]), (Role.VAL, past[4], past[:4])))


def test_describe_counts_from_the_dataset_alone() -> None:
    dataset = prepare(memory_spec(random_world(3), split=SMALL_SPLIT))
    found = describe(dataset)
    assert json.loads(json.dumps(found)) == found
    assert found["examples"] == {"train": len(dataset.train), "dev": len(dataset.dev), "test": len(dataset.test)}
    public = dataset.population.documents()
    peers = [sum(other.item_id == one.item_id and other.user_id != one.user_id for other in public) for one in public]
    assert found["peers_per_document"] == {"min": min(peers), "median": median_high(peers), "max": max(peers)}
    lengths = [len(one.history) for one in dataset.test.examples]
    assert found["test_history"] == {"min": min(lengths), "median": median_high(lengths), "max": max(lengths)}
    train = {example.id for example in dataset.train.examples}
    own = [sum(d.user_id == user and d.id not in train for d in public) for user in dataset.population.users()]
    assert found["profile_reviews"]["median"] == median_high(own)
    assert sum(own) == dataset.counts["profiles"]["reviews"]


def test_the_planted_world_goes_through_the_same_code() -> None:
    spec = load_spec(str(Path(__file__).resolve().parents[1] / "datasets" / "planted.toml"))
    dataset = prepare(spec)
    users = dataset.counts["source"]["users"]
    assert dataset.counts["targets"] == {"train": 8 * users, "val": users, "test": users}
    assert dataset.counts["profiles"]["users"] == users
    assert dataset.truth is not None
    for example in dataset.test.examples:
        assert dataset.truth.write(example.id, 0)
        assert dataset.population.peers(example.history[-2], example.user_id)
    noisy = load_spec(str(spec.path), {"noise": 0.5})
    assert prepare(noisy).fingerprint != dataset.fingerprint
    assert prepare(load_spec(str(spec.path))).fingerprint == dataset.fingerprint
    with pytest.raises(UnknownName, match="did you mean 'noise'"):
        load_spec(str(spec.path), {"nois": 0.5})
