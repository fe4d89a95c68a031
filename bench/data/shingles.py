"""Texts that are nearly the same: all pairs above a Jaccard similarity of character shingles, found without trying all.

Two sets whose Jaccard similarity is at least t share elements among the rarest of both: with elements in one global
order and o = ceil(t * size), a set's first size - o + 1 elements meet those of every set that similar (prefix
filtering: Chaudhuri, Ganti and Kaushik, ICDE 2006), and its first size - o + c elements share at least c with them
(Wang, Li and Feng, SIGMOD 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint32]

SIZE = 5
"""Characters of a shingle."""
_SLACK = 0.01
"""Hashes of 32 bits may meet: candidates are sought this much below the threshold, and then compared exactly."""
_SHARED = 16
"""Most elements that two prefixes must share: more makes prefixes longer and candidates fewer."""
_BUCKETS = 1 << 24
_MULTIPLIER = np.uint32(2_654_435_761)


@dataclass(frozen=True, slots=True)
class Alike:
    """A query and a text that are nearly the same."""

    query: int
    text: int
    similarity: float


def shingles(text: str) -> set[str]:
    """All runs of `SIZE` characters of a text, letters folded; the whole of a shorter one."""
    folded = text.casefold()
    return {folded[start : start + SIZE] for start in range(max(1, len(folded) - SIZE + 1))} if folded else set()


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the shingles of two texts; 0 for an empty one."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a and b else 0.0


def alike(queries: Sequence[str], texts: Sequence[str], threshold: float) -> list[Alike]:
    """Every pair of a query and a text with a similarity of at least `threshold` (0 to 1), by query, then text.

    Exact but for chance collisions of 32-bit hashes. Give distinct texts: each is compared as often as it stands there.
    """
    if not queries or not texts:
        return []
    near = max(0.0, threshold - _SLACK)
    sets = [_hashed(text) for text in (*queries, *texts)]
    counts = np.zeros(_BUCKETS, np.int32)
    for one in sets:
        counts[one & np.uint32(_BUCKETS - 1)] += 1
    prefixes = [_prefix(one, counts, near) for one in sets]
    index = _Index(prefixes[len(queries) :], np.array([len(one) for one in sets[len(queries) :]]))
    found: list[Alike] = []
    for number, query in enumerate(queries):
        for text in index.candidates(prefixes[number], len(sets[number]), near).tolist():
            value = similarity(query, texts[text])
            if value >= threshold:
                found.append(Alike(number, text, value))
    return found


def _hashed(text: str) -> Codes:
    """The distinct shingles of a text as hashes, ascending."""
    folded = np.frombuffer(text.casefold().encode("utf-32-le", "surrogatepass"), np.uint32)
    places = max(1, len(folded) - SIZE + 1) if len(folded) else 0
    codes = np.zeros(places, np.uint32)
    for offset in range(min(SIZE, len(folded))):
        codes = codes * np.uint32(1_000_003) + folded[offset : offset + places]
    codes ^= codes >> np.uint32(15)
    codes *= _MULTIPLIER
    codes ^= codes >> np.uint32(13)
    return np.unique(codes)


def _prefix(codes: Codes, counts: npt.NDArray[np.int32], near: float) -> Codes:
    """The elements of a set that must be looked at, rarest first; those that only this set has can meet nothing."""
    size = len(codes)
    held = counts[codes & np.uint32(_BUCKETS - 1)]
    order = np.lexsort((codes, held))
    length = min(size, size - int(np.ceil(near * size)) + _SHARED)
    first = order[:length]
    found: Codes = codes[first][held[first] > 1]
    return found


class _Index:
    """Which texts have an element in their prefix."""

    def __init__(self, prefixes: Sequence[Codes], sizes: npt.NDArray[np.int64]) -> None:
        self.sizes = sizes
        lengths = [len(one) for one in prefixes]
        codes = np.concatenate(prefixes)
        owners = np.repeat(np.arange(len(prefixes), dtype=np.int32), lengths)
        order = np.argsort(codes, kind="stable")
        self.codes, self.owners = codes[order], owners[order]

    def candidates(self, prefix: Codes, size: int, near: float) -> npt.NDArray[np.int32]:
        """Texts that may be similar enough to a set of so many elements with this prefix, ascending."""
        starts = np.searchsorted(self.codes, prefix, "left")
        stops = np.searchsorted(self.codes, prefix, "right")
        spans = [self.owners[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True) if a < b]
        if not spans:
            return np.zeros(0, np.int32)
        owners, shared = np.unique(np.concatenate(spans), return_counts=True)
        sizes = self.sizes[owners]
        fits = (sizes >= near * size) & (sizes * near <= size)
        # Both prefixes are long enough for this many common elements, unless a set is smaller than that itself.
        needed = np.minimum(np.minimum(_SHARED, np.ceil(near * size)), np.ceil(near * sizes))
        fits &= shared >= np.maximum(1, needed)
        found: npt.NDArray[np.int32] = owners[fits]
        return found
