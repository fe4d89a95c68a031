"""Datasets as methods see them: examples with histories, references apart, a population, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from statistics import median_high
from typing import Any

from bench.data.clean import review_id
from bench.data.filters import select
from bench.data.population import Population
from bench.data.ready import Counts, ReadyDocuments, ReadySplit, Role, Written
from bench.data.spec import DatasetSpec
from bench.data.tables import RawItem, RawReview, RawTables
from bench.errors import DataError, UsageError
from bench.keys import canonical_json, digest, rank_hash
from bench.types import REVIEW_TASK, Document, Example, FieldValue, LabeledSplit, Task, Truth


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset. Examples stand by (user, time, item) in each split."""

    name: str
    task: Task
    fingerprint: str
    """SHA-256 of everything that a run can depend on. The order of the source's rows does not change it."""
    train: LabeledSplit
    dev: LabeledSplit
    test: LabeledSplit
    population: Population
    truth: Truth | None
    counts: Mapping[str, Mapping[str, int]]
    """What was left after each step of the construction, in order."""
    selection: str
    """Hash of the ids of all examples: which part of the dataset was chosen."""

    def limited(self, test: int | None, train: int | None, seed: int) -> Dataset:
        """The same dataset with the examples of fewer users; population and fingerprint stay.

        Args:
            test: users to keep in test; None or more than there are: all.
            train: users to keep in train and in dev, likewise.
            seed: users are chosen by the smallest `rank_hash(seed, user)`, in test as in train, so that equal numbers
                choose equal users and a larger number chooses a superset.

        Raises:
            UsageError: a number below 1.
        """
        chosen_test = _chosen(self.test.examples, test, "test", seed)
        chosen_train = _chosen((*self.train.examples, *self.dev.examples), train, "train", seed)
        parts = _only(self.train, chosen_train), _only(self.dev, chosen_train), _only(self.test, chosen_test)
        return replace(self, train=parts[0], dev=parts[1], test=parts[2], selection=_selection(*parts))


def prepare(spec: DatasetSpec) -> Dataset:
    """Loads the source, filters, splits and checks.

    Raises:
        DataError: the data cannot be used; the message names file, row and column, or the step that leaves nothing.
    """
    loaded = spec.source.load()
    where = f"dataset {spec.name!r} ({spec.path})"
    ready = select(loaded, spec.filter, spec.split, where) if isinstance(loaded, RawTables) else loaded
    origin: dict[str, Any] = {}
    if ready.truth is not None:
        # The truth writes texts as the source's options and code say, so they are part of what a run depends on.
        origin = spec.source_config.model_dump(mode="json") | {"version": str(getattr(spec.source, "version", ""))}
    return _build(spec, ready, where, origin)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts for listings and dry runs. Medians are upper medians, so each is the figure of a real case."""
    splits = {"train": dataset.train, "dev": dataset.dev, "test": dataset.test}
    documents = dataset.population.documents()
    targets = {example.id for split in splits.values() for example in split.examples}
    profiles: dict[str, int] = dict.fromkeys(dataset.population.users(), 0)
    for document in documents:
        profiles[document.user_id] += document.id not in targets
    references = [len(text) for split in splits.values() for text in split.references.values()]
    peers = [len(dataset.population.peers(document, document.user_id)) for document in documents]
    return {
        "name": dataset.name,
        "task": dataset.task.name,
        "fingerprint": dataset.fingerprint,
        "selection": dataset.selection,
        "examples": {name: len(split) for name, split in splits.items()},
        "users": {name: len({example.user_id for example in split.examples}) for name, split in splits.items()},
        "population": {
            "documents": len(documents),
            "users": len(profiles),
            "items": len({document.item_id for document in documents} - {None}),
        },
        "profile_reviews": _spread(profiles.values()),
        "test_history": _spread(len(example.history) for example in dataset.test.examples),
        "target_chars": _spread(references),
        "document_chars": _spread(len(document.text) for document in documents),
        "peers_per_document": _spread(peers),
        "truth": dataset.truth is not None,
        "counts": {step: dict(count) for step, count in dataset.counts.items()},
    }


def _build(spec: DatasetSpec, ready: ReadySplit | ReadyDocuments, where: str, origin: Mapping[str, Any]) -> Dataset:
    targets = ready.targets if isinstance(ready, ReadyDocuments) else _as_documents(ready)
    _check_targets(targets, where)
    population = Population(_public(targets))
    examples: dict[Role, list[Example]] = {role: [] for role in Role}
    references: dict[str, str] = {}
    ties = empty = 0
    for target in sorted(targets, key=_target_order):
        example = _example(target)
        ties += len(target.history) - len(example.history)
        empty += not example.history
        if not target.history and spec.split.on_empty_history == "error":
            raise DataError(_no_history(example, target.role, where))
        if example.history or spec.split.on_empty_history != "drop":
            examples[target.role].append(example)
            references[example.id] = target.document.text
    counts: Counts = {**ready.counts, "targets": {role.value: 0 for role in Role}}
    for target in targets:
        counts["targets"][target.role.value] += 1
    counts["histories"] = {"not_before_target": ties, "targets_without_history": empty}
    for role, made in examples.items():
        if not made:
            raise DataError(_empty_split(role, counts, where))
        counts[role.value] = {"users": len({example.user_id for example in made}), "examples": len(made)}
    splits = [LabeledSplit(tuple(made), {one.id: references[one.id] for one in made}) for made in examples.values()]
    train, dev, test = splits
    return Dataset(
        name=spec.name,
        task=spec.task,
        fingerprint=_fingerprint(spec.task, splits, population, origin),
        train=train,
        dev=dev,
        test=test,
        population=population,
        truth=ready.truth,
        counts=counts,
        selection=_selection(train, dev, test),
    )


def _as_documents(ready: ReadySplit) -> list[Written]:
    """Reviews as documents: one object for each, shared by all histories and the population."""
    made: dict[tuple[str, str], Document] = {}

    def document(review: RawReview) -> Document:
        key = review.user_id, review.item_id
        if key not in made:
            place = review.item_id, review.timestamp
            made[key] = Document(review_id(*key), review.user_id, review.text, _fields(review, ready.items), *place)
        return made[key]

    return [
        Written(one.role, document(one.review), [document(past) for past in one.history], one.review.timestamp)
        for one in ready.targets
    ]


def _fields(review: RawReview, items: Mapping[str, RawItem]) -> dict[str, FieldValue]:
    item = items[review.item_id]
    return {
        "item_title": item.title,
        "item_description": item.description,
        "rating": review.rating,
        "title": review.title,
    }


def _public(targets: Sequence[Written]) -> Iterable[Document]:
    """Every document that other users may see: those in histories and the train targets, nothing held out.

    A train target without a time cannot be shown to be before anything, its own example included: it is held out too.
    """

    def shown(target: Written) -> bool:
        return target.role is Role.TRAIN and target.document.timestamp is not None

    held_out = {target.document.id for target in targets if not shown(target)}
    found = {past.id: past for target in targets for past in target.history}
    found |= {target.document.id: target.document for target in targets if shown(target)}
    return [document for key, document in found.items() if key not in held_out]


def _example(target: Written) -> Example:
    """The example with what of its history is strictly before it; without times, in the order given."""
    document, moment = target.document, target.moment
    before = list(target.history)
    if moment is not None:
        dated = [(past.timestamp, past.item_id or "", past) for past in before if past.timestamp is not None]
        before = [past for _, _, past in sorted((d for d in dated if d[0] < moment), key=lambda d: d[:2])]
    place = document.item_id, moment
    return Example(document.id, document.user_id, document.fields, tuple(before), *place)


def _target_order(target: Written) -> tuple[str, float, str, str]:
    document, moment = target.document, target.moment
    return document.user_id, -inf if moment is None else moment, document.item_id or "", document.id


def _check_targets(targets: Sequence[Written], where: str) -> None:
    """No example twice, none in its own history, nothing held out in the history of an earlier split."""
    rank = {role: number for number, role in enumerate(Role)}
    roles: dict[str, Role] = {}
    for target in targets:
        key, role = target.document.id, target.role
        if key in roles:
            raise DataError(f"{where}: the example {key!r} stands twice ({roles[key]}, {role}); keep one")
        roles[key] = role
    for target in targets:
        key, role = target.document.id, target.role
        for past in target.history:
            held = roles.get(past.id)
            if held is not None and (past.id == key or rank[held] > rank[role]):
                what = f"the {held} target {past.id!r}"
                raise DataError(f"{where}: the profile of the {role} example {key!r} holds {what}")


def _no_history(example: Example, role: Role, where: str) -> str:
    return (
        f"{where}: user {example.user_id!r} has no history before the {role} target {example.id!r}; "
        'set split.on_empty_history = "drop" or "keep"'
    )


def _empty_split(role: Role, counts: Counts, where: str) -> str:
    targets, empty = counts["targets"][role.value], counts["histories"]["targets_without_history"]
    if not targets:
        return f"{where}: the split {role} is empty, as the source holds no {role} targets"
    return (
        f"{where}: the split {role} is empty: all its {targets} targets were left out for want of history "
        f'({empty} in all splits); set split.on_empty_history = "keep"'
    )


def _chosen(examples: Iterable[Example], number: int | None, what: str, seed: int) -> set[str]:
    users = {example.user_id for example in examples}
    if number is None:
        return users
    if number < 1:
        raise UsageError(f"the limit of {what} users is {number}; give at least 1, or none at all for everybody")
    return set(sorted(users, key=lambda user: (rank_hash(seed, user), user))[:number])


def _only(split: LabeledSplit, users: set[str]) -> LabeledSplit:
    examples = tuple(example for example in split.examples if example.user_id in users)
    return LabeledSplit(examples, {example.id: split.references[example.id] for example in examples})


def _selection(train: LabeledSplit, dev: LabeledSplit, test: LabeledSplit) -> str:
    return digest([sorted(example.id for example in split.examples) for split in (train, dev, test)])


def _fingerprint(task: Task, splits: Sequence[LabeledSplit], population: Population, origin: Mapping[str, Any]) -> str:
    documents = {document.id: document for document in population.documents()}
    public = sorted(documents)
    for split in splits:
        documents |= {document.id: document for example in split.examples for document in example.history}
    state = hashlib.sha256()

    def add(*values: Any) -> None:
        state.update(canonical_json(values).encode() + b"\n")

    shown = asdict(task)
    for name in ("thing", "request"):  # said only where a task is about something else than items
        if shown[name] == getattr(REVIEW_TASK, name):
            del shown[name]
    add("task", shown, "origin", origin, "population", public)
    for _, one in sorted(documents.items()):
        add("document", one.id, one.user_id, one.item_id, one.timestamp, one.fields, one.text)
    for number, split in enumerate(splits):
        for example in split.examples:
            place = example.id, example.user_id, example.item_id, example.timestamp
            past = [document.id for document in example.history]
            add("example", number, *place, example.fields, past, split.references[example.id])
    return state.hexdigest()


def _spread(values: Iterable[int]) -> dict[str, int]:
    numbers = list(values)
    return {"min": min(numbers, default=0), "median": median_high(numbers or [0]), "max": max(numbers, default=0)}
