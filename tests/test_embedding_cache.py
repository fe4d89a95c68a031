"""The cache of vectors stays consistent through truncation and with several writers."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.embedding_cache import EmbeddingCache, text_key
from bench.errors import UsageError


def rows(count: int, start: int = 0) -> tuple[list[bytes], np.ndarray[Any, np.dtype[np.float32]]]:
    keys = [text_key(str(i)) for i in range(start, start + count)]
    return keys, np.arange(start * 3, (start + count) * 3, dtype=np.float32).reshape(count, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 160))
def test_truncated_files_lose_only_their_tail(tmp_path_factory: Any, vectors: int, keys: int) -> None:
    """Whatever the two files were cut to, the rows whole in both are right, and appending goes on from there."""
    folder = tmp_path_factory.mktemp("cache")
    EmbeddingCache(folder, 3, {}).append(*rows(5))
    os.truncate(folder / "vectors.f32", vectors)
    os.truncate(folder / "texts.sha256", keys)
    whole = min(vectors // 12, keys // 32)
    cache = EmbeddingCache(folder, 3, {})
    assert len(cache) == whole
    assert dict(cache.index()) == {key: i for i, key in enumerate(rows(whole)[0])}
    cache.append(*rows(2, start=10))
    expected = np.concatenate([rows(whole)[1], rows(2, start=10)[1]])
    fresh = EmbeddingCache(folder, 3, {})
    assert (fresh.rows(np.arange(whole + 2)) == expected).all()
    assert dict(fresh.index()) == dict(cache.index())


def test_two_writers_see_each_other(tmp_path: Path) -> None:
    one, two = EmbeddingCache(tmp_path, 3, {}), EmbeddingCache(tmp_path, 3, {})
    one.append(*rows(4))
    assert len(two.index()) == 4
    two.append(*rows(4, start=2))  # two texts that both computed
    assert one.index() == {key: i if i < 4 else i + 2 for i, key in enumerate(rows(6)[0])}
    found = one.rows(np.array([one.index()[key] for key in rows(6)[0]]))
    assert (found == rows(6)[1]).all()


def test_many_writers_at_once(tmp_path: Path) -> None:
    def write(start: int) -> None:
        cache = EmbeddingCache(tmp_path, 3, {})
        for i in range(10):
            cache.append(*rows(1, start=start + i))

    threads = [threading.Thread(target=write, args=(10 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = EmbeddingCache(tmp_path, 3, {})
    index = cache.index()
    assert len(index) == 40
    assert (cache.rows(np.array([index[key] for key in rows(40)[0]])) == rows(40)[1]).all()


def test_shapes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        EmbeddingCache(tmp_path, 4, {}).append(*rows(2))


def test_nothing_asked_and_nothing_there(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "absent", 3, {})
    assert (len(cache), dict(cache.index())) == (0, {})
    assert cache.rows(np.array([], dtype=np.int64)).shape == (0, 3)
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write embeddings"):
        EmbeddingCache(tmp_path / "file" / "x", 3, {}).append(*rows(1))
