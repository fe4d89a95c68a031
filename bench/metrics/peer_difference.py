"""Does a text differ from what others say of the same item as its user's own text does?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from bench.config import Config as BaseConfig
from bench.encoders import Encoder
from bench.metrics.author_encoder import encoder_parts
from bench.metrics.base import Advance, Metric, ScoreInput, Vector, text_of
from bench.metrics.users import is_copy
from bench.types import Document
from bench.weights import local_folder, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class PeerDifferenceConfig(BaseConfig):
    """Knobs of the distance from peers."""

    against: Literal["reference", "history"] = "reference"
    """reference: how the user's real text on the item differs; history: how the user's past texts do, on the mean."""
    max_peers: int = Field(32, ge=1)
    """Most peers of an item, the latest first: enough for a mean, and few enough to embed."""
    n_history: int = Field(8, ge=1)
    """Latest past texts with peers that `against = history` takes the mean of."""
    model: str = "minilm"
    """Embedded encoder, local folder or hub id."""


class PeerDifference(Metric):
    """Cosine between how the text and how the user's real text differ from peers' texts on the item, in an encoder.

    Peers are others who wrote about the item before; the difference is a vector minus the mean of theirs. Not defined
    where there are none.
    """

    name = "peer_difference"
    Config = PeerDifferenceConfig
    config: PeerDifferenceConfig

    def preflight(self) -> None:
        local_folder(self.encoder.source)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder; its vectors are kept on disk and shared with everything that embeds."""
        return Encoder(resolve(self.config.model, "encoder"))

    def _signature_parts(self) -> Mapping[str, object]:
        return {**self.config.model_dump(), "weights": "uniform", **encoder_parts(self.encoder)}

    def _vector(self, item: ScoreInput) -> Vector | None:
        outcome = next(self._outcomes([item], lambda _: None))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _outcomes(self, inputs: Sequence[ScoreInput], advance: Advance) -> Iterator[Vector | Exception | None]:
        import numpy as np

        compared = [self._compared(item) for item in inputs]
        texts = {text for item, (peers, true) in zip(inputs, compared, strict=True) for text in (text_of(item), *peers)}
        texts |= {text for _, true in compared for own, peers in true for text in (own, *peers)}
        ordered = sorted(texts)
        row = {text: number for number, text in enumerate(ordered)}
        vectors = self.encoder.encode(ordered)
        for item, (peers, true) in zip(inputs, compared, strict=True):
            if peers and true:
                ours, *theirs = (_difference(vectors, row, *pair) for pair in ((text_of(item), peers), *true))
                yield [cosine(ours, np.sum(theirs, axis=0))]
            else:
                yield None
            advance(1)

    def _compared(self, item: ScoreInput) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Peers' texts on the item, and (own text, peers' texts) of each true difference."""
        example, world = item.example, item.world
        if example is None or world is None:
            return [], []

        def peers(document: Document) -> list[str]:
            found = world.population.peers(document, example.user_id, example.timestamp)
            return [peer.text for peer in found[-self.config.max_peers :]]

        target = Document(example.id, example.user_id, "", example.fields, example.item_id, example.timestamp)
        there = peers(target)
        if self.config.against == "reference":
            return there, [(item.reference, there)]
        past = [one for one in reversed(example.history) if not is_copy(text_of(item), one.text)]
        pairs = ((one.text, peers(one)) for one in past)
        return there, list(islice(((text, others) for text, others in pairs if others), self.config.n_history))


def _difference(vectors: Floats, row: Mapping[str, int], text: str, peers: Sequence[str]) -> Floats:
    """A text's vector minus the mean of its peers' (d,)."""
    difference: Floats = vectors[row[text]] - vectors[[row[peer] for peer in peers]].mean(axis=0)
    return difference


def cosine(left: Floats, right: Floats) -> float:
    """Of two vectors (d,); 0 if one of them is zero."""
    import numpy as np

    length = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / length if length > 1e-9 else 0.0
