"""Vectors equal a plain loop, depend on their own text alone, and survive being killed on disk."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import encoders
from bench.embedding_cache import EmbeddingCache
from bench.encoders import Encoder, HashEncoder, padded_length, read_facts
from bench.errors import UsageError
from bench.weights import Source, asset_folder, find_asset, is_fetched, resolve

PLAIN = "the a cat dog sat on mat red blue green big small ran home never always"
WORDS = re.findall(r"\S+", PLAIN + " , . !")
BITWISE = [HealthCheck.function_scoped_fixture]


def make_bert(folder: Path, seed: int = 0, positions: int = 64) -> Path:
    """A random BERT with a word tokenizer, saved as a user would save one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(str(folder))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    BertModel(config).eval().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoder(folder: Path) -> Encoder:
    return Encoder(resolve(str(folder), "encoder"), device="cpu")


def sentences(count: int, longest: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(longest + 1))) for _ in range(count)]


def plain(folder: Path, texts: list[str], pooling: str, limit: int) -> np.ndarray[Any, Any]:
    """One text at a time, no padding, in the words of the definition."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder)).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=limit, padding=False, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0].numpy().astype(np.float64)
        vector = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        rows.append(vector / np.sqrt((vector**2).sum()))
    return np.array(rows)


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equals_a_plain_loop(tmp_path: Path, cache: Path, pooling: str) -> None:
    folder = make_bert(tmp_path / "m", seed=1)
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    texts = ["", "cat", *sentences(60, 80)]  # some beyond the 64 positions, which are cut
    found = encoder(folder).encode(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain(folder, texts, pooling, 64), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_order_repetition_and_nothing(bert: Path, cache: Path) -> None:
    one = encoder(bert)
    a, b = one.encode(["cat", "dog"])
    assert (one.encode(["dog", "cat", "dog"]) == np.stack([b, a, b])).all()
    assert one.encode([]).shape == (0, 32)


def test_no_texts_and_no_cache_need_no_weights(bert: Path, cache: Path) -> None:
    one = encoder(bert)
    assert one.encode([]).shape == (0, 32)
    assert one.dimension == 32
    assert not one.loaded


def test_lone_surrogates_are_read_and_told_apart(bert: Path, cache: Path) -> None:
    found = encoder(bert).encode(["cat \ud800", "cat \ud801"])
    assert np.isfinite(found).all()
    assert encoder(bert).count(["cat \ud802"]) == 1


# --- the same bits in any company ----------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=BITWISE)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_a_vector_depends_on_its_text_alone(bert: Path, tmp_path_factory: Any, seed: int, count: int) -> None:
    """Alone, in company, permuted: equal bytes. Lengths reach the limit, where a mask hides nothing."""
    rng = random.Random(seed)
    texts = list(dict.fromkeys(sentences(count, 70, seed)))

    def fresh(group: list[str]) -> dict[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DEP_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
            return {text: row.tobytes() for text, row in zip(group, shared(bert).encode(group), strict=True)}

    together = fresh(texts)
    assert fresh(rng.sample(texts, len(texts))) == together
    assert fresh(rng.sample(texts, len(texts)) + sentences(20, 70, seed + 1)).items() >= together.items()
    alone = rng.choice(texts)
    assert fresh([alone])[alone] == together[alone]


_loaded: dict[Path, Encoder] = {}


def shared(folder: Path) -> Encoder:
    """An encoder with an empty cache but weights already in memory."""
    one = encoder(folder)
    if folder in _loaded:
        one._model, one._tokenizer = _loaded[folder]._model, _loaded[folder]._tokenizer
    else:
        one.load()
        _loaded[folder] = one
    return one


def test_the_shapes_the_model_sees_follow_from_the_text(bert: Path, cache: Path) -> None:
    """Rows follow from the padded length, that from the text; a mask of ones, which transformers drops, stays apart."""
    one = encoder(bert)
    one.load()
    model = one._model
    kinds: set[tuple[int, bool]] = set()

    class Spy:
        device = model.device

        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            lengths = attention_mask.sum(1).tolist()
            width = input_ids.shape[1]
            assert input_ids.shape == attention_mask.shape == (1024 // width, width)
            assert all(padded_length(length, 64) == width for length in lengths)
            assert len({length == width for length in lengths}) == 1
            kinds.add((width, lengths[0] == width))
            return model(input_ids=input_ids, attention_mask=attention_mask)

    one._model = Spy()
    for seed in range(4):
        one.encode(sentences(30, 80, seed))
    assert kinds == {(16, False), (32, False), (48, False), (64, False), (64, True)}


@given(st.integers(1, 600), st.integers(16, 512))
def test_padded_length(length: int, limit: int) -> None:
    length = min(length, limit)
    padded = padded_length(length, limit)
    assert length <= padded <= limit
    assert padded - length <= 16
    assert padded > length or length == limit


# --- the cache -----------------------------------------------------------------------------------------------------


def test_what_is_cached_is_not_computed_again(bert: Path, cache: Path) -> None:
    texts = sentences(30, 40)
    one = encoder(bert)
    assert one.count(texts) == len(set(texts))
    first = one.encode(texts)
    again = encoder(bert)
    assert again.count([*texts, "never seen before"]) == 1
    assert (again.encode(texts[::-1]) == first[::-1]).all()
    assert not again.loaded


def test_other_weights_have_another_cache(tmp_path: Path, cache: Path) -> None:
    one, two = encoder(make_bert(tmp_path / "a", 1)), encoder(make_bert(tmp_path / "b", 2))
    one.encode(["cat"])
    assert two.count(["cat"]) == 1
    assert not np.allclose(one.encode(["cat"]), two.encode(["cat"]))


KILLED = """
import sys
from bench.encoders import Encoder
from bench.weights import resolve
one = Encoder(resolve(sys.argv[1], "encoder"), device="cpu")
one.load()
forward = one._forward
def slow(ids, bucket):
    found = forward(ids, bucket)
    print("batch", flush=True)
    return found
one._forward = slow
one.encode(open(sys.argv[2]).read().split("\\n"))
"""


def test_killed_while_encoding_then_resumed(bert: Path, cache: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(sentences(700, 60)))
    (tmp_path / "texts").write_text("\n".join(texts))
    command = [sys.executable, "-c", KILLED, str(bert), str(tmp_path / "texts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline() == "batch\n"
        os.kill(process.pid, signal.SIGKILL)
    one = encoder(bert)
    left = one.count(texts)
    assert 0 < left < len(texts)  # something was kept, something is still to do
    resumed = one.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEP_BENCH_CACHE", str(tmp_path / "other"))
        undisturbed = encoder(bert).encode(texts)
    assert resumed.tobytes() == undisturbed.tobytes()


def test_unwritable_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set DEP_BENCH_CACHE"):
        encoder(bert).encode(["cat"])


# --- what is said before loading -----------------------------------------------------------------------------------


def test_identity(bert: Path, cache: Path) -> None:
    one = encoder(bert)
    identity = one.identity()
    assert not one.loaded
    assert (identity["name"], identity["pooling"], identity["dtype"]) == ("tiny-bert", "mean", "float32")
    assert (identity["dimension"], identity["max_length"]) == ("32", "64")
    assert all(isinstance(value, str) and not value.startswith("/") for value in identity.values())
    assert encoder(bert).identity() == identity


def test_facts_of_an_asset_are_those_in_its_files(cache: Path) -> None:
    source = Source("minilm", "encoder", "asset", "minilm", fetched=False)
    one = Encoder(source, device="cpu")
    identity = one.identity()  # with nothing fetched into this empty cache
    assert (one.dimension, identity["pooling"], identity["max_length"]) == (384, "mean", "256")
    assert not cache.exists()


def test_weights_that_transformers_cannot_read(tmp_path: Path, cache: Path) -> None:
    folder = make_bert(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-family", "hidden_size": 32}))
    with pytest.raises(UsageError, match="cannot be loaded by transformers") as caught:
        encoder(folder).encode(["cat"])
    assert "\n" not in str(caught.value)


def test_damaged_weights(tmp_path: Path, cache: Path) -> None:
    folder = make_bert(tmp_path / "m")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be loaded by transformers") as caught:
        encoder(folder).encode(["cat"])
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite(tmp_path: Path, cache: Path) -> None:
    one = encoder(make_bert(tmp_path / "m"))
    one.load()
    with torch.no_grad():
        one._model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        one.encode(["cat"])
    assert one.count(["cat"]) == 1


# --- the stand-in --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 64))
def test_hash_encoder(texts: list[str], dimension: int) -> None:
    one = HashEncoder(dimension)
    found = one.encode(texts)
    assert found.shape == (len(texts), dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.ones(len(texts)), atol=1e-5)
    assert (one.encode(texts[::-1]) == found[::-1]).all()
    assert one.missing([*texts, *texts]) == list(dict.fromkeys(texts))


def test_hash_encoder_puts_texts_that_share_words_together() -> None:
    a, b, c = HashEncoder(64).encode(["a fine red kettle", "the red kettle is fine", "opera in two acts"])
    assert a @ b > 0.5 > a @ c + 0.2
    assert HashEncoder(8).identity() != HashEncoder(16).identity()


# --- the real encoder ----------------------------------------------------------------------------------------------

REVIEWS = [
    "I bought this kettle in 2019 and it still works. " * 3,
    "Terrible film: the plot makes no sense!",
    "",
    "A wonderful recording of the string quartets, warm and clear. " * 30,  # beyond 256 tokens
    "日本語 text, with emoji 🎉 and accents: déjà vu.",
]


@pytest.fixture
def minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fetched encoder behind a cache folder of the test's own."""
    if not is_fetched("minilm"):
        pytest.skip("run python -m bench fetch minilm")
    folder = asset_folder(find_asset("minilm"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minilm").symlink_to(folder)
    monkeypatch.setenv("DEP_BENCH_CACHE", str(tmp_path))
    return folder


@pytest.mark.weights
def test_minilm_equals_a_plain_loop(minilm: Path) -> None:
    one = Encoder(resolve("minilm", "encoder"), device="cpu")
    np.testing.assert_allclose(one.encode(REVIEWS), plain(minilm, REVIEWS, "mean", 256), atol=1e-6)
    facts = read_facts(minilm, "minilm")
    assert (facts.dimension, facts.max_length, facts.pooling) == (384, 256, "mean")
    assert one.identity()["max_length"] == "256"


@pytest.mark.weights
def test_minilm_bits_do_not_depend_on_company(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Encoder(resolve("minilm", "encoder"), device="cpu")
    together = one.encode(REVIEWS)
    for i, text in enumerate(REVIEWS):
        alone = Encoder(resolve("minilm", "encoder"), device="cpu")
        alone._model, alone._tokenizer = one._model, one._tokenizer
        alone._cache = EmbeddingCache(tmp_path / f"alone-{i}", 384, {})
        assert alone.encode([text]).tobytes() == together[i].tobytes()


@pytest.mark.weights
def test_minilm_knows_what_is_alike(minilm: Path) -> None:
    texts = ["The kettle boils water quickly.", "This kettle heats water fast.", "The opera was far too long."]
    a, b, c = Encoder(resolve("minilm", "encoder"), device="cpu").encode(texts)
    assert a @ b > 0.7
    assert a @ c < 0.3


def test_nothing_heavy_is_imported_early() -> None:
    code = (
        "import sys, bench.encoders; from bench.weights import resolve;"
        "bench.encoders.Encoder(resolve('minilm', 'encoder'), device='cpu').identity();"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert encoders.LONGEST == 512
