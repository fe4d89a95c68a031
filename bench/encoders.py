"""Texts to vectors: any encoder that transformers can load, cached on disk, the same bits whatever else is encoded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.embedding_cache import EmbeddingCache, text_key
from bench.errors import UsageError
from bench.keys import digest, utf8
from bench.weights import Source, cache_dir, find_asset, local_folder, planned_revision

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

LONGEST = 512
"""Tokens of a text that are read at most."""
_STEP = 16
"""Padded lengths are multiples of this."""
_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768}
"""By kind of device. Batches are always full, so a large one makes a few texts dear."""


@dataclass(frozen=True)
class EncoderFacts:
    """What is known of an encoder before its weights are loaded."""

    dimension: int
    max_length: int
    """Tokens of a text that are read, special ones included."""
    pooling: str
    """"mean" over the text's tokens, or "cls" for the first one."""


class Encoder:
    """Unit vectors of texts from a frozen transformer, each computed once and kept on disk.

    A vector depends on its own text alone, bit for bit on one machine with one number of threads: the shapes in which
    the model sees a text follow from that text's length, never from its company.
    """

    def __init__(self, source: Source, device: str | None = None) -> None:
        """`device` as torch names it; by default a GPU where there is one. Loads nothing."""
        self.source = source
        self._device = device
        self._facts: EncoderFacts | None = None
        self._identity: dict[str, str] | None = None
        self._cache: EmbeddingCache | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    def identity(self) -> dict[str, str]:
        """Everything that can change a vector. Loads no weights; downloads them if they are named by a hub id."""
        if self._identity is None:
            revision = planned_revision(self.source)
            if revision is None:
                local_folder(self.source)
                revision = planned_revision(self.source)
            facts = self._read_facts()
            self._identity = {
                "name": self.source.label,
                "revision": str(revision),
                "pooling": facts.pooling,
                "max_length": str(facts.max_length),
                "dimension": str(facts.dimension),
                "dtype": self._dtype_name(),
                "device": self._device_type(),
                # The shapes of a batch decide the last bits of a vector.
                "layout": f"padded-{_STEP}-{self._batch_tokens()}",
                "transformers": version("transformers"),
                "torch": version("torch"),
            }
        return dict(self._identity)

    @property
    def dimension(self) -> int:
        """Length of a vector. Known without loading weights."""
        return self._read_facts().dimension

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def load(self) -> None:
        """Loads weights and tokenizer, fetching them if need be. Safe to call twice."""
        if self._model is not None:
            return
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        folder = str(local_folder(self.source))
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            model = AutoModel.from_pretrained(
                folder,
                dtype=getattr(torch, self._dtype_name()),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            first = str(error).strip().partition("\n")[0][:200]
            raise UsageError(f"encoder {self.source.name} cannot be loaded by transformers: {first}") from error
        if self._tokenizer.pad_token_id is None:
            raise UsageError(f"the tokenizer of encoder {self.source.name} has no pad token; set one and save it again")
        self._model = (
            model.to(self._device_type() if self._device is None else self._device).eval().requires_grad_(False)
        )

    def count(self, texts: Sequence[str]) -> int:
        """How many different texts are not in the cache yet, each of which `encode` would have to compute."""
        return len(self.missing(texts))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The different texts that are not in the cache yet, in the order of first sight."""
        index = self._open().index()
        return [text for text in dict.fromkeys(texts) if text_key(text) not in index]

    def encode(self, texts: Sequence[str], progress: bool = False) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), dimension), in the order of the texts.

        An empty text has a vector too: that of a text with no words. What is new is computed in batches of like length
        and each batch is kept at once, so a killed call loses at most one batch. Raises UsageError if the model cannot
        be had or gives values that are not finite.
        """
        import numpy as np

        cache = self._open()
        index = cache.index()
        missing = {key: text for text in texts if (key := text_key(text)) not in index}
        if missing:
            self.load()
            self._compute(missing, cache, progress)
            index = cache.index()
        rows = np.fromiter((index[text_key(text)] for text in texts), dtype=np.int64, count=len(texts))
        return cache.rows(rows)

    def _compute(self, texts: dict[bytes, str], cache: EmbeddingCache, progress: bool) -> None:
        from tqdm import tqdm

        keys = list(texts)
        with tqdm(total=len(keys), desc=f"embed ({self.source.label})", unit="text", disable=not progress) as bar:
            ids = self._tokenize([texts[key] for key in keys])
            for bucket, members in self._batches([len(row) for row in ids]):
                vectors = self._forward([ids[i] for i in members], bucket)
                cache.append([keys[i] for i in members], vectors)
                bar.update(len(members))

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        limit = self._read_facts().max_length
        found = self._tokenizer(
            # Lone surrogates, which JSON may hold, cannot be encoded for the tokenizer.
            [utf8(text) for text in texts],
            truncation=True,
            max_length=limit,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        # A tokenizer without special tokens makes nothing of an empty text; one pad token stands for it.
        return [row or [self._tokenizer.pad_token_id] for row in found["input_ids"]]

    def _batches(self, lengths: list[int]) -> Iterator[tuple[int, list[int]]]:
        """(padded length, members) over all texts, long ones first so that memory is asked for early.

        Texts that fill the padded length stay by themselves: where a mask hides nothing, transformers drops it and
        takes another kernel, with other last bits, so one batch must be all full or all padded.
        """
        limit = self._read_facts().max_length
        groups: dict[tuple[int, bool], list[int]] = {}
        for i, length in enumerate(lengths):
            bucket = padded_length(length, limit)
            groups.setdefault((bucket, length == bucket), []).append(i)
        for bucket, full in sorted(groups, reverse=True):
            members, size = groups[bucket, full], self._batch_rows(bucket)
            for start in range(0, len(members), size):
                yield bucket, members[start : start + size]

    def _batch_tokens(self) -> int:
        return _TOKENS_PER_BATCH.get(self._device_type(), _TOKENS_PER_BATCH["cpu"])

    def _batch_rows(self, bucket: int) -> int:
        return max(1, self._batch_tokens() // bucket)

    def _forward(self, ids: list[list[int]], bucket: int) -> NDArray[np.float32]:
        """Vectors of one batch. Always run with the same number of rows, the first text standing in for absent ones."""
        import numpy as np
        import torch

        rows = ids + [ids[0]] * (self._batch_rows(bucket) - len(ids))
        token_ids = torch.full((len(rows), bucket), self._tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), bucket), dtype=torch.long)
        for r, row in enumerate(rows):
            token_ids[r, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[r, : len(row)] = 1
        device = self._model.device
        with torch.inference_mode():
            hidden = self._model(input_ids=token_ids.to(device), attention_mask=mask.to(device)).last_hidden_state
            vectors = pool(hidden.float(), mask.to(device), self._read_facts().pooling)[: len(ids)]
            found: NDArray[np.float32] = vectors.cpu().numpy()
        if not np.isfinite(found).all():
            raise UsageError(
                f"encoder {self.source.name} gives values that are not finite in {self._dtype_name()}; use device cpu"
            )
        return found

    def _open(self) -> EmbeddingCache:
        if self._cache is None:
            identity = self.identity()
            self._cache = EmbeddingCache(cache_dir() / "embeddings" / digest(identity), self.dimension, identity)
        return self._cache

    def _read_facts(self) -> EncoderFacts:
        if self._facts is None:
            known = dict(find_asset(self.source.location).facts) if self.source.origin == "asset" else {}
            if known:
                self._facts = EncoderFacts(int(known["dimension"]), int(known["max_length"]), known["pooling"])
            else:
                self._facts = read_facts(local_folder(self.source), self.source.name)
        return self._facts

    def _device_name(self) -> str:
        if self._device is None:
            import torch

            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        return self._device

    def _device_type(self) -> str:
        return self._device_name().partition(":")[0]

    def _dtype_name(self) -> str:
        """float32 but on CUDA, where bfloat16 is exact enough for vectors that are compared, and never overflows."""
        return "bfloat16" if self._device_type() == "cuda" else "float32"


def padded_length(length: int, limit: int) -> int:
    """Tokens that a text of `length` tokens is padded to: the next larger multiple of 16, at most `limit`."""
    return min(limit, (length // _STEP + 1) * _STEP)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Unit vectors (batch, dimension) from hidden states (batch, length, dimension) and a 0/1 mask (batch, length)."""
    import torch

    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1)


def read_facts(folder: Path, name: str) -> EncoderFacts:
    """Dimension, length and pooling from the files of an encoder's folder, those of sentence-transformers included.

    Raises UsageError for a pooling other than mean or cls, and for further layers behind it.
    """
    config = _json(folder / "config.json", name)
    config = config.get("text_config", config)
    dimension = config.get("hidden_size", config.get("d_model", config.get("dim")))
    if not isinstance(dimension, int):
        raise UsageError(f"encoder {name}: config.json does not say hidden_size")
    limits = [
        _json(folder / "sentence_bert_config.json", name).get("max_seq_length"),
        _json(folder / "tokenizer_config.json", name).get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    found = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return EncoderFacts(dimension, min([LONGEST, *found]), _pooling(folder, name))


def _pooling(folder: Path, name: str) -> str:
    path = "1_Pooling"
    modules = _json(folder / "modules.json", name)
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UsageError(f"encoder {name} has a {kind} layer behind the transformer, which is not supported")
        path = str(module.get("path") or path) if kind == "Pooling" else path
    if isinstance(modules, list) and not (folder / path / "config.json").is_file():
        raise UsageError(f"encoder {name}: modules.json names {path}/config.json, which is missing; copy it as well")
    config = _json(folder / path / "config.json", name)
    chosen = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and "_mode_" in key}
    chosen |= {str(config["pooling_mode"])} if "pooling_mode" in config else set()
    wanted = {re.sub(r"_(tokens?)$", "", mode) for mode in chosen} or {"mean"}
    if wanted not in ({"mean"}, {"cls"}):
        raise UsageError(f"encoder {name} pools by {' and '.join(sorted(chosen))}; only mean and cls are supported")
    return wanted.pop()


def _json(path: Path, name: str) -> Any:
    """The contents of a JSON file, or {} where there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"encoder {name}: {path.name} cannot be read as JSON: {error}") from error


class HashEncoder(Encoder):
    """A stand-in with no weights: a text is the sum of one random direction for each of its words.

    Texts that share words are close. Deterministic everywhere; for tests and dry runs.
    """

    def __init__(self, dimension: int = 32) -> None:
        super().__init__(Source("hash", "encoder", "asset", "hash", fetched=True), device="cpu")
        self._size = dimension

    def identity(self) -> dict[str, str]:
        """Name and dimension."""
        return {"name": "hash", "revision": "1", "dimension": str(self._size)}

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._size

    def load(self) -> None:
        """Nothing to load."""

    def missing(self, texts: Sequence[str]) -> list[str]:
        """All different texts: nothing is kept."""
        return list(dict.fromkeys(texts))

    def encode(self, texts: Sequence[str], progress: bool = False) -> NDArray[np.float32]:
        """Unit vectors, float32 of shape (len(texts), dimension)."""
        import numpy as np

        vectors = np.zeros((len(texts), self._size), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            # The leading mark gives a text without words a direction of its own.
            total = np.sum([self._direction(word) for word in ["\x00", *re.findall(r"\w+", text.lower())]], axis=0)
            row[:] = total / np.linalg.norm(total)
        return vectors

    def _direction(self, word: str) -> NDArray[np.float64]:
        import numpy as np

        seed = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8]
        return np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(self._size)
