"""Where a model runs, in what numbers, and what happens when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def choose_device(wanted: str) -> str:
    """The device to use. Raises UsageError for one that is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if (wanted == "cuda" and not torch.cuda.is_available()) or (
        wanted == "mps" and not torch.backends.mps.is_available()
    ):
        raise UsageError(f"hf.device={wanted} was asked for, but torch sees no such device here; use hf.device=auto")
    return wanted


def choose_dtype(wanted: str, device: str) -> str:
    """bfloat16 where the hardware multiplies in it (CUDA from Ampere, CPUs with AVX512-BF16 or AMX), else float32."""
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device == "cpu" and _cpu_multiplies_bf16() else "float32"


def _cpu_multiplies_bf16() -> bool:
    # torch only tells whether bf16 can be emulated, which is slower than float32.
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16"})


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory did not suffice."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def align(model: Any) -> None:
    """Moves weights to addresses that are multiples of a cache line.

    A safetensors file leaves them anywhere, and matrix products of a CPU then take two to three times as long.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def wait(device: torch.device) -> None:
    """Until what an accelerator was given to do is done, so that a clock tells the truth."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def if_it_fits(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None if memory did not suffice for it."""
    try:
        return work()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    free()
    return None


def free() -> None:
    """Gives back what nobody holds any longer."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
