"""DEP: differences from peers, compressed and handed to a frozen language model as soft tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.engines.base import LanguageModel
from bench.keys import request_seed
from bench.method import About, Context, Diagnosis, DiagnosisOptions, Method, TrainingPlan, Variant
from bench.training import Row, TrainingLog, build_rows, dev_meteor, latest_targets, planned_tokens, train
from bench.types import Capability, Example, LabeledSplit, Message, Request, Sampling
from methods.dep.config import DepConfig
from methods.dep.controls import controls
from methods.dep.pairs import Floats
from methods.dep.prompting import (
    Prepared,
    messages,
    prepare,
    slot_lengths,
    slot_names,
    texts_behind,
    with_others_history,
)

if TYPE_CHECKING:
    from methods.dep.modules import DepModule


class Dep(Method):
    """How a user differs from peers on the same items, as soft tokens of a frozen model (Qiu et al., EMNLP 2025)."""

    name = "dep"
    about = About(
        "Qiu, EMNLP", 2025, "https://aclanthology.org/2025.emnlp-main.536/", trains="autoencoder, two projectors"
    )
    version = "4"
    Config = DepConfig
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.SOFT_PROMPT, Capability.TRAIN})
    config: DepConfig

    def __init__(self, config: DepConfig | None = None) -> None:
        super().__init__(config)
        self.log: TrainingLog | None = None
        self.module: DepModule | None = None
        self.report: dict[str, float] = {}

    def wants_encoder(self) -> bool:
        return True

    def ablations(self) -> Mapping[str, Sequence[Variant]]:
        return {"controls": controls(self.config)}

    def fit_config(self) -> dict[str, Any]:
        knobs = super().fit_config()
        if self.config.shuffle == "history":  # which only generating knows
            knobs["shuffle"] = "none"
        return knobs

    def diagnose(self, split: LabeledSplit, ctx: Context, options: DiagnosisOptions) -> Diagnosis:
        from methods.dep.diagnosis import diagnose

        return diagnose(self, split, ctx, options)

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return messages(example, self.config, ctx)

    def prepare(self, examples: Sequence[Example], ctx: Context) -> list[Prepared]:
        """Prompts, and the vectors behind their soft slots."""

        def encode(texts: Sequence[str]) -> Floats:
            with ctx.meter.phase("embed"):
                vectors: Floats = ctx.encoder.encode(texts, progress=True)
                return vectors

        return prepare(examples, self.config, ctx, encode)

    # -- training -----------------------------------------------------------------------------------------------

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        examples = latest_targets(train, self.config.targets_per_user)
        tokens = planned_tokens(examples, train.references, lambda e: messages(e, self.config, ctx), ctx)
        smaller = "--train-limit, --set dep.epochs=1, --set dep.n_history=4, --set dep.max_peers=8, "
        smaller += "--set dep.weighting=uniform"
        missing = ctx.encoder.missing(texts_behind(examples, self.config, ctx))
        return TrainingPlan(len(examples), tokens, self.config.epochs, smaller, missing)

    def fit(self, train_split: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        import torch

        from methods.dep.learner import SoftPrompts

        lm = ctx.engine.language_model()
        rows, inputs = self.rows(lm, train_split, None, ctx)
        dev_rows, dev_inputs = self.rows(lm, dev, self.config.max_dev, ctx)
        seed = request_seed(ctx.seed, "dep", "fit")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = self._new_module(lm, inputs, ctx.encoder.dimension)
            learner = SoftPrompts(self.module, lm.device, [*inputs, *dev_inputs], self.config.reconstruction_weight)
            # Rows of both sets share one numbering, so that a row's vectors are found by its index alone.
            shifted = [Row(len(rows) + row.index, row.prompt, row.target) for row in dev_rows]
            self.log = train(
                lm,
                rows,
                shifted,
                learner,
                self.config,
                seed,
                "fit dep",
                work=ctx.work,
                dev_score=self._dev_score(dev, dev_inputs, ctx),
                tracker=ctx.tracker,
            )
        self.report = self._sparsity(inputs)

    def _dev_score(self, dev: LabeledSplit, inputs: Sequence[Prepared], ctx: Context) -> Callable[[], float] | None:
        if self.config.select != "meteor":
            return None
        examples = latest_targets(dev, self.config.targets_per_user, self.config.max_dev)
        greedy = replace(ctx, sampling=Sampling(0.0, 1.0, self.config.max_dev_new_tokens))

        def requests() -> list[Request]:
            return [self.request(e, p, greedy) for e, p in zip(examples, inputs, strict=True)]

        return dev_meteor(ctx.engine, requests, dev.references)

    def rows(
        self, lm: LanguageModel, split: LabeledSplit, most: int | None, ctx: Context
    ) -> tuple[list[Row], list[Prepared]]:
        """Training rows of a split, at most `most`, and what stands behind their soft slots."""
        examples = latest_targets(split, self.config.targets_per_user, most)
        prepared = self.prepare(examples, ctx)
        prompts = [p.prompt.messages for p in prepared]
        lengths = [slot_lengths(self.config, p.slots) for p in prepared]
        rows = build_rows(lm, examples, prompts, split.references, self.config.max_target_tokens, lengths)
        return rows, prepared

    def _new_module(self, lm: LanguageModel, inputs: Sequence[Prepared], size: int) -> DepModule:
        import torch

        from methods.dep.modules import DepModule

        embeddings = lm.model.get_input_embeddings()
        module = DepModule(size, embeddings.weight.shape[1], self.config)
        own, different = _stacked(inputs, size)
        # Measured on what the layer gives out: some families scale embeddings on the way.
        sample = torch.arange(0, embeddings.weight.shape[0], max(1, embeddings.weight.shape[0] // 4096))
        rms = float(embeddings(sample.to(lm.device)).float().pow(2).mean().sqrt())
        module.calibrate(own, different, rms, whole=self.config.calibrate)
        return module.to(lm.device)

    def _sparsity(self, inputs: Sequence[Prepared]) -> dict[str, float]:
        import torch

        assert self.module is not None, "fit or load first"
        stacked = (part.to(self.module.scale.device) for part in _stacked(inputs, self.module.sizes[0]))
        vectors = torch.cat([self.module.centred(part, kind) for kind, part in enumerate(stacked)])
        report = self.module.sparsity(vectors) if len(vectors) else None
        return asdict(report) if report else {}

    # -- artifact -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        assert self.module is not None, "fit or load first"
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / "adapter.safetensors")
        embedding_size, hidden_size = self.module.sizes
        sizes = {"embedding_size": embedding_size, "hidden_size": hidden_size}
        about = {**sizes, "config": self.config.model_dump(), "report": self.report}
        (folder / "config.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")

    def card(self) -> Mapping[str, str]:
        from methods.dep import card

        return {"weights": card.WEIGHTS, "use": card.USE, "citation": card.CITATION}

    def load(self, folder: Path, ctx: Context) -> None:
        import torch
        from safetensors.torch import load_file

        from methods.dep.modules import DepModule

        about = json.loads((folder / "config.json").read_text())
        module = DepModule(about["embedding_size"], about["hidden_size"], self.config)
        module.load_state_dict(load_file(folder / "adapter.safetensors"))
        # A few thousand multiplications: on the CPU in float32, so that soft tokens are the same on every device.
        self.module = module.to(torch.device("cpu")).eval()
        self.report = about["report"]

    # -- generation ---------------------------------------------------------------------------------------------

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        if self.config.shuffle == "history":
            examples = with_others_history(examples, self.config, ctx)
        prepared = self.prepare(examples, ctx)
        return [self.request(e, p, ctx) for e, p in zip(examples, prepared, strict=True)]

    def request(self, example: Example, prepared: Prepared, ctx: Context) -> Request:
        """The request of a prepared example, with the module's soft tokens in its slots."""
        import torch

        from methods.dep.learner import soft_tokens, tensors

        assert self.module is not None, "fit or load first"
        device = self.module.scale.device
        with torch.no_grad():
            tokens = soft_tokens(self.module, [tensors(prepared.vectors, device)], [prepared.slots]).cpu().numpy()
        names = [name for index in range(prepared.slots) for name in slot_names(self.config, index)]
        width = self.module.width
        soft = {name: tokens[i * width : (i + 1) * width] for i, name in enumerate(names)}
        return ctx.request(example, prepared.prompt.messages, soft=soft)


def _stacked(inputs: Sequence[Prepared], size: int) -> tuple[Any, Any]:
    """All own vectors and all difference vectors that there are: (n, size) each."""
    import torch

    empty = torch.zeros(0, size)
    vectors = [p.vectors for p in inputs]
    own = torch.cat([empty, *(torch.from_numpy(v.own) for v in vectors)])
    return own, torch.cat([empty, *(torch.from_numpy(v.difference[v.has_peers]) for v in vectors)])
