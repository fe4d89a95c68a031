"""Profile-augmented generation: a summary of the user and retrieved reviews."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bench.method import Context
from bench.notes import NoteConfig
from bench.retrieval import Retriever, retrieve
from bench.types import Document, Example
from methods.intsum import IntSum


class PagConfig(NoteConfig):
    """Knobs of pag."""

    k: int = Field(default=8, ge=0)
    """Past documents shown."""
    retriever: Retriever = "bm25"
    """What chooses them, as in rag."""


class Pag(IntSum):
    """A summary of the user's past, written by the model, beside past reviews retrieved as in rag."""

    name = "pag"
    Config = PagConfig
    config: PagConfig

    def wants_encoder(self) -> bool:
        return self.config.retriever == "dense"

    def shown(self, examples: Sequence[Example], ctx: Context) -> list[list[Document]]:
        return retrieve(examples, self.config.k, self.config.retriever, ctx)
