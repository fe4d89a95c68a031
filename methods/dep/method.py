"""DEP: differences from peers, compressed and handed to a frozen language model as soft tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.engines.base import LanguageModel
from bench.keys import request_seed
from bench.method import Context, Method, TrainingPlan
from bench.prompts import Fitted, conversation, fit_prompt
from bench.retrieval import newest_first
from bench.training import Row, TrainingLog, build_rows, latest_targets, planned_tokens, train
from bench.types import Capability, Document, Example, LabeledSplit, Message, Request, slot
from methods.dep.config import DepConfig
from methods.dep.differences import Floats, ReviewVectors, review_vectors

if TYPE_CHECKING:
    import torch

    from methods.dep.modules import DepModule


def _slots(index: int) -> tuple[str, str]:
    """Names of the soft slots of the review at `index`, newest first: history vector, difference vector."""
    return f"history {index + 1}", f"difference {index + 1}"


class Dep(Method):
    """How a user differs from peers on the same items, as soft tokens of a frozen model (Qiu et al., EMNLP 2025)."""

    name = "dep"
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

    # -- prompts ------------------------------------------------------------------------------------------------

    def _fitted(self, example: Example, ctx: Context) -> Fitted:
        def line(index: int) -> str:
            history, difference = _slots(index)
            return f"Style of that {ctx.task.noun}: {slot(history)} Unlike others: {slot(difference)}"

        def build(target: Example, shown: Sequence[Document]) -> list[Message]:
            return conversation(ctx.task, target, shown, after=line)

        return fit_prompt(build, example, self._recent(example), ctx)

    def _recent(self, example: Example) -> list[Document]:
        return newest_first(example.history)[: self.config.n_history]

    def preview(self, example: Example, ctx: Context) -> Sequence[Message]:
        return self._fitted(example, ctx).messages

    def _vectors(self, examples: Sequence[Example], prompts: Sequence[Fitted], ctx: Context) -> list[ReviewVectors]:
        """Vectors of the reviews that each prompt shows, from their whole texts even where a prompt cut them."""

        def encode(texts: Sequence[str]) -> Floats:
            with ctx.meter.phase("embed"):
                vectors: Floats = ctx.encoder.encode(texts, progress=True)
                return vectors

        shown = [self._recent(e)[: len(p.documents)] for e, p in zip(examples, prompts, strict=True)]
        return review_vectors(examples, shown, ctx.population, self.config, encode)

    # -- training -----------------------------------------------------------------------------------------------

    def training_plan(self, train: LabeledSplit, dev: LabeledSplit, ctx: Context) -> TrainingPlan:
        examples = latest_targets(train, self.config.targets_per_user)
        tokens = planned_tokens(examples, train.references, lambda e: self._fitted(e, ctx).messages, ctx)
        texts: set[str] = set()
        review_vectors(examples, [self._recent(e) for e in examples], ctx.population, self.config, _spy(texts, ctx))
        smaller = "--train-limit, --set dep.epochs=1, --set dep.n_history=4, --set dep.max_peers=8, "
        smaller += "--set dep.weighting=uniform"
        return TrainingPlan(len(examples), tokens, self.config.epochs, smaller, ctx.encoder.missing(sorted(texts)))

    def fit(self, train_split: LabeledSplit, dev: LabeledSplit, ctx: Context) -> None:
        import torch

        lm = ctx.engine.language_model()
        rows, inputs = self._rows(lm, train_split, None, ctx)
        dev_rows, dev_inputs = self._rows(lm, dev, self.config.max_dev, ctx)
        seed = request_seed(ctx.seed, "dep", "fit")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = self._new_module(lm, inputs, ctx.encoder.dimension)
            learner = _SoftPrompts(self.module, lm.device, inputs, dev_inputs, self.config.reconstruction_weight)
            # Rows of both sets share one numbering, so that a row's vectors are found by its index alone.
            shifted = [Row(len(rows) + row.index, row.prompt, row.target) for row in dev_rows]
            self.log = train(lm, rows, shifted, learner, self.config, seed, "fit dep")
        everything = [v for r in inputs for v in (r.own, r.difference[r.has_peers])]
        if sum(map(len, everything)):
            stacked = torch.cat([torch.from_numpy(v) for v in everything]).to(lm.device)
            self.report = asdict(self.module.sparsity(stacked))

    def _rows(
        self, lm: LanguageModel, split: LabeledSplit, most: int | None, ctx: Context
    ) -> tuple[list[Row], list[ReviewVectors]]:
        examples = latest_targets(split, self.config.targets_per_user, most)
        prompts = [self._fitted(e, ctx) for e in examples]
        lengths = [{name: 1 for i in range(len(p.documents)) for name in _slots(i)} for p in prompts]
        messages = [p.messages for p in prompts]
        rows = build_rows(lm, examples, messages, split.references, self.config.max_target_tokens, lengths)
        return rows, self._vectors(examples, prompts, ctx)

    def _new_module(self, lm: LanguageModel, inputs: Sequence[ReviewVectors], size: int) -> DepModule:
        import torch

        from methods.dep.modules import DepModule

        embeddings = lm.model.get_input_embeddings()
        module = DepModule(size, embeddings.weight.shape[1], self.config)
        own = [torch.from_numpy(r.own) for r in inputs if len(r.own)]
        different = [torch.from_numpy(r.difference[r.has_peers]) for r in inputs if r.has_peers.any()]
        empty = torch.zeros(0, size)
        # Measured on what the layer gives out: some families scale embeddings on the way.
        sample = torch.arange(0, embeddings.weight.shape[0], max(1, embeddings.weight.shape[0] // 4096))
        rms = float(embeddings(sample.to(lm.device)).float().pow(2).mean().sqrt())
        module.calibrate(torch.cat(own) if own else empty, torch.cat(different) if different else empty, rms)
        return module.to(lm.device)

    # -- artifact -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        assert self.module is not None, "fit or load first"
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / "adapter.safetensors")
        sizes = {
            "embedding_size": self.module.autoencoder.encoder.in_features,
            "hidden_size": self.module.no_peers.shape[0],
        }
        about = {**sizes, "config": self.config.model_dump(), "report": self.report}
        (folder / "config.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")

    def load(self, folder: Path, ctx: Context) -> None:
        import torch
        from safetensors.torch import load_file

        from methods.dep.modules import DepModule

        sizes = json.loads((folder / "config.json").read_text())
        module = DepModule(sizes["embedding_size"], sizes["hidden_size"], self.config)
        module.load_state_dict(load_file(folder / "adapter.safetensors"))
        # A few thousand multiplications: on the CPU in float32, so that soft tokens are the same on every device.
        self.module = module.to(torch.device("cpu")).eval()
        self.report = sizes["report"]

    # -- generation ---------------------------------------------------------------------------------------------

    def requests(self, examples: Sequence[Example], ctx: Context) -> list[Request]:
        import torch

        assert self.module is not None, "fit or load first"
        prompts = [self._fitted(e, ctx) for e in examples]
        requests = []
        for example, prompt, vectors in zip(examples, prompts, self._vectors(examples, prompts, ctx), strict=True):
            with torch.no_grad():
                tokens, _ = self.module.cpu()(*_tensors(vectors, torch.device("cpu")))
            soft = {name: tokens[i, j : j + 1].numpy() for i in range(len(tokens)) for j, name in enumerate(_slots(i))}
            requests.append(ctx.request(example, prompt.messages, soft=soft))
        return requests


def _tensors(vectors: ReviewVectors, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    arrays = (vectors.own, vectors.difference, vectors.has_peers)
    own, difference, has_peers = (torch.from_numpy(a).to(device) for a in arrays)
    return own, difference, has_peers


def _spy(texts: set[str], ctx: Context) -> Any:
    """An `encode` that only notes what it is asked for."""
    import numpy as np

    def note(wanted: Sequence[str]) -> Floats:
        texts.update(wanted)
        return np.zeros((len(wanted), ctx.encoder.dimension), np.float32)

    return note


class _SoftPrompts:
    """DEP's module as something to train: looks up a row's vectors and gives its soft tokens."""

    def __init__(
        self,
        module: DepModule,
        device: torch.device,
        inputs: Sequence[ReviewVectors],
        dev_inputs: Sequence[ReviewVectors],
        weight: float,
    ) -> None:
        self.module = module
        self.inputs = [_tensors(vectors, device) for vectors in (*inputs, *dev_inputs)]
        self.weight = weight

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.module.parameters())

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        import torch

        parts = [self.inputs[row.index] for row in rows]
        own, difference, has_peers = (torch.cat(column) for column in zip(*parts, strict=True))
        self.module.train(training)
        tokens, losses = self.module(own, difference, has_peers)
        # A row's loss is the mean over its vectors, so that it is the same in whatever company the row comes.
        counts = torch.tensor([len(p[0]) + int(p[2].sum()) for p in parts], device=own.device).clamp_min(1)
        owner = torch.repeat_interleave(torch.tensor([len(p[0]) for p in parts], device=own.device))
        return tokens.flatten(0, 1), self.weight * (losses / counts[owner]).sum()

    def state(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)
