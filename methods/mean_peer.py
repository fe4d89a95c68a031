"""A floor: what others say of the same item."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bench.method import Context
from bench.types import Document, Example
from methods.copy_last import CopyLast

if TYPE_CHECKING:
    import numpy.typing as npt


class MeanPeer(CopyLast):
    """The review of the same item that is nearest to the mean of all earlier ones by others, word for word.

    Where nobody else wrote about the item it is the user's own latest review.
    """

    name = "mean-peer"

    def wants_encoder(self) -> bool:
        return True

    def answer(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        peers = [self._peers(example, ctx) for example in examples]
        texts = sorted({peer.text for peer in chain(*peers)})
        row = {text: number for number, text in enumerate(texts)}
        with ctx.meter.phase("embed"):
            vectors = ctx.encoder.encode(texts, progress=True)
        nearest = [_nearest_to_mean(vectors[[row[peer.text] for peer in several]]) for several in peers]
        last = super().answer(examples, ctx)
        return [
            several[place].text if place is not None else own
            for several, place, own in zip(peers, nearest, last, strict=True)
        ]

    @staticmethod
    def _peers(example: Example, ctx: Context) -> list[Document]:
        """Earlier reviews of the target's item by others, by (timestamp, user, id)."""
        target = Document(example.id, example.user_id, "", example.fields, example.item_id, example.timestamp)
        return ctx.population.peers(target, example.user_id, example.timestamp)


def _nearest_to_mean(vectors: npt.NDArray[np.float32]) -> int | None:
    """Row of `vectors` (peers, d) nearest to their mean; the first of equals, None where there is no row."""
    if not len(vectors):
        return None
    distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    return int(np.flatnonzero(distances <= distances.min() + 1e-6)[0])
