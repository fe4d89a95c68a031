"""The transformers engine and what lies in folders: adapters that come and go, and weights that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_engine import ask, engine_of, lively_model, one_thread, texts

from bench.engines.hf import HFEngine
from bench.errors import UsageError
from bench.types import Sampling

__all__ = ["one_thread"]

SAMPLED = Sampling(0.8, 0.95, 16)
PROMPTS = ("a", "hello there", "the sound is clear and the price is fair")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_model(tmp_path_factory.mktemp("base"))


def adapter(folder: Path, base: Path, seed: int, modules: list[str]) -> str:
    """A LoRA adapter with random weights, saved as a method would save it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=modules)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        adapter(folder / "a", base, 1, ["q_proj", "v_proj"]),
        adapter(folder / "b", base, 2, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]),
    ]


@pytest.fixture
def engine(base: Path) -> HFEngine:
    return engine_of(base)


def weights_of(engine: HFEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.model.state_dict().items()}


def greedy(folder: Path, adapter: str | None, engine: HFEngine, text: str) -> str:
    """The text of a freshly loaded model, with peft and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    ids = torch.tensor([engine.encode(ask(text)).ids])
    end = engine.tokenizer.eos_token_id
    new = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )[0, ids.shape[1] :].tolist()
    return str(engine.tokenizer.decode([i for i in new if i != end], skip_special_tokens=True))


# -- adapters -------------------------------------------------------------------------------------------------------


def test_requests_with_and_without_adapters_may_come_in_any_order(
    base: Path, engine: HFEngine, adapters: list[str]
) -> None:
    before = weights_of(engine)
    expected = {a: [greedy(base, a, engine, text) for text in PROMPTS] for a in (None, *adapters)}
    assert len({tuple(found) for found in expected.values()}) == 3
    first, second = adapters
    for folder in (None, first, None, second, first, first, second, None):
        assert texts(engine, [ask(text, adapter=folder) for text in PROMPTS]) == expected[folder]
    after = weights_of(engine)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_training_gets_the_bare_model_after_an_adapter(engine: HFEngine, adapters: list[str]) -> None:
    bare = engine.language_model().model
    kinds = [type(module) for module in bare.modules()]
    texts(engine, [ask("a", adapter=adapters[0])])
    again = engine.language_model()
    assert again.model is bare
    assert [type(module) for module in again.model.modules()] == kinds
    assert not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())
    assert again.device.type == "cpu"


def test_a_plan_with_adapters_gives_each_request_its_own(engine: HFEngine, base: Path, adapters: list[str]) -> None:
    requests = [ask(text, adapter=a) for a in (None, *adapters) for text in PROMPTS]
    requests = requests[::2] + requests[1::2]
    found: dict[int, str] = {}
    for batch in engine.plan(requests):
        found.update(zip(batch, texts(engine, [requests[i] for i in batch]), strict=True))
    expected = [greedy(base, r.adapter, engine, r.messages[0].content) for r in requests]
    assert [found[i] for i in range(len(requests))] == expected


def test_an_adapter_works_in_bfloat16(base: Path, adapters: list[str]) -> None:
    engine = engine_of(base, dtype="bfloat16")
    requests = [ask(text, i, SAMPLED, adapter=adapters[0]) for i, text in enumerate(PROMPTS)]
    assert texts(engine, requests) == texts(engine, requests)
    assert texts(engine, requests) != texts(engine, [ask(t, i, SAMPLED) for i, t in enumerate(PROMPTS)])


# -- folders that cannot be used ------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def not_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")


def lacks_one(folder: Path) -> None:
    edit(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def another_shape(folder: Path) -> None:
    edit(folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))


def unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonsense"}')


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")


def no_causal_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 259}))


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{broken")


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_short, "cannot be loaded"),
        (not_weights, "cannot be loaded"),
        (lacks_one, r"missing or of another shape, first model\.layers\.1\.mlp\.up_proj\.weight"),
        (another_shape, r"missing or of another shape, first model\.layers\.1\.mlp\.up_proj\.weight"),
        (unknown_family, r"config\.json cannot be used"),
        (broken_config, r"config\.json"),
        (no_causal_model, "cannot be loaded"),
        (broken_tokenizer, "tokenizer cannot be loaded"),
        (no_template, "has no chat template"),
        (broken_template, "chat template cannot render"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_error(
    base: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    damage(folder)
    with pytest.raises(UsageError, match=says) as caught:
        _use(folder)
    assert "\n" not in str(caught.value)


def _use(folder: Path) -> None:
    engine = engine_of(folder)
    assert engine.context_length > 0
    engine.load()


def test_tied_weights_are_not_missing_weights(tmp_path: Path) -> None:
    folder = lively_model(tmp_path, "qwen2", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert len(texts(engine_of(folder), [ask("hello")])) == 1
