"""Retrieved history in the prompt: the plain, strong baseline."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bench.config import Config
from bench.method import About, Context, Method
from bench.prompts import conversation, fit_prompt
from bench.retrieval import Retriever, retrieve
from bench.types import Document, Example, Message, Request


class RagConfig(Config):
    """Knobs of rag."""

    k: int = Field(default=8, ge=0)
    """Past documents shown."""
    retriever: Retriever = "bm25"
    """bm25 (target's title and item description against those of past documents), dense, recency or random."""


class Rag(Method):
    """Past reviews retrieved by BM25, encoder, recency or chance, shown before the target."""

    name = "rag"
    about = About("Salemi, ACL", 2024, "https://aclanthology.org/2024.acl-long.399/")
    Config = RagConfig
    config: RagConfig

    def wants_encoder(self) -> bool:
        return self.config.retriever == "dense"

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, shown: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, example, shown)

        found = retrieve(examples, self.config.k, self.config.retriever, ctx)
        return [
            ctx.request(example, fit_prompt(build, example, documents, ctx).messages)
            for example, documents in zip(examples, found, strict=True)
        ]
