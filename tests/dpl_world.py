"""dpl on few users and on planted ones: what its test files share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from method_world import World, context, world

from bench.data.population import Population
from bench.data.split import Dataset
from bench.encoders import HashEncoder
from bench.method import Context
from bench.testing import tiny_dataset
from bench.types import Example, Generation, Request
from methods.dpl import Dpl, DplConfig, contrasts

__all__ = ["ENCODER", "Quick", "Stages", "around", "asked", "chosen", "note", "planted", "small"]


class Quick(HashEncoder):
    """The hash encoder with a memory: words and texts come up again and again."""

    def __init__(self) -> None:
        super().__init__(16)
        self.words: dict[str, Any] = {}
        self.texts: dict[str, Any] = {}

    def _direction(self, word: str) -> Any:
        if word not in self.words:
            self.words[word] = super()._direction(word)
        return self.words[word]

    def encode(self, texts: Sequence[str], progress: bool = False) -> Any:
        for text in texts:
            if text not in self.texts:
                self.texts[text] = super().encode([text])[0]
        return np.stack([self.texts[text] for text in texts])


ENCODER = Quick()


def around(population: Population, **changes: Any) -> Context:
    return context(population, **{"encoder_or_none": ENCODER, **changes})


@pytest.fixture(scope="module")
def small() -> World:
    """Nine users, so that most reviews have at least four peers before a target, and some have not."""
    return world(users=9, history=7)


@pytest.fixture(scope="module")
def planted() -> Dataset:
    return tiny_dataset(users=20, items=24)


class Stages:
    """Answers every question with a note that names it, and remembers what was asked."""

    def __init__(self, fails: str = "nobody", stage: str = "") -> None:
        self.asked: dict[str, list[Request]] = {"difference": [], "summary": []}
        self.fails, self.stage = fails, stage

    def run(self, requests: Sequence[Request], stage: str) -> list[Generation]:
        self.asked[stage].extend(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Generation:
        if self.fails in request.example_id and self.stage in ("", request.stage):
            return Generation("", 0, 0, "error", error="out of memory")
        return Generation(note(request.stage, request.example_id), 3, 3, "stop")


def note(stage: str, of: str) -> str:
    return f"[{stage} of {of}]"


def asked(examples: Sequence[Example], ctx: Context, **config: Any) -> tuple[list[Request], Stages]:
    stages = Stages()
    return Dpl(DplConfig(**config)).requests(examples, replace(ctx, stage_runner=stages.run)), stages


def chosen(examples: Sequence[Example], ctx: Context, **config: Any) -> list[list[tuple[str, list[str]]]]:
    found = contrasts(examples, ctx, DplConfig(**config))
    return [[(c.own.id, [other.id for other in c.others]) for c in several] for several in found]
