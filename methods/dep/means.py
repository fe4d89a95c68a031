"""Mean vectors of users as they were at some moment, and the distances between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.data.arrays import Ints, PopulationArrays, expand
from bench.data.population import Population
from bench.types import Document, Example
from methods.dep.pairs import Bools, Encoded, Floats, Pairs, Reviews, Texts

_ZERO = np.float32(1e-6)
"""Distances between mean vectors below this are rounding."""
_BLOCK = 8
"""Texts that are summed at once on the way to a mean."""
_ROWS = 1024
"""Distances that each thread computes at once: their vectors stay in the processor's cache."""


@dataclass(frozen=True)
class Timelines:
    """Users' texts in time order, end to end. A place stands for a user's texts up to it, so a mean is a place."""

    starts: Ints
    """(timelines + 1,)"""
    texts: Ints
    """(places,)"""
    users: Ints
    """(users,) the place where each user of the population begins."""
    own: Ints
    """(examples,) the place of each example's own mean; -1 for the mean of nothing, which is zero."""

    @classmethod
    def population(cls, arrays: PopulationArrays, users: Ints) -> Timelines:
        """Every user's documents in the population; the mean of an example's user (examples,) is over all of them."""
        starts = arrays.by_user.starts
        own = np.where(users < 0, -1, starts[np.maximum(users, 0) + 1] - 1)
        return cls(starts, arrays.text[arrays.by_user.members], starts[:-1], own)

    @classmethod
    def histories(cls, population: Population, examples: Sequence[Example], texts: Texts) -> Timelines:
        """The population's, and the examples' own histories, which the means of their users are over.

        Sums run in order of time, so a mean has the same bits in whichever timeline begins with its texts.
        """
        arrays = population.arrays()
        stored, size = arrays.text[arrays.by_user.members], len(arrays)
        users, own = arrays.by_user.starts[:-1].copy(), np.full(len(examples), -1, np.int64)
        lines: dict[str, tuple[int, tuple[Document, ...]]] = {}
        added = _Added([], [], [])
        for index in sorted(range(len(examples)), key=lambda n: -len(examples[n].history)):
            name, history = examples[index].user_id, examples[index].history
            known = tuple(population.history(name, None))
            user = arrays.users.get(name, -1)
            begin = int(arrays.by_user.starts[user])  # of no meaning for an unknown user, who has nothing known
            start, line = lines.get(name, (begin, known))
            if line[: len(history)] != history:
                shared = len(known) if history[: len(known)] == known else 0
                added.append(stored[begin : begin + shared], history[shared:])
                start, lines[name] = size, (size, history)
                size += len(history)
                if shared:
                    users[user] = start  # the population's timeline goes on in this one
            own[index] = start + len(history) - 1 if history else -1
        starts = np.concatenate([arrays.by_user.starts, len(arrays) + np.cumsum(np.array(added.lengths, np.int64))])
        return cls(starts, np.concatenate([stored, *added.pieces(texts)]), users, own)


@dataclass
class _Added:
    """Timelines beside the population's: each the whole of one of those, or nothing of it, and some documents more."""

    heads: list[Ints]
    tails: list[Document]
    lengths: list[int]

    def append(self, head: Ints, tail: Sequence[Document]) -> None:
        self.heads.append(head)
        self.tails += tail
        self.lengths.append(len(head) + len(tail))

    def pieces(self, texts: Texts) -> Iterator[Ints]:
        numbers, at = texts.numbers(self.tails), 0
        for head, length in zip(self.heads, self.lengths, strict=True):
            yield head
            yield numbers[at : at + length - len(head)]
            at += length - len(head)


@dataclass(frozen=True)
class Meetings:
    """The distinct (example, peer user) of all pairs: at one moment, two users have one distance."""

    example: Ints
    """(meetings,)"""
    place: Ints
    """(meetings,) the peer's mean."""
    of: Ints
    """(pairs,) the meeting of each pair."""

    @classmethod
    def between(cls, reviews: Reviews, pairs: Pairs, arrays: PopulationArrays, timelines: Timelines) -> Meetings:
        """Who meets whom; a peer's mean is over what the example may see."""
        examples = len(reviews.user)
        # By user and then by moment, so that all look-ups run along the population's arrays.
        by_end = np.argsort(reviews.ends, kind="stable")
        rank = np.empty_like(by_end)
        rank[by_end] = np.arange(examples)
        keys = arrays.user[pairs.peer] * examples + rank[reviews.example][pairs.review]
        distinct, of = _distinct(keys, len(arrays.users) * examples)
        user, moment = np.divmod(distinct, max(1, examples))
        _, seen = arrays.by_user.ranges(user, reviews.ends[by_end][moment])
        return cls(by_end[moment], timelines.users[user] + seen - 1, of)


def _distinct(keys: Ints, size: int) -> tuple[Ints, Ints]:
    """Distinct keys below `size`, ascending, and the index among them of each key."""
    if size > 16 * len(keys):
        return np.unique(keys, return_inverse=True)
    seen = np.zeros(size, np.bool_)
    seen[keys] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[keys]


def texts_of_means(timelines: Timelines, places: Ints) -> Ints:
    """Numbers of the texts that the means at some places are over, some of them several times."""
    first, steps, _ = _spans(timelines, places)
    return timelines.texts[expand(first, steps)[1]]


def distances(timelines: Timelines, meetings: Meetings, places: Ints, encoded: Encoded) -> Floats:
    """||m(u) - m(r)|| of each meeting (meetings,); `places` are those of all their means.

    What is left between equal means by rounding counts as zero: linear weights would be made of it.
    """
    import torch
    from torch.nn.functional import embedding_bag

    means = prefix_means(timelines, places, encoded)
    ranks = np.zeros(len(timelines.texts) + 1, np.int64)
    ranks[places] = np.arange(len(places))
    ranks[-1] = len(places)  # where a place of -1 points
    ends = np.stack([ranks[timelines.own[meetings.example]], ranks[meetings.place]], axis=1)
    found = np.empty(len(ends), np.float32)
    table, indices = torch.from_numpy(means), torch.from_numpy(ends)
    size = _ROWS * torch.get_num_threads()
    signs = torch.tensor([[1.0, -1.0]]).expand(size, 2).contiguous()
    for start in range(0, len(ends), size):
        block = indices[start : start + size]
        apart = embedding_bag(block, table, mode="sum", per_sample_weights=signs[: len(block)])
        found[start : start + size] = torch.linalg.vector_norm(apart, dim=1).numpy()
    found[found < _ZERO] = 0
    return found


def needed_places(timelines: Timelines, meetings: Meetings) -> Ints:
    """The places whose means are asked for, ascending."""
    flags: Bools = np.zeros(len(timelines.texts), np.bool_)
    own = timelines.own[meetings.example]
    flags[own[own >= 0]] = True
    flags[meetings.place] = True
    return np.flatnonzero(flags)


def _spans(timelines: Timelines, places: Ints) -> tuple[Ints, Ints, Ints]:
    """Of the timelines that hold some of the places: where they start, how far the last place reaches, and for each
    place which of them it is in."""
    line = np.searchsorted(timelines.starts, places, side="right") - 1
    distinct, owner = np.unique(line, return_inverse=True)
    reach = np.zeros(len(distinct), np.int64)
    np.maximum.at(reach, owner, places - timelines.starts[line] + 1)
    return timelines.starts[distinct], reach, owner


def prefix_means(timelines: Timelines, places: Ints, encoded: Encoded) -> Floats:
    """Mean vectors (places + 1, d) of the texts up to each place, and a row of zeros.

    A timeline's texts are summed in blocks counted from its start. A mean is made of the blocks before its place and of
    the texts since the last of them, so it depends on those texts and their order alone: company changes no bit.
    """
    import torch

    first, reach, owner = _spans(timelines, places)
    blocks, since = np.divmod(places - first[owner] + 1, _BLOCK)
    sums, begin = _sums_of_blocks(timelines, first, reach // _BLOCK, encoded)
    means = _sums(timelines, np.append(places - since + 1, 0), np.append(since, 0), encoded)
    found = torch.from_numpy(means[:-1])
    found += torch.from_numpy(sums).index_select(0, torch.from_numpy(begin[owner] + blocks))
    found /= torch.from_numpy((blocks * _BLOCK + since).astype(np.float32))[:, None]
    return means


def _sums_of_blocks(timelines: Timelines, first: Ints, full: Ints, encoded: Encoded) -> tuple[Floats, Ints]:
    """Sums (sums, d) of the first 0, 1, ... `full` blocks of timelines that start at `first`, one timeline after
    another, and the row where each timeline begins. Blocks are added up in float64."""
    line, number = expand(np.zeros_like(full), full)
    blocks = _sums(timelines, first[line] + number * _BLOCK, np.full(len(line), _BLOCK), encoded)
    block, begin = np.cumsum(full) - full, np.cumsum(full + 1) - full - 1
    sums = np.zeros((len(blocks) + len(full), blocks.shape[1]), np.float32)
    longest = np.argsort(-full, kind="stable")
    alive = len(full) - np.searchsorted(np.sort(full), np.arange(full.max(initial=0)), side="right")
    total = np.zeros((len(full), blocks.shape[1]))
    for step, count in enumerate(alive.tolist()):
        lines = longest[:count]
        total[:count] += blocks[block[lines] + step]
        sums[begin[lines] + step + 1] = total[:count]
    return sums, begin


def _sums(timelines: Timelines, starts: Ints, counts: Ints, encoded: Encoded) -> Floats:
    """Sums (len(starts), d) of the texts at `counts` places from each start, in their order."""
    import torch

    rows = encoded.rows[timelines.texts[expand(starts, counts)[1]]]
    bounds = np.concatenate([[0], np.cumsum(counts)])
    found: Floats = torch.nn.functional.embedding_bag(
        torch.from_numpy(rows),
        torch.from_numpy(encoded.vectors),
        torch.from_numpy(bounds),
        mode="sum",
        include_last_offset=True,
    ).numpy()
    return found
