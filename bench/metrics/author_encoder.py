"""Author attribution by an encoder.

Loaded by path through `evaluate.load`, this file gives the share of texts that are nearest to their own user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from bench.encoders import Encoder
from bench.metrics.attribution import Attribution, AttributionConfig
from bench.weights import local_folder, resolve

_IDENTITY = ("name", "revision", "pooling", "max_length", "dtype", "transformers")
"""What of an encoder's identity can change a score; the rest decides the last bits of a vector."""


class AuthorEncoderConfig(AttributionConfig):
    """Knobs of author attribution by an encoder."""

    model: str = "minilm"
    """Embedded encoder, local folder or hub id."""


class AuthorEncoder(Attribution):
    """Is the text nearest to its own user's earlier texts, among 20 users? By the encoder's vectors and cosine."""

    name = "author_encoder"
    Config = AuthorEncoderConfig
    config: AuthorEncoderConfig

    def preflight(self) -> None:
        local_folder(self.encoder.source)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder; its vectors are kept on disk and shared with everything that embeds."""
        return Encoder(resolve(self.config.model, "encoder"))

    def _space(self, texts: Sequence[str]) -> Any:
        return self.encoder.encode(texts)

    def _space_parts(self) -> Mapping[str, object]:
        return encoder_parts(self.encoder)


class AuthorEncoderRank(AuthorEncoder):
    """Rank of the text's own user among 20, by nearness of the encoder's vectors to their earlier texts; 1 is best."""

    name = "author_encoder_rank"
    higher_is_better = False
    rank = True


def encoder_parts(encoder: Encoder) -> dict[str, str]:
    """An encoder as a signature names it."""
    identity = encoder.identity()
    return {part: identity[part] for part in _IDENTITY if part in identity}
