"""A method held against the contract, and what was found in words to act on (`python -m bench check`)."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import registry
from bench.ablation import method_class
from bench.config import Config, build, parse_overrides
from bench.errors import UnknownName, UsageError
from bench.files import pretty_json
from bench.method import Method
from bench.testing import Finding, findings
from bench.types import Capability

MEANINGS = {
    "declares": "The class says what it is: a name, a version, a docstring, and in `needs` all that its requests use.",
    "construct": "An object can be made of a config: MyMethod(MyMethod.Config()).",
    "preview": "preview() shows an example's prompt with nothing fitted and no model loaded, as dry runs do.",
    "training plan": "training_plan() answers before anything is fitted.",
    "fit": "fit() learns from a few users with one or two targets each.",
    "save": "save() writes safetensors, JSON or text into the folder it is given, and no path of this machine.",
    "load": "load() reads into a new object what save() wrote.",
    "model as it was": "After fit() the language model is what it was: same weights and layers, frozen, evaluating.",
    "requests": "requests() makes each request by ctx.request(example, messages), with vectors for every slot.",
    "parse": "parse() makes a text of what the model wrote.",
    "answer": "answer() gives one text an example, in the order of the examples.",
    "order": "requests() gives one request an example, in the order of the examples.",
    "prompt budget": "No prompt takes more than ctx.max_prompt_tokens: bench.prompts.fit_prompt sees to it.",
    "no history": "A user who wrote nothing before is written for, too.",
    "generate": "The engine answers the requests without an error.",
    "deterministic": "Asked twice, the same: whatever is drawn comes from ctx.seed and the example's id.",
    "permuted users": "The order of the examples changes nothing: keep nothing of one user for the next.",
    "a user alone": "A user gets in company what it gets alone: an example's request depends on no other example.",
    "batch size": "How many requests the engine takes at once changes no prompt.",
    "save and load": "A loaded object asks what the fitted one asks: save all that requests() uses.",
    "shared state": "What another object learns changes nothing here: keep it on self, not on class or module.",
    "blind to references": "What test users really wrote reaches no prompt, no text and nothing that is learned.",
    "deterministic fit": "Two fits with one seed save the same bytes: seed what is drawn, sort what has no order.",
    "no network": "Nothing but the engine talks to other machines, and the kit's engine does not.",
}
"""Check -> what a method holds to that passes it."""

_FIRST = ("deterministic", "deterministic fit")
"""Checks that, broken, break others along with them."""
_UNSEEN = (
    "Not seen by the kit: what differs between processes alone (the built-in hash of a text, the order of a set), "
    "and whether the method is any good."
)


@dataclass(frozen=True)
class Report:
    """What the contract kit said of a method."""

    name: str
    where: str
    """`module:Class`."""
    findings: tuple[Finding, ...]
    advice: str
    """What to do next, in one line."""

    def as_text(self) -> str:
        """Each broken check with what it means, and below it one line a finding."""
        called = f"{self.name} ({self.where})"
        if not self.findings:
            return "\n".join([f"{called} holds to the contract: nothing found", *_wrapped(_UNSEEN), self.advice])
        count = len(self.findings)
        lines = [f"{called} breaks the contract: {count} finding{'s' if count > 1 else ''}"]
        checks = sorted(dict.fromkeys(finding.check for finding in self.findings), key=lambda c: c not in _FIRST)
        for check in checks:
            lines += ["", *_wrapped(f"{check}: {MEANINGS.get(check, '')}")]
            lines += [f"  - {finding.detail}" for finding in self.findings if finding.check == check]
        if checks[0] in _FIRST and checks[-1] not in _FIRST:
            lines += ["", f"Mend {checks[0]!r} first: what is drawn anew each time also shows under the other checks."]
        return "\n".join(lines)

    def as_json(self) -> str:
        """The same as one object: name, class, ok, findings."""
        found = [{"check": f.check, "detail": f.detail, "meaning": MEANINGS.get(f.check, "")} for f in self.findings]
        return pretty_json({"name": self.name, "class": self.where, "ok": not found, "findings": found}).rstrip("\n")


def check(target: str, assignments: Sequence[str]) -> Report:
    """Runs the contract kit on `target`: a registered name, or module:Class, looked for in the current folder first.

    `assignments` are knobs, KEY=VALUE or NAME.KEY=VALUE. Raises UsageError for a target that is no method or cannot be
    imported, and for knobs that its Config does not take.
    """
    with _current_folder():
        cls = _imported(target) if ":" in target else _registered(target)
        name = cls.name if isinstance(getattr(cls, "name", None), str) else cls.__name__
        where = f"{cls.__module__}:{cls.__qualname__}"
        if not (isinstance(cls.Config, type) and issubclass(cls.Config, Config)):
            raise UsageError(f"{where}: its Config must be a class that derives from bench.config.Config")
        knobs = _knobs(assignments, name)
        if knobs:
            build(cls.Config, knobs, name)
        _quiet(cls)
        return Report(name, where, tuple(findings(cls, **knobs)), _advice(cls, name))


def _quiet(cls: type[Method]) -> None:
    """No bars of transformers, which stay on the screen, for a method that makes the kit use it."""
    if cls.needs - {Capability.TEXT, Capability.TRUTH}:
        from transformers.utils import logging

        logging.disable_progress_bar()


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Inside, modules of the current folder are found, whichever way the command was started."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _registered(name: str) -> type[Method]:
    known = registry.names("method")
    if name not in known:
        raise UnknownName("method", name, known, f"A class that is not installed is given as {_guess(name)}.")
    return method_class(name)


def _guess(name: str) -> str:
    """How a class in this folder is given, where there is a module of that name; else how any is."""
    file = Path(f"{Path(name).stem.replace('-', '_')}.py")
    classes = re.findall(r"^class (\w+)\(", file.read_text(errors="replace"), re.M) if file.is_file() else []
    return f"{file.stem}:{classes[-1]}" if classes else "module:Class, such as my_method:MyMethod"


def _imported(target: str) -> type[Method]:
    module, _, name = target.rpartition(":")
    if module.endswith(".py") or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
        stem = Path(module).stem or "my_method"
        raise UsageError(
            f"{module!r} is no module; name it without folder and ending, as in {stem}:{name or 'MyMethod'}"
        )
    found = _import(module)
    classes = {key for key, value in vars(found).items() if _is_method(value) and value.__module__ == module}
    if not hasattr(found, name):
        raise UnknownName(f"class of {module}", name, classes)
    value = getattr(found, name)
    if not _is_method(value):
        kind = value.__name__ if isinstance(value, type) else type(value).__name__
        raise UsageError(f"{target} ({kind}) is no class that derives from bench.method.Method")
    method: type[Method] = value
    return method


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            here = {path.stem for path in Path().glob("*.py")}
            close = difflib.get_close_matches(module, here, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(
                f"there is no module {module!r} in this folder or installed{guess}; "
                "give the command in the folder that holds it"
            ) from error
        raise UsageError(f"module {module!r} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:  # a module is a program of somebody's and may raise anything
        raise UsageError(f"module {module!r} cannot be imported: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An exception in one line, with the place it came from outside of libraries and of the import machinery."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    strange = ("site-packages", "<frozen", f"{os.sep}importlib{os.sep}", __file__)
    places = [frame for frame in frames if not any(part in frame.filename for part in strange)]
    if isinstance(error, SyntaxError) or not places:  # a SyntaxError tells the place itself
        return line
    return f"{line} ({Path(places[-1].filename).name}, line {places[-1].lineno})"


def _knobs(assignments: Sequence[str], name: str) -> dict[str, Any]:
    """KEY=VALUE, and as in `run` NAME.KEY=VALUE."""
    full = []
    for assignment in assignments:
        key, equals, _ = assignment.partition("=")
        if not (equals and key.strip()):
            raise UsageError(f"--set {assignment!r} is not of the form KEY=VALUE, such as k=4")
        full.append(assignment if "." in key else f"{name}.{assignment.strip()}")
    overrides = parse_overrides(full)
    for part in overrides:
        if part != name:
            raise UnknownName("method in --set", part, {name})
    return overrides.get(name, {})


def _advice(cls: type[Method], name: str) -> str:
    """How to go on with a method that is right, by what is registered under its name."""
    if name not in registry.names("method"):
        return "Next: install its package (python -m pip install -e .), so that run --methods finds it."
    try:
        registered = registry.load("method", name)
    except UsageError:  # an installed one that is broken is another one
        registered = None
    if registered is not cls:
        return f"Another method has the name {name!r} ({registry.origin('method', name)}): choose one of its own."
    return f"Next: python -m bench run --methods nonperso,rag,{name} --limit 8"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.strip(), 110)
