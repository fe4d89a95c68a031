"""Intermediate stages of a method: batched over all examples, kept on disk, resumed like everything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.engines.base import Engine
from bench.errors import UsageError
from bench.files import json_lines, parse_line
from bench.keys import digest
from bench.types import Generation, Request


def request_key(request: Request) -> str:
    """Names everything in a text request that can change its answer; the run's own key holds the engine."""
    messages = [asdict(message) for message in request.messages]
    return digest([request.example_id, request.stage, messages, asdict(request.sampling), request.seed])


class StageCache:
    """Answers of one stage, appended batch by batch to `<folder>/<stage>.jsonl`."""

    def __init__(self, folder: Path, stage: str) -> None:
        if not stage.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"stage {stage!r} is no file name; use letters, digits, - and _")
        self.path = folder / f"{stage}.jsonl"
        self.answers: dict[str, Generation] = {}
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for row in map(parse_line, lines):
            if row is not None:
                self.answers[row["request"]] = Generation(**row["generation"])

    def run(self, engine: Engine, requests: Sequence[Request]) -> list[Generation]:
        """Generations in the order of `requests`; batches with all answers at hand are not run again."""
        if any(request.soft or request.adapter for request in requests):
            raise UsageError("intermediate stages take text requests; soft vectors and adapters belong to the last one")
        keys = [request_key(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))  # asked twice: the same answer, whatever the batches
        names, asked = list(distinct), list(distinct.values())
        fresh: set[str] = set()
        for batch in engine.plan(asked):
            if all(names[i] in self.answers for i in batch):
                continue
            result = engine.run([asked[i] for i in batch])
            self._append([names[i] for i in batch], result.generations)
            fresh.update(names[i] for i in batch)
        return [self.answers[k] if k in fresh else replace(self.answers[k], cached=True) for k in keys]

    def _append(self, keys: Sequence[str], generations: Sequence[Generation]) -> None:
        rows: list[dict[str, Any]] = []
        for key, generation in zip(keys, generations, strict=True):
            self.answers[key] = generation
            rows.append({"request": key, "generation": asdict(generation)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a line that a kill cut short would swallow the next one
                    file.write(b"\n")
            file.write(json_lines(rows))
