"""dpl's choice of reviews and peers as its definition reads: dictionaries, loops, rank_bm25 and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from rank_bm25 import BM25Okapi
from sklearn.cluster import KMeans

from bench.types import Document, Example

Vector = npt.NDArray[np.float64]
Embed = Callable[[str], Vector]


def words(thing: Document | Example) -> list[str]:
    """What BM25 compares: review title and item description."""
    return f"{thing.fields['title']} {thing.fields['item_description']}".split()


def naive_best(example: Example, documents: Sequence[Document], k: int) -> list[Document]:
    """The k best by BM25, the newer of equals first; returned newest first. `documents` come oldest first."""
    if not documents:
        return []
    scores = BM25Okapi([words(document) for document in documents]).get_scores(words(example))
    left = list(range(len(documents)))
    taken: list[int] = []
    while left and len(taken) < k:
        best = left[0]
        for i in left:
            if scores[i] >= scores[best]:
                best = i
        taken.append(best)
        left.remove(best)
    return [documents[i] for i in sorted(taken, reverse=True)]


def naive_peers(document: Document, example: Example, world: Sequence[Document]) -> list[Document]:
    """Reviews of the same item by others, before the target, by (timestamp, user, id)."""
    found = []
    for other in world:
        if other.item_id != document.item_id or other.user_id == example.user_id:
            continue
        if other.timestamp is not None and example.timestamp is not None and other.timestamp < example.timestamp:
            found.append(other)
    return sorted(found, key=lambda d: (d.timestamp or 0, d.user_id, d.id))


def naive_others(own: Document, peers: Sequence[Document], embed: Embed, clusters: int, seed: int) -> list[Document]:
    """One peer for each cluster that the own review is not in: the nearest to the centre, the earlier of equals."""
    everyone = [own, *peers]
    points = [embed(document.text) for document in everyone]
    different = {tuple(point.tolist()) for point in points}
    model = KMeans(n_clusters=min(clusters, len(different)), random_state=seed, n_init=1).fit(np.array(points))
    members: dict[int, list[int]] = {}
    for i, label in enumerate(model.labels_):
        members.setdefault(int(label), []).append(i)
    taken = []
    for label, rows in members.items():
        if 0 in rows:
            continue
        centre = model.cluster_centers_[label]
        apart = {i: math.dist(points[i], centre) for i in rows}
        least = min(apart.values())
        taken.append(next(i for i in rows if apart[i] <= least + 1e-6))
    return [everyone[i] for i in sorted(taken)]


def naive_contrasts(
    example: Example,
    world: Sequence[Document],
    embed: Embed,
    k: int = 8,
    min_peers: int = 4,
    clusters: int = 5,
    seed: int = 42,
) -> list[tuple[str, list[str]]]:
    """Ids of the compared reviews, newest first, each with the ids of what it is compared with."""
    peers = {document.id: naive_peers(document, example, world) for document in example.history}
    rich = [document for document in example.history if len(peers[document.id]) >= min_peers]
    found = []
    for own in naive_best(example, rich, k):
        others = naive_others(own, peers[own.id], embed, clusters, seed)
        if others:
            found.append((own.id, [other.id for other in others]))
    return found
