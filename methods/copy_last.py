"""A floor: the user's latest review again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.method import About, Context, Method
from bench.types import Capability, Example, Message, Request


class CopyLast(Method):
    """The user's latest review, word for word: what the metrics give to the right voice on the wrong item."""

    name = "copy-last"
    needs: ClassVar[frozenset[Capability]] = frozenset()
    about: ClassVar[About] = About(stages=())

    def answer(self, examples: Sequence[Example], ctx: Context) -> list[str]:
        return [example.history[-1].text if example.history else "" for example in examples]

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return []

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return [Message("note", "asks no model: " + (type(self).__doc__ or "").partition("\n")[0])]
