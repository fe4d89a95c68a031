"""transformers as an engine: CPU or CUDA, batches by token budget, soft prompts, adapters, a seed a request.

What is guaranteed: the random numbers that decide a request's tokens depend on its seed alone, and batches are a
pure function of the list of requests. So the same list gives the same bytes on one machine, also across a
kill and a resume. Another batch composition changes the last bits of the logits, which can flip a token; with
bf16 that is visible now and then.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bench import weights
from bench.config import Config
from bench.engines import chat
from bench.engines.base import BatchResult, Engine, LanguageModel, Progress, Speed
from bench.engines.batching import grouped
from bench.engines.devices import align, choose_device, choose_dtype, free, if_it_fits, out_of_memory
from bench.errors import UsageError, first_line
from bench.types import Capability, Generation, Message, Request, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bench.engines.refill import Written


class HFConfig(Config):
    """Knobs of the transformers engine."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto takes CUDA if there is any."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto takes bfloat16 where the hardware multiplies in it."""
    max_batch: int = Field(default=0, ge=0)
    """Most rows in a batch; 0 chooses 16 on a CPU, 64 on an accelerator."""
    batch_tokens: int = Field(default=0, ge=0)
    """Most tokens in a batch, padding and room for the answer included; 0 chooses 24,576 or 262,144."""
    path: Literal["auto", "fast", "reference"] = "auto"
    """How text is written: fast refills the places of rows that have ended and keeps keys and values in place;
    reference is transformers' own generate, batch by batch. auto takes fast where the model allows it."""
    refill: int = Field(default=4, ge=1)
    """Batches' worth of requests that the fast path writes before it waits for the last one. More leaves fewer places
    empty; a run that is killed does so many again."""


class HFEngine(Engine):
    """Batched generation with transformers."""

    name = "hf"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TEXT, Capability.SOFT_PROMPT, Capability.ADAPTER, Capability.TRAIN, Capability.HIDDEN}
        | {Capability.USER_ADAPTER, Capability.CONTRAST}
    )
    Config = HFConfig

    def __init__(self, source: weights.Source, config: HFConfig | None = None) -> None:
        self.source = source
        self.config = config or HFConfig()
        self._tokenizer: Any = None
        self._model: Any = None
        self._adapter: str | None = None
        self._speed: Speed | None = None
        self._fast = False

    @property
    def device(self) -> str:
        return choose_device(self.config.device)

    @property
    def dtype(self) -> str:
        return choose_dtype(self.config.dtype, self.device)

    def prepare(self) -> None:
        weights.local_folder(self.source)

    def identity(self) -> dict[str, str]:
        return {
            "name": self.name,
            "model": self.source.label,
            "revision": weights.planned_revision(self.source) or "not fetched",
            "dtype": self.dtype,
            "device": self.device,
            "backend": f"transformers {version('transformers')}, torch {version('torch').partition('+')[0]}",
        }

    # -- loading ------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        return str(weights.local_folder(self.source))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded at first need. Raises UsageError if it has no chat template."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            except Exception as error:  # the tokenizers library raises bare exceptions
                raise UsageError(
                    f"model {self.source.name!r}: its tokenizer cannot be loaded: {first_line(error)}"
                ) from error
            # We count texts in order to cut them; transformers would call each one beyond the context an error.
            tokenizer.model_max_length = sys.maxsize
            chat.check_template(tokenizer, self.source.name)
            self._tokenizer = tokenizer
        return self._tokenizer

    def _text_config(self) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False).get_text_config()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"model {self.source.name!r}: its config.json cannot be used: {first_line(error)}"
            ) from error

    @property
    def context_length(self) -> int:
        return int(getattr(self._text_config(), "max_position_embeddings", None) or 4096)

    @property
    def depth(self) -> int:
        return int(self._text_config().num_hidden_layers)

    def load(self) -> None:
        if self._model is not None:
            return
        from transformers import GenerationConfig

        tokenizer = self.tokenizer
        try:
            model = self._read_weights().to(self.device).eval().requires_grad_(False)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UsageError(
                f"model {self.source.name!r} does not fit into memory; choose a smaller one with --model"
            ) from error
        align(model)
        # A checkpoint's own decoding habits (top-k 20, repetition penalty) would change every method's outputs
        # silently: only its end tokens are kept.
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        ends |= {chat.end_of_turn(tokenizer)}
        pad = tokenizer.pad_token_id
        if pad is None or pad >= model.get_input_embeddings().weight.shape[0]:
            pad = min(ends)  # any id that has an embedding will do: padding is never attended to
        model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=pad, do_sample=False)
        self._model = model
        self._fast = self._choose_path()
        self._speed = self._warm_up()

    def _read_weights(self) -> Any:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what is wrong is said below, in one line
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=getattr(torch, self.dtype),
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            raise UsageError(f"model {self.source.name!r} cannot be loaded: {first_line(error)}") from error
        finally:
            logging.set_verbosity(verbosity)
        # transformers fills with random numbers what a checkpoint lacks or has in another shape, and goes on.
        if absent := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
            raise UsageError(
                f"model {self.source.name!r} cannot be loaded: {len(absent)} weights that its config.json asks for are "
                f"missing or of another shape, first {absent[0]}; copy or download the folder again"
            )
        return model

    def close(self) -> None:
        self._model = None
        self._adapter = None
        free()

    @property
    def model(self) -> Any:
        """The loaded model."""
        self.load()
        return self._model

    def language_model(self, adapter: str | None = None) -> LanguageModel:
        import torch

        self._use_adapter(adapter)
        return LanguageModel(self.model, self.tokenizer, torch.device(self.device))

    def _warm_up(self) -> Speed:
        """First kernels are slow (compilation, allocation), so they run before any clock; then two short timings."""
        text = "The sound is clear and the price is fair. " * 64
        ids = self.tokenizer(text)["input_ids"][: max(1, min(256, self.context_length - 9))]
        few, many = 4, self._limits()[0]
        rows = [ids[i:] + ids[:i] for i in range(few)]  # what begins alike would be read once
        self._generate_ids([row[:16] for row in rows], new_tokens=2)
        _, first, _ = self._generate_ids(rows, new_tokens=1)
        _, second, _ = self._generate_ids(rows, new_tokens=1)
        # Writing is read off a batch of the usual size: a step costs nearly the same however many rows share it.
        _, _, decode = self._generate_ids([ids[:64]] * many, new_tokens=9)
        return Speed(few * len(ids) / min(first, second), many * 8 / max(decode, 1e-9))

    def _choose_path(self) -> bool:
        """Whether texts are written on the fast path. Raises UsageError if it was asked for and cannot be had."""
        if self.config.path == "reference":
            return False
        from bench.engines import refill, slots

        works = slots.supported(self._model) and refill.agrees(self._model)
        if self.config.path == "fast" and not works:
            raise UsageError(
                f"hf.path=fast was asked for, but the attention of model {self.source.name!r} is of a kind that it "
                "does not compute; use hf.path=auto"
            )
        return works

    def _generate_ids(self, rows: list[list[int]], new_tokens: int) -> tuple[list[list[int]], float, float]:
        prompts = [chat.Prompt(tuple(ids), ()) for ids in rows]
        requests = [Request("", "", (), Sampling(min_new_tokens=new_tokens, max_new_tokens=new_tokens), 0)] * len(rows)
        written = self._write(prompts, requests, len(rows), _ignore)
        return written.tokens, written.prefill_seconds, written.decode_seconds

    def speed(self) -> Speed | None:
        return self._speed

    def peak_memory(self) -> int | None:
        import torch

        if self.device != "cuda":
            return None
        peak = int(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return peak

    # -- prompts and batches ------------------------------------------------------------------------------------

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return chat.count(self.tokenizer, messages)

    def encode(self, request: Request) -> chat.Prompt:
        """The request's prompt as token ids with slot positions."""
        lengths = {name: int(matrix.shape[0]) for name, matrix in request.soft.items()}
        return chat.encode(self.tokenizer, request.messages, lengths)

    def _limits(self) -> tuple[int, int]:
        """Most rows and most tokens of a batch."""
        accelerated = self.device != "cpu"
        rows = self.config.max_batch or (64 if accelerated else 16)
        return rows, self.config.batch_tokens or (262_144 if accelerated else 24_576)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        rows, tokens = self._limits()
        refill = 1 if self.config.path == "reference" else self.config.refill
        lengths = [len(self.encode(r).ids) + r.sampling.max_new_tokens for r in requests]
        groups = [(r.adapter or "", r.sampling.temperature, r.sampling.top_p, r.contrast) for r in requests]
        return grouped(lengths, groups, [r.example_id for r in requests], rows * refill, tokens * refill)

    # -- generation ---------------------------------------------------------------------------------------------

    def run(self, batch: Sequence[Request]) -> BatchResult:
        return self._run(batch, _ignore)

    def stream(self, batches: Sequence[Sequence[Request]], progress: Progress | None = None) -> Iterator[BatchResult]:
        for batch in batches:
            yield self._run(batch, progress or _ignore)

    def _run(self, batch: Sequence[Request], progress: Progress, rows: int = 0) -> BatchResult:
        """One batch of the plan, `rows` at a time (0: as many as fit by configuration), fewer if memory runs out."""
        self.load()
        self._use_adapter(batch[0].adapter)
        prompts = [self.encode(request) for request in batch]
        rows = rows or self._rows(prompts, batch)
        told = 0

        def tell(count: int) -> None:
            nonlocal told
            told += count
            progress(count)

        try:
            return self._run_whole(prompts, batch, rows, tell)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        progress(-told)  # these will be written again
        # Outside the except block, so that the traceback no longer holds the tensors that did not fit.
        free()
        if len(batch) == 1:
            progress(1)
            message = f"out of memory on a prompt of {len(prompts[0].ids)} tokens"
            return BatchResult([Generation("", 0, 0, "error", error=message)])
        if rows > 1:
            half = self._run(batch, progress, rows // 2)
            return replace(half, splits=half.splits + 1)
        alone = [self._run([request], progress, 1) for request in batch]
        return functools.reduce(_joined, alone)

    def _rows(self, prompts: Sequence[chat.Prompt], batch: Sequence[Request]) -> int:
        """Rows of a batch that are written at a time."""
        rows, tokens = self._limits()
        each = 2 if batch[0].contrast else 1  # with the user's adapter and without
        widest = max(len(p.ids) for p in prompts) + max(r.sampling.max_new_tokens for r in batch)
        return max(1, min(len(batch), rows // each, tokens // (widest * each)))

    def _run_whole(
        self, prompts: Sequence[chat.Prompt], batch: Sequence[Request], rows: int, progress: Progress
    ) -> BatchResult:
        written = self._write(prompts, batch, rows, progress)
        ends = set(self.model.generation_config.eos_token_id)
        generations = []
        for prompt, row in zip(prompts, written.tokens, strict=True):
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            kept = row if stop is None else row[:stop]
            text = self.tokenizer.decode(kept, skip_special_tokens=True)
            count = len(row) if stop is None else stop + 1
            generations.append(Generation(text, len(prompt.ids), count, "length" if stop is None else "stop"))
        first = tuple(written.first_token_seconds)
        return BatchResult(generations, written.prefill_seconds, written.decode_seconds, first_token_seconds=first)

    def _write(
        self, prompts: Sequence[chat.Prompt], batch: Sequence[Request], rows: int, progress: Progress
    ) -> Written:
        """New tokens of all rows, at most `rows` at a time, by the path that is chosen."""
        from bench.engines import reference
        from bench.engines.refill import Pool

        if self._fast and batch[0].contrast is None:
            return Pool(self.model, prompts, batch, rows, progress).write()
        return reference.write(self.model, prompts, batch, rows, progress)

    # -- hidden states ------------------------------------------------------------------------------------------

    def hidden_states(
        self, conversations: Sequence[Sequence[Message]], layer: int, progress: bool = False
    ) -> NDArray[np.float32]:
        from bench.engines import steering

        self.load()
        self._use_adapter(None)
        longest = self.context_length
        rows = [steering.conversation_ids(self.tokenizer, c)[:longest] for c in conversations]
        return steering.read(self.model, rows, layer, self._limits(), if_it_fits, progress)

    # -- adapters -----------------------------------------------------------------------------------------------

    def _use_adapter(self, folder: str | None) -> None:
        """Leaves the model with exactly this adapter, or bare."""
        if folder == self._adapter:
            return
        import warnings

        from peft import PeftModel

        if self._adapter is not None:
            self._model = self._model.unload()
            self._adapter = None
        if folder is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft calls
                self._model = PeftModel.from_pretrained(self.model, folder, is_trainable=False).eval()
            self._adapter = folder


def _ignore(_: int) -> None:
    """Progress that nobody watches."""


def _joined(left: BatchResult, right: BatchResult) -> BatchResult:
    return BatchResult(
        left.generations + right.generations,
        left.prefill_seconds + right.prefill_seconds,
        left.decode_seconds + right.decode_seconds,
        left.splits + right.splits + 1,
        (
            *left.first_token_seconds,
            *(left.prefill_seconds + left.decode_seconds + s for s in right.first_token_seconds),
        ),
    )
