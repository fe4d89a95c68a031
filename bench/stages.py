"""Intermediate stages of a method: batched over all examples, kept on disk, resumed like everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.costs import STAGE_COSTS, append_lines
from bench.energy import Spent, Stopwatch
from bench.engines.base import Engine
from bench.errors import UsageError
from bench.files import parse_line
from bench.keys import digest
from bench.types import Generation, Request


def request_key(request: Request) -> str:
    """Names everything in a text request that can change its answer; the run's own key holds the engine."""
    messages = [asdict(message) for message in request.messages]
    return digest([request.example_id, request.stage, messages, asdict(request.sampling), request.seed])


_SUMMED = ("calls", "failed", "prompt_tokens", "output_tokens", "wall_seconds")


class StageCache:
    """Answers of one stage, appended batch by batch to `<folder>/<stage>.jsonl`, and what they cost beside them."""

    def __init__(self, folder: Path, stage: str) -> None:
        if not stage.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"stage {stage!r} is no file name; use letters, digits, - and _")
        self.path = folder / f"{stage}.jsonl"
        self.answers: dict[str, Generation] = {}
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for row in map(parse_line, lines):
            if row is not None:
                self.answers[row["request"]] = Generation(**row["generation"])

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Those whose answers are not at hand, each once."""
        asked = {request_key(request): request for request in requests}
        return [request for key, request in asked.items() if key not in self.answers]

    def run(
        self,
        engine: Engine,
        requests: Sequence[Request],
        progress: Callable[[int], object] | None = None,
        loaded: Callable[[Spent], object] | None = None,
    ) -> list[Generation]:
        """Generations in the order of `requests`; batches with all answers at hand are not run again.

        `progress` is told how many are done, of as many as are distinct; `loaded` what an engine needed to start.
        """
        if any(r.soft or r.adapter or r.steering or r.user_adapter for r in requests):
            raise UsageError(
                "intermediate stages take text requests; soft vectors, adapters and steering belong to the last one"
            )
        keys = [request_key(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))  # asked twice: the same answer, whatever the batches
        names, asked = list(distinct), list(distinct.values())
        batches = engine.plan(asked)
        left = [batch for batch in batches if not all(names[i] in self.answers for i in batch)]
        if progress is not None:
            progress(sum(map(len, batches)) - sum(map(len, left)))
        watch = Stopwatch(engine.accelerators())
        results = engine.stream([[asked[i] for i in batch] for batch in left], progress)
        for batch, result in zip(left, results, strict=True):
            waited, spent = watch.lap().split(result.load_seconds)
            if waited.seconds and loaded is not None:
                loaded(waited)
            self._append_costs(result.generations, spent)
            self._append([names[i] for i in batch], result.generations)
        fresh = {names[i] for batch in left for i in batch}
        return [self.answers[k] if k in fresh else replace(self.answers[k], cached=True) for k in keys]

    def _append(self, keys: Sequence[str], generations: Sequence[Generation]) -> None:
        rows: list[dict[str, Any]] = []
        for key, generation in zip(keys, generations, strict=True):
            self.answers[key] = generation
            rows.append({"request": key, "generation": asdict(generation)})
        append_lines(self.path, rows)

    def _append_costs(self, generations: Sequence[Generation], spent: Spent) -> None:
        """Written before the answers, so that what a kill makes the next process ask again is counted twice, as it was
        paid."""
        values = (
            len(generations),
            sum(generation.error is not None for generation in generations),
            sum(generation.prompt_tokens for generation in generations),
            sum(generation.output_tokens for generation in generations),
            spent.seconds,
        )
        row = {**asdict(spent), **dict(zip(_SUMMED, values, strict=True))}
        del row["seconds"]  # they are the stage's wall_seconds
        append_lines(self.path.with_suffix(STAGE_COSTS), [row])


def stage_costs(folder: Path) -> dict[str, Mapping[str, float]]:
    """What each stage under `folder` cost, all processes together: calls, failed, prompt_tokens, output_tokens,
    wall_seconds. In the order of the stages' names; empty where there are none."""
    found: dict[str, Mapping[str, float]] = {}
    for path in sorted(folder.glob(f"*{STAGE_COSTS}")):
        sums: dict[str, float] = defaultdict(int)
        for row in map(parse_line, path.read_bytes().splitlines(keepends=True)):
            for name in _SUMMED:
                sums[name] += row[name] if row is not None else 0
        found[path.name.removesuffix(STAGE_COSTS)] = dict(sums)
    return found
