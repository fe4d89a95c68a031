"""Examples with all that a fitted DEP makes of them, for looking into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from bench.method import Context
from bench.types import Example
from methods.dep.learner import soft_tokens, tensors
from methods.dep.prompting import Prepared, with_others_history

if TYPE_CHECKING:
    from methods.dep.method import Dep
    from methods.dep.modules import DepModule

NAMES = ("history", "difference")


@dataclass(frozen=True)
class View:
    """Examples with all that DEP makes of them."""

    method: Dep
    examples: Sequence[Example]
    ctx: Context

    @property
    def module(self) -> DepModule:
        assert self.method.module is not None, "fit or load first"
        return self.method.module

    @property
    def kinds(self) -> list[str]:
        """Kinds of soft token in use, in their order within a review."""
        return [NAMES[kind] for kind in self.module.kinds]

    @property
    def users(self) -> list[str]:
        return [example.user_id for example in self.examples]

    @cached_property
    def prepared(self) -> list[Prepared]:
        examples = self.examples
        if self.method.config.shuffle == "history":
            examples = with_others_history(examples, self.method.config, self.ctx)
        return self.method.prepare(examples, self.ctx)

    @cached_property
    def tokens(self) -> list[torch.Tensor]:
        """(slots, kinds, width, hidden) of each example, on the CPU."""
        device, shape = self.module.scale.device, (len(self.kinds), self.module.width, self.module.sizes[1])
        self.module.eval()
        with torch.no_grad():
            flat = [
                soft_tokens(self.module, [tensors(p.vectors, device)], [p.slots]).cpu().float() for p in self.prepared
            ]
        return [t.reshape(-1, *shape) for t in flat]

    def vectors(self, kind: str) -> list[torch.Tensor]:
        """(reviews, d) of each example: those behind its slots, difference vectors only where there are peers."""
        device, found = self.module.scale.device, []
        for p in self.prepared:
            own, difference, has_peers = (column[: p.slots] for column in tensors(p.vectors, device))
            found.append(own if kind == "history" else difference[has_peers])
        return found

    def of_kind(self, kind: str) -> list[torch.Tensor]:
        """Soft tokens (reviews, hidden) of each example, difference tokens only where there are peers."""
        at, middle = self.kinds.index(kind), self.module.width // 2
        found = []
        for p, tokens in zip(self.prepared, self.tokens, strict=True):
            own = tokens[:, at, middle]
            found.append(own if kind == "history" else own[torch.from_numpy(p.vectors.has_peers[: p.slots])])
        return found


@contextmanager
def bar(label: str, total: int, unit: str = "ex") -> Iterator[Callable[[int], object]]:
    """A progress bar; gives what to call with how many more are done."""
    import sys

    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, mininterval=0.1 if sys.stderr.isatty() else 30.0) as bar:
        yield bar.update
