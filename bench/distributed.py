"""Several processes that train together: who is who, sums over all of them, and the main process's word to the others.

`accelerate launch` and `torchrun` start one command several times and tell each process its number. Number 0, the main
process, does the whole command as it would alone; the others only take part in training. Everything here is plain
torch.distributed, needs no shared disk, and does nothing in a process that was started alone.

An error in any process ends all of them: it is left in the launcher's key-value store, which each process looks at
twice a second, whatever it waits for. The main process prints it; the others say nothing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch

_PATIENCE = timedelta(days=30)
"""How long the others wait for the main process's word, which may write texts for hours between two fits."""

_LOOK = 0.5
"""Seconds between two looks at the store."""

_GRACE = 1.0
"""Seconds that the main process has to say itself what another process has failed with, as it mostly fails alike."""

_TOLD = 15.0
"""Seconds after which a process prints its error itself, as the main process has not."""

_FAILED, _ENDED = "failed", "ended"


def launched() -> bool:
    """Whether a launcher started this command more than once."""
    variables = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and all(name in os.environ for name in variables)


def launched_rank() -> int:
    """This process's number by its launcher; 0 in a process that was started alone."""
    return int(os.environ["RANK"]) if launched() else 0


def rank() -> int:
    """This process's number among those that train together; 0 is the main process, which may be alone."""
    return _group.rank if _group is not None else 0


def size() -> int:
    """How many processes train together."""
    return _group.size if _group is not None else 1


def join() -> None:
    """Joins the processes of this command, on an accelerator of its own where there is one for each.

    Does nothing in a process that was started alone. Raises UsageError if the others cannot be reached.
    """
    global _group
    if _group is None and launched():
        _group = _Group(launched_rank(), int(os.environ["WORLD_SIZE"]))


def leave() -> None:
    """Ends training together: every process calls this once, and the main process is alone from here on."""
    global _group
    group, _group = _group, None
    if group is not None:
        group.close()


def fail(line: str) -> None:
    """Prints `line`, the error with which this process ends, and has all others end: one of them prints, and once."""
    global _group
    group, _group = _group, None
    if group is None:
        print(line, file=sys.stderr, flush=True)
    else:
        group.watch.fail(line)


def add_up(tensor: torch.Tensor) -> None:
    """Puts the sum over all processes into `tensor`, which has the same shape in each of them."""
    if _group is not None:
        import torch

        with _reached():
            torch.distributed.all_reduce(tensor)


def from_main(value: Any = None) -> Any:
    """The main process's `value` (of JSON) in every process; the others wait for it, however long it takes."""
    if _group is None:
        return value
    return json.loads(bytes_from_main(json.dumps(value).encode() if _group.rank == 0 else b""))


def bytes_from_main(data: bytes) -> bytes:
    """The main process's bytes in every process."""
    if _group is None:
        return data
    import torch

    length = torch.tensor([len(data)])
    with _reached():
        torch.distributed.broadcast(length, 0, group=_group.control)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if _group.rank == 0:
            buffer[:] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(buffer):
            torch.distributed.broadcast(buffer, 0, group=_group.control)
    return buffer.numpy().tobytes()


def shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices into `lengths` in `count` shares of nearly equal sums; given are the longest first, so pass them sorted.

    Each goes to the share with the smallest sum, of equal ones to that with the fewest and then to the first. So no
    share but the first is sure to get anything.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index, length in enumerate(lengths):
        least = min(range(count), key=lambda i: (sums[i], len(found[i]), i))
        found[least].append(index)
        sums[least] += length
    return found


class _Group:
    """The processes of this command."""

    def __init__(self, rank: int, size: int) -> None:
        if rank:
            os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: one progress bar is enough
        import torch
        from torch import distributed

        self.rank, self.size = rank, size
        backend = "gloo"
        if torch.cuda.is_available():
            here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", size)), torch.cuda.device_count()
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % devices)
            if here <= devices:  # NCCL wants a device of its own for each process; gloo goes through memory
                backend = "cpu:gloo,cuda:nccl"
        with _reached():
            distributed.init_process_group(backend)
            self.control = distributed.new_group(backend="gloo", timeout=_PATIENCE)
            self.watch = _Watch(rank)

    def close(self) -> None:
        from torch import distributed

        with _reached():
            distributed.barrier(group=self.control)
        self.watch.stop()
        distributed.destroy_process_group()


class _Watch:
    """A thread that ends this process when another one fails: what waits for others in a library hears of nothing."""

    def __init__(self, rank: int) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        # A connection of its own: the group's own may be held up for as long as somebody waits on it.
        client = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"dep-bench/{attempt}", client)
        self._rank = rank
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch others", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def fail(self, line: str) -> None:
        """Called at the end of the process, which comes before this does where another one's line is printed."""
        if self._rank == 0:
            self.stop()
            print(line, file=sys.stderr, flush=True)
            self._end(line)
            return
        self._set(_FAILED, line)
        time.sleep(_TOLD)
        print(line, file=sys.stderr, flush=True)

    def _end(self, line: str) -> None:
        """Ends the others; this process may hold the store that they look at, so it goes last."""
        self._set(_ENDED, line)
        time.sleep(2 * _LOOK)

    def _set(self, key: str, line: str) -> None:
        try:
            self._store.compare_set(key, "", line)
        except RuntimeError:  # the launcher is gone, and with it all others
            return

    def _look(self) -> None:
        while not self._done.wait(_LOOK):
            try:
                if self._rank and self._store.check([_ENDED]):
                    os._exit(2)
                if self._rank == 0 and self._store.check([_FAILED]):
                    self._speak(self._store.get(_FAILED).decode())
            except RuntimeError:
                self._speak("error: the processes that train together have lost their launcher")

    def _speak(self, line: str) -> None:
        if self._done.wait(_GRACE):
            return
        if self._rank == 0:
            print(f"\n{line}", file=sys.stderr, flush=True)  # a progress bar may stand on the line
            self._end(line)
        os._exit(2)  # the other thread may wait for ever; all that is on disk outlives a kill


@contextmanager
def _reached() -> Iterator[None]:
    """Turns what torch raises when another process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        raise UsageError(
            f"another process of this command cannot be reached or has ended: {first_line(error)}"
        ) from error


_group: _Group | None = None
