"""Linear probes: can a trait of a user be read from that user's vector, better than chance?

One vector a user, so no user ever stands on both sides of a fold. Everything that looks at data (scaling, principal
components, the classifier) is fitted within the training side of a fold. Chance is measured, not assumed: the same
procedure runs again with the vectors dealt to users at random (Hewitt and Liang, Designing and interpreting probes
with control tasks, EMNLP 2019; Ojala and Garriga, Permutation tests for studying classifier performance, JMLR 2010).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
PERMUTATIONS = 99
_COMPONENTS = 32
"""Principal components kept: there are fewer users than dimensions."""
_C = 0.01
"""Inverse strength of the L2 penalty, on components whose mean variance is one."""


@dataclass(frozen=True)
class TraitProbe:
    """How well one trait can be read."""

    trait: str
    users: int
    classes: int
    accuracy: float
    """Share of users, each predicted by the fold that did not see it, whose value is right."""
    majority: float
    """Accuracy of always saying the most frequent value."""
    balanced: float
    """Balanced accuracy: the mean over values of the share that is right. Always saying one value gives `chance`."""
    chance: float
    """1 / classes."""
    permuted: float
    """Mean balanced accuracy with the vectors dealt at random."""
    p: float
    """Share of random deals that do at least as well, not corrected for the number of traits."""


@dataclass(frozen=True)
class Probe:
    """How well traits can be read from one kind of vector."""

    traits: tuple[TraitProbe, ...]
    balanced: float
    """Mean over traits of the balanced accuracy."""
    permuted: float
    """The same with the vectors dealt at random: mean over the deals."""
    permuted_high: float
    """The same: what 95 % of the deals stay below."""
    p: float
    """Of the mean over traits; one test for each kind of vector."""


def usable(labels: Sequence[str], folds: int = FOLDS) -> Ints:
    """Indices of users whose value at least `folds` users share; none if there are fewer than two such values."""
    counts = Counter(labels)
    kept = {label for label, count in counts.items() if count >= folds}
    chosen = [i for i, label in enumerate(labels) if label in kept]
    return np.asarray(chosen if len(kept) > 1 else [], np.int64)


def probe(
    vectors: Floats,
    labels: Mapping[str, Sequence[str]],
    *,
    folds: int = FOLDS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Probe | None:
    """Multinomial logistic regression from `vectors` (users, d) to each trait, cross-validated over users.

    `labels`: trait -> one value a user, in the order of the vectors. Values that fewer than `folds` users share are
    left out, and so are traits with fewer than two values left; None if no trait is left. `permutations`: random
    deals, at least one. Raises ValueError for vectors that are not finite.
    """
    from sklearn import config_context
    from threadpoolctl import threadpool_limits

    tasks = [task for trait, values in sorted(labels.items()) if (task := _task(trait, values, folds, seed))]
    if not tasks:
        return None
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors that are not finite cannot be probed")
    rng = np.random.default_rng(seed)
    # One deal for all traits at once, so that their mean has a null distribution of its own.
    deals = [rng.permutation(len(vectors)) for _ in range(permutations)]
    # The matrices are so small that threads and checks cost more than the work.
    with threadpool_limits(1), config_context(assume_finite=True, skip_parameter_validation=True):
        predictions = [_predict(vectors, task) for task in tasks]
        null = np.array([[_balanced(_predict(vectors[d], task), task.classes) for task in tasks] for d in deals])
    found = tuple(_report(task, predictions[i], null[:, i]) for i, task in enumerate(tasks))
    mean, means = float(np.mean([trait.balanced for trait in found])), null.mean(axis=1)
    return Probe(found, mean, float(means.mean()), float(np.percentile(means, 95)), _p(mean, means))


@dataclass(frozen=True)
class _Task:
    trait: str
    users: Ints
    """Rows of the vectors that take part."""
    classes: Ints
    """Value of each of them, as a number."""
    folds: tuple[tuple[Ints, Ints], ...]
    """(train, test) positions within `users`."""


def _task(trait: str, values: Sequence[str], folds: int, seed: int) -> _Task | None:
    from sklearn.model_selection import StratifiedKFold

    users = usable(values, folds)
    if not len(users):
        return None
    classes = np.unique([values[i] for i in users], return_inverse=True)[1].astype(np.int64)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(users)), classes)
    return _Task(trait, users, classes, tuple((train, test) for train, test in splits))


def _predict(vectors: Floats, task: _Task) -> Ints:
    """The value of each user, told by a classifier that did not see that user."""
    from sklearn.linear_model import LogisticRegression

    rows, predicted = vectors[task.users], np.empty(len(task.users), np.int64)
    for train, test in task.folds:
        left, right = _components(rows[train], rows[test])
        model: Any = LogisticRegression(C=_C, class_weight="balanced", max_iter=500, tol=1e-3)
        predicted[test] = model.fit(left, task.classes[train]).predict(right)
    return predicted


def _components(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both sides standardised and turned into principal components, by what the training side alone says."""
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread < 1e-12] = 1.0
    left, right = (train - centre) / spread, (test - centre) / spread
    # From the products of rows: there are far fewer users than dimensions.
    values, axes = np.linalg.eigh(left @ left.T)
    kept = np.argsort(-values)[: min(_COMPONENTS, len(train) - 1)]
    kept = kept[values[kept] > 1e-9 * max(float(values.max()), 1e-300)]
    if not len(kept):
        return np.zeros((len(train), 1)), np.zeros((len(test), 1))
    roots = np.sqrt(values[kept])
    scale = np.sqrt(values[kept].mean() / len(train))
    return axes[:, kept] * roots / scale, right @ left.T @ (axes[:, kept] / roots) / scale


def _balanced(predicted: Ints, classes: Ints) -> float:
    hits = np.bincount(classes, weights=predicted == classes)
    return float((hits / np.bincount(classes)).mean())


def _report(task: _Task, predicted: Ints, null: Floats) -> TraitProbe:
    counts = np.bincount(task.classes)
    balanced = _balanced(predicted, task.classes)
    return TraitProbe(
        trait=task.trait,
        users=len(task.users),
        classes=len(counts),
        accuracy=float((predicted == task.classes).mean()),
        majority=float(counts.max() / counts.sum()),
        balanced=balanced,
        chance=1.0 / len(counts),
        permuted=float(null.mean()),
        p=_p(balanced, null),
    )


def _p(observed: float, null: Floats) -> float:
    """Never zero: the deal that was observed is one of the possible ones (Phipson and Smyth, 2010)."""
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))
