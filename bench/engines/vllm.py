"""vLLM as an engine, as it is released: text, soft prompts as embeddings, adapters; `hf` trains for it.

What is guaranteed: a planned batch is served alone from first to last token, its requests enter in one order, vLLM's
scheduler runs in this process, and cached prefixes are forgotten between batches. So the same list gives the same bytes
on one machine, also across a kill and a resume, as far as vLLM's kernels do. Texts differ from the hf engine's where
other kernels round otherwise, and under sampling always, as vLLM draws from its own generator.

Prompts with soft vectors go in as embeddings at every position: with ids and embeddings mixed, what says which is which
is missing from the key of vLLM's prefix cache. That cache is on for text alone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from bench import distributed, weights
from bench.config import Config
from bench.engines import chat
from bench.engines.base import BatchResult, Engine, LanguageModel, Progress, Speed
from bench.engines.batching import grouped
from bench.engines.devices import choose_dtype
from bench.engines.hf import HFConfig, HFEngine
from bench.engines.vllm_adapters import AdapterShelf
from bench.engines.vllm_session import Answer, Ask, Needs, Session, dtype_of, installed
from bench.errors import MissingPackage, UsageError
from bench.types import Capability, Generation, Message, Request, Sampling

_NO_LIMIT = 1 << 62
_PROBE = Request("", "", (Message("user", "What does it sound like?"),), Sampling(0.0), 0)
"""What embeddings are tried with."""
_CLOSE = {"float32": 0.01, "bfloat16": 0.2}
"""Log-probabilities of one prompt differ by less, whichever way it goes in."""


class VLLMConfig(Config):
    """Knobs of the vLLM engine."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto takes bfloat16 where the hardware multiplies in it."""
    max_batch: int = Field(default=0, ge=0)
    """Requests between two points where results are stored; 0 chooses 64 on a CPU, 512 on an accelerator."""
    max_seqs: int = Field(default=0, ge=0)
    """Most requests that vLLM works on at a time; 0 chooses 16 on a CPU, 256 on an accelerator."""
    max_model_len: int = Field(default=0, ge=0)
    """Most tokens of prompt and answer; 0 takes the model's context."""
    embedded_tokens: int = Field(default=262_144, ge=1)
    """Most prompt positions held as vectors at a time, over all requests with soft prompts."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Accelerators that share each layer."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Accelerators that share the layers between them."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of an accelerator's memory for weights and cache."""
    kv_cache_gib: float = Field(default=0.0, ge=0)
    """Size of the key-value cache; 0 takes 2 GiB on a CPU, what gpu_memory_utilization leaves on an accelerator."""
    kv_cache_dtype: str = "auto"
    """Type of the key-value cache, such as fp8."""
    quantization: str | None = None
    """vLLM's method to quantize weights with on loading, such as fp8; None takes them as they are stored."""
    enforce_eager: bool | None = None
    """Without compilation and CUDA graphs; None: on a CPU, where starting takes long otherwise."""
    max_loras: int = Field(default=16, ge=1)
    """Most adapters in one of vLLM's batches; more take turns."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's EngineArgs, as JSON."""


class VLLMEngine(Engine):
    """Generation by vLLM; what trains does so with the same weights in transformers."""

    name = "vllm"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TEXT, Capability.SOFT_PROMPT, Capability.ADAPTER, Capability.USER_ADAPTER, Capability.TRAIN}
    )
    Config = VLLMConfig

    def __init__(self, source: weights.Source, config: VLLMConfig | None = None) -> None:
        if find_spec("vllm") is None:
            raise MissingPackage("vllm", "engine 'vllm'", "vllm")
        self.source = source
        self.config = config or VLLMConfig()
        self._hf = HFEngine(source, HFConfig(dtype=self.config.dtype))
        """Tokenizer, facts of the model, and its weights for training."""
        self._training = False
        self._session: Session | None = None
        self._needs = Needs()
        """What the plan of the moment asks for."""
        self._started = Needs()
        """What the session was started for."""
        self._shelf = AdapterShelf()
        self._like: tuple[str | None, str | None] = (None, None)
        """An adapter of the plan, whose layers a request without one gets an empty update of."""
        self._tried: set[tuple[str, int]] = set()

    # -- facts --------------------------------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """Where vLLM runs: its CPU build on a CPU, else wherever torch sees an accelerator."""
        name, number = installed()
        return "cpu" if name.endswith("-cpu") or number.endswith("+cpu") else self._hf.device

    @property
    def dtype(self) -> str:
        return choose_dtype(self.config.dtype, self.device)

    def prepare(self) -> None:
        self._hf.prepare()

    def identity(self) -> dict[str, str]:
        quantized = {"quantization": self.config.quantization} if self.config.quantization else {}
        return {
            "name": self.name,
            "model": self.source.label,
            "revision": weights.planned_revision(self.source) or "not fetched",
            "dtype": self.dtype,
            "device": self.device,
            "backend": f"vllm {installed()[1]}, torch {version('torch').partition('+')[0]}, "
            f"transformers {version('transformers')}",
            **quantized,
        }

    def accelerators(self) -> int | None:
        if self.device == "cpu" or self._training:
            return None
        return self.config.tensor_parallel_size * self.config.pipeline_parallel_size

    def training_identity(self) -> dict[str, str]:
        return self._hf.identity()

    @property
    def context_length(self) -> int:
        return self.config.max_model_len or self._hf.context_length

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._hf.count_tokens(messages)

    @property
    def depth(self) -> int:
        return self._hf.depth

    def peak_memory(self) -> int | None:
        # vLLM holds a fixed share of an accelerator's memory, whatever is asked, and in other processes.
        return self._hf.peak_memory() if self._training else None

    def speed(self) -> Speed | None:
        return self._hf.speed() if self._training else None

    # -- loading ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """While training, the weights in transformers. Else the tokenizer alone: vLLM starts with the first requests,
        which tell what it must be able to do."""
        if self._training:
            self._stop()
            self._hf.load()
        else:
            _ = self._hf.tokenizer

    def close(self) -> None:
        self._stop()
        self._hf.close()
        self._shelf.clear()

    def _stop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        self._training = True
        try:
            yield
        finally:
            self._training = False
            self._hf.close()

    def language_model(self, adapter: str | None = None) -> LanguageModel:
        self._stop()
        return self._hf.language_model(adapter)

    def _serving(self, needs: Needs) -> tuple[Session, float]:
        """vLLM, started for what the plan and these requests need, and the seconds that starting took."""
        if not self._needs.covers(needs):
            self._needs = self._needs.join(needs)
        if self._session is not None and self._started == self._needs:
            return self._session, 0.0
        self._stop()
        self._hf.close()
        if distributed.size() > 1:
            raise UsageError(
                "engine 'vllm' does not run under accelerate or torchrun: train with --engine hf there, then give the "
                "command without them and with --engine vllm, which takes the fit"
            )
        self._session = session = Session(self.arguments(self._needs), self._ends())
        self._started = self._needs
        self._tried.clear()
        if self._needs.soft:
            self._check_embeddings(session)
        return session, session.seconds

    @property
    def _parallel(self) -> bool:
        return self.config.tensor_parallel_size * self.config.pipeline_parallel_size > 1

    @property
    def _rows(self) -> int:
        return self.config.max_seqs or (16 if self.device == "cpu" else 256)

    def arguments(self, needs: Needs) -> dict[str, Any]:
        """What vLLM's EngineArgs are given."""
        config, on_cpu = self.config, self.device == "cpu"
        cache = config.kv_cache_gib or (2.0 if on_cpu else 0.0)
        return {
            "model": self._hf.folder,
            "dtype": self.dtype,
            "max_model_len": self.context_length,
            "max_num_seqs": self._rows,
            "tensor_parallel_size": config.tensor_parallel_size,
            "pipeline_parallel_size": config.pipeline_parallel_size,
            # On a CPU vLLM works in this process, which starts in half the time; elsewhere in others, whose end gives
            # an accelerator's memory back to whoever trains next.
            "distributed_executor_backend": "uni" if on_cpu and not self._parallel else "mp",
            "gpu_memory_utilization": config.gpu_memory_utilization,
            **({"kv_cache_memory_bytes": int(cache * 2**30)} if cache else {}),
            "kv_cache_dtype": config.kv_cache_dtype,
            "quantization": config.quantization,
            "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
            "generation_config": "vllm",  # none of the checkpoint's own decoding habits
            "skip_tokenizer_init": True,  # ids go in and come out
            "trust_remote_code": False,
            "load_format": "safetensors",
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
            "seed": 0,
            **needs.arguments(config.max_loras),
            **config.args,
        }

    def _ends(self) -> list[int]:
        """The tokens that end an answer, as for the hf engine: the checkpoint's and that of the chat template."""
        from transformers import GenerationConfig

        try:
            ends = GenerationConfig.from_pretrained(self._hf.folder).eos_token_id
        except OSError:  # a checkpoint without: its config.json says
            ends = self._hf._text_config().eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return sorted(ends | {chat.end_of_turn(self._hf.tokenizer)})

    # -- prompts and batches ------------------------------------------------------------------------------------

    @functools.cached_property
    def _rows_of_ids(self) -> Any:
        from bench.engines.embedding_rows import EmbeddingRows

        return EmbeddingRows(self._hf.folder, dtype_of(self.dtype))

    def _check_embeddings(self, session: Session) -> None:
        """One prompt as ids and as vectors must say the same: families differ in where they scale embeddings."""
        ids = list(self._hf.encode(_PROBE).ids)
        token, told = session.log_probability({"prompt_token_ids": ids})
        other, again = session.log_probability({"prompt_embeds": self._rows_of_ids.of(ids)})
        if abs(told - again) > _CLOSE[self.dtype]:
            raise UsageError(
                f"model {self.source.name!r}: vLLM takes embeddings of this family in another form than transformers "
                f"(token {token} at {told:.3f} by ids, {other} at {again:.3f} by vectors); use --engine hf here"
            )

    def needs(self, requests: Sequence[Request]) -> Needs:
        """What vLLM must be started with for them. Raises UsageError for what it cannot do."""
        for request in requests:
            if request.steering or request.contrast:
                raise UsageError("engine 'vllm' does not steer hidden states or contrast predictions; use --engine hf")
        pairs = {(r.adapter, r.user_adapter) for r in requests if r.adapter or r.user_adapter}
        rank = max((self._shelf.rank(*pair) for pair in pairs), default=0)
        if pairs and any(r.soft for r in requests):
            # A step that mixes ids and vectors embeds the ids alone, and vLLM's adapters then count the wrong rows.
            raise UsageError(
                "engine 'vllm' serves soft prompts or adapters, not both at once; use --engine hf for both"
            )
        bare = any(not (r.adapter or r.user_adapter) for r in requests)
        if pairs:
            self._like = min(pairs, key=lambda pair: (pair[0] or "", pair[1] or ""))
        return Needs(any(r.soft for r in requests), rank, len(pairs) + (bare if pairs else 0))

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        self._needs = self.needs(requests)  # known before the first batch, whichever a resumed run begins with
        lengths = [len(self._hf.encode(request).ids) for request in requests]
        most = self.config.max_batch or (64 if self.device == "cpu" else 512)
        return grouped(lengths, [0] * len(requests), [r.example_id for r in requests], most, _NO_LIMIT)

    # -- generation ---------------------------------------------------------------------------------------------

    def run(self, batch: Sequence[Request]) -> BatchResult:
        if self._training:  # a fit chooses its epoch by the very weights that it trains on
            return self._hf.run(batch)
        return self._serve(batch, None)

    def stream(self, batches: Sequence[Sequence[Request]], progress: Progress | None = None) -> Iterator[BatchResult]:
        if self._training:
            yield from self._hf.stream(batches, progress)
            return
        for batch in batches:
            yield self._serve(batch, progress)

    def _serve(self, batch: Sequence[Request], progress: Callable[[int], object] | None) -> BatchResult:
        session, load_seconds = self._serving(self.needs(batch))
        session.forget()
        asks = [self._ask(request, session) for request in batch]
        answers, prefill, decode = session.serve(asks, self.config.embedded_tokens, progress)
        generations = [self._generation(ask, answer, session) for ask, answer in zip(asks, answers, strict=True)]
        return BatchResult(generations, prefill, decode, load_seconds=load_seconds)

    def _ask(self, request: Request, session: Session) -> Ask:
        prompt = self._hf.encode(request)
        make: Callable[[], dict[str, Any]]
        if request.soft:
            make = functools.partial(self._as_vectors, prompt, request)
        else:
            make = functools.partial(dict, prompt_token_ids=list(prompt.ids))
        length = len(prompt.ids)
        adapter = None
        if request.adapter or request.user_adapter:
            adapter = self._shelf.get(request.adapter, request.user_adapter)
            self._try(adapter, request, session)
        elif self._started.rank:
            # vLLM's kernels for a CPU take the last place's adapter for a row that has none (seen with 0.32).
            adapter = self._shelf.blank(*self._like)
        return Ask(length, length if request.soft else 0, request.sampling, request.seed, make, adapter)

    def _try(self, adapter: tuple[str, int, str], request: Request, session: Session) -> None:
        """Has vLLM read the first adapter of each kind at once: one that it cannot serve would end it later."""
        kind = (request.adapter or "", self._shelf.rank(request.adapter, request.user_adapter))
        if kind not in self._tried:
            session.add_adapter(adapter)
            self._tried.add(kind)

    def _as_vectors(self, prompt: chat.Prompt, request: Request) -> dict[str, Any]:
        return {"prompt_embeds": self._rows_of_ids.prompt(prompt, request.soft)}

    def _generation(self, ask: Ask, answer: Answer, session: Session) -> Generation:
        if answer.error:
            return Generation("", 0, 0, "error", error=answer.error)
        ends = set(session.ends)
        stop = next((i for i, token in enumerate(answer.tokens) if token in ends), None)
        kept = answer.tokens if stop is None else answer.tokens[:stop]
        text = self._hf.tokenizer.decode(kept, skip_special_tokens=True)
        written = len(answer.tokens) if stop is None else stop + 1
        return Generation(text, ask.length, written, "length" if stop is None else "stop")
