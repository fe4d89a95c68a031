"""No network in any test, one thread pool size, no caches shared by accident."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models spend their time waking threads: on two busy cores one thread is several times faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test prints is as wide as it likes, also where pytest's workers are told of a terminal.
os.environ.pop("COLUMNS", None)

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to other machines fail at once; loopback and Unix sockets are this machine's own."""

    def connect(self: socket.socket, address: Any) -> None:
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise ConnectionRefusedError(f"tests use no network: {address!r}")
        _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
