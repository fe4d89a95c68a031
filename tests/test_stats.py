"""Intervals and p-values against closed forms, scipy, brute force and simulation; BLEU against sacrebleu."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.stats import (
    DIMENSIONS,
    REDUCERS,
    Floats,
    bootstrap_weights,
    corpus_bleu,
    holm,
    paired_bootstrap,
    paired_permutation,
    swap_blocks,
)


def one(values: Floats) -> Floats:
    """(examples,) or (seeds, examples) -> (seeds, examples, 1)."""
    return np.atleast_2d(values)[..., None]


def alone(n: int) -> np.ndarray:
    """One example a user."""
    return np.arange(n)


def test_weights_are_multinomial() -> None:
    weights = bootstrap_weights(50, 20_000, seed=3)
    assert weights.shape == (20_000, 50)
    assert (weights.sum(axis=1) == 50).all()
    # a count is Binomial(50, 1/50); two counts have covariance -1/50
    assert np.abs(weights.mean(axis=0) - 1).max() < 5 * np.sqrt(0.98 / 20_000)
    assert abs(weights.var() - 0.98) < 0.01
    assert abs(np.cov(weights[:, 0], weights[:, 1])[0, 1] + 1 / 50) < 0.03
    assert abs((weights == 0).mean() - 0.98**50) < 0.002
    assert (weights == bootstrap_weights(50, 20_000, seed=3)).all()
    assert (weights != bootstrap_weights(50, 20_000, seed=4)).any()


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential"])
def test_the_interval_of_a_mean_is_the_normal_one_for_many_users(draw: str) -> None:
    sample = getattr(np.random.default_rng(1), draw)(size=2000)
    estimate = paired_bootstrap({"a": one(sample)}, alone(2000))["a"].score
    assert estimate.value == pytest.approx(sample.mean(), abs=1e-12)
    half = 1.959964 * sample.std() / np.sqrt(2000)
    assert estimate.low == pytest.approx(sample.mean() - half, abs=0.05 * half)
    assert estimate.high == pytest.approx(sample.mean() + half, abs=0.05 * half)
    assert (estimate.users, estimate.missing) == (2000, 0)


def test_the_interval_of_a_difference_is_the_paired_one() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=1500)
    better = base + 0.1 + 0.2 * rng.normal(size=1500)
    scored = paired_bootstrap({"a": one(better), "b": one(base)}, alone(1500), baseline="b")
    gap = better - base
    half = 1.959964 * gap.std() / np.sqrt(1500)
    difference = scored["a"].difference
    assert difference is not None
    assert difference.value == pytest.approx(gap.mean(), abs=1e-12)
    assert difference.low == pytest.approx(gap.mean() - half, abs=0.05 * half)
    assert difference.high == pytest.approx(gap.mean() + half, abs=0.05 * half)
    assert scored["b"].difference is None


def test_coverage_of_the_95_percent_interval() -> None:
    """600 samples of 200 users from a skewed distribution with known mean; 3 standard errors are 2.7 points."""
    rng = np.random.default_rng(5)
    samples = rng.gamma(2.0, size=(600, 200))
    scored = paired_bootstrap({str(i): one(row) for i, row in enumerate(samples)}, alone(200), resamples=2000)
    inside = [s.score.low <= 2.0 <= s.score.high for s in scored.values()]  # type: ignore[operator]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_coverage_with_clusters() -> None:
    """Five examples a user that share most of their noise: intervals over users cover, over examples they do not."""
    rng = np.random.default_rng(6)
    noise = rng.normal(size=(400, 200, 1)) + 0.3 * rng.normal(size=(400, 200, 5))
    data = {str(i): one(row.ravel()) for i, row in enumerate(noise)}
    by_user = paired_bootstrap(data, np.repeat(np.arange(200), 5), resamples=1000)
    by_example = paired_bootstrap(data, alone(1000), resamples=300)
    covers = [np.mean([s.score.low <= 0 <= s.score.high for s in r.values()]) for r in (by_user, by_example)]  # type: ignore[operator]
    assert 0.93 <= covers[0] <= 0.97
    assert covers[1] < 0.8


def test_equals_scipy() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(7)
    first, second = rng.exponential(size=60), rng.exponential(size=60)
    ours = paired_bootstrap({"a": one(first), "b": one(second)}, alone(60), baseline="b", resamples=40_000)
    options = {"n_resamples": 40_000, "method": "percentile", "vectorized": True, "rng": np.random.default_rng(0)}
    mean = bootstrap((first,), lambda x, axis: x.mean(axis=axis), **options).confidence_interval
    assert (ours["a"].score.low, ours["a"].score.high) == pytest.approx((mean.low, mean.high), abs=0.01)
    gap = bootstrap(
        (first, second), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, **options
    ).confidence_interval
    assert ours["a"].difference is not None
    assert (ours["a"].difference.low, ours["a"].difference.high) == pytest.approx((gap.low, gap.high), abs=0.015)


def test_identical_methods_differ_by_exactly_nothing() -> None:
    sample = np.random.default_rng(8).normal(size=(2, 90))
    sample[0, 3] = np.nan
    scored = paired_bootstrap({"a": one(sample), "b": one(sample)}, np.arange(90) // 3, baseline="b")
    assert scored["a"].score == scored["b"].score
    difference = scored["a"].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert (difference.users, difference.missing) == (30, 1)


def slow_bootstrap(
    values: dict[str, Floats], users: np.ndarray, reducer: str, baseline: str, resamples: int, seed: int
) -> dict[str, tuple[list[float], list[float]]]:
    """The definition with loops: draw users, collect their examples, reduce, average over seeds, subtract."""
    n_users = int(users.max()) + 1
    weights = bootstrap_weights(n_users, resamples, seed)
    rows = np.concatenate([np.ones((1, n_users)), weights])

    def score(array: Floats, weight: np.ndarray, allowed: set[int]) -> float:
        results = []
        for per_seed in array:
            chosen = [
                example
                for user, times in enumerate(weight)
                for _ in range(int(times))
                for example in range(len(users))
                if users[example] == user and example in allowed and not np.isnan(per_seed[example]).any()
            ]
            if chosen:
                total = per_seed[chosen].sum(axis=0)
                results.append(float(REDUCERS[reducer](total, np.float64(len(chosen)))))  # type: ignore[arg-type]
        return float(np.mean(results)) if results else float("nan")

    everything = set(range(len(users)))
    result = {}
    for name, array in values.items():
        both = {e for e in everything if not (np.isnan(array[:, e]).any() or np.isnan(values[baseline][:, e]).any())}
        own = [score(array, row, everything) for row in rows]
        gaps = [score(array, row, both) - score(values[baseline], row, both) for row in rows]
        result[name] = (own, gaps)
    return result


def made_up(rng: np.random.Generator, reducer: str, seeds: int, examples: int, missing: float) -> Floats:
    """(seeds, examples, d) of plausible values, a share of them missing."""
    shape = (seeds, examples)
    if reducer == "mean":
        array = rng.normal(size=(*shape, 1))
    else:
        total = np.sort(rng.integers(0, 9, size=(*shape, 4)))[..., ::-1]
        correct = rng.integers(0, total + 1)
        array = np.concatenate([correct, total, total[..., :1], rng.integers(1, 9, size=(*shape, 1))], -1) * 1.0
    array[rng.random(shape) < missing] = np.nan
    return array


@settings(max_examples=25, deadline=None)
@given(data=st.data(), reducer=st.sampled_from(["mean", "corpus_bleu"]))
def test_equals_a_slow_bootstrap(data: st.DataObject, reducer: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_users = data.draw(st.integers(2, 5))
    users = np.concatenate([np.arange(n_users), rng.integers(0, n_users, data.draw(st.integers(0, 4)))])
    values = {
        name: made_up(rng, reducer, data.draw(st.integers(1, 3)), len(users), data.draw(st.sampled_from([0.0, 0.3])))
        for name in ("a", "b", "c")
    }
    fast = paired_bootstrap(values, users, reducer=reducer, baseline="b", resamples=30, seed=9)
    for name, (own, gaps) in slow_bootstrap(values, users, reducer, "b", 30, 9).items():
        for estimate, expected in ((fast[name].score, own), (fast[name].difference, gaps)):
            if estimate is None:
                continue
            known = [x for x in expected[1:] if not np.isnan(x)]
            if np.isnan(expected[0]):
                assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
                continue
            assert estimate.value == pytest.approx(expected[0], abs=1e-9)
            if estimate.low is not None:
                assert (estimate.low, estimate.high) == pytest.approx(np.percentile(known, [2.5, 97.5]), abs=1e-9)


def test_missing_values_are_left_out_pairwise_and_counted() -> None:
    nan = np.nan
    values = {
        "a": one(np.array([1.0, 2.0, nan, 4.0])),
        "b": one(np.array([nan, 1.0, 1.0, 1.0])),
        "c": one(np.array([nan, nan, nan, nan])),
    }
    scored = paired_bootstrap(values, alone(4), baseline="b")
    assert (scored["a"].score.value, scored["a"].score.users, scored["a"].score.missing) == (7 / 3, 3, 1)
    difference = scored["a"].difference
    assert difference is not None
    assert (difference.value, difference.users, difference.missing) == (2.0, 2, 2)
    assert scored["c"].score.value is None
    assert scored["c"].score.missing == 4
    assert scored["c"].difference is not None
    assert scored["c"].difference.value is None


def test_one_user_has_no_interval() -> None:
    score = paired_bootstrap({"a": one(np.array([1.0, 2.0]))}, np.array([0, 0]))["a"].score
    assert (score.value, score.low, score.high, score.users) == (1.5, None, None, 1)


def test_no_examples() -> None:
    scored = paired_bootstrap({"a": np.empty((1, 0, 1)), "b": np.empty((1, 0, 1))}, np.empty(0, int), baseline="b")
    assert scored["a"].score.value is None


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(seeds, 3, 1\)"):
        paired_bootstrap({"a": np.zeros((1, 2, 1))}, alone(3))
    with pytest.raises(ValueError, match=r"expected \(seeds, 3, 10\)"):
        paired_bootstrap({"a": np.zeros((1, 3, 1))}, alone(3), reducer="corpus_bleu")


VOCABULARY = ["the", "a", "cat", "dog", "sat", "on", "mat", "and", ",", "."]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


def statistics(output: str, reference: str) -> list[float]:
    """[correct 1-4, total 1-4, output length, reference length] as sacrebleu counts them."""
    import sacrebleu

    score = sacrebleu.corpus_bleu([output], [[reference]])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_bleu_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    import sacrebleu

    sums = np.sum([statistics(*pair) for pair in pairs], axis=0)
    expected = sacrebleu.corpus_bleu([p[0] for p in pairs], [[p[1] for p in pairs]]).score
    assert corpus_bleu(sums, np.float64(len(pairs))) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_bleu_equals_sacrebleu_on_any_statistics(data: st.DataObject) -> None:
    """Also where texts seldom go: no match at some orders, texts shorter than an order, empty texts."""
    from sacrebleu.metrics.bleu import BLEU

    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        length, reference = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
        total = [max(0, length - n) for n in range(4)]
        correct = [data.draw(st.integers(0, t)) for t in total]
        rows.append([*correct, *total, length, reference])
    expected = [BLEU.compute_bleu(r[:4], r[4:8], r[8], r[9], smooth_method="exp").score for r in rows]
    ours = corpus_bleu(np.array(rows, float), np.ones(len(rows)))
    assert ours == pytest.approx(expected, abs=1e-9)
    assert np.isnan(corpus_bleu(np.zeros((2, 10)), np.zeros(2))).all()


def test_the_bootstrap_of_bleu_rescores_each_drawn_corpus() -> None:
    import sacrebleu

    rng = np.random.default_rng(4)
    words = ["this", "that", "film", "was", "really", "good", "bad", "and", "I", "liked", "it", "very", "much"]
    outputs = [" ".join(rng.choice(words, 9)) for _ in range(12)]
    references = [" ".join(rng.choice(words, 8)) for _ in range(12)]
    values = np.array([[statistics(o, r) for o, r in zip(outputs, references, strict=True)]])
    score = paired_bootstrap({"a": values}, alone(12), reducer="corpus_bleu", resamples=200, seed=1)["a"].score
    resampled = []
    for weights in bootstrap_weights(12, 200, 1):
        drawn = np.repeat(np.arange(12), weights.astype(int))
        resampled.append(sacrebleu.corpus_bleu([outputs[i] for i in drawn], [[references[i] for i in drawn]]).score)
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score, abs=1e-9)
    assert (score.low, score.high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=1e-9)


# --- permutation test --------------------------------------------------------------------------------------------


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
@given(data=st.data(), reducer=st.sampled_from(["mean", "corpus_bleu"]))
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
