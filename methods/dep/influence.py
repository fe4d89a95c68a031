"""How far the soft tokens move what the model says: on the reference text, and in what it writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.engines.base import LanguageModel
from bench.keys import digest
from bench.method import Context
from bench.stats import Estimate, paired_bootstrap
from bench.training import Row, TrainingConfig, target_logits
from bench.training.loss import micro_batches
from bench.types import Example, Request

if TYPE_CHECKING:
    from bench.metrics.base import Metric

FULL = "full"
SAME = "nothing, in other batches"
LEFT_OUT = "soft slots left out"
_BLOCK = 256
"""Positions whose distributions are held at once."""

Tokens = list[torch.Tensor]
"""One tensor an example: (slots, kinds, width, hidden); the token itself is the middle one of the width."""


# -- changes ----------------------------------------------------------------------------------------------------------


def changes(tokens: Tokens, kinds: Sequence[str], users: Sequence[str], seed: int) -> dict[str, Tokens]:
    """What is put in the slots instead: zeros, or another user's tokens; the markers around a token stay.

    `kinds` names the second axis of each tensor ("history", "difference"); `users` are the examples' users. Swaps are
    missing where no other user has soft tokens.
    """
    found: dict[str, Tokens] = {}
    for index, kind in reversed(list(enumerate(kinds))):
        found[f"{kind} tokens zeroed"] = [_zeroed(t, [index]) for t in tokens]
    if len(kinds) > 1:
        found["all soft tokens zeroed"] = [_zeroed(t, range(len(kinds))) for t in tokens]
    donors = deranged([user if len(t) else None for user, t in zip(users, tokens, strict=True)], seed)
    if donors is None:
        return found
    pairs = [(own, tokens[donor]) for own, donor in zip(tokens, donors, strict=True)]
    last = len(kinds) - 1
    found[f"{kinds[last]} tokens of another user"] = [_swapped(own, given, [last]) for own, given in pairs]
    if len(kinds) > 1:
        found["all soft tokens of another user"] = [_swapped(own, given, range(len(kinds))) for own, given in pairs]
    return found


def deranged(users: Sequence[str | None], seed: int) -> list[int] | None:
    """For each example the index of an example of another user; None with fewer than two users.

    Users are put on a ring in seeded order and each takes from the next. An example without a user (one with nothing
    to give) takes from itself and gives to nobody.
    """
    ring = sorted({user for user in users if user is not None})
    if len(ring) < 2:
        return None
    random.Random(digest([seed, "derange"])).shuffle(ring)
    following = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
    last = {user: index for index, user in enumerate(users)}
    return [index if user is None else last[following[user]] for index, user in enumerate(users)]


def _zeroed(tokens: torch.Tensor, kinds: Sequence[int]) -> torch.Tensor:
    changed = tokens.clone()
    changed[:, list(kinds), tokens.shape[2] // 2] = 0
    return changed


def _swapped(tokens: torch.Tensor, given: torch.Tensor, kinds: Sequence[int]) -> torch.Tensor:
    """`given` holds another user's tokens, which come round again where that user has fewer reviews."""
    if not len(tokens):
        return tokens
    changed, middle = tokens.clone(), tokens.shape[2] // 2
    rows = torch.arange(len(tokens)) % len(given)
    changed[:, list(kinds), middle] = given[rows][:, list(kinds), middle]
    return changed


# -- on the reference text --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What a change does to the reference text of each example."""

    divergence: list[float]
    """KL(full || changed) of the next token, in nats, averaged over the target tokens."""
    likelihood: list[float]
    """Log-likelihood a target token under the change minus that in full, in nats."""


def reference_effects(
    lm: LanguageModel,
    rows: Sequence[Row],
    without: Sequence[Row],
    tokens: Tokens,
    changed: Mapping[str, Tokens],
    config: TrainingConfig,
    progress: Callable[[int], object],
) -> dict[str, Effect]:
    """Effects of each change, of leaving the slots out, and of nothing but other batches (what rounding does).

    `rows` and `tokens` are in one order, `without` holds the same rows with slots of no length. A `Row.index` is its
    place in `rows`. `progress` is told how many rows are done.
    """
    names = [*changed, LEFT_OUT, *([SAME] if len(rows) > 1 else [])]
    effects = {name: Effect([0.0] * len(rows), [0.0] * len(rows)) for name in names}
    with torch.no_grad():
        for batch in micro_batches(lm, rows, config):
            full, labels = _log_probabilities(lm, batch, tokens)
            for name in names:
                if name == SAME:
                    other = _in_other_company(lm, batch, rows, tokens)
                elif name == LEFT_OUT:
                    other = _log_probabilities(lm, [without[row.index] for row in batch], None)[0]
                else:
                    other = _log_probabilities(lm, batch, changed[name])[0]
                for row, divergence, likelihood in _compare(batch, full, other, labels):
                    effects[name].divergence[row.index] = divergence
                    effects[name].likelihood[row.index] = likelihood
            progress(len(batch))
    return effects


def _log_probabilities(
    lm: LanguageModel, rows: Sequence[Row], tokens: Tokens | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (targets of all rows, vocabulary), float32, and the target ids (targets of all rows,)."""
    vectors = None
    if tokens is not None:
        vectors = torch.cat([tokens[row.index].flatten(0, 2) for row in rows]).to(lm.device)
    logits, labels = target_logits(lm, rows, vectors)
    return torch.log_softmax(logits.float(), dim=-1), labels


def _in_other_company(lm: LanguageModel, batch: Sequence[Row], rows: Sequence[Row], tokens: Tokens) -> torch.Tensor:
    """The same log-probabilities with each row alone, or beside another one if it was alone."""
    if len(batch) > 1:
        return torch.cat([_log_probabilities(lm, [row], tokens)[0] for row in batch])
    row = batch[0]
    beside = rows[(row.index + 1) % len(rows)]
    return _log_probabilities(lm, [row, beside], tokens)[0][: len(row.target)]


def _compare(
    batch: Sequence[Row], full: torch.Tensor, other: torch.Tensor, labels: torch.Tensor
) -> Iterator[tuple[Row, float, float]]:
    """(row, mean KL, mean change of log-likelihood) of each row of a batch."""
    divergences, gains = [], []
    for start in range(0, len(labels), _BLOCK):
        p, q, y = (tensor[start : start + _BLOCK] for tensor in (full, other, labels))
        divergences.append((p.exp() * (p - q)).double().sum(-1))
        gains.append((q - p).gather(1, y[:, None])[:, 0].double())
    divergence, gain = torch.cat(divergences).cpu(), torch.cat(gains).cpu()
    at = 0
    for row in batch:
        span = slice(at, at + len(row.target))
        yield row, float(divergence[span].mean()), float(gain[span].mean())
        at = span.stop


def effect_rows(effects: Mapping[str, Effect], users: Sequence[str]) -> list[dict[str, Any]]:
    """One row a change: means over examples with 95 % intervals from a bootstrap over users."""
    numbers = _numbered(users)
    divergence = paired_bootstrap({name: _column(e.divergence) for name, e in effects.items()}, numbers)
    likelihood = paired_bootstrap({name: _column(e.likelihood) for name, e in effects.items()}, numbers)
    return [
        {
            "change": name,
            "KL a token": interval(divergence[name].score),
            "change of log-likelihood a token": interval(likelihood[name].score),
        }
        for name in effects
    ]


# -- in what is written -----------------------------------------------------------------------------------------------


def generated_rows(
    write: Callable[[Sequence[Request]], list[str | None]],
    requests: Mapping[str, Sequence[Request]],
    examples: Sequence[Example],
    references: Mapping[str, str],
    metrics: Sequence[Metric],
) -> list[dict[str, Any]]:
    """One row a change: metrics of the texts written under it, their paired differences to those in full, and the
    share of texts that are not the same. `requests` holds those in full under `FULL`; seeds are the same in all."""
    from bench.metrics.base import ScoreInput

    texts = {name: write(asked) for name, asked in requests.items()}
    users = _numbered([example.user_id for example in examples])
    rows: dict[str, dict[str, Any]] = {}
    for name, written in texts.items():
        differ = [a != b for a, b in zip(written, texts[FULL], strict=True)]
        rows[name] = {"change": name, "texts that differ": float(np.mean(differ)) if name != FULL else None}
    for metric in metrics:
        values = {}
        for name, written in texts.items():
            pairs = zip(examples, written, strict=True)
            inputs = [ScoreInput(e.id, e.user_id, text, references[e.id]) for e, text in pairs]
            values[name] = _column([v[0] if v else float("nan") for v in metric.values(inputs)])
        for name, scored in paired_bootstrap(values, users, baseline=FULL).items():
            rows[name][metric.name] = scored.score.value
            rows[name][f"{metric.name}, difference"] = interval(scored.difference) if scored.difference else None
    return list(rows.values())


def engine_texts(ctx: Context, requests: Sequence[Request], progress: Callable[[int], object]) -> list[str | None]:
    """What the engine writes for requests, in their order; None where it failed."""
    return [None if answer.error else answer.text for answer in ctx.engine.answers(requests, progress)]


def with_tokens(request: Request, names: Sequence[Sequence[str]], tokens: torch.Tensor) -> Request:
    """The request with `tokens` (slots, kinds, width, hidden) in its slots; `names[i][k]` is the slot of token i, k."""
    soft = {name: tokens[i, k].numpy() for i, row in enumerate(names) for k, name in enumerate(row)}
    return replace(request, soft=soft)


# -- figures ----------------------------------------------------------------------------------------------------------


def interval(estimate: Estimate) -> dict[str, float | None]:
    """A mean and the ends of its 95 % interval."""
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _column(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(values, np.float64).reshape(1, -1, 1)


def _numbered(users: Sequence[str]) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.unique(np.asarray(users), return_inverse=True)[1].astype(np.intp)
