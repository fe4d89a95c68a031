"""A small method with ablations, registered for the time of a test like any installed one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from bench import registry
from bench.config import Config
from bench.method import Context, Method, TrainingPlan, Variant
from bench.prompts import conversation, fit_prompt
from bench.retrieval import newest_first
from bench.types import Document, Example, LabeledSplit, Message, Request


class TapsConfig(Config):
    """Knobs of Taps."""

    n: int = Field(default=4, ge=1)
    """Past reviews in the prompt."""
    lesson: str = "plain"
    """What is learned."""
    whisper: bool = False
    """Only generating knows of it."""


class Taps(Method):
    """Past reviews and a lesson."""

    name = "taps"
    Config = TapsConfig
    config: TapsConfig
    fits: ClassVar[list[str]] = []
    """Lessons learned, in order."""
    lesson = "nothing"

    def ablations(self) -> Mapping[str, Sequence[Variant]]:
        sizes = [Variant(f"{n} reviews", {"n": n}) for n in (1, 2, 4, 8)]
        return {
            "controls": [
                Variant("no lesson", {"lesson": "none"}),
                Variant("whispered", {"whisper": True}),
                *sizes,
                Variant("same reviews", {"k": self.config.n}, "rag"),
            ],
            "sizes": sizes,
        }

    def fit_config(self) -> dict[str, Any]:
        return {"lesson": self.config.lesson}

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        return TrainingPlan(len(train), 100, 1, "--train-limit")

    def fit(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        self.fits.append(self.config.lesson)
        self.lesson = f"{self.config.lesson} lesson of {len(train)} texts, seed {ctx.seed}"

    def save(self, folder: Path) -> None:
        (folder / "lesson.json").write_text(json.dumps(self.lesson))

    def load(self, folder: Path, ctx: Context) -> None:
        self.lesson = json.loads((folder / "lesson.json").read_text())

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        def build(example: Example, shown: Sequence[Document]) -> list[Message]:
            return [Message("system", f"{self.lesson}, {self.config.whisper}"), *conversation(ctx.task, example, shown)]

        return [
            ctx.request(e, fit_prompt(build, e, newest_first(e.history)[: self.config.n], ctx).messages)
            for e in examples
        ]


def register(patch: pytest.MonkeyPatch, *methods: type[Method]) -> None:
    """Makes methods known beside those that are installed."""
    points = registry._points
    more = {m.name: EntryPoint(m.name, f"{m.__module__}:{m.__qualname__}", "bench.methods") for m in methods}

    def with_more(group: str) -> dict[str, EntryPoint]:
        return {**points(group), **(more if group == "bench.methods" else {})}

    patch.setattr(registry, "_points", with_more)
