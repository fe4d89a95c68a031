"""The ceiling on planted data: the text of the user's true parameters, with fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.errors import UsageError
from bench.keys import request_seed
from bench.method import FINAL_STAGE, About, Context, Method
from bench.types import Capability, Example, Message, Request


class Oracle(Method):
    """What the user's true parameters would write (planted data only): a ceiling, not a rival."""

    name = "oracle"
    about = About(stages=())
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TRUTH})

    def answer(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        if ctx.truth is None:
            raise UsageError("method 'oracle' needs a dataset with a known truth, such as planted")
        return [ctx.truth.write(e.id, request_seed(ctx.seed, e.id, FINAL_STAGE)) for e in examples]

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return []

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return [Message("note", "asks no model: the data's own generator writes the text")]
