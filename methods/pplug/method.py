"""Persona-Plug: one soft token for a user, made of the whole history by what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.encoders import HashEncoder
from bench.engines.base import LanguageModel
from bench.files import pretty_json
from bench.keys import request_seed
from bench.method import About, Context, Method, TrainingPlan
from bench.training import TrainingLog, build_rows, dev_meteor, latest_targets, planned_tokens, train
from bench.types import Capability, Example, LabeledSplit, Message, Request, Sampling
from methods.pplug.config import PPlugConfig
from methods.pplug.texts import SLOTS, history_text, input_text, prompt, slots, with_copies

if TYPE_CHECKING:
    from torch import Tensor

    from methods.pplug.modules import LinearInput, PPlugModule, Prepared, Read, TrainedInput

_MEASURED = 256
"""Training rows whose persona is measured before training, about."""


class PPlug(Method):
    """One soft token for a user's whole history, weighted by what is asked (Liu et al., ACL 2025)."""

    name = "pplug"
    about = About(
        "Liu, ACL", 2025, "https://aclanthology.org/2025.acl-long.461/", trains="input encoder, MLP, instruction vector"
    )
    Config = PPlugConfig
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.SOFT_PROMPT, Capability.TRAIN})
    config: PPlugConfig

    def __init__(self, config: PPlugConfig | None = None) -> None:
        super().__init__(config)
        self.log: TrainingLog | None = None
        self.module: PPlugModule | None = None
        self._read: Read | None = None

    def wants_encoder(self) -> bool:
        return True

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return prompt(example, self.config, ctx).messages

    def prepare(self, examples: Sequence[Example], ctx: Context) -> tuple[list[Prepared], Tensor]:
        """Prompts and queries of examples, and the table of vectors (texts, size) that their histories point into."""
        import torch

        from methods.pplug.modules import Prepared

        assert self._read is not None, "fit or load first"
        numbers: dict[str, int] = {}
        members = [
            [numbers.setdefault(history_text(ctx.task, document, self.config), len(numbers)) for document in e.history]
            for e in examples
        ]
        table = _embed(list(numbers), ctx)
        queries = self._read([input_text(ctx.task, e, self.config) for e in examples])
        prepared = [
            Prepared(prompt(e, self.config, ctx), query, torch.tensor(own, dtype=torch.long))
            for e, query, own in zip(examples, queries, members, strict=True)
        ]
        return prepared, table

    # -- training -----------------------------------------------------------------------------------------------

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        examples = latest_targets(train, self.config.targets_per_user)
        rows = sum(1 for _ in with_copies(examples, self.config, ctx.seed))
        tokens = planned_tokens(examples, train.references, lambda e: self.preview(e, ctx), ctx)
        texts = {history_text(ctx.task, document, self.config) for e in examples for document in e.history}
        if self.config.input_encoder == "linear":
            texts |= {input_text(ctx.task, e, self.config) for e in examples}
        smaller = "--train-limit, --set pplug.copies=2, --set pplug.epochs=1, --set pplug.input_encoder=linear"
        whole = round(tokens * rows / max(1, len(examples)))
        return TrainingPlan(rows, whole, self.config.epochs, smaller, ctx.encoder.missing(sorted(texts)))

    def fit(self, train_split: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        import torch

        from methods.pplug.modules import PersonaPrompts

        lm, config = ctx.engine.language_model(), self.config
        inputs = self._inputs(ctx)
        examples = list(with_copies(latest_targets(train_split, config.targets_per_user), config, ctx.seed))
        dev_examples = latest_targets(dev, config.targets_per_user, config.max_dev)
        everything, count = [*examples, *dev_examples], len(examples)
        prepared, table = self.prepare(everything, ctx)
        table = table.to(lm.device)
        # Rows of both sets share one numbering, so that what a row needs is found by its index alone.
        rows = build_rows(
            lm,
            everything,
            [p.prompt.messages for p in prepared],
            {**train_split.references, **dev.references},
            config.max_target_tokens,
            [dict.fromkeys(slots(e), 1) for e in everything],
        )
        seed = request_seed(ctx.seed, "pplug", "fit")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = self._new_module(lm, inputs, table, prepared[:count])
            self.log = train(
                lm,
                rows[:count],
                rows[count:],
                PersonaPrompts(self.module, table, prepared),
                config,
                seed,
                "fit pplug",
                work=ctx.work,
                dev_score=self._dev_score(dev_examples, prepared[count:], table, dev.references, ctx),
                tracker=ctx.tracker,
            )

    def _inputs(self, ctx: Context) -> TrainedInput | LinearInput:
        """The input encoder before training; keeps how it reads texts."""
        from methods.pplug.modules import LinearInput, trained_input

        if self.config.input_encoder == "trained" and not isinstance(ctx.encoder, HashEncoder):
            inputs, self._read = trained_input(ctx.encoder)
            return inputs
        self._read = lambda texts: list(_embed(texts, ctx))
        return LinearInput(ctx.encoder.dimension)

    def _new_module(
        self, lm: LanguageModel, inputs: TrainedInput | LinearInput, table: Tensor, given: Sequence[Prepared]
    ) -> PPlugModule:
        import torch

        from methods.pplug.modules import PPlugModule, embedding_norm, soft_tokens

        size, hidden_size = table.shape[1], lm.model.get_input_embeddings().weight.shape[1]
        module = PPlugModule(inputs, size, hidden_size, self.config.temperature).to(lm.device).eval()
        known = [one for one in given if len(one.members)]
        with torch.no_grad():
            measured = known[:: max(1, len(known) // _MEASURED)]
            personas = [soft_tokens(module, table, [one])[1:] for one in measured]
        module.calibrate(torch.cat([table.new_zeros(0, hidden_size), *personas]), embedding_norm(lm))
        return module

    def _dev_score(
        self,
        examples: Sequence[Example],
        prepared: Sequence[Prepared],
        table: Tensor,
        references: Mapping[str, str],
        ctx: Context,
    ) -> Callable[[], float] | None:
        if self.config.select != "meteor":
            return None
        greedy = replace(ctx, sampling=Sampling(0.0, 1.0, self.config.max_dev_new_tokens))

        def requests() -> list[Request]:
            return [self._request(e, p, table, greedy) for e, p in zip(examples, prepared, strict=True)]

        return dev_meteor(ctx.engine, requests, references)

    # -- artifact -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        assert self.module is not None, "fit or load first"
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / "adapter.safetensors")
        size, hidden_size = self.module.sizes
        about = {"embedding_size": size, "hidden_size": hidden_size, "config": self.config.model_dump(mode="json")}
        (folder / "config.json").write_text(pretty_json(about))

    def load(self, folder: Path, ctx: Context) -> None:
        import torch
        from safetensors.torch import load_file

        from methods.pplug.modules import PPlugModule

        about = json.loads((folder / "config.json").read_text())
        with torch.random.fork_rng():  # all that is drawn here is replaced
            sizes = about["embedding_size"], about["hidden_size"]
            module = PPlugModule(self._inputs(ctx), *sizes, self.config.temperature)
        module.load_state_dict(load_file(folder / "adapter.safetensors"))
        # Where the frozen encoder runs, which every key names: its trained copy is as large.
        self.module = module.to(ctx.encoder.identity().get("device", "cpu")).eval()

    def card(self) -> Mapping[str, str]:
        return {"weights": _WEIGHTS, "use": _USE, "citation": _CITATION}

    # -- generation ---------------------------------------------------------------------------------------------

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        assert self.module is not None, "fit or load first"
        prepared, table = self.prepare(examples, ctx)
        table = table.to(self.module.scale.device)
        return [self._request(e, p, table, ctx) for e, p in zip(examples, prepared, strict=True)]

    def _request(self, example: Example, prepared: Prepared, table: Tensor, ctx: Context) -> Request:
        """One example at a time: its soft tokens do not depend on its company, not even in their last bits."""
        import torch

        from methods.pplug.modules import soft_tokens

        assert self.module is not None, "fit or load first"
        self.module.eval()
        with torch.no_grad():
            tokens = soft_tokens(self.module, table, [prepared]).cpu().numpy()
        soft = {name: tokens[i : i + 1] for i, name in enumerate(SLOTS[: len(tokens)])}
        return ctx.request(example, prepared.prompt.messages, soft=soft)


def _embed(texts: Sequence[str], ctx: Context) -> Tensor:
    """Frozen vectors of texts: (texts, size)."""
    import torch

    with ctx.meter.phase("embed"):
        return torch.from_numpy(ctx.encoder.encode(texts, progress=True))


_WEIGHTS = """An input encoder (a trained copy of the text encoder in float32, or one matrix, by the knob
`input_encoder`), an MLP from the encoder's vectors to the width of the language model, and an instruction vector with
an MLP of its own. They are the same for all users and hold no vector of any user; a trained encoder can pick up words
of its training inputs. Language model and text encoder are not in the folder; they load apart."""
_USE = """```python
from methods.pplug import PPlug, PPlugConfig

method = PPlug(PPlugConfig(**knobs))  # those told above
method.load(Path("THIS FOLDER"), ctx)
requests = method.requests(examples, ctx)
```

`ctx` is a `bench.method.Context` with the language model and the text encoder named above. Install dep-bench for it."""
_CITATION = """Liu et al., *LLMs + Persona-Plug = Personalized LLMs*, ACL 2025, pages 9373-9385. This is an independent
implementation, not the authors' code."""
