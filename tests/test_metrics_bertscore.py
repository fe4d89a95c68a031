"""BERTScore on a tiny random model: equal to bert_score, any folder of safetensors, nothing that runs code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.metrics.base import ScoreInput
from bench.metrics.bertscore import BertScore, BertScoreConfig, check_folder

POSITIONS = 24
WORDS = st.sampled_from(["cat", "dog", "sat", "zebra", "😀", "é", "a.", "\n", "cats"])
TEXTS = st.lists(WORDS, max_size=30).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=7)


def save_model(folder: Path, model_max_length: int | None = POSITIONS) -> Path:
    """A BERT of two layers with random weights and a vocabulary of a dozen words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog", "sat", "a", ".", "##s", "é"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    length = {} if model_max_length is None else {"model_max_length": model_max_length}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **length).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture(scope="module")
def metric(model: Path) -> BertScore:
    return BertScore(BertScoreConfig(model=str(model), num_layers=1, batch_size=4))


def given_pairs(pairs: list[tuple[str, str]]) -> list[ScoreInput]:
    return [ScoreInput(str(i), "u", prediction, reference) for i, (prediction, reference) in enumerate(pairs)]


@given(PAIRS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_bert_score_whatever_the_batches(metric: BertScore, model: Path, pairs: list[tuple[str, str]]) -> None:
    from bert_score import BERTScorer

    values = metric.values(given_pairs(pairs))
    scorer = BERTScorer(model_type=str(model), num_layers=1)
    for (prediction, reference), value in zip(pairs, values, strict=True):
        if prediction.strip() and reference.strip():
            expected = scorer.score([prediction], [reference])[2].tolist()
        else:
            expected = [0.0]
        assert value == pytest.approx(expected, abs=1e-6)


def test_a_batch_that_fails_is_taken_text_by_text(metric: BertScore, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("cat sat", "cat"), ("dog", "boom"), ("a cat", "a dog")]
    sound = metric.values(given_pairs([("cat sat", "cat"), ("dog", "dog"), ("a cat", "a dog")]))
    real = type(metric._scorer).score

    def fragile(self: object, cands: list[str], refs: list[str], **options: object) -> object:
        if "boom" in refs:
            raise RuntimeError("boom")
        return real(self, cands, refs, **options)

    monkeypatch.setattr(type(metric._scorer), "score", fragile)
    steps: list[int] = []
    values = metric.values(given_pairs(pairs), steps.append)
    assert values[1] is None
    for i in (0, 2):
        assert values[i] == pytest.approx(sound[i], abs=1e-6)
    assert sum(steps) == 3


def test_a_tokenizer_without_a_length_is_cut_at_the_last_position(tmp_path: Path, metric: BertScore) -> None:
    endless = BertScore(BertScoreConfig(model=str(save_model(tmp_path, None)), num_layers=1))
    pairs = [("cat sat " * 40, "dog sat " * 50)]
    assert endless.values(given_pairs(pairs))[0] == pytest.approx(metric.values(given_pairs(pairs))[0], abs=1e-6)


def test_layers_are_asked_for_where_nobody_knows_them(model: Path) -> None:
    with pytest.raises(UsageError, match=r"--set bertscore.num_layers=N"):
        BertScore(BertScoreConfig(model=str(model))).preflight()
    with pytest.raises(UsageError, match="Invalid num_layers"):
        BertScore(BertScoreConfig(model=str(model), num_layers=9)).values(given_pairs([("a", "a")]))
    assert BertScore()._layers() == 6
    assert BertScore(BertScoreConfig(model="allenai/led-base-16384"))._layers() > 0


def test_signature_names_weights_not_paths(model: Path, copy: Path) -> None:
    def signature(folder: Path) -> str:
        return BertScore(BertScoreConfig(model=str(folder), num_layers=1)).signature()

    original = signature(model)
    assert str(model.parent) not in original
    assert original.partition("weights:")[2] == signature(copy).partition("weights:")[2]
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("1e-12", "1e-06"))
    assert original.partition("weights:")[2] != signature(copy).partition("weights:")[2]


def test_nothing_is_unpickled(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"pickled")
    metric = BertScore(BertScoreConfig(model=str(copy), num_layers=1))
    for use in (metric.preflight, lambda: metric.values(given_pairs([("a", "a")]))):
        with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
            use()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"model_type": "brand-new", "auto_map": {"AutoModel": "modeling.Evil"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization.Evil", None]}}),
    ],
)
def test_code_of_a_model_never_runs(copy: Path, file: str, change: dict[str, object]) -> None:
    (copy / file).write_text(json.dumps({**json.loads((copy / file).read_text()), **change}))
    with pytest.raises(UsageError, match="needs code of its own"):
        check_folder(copy)


def test_adapters_and_misread_paths_are_refused(copy: Path, tmp_path: Path) -> None:
    misread = Path(shutil.copytree(copy, tmp_path / "bert5"))
    with pytest.raises(UsageError, match="for a T5 model"):
        check_folder(misread)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an adapter"):
        check_folder(copy)
