"""Linear probes find what is there, and say chance where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from bench.probe import FOLDS, Floats, probe, usable

RNG_USERS, SIZE = 60, 200


def labels_of(values: list[int]) -> list[str]:
    return [f"value {v}" for v in values]


def world(strength: float, seed: int = 0) -> tuple[Floats, dict[str, list[str]]]:
    """Users with three values of "planted", each a direction of its own in noise, and a coin that nothing shows."""
    rng = np.random.default_rng(seed)
    values = [int(v) for v in rng.permutation(np.arange(RNG_USERS) % 3)]
    directions = rng.standard_normal((3, SIZE))
    vectors = rng.standard_normal((RNG_USERS, SIZE)) + strength * directions[values]
    coins = [int(v) for v in rng.integers(0, 2, RNG_USERS)]
    return vectors, {"planted": labels_of(values), "coin": labels_of(coins)}


def test_a_planted_direction_is_found_and_a_hidden_coin_is_not() -> None:
    vectors, labels = world(strength=1.5)
    found = probe(vectors, labels, permutations=19)
    assert found is not None
    by_name = {trait.trait: trait for trait in found.traits}
    planted, coin = by_name["planted"], by_name["coin"]
    assert planted.balanced > 0.9
    assert planted.p == pytest.approx(1 / 20)
    assert (planted.users, planted.classes) == (RNG_USERS, 3)
    assert planted.chance == pytest.approx(1 / 3)
    assert coin.p > 0.05
    assert found.balanced == pytest.approx((planted.balanced + coin.balanced) / 2)
    assert found.p == pytest.approx(1 / 20)


def test_noise_gives_chance_on_average_and_p_values_all_over_the_place() -> None:
    """Over many worlds of pure noise: no leak from one side of a fold to the other, and p is no smaller than said."""
    accuracies, low = [], 0
    for seed in range(20):
        vectors, labels = world(strength=0.0, seed=seed)
        found = probe(vectors, {"planted": labels["planted"]}, permutations=9, seed=seed)
        assert found is not None
        accuracies.append(found.balanced)
        low += found.p <= 0.1
        assert found.permuted == pytest.approx(1 / 3, abs=0.12)
    assert np.mean(accuracies) == pytest.approx(1 / 3, abs=0.05)
    assert low <= 6  # 2 are expected; more than 6 would have a chance of 0.002


def test_chance_is_told_by_values_and_by_their_most_frequent_one() -> None:
    values = labels_of([0] * 30 + [1] * 10)
    found = probe(np.zeros((40, 5)), {"trait": values}, permutations=3)
    assert found is not None
    (trait,) = found.traits
    assert (trait.majority, trait.chance) == (0.75, 0.5)
    assert trait.balanced == pytest.approx(0.5)  # vectors that are all alike can only name one value


def test_values_that_few_users_share_are_left_out() -> None:
    values = labels_of([0] * 6 + [1] * 5 + [2] * 4)
    assert list(usable(values)) == list(range(11))
    assert len(usable(labels_of([0] * 20 + [1] * 4))) == 0
    assert probe(np.ones((15, 3)), {"few": labels_of(list(range(15)))}) is None
    found = probe(np.random.default_rng(0).standard_normal((15, 3)), {"some": values}, permutations=2)
    assert found is not None
    assert (found.traits[0].users, found.traits[0].classes) == (11, 2)


def test_it_is_the_same_again_and_the_scale_of_vectors_changes_nothing() -> None:
    vectors, labels = world(strength=0.4)
    first = probe(vectors, labels, permutations=5)
    assert first == probe(vectors, labels, permutations=5)
    scaled = probe(vectors * 1e-3 + 7.0, labels, permutations=5)
    assert scaled is not None
    assert first is not None
    assert scaled.balanced == pytest.approx(first.balanced, abs=0.02)


def test_more_dimensions_than_users_and_dead_ones_do_no_harm() -> None:
    vectors, labels = world(strength=1.5)
    wide = np.concatenate([np.zeros((RNG_USERS, 500)), vectors], axis=1)
    found = probe(wide, {"planted": labels["planted"]}, permutations=2)
    assert found is not None
    assert found.balanced > 0.9


def test_a_user_stands_in_one_fold_only_and_every_user_is_predicted_once() -> None:
    """A vector that names its user and nothing else is of no use: there is one row a user."""
    identity = np.eye(30)
    found = probe(identity, {"trait": labels_of([i % 2 for i in range(30)])}, folds=FOLDS, permutations=2)
    assert found is not None
    assert found.balanced <= 0.6


def test_vectors_that_are_not_numbers_are_refused() -> None:
    broken = np.ones((20, 2))
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        probe(broken, {"trait": labels_of([i % 2 for i in range(20)])})
