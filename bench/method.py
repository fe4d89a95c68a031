"""The one interface: what a method is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.config import Config as BaseConfig
from bench.errors import UsageError
from bench.keys import request_seed
from bench.meter import Meter
from bench.types import (
    Capability,
    Example,
    FloatMatrix,
    Generation,
    LabeledSplit,
    Message,
    Request,
    Sampling,
    Steering,
    Task,
    Truth,
)

if TYPE_CHECKING:
    from bench.data.population import Population
    from bench.encoders import Encoder
    from bench.engines.base import Engine

HARNESS_VERSION = "4"
"""Part of every key: raise it when a change to shared code (prompts, retrieval, training) changes outputs."""

EXPORT_CONFIG, EXPORT_SECTION, EXPORT_FORMAT = "config.json", "bench", 1
"""Of an export: its file of settings, the key in it for what is not the method's own, and the format of that, which
is raised when a reader of the old one would go wrong."""

FINAL_STAGE = "generate"
"""The stage whose text is the method's answer."""


@dataclass(frozen=True)
class Context:
    """Everything a method may touch besides the examples it is given."""

    task: Task
    population: Population
    """The only door to other users."""
    engine: Engine
    seed: int
    sampling: Sampling
    max_prompt_tokens: int
    meter: Meter
    encoder_or_none: Encoder | None = None
    truth: Truth | None = None
    """Only for methods that need Capability.TRUTH."""
    stage_runner: Callable[[Sequence[Request], str], list[Generation]] | None = None
    work: Path | None = None
    """A folder that outlives a kill, where `fit` may keep what it wants to go on from; None outside a run."""
    kept: Path | None = None
    """A folder that outlives a kill, for what `requests` computes at length and would compute again; None outside a
    run. Runs that share a fit share it, so what lies there must be named by everything that it depends on."""
    tracker: str = "none"
    """Where `fit` shows its losses besides the log (see `bench.trackers`)."""

    @property
    def encoder(self) -> Encoder:
        """The text encoder. Raises UsageError for a method that did not say it wants one."""
        if self.encoder_or_none is None:
            raise UsageError("this method uses ctx.encoder: let its wants_encoder() return True")
        return self.encoder_or_none

    def request(
        self,
        example: Example,
        messages: Sequence[Message],
        *,
        stage: str = FINAL_STAGE,
        soft: Mapping[str, FloatMatrix] | None = None,
        adapter: str | None = None,
        steering: Steering | None = None,
        user_adapter: str | None = None,
    ) -> Request:
        """A request with the run's sampling and the seed that belongs to this example and stage."""
        seed = request_seed(self.seed, example.id, stage)
        return Request(
            example.id, stage, tuple(messages), self.sampling, seed, soft or {}, adapter, steering, user_adapter
        )

    def answering(self, tokens: int) -> Context:
        """The same for a stage whose answers take at most `tokens`: its prompts leave the model room for them."""
        room = self.engine.context_length - tokens
        sampling = replace(self.sampling, max_new_tokens=tokens)
        return replace(self, sampling=sampling, max_prompt_tokens=min(self.max_prompt_tokens, room))

    def generate(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        """Runs an intermediate stage over all examples at once: batched and cached by stage."""
        if self.stage_runner is None:
            raise UsageError("intermediate stages run in requests(), not in fit(): a fit's key does not hold sampling")
        return self.stage_runner(requests, stage)


@dataclass(frozen=True)
class TrainingPlan:
    """What `fit` is about to do, said before it starts."""

    rows: int
    tokens: int
    """Tokens of one epoch, prompts and targets together."""
    epochs: int
    smaller: str
    """The flags that make it smaller."""
    texts: Sequence[str] = ()
    """Texts to embed first, those that are not in the encoder's cache."""


@dataclass(frozen=True)
class Variant:
    """One row of an ablation: this method, or another one beside it, under changed knobs."""

    name: str
    """As the table calls it ("history only")."""
    changes: Mapping[str, Any]
    """Knobs to set on top of what the user set."""
    method: str | None = None
    """Registry name of another method, whose knobs `changes` then are; None for this one."""


@dataclass(frozen=True)
class DiagnosisOptions:
    """How much of what is costly `diagnose` may do."""

    generate: int = 16
    """Examples whose texts are written anew under changes; 0 for none."""
    probe_users: int | None = None
    """Users whose vectors are probed for known traits; None for all, 0 for none."""


@dataclass(frozen=True)
class Section:
    """A table of a diagnosis."""

    name: str
    reading: str
    """What is measured and how to read it, in a line or two."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Column -> text, number, None, or {"mean", "low", "high"} with the ends of a 95 % interval."""
    note: str = ""
    """Why there are no rows, or what to beware of."""


Diagnosis = Sequence[Section]


@dataclass(frozen=True)
class Stage:
    """One kind of call of the language model."""

    name: str
    """As `ctx.generate` and records call it."""
    calls: str
    """How many: "1 a target", "1 a user", "up to 8 a target"."""


@dataclass(frozen=True)
class About:
    """Where a method comes from and what it costs: what `bench list methods` and `docs/methods.md` tell of it."""

    paper: str = ""
    """First author and where it appeared, without the year."""
    year: int | None = None
    url: str = ""
    trains: str = "nothing"
    """What `fit` learns."""
    stages: Sequence[Stage] = field(default=(Stage(FINAL_STAGE, "1 a target"),))
    """All calls of the model in their order; empty for a method that asks none."""


class Method(ABC):
    """One way to write as a user would. The first line of a method's docstring is its line in `bench list methods`."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    """Part of every key: raise it when outputs change."""
    Config: ClassVar[type[BaseConfig]] = BaseConfig
    """Every knob, typed, with its default and meaning."""
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT})
    """Checked against engine and dataset before anything loads."""
    about: ClassVar[About] = About()
    """Its source and its costs."""
    fit_of: ClassVar[type[Method] | None] = None
    """Another method whose `fit` this one has, and whose knobs `fit_config` gives: runs of both then share one fit."""

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()

    def wants_encoder(self) -> bool:
        """Whether `ctx.encoder` will be used under this config."""
        return False

    def ablations(self) -> Mapping[str, Sequence[Variant]]:
        """What `run --ablate NAME` adds: name -> variants, each compared with this method as configured."""
        return {}

    @classmethod
    def learner(cls) -> type[Method]:
        """The method under whose name and version the fit lies. `fit_of` is not inherited: subclasses may fit anew."""
        return cls.__dict__.get("fit_of") or cls

    def fit_config(self) -> dict[str, Any]:
        """The knobs that can change what `fit` learns; runs that agree in them share one fit. Default: all knobs."""
        return self.config.model_dump(mode="json")

    def diagnose(self, split: LabeledSplit, ctx: Context, options: DiagnosisOptions) -> Diagnosis:
        """What a fitted method can tell of its inside, section by section; see `bench diagnose`.

        `split` holds examples that were not trained on. `ctx.truth` is there where the dataset has one. Raises
        UsageError where there is nothing to tell.
        """
        raise UsageError(f"method {self.name!r} has nothing to diagnose")

    def card(self) -> Mapping[str, str]:
        """What the model card of an export says and only the method knows, as Markdown.

        Any of "weights" (what they hold), "use" (how to load the folder, in a few lines) and "citation".
        """
        return {}

    def preflight(self, engine: Engine) -> None:
        """Raises UsageError for knobs that cannot work with this engine: it is prepared, but nothing is loaded yet."""

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan | None:
        """Rows and tokens that `fit` will take, or None if there is nothing to learn."""
        return None

    def fit(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        """Learns from train, selects on dev. Default: nothing to learn."""

    def save(self, folder: Path) -> None:
        """Writes what `fit` learned (safetensors and JSON) into an existing folder."""

    def load(self, folder: Path, ctx: Context) -> None:
        """Reads what `save` wrote, in place of `fit`."""

    @abstractmethod
    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        """One request an example, in the same order."""

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        """The prompt of an example as a person would read it, with nothing fitted."""
        return self.requests([example], ctx)[0].messages

    def answer(self, examples: Sequence[Example], ctx: Context) -> list[str] | None:
        """Texts written without a language model, or None (the default) for a method that asks one."""
        return None

    def parse(self, example: Example, text: str) -> str:
        """The answer within the model's text."""
        return text.strip()
