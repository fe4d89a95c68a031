"""A chat-completions server in tests that misbehaves as it is told, and counts what it is asked."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench.engines.base import BatchResult
from bench.engines.fake import FakeEngine
from bench.types import Message, Request, Sampling

KEY = "sk-test-0123456789abcdef"
MODEL = "tiny"
Act = str | tuple[Any, ...]
"""What the server does with a request: "ok", or a fault's name with its arguments (see `_Handler`)."""


@dataclass
class Seen:
    """What the server was asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    """All requests, in the order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """Prompt -> how often it was answered in full."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    at_once: int = 0
    most_at_once: int = 0
    levels: list[int] = field(default_factory=list)
    """How many requests were in flight as each one arrived, itself counted."""


class ApiServer:
    """Listens on a free port of this machine. `script(prompt, attempt, in flight)` says what becomes of a request."""

    def __init__(self, script: Callable[[str, int, int], Act] | None = None, answer: Any = None) -> None:
        self.script = script or (lambda prompt, attempt, level: "ok")
        self.answer = answer or fake_answer
        self.seen = Seen()
        self.delay = 0.0
        self.usage = True
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.release = threading.Event()
        """Set at the end, so that what hangs lets go."""
        server = self

        class Handler(_Handler):
            api = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        return len(self.seen.bodies)


@contextlib.contextmanager
def serving(script: Callable[[str, int, int], Act] | None = None, answer: Any = None) -> Iterator[ApiServer]:
    """A server for the time of the block."""
    api = ApiServer(script, answer)
    thread = threading.Thread(target=api.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.release.set()
        api.http.shutdown()
        api.http.server_close()
        thread.join(10)


def closed_port() -> str:
    """The URL of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def prompt_of(body: Mapping[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


def fake_answer(body: Mapping[str, Any]) -> tuple[str, int, int]:
    """Text, prompt tokens and new tokens: what the fake engine says of the same prompt and seed."""
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    sampling = Sampling(body.get("temperature", 1.0), body.get("top_p", 1.0), body["max_tokens"])
    result: BatchResult = FakeEngine().run([Request("x", "generate", messages, sampling, body.get("seed", 0))])
    (answer,) = result.generations
    return answer.text, len(prompt_of(body).split()) + 7, answer.output_tokens


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    inside = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        api = self.api
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = prompt_of(body)
        with api.lock:
            seen = api.seen
            seen.bodies.append(body)
            seen.headers.append({name.lower(): value for name, value in self.headers.items()})
            seen.times.append(time.monotonic())
            seen.at_once += 1
            self.inside = 1
            seen.most_at_once = max(seen.most_at_once, seen.at_once)
            seen.levels.append(seen.at_once)
            attempt, level = api.attempts[prompt], seen.at_once
            api.attempts[prompt] += 1
        try:
            act = api.script(prompt, attempt, level)
            name, arguments = (act, ()) if isinstance(act, str) else (act[0], act[1:])
            getattr(self, f"act_{name}")(body, prompt, *arguments)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._leave()

    def _leave(self) -> None:
        """Counted as done before its answer is out, so that no client can be ahead of the count."""
        with self.api.lock:
            self.api.seen.at_once -= self.inside
            self.inside = 0

    # -- what can be done with a request ------------------------------------------------------------------------

    def act_ok(self, body: dict[str, Any], prompt: str, wait: float = 0.0) -> None:
        self.api.release.wait(wait + self.api.delay)
        text, read, written, *finish = self.api.answer(body)
        with self.api.lock:
            self.api.seen.answered[prompt] += 1
            self.api.seen.prompt_tokens += read
            self.api.seen.output_tokens += written
        self._whole(200, self._completion([self._choice(text, *finish)], read, written))

    def act_status(
        self,
        body: dict[str, Any],
        prompt: str,
        status: int,
        error: Any = "no",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        told = {"error": error} if isinstance(error, Mapping) else {"error": {"message": error, "type": "t"}}
        self._whole(status, told, headers or {})

    def act_echo(self, body: dict[str, Any], prompt: str, status: int) -> None:
        """An error whose words repeat the key that was sent."""
        self._whole(status, {"error": {"message": f"bad header {self.headers['Authorization']}", "code": "c"}})

    def act_hang(self, body: dict[str, Any], prompt: str) -> None:
        self.api.release.wait(60)
        self.close_connection = True

    def act_drip(self, body: dict[str, Any], prompt: str) -> None:
        """A byte now and then, for ever: no read ever times out."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.api.release.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()
        self.close_connection = True

    def act_cut(self, body: dict[str, Any], prompt: str) -> None:
        """Half of an answer, then nothing."""
        data = json.dumps(self._completion([self._choice("half of it")], 1, 1)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def act_drop(self, body: dict[str, Any], prompt: str) -> None:
        """The connection closes without a word."""
        self.close_connection = True

    def act_garbage(self, body: dict[str, Any], prompt: str, data: str = "<html>not } json") -> None:
        self._send(200, data.encode())

    def act_choices(self, body: dict[str, Any], prompt: str, choices: Sequence[Any] = ()) -> None:
        self._whole(200, self._completion(list(choices), 5, 3))

    def act_finish(self, body: dict[str, Any], prompt: str, finish: Any) -> None:
        """An answer that ended for a reason of the server's own."""
        self._whole(200, self._completion([self._choice("fine", finish)], 5, 3))

    def act_null(self, body: dict[str, Any], prompt: str, finish: str = "stop", **message: Any) -> None:
        self._whole(200, self._completion([self._choice(None, finish)], 5, 3))

    # -- the protocol -------------------------------------------------------------------------------------------

    @staticmethod
    def _choice(text: str | None, finish: str = "stop") -> dict[str, Any]:
        return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}

    def _completion(self, choices: list[Any], read: int, written: int) -> dict[str, Any]:
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices}
        return {**whole, "usage": usage} if self.api.usage else whole

    def _whole(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._leave()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
