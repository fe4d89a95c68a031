"""A fitted method as a folder that stands alone: its weights, all that is needed to use them, and a model card.

`config.json` is what the method saved, and beside it, under `bench`, what the run was: method, language model, encoder,
task, prompt budget, sampling, data and cost. Nothing in the folder holds a text, a user or an item of the data, a path
of the machine, or a key.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bench.ablation import method_class
from bench.card import CARD, model_card
from bench.config import build
from bench.errors import UsageError, first_line
from bench.files import file_digest, pretty_json, read_object, write_atomic
from bench.fits import FIT_FILE
from bench.method import EXPORT_CONFIG, EXPORT_FORMAT, EXPORT_SECTION, Method
from bench.reopen import complete_run, fit_folder
from bench.store import MANIFEST, PLAN, StoredRun
from bench.training.log import JOURNAL

_PARTS = ("method", "engine", "batching", "encoder", "sampling", "prompt", "seed", "code")
"""Of a run's description: what is needed to write as it did."""
_NOT_SAVED = (FIT_FILE, JOURNAL, EXPORT_CONFIG, CARD)
"""Files of a fit's folder that are not taken over as they are: told in the card, or written anew."""
_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt")
"""What an export takes over: nothing that could run code when it is opened."""
_SECRET = re.compile(r"(?:^|[._-])(?:key|apikey|token|secret|password|passwd|credentials?|authorization)$", re.I)
_LOGIN = re.compile(r"(?<=//)[^/@\s]+@")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export(path: Path, folder: Path, license_: str | None = None, language: str | None = None) -> list[str]:
    """Writes the export of a run into `folder`, which is new or empty, and returns the names of its files.

    The bytes depend on the run alone. Raises UsageError, with nothing written, for what is no complete run of a method
    that learned something, for a damaged one, and for a folder that holds anything.
    """
    for option, value in (("--license", license_), ("--language", language)):
        if value is not None and not _TAG.fullmatch(value):
            raise UsageError(f"{option} {value!r} is no short name such as {'mit' if option == '--license' else 'en'}")
    run = _run(path)
    fitted = fit_folder(run)
    _check_free(folder)
    files = _saved(fitted)
    config = _config(run, fitted, files)
    told = _method(run).card()
    card = model_card(run, config[EXPORT_SECTION], told, license_, language)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / "export"
        for name in files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fitted / name, made / name)
        write_atomic(made / EXPORT_CONFIG, pretty_json(config))
        write_atomic(made / CARD, card)
        if folder.exists():
            folder.rmdir()
        made.replace(folder)
    return sorted([*files, EXPORT_CONFIG, CARD])


def _method(run: StoredRun) -> Method:
    """The method of a run, unfitted. Raises UsageError where it is not installed or its knobs have changed."""
    cls = method_class(run.method)
    return cls(build(cls.Config, run.description["method"]["config"], f"{run.path / MANIFEST}: {run.method}"))


# -- what is there ----------------------------------------------------------------------------------------------------


def _run(path: Path) -> StoredRun:
    run = complete_run(path)
    if problem := run.damage():
        raise UsageError(f"{problem}; start the run over with --existing overwrite")
    return run


def _check_free(folder: Path) -> None:
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UsageError(f"{folder} is there and not an empty folder; export into a new one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}; choose another folder") from error


def _saved(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what the method saved, but for its config. Every file is looked into first."""
    found = sorted(path for path in folder.rglob("*") if not path.is_dir())
    kept = [path for path in found if path.relative_to(folder).as_posix() not in _NOT_SAVED]
    weights = 0
    for path in kept:
        if path.is_symlink() or path.suffix not in _SUFFIXES:
            raise UsageError(f"{path} is not exported: only safetensors, JSON and text are; see Method.save")
        weights += path.suffix == ".safetensors"
        _check_file(path)
    if not weights:
        raise UsageError(f"{folder} holds no *.safetensors; start the run over with --existing overwrite")
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in kept}


def _check_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{path} is damaged ({first_line(error)}); start the run over with --existing overwrite"
        ) from error


# -- what is told -----------------------------------------------------------------------------------------------------


def _config(run: StoredRun, fitted: Path, files: Mapping[str, str]) -> dict[str, Any]:
    own = read_object(fitted / EXPORT_CONFIG) if (fitted / EXPORT_CONFIG).is_file() else {}
    if EXPORT_SECTION in own:
        raise UsageError(
            f"{fitted / EXPORT_CONFIG} has a key {EXPORT_SECTION!r}, which an export needs; call it otherwise"
        )
    about: Any = run.plan.get("about")
    if not isinstance(about, dict) or "data" not in about:
        raise UsageError(f"{run.path / PLAN} does not say what the data were; start over with --existing overwrite")
    description, fit = run.description, run.manifest["fit"]
    provenance = run.manifest.get("provenance") or {}
    section = {
        "format": EXPORT_FORMAT,
        **{part: description.get(part) for part in _PARTS},
        "packages": provenance.get("packages", {}),
        "python": provenance.get("python"),
        "machine": {key: provenance.get(key) for key in ("cpu", "cores", "device", "platform")},
        "task": about["data"]["task"],
        "data": {
            **{key: description["dataset"][key] for key in ("name", "fingerprint", "selection")},
            **{key: about["data"][key] for key in ("users", "examples", "synthetic")},
        },
        "command": about["config"],
        "fit": {key: value for key, value in fit.items() if key not in ("key", "log")},
        "files": dict(files),
        "weights": _weights(fitted, files),
    }
    config: dict[str, Any] = public({**own, EXPORT_SECTION: section})
    return config


def _weights(fitted: Path, files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """File -> how many tensors and numbers it holds, and of what types."""
    from safetensors import safe_open

    told: dict[str, dict[str, Any]] = {}
    for name in files:
        if name.endswith(".safetensors"):
            with safe_open(fitted / name, framework="numpy") as opened:
                parts = [opened.get_slice(tensor) for tensor in opened.keys()]  # noqa: SIM118 - no mapping
                numbers = sum(math.prod(part.get_shape()) for part in parts)
                types = sorted({part.get_dtype() for part in parts})
                told[name] = {"tensors": len(parts), "numbers": numbers, "types": types}
    return told


def public(value: Any, called: str = "") -> Any:
    """A JSON value without what is nobody else's business.

    Paths that lead out of a working folder become their last part; values called a key, token or password, and logins
    within addresses, go.
    """
    if isinstance(value, Mapping):
        return {key: public(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner, called) for inner in value]
    if _SECRET.search(called) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return "***"
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    name, equals, given = text.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name):  # an assignment of --set
        try:
            parsed = json.loads(given)
        except ValueError:
            parsed = given
        shown = public(parsed, name)
        return f"{name}={shown if isinstance(shown, str) else json.dumps(shown)}"
    text = _LOGIN.sub("", text)
    text = text.removeprefix("file://")
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if posix.is_absolute() or windows.drive or text.startswith(("~", "\\")) or ".." in (*posix.parts, *windows.parts):
        return windows.name
    return text
