"""Batches by length and token budget, shared by engines and training."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence


def by_budget(lengths: Sequence[int], order: Iterable[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Cuts `order` (indices into `lengths`) into batches of at most `max_rows` rows and `max_tokens` padded tokens.

    A row longer than the budget gets a batch of its own. Keeps the order.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and len(batches[-1]) < max_rows and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def grouped(
    lengths: Sequence[int], groups: Sequence[Hashable], ties: Sequence[str], max_rows: int, max_tokens: int
) -> list[list[int]]:
    """Batches that never mix groups, longest rows first, so that memory runs out early or not at all.

    A pure function of its arguments: `ties` (example ids) settles equal lengths. Groups come in order of first sight.
    """
    seen: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        seen.setdefault(group, []).append(index)
    batches: list[list[int]] = []
    for members in seen.values():
        order = sorted(members, key=lambda i: (-lengths[i], ties[i]))
        batches += by_budget(lengths, order, max_rows, max_tokens)
    return batches
