"""One adapter a user, trained for many users at once: users share batches, and share nothing else.

The users of a group take their optimizer steps side by side. Rows of all of them go through the frozen model together,
each with its own user's update (see `bench.engines.bank`). Order of rows, mean loss, clipping of gradients, AdamW's
moments and schedule are each user's own. So an adapter is the one that its user would get alone, up to the order in
which floats are added (1e-5 in float32).

Groups are a pure function of the tasks, and one is kept only as a whole: `<folder>/users-<digest>/` holds a file a user
and `users.json`, and takes its name when it is complete. Its digest covers everything that its files depend on. So
whatever was there before, the same tasks end with the same bytes on one machine.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.costs import Cost, as_rows, from_rows, merged
from bench.energy import Stopwatch
from bench.engines import bank
from bench.engines.base import LanguageModel
from bench.engines.batching import by_budget
from bench.errors import UsageError
from bench.files import pretty_json, sync_folder, write_atomic
from bench.keys import digest
from bench.training.checkpoint import rows_digest
from bench.training.config import TrainingConfig
from bench.training.layers import Layers
from bench.training.loss import target_logits
from bench.training.rows import Row
from bench.training.step import schedule

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Of what is kept: raise it when training gives other adapters for the same tasks."""
USERS_FILE = "users.json"
_BETAS, _EPSILON = (0.9, 0.999), 1e-8

Advance = Callable[[int], object]


@dataclass(frozen=True)
class LowRank:
    """The shape of a user's adapter."""

    r: int
    """Rank of the update."""
    alpha: float
    """The update is scaled by alpha / r."""
    modules: tuple[str, ...]
    """Last parts of the names of the linear layers that get one, or ("all-linear",)."""


@dataclass(frozen=True)
class UserTask:
    """What one adapter is trained on."""

    name: str
    """Unique among the tasks; what the adapter is found by."""
    rows: tuple[Row, ...]
    """At least one."""
    seed: int
    """Of the adapter's starting point and of the order of its rows."""


@dataclass(frozen=True)
class UserAdapters:
    """Where adapters lie, and what training them took, whoever did it."""

    paths: Mapping[str, Path]
    """Task name -> file, as `bench.engines.bank` reads it."""
    seconds: float
    rows: int
    tokens: int
    costs: Sequence[Cost]


def target_layers(lm: LanguageModel, modules: tuple[str, ...], knob: str) -> dict[str, tuple[int, int]]:
    """Layer -> (in, out) for each linear layer that gets an update. Raises UsageError, naming `knob`, without any."""
    head = lm.model.get_output_embeddings()
    there = {name: layer for name, layer in bank.linear_layers(lm.model).items() if layer is not head}
    kinds = {name.rpartition(".")[2] for name in there}
    if modules != ("all-linear",) and not set(modules) <= kinds:
        raise UsageError(
            f"{knob}: this model has no layer called {', '.join(sorted(set(modules) - kinds))}; it has "
            f'{", ".join(sorted(kinds))}; choose among these or set {knob}=["all-linear"]'
        )
    chosen = kinds if modules == ("all-linear",) else set(modules)
    return {n: (layer.in_features, layer.out_features) for n, layer in there.items() if n.rpartition(".")[2] in chosen}


# -- training ---------------------------------------------------------------------------------------------------------


class _Bank:
    """The adapters of a group as one float32 matrix (users, numbers of an adapter), with AdamW's moments."""

    def __init__(
        self, layers: Mapping[str, tuple[int, int]], shape: LowRank, seeds: Sequence[int], device: Any
    ) -> None:
        self.layers, self.r, self.scale = layers, shape.r, shape.alpha / shape.r
        start = torch.stack([self._start(seed) for seed in seeds])
        self.flat = start.to(device).requires_grad_(True)
        self.moments = torch.zeros_like(self.flat), torch.zeros_like(self.flat)

    def _start(self, seed: int) -> Tensor:
        """A uniform in +-1/sqrt(in), as peft draws it; B zero."""
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for width, height in self.layers.values():
            parts.append(torch.empty(self.r * width).uniform_(-1, 1, generator=generator) / math.sqrt(width))
            parts.append(torch.zeros(height * self.r))
        return torch.cat(parts)

    def split(self, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> A (rows, r, in) and B (rows, out, r), not scaled."""
        sizes = [size * self.r for pair in self.layers.values() for size in pair]
        parts = iter(torch.split(rows, sizes, dim=1))
        return {
            name: (next(parts).reshape(-1, self.r, width), next(parts).reshape(-1, height, self.r))
            for name, (width, height) in self.layers.items()
        }

    def factors(self, users: Sequence[int]) -> bank.Factors:
        """What each row of a batch gets, by its user's number."""
        # A product with ones and zeros: its gradient is a product again, which adds up in the same order every time.
        choice = torch.nn.functional.one_hot(torch.tensor(users), len(self.flat)).to(self.flat)
        return {name: (a, b * self.scale) for name, (a, b) in self.split(choice @ self.flat).items()}

    @torch.no_grad()
    def update(self, step: int, rates: Sequence[float], config: TrainingConfig) -> None:
        """AdamW (Loshchilov & Hutter 2019) for the first `len(rates)` users, each clipped alone, at its own rate."""
        count = len(rates)
        flat, (mean, square) = self.flat[:count], (moment[:count] for moment in self.moments)
        assert self.flat.grad is not None
        gradient = self.flat.grad[:count]
        norms = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        rate = torch.tensor(rates).to(flat)[:, None]
        flat.mul_(1 - rate * config.weight_decay)
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        corrections = [1 - beta ** (step + 1) for beta in _BETAS]
        flat.sub_(rate / corrections[0] * mean / ((square / corrections[1]).sqrt() + _EPSILON))
        self.flat.grad = None


def train_users(
    lm: LanguageModel,
    tasks: Sequence[UserTask],
    shape: LowRank,
    config: TrainingConfig,
    owner: str = "users",
    advance: Advance = lambda rows: None,
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """The adapter of each task, in their order: layer -> A (r, in) and B (out, r), float32 on the CPU, not scaled.

    Of `config` counts what shapes steps (epochs, lr, weight_decay, warmup, batch_size, max_grad_norm) and how they are
    computed (batch_tokens, gradient_checkpointing, compile). A pure function of its arguments, without dropout: noise
    would depend on who shares the batch. Raises UsageError for a loss that is no number and for layers that there are
    not; it names the method that owns the tasks.
    """
    layers = target_layers(lm, shape.modules, f"{owner}.user_modules")
    # Those with most steps first: who still takes steps is then a beginning of the bank.
    order = sorted(range(len(tasks)), key=lambda i: (-_steps(tasks[i], config), tasks[i].name))
    group = [tasks[i] for i in order]
    own = _Bank(layers, shape, [task.seed for task in group], lm.device)
    plans = [_planned(task, config) for task in group]
    with Layers(lm, config).open():
        for step in range(max(map(len, plans))):
            active = [plan for plan in plans if step < len(plan)]
            _gradients(lm, own, [plan[step] for plan in active], config, owner, advance)
            own.update(step, [config.lr * schedule(step, len(plan), config.warmup) for plan in active], config)
    found = own.split(own.flat.detach().cpu())
    adapters = [{name: (a[i], b[i]) for name, (a, b) in found.items()} for i in range(len(group))]
    return [adapters[order.index(i)] for i in range(len(tasks))]


def _steps(task: UserTask, config: TrainingConfig) -> int:
    return config.epochs * -(-len(task.rows) // config.batch_size)


def _planned(task: UserTask, config: TrainingConfig) -> list[list[Row]]:
    """The rows of each of a task's steps."""
    shuffler = random.Random(task.seed)
    steps: list[list[Row]] = []
    for _ in range(config.epochs):
        rows = list(task.rows)
        shuffler.shuffle(rows)
        steps += [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
    return steps


def _gradients(
    lm: LanguageModel,
    own: _Bank,
    steps: Sequence[Sequence[Row]],
    config: TrainingConfig,
    owner: str,
    advance: Advance,
) -> None:
    """Adds up, for each user, the gradient of the mean cross entropy a target token over the rows of their step."""
    targets = [sum(len(row.target) for row in rows) for rows in steps]
    pairs = [(user, row) for user, rows in enumerate(steps) for row in rows]
    for batch in _micro_batches(lm, pairs, config):
        users, rows = [user for user, _ in batch], [row for _, row in batch]
        shares = [1 / targets[user] for user, row in batch for _ in row.target]
        with bank.applied(lm.model, own.factors(users)):
            logits, labels = target_logits(lm, rows, None)
            losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
            objective = (losses * torch.tensor(shares, device=lm.device)).sum()
            objective.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(loss := float(objective.detach())):
            raise UsageError(f"{owner}: a user's loss is {loss}; lower {owner}.user_lr (now {config.lr})")
        advance(len(rows))


def _micro_batches(
    lm: LanguageModel, pairs: Sequence[tuple[int, Row]], config: TrainingConfig
) -> Iterator[list[tuple[int, Row]]]:
    """Rows that go through the model together, whoever's they are: longest first, so that little is padded."""
    budget = config.batch_tokens or (2048 if lm.device.type == "cpu" else 16_384)
    lengths = [row.length for _, row in pairs]
    order = sorted(range(len(pairs)), key=lambda i: (-lengths[i], pairs[i][0], pairs[i][1].index))
    for batch in by_budget(lengths, order, len(pairs), budget):
        yield [pairs[i] for i in batch]


# -- keeping ----------------------------------------------------------------------------------------------------------


def user_adapters(
    lm: LanguageModel,
    tasks: Sequence[UserTask],
    shape: LowRank,
    config: TrainingConfig,
    together: int,
    below: Mapping[str, Any],
    folder: Path,
    owner: str = "users",
) -> UserAdapters:
    """The adapters of all tasks, those of groups that `folder` has not got trained now, `together` users at a time.

    `below` is all that tells the model underneath from any other (engine, shared adapter). What is taken does not
    depend on the order of the tasks. Raises UsageError if another process is training into the same folder.
    """
    from tqdm import tqdm

    order = sorted(tasks, key=lambda task: (-_steps(task, config), task.name))
    groups = [order[i : i + together] for i in range(0, len(order), together)]
    common = {
        "format": FORMAT,
        "below": dict(below),
        "shape": asdict(shape),
        "config": config.model_dump(mode="json"),
        "torch": torch.__version__,
    }
    paths: dict[str, Path] = {}
    costs = []
    rows = sum(len(task.rows) for task in tasks) * config.epochs
    often = 0.1 if sys.stderr.isatty() else 30.0  # a log wants a line now and then
    with tqdm(total=rows, desc=f"{owner}: users' adapters", unit="row", mininterval=often) as bar:
        for group in groups:
            told = [[task.name, task.seed, rows_digest(task.rows)] for task in group]
            place = folder / f"users-{digest({**common, 'tasks': told})}"
            if (place / USERS_FILE).exists():
                bar.update(sum(len(task.rows) for task in group) * config.epochs)
            else:
                _train_group(lm, group, shape, config, place, owner, bar.update)
            paths |= {task.name: place / _file(task) for task in group}
            costs.append(json.loads((place / USERS_FILE).read_bytes()))
    return UserAdapters(
        paths,
        sum(cost["seconds"] for cost in costs),
        sum(cost["rows"] for cost in costs),
        sum(cost["tokens"] for cost in costs),
        merged(one for cost in costs for one in _paid(cost)),
    )


def _paid(told: Mapping[str, Any]) -> list[Cost]:
    """What a group cost; of those trained before this was kept only the seconds are known."""
    return from_rows(told["costs"]) if "costs" in told else [Cost("adapt", None, told["seconds"])]


def _file(task: UserTask) -> str:
    return f"{digest(task.name)}.safetensors"


def _train_group(
    lm: LanguageModel,
    group: Sequence[UserTask],
    shape: LowRank,
    config: TrainingConfig,
    place: Path,
    owner: str,
    advance: Advance,
) -> None:
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(place.parent / ".lock")).acquire(timeout=0):
            if (place / USERS_FILE).exists():  # made by another process since we looked
                return
            watch, started = Stopwatch(), time.perf_counter()
            adapters = train_users(lm, group, shape, config, owner, advance)
            temporary = place.with_name(f"{place.name}.part")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for task, adapter in zip(group, adapters, strict=True):
                bank.save_adapter(temporary / _file(task), adapter, shape.alpha, lm.model.dtype)
            about = {
                "users": len(group),
                "rows": sum(len(task.rows) for task in group) * config.epochs,
                "tokens": sum(row.length for task in group for row in task.rows) * config.epochs,
                "seconds": time.perf_counter() - started,
                "costs": as_rows([Cost.of("adapt", watch.lap())]),
            }
            write_atomic(temporary / USERS_FILE, pretty_json(about))
            os.replace(temporary, place)
            sync_folder(place.parent)
    except Timeout as error:
        raise UsageError(
            f"another process is training users' adapters in {place.parent}; wait for it or choose another --out"
        ) from error
