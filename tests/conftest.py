"""No network in any test, one thread pool size, no caches shared by accident."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections to other machines fail at once; loopback and Unix sockets are this machine's own."""

    def connect(self: socket.socket, address: Any) -> None:
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise ConnectionRefusedError(f"tests use no network: {address!r}")
        _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
