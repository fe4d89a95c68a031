"""A started vLLM: requests go in as others finish, so that few prompts are held as vectors at a time.

vLLM's scheduler runs in this process. The composition of its batches is then a function of the requests; with the
scheduler in another process it is one of timing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, first_line
from bench.types import Sampling

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler in this process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit a CUDA that training has used
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS counts, as everywhere
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Set before vLLM is imported, where the user has not set them."""

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has kernels for; an adapter of another is padded to the next."""


@dataclass(frozen=True)
class Needs:
    """What requests ask of vLLM beyond plain text; it must be known when vLLM starts."""

    soft: bool = False
    rank: int = 0
    """Largest rank of an adapter; 0 for none."""
    adapters: int = 0
    """Different adapters."""

    def join(self, other: Needs) -> Needs:
        """What serves both."""
        return Needs(self.soft or other.soft, max(self.rank, other.rank), max(self.adapters, other.adapters))

    def covers(self, other: Needs) -> bool:
        """Whether a vLLM started for this serves the other: more adapters than there are places take turns."""
        return (self.soft or not other.soft) and self.rank >= other.rank

    def arguments(self, max_loras: int) -> dict[str, Any]:
        """Arguments of vLLM for it. Raises UsageError for a rank beyond what vLLM has."""
        lora: dict[str, Any] = {}
        if self.rank:
            rank = next((rank for rank in _LORA_RANKS if rank >= self.rank), None)
            if rank is None:
                raise UsageError(
                    f"an adapter of rank {self.rank} is more than vLLM takes ({_LORA_RANKS[-1]}); use --engine hf"
                )
            places = max(1, min(self.adapters, max_loras))
            lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": places}
        # Cached blocks are keyed by token ids, which embeddings have none of: kept to what the key tells apart.
        plain = not (self.soft or self.rank)
        return {"enable_prompt_embeds": self.soft, "enable_prefix_caching": plain, **lora}


@dataclass(frozen=True)
class Ask:
    """One request as vLLM takes it."""

    length: int
    """Prompt tokens."""
    vectors: int
    """Of them, those that are held as vectors."""
    sampling: Sampling
    seed: int
    prompt: Callable[[], Mapping[str, Any]]
    """Ids, or vectors made only now that it is its turn."""
    adapter: tuple[str, int, str] | None = None
    """Name, number and folder."""


@dataclass
class Answer:
    """New tokens of one request, the end token included."""

    tokens: list[int] = field(default_factory=list)
    error: str | None = None


def quietly(call: Callable[[], Any]) -> Any:
    """What `call` returns; all that it and its libraries print on standard output goes to standard error."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        kept = os.dup(1)
        stack.callback(os.close, kept)
        os.dup2(2, 1)
        stack.callback(os.dup2, kept, 1)
        stack.callback(sys.stdout.flush)
        return call()


class Session:
    """vLLM, started with `arguments`. Raises UsageError if it cannot start."""

    def __init__(self, arguments: Mapping[str, Any], ends: Sequence[int]) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.ends = list(ends)
        """Tokens that end an answer."""
        started = time.perf_counter()
        self._engine = quietly(functools.partial(_start, arguments))
        self.seconds = time.perf_counter() - started
        self.context_length = int(self._engine.model_config.max_model_len)
        self.rows = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._count = 0

    def add_adapter(self, adapter: tuple[str, int, str]) -> None:
        """Has vLLM read an adapter. Raises UsageError for one that it cannot serve."""
        try:
            self._engine.add_lora(_lora(adapter))
        except Exception as error:  # workers pass on whatever they met
            raise UsageError(f"vLLM cannot serve the adapter {adapter[0]}: {first_line(error)}") from error

    def serve(
        self, asks: Sequence[Ask], most_vectors: int, progress: Callable[[int], object] | None = None
    ) -> tuple[list[Answer], float, float]:
        """Answers in the order of `asks`, prefill seconds, decode seconds.

        A step counts as prefill when a first token came out of it: the rows that were only written on in it rode
        along, and a prompt longer than what vLLM reads in a step counts as decode for all its steps but the last.
        """
        answers = [Answer() for _ in asks]
        under_way: dict[str, int] = {}
        vectors: dict[str, int] = {}
        queue = iter(range(len(asks)))
        following = next(queue, None)
        seconds = [0.0, 0.0]
        try:
            while under_way or following is not None:
                started = time.perf_counter()
                while following is not None and len(under_way) < self.rows:
                    cost = asks[following].vectors
                    if cost and under_way and sum(vectors.values()) + cost > most_vectors:
                        break
                    if name := self._add(asks[following], answers[following]):
                        under_way[name] = following
                        vectors[name] = cost
                    elif progress is not None:
                        progress(1)
                    following = next(queue, None)
                first, finished = self._step(under_way, answers)
                for name in finished:
                    del under_way[name], vectors[name]
                if finished and progress is not None:
                    progress(len(finished))
                seconds[0 if first else 1] += time.perf_counter() - started
        except BaseException:
            self._engine.abort_request(list(under_way))
            raise
        return answers, seconds[0], seconds[1]

    def _add(self, ask: Ask, answer: Answer) -> str | None:
        """Gives a request to vLLM; returns its name there, or None if it is answered (with an error) already."""
        room = self.context_length - ask.length
        if room < 1:
            answer.error = f"the prompt has {ask.length} tokens, the model's context {self.context_length}"
            return None
        self._count += 1
        lora = _lora(ask.adapter) if ask.adapter else None
        try:
            params = sampling_params(ask.sampling, ask.seed, room, self.ends)
            self._engine.add_request(str(self._count), ask.prompt(), params, lora_request=lora)
        except ValueError as error:
            answer.error = f"vLLM refuses the request: {first_line(error)}"
            return None
        return str(self._count)

    def _step(self, under_way: Mapping[str, int], answers: Sequence[Answer]) -> tuple[bool, list[str]]:
        """One step of vLLM: whether a first token came out of it, and which requests it finished."""
        if not under_way:
            return False, []
        first, finished = False, []
        for output in self._engine.step():
            answer = answers[under_way[output.request_id]]
            piece = output.outputs[0]
            first = first or not answer.tokens
            answer.tokens += piece.token_ids
            if output.finished:
                finished.append(output.request_id)
                if piece.finish_reason not in ("stop", "length"):
                    answer.error = f"vLLM ended the request: {piece.finish_reason}"
        return first, finished

    def forget(self) -> None:
        """Empties the prefix cache, so that what follows does not depend on what came before."""
        self._engine.reset_prefix_cache()

    def log_probability(self, prompt: Mapping[str, Any]) -> tuple[int, float]:
        """The likeliest next token and its log-probability."""
        from vllm import SamplingParams

        self._count += 1
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, detokenize=False)
        self._engine.add_request(str(self._count), prompt, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    token = output.outputs[0].token_ids[0]
                    return token, float(output.outputs[0].logprobs[0][token].logprob)
        raise AssertionError("vLLM finished a request without saying so")

    def close(self) -> None:
        """Ends the workers."""
        engine, self._engine = self._engine, None
        if engine is not None:
            quietly(engine.engine_core.shutdown)
            del engine
            quietly(_clean_up)


def _lora(adapter: tuple[str, int, str]) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(*adapter)


def sampling_params(sampling: Sampling, seed: int, room: int, ends: Sequence[int]) -> Any:
    """vLLM's settings for a request: ours alone, nothing of the checkpoint's habits."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**sampling_settings(sampling, seed, room, ends), output_kind=RequestOutputKind.DELTA)


def sampling_settings(sampling: Sampling, seed: int, room: int, ends: Sequence[int]) -> dict[str, Any]:
    """The same as plain values. `room` is what the context has left for the answer."""
    most = min(sampling.max_new_tokens, room)
    drawn: dict[str, Any] = {"temperature": 0.0}
    if sampling.temperature > 0:
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
    return {
        **drawn,
        "max_tokens": most,
        "min_tokens": min(sampling.min_new_tokens, most),
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # the end tokens are those given, as with any other engine
        "detokenize": False,
    }


def _start(arguments: Mapping[str, Any]) -> Any:
    import torch

    threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about each other
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except TypeError as error:
        raise UsageError(f"this vLLM does not know an argument given in vllm.args: {first_line(error)}") from error
    except Exception as error:  # of many kinds, and of workers
        raise UsageError(
            f"vLLM cannot start: {first_line(error)}; what its workers said stands above. Of use, mostly: "
            "--set vllm.max_model_len=4096, vllm.kv_cache_gib=2, vllm.gpu_memory_utilization=0.8"
        ) from error
    finally:
        torch.set_num_threads = threads  # vLLM on a CPU puts one there that does nothing


def _clean_up() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def dtype_of(name: str) -> torch.dtype:
    """torch's type of that name."""
    import torch

    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def installed() -> tuple[str, str]:
    """Name and version of vLLM's distribution here; its CPU build has a name of its own."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "vllm", "unknown"
