"""DEP's difference vector as its definition reads, one review and one peer at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bench.types import Document, Example
from methods.dep.config import DepConfig, Weighting

Vector = npt.NDArray[np.float64]
Embed = Callable[[str], Vector]


def naive_mean(texts: Sequence[str], embed: Embed) -> Vector:
    total = np.zeros_like(embed(""))
    for text in texts:
        total = total + embed(text)
    return total / max(1, len(texts))


def naive_weights(distances: Sequence[float], weighting: Weighting, tau: float) -> list[float]:
    if weighting == "softmax":
        raw = [math.exp((n - max(distances)) / tau) for n in distances]
    elif weighting == "linear":
        raw = [n if n >= 1e-6 else 0.0 for n in distances]
        raw = raw if sum(raw) else [1.0] * len(raw)
    elif weighting == "inverse":
        raw = [1 / max(n, 1e-6) for n in distances]
    elif weighting == "share":
        kept = [n if n >= 1e-6 else 0.0 for n in distances]
        raw = [math.exp(n / sum(kept)) if sum(kept) else 1.0 for n in kept]
    else:
        raw = [1.0] * len(distances)
    return [value / sum(raw) for value in raw]


def naive_order(document: Document) -> tuple[float, str, str]:
    return math.inf if document.timestamp is None else document.timestamp, document.user_id, document.id


def naive_others(example: Example, world: Sequence[Document], config: DepConfig) -> list[Document]:
    """What the example may see of other users, by (timestamp, user, id)."""

    def seen(document: Document) -> bool:
        if not config.peer_cutoff or example.timestamp is None:
            return True
        return document.timestamp is not None and document.timestamp < example.timestamp

    return sorted((d for d in world if d.user_id != example.user_id and seen(d)), key=naive_order)


def naive_peers(
    example: Example, review: Document, world: Sequence[Document], config: DepConfig, embed: Embed
) -> list[Document]:
    others = naive_others(example, world, config)
    if config.peer_source == "content":
        others.sort(key=lambda d: (-float(embed(review.text) @ embed(d.text)), naive_order(d)))
        peers = sorted(others[: config.nearest_peers], key=naive_order)
    else:
        peers = [d for d in others if d.item_id == review.item_id and review.item_id is not None]
    return peers if config.max_peers is None else peers[max(0, len(peers) - config.max_peers) :]


def naive_difference(
    example: Example, review: Document, world: Sequence[Document], config: DepConfig, embed: Embed
) -> Vector | None:
    """d(u,i) = sum_r w_r (e(u,i) - e(r,i)), or None without peers."""
    others = naive_others(example, world, config)
    peers = naive_peers(example, review, world, config, embed)
    if not peers:
        return None
    own_mean = naive_mean([d.text for d in example.history], embed)
    distances = []
    for peer in peers:
        peer_mean = naive_mean([d.text for d in others if d.user_id == peer.user_id], embed)
        distances.append(float(np.linalg.norm(own_mean - peer_mean)))
    total = np.zeros_like(own_mean)
    for weight, peer in zip(naive_weights(distances, config.weighting, config.tau), peers, strict=True):
        total = total + weight * (embed(review.text) - embed(peer.text))
    return total
