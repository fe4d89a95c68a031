"""How a model's layers run while training: their activations kept or computed again, their inner parts compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.engines.base import LanguageModel
from bench.errors import MissingPackage, UsageError
from bench.training.config import TrainingConfig

if TYPE_CHECKING:
    import torch

Forward = Callable[..., Any]


class Layers:
    """The decoder layers of a model under a config; as they always are outside `open`."""

    def __init__(self, lm: LanguageModel, config: TrainingConfig) -> None:
        """Raises UsageError for what the model or this machine cannot do."""
        import torch

        self._forwards: dict[torch.nn.Module, Forward] = {}
        if not (config.compile or config.gradient_checkpointing):
            return
        layers = _decoder_layers(lm.model)
        if config.compile:
            _check_compiler(lm.device.type)
            parts = {part for layer in layers for part in layer.children() if "Attention" not in type(part).__name__}
            # Attention stays as it is: its kernels are fused already, and a past of changing kind would make it
            # compile again and again. One compilation serves the same part of all layers, and all lengths.
            self._forwards |= {part: torch.compile(part.forward, dynamic=True) for part in parts}
        if config.gradient_checkpointing:
            self._forwards |= {layer: _checkpointed(layer.forward) for layer in layers}

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open (forward and backward), the layers run as configured."""
        for module, forward in self._forwards.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in self._forwards:
                del module.forward


def _decoder_layers(model: Any) -> list[torch.nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} does not mark its layers, so that none can be compiled or computed again; "
            "turn compile and gradient_checkpointing off"
        )
    return layers


def _checkpointed(forward: Forward) -> Forward:
    """Keeps only a layer's inputs, and computes it again for its gradients (Chen et al. 2016)."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return run


def _check_compiler(device: str) -> None:
    if device != "cpu" and find_spec("triton") is None:
        raise MissingPackage("triton", "compile on an accelerator")
    cpu = device == "cpu"
    language, variable = ("C++", "CXX") if cpu else ("C", "CC")
    names = ("g++", "clang++", "c++") if cpu else ("gcc", "cc")
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name):
        raise UsageError(
            f"compile needs a {language} compiler such as {names[0]}, and none is installed here; install one or "
            "leave compile off"
        )
