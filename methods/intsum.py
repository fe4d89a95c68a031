"""A summary of the user's past in place of the past itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.method import FINAL_STAGE, About, Context, Method, Stage
from bench.notes import NoteConfig, subject, write_notes
from bench.prompts import conversation, fit_noted, fit_prompt, render_documents
from bench.retrieval import newest_first
from bench.types import Document, Example, Message, Request, Task


def describe(task: Task) -> str:
    """What a model is asked for that summarises a user: one wording for all methods with summaries."""
    return (
        f"In a few sentences, describe how this user writes {task.noun}s: what they pay attention to, how they judge, "
        "their tone, how long they write, and words they like. Answer with the description alone."
    )


def summary_prompt(example: Example, ctx: Context) -> Sequence[Message] | None:
    """The prompt for a summary of everything that the example's user wrote, newest first; None without history."""
    if not example.history:
        return None
    task = ctx.task

    def build(_: Example, documents: Sequence[Document]) -> list[Message]:
        past = render_documents(task, documents, f"Past {task.noun}")
        return [Message("user", f"One user wrote these {task.noun}s.\n\n{past}\n\n{describe(task)}")]

    return fit_prompt(build, example, newest_first(example.history), ctx).messages


class IntSum(Method):
    """A summary of the user's past, written by the model, before the target; no past review is shown."""

    name = "intsum"
    Config = NoteConfig
    about: ClassVar[About] = About(
        "Richardson, arXiv 2310.20081",
        2023,
        "https://arxiv.org/abs/2310.20081",
        stages=(Stage("summary", "1 a user"), Stage(FINAL_STAGE, "1 a target")),
    )
    config: NoteConfig

    def notes(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        """What is known of each example's user."""
        subjects = [subject(example, self.config.scope, ctx) for example in examples]
        return write_notes(subjects, summary_prompt, ctx, "summary", self.config.note_tokens)

    def shown(self, examples: Sequence[Example], ctx: Context) -> list[list[Document]]:
        """The past documents that stand in each example's prompt, newest first."""
        return [[] for _ in examples]

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, documents: Sequence[Document], note: str) -> list[Message]:
            return conversation(ctx.task, example, documents, note=note)

        known = zip(examples, self.shown(examples, ctx), self.notes(examples, ctx), strict=True)
        return [ctx.request(e, fit_noted(build, e, documents, note, ctx).messages) for e, documents, note in known]
