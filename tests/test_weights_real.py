"""The embedded models themselves, where they are fetched: they read, write and count as their makers meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.weights import fetch, is_fetched


def real(name: str) -> Path:
    if not is_fetched(name):
        pytest.skip(f"run python -m bench fetch {name}")
    return fetch(name)


@pytest.fixture(scope="module")
def smollm() -> tuple[Any, Any]:
    folder = real("smollm2-135m")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.weights
def test_real_model_answers(smollm: tuple[Any, Any]) -> None:
    model, tokenizer = smollm
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 8192)
    assert str(model.dtype) == "torch.bfloat16"


@pytest.mark.weights
def test_real_model_reads_english(smollm: tuple[Any, Any]) -> None:
    """Perplexity of plain prose: near 45 as it should be, in the thousands with wrong weights or a wrong tokenizer."""
    import torch

    model, tokenizer = smollm
    text = (
        "I bought this kettle last winter and it has been boiling water for my tea every morning since. The handle "
        "stays cool, the lid closes firmly, and it switches itself off when it is done. My only complaint is that the "
        "cord is a little short for my kitchen."
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss
    assert 20 < float(torch.exp(loss.float())) < 80
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        assert float(model(shuffled, labels=shuffled).loss) > float(loss) + 2


@pytest.mark.weights
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Cc"], include_characters="\t\n\r"), max_size=60))
def test_real_tokenizer_round_trip(smollm: tuple[Any, Any], text: str) -> None:
    """But for a few control characters and unassigned planes, whose bytes the model's vocabulary does not hold."""
    _, tokenizer = smollm
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.weights
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=0, max_value=10**12), st.sampled_from(["", " ", "a", "$"]))
def test_real_tokenizer_splits_numbers_into_digits(smollm: tuple[Any, Any], number: int, before: str) -> None:
    _, tokenizer = smollm
    tokens = tokenizer.tokenize(f"{before}{number}")
    digits = str(number)
    assert tokens[-len(digits) :] == list(digits)


@pytest.mark.weights
def test_real_tokenizer_specials_and_template(smollm: tuple[Any, Any]) -> None:
    _, tokenizer = smollm
    assert tokenizer("a<|im_end|>b<|endoftext|>")["input_ids"][1::2] == [2, 0]
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    batch = tokenizer(["a", "a b c d"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1


@pytest.mark.weights
def test_real_weights_reload_with_the_hub_switched_off() -> None:
    folder = real("smollm2-135m")
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "m = M.from_pretrained(sys.argv[1]); T.from_pretrained(sys.argv[1]);"
        "print(sum(p.numel() for p in m.parameters()))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True, env=environment
    )
    assert int(done.stdout) == 134_515_008


@pytest.mark.weights
def test_real_wordnet_offsets() -> None:
    """Every line of a data file begins with its own byte offset; carriage returns would shift them."""
    folder = real("wordnet") / "corpora" / "wordnet"
    for pos in ("adj", "adv", "noun", "verb"):
        content = (folder / f"data.{pos}").read_bytes()
        assert b"\r" not in content
        offset = lines = 0
        for line in content.splitlines(keepends=True):
            if not line.startswith(b"  "):
                assert int(line[:8]) == offset
                lines += 1
            offset += len(line)
        assert lines == {"adj": 18156, "adv": 3621, "noun": 82115, "verb": 13767}[pos]  # WordNet 3.0's own counts


@pytest.mark.weights
def test_real_wordnet_in_nltk() -> None:
    folder = real("wordnet")
    code = (
        "import sys, nltk; nltk.data.path.insert(0, sys.argv[1]); from nltk.corpus import wordnet as w;"
        "print(w.get_version(), sorted(l.name() for l in w.synset('car.n.01').lemmas()), w.morphy('churches'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "3.0 ['auto', 'automobile', 'car', 'machine', 'motorcar'] church"
