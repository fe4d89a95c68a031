"""The population as arrays, for work on all of it at once: documents, users, items and texts are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from bench.types import Document, Example

Ints = npt.NDArray[np.int64]

_LAST = int(np.iinfo(np.int64).max)
"""Stands for the time of a document that has none: after every moment."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Documents by what they share (a user, an item), each group in the population's order: a CSR matrix's indices."""

    members: Ints
    """(grouped,) documents, group after group."""
    starts: Ints
    """(groups + 1,) where each group begins among `members`; one empty group where there is none."""
    keys: Ints
    """(grouped,) group * documents + document: ascending, so that one search finds a moment in many groups."""
    documents: int

    @classmethod
    def of(cls, codes: Ints, count: int) -> Groups:
        """Groups 0 to count-1 of the documents with these codes; a negative code means none."""
        members = np.argsort(codes, kind="stable")[np.count_nonzero(codes < 0) :]
        starts = np.searchsorted(codes[members], np.arange(max(1, count) + 1))  # so that group 0 can be asked for
        return cls(members, starts, codes[members] * len(codes) + members, len(codes))

    def ranges(self, groups: Ints, ends: Ints | None = None) -> tuple[Ints, Ints]:
        """Where each asked group begins among `members`, and how many of it stand before document number `ends`.

        Args:
            groups: (asked,); a negative one has no members.
            ends: (asked,) document numbers; None: all members count.
        """
        starts = self.starts[np.maximum(groups, 0)]
        if ends is None:
            stops = self.starts[np.maximum(groups, 0) + 1]
        else:
            stops = np.searchsorted(self.keys, np.maximum(groups, 0) * self.documents + ends)
        return starts, np.where(groups < 0, 0, stops - starts)


@dataclass(frozen=True, eq=False)
class PopulationArrays:
    """Documents in the population's order, by (timestamp, user, id); whatever was before a moment comes first."""

    documents: tuple[Document, ...]
    objects: dict[int, int]
    """`id()` of each document -> number: found without a look at the document, which lies somewhere in memory."""
    numbers: dict[str, int]
    """Document id -> number."""
    users: dict[str, int]
    """User id -> number, ascending as the ids are."""
    items: dict[str, int]
    texts: dict[str, int]
    """Each distinct text -> its number, in order of first sight."""
    user: Ints
    """(documents,)"""
    item: Ints
    """(documents,) -1 where a document has none."""
    text: Ints
    """(documents,)"""
    time: Ints
    """(documents,) milliseconds since the epoch; the largest integer where there is none."""
    by_user: Groups
    by_item: Groups

    @classmethod
    def of(cls, documents: Sequence[Document], users: Sequence[str]) -> PopulationArrays:
        """Takes the documents in the population's order, and all users in order of their ids."""
        user_numbers = {name: number for number, name in enumerate(users)}
        items: dict[str, int] = {}
        texts: dict[str, int] = {}
        size = len(documents)
        user = np.fromiter((user_numbers[d.user_id] for d in documents), np.int64, size)
        item = np.fromiter((-1 if d.item_id is None else number(items, d.item_id) for d in documents), np.int64, size)
        return cls(
            documents=tuple(documents),
            objects={id(d): n for n, d in enumerate(documents)},
            numbers={d.id: n for n, d in enumerate(documents)},
            users=user_numbers,
            items=items,
            texts=texts,
            user=user,
            item=item,
            text=np.fromiter((number(texts, d.text) for d in documents), np.int64, size),
            time=np.fromiter((_LAST if d.timestamp is None else d.timestamp for d in documents), np.int64, size),
            by_user=Groups.of(user, len(user_numbers)),
            by_item=Groups.of(item, len(items)),
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.user)

    def find(self, documents: Sequence[Document]) -> Ints:
        """(len(documents),) the number of each of the population's own objects; -1 for any other object."""
        return np.fromiter(map(self.objects.get, map(id, documents), repeat(-1)), np.int64, len(documents))

    def ends(self, examples: Sequence[Example], cutoff: bool) -> Ints:
        """(examples,) documents that each example may see: those numbered below this. All, without a cut-off."""
        moments = [_LAST if e.timestamp is None or not cutoff else e.timestamp for e in examples]
        found: Ints = np.searchsorted(self.time, np.array(moments, np.int64))
        return np.where(np.array(moments, np.int64) == _LAST, len(self), found)


def number(numbers: dict[str, int], thing: str) -> int:
    """The number of a thing; the next one, from then on, for a thing not seen before."""
    return numbers.setdefault(thing, len(numbers))


def expand(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ranges laid end to end: for every place of every range, which range it is of and where it points.

    Args:
        starts: (ranges,) first position of each.
        counts: (ranges,) positions in each.
    """
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    places += np.arange(len(places))
    return owners, places
