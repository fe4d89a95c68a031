"""One adapter a user, on top of one for all (Tan et al., EMNLP 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bench.errors import UsageError
from bench.files import file_digest
from bench.keys import request_seed
from bench.method import About, Context, Method, Stage, TrainingPlan
from bench.notes import Scope, subject
from bench.training import TrainingConfig, build_rows
from bench.types import Capability, Example, LabeledSplit, Request
from methods.lora import Lora, LoraConfig

if TYPE_CHECKING:
    from bench.engines.base import LanguageModel
    from bench.training.users import LowRank, UserTask


class OppuConfig(LoraConfig):
    """Knobs of oppu: those of lora, for the adapter of all users, and those of the users' own."""

    n_history: int = Field(default=0, ge=0)
    """Most recent past documents in every prompt, training rows of users included: what stood before the row's
    document. 0, as in the public code, leaves all that is known of a user to the adapter; 8 shares the fit of lora."""
    scope: Scope = "user"
    """user: one adapter a user, from what is open of them before all validation and test targets, used for all of their
    targets; target: one for each target, from everything before it."""
    user_rows: int | None = Field(default=None, ge=1)
    """Most past documents that a user's adapter is trained on, the latest; none means all."""
    user_r: int = Field(default=8, ge=1)
    """Rank of a user's update."""
    user_alpha: float = 8.0
    """A user's update is scaled by user_alpha / user_r."""
    user_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get a user's update, or ["all-linear"]."""
    user_epochs: int = Field(default=2, ge=1)
    """Passes over a user's rows."""
    user_lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of a user's AdamW; linear warm-up, then linear decay to zero."""
    user_batch_size: int = Field(default=4, ge=1)
    """Rows of a user's optimizer step. The public code takes 16, of users with hundreds of rows."""
    user_weight_decay: float = Field(default=0.01, ge=0)
    """Decay of a user's AdamW."""
    user_warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of a user's steps spent warming up."""
    user_max_grad_norm: float = Field(default=0.3, gt=0)
    """A user's gradients are scaled down to this norm."""
    users_together: int = Field(default=0, ge=0)
    """Users trained side by side; a killed run goes on with the next so many. 0 chooses 8 on a CPU, 32 on an
    accelerator."""

    def user_training(self) -> TrainingConfig:
        """How a user's adapter is trained."""
        return TrainingConfig(
            epochs=self.user_epochs,
            lr=self.user_lr,
            weight_decay=self.user_weight_decay,
            warmup=self.user_warmup,
            batch_size=self.user_batch_size,
            max_grad_norm=self.user_max_grad_norm,
            batch_tokens=self.batch_tokens,
            max_target_tokens=self.max_target_tokens,
            gradient_checkpointing=self.gradient_checkpointing,
            compile=self.compile,
        )


class Oppu(Lora):
    """One adapter a user, trained on the user's history, on top of one adapter for all users.

    The shared adapter is that of `lora`, and stays below the users' own (the public code merges it, which is the same
    up to rounding). A user's adapter is trained before generating, as fitting sees no test user, on rows (fields of a
    past document -> its text). Departures from the public code: each user is trained on their own documents alone (the
    public list grows over users), many users at a time (see `bench.training.users`), and without dropout, whose noise
    would depend on who is trained together. A user without history gets the shared adapter alone.
    """

    name = "oppu"
    about = About(
        "Tan, EMNLP",
        2024,
        "https://aclanthology.org/2024.emnlp-main.372/",
        trains="one adapter, then one for each test user",
        stages=(Stage("generate", "1 a target"),),
    )
    Config = OppuConfig
    needs: ClassVar[frozenset[Capability]] = Lora.needs | {Capability.USER_ADAPTER}
    fit_of: ClassVar[type[Method] | None] = Lora
    config: OppuConfig

    def fit_config(self) -> dict[str, Any]:
        knobs = super().fit_config()
        return {knob: knobs[knob] for knob in LoraConfig().model_dump(mode="json")}

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        smaller = (
            f"--train-limit, --set {self.name}.epochs=1; users' adapters with --limit, --set {self.name}.user_rows=8"
        )
        return replace(super().training_plan(train, dev, ctx), smaller=smaller)

    # -- users ------------------------------------------------------------------------------------------------------

    def _shape(self) -> LowRank:
        from bench.training.users import LowRank

        return LowRank(self.config.user_r, self.config.user_alpha, self.config.user_modules)

    def _task(self, of: Example, lm: LanguageModel, ctx: Context) -> UserTask:
        """What the adapter of a subject (see `bench.notes.subject`) is trained on: its history and nothing else."""
        from bench.training.users import UserTask

        past = [
            Example(d.id, d.user_id, d.fields, of.history[:i], d.item_id, d.timestamp) for i, d in enumerate(of.history)
        ][-(self.config.user_rows or 0) :]
        texts = {document.id: document.text for document in of.history}
        prompts = [self.prompt(example, ctx) for example in past]
        rows = build_rows(lm, past, prompts, texts, self.config.max_target_tokens)
        return UserTask(of.id, tuple(rows), request_seed(ctx.seed, of.id, "oppu"))

    def user_adapters(self, subjects: Sequence[Example], ctx: Context) -> Mapping[str, Path]:
        """Subject's id -> file of its adapter, trained now if it is not in `ctx.kept`; none for one without history."""
        from bench.training.users import user_adapters

        able = {one.id: one for one in subjects if one.history}
        if not able:
            return {}
        if ctx.kept is None or self._folder is None:
            raise UsageError(
                f"{self.name} trains adapters of users within a run, where ctx.kept says where to keep them"
            )
        lm = ctx.engine.language_model(str(self._folder))
        below = {"engine": ctx.engine.identity(), "adapter": file_digest(self._folder / "adapter_model.safetensors")}
        together = self.config.users_together or (8 if lm.device.type == "cpu" else 32)
        tasks = [self._task(one, lm, ctx) for one in able.values()]
        config = self.config.user_training()
        found = user_adapters(lm, tasks, self._shape(), config, together, below, ctx.kept, self.name)
        ctx.meter.add("adapt", found.seconds, found.costs)
        return found.paths

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        shared = super().requests(examples, ctx)
        subjects = [subject(example, self.config.scope, ctx) for example in examples]
        own = self.user_adapters(subjects, ctx)
        return [
            replace(request, user_adapter=str(own[of.id]) if of.id in own else None)
            for request, of in zip(shared, subjects, strict=True)
        ]

    def card(self) -> Mapping[str, str]:
        told = super().card()
        weights = (
            f"{told['weights']} The adapters of single users, which `{self.name}` trains on top of it, are not in it."
        )
        return {**told, "weights": weights, "citation": f"{told['citation']}\n\n{_CITATION}"}


_CITATION = """Tan et al., *Democratizing Large Language Models via Personalized Parameter-Efficient Fine-tuning*, EMNLP
2024, arXiv 2402.04401."""
