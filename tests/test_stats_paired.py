"""Seed spread, wins by user and the smallest detectable difference, against loops, scipy and statsmodels."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats_world import alone, made_up, one

from bench.stats import (
    Floats,
    Wins,
    bootstrap_weights,
    corpus_bleu,
    count_wins,
    detectable,
    holm,
    mean_error,
    paired_bootstrap,
    paired_permutation,
    seed_spread,
)


def every(examples: int) -> np.ndarray:
    return np.ones(examples, dtype=bool)


# --- spread over seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", ["mean", "corpus_bleu"])
def test_the_spread_is_the_standard_deviation_of_the_seeds_own_scores(reducer: str) -> None:
    values = made_up(np.random.default_rng(1), reducer, seeds=4, examples=30, missing=0.1)
    values[2] = np.nan  # a seed without any value has no score
    own = []
    for per_seed in values[[0, 1, 3]]:
        known = per_seed[~np.isnan(per_seed).any(axis=1)]
        total = known.sum(axis=0)
        own.append(float(total[0] / len(known) if reducer == "mean" else corpus_bleu(total, np.float64(1))))  # type: ignore[arg-type]
    spread = paired_bootstrap({"a": values}, alone(30), reducer=reducer, resamples=20)["a"].spread
    assert spread is not None
    assert (spread.sd, spread.seeds) == (pytest.approx(statistics.stdev(own), rel=1e-9), 3)


def test_one_seed_has_no_spread_and_many_estimate_the_true_variance() -> None:
    assert seed_spread(np.array([0.3])) is None
    assert seed_spread(np.array([0.3, np.nan])) is None
    draws = np.random.default_rng(2).normal(scale=2.0, size=(4000, 3))
    variances = [spread.sd**2 for row in draws if (spread := seed_spread(row))]
    assert np.mean(variances) == pytest.approx(4.0, abs=4 * 4.0 / np.sqrt(4000))  # sd of s^2 with 3 draws: sigma^2


def test_seed_and_user_variance_stay_apart() -> None:
    """Seeds that all users share move the spread and leave the interval; users do the reverse."""
    rng = np.random.default_rng(3)
    users, seeds = rng.normal(size=(1, 200)), np.array([[-5.0], [0.0], [5.0]])
    quiet = paired_bootstrap({"a": one(users + 0 * seeds)}, alone(200), resamples=500)["a"]
    loud = paired_bootstrap({"a": one(users + seeds)}, alone(200), resamples=500)["a"]
    assert quiet.spread is not None
    assert loud.spread is not None
    assert (quiet.spread.sd, loud.spread.sd) == (pytest.approx(0.0, abs=1e-12), pytest.approx(5.0))
    assert loud.score.low == pytest.approx(quiet.score.low, abs=1e-9)
    assert loud.score.high == pytest.approx(quiet.score.high, abs=1e-9)


# --- wins --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_wins_equal_exact_fractions(data: st.DataObject) -> None:
    """Scores in tenths: sums in floating point differ in their last bits where the fractions are equal."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_users = data.draw(st.integers(1, 5))
    users = np.concatenate([np.arange(n_users), rng.integers(0, n_users, data.draw(st.integers(0, 8)))])
    tenths = [rng.integers(-2, 3, size=(data.draw(st.integers(1, 3)), len(users))) for _ in range(2)]
    keep = rng.random(len(users)) < 0.8
    expected = [0, 0, 0]
    for user in set(users[keep].tolist()):
        rows = [i for i in range(len(users)) if users[i] == user and keep[i]]
        ours, theirs = (
            sum(Fraction(int(x), 10) for x in part[:, rows].ravel()) / part[:, rows].size for part in tenths
        )
        expected[0 if ours > theirs else 1 if ours == theirs else 2] += 1
    ours, theirs = (one(part / 10) for part in tenths)
    found = count_wins(ours, theirs, users, keep) if keep.any() else Wins(0, 0, 0)
    assert (found.wins, found.ties, found.losses) == tuple(expected)
    assert (
        count_wins(theirs, ours, users, every(len(users)))
        == count_wins(ours, theirs, users, every(len(users))).turned()
    )


def test_wins_are_by_user_of_what_both_have_and_none_for_a_corpus_metric() -> None:
    nan = np.nan
    values = {"a": one(np.array([9.0, 1.0, 1.0, nan, 2.0])), "b": one(np.array([1.0, 2.0, 2.0, 5.0, 2.0]))}
    found = paired_bootstrap(values, np.array([0, 0, 1, 2, 3]), baseline="b", resamples=20)
    assert found["a"].wins == Wins(1, 1, 1)  # user 0 wins by the mean of two examples, user 2 has nothing in common
    assert found["b"].wins is None
    bleu = {name: made_up(np.random.default_rng(1), "corpus_bleu", 1, 9, 0.0) for name in "ab"}
    assert paired_bootstrap(bleu, alone(9), reducer="corpus_bleu", baseline="b", resamples=20)["a"].wins is None


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.8, 0.95]))
def test_the_win_rate_is_half_of_the_ties_more_with_the_score_interval(
    won: int, tied: int, lost: int, level: float
) -> None:
    from statsmodels.stats.proportion import proportion_confint

    found = Wins(won, tied, lost).rate(level)
    if won + tied + lost == 0:
        assert found is None
        return
    share = won + tied / 2
    interval = proportion_confint(share, won + tied + lost, alpha=1 - level, method="wilson")
    assert found == pytest.approx((share / (won + tied + lost), *interval), abs=1e-12)


# --- standard error and the smallest detectable difference -------------------------------------------------------


def test_the_error_with_one_example_a_user_is_that_of_the_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    first, second = np.random.default_rng(4).exponential(size=(2, 40))
    error, n = mean_error(one(first), one(second), alone(40), every(40))
    assert n == 40
    assert error is not None
    assert (first - second).mean() / error == pytest.approx(ttest_rel(first, second).statistic, rel=1e-10)


def test_the_error_where_users_repeat_is_the_cluster_robust_one() -> None:
    from statsmodels.regression.linear_model import OLS

    rng = np.random.default_rng(5)
    users = np.concatenate([np.arange(30), rng.integers(0, 30, 70)])
    ours = rng.normal(size=(3, 100)) + rng.normal(size=30)[users]
    theirs = rng.normal(size=(2, 100))
    error, n = mean_error(one(ours), one(theirs), users, every(100))
    gap = ours.mean(axis=0) - theirs.mean(axis=0)
    fit = OLS(gap, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": users})
    assert (error, n) == (pytest.approx(fit.bse[0], rel=1e-10), 30)


@pytest.mark.parametrize("users", [2, 3, 8, 30, 200, 2000])
def test_the_detectable_difference_is_that_of_statsmodels(users: int) -> None:
    from statsmodels.stats.power import TTestPower

    size = TTestPower().solve_power(nobs=users, alpha=0.05, power=0.8, alternative="two-sided")
    sd = 0.37
    assert detectable(sd / np.sqrt(users), users) == pytest.approx(size * sd, rel=2e-4)


def test_a_difference_of_that_size_is_found_four_times_in_five() -> None:
    """4,000 samples of 25 users, by the t-test and (of 400) by our own; three standard errors are 1.9 and 6 points."""
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(6)
    size = detectable(1 / np.sqrt(25), 25)
    assert size is not None
    samples = rng.normal(loc=size, size=(4000, 25))
    assert np.mean(ttest_1samp(samples, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.019)
    values: dict[str, Floats] = {str(i): one(row) for i, row in enumerate(samples[:400])} | {"base": one(np.zeros(25))}
    p = paired_permutation(values, alone(25), baseline="base", permutations=1999)
    assert np.mean([x is not None and x < 0.05 for x in p.values()]) == pytest.approx(0.8, abs=0.06)


def test_for_bleu_it_comes_from_the_resamples() -> None:
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(15), 2)
    values = {name: made_up(rng, "corpus_bleu", 2, 30, 0.0) for name in "ab"}
    found = paired_bootstrap(values, users, reducer="corpus_bleu", baseline="b", resamples=300, seed=2)["a"]
    gaps = []
    for weights in bootstrap_weights(15, 300, 2):
        each = weights[users][None, :, None]
        sides = [corpus_bleu((values[name] * each).sum(axis=1), np.ones(2)).mean() for name in "ab"]
        gaps.append(float(sides[0] - sides[1]))
    assert found.detectable == pytest.approx(detectable(statistics.stdev(gaps), 15), rel=1e-9)


def test_closed_form_and_resamples_agree_on_means() -> None:
    rng = np.random.default_rng(8)
    values = {name: made_up(rng, "mean", 1, 300, 0.0) for name in "ab"}
    error, n = mean_error(values["a"], values["b"], alone(300), every(300))
    gaps = bootstrap_weights(300, 4000, 1) @ (values["a"] - values["b"])[0, :, 0] / 300
    assert (error, n) == (pytest.approx(gaps.std(), rel=0.05), 300)


def test_without_spread_nothing_can_be_said() -> None:
    base = np.linspace(0.1, 0.7, 10)
    for gap in (0.0, 0.1):
        found = paired_bootstrap({"a": one(base + gap), "b": one(base)}, alone(10), baseline="b", resamples=50)["a"]
        assert found.detectable is None
    alike = made_up(np.random.default_rng(1), "corpus_bleu", 1, 9, 0.0)
    same = paired_bootstrap({"a": alike, "b": alike}, alone(9), reducer="corpus_bleu", baseline="b", resamples=50)["a"]
    assert same.detectable is None
    single = paired_bootstrap({"a": one(base), "b": one(base**2)}, 0 * alone(10), baseline="b", resamples=50)["a"]
    assert single.detectable is None


# --- several seeds and repeated users ----------------------------------------------------------------------------


def test_seeds_and_repeated_users_collapse_to_one_mean_a_user() -> None:
    """With as many examples from each user the test of a mean is that of the users' means, which scipy makes."""
    from scipy.stats import permutation_test

    rng = np.random.default_rng(9)
    users = np.repeat(np.arange(10), 3)
    ours, theirs = rng.exponential(size=(2, 30)) + 0.2, rng.exponential(size=(4, 30))
    p = paired_permutation({"a": one(ours), "b": one(theirs)}, users, baseline="b")["a"]
    means = [part.mean(axis=0).reshape(10, 3).mean(axis=1) for part in (ours, theirs)]
    expected = permutation_test(
        means, lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert p == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_equals_statsmodels(p: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)
