"""Where a model comes from: an embedded asset, a local folder or a hub id, told apart without loading anything.

Only safetensors are read, here and everywhere: pickled weights (.bin, .pt) can run code when they are opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.errors import UnknownName, UsageError
from bench.keys import canonical_json, text_digest
from bench.weights_fetch import (
    ASSETS,
    Asset,
    asset_folder,
    assets,
    cache_dir,
    fetch,
    find_asset,
    is_fetched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "ASSETS",
    "Asset",
    "Source",
    "asset_folder",
    "assets",
    "cache_dir",
    "fetch",
    "find_asset",
    "is_fetched",
    "local_folder",
    "planned_revision",
    "resolve",
    "revision",
]

ModelKind = Literal["llm", "encoder"]

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_HASHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "vocab.txt", "merges.txt", "1_Pooling/config.json")
"""Files that can change what a model puts out."""
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "vocab.txt", "merges.txt")
_HUB_NOT = ("onnx/*", "openvino/*", "original/*", "consolidated*", "checkpoint*/*")
"""Copies of the same weights in other forms."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was named, and where it is to be found. Nothing has been loaded or downloaded for it."""

    name: str
    """As the user gave it."""
    kind: ModelKind
    origin: Literal["asset", "folder", "hub"]
    location: str
    """Name of the asset, absolute path of the folder, or `org/name` with an optional `@revision`."""
    fetched: bool
    """Whether its files are on this machine."""

    @property
    def label(self) -> str:
        """A short name for tables and keys; never a path."""
        return Path(self.location).name if self.origin == "folder" else self.location


def resolve(name: str, kind: ModelKind) -> Source:
    """Says what `name` stands for; looks at file names and config.json only.

    An embedded asset comes first, then a folder that exists, then a hub id. Raises UnknownName with the nearest asset;
    UsageError for an asset of another kind, or a folder that lacks config, tokenizer or safetensors.
    """
    if name in ASSETS:
        _check_kind(ASSETS[name], kind)
        return Source(name, kind, "asset", name, is_fetched(name))
    path = Path(name).expanduser()
    if name and path.is_dir():
        _check_folder(path, name, kind)
        return Source(name, kind, "folder", str(path.resolve()), fetched=True)
    if path.is_file():
        raise UsageError(f"{name} is a file; give the folder that holds config.json, tokenizer and *.safetensors")
    if _HUB_ID.fullmatch(name):
        return Source(name, kind, "hub", name, fetched=_snapshot(name) is not None)
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise UsageError(f"there is no model folder {name}; give an existing one, {_known(kind)} or a hub id org/name")
    known = [asset.name for asset in ASSETS.values() if asset.kind == kind]
    raise UnknownName(_called(kind), name, known, "A local folder or a hub id (org/name) is taken as well.")


def local_folder(source: Source, progress: bool = True) -> Path:
    """The folder with the files of a source, fetched or downloaded first where it is not on this machine.

    Raises UsageError if that fails or the files are not usable, with what to do.
    """
    if source.origin == "asset":
        return fetch(source.location, progress=progress)
    if source.origin == "folder":
        path = Path(source.location)
        _check_folder(path, source.name, source.kind)
        return path
    folder = _snapshot(source.location) or _download_snapshot(source.location, progress)
    _check_folder(folder, source.name, source.kind)
    return folder


def planned_revision(source: Source) -> str | None:
    """Names the exact weights, or None for a hub id that has not been downloaded yet (`local_folder` does that).

    An asset: requirement, hash and conversion, the same before and after fetching. A folder: hash of its contents.
    A hub id: the commit.
    """
    if source.origin == "asset":
        return find_asset(source.location).revision
    if source.origin == "folder":
        return revision(Path(source.location))
    folder = _snapshot(source.location)
    return folder.name if folder else None


def revision(folder: Path) -> str:
    """Sixteen hex digits over names and contents of the config, tokenizer and safetensors files of a folder.

    Every file is read once; its hash is kept in the cache and holds while path, size and modification time do.
    """
    note = cache_dir() / "revisions" / f"{text_digest(str(folder.resolve()))}.json"
    known = _read_json(note)
    hashes: dict[str, list[Any]] = {}
    for path in _model_files(folder):
        name, stat = path.relative_to(folder).as_posix(), path.stat()
        entry = known.get(name)
        if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] == [stat.st_size, stat.st_mtime_ns]):
            with path.open("rb") as file:
                entry = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
        hashes[name] = entry
    if hashes != known:
        _write_json(note, hashes)
    return text_digest(canonical_json({name: entry[2] for name, entry in hashes.items()}))


def _model_files(folder: Path) -> Iterator[Path]:
    found = {path for pattern in _HASHED for path in folder.glob(pattern) if path.is_file()}
    yield from sorted(found - {folder / "asset.json"})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    """Atomically; a cache that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(value, file, sort_keys=True)
        os.replace(file.name, path)
    except OSError:
        return


def _called(kind: str) -> str:
    return {"llm": "model", "encoder": "encoder"}.get(kind, "data")


def _known(kind: ModelKind) -> str:
    return " or ".join(asset.name for asset in assets() if asset.kind == kind)


def _check_kind(asset: Asset, kind: ModelKind) -> None:
    if asset.kind == kind:
        return
    if asset.kind == "data":
        raise UsageError(f"{asset.name!r} is data ({asset.upstream}), not a model; use {_known(kind)}")
    is_a = {"llm": "a language model", "encoder": "a text encoder"}
    raise UsageError(
        f"{asset.name!r} is {is_a[asset.kind]} and cannot serve as {is_a[kind]}; "
        f"give it with --{_called(asset.kind)}, and use {_known(kind)} here"
    )


def _check_folder(folder: Path, name: str, kind: ModelKind) -> None:
    """Raises UsageError unless the folder holds config.json, safetensors (every shard) and a tokenizer."""
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"{name} holds no config.json; give the folder that save_pretrained wrote")
    shards = {path.name for path in folder.glob("*.safetensors")}
    if not shards:
        raise UsageError(_no_safetensors(folder, name))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(set(map(str, _read_json(index).get("weight_map", {}).values())) - shards)
        if missing:
            raise UsageError(f"{name} lacks {len(missing)} of its weight files, first: {missing[0]}; copy it again")
    if not any((folder / file).is_file() for file in _TOKENIZER):
        raise UsageError(f"{name} holds no tokenizer; save the model's tokenizer (tokenizer.json) into the same folder")
    architectures = _read_json(config).get("architectures") or []
    writes = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    if kind == "llm" and architectures and not any(str(a).endswith(writes) for a in architectures):
        raise UsageError(f"{name} holds a {architectures[0]}, which does not write text; give a causal language model")


def _no_safetensors(folder: Path, name: str) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        return (
            f"{name} holds {pickled[0]} but no *.safetensors; pickled weights can run code when opened and are not "
            "read: convert them once with save_pretrained (it writes safetensors)"
        )
    return f"{name} holds no *.safetensors; give the folder that save_pretrained wrote"


def _split(hub_id: str) -> tuple[str, str | None]:
    repo, _, wanted = hub_id.partition("@")
    return repo, wanted or None


def _hub_note(hub_id: str) -> Path:
    """Which commit was downloaded for a hub id: later runs keep to it, online or not."""
    return cache_dir() / "hub" / f"{text_digest(hub_id)}.json"


def _snapshot(hub_id: str) -> Path | None:
    """The folder of an earlier `_download_snapshot`, if its files are still there. No network.

    Other programs' downloads do not count: they may have left out files that say how to pool.
    """
    commit = _read_json(_hub_note(hub_id)).get("commit")
    if not isinstance(commit, str):
        return None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(_call_hub(snapshot_download, _split(hub_id)[0], commit, local_files_only=True))
        _check_folder(folder, hub_id, "encoder")
    except (OSError, ValueError, UsageError):
        return None
    return folder


def _call_hub(download: Callable[..., str], repo: str, wanted: str | None, local_files_only: bool = False) -> str:
    return download(
        repo,
        revision=wanted,
        allow_patterns=[*_HUB_FILES],
        ignore_patterns=[*_HUB_NOT],
        local_files_only=local_files_only,
    )


def _download_snapshot(hub_id: str, progress: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, wanted = _split(hub_id)
    try:
        with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
            folder = Path(_call_hub(snapshot_download, repo, wanted))
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise UsageError(
            f"{repo} is gated: accept its terms on its page on the hub, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no model {repo}, or it is private: check the name, or log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{repo} has no revision {wanted!r} on the hub") from error
    except Exception as error:  # the hub's client raises many kinds; their texts may be long and hold addresses
        raise UsageError(
            f"{repo} cannot be downloaded from the hub ({type(error).__name__}): check the network and HF_HUB_OFFLINE, "
            "or download it elsewhere and give its folder"
        ) from error
    _write_json(_hub_note(hub_id), {"commit": folder.name, "hub_id": hub_id})
    return folder
