"""How a user differs from others, in words: own reviews beside those of others on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bench.config import Config
from bench.method import FINAL_STAGE, About, Context, Method, Stage
from bench.notes import part, write_notes
from bench.prompts import conversation, fit_noted, fit_prompt, fit_texts, render_documents, render_fields
from bench.retrieval import retrieve
from bench.types import Document, Example, Message, Request, Task
from methods.intsum import describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TIE = 1e-6
"""Distances to a centre that differ by less are equal: two members of a cluster are equally far, but for rounding."""


class DplConfig(Config):
    """Knobs of dpl. Defaults are the paper's; what is noted depends on the target, by what is retrieved for it."""

    k: int = Field(default=8, ge=0)
    """Past documents shown, and at most so many whose differences are described. BM25 chooses both, as in rag."""
    min_peers: int = Field(default=4, ge=1)
    """A past document whose difference is described has at least so many by others on its item before the target."""
    clusters: int = Field(default=5, ge=2)
    """Clusters of a past document and its peers. Each but its own lends one peer to compare with, so one fewer."""
    cluster_seed: int = Field(default=42, ge=0, lt=2**32)
    """Where k-means starts from; the same for every document, whatever the run's seed."""
    difference_tokens: int = Field(default=256, ge=1)
    """Longest description of how one document differs."""
    note_tokens: int = Field(default=256, ge=1)
    """Longest summary of a user."""


@dataclass(frozen=True)
class Contrast:
    """A past document of the user and what it is compared with."""

    own: Document
    others: tuple[Document, ...]
    """By others on the same item, by (timestamp, user, id)."""


class Dpl(Method):
    """Differences to other users, which the model describes and sums up, beside past reviews retrieved by BM25.

    Qiu et al., Findings of ACL 2025. Where its public code does otherwise:
    - it takes peers' reviews of any time, later ones and others' targets included; here they are earlier than the
      target and open to methods;
    - every user must have k reviews with enough peers; here any number will do, none included;
    - past reviews and differences stand in order of rank, peers in that of their clusters' numbers; here past reviews
      and differences stand newest first, peers oldest first;
    - prompts show everything in full and answers may take 2,048 tokens; here prompts keep to the run's budget and
      notes to `difference_tokens` and `note_tokens`;
    - past reviews, summary and target stand in one message; here past reviews are turns, as in rag, so that the two
      differ by the summary alone. The summary is asked for in the words of intsum, for the same reason;
    - vectors are those of gte-Qwen2-1.5B-instruct; here of the run's encoder.
    """

    name = "dpl"
    version = "2"
    Config = DplConfig
    about: ClassVar[About] = About(
        "Qiu, Findings of ACL",
        2025,
        "https://arxiv.org/abs/2503.02450",
        stages=(
            Stage("difference", "up to 8 a target"),
            Stage("summary", "1 a target"),
            Stage(FINAL_STAGE, "1 a target"),
        ),
    )
    config: DplConfig

    def wants_encoder(self) -> bool:
        return self.config.k > 0

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, documents: Sequence[Document], note: str) -> list[Message]:
            return conversation(ctx.task, example, documents, note=note)

        past = retrieve(examples, self.config.k, "bm25", ctx)
        notes = self._summaries(examples, past, self._differences(examples, ctx), ctx)
        return [
            ctx.request(example, fit_noted(build, example, documents, note, ctx).messages)
            for example, documents, note in zip(examples, past, notes, strict=True)
        ]

    def _differences(self, examples: Sequence[Example], ctx: Context) -> list[list[Document]]:
        """For each example the documents that were compared, newest first, each with what was noted as its text."""
        found = contrasts(examples, ctx, self.config)
        subjects: list[Example] = []
        asked: dict[str, Contrast] = {}
        for example, several in zip(examples, found, strict=True):
            for contrast in several:
                subjects.append(part(example, contrast.own.id))
                asked[subjects[-1].id] = contrast

        def build(subject: Example, inner: Context) -> Sequence[Message]:
            return difference_prompt(asked[subject.id], inner)

        notes = iter(write_notes(subjects, build, ctx, "difference", self.config.difference_tokens))
        told = [[replace(contrast.own, text=next(notes)) for contrast in several] for several in found]
        return [[document for document in several if document.text] for several in told]  # a call may have failed

    def _summaries(
        self,
        examples: Sequence[Example],
        past: Sequence[Sequence[Document]],
        differences: Sequence[Sequence[Document]],
        ctx: Context,
    ) -> list[str]:
        known = {e.id: pair for e, pair in zip(examples, zip(differences, past, strict=True), strict=True)}

        def build(example: Example, inner: Context) -> Sequence[Message] | None:
            return summary_prompt(example, *known[example.id], inner)

        return write_notes(examples, build, ctx, "summary", self.config.note_tokens)


# -- what is compared -------------------------------------------------------------------------------------------------


def contrasts(examples: Sequence[Example], ctx: Context, config: DplConfig) -> list[list[Contrast]]:
    """For each example up to k of its past documents, newest first, with the peers that they are compared with.

    BM25 ranks those with enough peers among themselves, so that words are as rare as they are there. A document that
    all of its peers repeat has nothing to be compared with and is left out. The encoder is called once, with each
    distinct text once.
    """
    from sklearn.cluster import KMeans  # noqa: F401 - its threads can be limited once they are there
    from threadpoolctl import threadpool_limits

    chosen = retrieve([_with_peers(example, ctx, config.min_peers) for example in examples], config.k, "bm25", ctx)
    groups = [
        [[own, *_peers(own, example, ctx)] for own in documents]
        for example, documents in zip(examples, chosen, strict=True)
    ]
    vectors = _vectors(sorted({d.text for several in groups for group in several for d in group}), ctx)
    with threadpool_limits(1):  # a sum over threads depends on their number
        found = [[_contrast(group, vectors, config) for group in several] for several in groups]
    return [[contrast for contrast in several if contrast.others] for several in found]


def _peers(document: Document, example: Example, ctx: Context) -> list[Document]:
    return ctx.population.peers(document, example.user_id, example.timestamp)


def _with_peers(example: Example, ctx: Context, least: int) -> Example:
    """The example with those of its past documents alone that have at least so many peers."""
    return replace(example, history=tuple(d for d in example.history if len(_peers(d, example, ctx)) >= least))


def _vectors(texts: Sequence[str], ctx: Context) -> dict[str, NDArray[np.float32]]:
    """Text -> its vector (d,)."""
    if not texts:
        return {}
    with ctx.meter.phase("embed"):
        return dict(zip(texts, ctx.encoder.encode(texts, progress=True), strict=True))


def _contrast(group: Sequence[Document], vectors: Mapping[str, NDArray[np.float32]], config: DplConfig) -> Contrast:
    """The first document of a group beside those of the others that stand for their clusters."""
    import numpy as np

    rows = np.stack([vectors[document.text] for document in group]).astype(np.float64)
    nearest = representatives(rows, config.clusters, config.cluster_seed)
    return Contrast(group[0], tuple(group[row] for row in nearest))


def representatives(vectors: NDArray[np.float64], clusters: int, seed: int) -> list[int]:
    """The rows of `vectors` (documents, d) that stand for the clusters without row 0, in ascending order.

    One k-means run (k-means++, scikit-learn's defaults) over all rows, with fewer clusters where fewer rows are
    different. Of each cluster but that of row 0, the own document, the row nearest the cluster's centre (Euclidean) is
    taken, the first of equally near ones (within 1e-6; vectors are of unit length).
    """
    import numpy as np
    from sklearn.cluster import KMeans

    count = min(clusters, len(np.unique(vectors, axis=0)))
    fitted = KMeans(count, n_init=1, random_state=seed).fit(vectors)
    nearest = []
    for label in sorted(set(fitted.labels_.tolist()) - {int(fitted.labels_[0])}):
        members = np.flatnonzero(fitted.labels_ == label)
        distances = np.linalg.norm(vectors[members] - fitted.cluster_centers_[label], axis=1)
        nearest.append(int(members[np.argmax(distances <= distances.min() + _TIE)]))
    return sorted(nearest)


# -- prompts ----------------------------------------------------------------------------------------------------------


def difference_prompt(contrast: Contrast, ctx: Context) -> Sequence[Message]:
    """Asks how the user's document differs from the others: the item, the user's rating, title and text, then theirs.

    Over budget all texts are cut to one length. Raises UsageError if not even their beginnings fit.
    """
    task = ctx.task
    lead = f"One user and some others wrote {task.noun}s of the same item."
    ask = (
        f"How does the user's {task.noun} differ from the others? Compare\n"
        "- writing style: the words and how sentences are built;\n"
        "- emotional style: the tone, be it positive, negative or neutral;\n"
        "- semantic style: how much is told in how many words, and how the thoughts hang together.\n"
        "Answer with the differences alone, in at most six sentences."
    )

    def build(documents: Sequence[Document]) -> list[Message]:
        own, *others = documents
        parts = [lead, render_fields(task, own, of_item=True), _written(task, own, f"The user's {task.noun}")]
        parts += [_written(task, other, f"Other {task.noun} {number}") for number, other in enumerate(others, 1)]
        return [Message("user", "\n\n".join(text for text in (*parts, ask) if text))]

    what = f"{contrast.own.id}: comparing it with {len(contrast.others)} others"
    return fit_texts(build, [contrast.own, *contrast.others], ctx, what)


def _written(task: Task, document: Document, called: str) -> str:
    """What a user made of the item, without the item itself."""
    lines = (called, render_fields(task, document, of_item=False), f"{task.target_label}: {document.text}")
    return "\n".join(line for line in lines if line)


def summary_prompt(
    example: Example, differences: Sequence[Document], past: Sequence[Document], ctx: Context
) -> Sequence[Message] | None:
    """Asks for a summary of the user from differences (items, and what was noted as the text) and past documents.

    Both come newest first. None where there is neither. Over budget the oldest past documents go first, and then the
    oldest differences: those are what the method is about.
    """
    if not differences and not past:
        return None
    task, noun = ctx.task, ctx.task.noun

    def build(noted: Sequence[Document], shown: Sequence[Document]) -> list[Message]:
        parts = [f"One user wrote these {noun}s."] if shown else []
        if noted:
            parts = [f"These notes tell how {noun}s of one user differ from those of other users on the same items."]
            parts += [_difference(task, document, number) for number, document in enumerate(noted, 1)]
            parts += [f"The same user wrote these {noun}s."] if shown else []
        parts += [render_documents(task, shown, f"Past {noun}"), describe(task)]
        return [Message("user", "\n\n".join(part for part in parts if part))]

    if differences and ctx.engine.count_tokens(build(differences, [])) > ctx.max_prompt_tokens:
        fitted = fit_prompt(lambda _, kept: build(kept, []), example, differences, ctx)
        return fitted.messages if fitted.documents else None
    fitted = fit_prompt(lambda _, kept: build(differences, kept), example, past, ctx)
    return fitted.messages if differences or fitted.documents else None


def _difference(task: Task, document: Document, number: int) -> str:
    lines = (f"Note {number}", render_fields(task, document, of_item=True), f"Differences: {document.text}")
    return "\n".join(line for line in lines if line)
