"""One call of a chat-completions endpoint: what is sent, what comes back, and whose fault it is when nothing does."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from bench.engines.openai_answers import finish
from bench.engines.openai_limits import retry_after
from bench.errors import MissingPackage, UsageError, first_line
from bench.keys import utf8

ADDRESS_VARIABLE = "OPENAI_BASE_URL"
_OPEN_QUERY = ("api-version",)
"""Parts of a URL's query that are no secret and may change what answers."""
_BUSY = (429, 503, 529)
_FOR_ALL = (401, 402, 403, 404)
_OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "quota_exceeded", "insufficient_balance")
_TOO_LONG = re.compile(r"context.{0,3}(length|window|size)|maximum context|max_model_len|prompt is too long", re.I)
_SHOWN = 300


class Refused(Exception):
    """The server has too much to do; `wait` is for how many seconds it wants to be left alone, if it says so."""

    def __init__(self, why: str, wait: float | None) -> None:
        super().__init__(why)
        self.wait = wait


class Faulty(Exception):
    """This attempt failed and another one may not.

    `usage` is what the server says it took. Without it, `unbilled` tells whether the attempt surely cost nothing.
    """

    def __init__(
        self, why: str, *, usage: Usage | None = None, unbilled: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(why)
        self.usage, self.unbilled, self.unreachable = usage, unbilled, unreachable


class Rejected(Exception):
    """This request fails however often it is sent. `usage` and `unbilled` as of `Faulty`."""

    def __init__(self, why: str, *, usage: Usage | None = None, unbilled: bool = False) -> None:
        super().__init__(why)
        self.usage, self.unbilled = usage, unbilled


class Hopeless(Exception):
    """No request can succeed until somebody mends something."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Reply:
    """What the server wrote."""

    text: str
    finish_reason: str
    usage: Usage | None


@dataclass(frozen=True)
class Address:
    """Where the server is: the whole URL, and what of it may be shown."""

    url: str
    shown: str


def address(given: str) -> Address:
    """The server's URL: `given`, else the environment's OPENAI_BASE_URL.

    Only the environment's may hold a secret (user, password, query), which is left out of `shown`: what is given on a
    command line or in a file is stored beside the runs. Raises UsageError, which never repeats a URL.
    """
    url = given or os.environ.get(ADDRESS_VARIABLE, "").strip()
    told = "--base-url" if given else ADDRESS_VARIABLE
    if not url:
        raise UsageError(
            "engine 'openai' does not know its server: give --base-url, such as http://127.0.0.1:8000/v1, or set "
            f"{ADDRESS_VARIABLE}"
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(f"{told} is no http or https URL; it looks like http://127.0.0.1:8000/v1")
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name in _OPEN_QUERY]
    place = f"[{host}]" if ":" in host else host
    place = place if port is None else f"{place}:{port}"
    shown = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), urlencode(query), ""))
    secret = "@" in parts.netloc or len(query) < len(parse_qsl(parts.query, keep_blank_values=True))
    if given and secret:
        raise UsageError(
            f"{told} holds a user, a password or a query, and it is stored beside the runs; give the whole URL in the "
            f"environment, as {ADDRESS_VARIABLE}, and a key as OPENAI_API_KEY"
        )
    return Address(url, shown)


def key_from(variable: str) -> str | None:
    """The key in this environment variable, None where there is none.

    Raises UsageError, without the key, for one that no header can hold, and where a variable of one's own is not set.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        if variable != "OPENAI_API_KEY":
            raise UsageError(f"openai.key_variable names {variable}, which is not set; set it to the server's key")
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"the key in {variable} holds spaces, line breaks or other signs that no key has; set it anew")
    return key


def hidden(text: str, secrets: tuple[str, ...]) -> str:
    """The text without the secrets, on one line, and not longer than an error should be."""
    for secret in secrets:
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            text = text.replace(form, "[secret]")
    text = " ".join(utf8(text).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def library() -> Any:
    """The openai package. Raises MissingPackage where it is not installed."""
    try:
        import openai
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "openai":
            raise
        raise MissingPackage("openai", "engine 'openai'", extra="openai") from None
    return openai


async def call(client: Any, body: Mapping[str, Any], extra: Mapping[str, Any], seconds: float) -> Reply:
    """One answer, within `seconds` in all. Raises Refused, Faulty, Rejected or Hopeless with the server's own words."""
    openai = library()
    try:
        async with asyncio.timeout(seconds):
            raw = await client.chat.completions.with_raw_response.create(**body, extra_body=dict(extra) or None)
    except TimeoutError:
        raise Faulty(f"timed out: no whole answer within {seconds:g} s") from None
    except openai.APIStatusError as error:
        raise _verdict(error) from None
    except openai.APITimeoutError as error:
        connecting = "Connect" in type(error.__cause__).__name__ or "Pool" in type(error.__cause__).__name__
        raise Faulty(f"timed out: {_cause(error)}", unbilled=connecting, unreachable=connecting) from None
    except openai.APIConnectionError as error:
        connecting = type(error.__cause__).__name__ == "ConnectError"
        raise Faulty(f"connection lost: {_cause(error)}", unbilled=connecting, unreachable=connecting) from None
    except openai.OpenAIError as error:
        raise Faulty(f"no answer: {first_line(error)}") from None
    return parse(raw.text)


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def _verdict(error: Any) -> Exception:
    """What an error status means: for this attempt, for this request, or for all of them."""
    status, told = int(error.status_code), _message(error)
    code = f"{error.code or ''} {error.type or ''}"
    why = f"HTTP {status}: {told}"
    if status == 429 and any(word in code for word in _OUT_OF_MONEY):
        return Hopeless(why)
    if status in _BUSY:
        return Refused(why, retry_after(error.response.headers))
    if status in _FOR_ALL or "model_not_found" in code:
        return Hopeless(why)
    if status >= 500 or status in (408, 409, 425):
        return Faulty(why)
    if "context_length_exceeded" in code or _TOO_LONG.search(told):
        return Rejected(f"too long for the model's context: {why}", unbilled=True)
    return Rejected(why, unbilled=True)


def _message(error: Any) -> str:
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, Mapping) else inner
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    return text.strip() or "no reason given"


def parse(text: str) -> Reply:
    """The answer in a response's body. Raises Faulty for what is none, Rejected for an answer that was withheld."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise Faulty("garbage: the body is not JSON") from None
    if not isinstance(data, dict):
        raise Faulty("garbage: the body is no JSON object")
    usage = _usage(data.get("usage"))
    choices = data.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        told = f": {json.dumps(data['error'])}" if data.get("error") else ""
        raise Faulty(f"no choices in the answer{told}", usage=usage)
    choice: dict[str, Any] = choices[0]
    given = choice.get("message")
    message: dict[str, Any] = given if isinstance(given, dict) else {}
    content, reason = message.get("content"), choice.get("finish_reason")
    if isinstance(content, str):
        return Reply(content, finish(reason or "stop"), usage)
    if reason == "length":
        raise Rejected("the answer is all reasoning and no text: give it a larger --max-new-tokens", usage=usage)
    if reason == "content_filter" or message.get("refusal"):
        raise Rejected(f"withheld by the server: {message.get('refusal') or 'content filter'}", usage=usage)
    raise Faulty("no content in the answer", usage=usage)


def _usage(given: Any) -> Usage | None:
    counts = [given.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(given, dict) else []
    numbers = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return Usage(*numbers) if len(numbers) == 2 else None
