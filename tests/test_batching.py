"""Batches hold every row once, within rows and padded tokens, whatever comes in."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from bench.engines.batching import by_budget, grouped

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
ROWS = st.integers(1, 10)
TOKENS = st.integers(1, 150)


def within(batch: list[int], lengths: list[int], rows: int, tokens: int) -> bool:
    return len(batch) <= rows and (len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= tokens)


@given(lengths=LENGTHS, rows=ROWS, tokens=TOKENS, seed=st.integers(0, 99))
def test_cutting_keeps_order_and_budget(lengths: list[int], rows: int, tokens: int, seed: int) -> None:
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    batches = by_budget(lengths, order, rows, tokens)
    assert [i for batch in batches for i in batch] == order
    assert all(within(batch, lengths, rows, tokens) for batch in batches)


@given(lengths=LENGTHS, rows=ROWS, tokens=TOKENS)
def test_no_batch_could_take_the_next_row_as_well(lengths: list[int], rows: int, tokens: int) -> None:
    batches = by_budget(lengths, range(len(lengths)), rows, tokens)
    for batch, following in itertools.pairwise(batches):
        assert not within([*batch, following[0]], lengths, rows, tokens)


@given(
    items=st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abc")), max_size=40),
    rows=ROWS,
    tokens=TOKENS,
)
def test_groups_never_mix_and_every_row_comes_once(items: list[tuple[int, str]], rows: int, tokens: int) -> None:
    lengths, groups = [n for n, _ in items], [g for _, g in items]
    names = [f"e{i}" for i in range(len(items))]
    batches = grouped(lengths, groups, names, rows, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    for batch in batches:
        assert len({groups[i] for i in batch}) == 1
        assert within(batch, lengths, rows, tokens)
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
    firsts = list(dict.fromkeys(groups[batch[0]] for batch in batches))
    assert firsts == list(dict.fromkeys(groups))


@given(lengths=LENGTHS, rows=ROWS, tokens=TOKENS, seed=st.integers(0, 99))
def test_one_groups_batches_hold_the_same_rows_in_whatever_order_they_are_given(
    lengths: list[int], rows: int, tokens: int, seed: int
) -> None:
    names = [f"e{i}" for i in range(len(lengths))]
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    straight = grouped(lengths, [0] * len(lengths), names, rows, tokens)
    mixed = grouped([lengths[i] for i in order], [0] * len(order), [names[i] for i in order], rows, tokens)
    assert [[order[i] for i in batch] for batch in mixed] == straight


def test_a_row_over_the_budget_stands_alone() -> None:
    assert by_budget([100, 5, 5], [0, 1, 2], 4, 20) == [[0], [1, 2]]
    assert by_budget([5, 100, 5], [0, 1, 2], 4, 20) == [[0], [1], [2]]
    assert by_budget([], [], 4, 20) == []
