"""Long histories in blocks: a summary of summaries, or one that is carried from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bench.method import FINAL_STAGE, About, Context, Stage
from bench.notes import NoteConfig, part, subject, write_notes
from bench.prompts import fit_noted, fit_texts, render_documents
from bench.retrieval import newest_first
from bench.types import Document, Example, Message
from methods.intsum import IntSum, describe, summary_prompt


class LlmTrsrConfig(NoteConfig):
    """Knobs of llm-trsr."""

    paradigm: Literal["recurrent", "hierarchical"] = "recurrent"
    """recurrent: a summary is carried from block to block, oldest first, and rewritten by each; hierarchical: blocks
    are summarised alone, then their summaries are made into one."""
    block: int = Field(default=5, ge=1)
    """Past documents of a block."""
    n_history: int = Field(default=40, ge=1)
    """Most recent past documents that are summarised: each block costs a call, and recurrent ones wait for another."""


class LlmTrsr(IntSum):
    """The past in blocks of five, summarised block after block or block-wise and then together."""

    name = "llm-trsr"
    Config = LlmTrsrConfig
    about: ClassVar[About] = About(
        "Zheng, WWW",
        2024,
        "https://arxiv.org/abs/2403.13325",
        stages=(
            Stage("block", "1 a user and block (recurrent: the first one)"),
            Stage("update", "1 a user and later block (recurrent)"),
            Stage("merge", "1 a user (hierarchical)"),
            Stage(FINAL_STAGE, "1 a target"),
        ),
    )
    config: LlmTrsrConfig

    def notes(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        subjects = [subject(example, self.config.scope, ctx) for example in examples]
        if self.config.paradigm == "hierarchical":
            return self._hierarchical(subjects, ctx)
        return self._recurrent(subjects, ctx)

    def _blocks(self, example: Example) -> list[Example]:
        """The example once for each block of its latest history, oldest first."""
        recent, size = example.history[-self.config.n_history :], self.config.block
        starts = range(0, len(recent), size)
        return [_with_history(part(example, f"block {n}"), recent[s : s + size]) for n, s in enumerate(starts, 1)]

    def _hierarchical(self, subjects: Sequence[Example], ctx: Context) -> list[str]:
        blocks = [self._blocks(one) for one in subjects]
        flat = [block for several in blocks for block in several]
        written = iter(write_notes(flat, summary_prompt, ctx, "block", self.config.note_tokens))
        # By the object: a user's training and test targets have one name and different histories.
        notes = {id(one): [next(written) for _ in several] for one, several in zip(subjects, blocks, strict=True)}

        def build(example: Example, inner: Context) -> Sequence[Message] | None:
            known = [note for note in notes[id(example)] if note]
            return _merge_prompt(example, known, inner) if len(known) > 1 else None

        merged = write_notes(subjects, build, ctx, "merge", self.config.note_tokens)
        return [note or "".join(notes[id(one)][:1]) for note, one in zip(merged, subjects, strict=True)]

    def _recurrent(self, subjects: Sequence[Example], ctx: Context) -> list[str]:
        """One round a block: all users' first blocks at once, then all second ones, and so on."""
        blocks = [self._blocks(one) for one in subjects]
        notes = ["" for _ in subjects]
        for turn in range(max(map(len, blocks), default=0)):
            waiting = [i for i, several in enumerate(blocks) if turn < len(several)]
            before = {id(blocks[i][turn]): notes[i] for i in waiting}

            def build(example: Example, inner: Context, before: dict[int, str] = before) -> Sequence[Message] | None:
                return _update_prompt(example, before[id(example)], inner)

            stage = "update" if turn else "block"
            written = write_notes([blocks[i][turn] for i in waiting], build, ctx, stage, self.config.note_tokens)
            for i, note in zip(waiting, written, strict=True):
                notes[i] = note or notes[i]  # a call that failed takes nothing away
        return notes


def _with_history(example: Example, history: Sequence[Document]) -> Example:
    return Example(example.id, example.user_id, example.fields, tuple(history), example.item_id, example.timestamp)


def _merge_prompt(example: Example, notes: Sequence[str], ctx: Context) -> Sequence[Message]:
    noun = ctx.task.noun

    def build(documents: Sequence[Document]) -> list[Message]:
        lines = "\n\n".join(f"Note {number}: {document.text}" for number, document in enumerate(documents, 1))
        lead = f"These notes describe one user, each from other {noun}s that the user wrote, the earliest first."
        return [Message("user", f"{lead}\n\n{lines}\n\n{describe(ctx.task)}")]

    texts = [Document(f"note {number}", example.user_id, note, {}) for number, note in enumerate(notes)]
    return fit_texts(build, texts, ctx, f"{example.id}: merging {len(notes)} notes")


def _update_prompt(example: Example, known: str, ctx: Context) -> Sequence[Message] | None:
    """What rewrites a note under the next block; without a note, what writes the first one."""
    if not known:
        return summary_prompt(example, ctx)
    task = ctx.task

    def build(_: Example, documents: Sequence[Document], note: str) -> list[Message]:
        past = render_documents(task, documents, f"Later {task.noun}")
        lead = f"This was noted of one user:\n{note}\n\nThe user then wrote these {task.noun}s."
        return [Message("user", f"{lead}\n\n{past}\n\nRewrite the note so that it holds for all. {describe(task)}")]

    return fit_noted(build, example, newest_first(example.history), known, ctx).messages
