"""A language model as a metric: a number for each text, or which of two texts is nearer to the user's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.engines.base import Engine
from bench.engines.openai_answers import AnswerFile
from bench.errors import UsageError
from bench.judge import wording
from bench.keys import canonical_json, digest, request_seed, utf8
from bench.metrics.base import Advance, Metric, ScoreInput, Vector, text_of
from bench.types import Generation, Message, Request, Sampling

TRIES = 3
"""How often a text is judged until the reply can be read."""
READING = 2
"""Part of the signature: raise it when other replies count as verdicts, or as others, than before."""
Read = Callable[[str], float | None]


@dataclass
class Spent:
    """What judging took."""

    replies: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    unreadable: int = 0
    """Replies that were no verdict."""
    failed: int = 0
    """Requests without a reply."""


class Asker:
    """Puts prompts to an engine and reads verdicts; what was answered once is not asked again."""

    def __init__(self, engine: Engine, folder: Path, temperature: float = 0.0, reply_tokens: int = 8) -> None:
        """`folder` is that of the runs. An engine that keeps answers itself keeps them there, for others it is done
        here."""
        self.engine, self.temperature, self.reply_tokens = engine, temperature, reply_tokens
        self.spent = Spent()
        engine.keep_under(folder)
        self._keeps_itself = type(engine).keep_under is not Engine.keep_under
        path = None if self._keeps_itself else folder / "answers" / "judge" / f"{self.mark}.jsonl"
        try:
            self._answers = AnswerFile(path)
        except OSError as error:
            raise UsageError(f"cannot read the answers in {path}: {error.strerror}") from error

    @property
    def mark(self) -> str:
        """Names the engine with all that can change a verdict."""
        return digest(self.engine.identity(), 12)

    def requests(self, prompts: Sequence[tuple[str, tuple[Message, ...]]], attempt: int = 0) -> list[Request]:
        """Requests for (name, messages); each attempt asks with more urgency."""
        sampling = Sampling(self.temperature, 1.0, self.reply_tokens)
        return [
            Request(name, "judge", wording.insisting(messages, attempt), sampling, request_seed(attempt, name, "judge"))
            for name, messages in prompts
        ]

    def verdicts(
        self, prompts: Sequence[tuple[str, tuple[Message, ...]]], read: Read, advance: Advance
    ) -> list[float | None]:
        """One verdict a prompt, None where no reply could be read; `advance` is told of each that is settled."""
        found: list[float | None] = [None] * len(prompts)
        left = list(range(len(prompts)))
        for attempt in range(TRIES):
            replies = self._replies(self.requests([prompts[i] for i in left], attempt))
            again = []
            for place, reply in zip(left, replies, strict=True):
                if reply.error is not None:
                    self.spent.failed += 1
                elif (verdict := _verdict(reply, read)) is not None:
                    found[place] = verdict
                else:
                    self.spent.unreadable += 1
                    again.append(place)
            advance(len(left) - len(again))
            left = again
        advance(len(left))
        return found

    def settled(self, prompts: Sequence[tuple[str, tuple[Message, ...]]], read: Read) -> bool:
        """Whether asking these again could bring nothing new, as all replies are on disk and none is a verdict.

        Never of an engine that keeps answers itself: there a reply that is known costs nothing.
        """
        return not prompts or (not self._keeps_itself and all(self._exhausted(prompt, read) for prompt in prompts))

    def _exhausted(self, prompt: tuple[str, tuple[Message, ...]], read: Read) -> bool:
        for attempt in range(TRIES):
            answer = self._answers.get(self._key(self.requests([prompt], attempt)[0]))
            if answer is None:
                return False
            if _verdict(answer, read) is not None:
                break
        return True

    def _key(self, request: Request) -> str:
        messages = [asdict(message) for message in request.messages]
        return digest([self.mark, messages, asdict(request.sampling), request.seed], 32)

    def _replies(self, requests: Sequence[Request]) -> list[Generation]:
        keys = [self._key(request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if self._answers.get(key) is None}
        fresh: dict[str, Generation] = {}
        names, asked = list(missing), list(missing.values())
        batches = self.engine.plan(asked)
        results = self.engine.stream([[asked[i] for i in batch] for batch in batches])
        for batch, result in zip(batches, results, strict=True):
            for place, reply in zip(batch, result.generations, strict=True):
                fresh[names[place]] = reply
                self._count(reply)
                if reply.error is None:
                    self._keep(names[place], reply)
        return [fresh[key] if key in fresh else self._known(key) for key in keys]

    def _keep(self, key: str, reply: Generation) -> None:
        try:
            self._answers.add(key, reply)
        except OSError as error:
            raise UsageError(f"cannot keep answers in {self._answers.path}: {error.strerror}") from error

    def _known(self, key: str) -> Generation:
        answer = self._answers.get(key)
        if answer is None:
            raise KeyError(key)
        return answer

    def _count(self, reply: Generation) -> None:
        if not reply.cached and reply.error is None:
            self.spent.replies += 1
            self.spent.prompt_tokens += reply.prompt_tokens
            self.spent.output_tokens += reply.output_tokens


def _verdict(reply: Generation, read: Read) -> float | None:
    """What a reply says; None for one that was cut off: a 7 may have been about to be 7.5, or prose."""
    return None if reply.finish_reason == "length" else read(reply.text)


def baseline_key(texts: Iterable[tuple[object, str, str | None]]) -> str:
    """Names a baseline's texts, given as (seed, example id, text), in whatever order they come."""
    rows = [[seed, example, None if text is None else utf8(text)] for seed, example, text in texts]
    return digest(sorted(rows, key=canonical_json), 12)


class _Judging(Metric):
    """What both kinds of judges share."""

    name = "judge"
    wording = wording.RUBRIC

    def __init__(self, asker: Asker, label: str) -> None:
        self.asker, self.label = asker, label
        super().__init__()

    def _signature_parts(self) -> Mapping[str, object]:
        identity = self.asker.engine.identity()
        return {
            "model": identity["model"],
            "engine": f"{identity['name']}-{self.asker.mark}",
            "prompt": wording.prompt_hash(self.wording),
            "temperature": f"{self.asker.temperature:g}",
            "tokens": self.asker.reply_tokens,
            "tries": TRIES,
            "reading": READING,
        }

    @abstractmethod
    def prompts(self, inputs: Sequence[ScoreInput]) -> list[tuple[str, tuple[Message, ...]]]:
        """All that will be asked of these texts at first."""

    @abstractmethod
    def read(self, reply: str) -> float | None:
        """What a reply says, None where it is no verdict."""

    def _vector(self, item: ScoreInput) -> Vector | None:
        return self.values([item])[0]


class JudgeScore(_Judging):
    """How near a text comes to the user's own in content and style, 0 to 10, as a language model judges."""

    def __init__(self, asker: Asker, label: str) -> None:
        super().__init__(asker, label)
        self.name = f"judge:{label}"

    def read(self, reply: str) -> float | None:
        return wording.read_number(reply)

    def prompts(self, inputs: Sequence[ScoreInput]) -> list[tuple[str, tuple[Message, ...]]]:
        return [
            (item.example_id, wording.rubric_prompt(item.reference, text_of(item)))
            for item in inputs
            if item.prediction is not None
        ]

    def values(self, inputs: Sequence[ScoreInput], advance: Advance | None = None) -> list[Vector | None]:
        verdicts = iter(self.asker.verdicts(self.prompts(inputs), self.read, advance or _ignore))
        found = [None if item.prediction is None else next(verdicts) for item in inputs]
        return [None if value is None else [value] for value in found]


class JudgeWin(_Judging):
    """How often a text is judged nearer to the user's own than a baseline's: 1, 0.5 or 0, over both positions."""

    wording = wording.PAIRWISE

    def __init__(self, asker: Asker, label: str, baseline: str, texts: Mapping[str, str | None], key: str) -> None:
        """`texts` are the baseline's by example id, `baseline` is what it is called, `key` names those of all seeds."""
        super().__init__(asker, label)
        self.name = f"judge-win:{label}:{baseline}"
        self.texts, self.key = texts, key
        self.consistent = self.both = 0
        """Texts whose two verdicts agree, of as many as have two."""

    def _signature_parts(self) -> Mapping[str, object]:
        return {**super()._signature_parts(), "against": self.key}

    def read(self, reply: str) -> float | None:
        return wording.read_side(reply)

    def _other(self, item: ScoreInput) -> str | None:
        return None if item.prediction is None else self.texts.get(item.example_id)

    def prompts(self, inputs: Sequence[ScoreInput]) -> list[tuple[str, tuple[Message, ...]]]:
        found = []
        for item in inputs:
            if (other := self._other(item)) is not None:
                own = text_of(item)
                found.append((item.example_id, wording.pair_prompt(item.reference, own, other)))
                found.append((item.example_id, wording.pair_prompt(item.reference, other, own)))
        return found

    def values(self, inputs: Sequence[ScoreInput], advance: Advance | None = None) -> list[Vector | None]:
        verdicts = iter(self.asker.verdicts(self.prompts(inputs), self.read, advance or _ignore))
        found: list[Vector | None] = []
        for item in inputs:
            if self._other(item) is None:
                found.append(None)
                continue
            first, second = next(verdicts), next(verdicts)
            if first is None or second is None:
                found.append(None)
                continue
            self.both += 1
            self.consistent += first == 1 - second
            found.append([(first + 1 - second) / 2])
        return found


def _ignore(count: int) -> None:
    """For callers that show no progress."""
