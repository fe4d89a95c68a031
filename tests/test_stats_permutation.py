"""The permutation test and Holm's correction against brute force, scipy, statsmodels and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats_world import alone, made_up, one

from bench.stats import DIMENSIONS, REDUCERS, Floats, holm, paired_permutation, swap_blocks


def slow_permutation(ours: Floats, theirs: Floats, users: np.ndarray, reducer: str) -> float | None:
    """The definition with loops: every way to swap users' texts, the difference of the scores each time."""
    known = [e for e in range(len(users)) if not (np.isnan(ours[:, e]).any() or np.isnan(theirs[:, e]).any())]
    involved = sorted({int(users[e]) for e in known})
    if len(involved) < 2:
        return None
    rounds = math.lcm(len(ours), len(theirs))

    def score(seeds: list[list[np.ndarray]]) -> float:
        return float(np.mean([REDUCERS[reducer](np.sum(v, axis=0), np.float64(len(v))) for v in seeds]))  # type: ignore[arg-type]

    gaps = []
    for swaps in itertools.product([False, True], repeat=len(involved)):
        swapped = {user for user, swap in zip(involved, swaps, strict=True) if swap}
        first, second = [], []
        for i in range(rounds):
            a, b = ours[i % len(ours)], theirs[i % len(theirs)]
            first.append([b[e] if users[e] in swapped else a[e] for e in known])
            second.append([a[e] if users[e] in swapped else b[e] for e in known])
        gaps.append(score(first) - score(second))
    return float(np.mean([abs(gap) >= abs(gaps[0]) - 1e-9 for gap in gaps]))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), reducer=st.sampled_from(["mean", "ratio", "corpus_bleu"]))
def test_the_exact_test_equals_brute_force(data: st.DataObject, reducer: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_users = data.draw(st.integers(1, 5))
    users = np.concatenate([np.arange(n_users), rng.integers(0, n_users, data.draw(st.integers(0, 4)))])
    values = {
        name: made_up(rng, reducer, data.draw(st.integers(1, 3)), len(users), data.draw(st.sampled_from([0.0, 0.3])))
        for name in ("a", "b", "c")
    }
    p = paired_permutation(values, users, reducer=reducer, baseline="b")
    assert list(p) == ["a", "c"]
    for name in p:
        assert p[name] == pytest.approx(slow_permutation(values[name], values["b"], users, reducer), abs=1e-12)


def test_the_exact_test_equals_scipy() -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(11)
    first, second = rng.exponential(size=11), rng.exponential(size=11)
    p = paired_permutation({"a": one(first), "b": one(second)}, alone(11), baseline="b")
    expected = permutation_test(
        (first, second), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert p["a"] == pytest.approx(expected, abs=1e-12)


def test_random_swaps_come_close_to_scipy_and_to_the_exact_p() -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(12)
    first = rng.normal(size=13)
    pair = {"a": one(first), "b": one(first - 0.3 + 0.5 * rng.normal(size=13))}
    exact = paired_permutation(pair, alone(13), baseline="b")["a"]
    sampled = paired_permutation(pair, alone(13), baseline="b", permutations=2**13 - 1)["a"]
    assert exact is not None
    assert sampled is not None
    assert 0.02 < exact < 0.5
    assert sampled != exact
    assert abs(sampled - exact) < 4 * math.sqrt(exact * (1 - exact) / 2**13)
    long = rng.normal(size=(2, 300)) + np.array([[0.1], [0.0]])
    ours = paired_permutation({"a": one(long[0]), "b": one(long[1])}, alone(300), baseline="b", permutations=40_000)
    scipys = permutation_test(
        (long[0], long[1]),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=40_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert ours["a"] == pytest.approx(scipys, abs=0.012)


@pytest.mark.parametrize("users", [2, 7, 13])
def test_if_all_users_gain_alike_two_of_all_swaps_are_as_extreme(users: int) -> None:
    base = np.random.default_rng(users).normal(size=users)
    p = paired_permutation({"a": one(base + 0.25), "b": one(base)}, alone(users), baseline="b")
    assert p["a"] == 2 / 2**users


def test_no_random_p_is_zero_and_swaps_are_fair_coins() -> None:
    base = np.random.default_rng(1).normal(size=200)
    pair = {"a": one(base + 1), "b": one(base)}
    assert paired_permutation(pair, alone(200), baseline="b", permutations=999)["a"] == 1 / 1000
    coins = np.concatenate(list(swap_blocks(50, 20_000, seed=3)))
    assert coins.shape == (20_000, 50)
    assert set(np.unique(coins)) == {0.0, 1.0}
    assert np.abs(coins.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)
    assert np.abs(np.corrcoef(coins.T) - np.eye(50)).max() < 5 / math.sqrt(20_000)
    assert (coins == np.concatenate(list(swap_blocks(50, 20_000, seed=3)))).all()
    assert (coins != np.concatenate(list(swap_blocks(50, 20_000, seed=4)))).any()


def test_equal_methods_are_never_told_apart_and_sides_do_not_matter() -> None:
    rng = np.random.default_rng(8)
    sample, other = rng.normal(size=(2, 90)), rng.normal(size=(1, 90))
    users = np.arange(90) // 3
    values = {"a": one(sample), "b": one(sample), "c": one(other)}
    assert paired_permutation(values, users, baseline="b", permutations=500)["a"] == 1.0
    forth = paired_permutation(values, users, baseline="b", permutations=500)["c"]
    assert forth == paired_permutation(values, users, baseline="c", permutations=500)["b"]
    assert paired_permutation({"c": one(other), "b": one(sample)}, users, baseline="b", permutations=500)["c"] == forth


def test_a_constant_tie_is_a_tie_whatever_rounding_does() -> None:
    """Tenths have no exact binary form: sums in another order differ in their last bits."""
    gap = np.array([0.1, 0.2, -0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    base = np.linspace(0.1, 0.7, 10)
    p = paired_permutation({"a": one(base + gap), "b": one(base)}, alone(10), baseline="b")["a"]
    tenths = np.array([1, 2, -3, 1, 1, 1, 1, 1, 1, 1])
    signs = np.array(list(itertools.product([1, -1], repeat=10)))
    assert p == (np.abs(signs @ tenths) >= abs(tenths.sum())).mean()


def test_p_is_uniform_for_equal_methods() -> None:
    """1,000 methods that differ from the baseline by symmetric noise, three examples a user."""
    from scipy.stats import kstest

    rng = np.random.default_rng(21)
    noise = rng.laplace(size=(1000, 60, 1)) * rng.gamma(1.0, size=(1, 60, 3))
    values = {str(i): one(row.ravel()) for i, row in enumerate(noise)} | {"base": np.zeros((1, 180, 1))}
    p = paired_permutation(values, np.repeat(np.arange(60), 3), baseline="base", permutations=1999)
    found = np.array(list(p.values()), dtype=float)
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.03 <= (found <= 0.05).mean() <= 0.07


def test_holm_keeps_the_family_wise_rate_on_equal_methods() -> None:
    """600 leaderboards of six equal methods and a baseline on 40 users: three standard errors are 2.7 points."""
    rng = np.random.default_rng(22)
    false, uncorrected = 0, 0
    for board in range(600):
        user_level = rng.normal(size=40)
        values = {str(i): one(user_level + rng.exponential(size=40)) for i in range(7)}
        p = [x for x in paired_permutation(values, alone(40), baseline="0", permutations=499, seed=board).values() if x]
        false += min(holm(p)) <= 0.05
        uncorrected += min(p) <= 0.05
    assert false / 600 <= 0.05 + 0.027
    assert uncorrected / 600 > 0.12


def test_a_real_difference_is_found() -> None:
    """Power of the test is that of the paired t-test on normal data."""
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(23)
    first, second = rng.normal(size=(300, 50)) + 0.4, rng.normal(size=(300, 50))
    ours, theirs = [], []
    for board, (a, b) in enumerate(zip(first, second, strict=True)):
        p = paired_permutation({"a": one(a), "b": one(b)}, alone(50), baseline="b", permutations=999, seed=board)["a"]
        ours.append(p)
        theirs.append(ttest_rel(a, b).pvalue)
    assert np.corrcoef(np.array(ours, dtype=float), theirs)[0, 1] > 0.995
    assert abs(np.mean(np.array(ours, dtype=float) < 0.05) - np.mean(np.array(theirs) < 0.05)) < 0.03


def test_too_little_in_common_has_no_p() -> None:
    nan = np.nan
    values = {"a": one(np.array([1.0, nan, nan])), "b": one(np.array([1.0, 2.0, nan]))}
    assert paired_permutation(values, alone(3), baseline="b") == {"a": None}
    for reducer in DIMENSIONS:
        nothing = {"a": np.empty((1, 0, DIMENSIONS[reducer])), "b": np.empty((1, 0, DIMENSIONS[reducer]))}
        assert paired_permutation(nothing, np.empty(0, int), reducer=reducer, baseline="b") == {"a": None}
    with pytest.raises(ValueError, match=r"expected \(seeds, 3, 1\)"):
        paired_permutation({"a": np.zeros((1, 2, 1)), "b": np.zeros((1, 3, 1))}, alone(3), baseline="b")


def slow_holm(p: list[float]) -> list[float]:
    """Step down as in Holm (1979): the i-th smallest is rejected at a level if p(j) <= level / (m - j + 1), j <= i."""
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    result = [0.0] * len(p)
    for place, index in enumerate(ranked):
        result[index] = min(1.0, max((len(p) - j) * p[ranked[j]] for j in range(place + 1)))
    return result


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_the_step_down_rule(p: list[float]) -> None:
    adjusted = holm(p)
    assert adjusted == pytest.approx(slow_holm(p), abs=1e-12)
    assert all(raw <= new <= min(1.0, len(p) * raw) + 1e-12 for raw, new in zip(p, adjusted, strict=True))
    assert holm(p[::-1]) == adjusted[::-1]


def test_holm_on_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
