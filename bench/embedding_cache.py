"""Vectors of texts on disk: two append-only files that stay consistent through `kill -9` and several writers."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HASH_BYTES = 32


def text_key(text: str) -> bytes:
    """SHA-256 of a text in UTF-8, lone surrogates kept: 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """Row i of `vectors.f32` (little-endian float32) belongs to row i of `texts.sha256`.

    A vector is on disk before its key is, so the number of whole rows is the smaller of the two files' counts, and
    what a killed writer left beyond that is cut off by the next one.
    """

    def __init__(self, folder: Path, dimension: int, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.dimension = dimension
        self._identity = dict(identity)
        self._vectors = folder / "vectors.f32"
        self._keys = folder / "texts.sha256"
        self._index: dict[bytes, int] = {}
        self._seen = 0

    def __len__(self) -> int:
        """Whole rows on disk now."""
        return min(self._size(self._keys) // _HASH_BYTES, self._size(self._vectors) // (4 * self.dimension))

    def index(self) -> Mapping[bytes, int]:
        """Key -> row, brought up to date with what other processes appended. Do not keep it over an `append`."""
        count = len(self)
        if count < self._seen:  # somebody emptied the cache
            self._index, self._seen = {}, 0
        if count > self._seen:
            with self._keys.open("rb") as file:
                file.seek(self._seen * _HASH_BYTES)
                block = file.read((count - self._seen) * _HASH_BYTES)
            for i in range(len(block) // _HASH_BYTES):
                self._index.setdefault(block[i * _HASH_BYTES : (i + 1) * _HASH_BYTES], self._seen + i)
            self._seen = count
        return self._index

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some rows, float32 of shape (len(rows), dimension), copied out of a memory map."""
        import numpy as np

        if len(rows) == 0:
            return np.zeros((0, self.dimension), dtype=np.float32)
        stored = np.memmap(self._vectors, dtype="<f4", mode="r", shape=(len(self), self.dimension))
        return np.ascontiguousarray(stored[rows], dtype=np.float32)

    def append(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Adds rows. Keys must be new or, where two processes computed the same text, stand for equal vectors."""
        import numpy as np

        if vectors.shape != (len(keys), self.dimension):
            raise ValueError(f"{len(keys)} keys of dimension {self.dimension} do not fit vectors {vectors.shape}")
        with self._writing():
            count = len(self)
            self._write(self._vectors, count * 4 * self.dimension, np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            self._write(self._keys, count * _HASH_BYTES, b"".join(keys))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from filelock import FileLock

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                self._describe()
                yield
        except OSError as error:
            raise UsageError(
                f"cannot write embeddings into {self.folder}: {error.strerror or error}; "
                "free some space or set DEP_BENCH_CACHE to a folder that can be written"
            ) from error

    def _describe(self) -> None:
        """Leaves a note, for a person who looks, of what the vectors are of."""
        note = self.folder / "identity.json"
        if not note.exists():
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False, encoding="utf-8") as file:
                json.dump(self._identity, file, indent=2, sort_keys=True)
            os.replace(file.name, note)

    @staticmethod
    def _write(path: Path, start: int, data: bytes) -> None:
        """Writes at `start`, drops what lies beyond, and sees it on disk before anything refers to it."""
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0
