"""The controls that say what DEP's gain is made of: each takes one thing away, or puts a stranger's in its place."""

from __future__ import annotations

from typing import Any

from bench.method import Variant
from methods.dep.config import DepConfig

_HISTORIES = (1, 2, 4, 8, 16)


def controls(config: DepConfig) -> list[Variant]:
    """What `--ablate controls` runs beside DEP as configured."""
    knobs: dict[str, dict[str, Any]] = {
        "history tokens only": {"tokens": "history"},
        "difference tokens only": {"tokens": "difference"},
        "no autoencoder": {"autoencoder": "none"},
        "random peers": {"peer_source": "random"},
        "another user's tokens": {"shuffle": "vectors"},
        "another user's history": {"shuffle": "history"},
        "softmax weights": {"weighting": "softmax"},
        "uniform weights": {"weighting": "uniform"},
        "linear weights": {"weighting": "linear"},
        "inverse weights": {"weighting": "inverse"},
        **{f"n_history {n}": {"n_history": n} for n in _HISTORIES if n != config.n_history},
    }
    if config.mode == "paper":
        del knobs["random peers"]  # the paper's rules say who is a peer
    beside: dict[str, dict[str, Any]] = {
        "rag": {"k": config.n_history, "retriever": "recency"},
        "lora": {"n_history": config.n_history},
    }
    return [
        *(Variant(name, changes) for name, changes in knobs.items()),
        *(Variant("same histories", changes, method) for method, changes in beside.items()),
    ]
