"""One adapter for all users, trained on the task with history in the prompt (Hu et al. 2022)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bench.errors import UsageError
from bench.files import pretty_json
from bench.keys import request_seed
from bench.method import About, Context, Method, TrainingPlan, Variant
from bench.prompts import conversation, fit_prompt
from bench.retrieval import newest_first
from bench.training import (
    Row,
    TrainingConfig,
    TrainingLog,
    build_rows,
    dev_meteor,
    latest_targets,
    planned_tokens,
    train,
)
from bench.types import Capability, Document, Example, LabeledSplit, Message, Request, Sampling

if TYPE_CHECKING:
    import torch


class LoraConfig(TrainingConfig):
    """Knobs of lora. Defaults are those of the published baseline."""

    n_history: int = Field(default=8, ge=0)
    """Most recent past documents in the prompt."""
    r: int = Field(default=8, ge=1)
    """Rank of the update."""
    alpha: float = 8.0
    """The update is scaled by alpha / r."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the update, while training."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an update, or ["all-linear"]."""


class Lora(Method):
    """One LoRA adapter shared by all users, trained with past reviews in the prompt."""

    name = "lora"
    about = About("Hu, ICLR", 2022, "https://arxiv.org/abs/2106.09685", trains="one adapter")
    Config = LoraConfig
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT, Capability.TRAIN, Capability.ADAPTER})
    config: LoraConfig

    def __init__(self, config: LoraConfig | None = None) -> None:
        super().__init__(config)
        self.log: TrainingLog | None = None
        self._state: dict[str, torch.Tensor] = {}
        self._peft_config: Any = None
        self._folder: Path | None = None

    def ablations(self) -> Mapping[str, Sequence[Variant]]:
        return {"history": [Variant("no history", {"n_history": 0})]}

    def prompt(self, example: Example, ctx: Context) -> tuple[Message, ...]:
        """What is asked, within its budget, in training and generation alike; a class of your own may ask otherwise."""

        def build(target: Example, shown: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, target, shown)

        return fit_prompt(build, example, newest_first(example.history)[: self.config.n_history], ctx).messages

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        examples = latest_targets(train, self.config.targets_per_user)
        tokens = planned_tokens(examples, train.references, lambda e: self.prompt(e, ctx), ctx)
        smaller = f"--train-limit, --set {self.name}.epochs=1, --set {self.name}.n_history=4"
        return TrainingPlan(len(examples), tokens, self.config.epochs, smaller)

    def fit(self, train_split: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        import torch
        from peft import LoraConfig as PeftLoraConfig
        from peft import get_peft_model, get_peft_model_state_dict

        lm = ctx.engine.language_model()
        config = self.config
        self._check_modules(lm.model)
        everything = config.target_modules == ("all-linear",)
        self._peft_config = PeftLoraConfig(
            task_type="CAUSAL_LM",
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules="all-linear" if everything else list(config.target_modules),
        )

        def rows(split: LabeledSplit, most: int | None) -> list[Row]:
            examples = latest_targets(split, config.targets_per_user, most)
            prompts = [self.prompt(e, ctx) for e in examples]
            return build_rows(lm, examples, prompts, split.references, config.max_target_tokens)

        train_rows, dev_rows = rows(train_split, None), rows(dev, config.max_dev)
        score = self._dev_score(dev, ctx)
        seed = request_seed(ctx.seed, "lora", "fit")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft calls
                model = get_peft_model(lm.model, self._peft_config)
            try:
                learner = _Adapter(model)
                self.log = train(
                    lm,
                    train_rows,
                    dev_rows,
                    learner,
                    config,
                    seed,
                    f"fit {self.name}",
                    work=ctx.work,
                    dev_score=score,
                    tracker=ctx.tracker,
                )
                state = get_peft_model_state_dict(model)
                self._state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
            finally:
                model.eval()
                model.unload().requires_grad_(False)

    def _dev_score(self, dev: LabeledSplit, ctx: Context) -> Callable[[], float] | None:
        """METEOR of what the model writes while it carries the adapter: the engine runs the very same weights."""
        if self.config.select != "meteor":
            return None
        greedy = Sampling(temperature=0.0, max_new_tokens=self.config.max_dev_new_tokens)
        examples = latest_targets(dev, self.config.targets_per_user, self.config.max_dev)
        requests = [replace(ctx.request(e, self.prompt(e, ctx)), sampling=greedy) for e in examples]
        return dev_meteor(ctx.engine, lambda: requests, dev.references)

    def _check_modules(self, model: Any) -> None:
        import torch

        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        wanted = set(self.config.target_modules)
        if wanted != {"all-linear"} and not wanted <= linear:
            raise UsageError(
                f"{self.name}.target_modules: this model has no layer called {', '.join(sorted(wanted - linear))}; it "
                f"has {', '.join(sorted(linear))}; choose among these or set "
                f'{self.name}.target_modules=["all-linear"]'
            )

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self._state, folder / "adapter_model.safetensors")
        self._peft_config.base_model_name_or_path = None
        self._peft_config.inference_mode = True
        self._peft_config.save_pretrained(str(folder))
        # peft keeps sets of names, whose order changes from process to process.
        path = folder / "adapter_config.json"
        about = json.loads(path.read_text())
        for key, value in vars(self._peft_config).items():
            if isinstance(value, set):
                about[key] = sorted(value)
        path.write_text(pretty_json(about))

    def load(self, folder: Path, ctx: Context) -> None:
        self._folder = folder

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        if self._folder is None:
            raise UsageError(f"{self.name} generates from a saved adapter: call save and load after fit")
        return [ctx.request(e, self.prompt(e, ctx), adapter=str(self._folder)) for e in examples]

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return self.prompt(example, ctx)

    def card(self) -> Mapping[str, str]:
        return {"weights": _WEIGHTS, "use": _USE, "citation": _CITATION}


_WEIGHTS = """A low-rank update of some of the language model's linear layers, the same for all users, as peft saves
it. The language model itself is not in the folder. An adapter can learn phrases of its training texts by heart."""
_USE = """`adapter_config.json` and `adapter_model.safetensors` are a peft adapter:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THE LANGUAGE MODEL")
model = PeftModel.from_pretrained(model, "THIS FOLDER")
```

It was trained on prompts in which a user's past texts are turns of a chat, newest first:
`bench.prompts.conversation` builds them."""
_CITATION = """Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, arXiv 2106.09685."""


class _Adapter:
    """The adapter's weights as something to train."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named.values())

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[None, None]:
        self.model.train(training)
        return None, None

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.named)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, value in state.items():
                self.named[name].copy_(value)
