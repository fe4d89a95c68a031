"""What DEP trains: a sparse autoencoder over both kinds of vector, and a projector for each kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.dep.config import DepConfig


class SparseAutoencoder(nn.Module):
    """Vectors to a sparse code and back: ReLU latents, top-k (Gao et al. 2024) or under L1; a linear decoder."""

    def __init__(self, size: int, config: DepConfig) -> None:
        super().__init__()
        self.encoder = nn.Linear(size, config.latent_size)
        self.decoder = nn.Linear(config.latent_size, size)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.T)  # tied at the start, free afterwards
            self.decoder.bias.zero_()
        self.k = min(config.k, config.latent_size) if config.autoencoder == "topk" else None
        self.l1_weight = config.l1_weight if config.autoencoder == "l1" else 0.0

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, size) -> sparse non-negative code (n, latent size)."""
        latents = torch.relu(self.encoder(vectors - self.decoder.bias))
        if self.k is None:
            return latents
        values, indices = latents.topk(self.k, dim=-1)
        return torch.zeros_like(latents).scatter(-1, indices, values)

    def loss(self, vectors: Tensor, code: Tensor) -> Tensor:
        """Smooth-L1 reconstruction (mean over dimensions) plus the L1 penalty, of each vector: shape (n,)."""
        error = nn.functional.smooth_l1_loss(self.decoder(code), vectors, reduction="none").mean(-1)
        return error + self.l1_weight * code.abs().sum(-1)


def _projector(latent: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, hidden))


@dataclass(frozen=True)
class SparsityReport:
    """How sparse the code is and how much it keeps, over a set of vectors."""

    l0: float
    """Mean number of latents in use."""
    dead_share: float
    """Share of latents never in use."""
    explained_variance: float


class DepModule(nn.Module):
    """History and difference vectors to soft tokens of the language model's width."""

    def __init__(self, embedding_size: int, hidden_size: int, config: DepConfig) -> None:
        super().__init__()
        self.autoencoder = SparseAutoencoder(embedding_size, config)
        self.history = _projector(config.latent_size, hidden_size)
        self.difference = _projector(config.latent_size, hidden_size)
        self.no_peers = nn.Parameter(torch.zeros(hidden_size))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(2))

    def calibrate(self, own: Tensor, difference: Tensor, target_rms: float) -> None:
        """Scales both projectors so that soft tokens start at the size of the model's own embeddings.

        A fresh projector's outputs are several times smaller, and learning would begin far away.
        """
        with torch.no_grad():
            for index, (projector, vectors) in enumerate(((self.history, own), (self.difference, difference))):
                if len(vectors):
                    rms = projector(self.autoencoder.encode(vectors)).pow(2).mean().sqrt()
                    self.scale[index] = target_rms / rms.clamp_min(1e-8)
            self.no_peers.normal_(0.0, target_rms)

    def forward(self, own: Tensor, difference: Tensor, has_peers: Tensor) -> tuple[Tensor, Tensor]:
        """Soft tokens (reviews, 2, hidden): history then difference; and the autoencoder loss of each review.

        `own` and `difference` have shape (reviews, d), `has_peers` (reviews,). A review without peers gets the
        learned "no peers" token, and its loss is that of its own vector alone; else it is the sum over both.
        """
        own_code, code = self.autoencoder.encode(own), self.autoencoder.encode(difference)
        history = self.history(own_code) * self.scale[0]
        projected = self.difference(code) * self.scale[1]
        soft = torch.where(has_peers[:, None], projected, self.no_peers)
        loss = self.autoencoder.loss(own, own_code) + self.autoencoder.loss(difference, code) * has_peers
        return torch.stack([history, soft], dim=1), loss

    @torch.no_grad()
    def sparsity(self, vectors: Tensor) -> SparsityReport:
        """What the autoencoder does to `vectors` (n, d)."""
        code = self.autoencoder.encode(vectors)
        residual = (vectors - self.autoencoder.decoder(code)).pow(2).sum()
        total = (vectors - vectors.mean(0)).pow(2).sum().clamp_min(1e-12)
        used = code > 0
        return SparsityReport(
            float(used.sum(-1).float().mean()),
            float((~used.any(0)).float().mean()),
            float(1 - residual / total),
        )
