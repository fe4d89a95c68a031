"""Drawing tokens: the right distribution, one row at a time, from noise that belongs to the token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from bench.engines.sampling import PerRequestSampler, draw, gumbel

Floats = NDArray[np.float64]


def nucleus(logits: Floats, temperature: float, top_p: float) -> Floats:
    """The distribution by definition: the fewest most probable tokens whose mass reaches top-p, lower ids first."""
    scaled = logits / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept = np.zeros_like(probabilities)
    mass = 0.0
    for token in sorted(range(len(logits)), key=lambda i: (-probabilities[i], i)):
        kept[token] = probabilities[token]
        mass += probabilities[token]
        if mass >= top_p:
            break
    result: Floats = kept / kept.sum()
    return result


def drawn(logits: Floats, temperature: float, top_p: float, count: int, step: int = 0) -> NDArray[np.int64]:
    """How often each token comes out over `count` seeds."""
    tokens = []
    for first in range(0, count, 4096):
        seeds = torch.arange(first, min(count, first + 4096))
        rows = torch.tensor(logits, dtype=torch.float32).expand(len(seeds), -1)
        tokens.append(draw(rows, temperature, top_p, seeds, step))
    return np.bincount(torch.cat(tokens).numpy(), minlength=len(logits))


def agrees(counts: NDArray[np.int64], expected: Floats) -> None:
    inside = expected > 0
    assert counts[~inside].sum() == 0, "a token outside the nucleus came out"
    if inside.sum() > 1:
        assert stats.chisquare(counts[inside], expected[inside] * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (1.0, 1.0), (1.5, 0.7), (0.3, 0.9)])
def test_tokens_follow_the_nucleus_distribution(temperature: float, top_p: float) -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, 12)
    agrees(drawn(logits, temperature, top_p, 10_000), nucleus(logits, temperature, top_p))


def test_a_large_vocabulary_follows_it_too_when_the_shortlist_holds_the_nucleus() -> None:
    logits = np.concatenate([np.random.default_rng(1).normal(6, 1, 9), np.full(2991, -9.0)])
    expected = nucleus(logits, 1.0, 0.95)
    assert (expected > 0).sum() < 1024
    agrees(drawn(logits, 1.0, 0.95, 4096), expected)


def test_flat_logits_reach_beyond_the_shortlist() -> None:
    """3,000 nearly equal tokens: 1,024 hold a third of the mass, so the whole vocabulary must be looked at."""
    logits = np.random.default_rng(2).normal(0, 0.1, 3000)
    expected = nucleus(logits, 1.0, 0.9)
    counts = drawn(logits, 1.0, 0.9, 3000)
    assert counts[expected == 0].sum() == 0
    order = np.argsort(-expected)  # groups of 100 tokens, as a chi-square test wants
    groups = [order[i : i + 100] for i in range(0, int((expected > 0).sum()) - 99, 100)]
    rest = order[100 * len(groups) :]
    observed = np.array([counts[g].sum() for g in groups] + [counts[rest].sum()])
    agrees(observed, np.array([expected[g].sum() for g in groups] + [expected[rest].sum()]))


def test_equal_tokens_enter_the_nucleus_by_id_whatever_the_shortlist_held() -> None:
    few = np.zeros(10)
    assert set(np.flatnonzero(drawn(few, 1.0, 0.35, 2000))) == {0, 1, 2, 3}
    many = np.zeros(2000)  # more equal tokens than the shortlist holds: any of them may be left out of it
    assert set(np.flatnonzero(drawn(many, 1.0, 0.0014, 500))) == {0, 1, 2}
    mixed = np.concatenate([np.zeros(1500), [10.0]])  # the shortlist ends among equals that the nucleus reaches into
    top = math.exp(10) / (math.exp(10) + 1500)
    wanted = top + 3.5 * (1 - top) / 1500
    assert set(np.flatnonzero(nucleus(mixed, 1.0, wanted))) == {0, 1, 2, 3, 1500}
    assert set(np.flatnonzero(drawn(mixed, 1.0, wanted, 2000))) <= {0, 1, 2, 3, 1500}


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-8, 8), min_size=1, max_size=30),
    top_p=st.sampled_from([0.05, 0.33, 0.6, 0.9, 0.97]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_only_nucleus_tokens_come_out(logits: list[int], top_p: float, temperature: float) -> None:
    values = np.array(logits, dtype=np.float64)
    # Sums that land on top-p to the last bit go either way: both neighbours are the definition.
    allowed = np.maximum(nucleus(values, temperature, top_p - 1e-5), nucleus(values, temperature, top_p + 1e-5))
    assert not drawn(values, temperature, top_p, 300)[allowed == 0].any()


def test_the_most_probable_token_always_remains() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    for top_p in (0.0, 1e-9, 0.5):
        assert {int(draw(logits, 1.0, top_p, torch.tensor([s]), 0)) for s in range(50)} == {1}
    certain = torch.full((1, 5), -torch.inf)
    certain[0, 2] = 0.0
    for top_p in (0.5, 0.95, 1.0):
        assert {int(draw(certain, 1.0, top_p, torch.tensor([s]), 0)) for s in range(50)} == {2}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), rows=st.integers(1, 6), position=st.integers(0, 5), flat=st.integers(0, 63))
def test_a_rows_token_does_not_depend_on_its_neighbours_or_its_place(
    seed: int, rows: int, position: int, flat: int
) -> None:
    random = torch.Generator().manual_seed(seed % 1000)
    widths = torch.tensor([0.1 if flat >> row & 1 else 4.0 for row in range(rows)])  # some rows leave the shortlist
    logits = torch.randn(rows, 1500, generator=random) * widths[:, None]
    seeds = torch.randint(0, 2**62, (rows,), generator=random)
    place = position % rows
    seeds[place] = seed
    alone = draw(logits[place : place + 1], 0.8, 0.95, seeds[place : place + 1], 7)
    assert draw(logits, 0.8, 0.95, seeds, 7)[place] == alone[0]
    assert draw(logits.flip(0), 0.8, 0.95, seeds.flip(0), 7)[rows - 1 - place] == alone[0]


def test_rounding_of_logits_rarely_changes_a_token() -> None:
    logits = torch.randn(2000, 500, generator=torch.Generator().manual_seed(0)) * 3
    seeds = torch.arange(2000)
    changed = draw(logits, 0.8, 0.95, seeds, 0) != draw(logits + 1e-5 * torch.randn(500), 0.8, 0.95, seeds, 0)
    assert changed.float().mean() < 0.002


# -- the noise ------------------------------------------------------------------------------------------------------


def splitmix_gumbel(seed: int, step: int, token: int) -> float:
    """The same noise in Python's own whole numbers and double precision."""
    wrap, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & wrap
        return state ^ (state >> 31)

    state = mix((mix((seed + (step + 1) * golden) & wrap) + (token + 1) * golden) & wrap)
    uniform = ((state >> 24) + 0.5) / (1 << 40)
    return -math.log(-math.log1p(-min(uniform, 1 - 2**-24)))


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 5000), token=st.integers(0, 300_000))
def test_noise_equals_splitmix_in_plain_integers(seed: int, step: int, token: int) -> None:
    noise = float(gumbel(torch.tensor([seed]), step, torch.tensor([[token]])))
    assert noise == pytest.approx(splitmix_gumbel(seed, step, token), rel=1e-4, abs=1e-5)


def test_noise_belongs_to_the_token_not_to_its_place() -> None:
    seeds = torch.tensor([5, 2**63 - 1])
    tokens = torch.arange(1000).expand(2, -1)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gumbel(seeds, 3, tokens)[:, order], gumbel(seeds, 3, tokens[:, order]))


def test_noise_is_gumbel_distributed() -> None:
    for noise in (
        gumbel(torch.tensor([11]), 0, torch.arange(50_000)[None]),  # over tokens
        gumbel(torch.arange(50_000), 0, torch.zeros(50_000, 1, dtype=torch.int64)),  # over consecutive seeds
        torch.stack([gumbel(torch.tensor([3]), step, torch.tensor([[9]])) for step in range(5000)]),  # over steps
    ):
        assert stats.kstest(noise.flatten().double().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_noise_is_finite_and_reaches_into_the_tail() -> None:
    noise = torch.cat(
        [gumbel(torch.arange(64), step, torch.arange(50_000).expand(64, -1)).flatten() for step in (0, 1)]
    )
    assert torch.isfinite(noise).all()
    # The largest of n values lies near log n, with a standard deviation of 1.3.
    assert abs(float(noise.max()) - math.log(len(noise))) < 6
    assert len(np.unique(noise.numpy())) > 0.5 * len(noise)


def test_noise_of_neighbouring_seeds_steps_and_tokens_is_uncorrelated() -> None:
    tokens = torch.arange(20_000)[None]
    base = gumbel(torch.tensor([100]), 5, tokens)[0].double().numpy()
    others = {
        "next seed": gumbel(torch.tensor([101]), 5, tokens),
        "next step": gumbel(torch.tensor([100]), 6, tokens),
        "next token": gumbel(torch.tensor([100]), 5, tokens + 1),
        "far seed": gumbel(torch.tensor([100 + 2**40]), 5, tokens),
    }
    for name, other in others.items():
        r = np.corrcoef(base, other[0].double().numpy())[0, 1]
        assert abs(r) < 4 / math.sqrt(20_000), name


def test_consecutive_steps_draw_independent_tokens() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    pairs = np.zeros((3, 3))
    seeds = torch.arange(9000)
    rows = torch.tensor(logits, dtype=torch.float32).expand(9000, -1)
    for a, b in zip(draw(rows, 1.0, 1.0, seeds, 0), draw(rows, 1.0, 1.0, seeds, 1), strict=True):
        pairs[a, b] += 1
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


# -- the processor --------------------------------------------------------------------------------------------------


def test_processor_leaves_one_token_a_row_and_counts_steps() -> None:
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    sampler = PerRequestSampler([4, 5, 2**63 - 1], 0.8, 0.9)
    seeds = torch.tensor([4, 5, 2**63 - 1])
    for step in range(3):
        left = sampler(torch.zeros(3, 0, dtype=torch.int64), scores)
        assert torch.isfinite(left).sum(-1).tolist() == [1, 1, 1]
        assert torch.equal(left.argmax(-1), draw(scores, 0.8, 0.9, seeds, step))
    assert sampler.first_logits_at is not None


def test_processor_leaves_greedy_scores_alone() -> None:
    scores = torch.randn(2, 7)
    assert torch.equal(PerRequestSampler([1, 2], 0.0, 0.9)(torch.zeros(2, 0), scores), scores)
