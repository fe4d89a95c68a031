"""Which of a user's past documents to show: BM25, dense, recency or random. One implementation for all methods."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from bench.keys import digest
from bench.method import Context
from bench.prompts import render_value
from bench.types import Document, Example, FieldValue, Task

Retriever = Literal["bm25", "dense", "recency", "random"]


def field_text(fields: dict[str, FieldValue], names: Sequence[str]) -> str:
    """The values of the named fields, joined by spaces."""
    return " ".join(text for text in (render_value(fields.get(name)) for name in names) if text)


def bm25_scores(query: str, documents: Sequence[str]) -> list[float]:
    """Okapi BM25 (k1 1.5, b 0.75) over white-space tokens, as rank_bm25 computes it."""
    from rank_bm25 import BM25Okapi

    corpus = [document.split() for document in documents]
    if not any(corpus):
        return [0.0] * len(documents)  # the library divides by the mean length
    return [float(score) for score in BM25Okapi(corpus, k1=1.5, b=0.75).get_scores(query.split())]


def newest_first(documents: Sequence[Document]) -> list[Document]:
    """Documents (given oldest first) from the newest to the oldest."""
    return list(reversed(documents))


def retrieve(examples: Sequence[Example], k: int, kind: Retriever, ctx: Context) -> list[list[Document]]:
    """For each example the `k` past documents that `kind` ranks highest, returned newest first.

    Equal scores are settled in favour of the newer document. `random` depends on run seed and example alone.
    """
    if kind == "recency":
        return [newest_first(example.history)[:k] for example in examples]
    if kind == "random":
        return [_random(example, k, ctx.seed) for example in examples]
    scores = _dense(examples, ctx) if kind == "dense" else [_bm25(example, ctx) for example in examples]
    return [_top(example.history, row, k) for example, row in zip(examples, scores, strict=True)]


def _top(history: Sequence[Document], scores: Sequence[float], k: int) -> list[Document]:
    best = sorted(range(len(history)), key=lambda i: (-scores[i], -i))[:k]
    return [history[i] for i in sorted(best, reverse=True)]


def _random(example: Example, k: int, seed: int) -> list[Document]:
    stream = random.Random(digest([seed, "retrieve", example.id]))
    chosen = stream.sample(range(len(example.history)), min(k, len(example.history)))
    return [example.history[i] for i in sorted(chosen, reverse=True)]


def _bm25(example: Example, ctx: Context) -> list[float]:
    query = field_text(dict(example.fields), ctx.task.query_fields)
    return bm25_scores(query, [matched_text(d, ctx.task) for d in example.history])


def matched_text(document: Document, task: Task) -> str:
    """What of a past document is matched against a query: values of its fields, its text under the name "text"."""
    return field_text({"text": document.text, **document.fields}, task.document_fields)


def _dense(examples: Sequence[Example], ctx: Context) -> list[list[float]]:
    """Cosine of the encoder's vectors, each distinct text encoded once."""
    queries = [field_text(dict(e.fields), ctx.task.query_fields) for e in examples]
    pasts = [[matched_text(d, ctx.task) for d in e.history] for e in examples]
    texts = sorted({*queries, *(text for past in pasts for text in past)})
    row = {text: index for index, text in enumerate(texts)}
    with ctx.meter.phase("embed"):
        vectors = ctx.encoder.encode(texts, progress=True)
    return [
        [float(vectors[row[query]] @ vectors[row[text]]) for text in past]
        for query, past in zip(queries, pasts, strict=True)
    ]
