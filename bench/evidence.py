"""What the contract kit looks at: a method's requests and texts, the files it saved, and what it tried to reach."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.types import SLOT_CLOSE, SLOT_OPEN, Message, Request, Steering

_CLOSE = 1e-5
_RUN = 8
"""So many words of a reference in a row do not get into a prompt by chance."""


@dataclass(frozen=True)
class Finding:
    """One thing that a method does and must not do."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@contextlib.contextmanager
def no_network() -> Iterator[list[str]]:
    """Inside, every attempt to reach another machine raises ConnectionRefusedError and is noted in the list given."""
    attempts: list[str] = []

    def guarded(name: str) -> Callable[..., Any]:
        real = getattr(socket.socket, name)

        def call(self: socket.socket, *arguments: Any) -> Any:
            if self.family == getattr(socket, "AF_UNIX", None):
                return real(self, *arguments)
            return refuse(arguments[-1])

        return call

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        attempts.append(repr(address))
        raise ConnectionRefusedError(f"no network here: {address!r}")

    with contextlib.ExitStack() as stack:
        for name in ("connect", "connect_ex", "sendto"):
            stack.enter_context(mock.patch.object(socket.socket, name, guarded(name)))
        for name in ("getaddrinfo", "gethostbyname"):
            stack.enter_context(mock.patch.object(socket, name, refuse))
        yield attempts


@dataclass(frozen=True)
class Outcome:
    """What a method asked for some examples, and the texts it made."""

    requests: tuple[Request, ...]
    texts: Mapping[str, str]
    """Example id -> text."""

    def only(self, example_id: str) -> Outcome:
        """The part of one example."""
        texts = {example: text for example, text in self.texts.items() if example == example_id}
        return Outcome(tuple(r for r in self.requests if r.example_id == example_id), texts)


def same(check: str, left: Outcome, right: Outcome) -> Iterator[Finding]:
    """Where `right` differs from `left`, on what stands in `left`."""
    others = {request.example_id: request for request in right.requests}
    for request in left.requests:
        example_id, other = request.example_id, others.get(request.example_id)
        if other is None:
            yield Finding(check, f"no request for {example_id}")
        elif request.messages != other.messages:
            yield Finding(check, f"the prompt of {example_id} changes")
        elif (request.seed, request.sampling) != (other.seed, other.sampling):
            yield Finding(check, f"seed or sampling of {example_id} changes")
        elif not _close(request, other):
            yield Finding(check, f"soft vectors or steering of {example_id} change by more than {_CLOSE}")
        elif request.contrast != other.contrast or not _same_adapter(request.user_adapter, other.user_adapter):
            yield Finding(check, f"the user's adapter of {example_id} changes by more than {_CLOSE}")
    for example_id, text in left.texts.items():
        if right.texts.get(example_id) != text:
            yield Finding(check, f"the text of {example_id} changes")


def _close(left: Request, right: Request) -> bool:
    return (
        left.soft.keys() == right.soft.keys()
        and all(
            np.allclose(np.asarray(left.soft[name]), np.asarray(right.soft[name]), atol=_CLOSE) for name in left.soft
        )
        and _same_steering(left.steering, right.steering)
    )


def _same_steering(left: Steering | None, right: Steering | None) -> bool:
    if left is None or right is None:
        return left is right
    if (left.layer, left.prompt) != (right.layer, right.prompt):
        return False
    return np.allclose(np.asarray(left.vector), np.asarray(right.vector), atol=_CLOSE)


def _same_adapter(left: str | None, right: str | None) -> bool:
    """By what is in the files: they lie in different places."""
    if left is None or right is None:
        return left is right
    from safetensors.numpy import load_file

    mine, others = load_file(left), load_file(right)
    return mine.keys() == others.keys() and all(np.allclose(mine[k], others[k], rtol=0, atol=_CLOSE) for k in mine)


def told(error: Exception) -> str:
    """An exception in one line, with the place it came from: the innermost one outside installed libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if "site-packages" not in frame.filename][-1]
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first} ({Path(place.filename).name}, line {place.lineno})"


def saved_files(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def plain(name: str, data: bytes) -> bool:
    """Whether a file is what its ending says, and that is safetensors, JSON or text."""
    try:
        if name.endswith(".safetensors"):
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        elif name.endswith(".json"):
            json.loads(data)
        else:
            data.decode("utf-8")
            return name.endswith((".jsonl", ".txt", ".md"))
    except ValueError:
        return False
    return True


def runs(text: str) -> list[tuple[str, ...]]:
    """All runs of eight words."""
    words = text.split()
    return [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]


def slot_names(messages: Sequence[Message]) -> set[str]:
    """Names of the soft slots in messages."""
    pattern = f"{SLOT_OPEN}([^{SLOT_CLOSE}]+){SLOT_CLOSE}"
    return {name for message in messages for name in re.findall(pattern, message.content)}
