"""What DEP trains: an autoencoder over both kinds of vector, and a projector for each kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.dep.config import DepConfig

_EPS = 1e-6
"""Mean activations are clamped this far inside (0, 1) before the KL penalty, as in the public code."""


class Autoencoder(nn.Module):
    """Vectors to a code and back.

    Three kinds, by `config.autoencoder`: "topk" (Gao et al. 2024) and "l1" have ReLU latents and a linear decoder,
    and are sparse; "paper" has GELU on both sides and a KL penalty on mean activations, and is not.
    """

    def __init__(self, size: int, config: DepConfig) -> None:
        super().__init__()
        self.kind, self.rho, self.sparsity_weight = config.autoencoder, config.rho, config.sparsity_weight
        self.k = min(config.k, config.latent_size)
        self.encoder = _linear(size, config.latent_size)
        self.decoder = _linear(config.latent_size, size)
        if self.kind != "paper":
            with torch.no_grad():
                self.decoder.weight.copy_(self.encoder.weight.T)  # tied at the start, free afterwards

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, size) -> code (n, latent size); sparse and non-negative but for the paper's."""
        if self.kind == "paper":
            return nn.functional.gelu(self.encoder(vectors))
        latents = torch.relu(self.encoder(vectors - self.decoder.bias))
        if self.kind == "l1":
            return latents
        values, indices = latents.topk(self.k, dim=-1)
        return torch.zeros_like(latents).scatter(-1, indices, values)

    def decode(self, code: Tensor) -> Tensor:
        """(n, latent size) -> (n, size)."""
        decoded: Tensor = self.decoder(code)
        return nn.functional.gelu(decoded) if self.kind == "paper" else decoded

    def loss(self, vectors: Tensor, code: Tensor, owner: Tensor, rows: int) -> Tensor:
        """Reconstruction plus weighted penalty of each training row, shape (rows,); zero for a row without vectors.

        `owner` (n,) gives each vector's row. Smooth-L1 is a mean over a row's vectors and dimensions. The penalty is
        the L1 norm of a code, averaged over the row ("l1"), or KL(rho || mean activation over the row), averaged over
        latents ("paper": Qiu et al., EMNLP 2025, section 3.3, as their code has it). A row's loss is the same in
        whatever company the row comes.
        """
        counts = torch.bincount(owner, minlength=rows)
        error = nn.functional.smooth_l1_loss(self.decode(code), vectors, reduction="none").mean(-1)
        loss = _row_means(error, owner, counts)
        if self.kind == "l1":
            loss = loss + self.sparsity_weight * _row_means(code.abs().sum(-1), owner, counts)
        if self.kind == "paper":
            active = _row_means(code, owner, counts).clamp(_EPS, 1 - _EPS)
            divergence = self.rho * torch.log(self.rho / active)
            divergence = divergence + (1 - self.rho) * torch.log((1 - self.rho) / (1 - active))
            loss = loss + self.sparsity_weight * divergence.mean(-1) * (counts > 0)
        return loss


def _row_means(values: Tensor, owner: Tensor, counts: Tensor) -> Tensor:
    """Means of `values` (n, ...) over each row's vectors: (rows, ...), zero for a row without any."""
    sums = values.new_zeros((len(counts), *values.shape[1:])).index_add(0, owner, values)
    return sums / counts.clamp_min(1).reshape(-1, *[1] * (values.dim() - 1))


def _rms(values: Tensor) -> Tensor:
    return values.pow(2).mean().sqrt().clamp_min(1e-8)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer as the public code starts it (Xavier uniform, biases zero): torch's own biases would outweigh what a unit
    vector brings, and all users would start with nearly one token."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _projector(size: int, hidden: int, kind: str) -> nn.Module:
    if kind == "linear":
        return _linear(size, hidden)
    return nn.Sequential(_linear(size, hidden), nn.GELU(), _linear(hidden, hidden))


@dataclass(frozen=True)
class SparsityReport:
    """How sparse the code is and how much it keeps, over a set of vectors."""

    l0: float
    """Mean number of latents in use (above zero)."""
    dead_share: float
    """Share of latents never in use."""
    explained_variance: float


class DepModule(nn.Module):
    """History and difference vectors to soft tokens of the language model's width."""

    def __init__(self, embedding_size: int, hidden_size: int, config: DepConfig) -> None:
        super().__init__()
        self.sizes = (embedding_size, hidden_size)
        self.autoencoder = Autoencoder(embedding_size, config) if config.autoencoder != "none" else None
        size = config.latent_size if self.autoencoder is not None else embedding_size
        self.kinds = {"both": (0, 1), "history": (0,), "difference": (1,)}[config.tokens]
        """Which soft tokens a review gets: 0 for the history one, 1 for the difference one."""
        self.history = _projector(size, hidden_size, config.projector) if 0 in self.kinds else None
        self.difference = _projector(size, hidden_size, config.projector) if 1 in self.kinds else None
        self.no_peers = nn.Parameter(torch.zeros(hidden_size)) if 1 in self.kinds else None
        trained = config.markers == "trained"
        self.markers = nn.Parameter(torch.zeros(len(self.kinds), 2, hidden_size)) if trained else None
        self.centre: Tensor
        self.gain: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(2, embedding_size))
        self.register_buffer("gain", torch.ones(2))
        self.register_buffer("scale", torch.ones(2))

    @property
    def width(self) -> int:
        """Positions of a soft slot: its token, and the trained markers before and after it where there are any."""
        return 1 if self.markers is None else 3

    def centred(self, vectors: Tensor, kind: int) -> Tensor:
        """What goes into the autoencoder: vectors (n, embedding size) of a kind less what all of that kind share."""
        return vectors - self.centre[kind]

    def encode(self, centred: Tensor) -> Tensor:
        """Codes of centred vectors (n, embedding size); the vectors themselves without an autoencoder."""
        return centred if self.autoencoder is None else self.autoencoder.encode(centred)

    def calibrate(self, own: Tensor, difference: Tensor, target_rms: float, whole: bool = True) -> None:
        """Starts soft tokens at the size of the model's own embeddings, root mean square `target_rms`, and apart.

        A fresh projector's outputs are many times smaller than an embedding, and what all vectors of a kind share would
        be most of every token. So each kind's vectors are centred at their mean and codes reach the projector at unit
        size. With `whole` false all this stays as it is initialised, as in the public code.
        """
        with torch.no_grad():
            if whole:
                for kind, vectors in enumerate((own, difference)):
                    self._calibrate(kind, vectors, target_rms)
            for parameter in (self.no_peers, self.markers):
                if parameter is not None:
                    parameter.normal_(0.0, target_rms)

    def _calibrate(self, kind: int, vectors: Tensor, target_rms: float) -> None:
        projector = (self.history, self.difference)[kind]
        if projector is None or not len(vectors):
            return
        self.centre[kind] = vectors.mean(0) if len(vectors) > 1 else 0.0
        code = self.encode(self.centred(vectors, kind))
        self.gain[kind] = 1 / _rms(code)
        self.scale[kind] = target_rms / _rms(projector(code * self.gain[kind]))

    def forward(self, own: Tensor, difference: Tensor, has_peers: Tensor) -> Tensor:
        """Soft tokens (reviews, kinds, width, hidden), the history one before the difference one.

        `own` and `difference` have shape (reviews, d), `has_peers` (reviews,). A review without peers gets the
        learned "no peers" token for its difference.
        """
        tokens = []
        if self.history is not None:
            tokens.append(self.history(self.encode(self.centred(own, 0)) * self.gain[0]) * self.scale[0])
        if self.difference is not None and self.no_peers is not None:
            projected = self.difference(self.encode(self.centred(difference, 1)) * self.gain[1]) * self.scale[1]
            tokens.append(torch.where(has_peers[:, None], projected, self.no_peers))
        soft = torch.stack(tokens, dim=1).unsqueeze(2)
        if self.markers is None:
            return soft
        around = self.markers.expand(len(own), *self.markers.shape)
        return torch.cat([around[:, :, :1], soft, around[:, :, 1:]], dim=2)

    def row_losses(self, own: Tensor, difference: Tensor, has_peers: Tensor, owner: Tensor, rows: int) -> Tensor:
        """The autoencoder's loss of each training row (rows,), over the vectors whose tokens are in use.

        `owner` (reviews,) gives each review's row. A review without peers has no difference vector to rebuild.
        """
        if self.autoencoder is None:
            return own.new_zeros(rows)
        parts = [(self.centred(own, 0), owner)] if 0 in self.kinds else []
        parts += [(self.centred(difference[has_peers], 1), owner[has_peers])] if 1 in self.kinds else []
        vectors, owners = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.autoencoder.loss(vectors, self.encode(vectors), owners, rows)

    @torch.no_grad()
    def sparsity(self, vectors: Tensor) -> SparsityReport | None:
        """What the autoencoder does to centred vectors (n, d); None without one."""
        if self.autoencoder is None:
            return None
        code = self.autoencoder.encode(vectors)
        residual = (vectors - self.autoencoder.decode(code)).pow(2).sum()
        total = (vectors - vectors.mean(0)).pow(2).sum().clamp_min(1e-12)
        used = code > 0
        return SparsityReport(
            float(used.sum(-1).float().mean()),
            float((~used.any(0)).float().mean()),
            float(1 - residual / total),
        )
