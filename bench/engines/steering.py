"""The residual stream of a transformers model: read at the last token of a text, changed while a text is written.

Layers are counted from one, as `output_hidden_states` counts them: what layer 1 gives out is the second entry there.
Both use a hook on one layer that is gone when the call returns, whatever happened in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bench.engines import chat
from bench.engines.batching import grouped
from bench.errors import UsageError
from bench.types import Message, Steering

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Fitting = Callable[[Callable[[], "NDArray[np.float32]"]], "NDArray[np.float32] | None"]
"""Does the work given and returns what it returned, or None if memory did not suffice for it."""


class _Read(Exception):
    """What is above the layer that was read need not be computed."""


def layer_of(model: Any, number: int) -> Any:
    """The module of a layer, the first being 1. Raises UsageError for one that the model does not have."""
    import torch

    depth = int(model.config.get_text_config().num_hidden_layers)
    if not 1 <= number <= depth:
        raise UsageError(f"layer {number} was asked for, but the model has layers 1 to {depth}; choose one of these")
    for module in model.get_decoder().modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module[number - 1]
    raise UsageError(f"no list of {depth} layers was found in {type(model).__name__}; choose another model")


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of messages; an answer at their end stands where the model would write it, its turn left open."""
    if len(messages) < 2 or messages[-1].role != "assistant":
        return chat.encode(tokenizer, messages, {}).ids
    text = chat.disarm(messages[-1].content, tokenizer)
    return (*chat.encode(tokenizer, messages[:-1], {}).ids, *tokenizer(text, add_special_tokens=False)["input_ids"])


# -- reading ---------------------------------------------------------------------------------------------------------


def read(
    model: Any,
    rows: Sequence[Sequence[int]],
    layer: int,
    limits: tuple[int, int],
    fitting: Fitting,
    progress: bool = False,
) -> NDArray[np.float32]:
    """What `layer` gives out at the last token of each row of token ids: (rows, hidden size).

    In batches of at most `limits` rows and tokens, longest first: a pure function of the rows. A batch that does not
    fit into memory is halved. Raises UsageError for a row that does not fit alone.
    """
    import numpy as np
    from tqdm import tqdm

    layer_of(model, layer)
    states = np.zeros((len(rows), model.config.get_text_config().hidden_size), np.float32)
    batches = grouped([len(row) for row in rows], [""] * len(rows), [""] * len(rows), *limits)
    with tqdm(total=len(rows), desc=f"read layer {layer}", unit="text", disable=not progress) as bar:
        for batch in batches:
            states[batch] = _halved(model, [rows[i] for i in batch], layer, fitting)
            bar.update(len(batch))
    return states


def _halved(model: Any, rows: Sequence[Sequence[int]], layer: int, fitting: Fitting) -> NDArray[np.float32]:
    import numpy as np

    states = fitting(lambda: _last_states(model, rows, layer))
    if states is not None:
        return states
    if len(rows) == 1:
        raise UsageError(
            f"out of memory while reading a text of {len(rows[0])} tokens; choose a smaller model with --model or "
            "lower --max-prompt-tokens"
        )
    half = len(rows) // 2
    return np.concatenate([_halved(model, part, layer, fitting) for part in (rows[:half], rows[half:])])


def _last_states(model: Any, rows: Sequence[Sequence[int]], layer: int) -> NDArray[np.float32]:
    """One batch. Padding stands behind the texts: no token sees what is behind it, and positions count from zero."""
    import torch

    ends = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    longest = max(len(row) for row in rows)
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device) <= ends[:, None]
    found: list[NDArray[np.float32]] = []

    def hook(_module: Any, _given: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(hidden[torch.arange(len(rows), device=hidden.device), ends].float().cpu().numpy())
        raise _Read

    handle = layer_of(model, layer).register_forward_hook(hook)
    try:
        with torch.no_grad(), contextlib.suppress(_Read):
            model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    finally:
        handle.remove()
    return found[0]


# -- steering --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def steered(model: Any, steerings: Sequence[Steering | None]) -> Iterator[None]:
    """Inside, row i of every forward pass has `steerings[i]` added to what its layer gives out.

    Prompts must be padded on the left, so that the last position of each pass is one that a token is drawn from. Rows
    without steering get zeros added, which changes nothing.
    """
    handles = []
    try:
        for layer in sorted({steering.layer for steering in steerings if steering}):
            of_layer = [s if s and s.layer == layer else None for s in steerings]
            handles.append(layer_of(model, layer).register_forward_hook(_adder(model, of_layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(model: Any, steerings: Sequence[Steering | None]) -> Callable[[Any, Any, Any], Any]:
    """The hook that adds each row's vector."""
    size = model.config.get_text_config().hidden_size
    last = _stacked([s.vector if s else None for s in steerings], size).to(model.device, model.dtype)
    before = _stacked([s.vector if s and s.prompt else None for s in steerings], size).to(model.device, model.dtype)
    whole = any(s.prompt for s in steerings if s)

    def hook(_module: Any, _given: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, -1] += last.to(hidden)
        if whole and hidden.shape[1] > 1:
            hidden[:, :-1] += before.to(hidden)[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def _stacked(vectors: Sequence[Any], size: int) -> torch.Tensor:
    """One row a vector, zeros for None."""
    import torch

    rows = [torch.zeros(size) if v is None else torch.as_tensor(v, dtype=torch.float32).reshape(size) for v in vectors]
    return torch.stack([row.cpu() for row in rows])
