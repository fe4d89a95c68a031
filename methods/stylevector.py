"""A user's style as a direction in the model's hidden states, added while it writes (Zhang et al., ACL 2025).

s(u) = mean over past reviews of h(x + what the user wrote) - h(x + what the model writes), where x is the prompt
without personalisation and h the residual stream after one layer at the last token (their section 3). While it writes,
alpha * s(u) is added after that layer. Nothing is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from bench.config import Config
from bench.errors import UsageError
from bench.method import FINAL_STAGE, About, Context, Method, Stage
from bench.notes import Scope, subject, write_notes
from bench.prompts import conversation, fit_prompt
from bench.retrieval import newest_first
from bench.types import Capability, Document, Example, Message, Request, Steering

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bench.engines.base import Engine

    Floats = NDArray[np.float32]


_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|[。！？]+[」』”]*""")
"""The end of a sentence."""


class StyleVectorConfig(Config):
    """Knobs of stylevector."""

    layer: float = Field(default=0.5, gt=0)
    """Layer that is read and changed: below 1 a share of the model's depth (0.5: the middle), from 1 on its number."""
    alpha: float = Field(default=0.1, allow_inf_nan=False)
    """What the style vector is multiplied with before it is added; 0 is the prompt alone. Worth tuning for each model:
    docs/methods.md has what a small one wrote under several."""
    n_history: int = Field(default=8, ge=0)
    """Most recent past documents that the style vector is the mean of."""
    scope: Scope = "user"
    """user: one vector a user, from what is open of them before all validation and test targets, used for all of their
    targets; target: one for each target, from everything before it."""
    positions: Literal["generated", "all"] = "generated"
    """Where the vector is added. generated: wherever a token of the answer is drawn from, which is the prompt's last
    position and every new one; all: the whole prompt too."""
    shown: int = Field(default=0, ge=0)
    """Most recent past documents that stand in the prompt besides."""
    generic_tokens: int = Field(default=256, ge=1)
    """Longest text that the model writes to compare with."""

    @field_validator("layer")
    @classmethod
    def _whole(cls, layer: float) -> float:
        if layer >= 1 and layer != int(layer):
            raise ValueError("must be a whole number, or a share of the depth below 1")
        return layer


class StyleVector(Method):
    """The user's style as a vector added to hidden states while the model writes; nothing is trained."""

    name = "stylevector"
    about = About(
        "Zhang, ACL",
        2025,
        "https://aclanthology.org/2025.acl-long.353/",
        stages=(Stage("generic", "up to 8 a user"), Stage(FINAL_STAGE, "1 a target")),
    )
    Config = StyleVectorConfig
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT, Capability.HIDDEN})
    config: StyleVectorConfig

    def preflight(self, engine: Engine) -> None:
        self._layer(engine)

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        layer = self._layer(ctx.engine)
        pasts = [self._past(example, ctx) for example in examples]
        differences = self._differences(pasts, layer, ctx)
        return [
            ctx.request(example, self._prompt(example, ctx), steering=self._steering(past, differences, layer))
            for example, past in zip(examples, pasts, strict=True)
        ]

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        self._generic(self._past(example, ctx), ctx)
        return self._prompt(example, ctx)

    def _layer(self, engine: Engine) -> int:
        """The layer's number. Raises UsageError if the model is not that deep."""
        wanted, depth = self.config.layer, engine.depth
        layer = int(wanted) if wanted >= 1 else max(1, round(wanted * depth))
        if layer > depth:
            raise UsageError(
                f"stylevector.layer={layer} was asked for, but the model has {depth} layers; give a number up to that "
                "or a share of the depth below 1"
            )
        return layer

    def _past(self, example: Example, ctx: Context) -> list[Document]:
        """The documents whose style counts, newest first; none where the vector would count for nothing."""
        history = subject(example, self.config.scope, ctx).history
        return newest_first(history)[: self.config.n_history] if self.config.alpha else []

    def _prompt(self, example: Example, ctx: Context) -> tuple[Message, ...]:
        def build(target: Example, shown: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, target, shown)

        return fit_prompt(build, example, newest_first(example.history)[: self.config.shown], ctx).messages

    # -- vectors ------------------------------------------------------------------------------------------------

    def _generic(self, documents: Sequence[Document], ctx: Context) -> list[tuple[Sequence[Message], str]]:
        """For each document the prompt that asks for it without its user, and what the model writes then.

        Empty where it failed. A document is asked for once, whoever's target it serves: the answer is a matter of the
        document alone. What stops in mid-sentence, as a text of `generic_tokens` does, is cut back to its last whole
        one: the state at the last token tells the end of a sentence from its middle more than it tells style.
        """
        prompts: dict[str, Sequence[Message]] = {}

        def build(asked: Example, inner: Context) -> Sequence[Message]:
            prompts[asked.id] = fit_prompt(lambda e, _: conversation(ctx.task, e, []), asked, [], inner).messages
            return prompts[asked.id]

        texts = write_notes([_asked(d) for d in documents], build, ctx, "generic", self.config.generic_tokens)
        return [(prompts[document.id], whole_sentences(text)) for document, text in zip(documents, texts, strict=True)]

    def _differences(self, pasts: Sequence[Sequence[Document]], layer: int, ctx: Context) -> Mapping[str, Floats]:
        """Document id -> h(x + its text) - h(x + generic text), without those that lack one of the two."""
        documents = list({document.id: document for past in pasts for document in past}.values())
        pairs = [
            (document, prompt, text)
            for document, (prompt, text) in zip(documents, self._generic(documents, ctx), strict=True)
            if text and document.text.strip()
        ]
        if not pairs:
            return {}
        conversations = [
            [*prompt, Message("assistant", answer)]
            for document, prompt, text in pairs
            for answer in (document.text.strip(), text)
        ]
        with ctx.meter.phase("hidden"):
            states = ctx.engine.hidden_states(conversations, layer, progress=True)
        return {pair[0].id: states[2 * i] - states[2 * i + 1] for i, pair in enumerate(pairs)}

    def _steering(self, past: Sequence[Document], differences: Mapping[str, Floats], layer: int) -> Steering | None:
        """What is added for a user; None where nothing is known of them."""
        import numpy as np

        known = [differences[document.id] for document in past if document.id in differences]
        if not known:
            return None
        vector = np.mean(known, axis=0, keepdims=True, dtype=np.float32)
        return Steering(layer, self.config.alpha * vector, self.config.positions == "all")


def whole_sentences(text: str) -> str:
    """A text up to the end of its last sentence; all of it where none ends."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _asked(document: Document) -> Example:
    """A past document as something to write."""
    return Example(document.id, document.user_id, document.fields, (), document.item_id, document.timestamp)
