"""Small methods for the contract kit: two good ones, and many that each do one thing wrong."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.keys import text_digest
from bench.method import Context, Method
from bench.prompts import conversation
from bench.types import Capability, Example, LabeledSplit, Message, Request, slot


class Plain(Method):
    """Asks for the target and adds a word of its own."""

    name = "plain"

    def word(self, example: Example) -> str:
        return "please"

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return [self.request(example, ctx, self.word(example)) for example in examples]

    def request(self, example: Example, ctx: Context, word: str) -> Request:
        return ctx.request(example, [*conversation(ctx.task, example, []), Message("user", word)])


class Learns(Plain):
    """Learns how many texts there were."""

    name = "learns"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.learned: Any = None

    def learn(self, train: LabeledSplit) -> Any:
        return sorted(train.references)

    def fit(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        self.learned = self.learn(train)

    def save(self, folder: Path) -> None:
        (folder / "learned.json").write_text(json.dumps(self.learned))

    def load(self, folder: Path, ctx: Context) -> None:
        self.learned = json.loads((folder / "learned.json").read_text())

    def word(self, example: Example) -> str:
        return text_digest(str(self.learned))


class UserLeak(Plain):
    """Keeps the user it saw last."""

    last = "nobody"

    def word(self, example: Example) -> str:
        before, self.last = self.last, example.user_id
        return before


class CompanyLeak(Plain):
    """Shows each user the one before in the list."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        before = ["nobody", *(example.user_id for example in examples)]
        return [self.request(e, ctx, word) for e, word in zip(examples, before, strict=False)]


class BatchSize(Plain):
    """Counts its company."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return [self.request(e, ctx, f"one of {len(examples)}") for e in examples]


class EngineBatch(Plain):
    """Lets the engine's batches into its prompts."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        made = super().requests(examples, ctx)
        sizes = {i: len(batch) for batch in ctx.engine.plan(made) for i in batch}
        return [self.request(e, ctx, str(sizes[i])) for i, e in enumerate(examples)]


class Dice(Plain):
    """Draws a word."""

    def word(self, example: Example) -> str:
        return str(random.random())


class OwnSeed(Plain):
    """Draws its own seeds."""

    def request(self, example: Example, ctx: Context, word: str) -> Request:
        request = super().request(example, ctx, word)
        return Request(request.example_id, request.stage, request.messages, request.sampling, 7)


class Backwards(Plain):
    """Gives requests in another order."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return super().requests(examples, ctx)[::-1]


class Forgets(Plain):
    """Leaves out users without history."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return super().requests([e for e in examples if e.history], ctx)


class Crashes(Plain):
    """Needs a past review."""

    def word(self, example: Example) -> str:
        return example.history[-1].text[:20]


class Twice(Plain):
    """Asks for each example twice."""

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        return [request for request in super().requests(examples, ctx) for _ in range(2)]


class Socket(Plain):
    """Calls home."""

    def word(self, example: Example) -> str:
        socket.create_connection(("192.0.2.1", 80), timeout=1).close()
        return "called"


class QuietSocket(Plain):
    """Calls home and says nothing when nobody answers."""

    def word(self, example: Example) -> str:
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://example.invalid/", timeout=1)
        return "called"


class TooLong(Plain):
    """Knows no budget."""

    def word(self, example: Example) -> str:
        return " ".join(d.text for d in example.history) * 30


class WithoutVectors(Plain):
    """Names a slot and gives no vectors."""

    def word(self, example: Example) -> str:
        return slot("mood")


class Undeclared(Plain):
    """Gives vectors and does not say so."""

    def request(self, example: Example, ctx: Context, word: str) -> Request:
        messages = [Message("user", slot("mood"))]
        return ctx.request(example, messages, soft={"mood": np.zeros((1, 4), np.float32)})


class Speechless(Plain):
    """Parses to nothing."""

    def parse(self, example: Example, text: str) -> str:
        return None  # type: ignore[return-value]


class Restless(Learns):
    """Learns something else each time."""

    def learn(self, train: LabeledSplit) -> Any:
        return random.random()


class Pickles(Learns):
    """Saves what could run code."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "learned.pkl").write_bytes(pickle.dumps(self.learned))


class DisguisedPickle(Learns):
    """Calls a pickle JSON."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "more.json").write_bytes(pickle.dumps(self.learned))


class NamesPlaces(Learns):
    """Saves where it was saved."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "where.txt").write_text(str(folder))


class TakesTheHarnessName(Learns):
    """Saves under the name that the harness uses."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "fit.json").write_text("{}")


class Amnesiac(Learns):
    """Saves nothing."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path, ctx: Context) -> None: ...


class HalfAmnesiac(Learns):
    """Breaks on what it did not load."""

    def load(self, folder: Path, ctx: Context) -> None: ...

    def word(self, example: Example) -> str:
        return str(self.learned[0])

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return conversation(ctx.task, example, [])


class OnTheClass(Learns):
    """Keeps what it learned where all its objects see it."""

    shared: ClassVar[dict[str, Any]] = {}

    def learn(self, train: LabeledSplit) -> Any:
        self.shared["learned"] = sorted(train.references)
        return self.shared["learned"]

    def word(self, example: Example) -> str:
        return text_digest(str(self.shared.get("learned")))


class ChangesTheModel(Learns):
    """Trains the weights of the language model itself."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT, Capability.TRAIN})

    def fit(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        super().fit(train, dev, ctx)
        ctx.engine.language_model().model.get_input_embeddings().weight.data += 1


class NeedsAFitToPreview(Learns):
    """Shows no prompt before it has learned."""

    def word(self, example: Example) -> str:
        return str(self.learned[0])


class Undocumented(Plain):
    name = "undocumented"


class Nameless(Plain):
    """Has no name."""

    name = None  # type: ignore[assignment]
