"""Small made-up runs for tests of tables, written through the run store's own interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.store import BatchTiming, Existing, MetricInfo, RunFolder, StoredRun, write_scores

METRICS = (
    MetricInfo("rouge1", "rouge1|stem:no|v1", True),
    MetricInfo("bleu", "bleu|tok:13a|v2", True, "corpus_bleu"),
    MetricInfo("copy_rate", "copy_rate|n:4|v1", False),
    MetricInfo("length_ratio", "length_ratio|tok:space", None),
)
MODEL = {"name": "hf", "model": "tiny-lm", "revision": "r1", "dtype": "float32", "backend": "torch 2"}


def describe(method: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A key description; `changes` replace whole parts, `config` and `version` those of the method."""
    config, version = changes.pop("config", {"n_history": 2}), changes.pop("version", "1")
    asks = method != "oracle"
    return {
        "dataset": {"name": "world", "fingerprint": "f00d", "selection": {"limit": None}},
        "method": {"name": method, "version": version, "config": config},
        "engine": dict(MODEL) if asks else {"name": "none"},
        "encoder": None,
        "sampling": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 256},
        "prompt": {"max_prompt_tokens": 1024},
        "seed": seed,
        **changes,
    }


def examples(users: int, each: int = 2) -> list[tuple[str, str]]:
    """(example id, user id), `each` examples a user."""
    return [(f"e{user:03d}-{i}", f"u{user:03d}") for user in range(users) for i in range(each)]


def value_of(metric: MetricInfo, level: float, rng: np.random.Generator) -> float | list[float]:
    """A plausible value around `level`."""
    if metric.reducer != "corpus_bleu":
        return float(np.clip(level + 0.1 * rng.normal(), 0.0, 2.0))
    total = [20, 19, 18, 17]
    correct = [int(rng.binomial(n, level / (order + 1))) for order, n in enumerate(total)]
    return [float(x) for x in (*correct, *total, 20, rng.integers(15, 25))]


def make_run(
    out: Path,
    method: str,
    *,
    level: float = 0.3,
    seed: int = 0,
    users: int = 12,
    metrics: Sequence[MetricInfo] = METRICS,
    missing: Sequence[str] = (),
    failed: Sequence[str] = (),
    fit: Mapping[str, Any] | None = None,
    label: str | None = None,
    variant: str | None = None,
    peak: int | None = 3 * 2**30,
    complete: bool = True,
    **changes: Any,
) -> StoredRun | None:
    """A run whose scores lie around `level`; None if it is left incomplete.

    `missing`: examples whose metrics have no value. `failed`: examples whose generation failed.
    """
    pairs = examples(users)
    rng = np.random.default_rng([len(method), int(level * 1000), seed])
    asks = method != "oracle"
    batches = [pairs[i : i + 5] for i in range(0, len(pairs), 5)]
    with RunFolder(out, describe(method, seed, **changes)) as folder:
        folder.open(Existing.RESUME)
        done = folder.resume([[example for example, _ in batch] for batch in batches])
        for index, batch in list(enumerate(batches))[done:]:
            records = [
                {"example_id": e, "user_id": u, "text": "words", "error": "too long" if e in failed else None}
                for e, u in batch
            ]
            tokens = (300 * len(batch), 50 * len(batch), 0.5, 1.25) if asks else (0, 0, 0.0, 0.0)
            folder.append(index, records, BatchTiming(index, len(batch), *tokens, 2.0, peak))
            if not complete:
                return None
        run = folder.finish(provenance={"version": "test"}, fit=fit, label=label, variant=variant, truth=not asks)
    rows = []
    for example, _ in pairs:
        gone = example in missing or example in failed
        rows.append(
            {"example_id": example, "scores": {m.name: None if gone else value_of(m, level, rng) for m in metrics}}
        )
    if metrics:
        write_scores(run, metrics, rows)
    return run


def make_store(out: Path) -> None:
    """The usual five methods, trained ones with their cost, dep under three seeds."""
    make_run(out, "nonperso", level=0.2)
    make_run(out, "rag", level=0.27)
    make_run(out, "lora", level=0.25, fit={"seconds": 93.4, "rows": 100, "tokens": 50_000, "epochs": 2})
    for seed in range(3):
        make_run(out, "dep", level=0.3, seed=seed, fit={"seconds": 200.0 + seed, "rows": 100}, peak=700 * 2**20)
    make_run(out, "oracle", level=0.6, peak=200 * 2**20)
