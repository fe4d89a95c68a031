"""What pplug trains: an input encoder, an MLP over histories and an instruction vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bench.encoders import Encoder, pool, read_facts
from bench.engines.base import LanguageModel
from bench.errors import UsageError, first_line
from bench.prompts import Fitted
from bench.training import Row
from bench.weights import local_folder

Read = Callable[[Sequence[str]], list[Tensor]]
"""Texts -> what the input encoder takes: token ids (tokens,) of each, or the frozen encoder's vector (size,)."""

_CHUNK = 8192
"""Embeddings of the vocabulary measured at once."""


class TrainedInput(nn.Module):
    """A copy of the text encoder, all of it trained."""

    def __init__(self, network: nn.Module, pooling: str, pad: int) -> None:
        super().__init__()
        self.network, self.pooling, self.pad = network, pooling, pad

    def forward(self, queries: Sequence[Tensor]) -> Tensor:
        """Token ids of each text, (tokens,) each -> unit vectors (texts, size)."""
        ids = pad_sequence(list(queries), batch_first=True, padding_value=self.pad)
        mask = filled(queries).to(ids.dtype)
        return pool(self.network(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self.pooling)


class LinearInput(nn.Module):
    """One square matrix behind the frozen encoder; it starts as the identity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.matrix.weight)

    def forward(self, queries: Sequence[Tensor]) -> Tensor:
        """The frozen encoder's vector of each text, (size,) each -> unit vectors (texts, size)."""
        return nn.functional.normalize(self.matrix(torch.stack(list(queries))), dim=-1)


class PPlugModule(nn.Module):
    """Soft tokens from a query and a history (Liu et al., ACL 2025, section 3)."""

    def __init__(self, inputs: TrainedInput | LinearInput, size: int, hidden_size: int, temperature: float) -> None:
        """`size` is the length of an encoder's vector, `hidden_size` that of a soft token."""
        super().__init__()
        self.sizes, self.temperature = (size, hidden_size), temperature
        self.inputs = inputs
        self.history, self.instruct = _mlp(size, hidden_size), _mlp(size, hidden_size)
        # A vector through an MLP of its own, as in the public code: it learns faster than a bare vector would.
        self.instruction = nn.Parameter(torch.rand(size))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(2))

    def weights(self, query: Tensor, history: Tensor, real: Tensor) -> Tensor:
        """softmax(h·x / temperature) over each row's real histories, exactly zero elsewhere: (rows, longest).

        `query` has shape (rows, size), `history` (rows, longest, size); `real` (rows, longest) is false where a row is
        padded. A row without history gets zeros.
        """
        scores = (history @ query.unsqueeze(-1)).squeeze(-1) / self.temperature
        # The lowest number in place of minus infinity: a row without any history then makes no NaN.
        lowest = scores.masked_fill(~real, torch.finfo(scores.dtype).min)
        return lowest.softmax(-1).masked_fill(~real, 0.0)

    def persona(self, query: Tensor, history: Tensor, real: Tensor) -> Tensor:
        """Weighted sum of MLP(h), before scaling: (rows, hidden size). Arguments as for `weights`."""
        first, activation, last = self.history
        mixed = self.weights(query, history, real).unsqueeze(1) @ activation(first(history))
        # The last layer is linear and weights sum to one: once for the sum is the same as once for each history.
        persona: Tensor = last(mixed.squeeze(1))
        return persona

    def forward(self, queries: Sequence[Tensor], history: Tensor, real: Tensor) -> Tensor:
        """Instruction and persona of each row: (rows, 2, hidden size). The persona of a row without history is void."""
        persona = self.persona(self.inputs(queries), history, real)
        instruction = self.instruct(self.instruction).expand_as(persona)
        return torch.stack([instruction, persona], dim=1) * self.scale.unsqueeze(-1)

    @torch.no_grad()
    def calibrate(self, personas: Tensor, norm: float) -> None:
        """Scales tokens to Euclidean norm `norm`: the instruction, and the mean over `personas` (n, hidden size).

        One factor each, fixed from then on: what is learned may still lengthen one user's token and shorten another's.
        """
        self.scale[0] = norm / self.instruct(self.instruction).norm()
        self.scale[1] = norm / personas.norm(dim=-1).mean() if len(personas) else norm


def _mlp(size: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))


def filled(parts: Sequence[Tensor]) -> Tensor:
    """Where a batch padded from `parts`, (length,) each, is filled: bool (parts, longest)."""
    lengths = torch.tensor([len(part) for part in parts], device=parts[0].device)
    return torch.arange(int(lengths.max()), device=parts[0].device) < lengths.unsqueeze(-1)


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What an example asks, and where its history's vectors lie."""

    prompt: Fitted
    query: Tensor
    """What the input encoder takes; see `Read`."""
    members: Tensor
    """Rows of the table of vectors: (histories,)."""


def soft_tokens(module: PPlugModule, table: Tensor, given: Sequence[Prepared]) -> Tensor:
    """Soft tokens of several prompts in prompt order: (soft positions, hidden size). `table` is (texts, size)."""
    members = [one.members.to(table.device) for one in given]
    real = filled(members)
    history = table[pad_sequence(members, batch_first=True)]
    tokens: Tensor = module([one.query.to(table.device) for one in given], history, real)
    has = real.any(-1)
    return tokens[torch.stack([torch.ones_like(has), has], dim=1)]


class PersonaPrompts:
    """The module as something that the shared loop trains; finds what a row needs by its index."""

    constant_prefix = False
    """Soft tokens open the prompt: there is next to nothing before them to keep."""

    def __init__(self, module: PPlugModule, table: Tensor, given: Sequence[Prepared]) -> None:
        self.module, self.table, self.given = module, table, given

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def soft(self, rows: Sequence[Row], training: bool) -> tuple[Tensor, None]:
        self.module.train(training)  # with the dropout that the encoder's own config names
        return soft_tokens(self.module, self.table, [self.given[row.index] for row in rows]), None

    def state(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


# -- models -----------------------------------------------------------------------------------------------------------


def trained_input(encoder: Encoder) -> tuple[TrainedInput, Read]:
    """A float32 copy of the encoder as it was published, ready to be trained, and how it reads texts.

    Raises UsageError if transformers cannot load it, or if its tokenizer cannot pad.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    folder, name = local_folder(encoder.source), encoder.source.name
    offline: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        network = AutoModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, **offline)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **offline)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UsageError(f"encoder {name} cannot be loaded by transformers: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer of encoder {name} has no pad token; set one and save it again")
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # a layer behind the vectors: nothing here reads it, so nothing would train it
    facts = read_facts(folder, name)

    def read(texts: Sequence[str]) -> list[Tensor]:
        # Lone surrogates, which JSON may hold, cannot be encoded for the tokenizer.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = tokenizer(clean, truncation=True, max_length=facts.max_length)["input_ids"] if clean else []
        return [torch.tensor(row or [tokenizer.pad_token_id]) for row in ids]

    return TrainedInput(network, facts.pooling, tokenizer.pad_token_id), read


@torch.no_grad()
def embedding_norm(lm: LanguageModel) -> float:
    """Mean Euclidean norm of the language model's input embeddings.

    Measured on what the layer gives out: some families scale embeddings on the way.
    """
    embeddings = lm.model.get_input_embeddings()
    size: int = embeddings.weight.shape[0]
    total = 0.0
    for start in range(0, size, _CHUNK):
        ids = torch.arange(start, min(size, start + _CHUNK), device=lm.device)
        total += float(embeddings(ids).float().norm(dim=-1).sum())
    return total / size
