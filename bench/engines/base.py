"""What every engine offers: an identity, a plan of batches, and generations for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.errors import UsageError
from bench.types import Capability, Generation, Message, Request

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Progress = Callable[[int], object]
"""Told how many more answers there are."""


@dataclass(frozen=True)
class LanguageModel:
    """The weights behind an engine, for methods that train. The weights stay frozen; leave them as they were."""

    model: Any
    """A transformers causal language model in evaluation mode, every parameter frozen."""
    tokenizer: Any
    device: torch.device


@dataclass(frozen=True)
class BatchResult:
    """Generations in the order of the batch, and what they cost."""

    generations: list[Generation]
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    splits: int = 0
    """How often fewer rows were tried because the batch did not fit into memory."""
    first_token_seconds: tuple[float, ...] = ()
    """For each request, seconds from the batch's start to its first token; empty where that was not watched."""
    load_seconds: float = 0.0
    """What the caller waited for, beside the batch itself, because the engine had to be started first."""


@dataclass(frozen=True)
class Speed:
    """Measured rates of a loaded engine, for estimates before long work."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    """Over a whole batch of the engine's usual size."""


class Engine(ABC):
    """Turns requests into generations. Made cheaply; `load` does what takes time."""

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]
    local: ClassVar[bool] = True
    """Whether --model names weights that this machine has or fetches; otherwise the engine is given the name itself."""
    unkeyed: ClassVar[frozenset[str]] = frozenset()
    """Knobs that change no output and shape no batch: runs that differ in these alone are one run."""

    def prepare(self) -> None:
        """Brings what `load` will read to this machine. Default: nothing to bring."""

    def keep_under(self, folder: Path) -> None:
        """Told where runs lie, for an engine that keeps something beside them. Default: keeps nothing."""

    def told(self) -> str | None:
        """One line on what its work took beside what records tell, for the end of a command; None for nothing."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Everything about the engine that can change an output: model, revision, dtype, backend, versions.

        Known once prepared, without loading weights; part of every run's key.
        """

    def training_identity(self) -> dict[str, str]:
        """The same of what `language_model` gives, part of every fit's key. Default: the engine's own."""
        return self.identity()

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The most tokens, prompt and output together, that the model takes."""

    def load(self) -> None:
        """Loads weights and warms up. Safe to call twice. Default: nothing to load."""

    def close(self) -> None:
        """Frees what `load` took."""

    @abstractmethod
    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Prompt tokens of messages, chat template included, each soft slot counted as one."""

    @abstractmethod
    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches as lists of indices into `requests`: a pure function of the requests, so that a run can resume."""

    @abstractmethod
    def run(self, batch: Sequence[Request]) -> BatchResult:
        """Generations for one batch. A request that cannot be served comes back with its error, not as an exception."""

    def stream(self, batches: Sequence[Sequence[Request]], progress: Progress | None = None) -> Iterator[BatchResult]:
        """Results of the batches, in their order, each as soon as it and all before it are there.

        `progress` is told of answers as they come, however many at a time. Default: one batch after the other; an
        engine that can work on several at once overrides it.
        """
        for batch in batches:
            result = self.run(batch)
            if progress is not None:
                progress(len(batch))
            yield result

    def answers(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Generation]:
        """Generations in the order of `requests`, batch by batch as planned; `progress` is told how many are done."""
        batches = self.plan(requests)
        results = self.stream([[requests[i] for i in batch] for batch in batches], progress)
        found: dict[int, Generation] = {}
        for batch, result in zip(batches, results, strict=True):
            found |= zip(batch, result.generations, strict=True)
        return [found[i] for i in range(len(requests))]

    def accelerators(self) -> int | None:
        """On how many accelerators the model is; None for those on which this process holds memory, be it none.

        An engine whose model is in other processes of this machine says how many; one that asks a service says 0.
        """
        return None

    def speed(self) -> Speed | None:
        """Rates measured while warming up, or None where they mean nothing."""
        return None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Open while a method fits: all that the engine does then is done with the weights that are trained on.

        Default: nothing, as they are the ones that it always answers with.
        """
        yield

    def language_model(self, adapter: str | None = None) -> LanguageModel:
        """The weights, for training. Raises UsageError where an engine has none at hand.

        Bare, unless the folder of a peft `adapter` to build upon is given: that stays, frozen, until the engine is
        called again.
        """
        raise UsageError(f"engine {self.name!r} gives no access to weights; use --engine hf for methods that train")

    @property
    def depth(self) -> int:
        """Layers of the model, known once prepared. Raises UsageError where an engine does not show its layers."""
        raise UsageError(
            f"engine {self.name!r} gives no access to hidden states; use --engine hf for methods that steer"
        )

    def hidden_states(
        self, conversations: Sequence[Sequence[Message]], layer: int, progress: bool = False
    ) -> NDArray[np.float32]:
        """What `layer` (the first is 1) gives out at each conversation's last token: (conversations, hidden size).

        The last token is that of the answer which a conversation ends with, or the one that an answer would follow. A
        conversation longer than the context is read up to there. Raises UsageError where an engine does not show its
        layers, for a layer that there is not, and for lack of memory.
        """
        raise UsageError(
            f"engine {self.name!r} gives no access to hidden states; use --engine hf for methods that steer"
        )

    def peak_memory(self) -> int | None:
        """Most bytes of accelerator memory since the last call, or None without an accelerator."""
        return None
