"""Choosing the epoch by what the model writes, not by how it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.engines.base import Engine
from bench.engines.batching import grouped
from bench.errors import UsageError
from bench.types import Request

_ROWS = 16
"""Rows written together, whatever the engine's settings: these are in no fit's key, and could flip a token."""


def dev_meteor(
    engine: Engine, requests: Callable[[], Sequence[Request]], references: Mapping[str, str]
) -> Callable[[], float]:
    """A function that has the engine answer the requests of the moment and gives the mean METEOR of the answers.

    `requests` is asked anew each time, as soft vectors change while training; give greedy sampling, so that the score
    has no luck in it. An answer that fails (for want of memory) is left out. Raises UsageError at once if METEOR
    cannot be computed here, later if every answer fails.
    """
    from bench.metrics.base import ScoreInput
    from bench.metrics.meteor import Meteor

    metric = Meteor()
    metric.preflight()

    def score() -> float:
        asked = list(requests())
        lengths = [engine.count_tokens(r.messages) + r.sampling.max_new_tokens for r in asked]
        batches = grouped(lengths, [r.sampling for r in asked], [r.example_id for r in asked], _ROWS, 2**62)
        inputs, problem = [], ""
        for batch in batches:
            answers = engine.run([asked[i] for i in batch]).generations
            for i, answer in zip(batch, answers, strict=True):
                problem = answer.error or problem
                text = None if answer.error else answer.text.strip()
                name = asked[i].example_id
                inputs.append(ScoreInput(name, "", text, references[name]))
        values = [value for value in metric.values(inputs) if value is not None]
        if not values:
            raise UsageError(f"select=meteor: no dev row could be scored{': ' + problem if problem else ''}")
        return metric.aggregate(values)

    return score
