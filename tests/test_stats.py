"""Intervals against closed forms, scipy, loops and simulation; BLEU against sacrebleu."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats_world import alone, ends, made_up, one, statistics

from bench.stats import REDUCERS, Floats, bootstrap_weights, corpus_bleu, paired_bootstrap
from bench.stats.bootstrap import tail_of


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


@pytest.mark.parametrize("users", [8, 16, 30])
def test_the_interval_of_a_mean_is_students_for_few_users(users: int) -> None:
    """The bootstrap's variance is (n - 1) / n of the unbiased one, and its shape the normal's: both are made good."""
    from scipy.stats import t

    sample = np.random.default_rng(3).normal(size=(40, users))
    ratios = []
    for row in sample:
        estimate = paired_bootstrap({"a": one(row)}, alone(users))["a"].score
        assert estimate.low is not None
        assert estimate.high is not None
        half = t(users - 1).ppf(0.975) * row.std(ddof=1) / users**0.5
        ratios.append((estimate.high - estimate.low) / (2 * half))
    assert 0.95 < np.mean(ratios) < 1.03


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
    level = 1 - 2 * tail_of(60)  # a little above 95 %
    options = {
        "n_resamples": 40_000,
        "method": "percentile",
        "vectorized": True,
        "confidence_level": level,
        "rng": np.random.default_rng(0),
    }
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


@settings(max_examples=25, deadline=None)
@given(data=st.data(), reducer=st.sampled_from(["mean", "ratio", "corpus_bleu"]))
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
                assert (estimate.low, estimate.high) == pytest.approx(ends(known, estimate.users), abs=1e-9)


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
    assert (score.low, score.high) == pytest.approx(ends(resampled, 12), abs=1e-9)
