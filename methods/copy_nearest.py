"""A floor: the user's own review of what is most like the target."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import Config
from bench.method import Context
from bench.retrieval import Retriever, retrieve
from bench.types import Example
from methods.copy_last import CopyLast


class CopyNearestConfig(Config):
    """Knobs of copy-nearest."""

    retriever: Retriever = "dense"
    """What is nearest, as in rag."""


class CopyNearest(CopyLast):
    """The user's own review nearest to what is asked, word for word."""

    name = "copy-nearest"
    Config = CopyNearestConfig
    config: CopyNearestConfig

    def wants_encoder(self) -> bool:
        return self.config.retriever == "dense"

    def answer(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        found = retrieve(examples, 1, self.config.retriever, ctx)
        return [documents[0].text if documents else "" for documents in found]
