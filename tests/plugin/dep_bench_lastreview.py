"""A method as anybody can add one: a class, and an entry point in pyproject.toml that names it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.method import Context, Method
from bench.prompts import conversation, fit_prompt
from bench.types import Document, Example, Message, Request


class LastReview(Method):
    """The user's newest review as the only example, whatever it is about."""

    name = "lastreview"

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, shown: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, example, shown)

        return [ctx.request(e, fit_prompt(build, e, e.history[-1:], ctx).messages) for e in examples]
