"""What a user's adapter makes likelier, token by token (Bu et al., EMNLP 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from bench.method import About, Context, Method, Stage
from bench.types import Capability, Contrast, Example, Request
from methods.lora import Lora
from methods.oppu import Oppu, OppuConfig


class CopeConfig(OppuConfig):
    """Knobs of cope: those of oppu, and those of its decoding."""

    contrast: float = Field(default=0.1, ge=0)
    """The paper's alpha: how much the prediction without the user's adapter is held against a token. 0 turns contrast
    and cut off, which leaves oppu."""
    plausibility: float = Field(default=0.1, ge=0, le=1)
    """The paper's beta: tokens that the user's own model gives less than this share of its likeliest one are out."""


class Cope(Oppu):
    """Adapters of users as in oppu, set against the shared one at each token while writing (CoPe).

    A token's score is log p_user - contrast * log p_shared where p_user is at least plausibility times its maximum;
    other tokens are impossible. Temperature and top-p come after. It takes the fit and the users' adapters of `oppu`
    where the knobs agree. Left out, so that the decoding alone is what is measured: the paper trains users' adapters
    further by preference (DPO, beta 0.01, lr 5e-6, one epoch), each past text against the one of three samples of the
    shared model that the user's adapter raises least; and its repetition penalty. A user without history gets the
    shared adapter alone, uncontrasted.
    """

    name = "cope"
    about = About(
        "Bu, EMNLP",
        2025,
        "https://aclanthology.org/2025.emnlp-main.1723/",
        trains="as oppu, and shared with it",
        stages=(Stage("generate", "1 a target, each token from two predictions"),),
    )
    Config = CopeConfig
    needs: ClassVar[frozenset[Capability]] = Oppu.needs | {Capability.CONTRAST}
    fit_of: ClassVar[type[Method] | None] = Lora
    config: CopeConfig

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        requests = super().requests(examples, ctx)
        if not self.config.contrast:
            return requests
        contrast = Contrast(self.config.contrast, self.config.plausibility)
        return [replace(request, contrast=contrast) if request.user_adapter else request for request in requests]
