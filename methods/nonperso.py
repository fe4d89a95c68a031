"""The baseline without a person: the target alone."""

from __future__ import annotations

from collections.abc import Sequence

from bench.method import About, Context, Method
from bench.prompts import conversation, fit_prompt
from bench.types import Document, Example, Message, Request


class NonPerso(Method):
    """No personalisation: item, rating and review title, no history."""

    name = "nonperso"
    about = About("baseline of every paper")

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, _: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, example, [])

        return [ctx.request(e, fit_prompt(build, e, [], ctx).messages) for e in examples]
