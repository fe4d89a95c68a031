"""The contract kit lets good methods through and names what is wrong with bad ones."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_methods import (
    Amnesiac,
    Backwards,
    BatchSize,
    ChangesTheModel,
    CompanyLeak,
    Crashes,
    Dice,
    DisguisedPickle,
    EngineBatch,
    Forgets,
    HalfAmnesiac,
    Learns,
    Nameless,
    NamesPlaces,
    NeedsAFitToPreview,
    OnTheClass,
    OwnSeed,
    Pickles,
    Plain,
    QuietSocket,
    Restless,
    Socket,
    Speechless,
    TakesTheHarnessName,
    TooLong,
    Twice,
    Undeclared,
    Undocumented,
    UserLeak,
    WithoutVectors,
)

import bench.testing
from bench import registry
from bench.errors import UsageError
from bench.method import Context, Method
from bench.prompts import conversation
from bench.testing import ContractViolation, Finding, check_method, findings, no_network, tiny_dataset
from bench.types import Example, LabeledSplit, Message, Request

QUICK: dict[str, dict[str, Any]] = {"dep": {"epochs": 1, "latent_size": 16}, "lora": {"epochs": 1}}
TRAINED = [pytest.param(name, marks=pytest.mark.slow) for name in QUICK]


@pytest.mark.parametrize("name", ["nonperso", "rag", "oracle", *TRAINED])
def test_built_in_methods_hold_to_the_contract(name: str) -> None:
    check_method(registry.load("method", name), **QUICK.get(name, {}))


@pytest.mark.parametrize("retriever", ["dense", "recency", "random"])
def test_so_does_rag_with_its_other_retrievers(retriever: str) -> None:
    check_method(registry.load("method", "rag"), retriever=retriever)


# -- what is wrong, and what the kit says ----------------------------------------------------------------------------


WRONG: list[tuple[type[Method], str, str]] = [
    (UserLeak, "deterministic", "the prompt of .* changes"),
    (UserLeak, "permuted users", "the prompt of .* changes"),
    (CompanyLeak, "permuted users", "the prompt of .* changes"),
    (CompanyLeak, "a user alone", "the prompt of .* changes"),
    (BatchSize, "a user alone", "the prompt of .* changes"),
    (EngineBatch, "batch size", "the prompt of .* changes"),
    (Dice, "deterministic", "the prompt of .* changes"),
    (OwnSeed, "requests", "make it with ctx.request"),
    (Backwards, "order", "in the order of the examples"),
    (Forgets, "no history", "a user without history"),
    (Crashes, "no history", "raised IndexError"),
    (Twice, "order", "one request an example"),
    (Socket, "no network", r"192\.0\.2\.1"),
    (QuietSocket, "no network", r"example\.invalid"),
    (TooLong, "prompt budget", "see fit_prompt"),
    (WithoutVectors, "requests", "other soft vectors than its messages have slots"),
    (Undeclared, "declares", "soft_prompt"),
    (Speechless, "parse", "must return a string"),
    (Restless, "deterministic fit", "different bytes in learned.json"),
    (Pickles, "save", "learned.pkl: save safetensors"),
    (DisguisedPickle, "save", "more.json: save safetensors"),
    (NamesPlaces, "save", "where.txt holds a path"),
    (TakesTheHarnessName, "save", "fit.json is the harness's own"),
    (Amnesiac, "save and load", "the prompt of .* changes"),
    (HalfAmnesiac, "requests", "raised TypeError"),
    (OnTheClass, "shared state", "the prompt of .* changes"),
    (ChangesTheModel, "model as it was", "other weights"),
    (NeedsAFitToPreview, "preview", r"raised TypeError: .* \(bad_methods.py, line \d+\)"),
    (Undocumented, "declares", "needs a docstring"),
    (Nameless, "declares", "name must be a string"),
]


def assert_found(found: Sequence[Finding], check: str, detail: str) -> None:
    assert any(f.check == check and re.search(detail, f.detail) for f in found), [str(f) for f in found]
    assert all("\n" not in str(f) for f in found)


@pytest.mark.parametrize(("cls", "check", "detail"), WRONG, ids=[f"{c.__name__}-{check}" for c, check, _ in WRONG])
def test_what_is_wrong_is_found_and_named(cls: type[Method], check: str, detail: str) -> None:
    assert_found(findings(cls), check, detail)


@pytest.mark.parametrize("cls", [Plain, Learns])
def test_the_methods_that_the_wrong_ones_come_from_are_right(cls: type[Method]) -> None:
    assert findings(cls) == []


# -- references ------------------------------------------------------------------------------------------------------


def first_words(text: str) -> str:
    return " ".join(text.split()[:15])


@pytest.mark.parametrize("cut", [str, first_words], ids=["whole", "fifteen words"])
def test_a_reference_quoted_through_a_global_is_found(cut: Callable[[str], str]) -> None:
    references = tiny_dataset().test.references

    class Quotes(Plain):
        """Knows the answer from elsewhere."""

        def word(self, example: Example) -> str:
            return f"Begin so: {cut(references[example.id])}"

    assert_found(findings(Quotes), "blind to references", "shows in its prompt or text")


def test_a_reference_that_slips_in_while_parsing_is_found() -> None:
    references = tiny_dataset().test.references

    class Parses(Plain):
        """Answers from memory."""

        def parse(self, example: Example, text: str) -> str:
            return references[example.id]

    assert_found(findings(Parses), "blind to references", "shows in its prompt or text")


def hint(references: Any) -> type[Method]:
    class Hints(Plain):
        """Is told how long the answer is."""

        def word(self, example: Example) -> str:
            return f"Write {len(references[example.id])} characters."

    return Hints


def learns_from_test(references: Any) -> type[Method]:
    class Cheats(Learns):
        """Learns the texts of the test."""

        def learn(self, train: LabeledSplit) -> Any:
            return sum(len(text) for text in references.values())

        def word(self, example: Example) -> str:
            return "please"

    return Cheats


@pytest.mark.parametrize(
    ("make", "detail"),
    [(hint, "the prompt of .* changes"), (learns_from_test, "what fit saves depends on the references")],
)
def test_what_only_depends_on_a_reference_is_found(
    make: Callable[[Any], type[Method]], detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word of the reference shows; the method holds on to the very split that the kit works on."""
    dataset = tiny_dataset()
    before = dict(dataset.test.references)
    monkeypatch.setattr(bench.testing, "tiny_dataset", lambda: dataset)
    assert_found(findings(make(dataset.test.references)), "blind to references", detail)
    assert dataset.test.references == before


# -- the kit itself --------------------------------------------------------------------------------------------------


def test_a_violation_names_the_class_and_has_a_line_for_each_finding() -> None:
    with pytest.raises(ContractViolation) as error:
        check_method(BatchSize)
    lines = str(error.value).splitlines()
    assert lines[0] == "BatchSize:"
    assert len(lines) > 1
    assert all(line.startswith("- a user alone: ") for line in lines[1:])


def test_an_unknown_knob_is_named() -> None:
    found = findings(registry.load("method", "rag"), retreiver="bm25")
    assert_found(found, "construct", "did you mean 'retriever'")


def test_no_network_notes_what_was_tried_and_lets_unix_sockets_through(tmp_path: Path) -> None:
    with no_network() as attempts:
        for attempt in (
            lambda: socket.create_connection(("192.0.2.1", 9), timeout=1),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.2", 9)),
            lambda: socket.socket().connect_ex(("192.0.2.3", 9)),
            lambda: socket.gethostbyname("example.invalid"),
        ):
            with pytest.raises(ConnectionRefusedError):
                attempt()
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "s"))
            server.listen()
            client.connect(str(tmp_path / "s"))
    text = " ".join(attempts)
    assert all(there in text for there in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "example.invalid"))
    assert len(attempts) == 4


def test_a_method_that_says_it_must_be_loaded_first_is_taken_at_its_word() -> None:
    class LoadFirst(Learns):
        """Works from what it loaded."""

        loaded = False

        def load(self, folder: Path, ctx: Context) -> None:
            super().load(folder, ctx)
            self.loaded = True

        def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
            if not self.loaded:
                raise UsageError("call load first")
            return super().requests(examples, ctx)

        def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
            return conversation(ctx.task, example, [])

    assert findings(LoadFirst) == []
