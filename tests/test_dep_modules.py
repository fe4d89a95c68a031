"""DEP's trained parts: sparse code, losses, soft tokens, what is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from methods.dep.config import DepConfig
from methods.dep.modules import DepModule, SparseAutoencoder

SIZE, LATENT, HIDDEN = 12, 20, 8
Array = npt.NDArray[np.float64]


def make(seed: int = 0, **config: Any) -> DepModule:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DepModule(SIZE, HIDDEN, DepConfig(latent_size=LATENT, **{"k": 5, **config}))


def unit(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, SIZE, generator=generator), dim=-1)


def array(tensor: torch.Tensor) -> Array:
    values: Array = tensor.detach().double().numpy()
    return values


def linear(layer: torch.nn.Module, vector: Array) -> Array:
    """W x + b."""
    assert isinstance(layer, torch.nn.Linear)
    out: Array = array(layer.weight) @ vector + array(layer.bias)
    return out


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


def naive_code(model: SparseAutoencoder, vector: Array, k: int | None) -> Array:
    """ReLU latents of one vector; with k, all but the k largest are put to zero one by one."""
    centred = vector - array(model.decoder.bias)
    latents = [max(0.0, float(row @ centred) + float(b)) for row, b in zip(*encoder(model), strict=True)]
    kept = range(len(latents)) if k is None else sorted(range(len(latents)), key=lambda i: -latents[i])[:k]
    return np.array([value if i in set(kept) else 0.0 for i, value in enumerate(latents)])


def encoder(model: SparseAutoencoder) -> tuple[Array, Array]:
    return array(model.encoder.weight), array(model.encoder.bias)


def naive_loss(model: SparseAutoencoder, vector: Array, k: int | None, l1: float) -> float:
    code = naive_code(model, vector, k)
    gaps = [abs(float(x)) for x in linear(model.decoder, code) - vector]
    smooth = [0.5 * g * g if g < 1 else g - 0.5 for g in gaps]
    return sum(smooth) / len(smooth) + l1 * sum(abs(float(c)) for c in code)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, LATENT + 5), st.integers(1, 6))
def test_topk_keeps_the_k_largest_and_nothing_negative(seed: int, k: int, count: int) -> None:
    model, vectors = make(seed, k=k).autoencoder, 3 * unit(count, seed)
    code = model.encode(vectors)
    assert code.shape == (count, LATENT)
    assert (code >= 0).all()
    for vector, row in zip(vectors, code, strict=True):
        positive = int((naive_code(model, array(vector), None) > 0).sum())
        assert int((row > 0).sum()) == min(k, positive)
        np.testing.assert_allclose(array(row), naive_code(model, array(vector), k), atol=1e-5)


def test_topk_keeps_exactly_k_where_enough_latents_are_positive() -> None:
    model = make(k=5).autoencoder
    with torch.no_grad():
        model.encoder.bias.fill_(10.0)
    assert ((model.encode(unit(30)) > 0).sum(-1) == 5).all()


def test_l1_keeps_every_positive_latent() -> None:
    model, vectors = make(autoencoder="l1").autoencoder, unit(9)
    expected = np.stack([naive_code(model, array(v), None) for v in vectors])
    np.testing.assert_allclose(array(model.encode(vectors)), expected, atol=1e-6)
    assert ((expected > 0).sum(-1) > 5).any()


@pytest.mark.parametrize(("kind", "k", "l1"), [("topk", 5, 0.0), ("l1", None, 0.25)])
def test_loss_of_each_vector_is_smooth_l1_plus_penalty(kind: str, k: int | None, l1: float) -> None:
    """Vectors long enough that both branches of smooth-L1 are met."""
    model, vectors = make(autoencoder=kind, l1_weight=0.25).autoencoder, 4 * unit(7)
    got = model.loss(vectors, model.encode(vectors))
    np.testing.assert_allclose(array(got), [naive_loss(model, array(v), k, l1) for v in vectors], rtol=1e-5)


def test_the_decoder_is_linear() -> None:
    """It reaches values of any sign and size, and scales with the code."""
    decoder = make().autoencoder.decoder
    code = torch.rand(3, LATENT)
    flat = decoder(torch.zeros(1, LATENT))
    torch.testing.assert_close(decoder(50 * code) - flat, 50 * (decoder(code) - flat), rtol=1e-4, atol=1e-4)
    assert (decoder(50 * code) < -1).any()


@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_per_review_loss_counts_a_difference_only_where_there_are_peers(kind: str) -> None:
    module = make(autoencoder=kind, l1_weight=0.1)
    own, difference, has_peers = unit(6), unit(6, 2), torch.tensor([True, False, True, False, False, True])
    _, losses = module(own, difference, has_peers)
    k, l1 = (5, 0.0) if kind == "topk" else (None, 0.1)
    expected = [
        naive_loss(module.autoencoder, array(o), k, l1)
        + (naive_loss(module.autoencoder, array(d), k, l1) if has else 0.0)
        for o, d, has in zip(own, difference, has_peers.tolist(), strict=True)
    ]
    np.testing.assert_allclose(array(losses), expected, rtol=1e-5)


def test_soft_tokens_are_the_projected_codes_scaled() -> None:
    module = make()
    module.scale.copy_(torch.tensor([3.0, 0.5]))
    own, difference = unit(4), unit(4, 2)
    soft, _ = module(own, difference, torch.ones(4, dtype=torch.bool))
    assert soft.shape == (4, 2, HIDDEN)
    for kind, (projector, vectors) in enumerate(((module.history, own), (module.difference, difference))):
        for row, vector in enumerate(vectors):
            first, _, last = projector
            hidden = linear(first, naive_code(module.autoencoder, array(vector), 5))
            gelu = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden.tolist()]
            token = linear(last, np.array(gelu))
            np.testing.assert_allclose(array(soft[row, kind]), token * float(module.scale[kind]), rtol=1e-4, atol=1e-6)


def test_the_no_peers_token_stands_exactly_where_there_are_none_and_learns_from_there() -> None:
    module = make()
    with torch.no_grad():
        module.no_peers.normal_()
    has_peers = torch.tensor([False, True, False, True])
    own, difference = unit(4), unit(4, 2)
    soft, _ = module(own, difference, has_peers)
    assert [torch.equal(soft[i, 1], module.no_peers) for i in range(4)] == [True, False, True, False]
    assert not any(torch.equal(soft[i, 0], module.no_peers) for i in range(4))
    gradient = torch.autograd.grad(soft[:, 1].sum(), module.no_peers)[0]
    torch.testing.assert_close(gradient, torch.full((HIDDEN,), 2.0))
    soft, _ = module(own[1:2], difference[1:2], has_peers[1:2])
    assert torch.autograd.grad(soft.sum(), module.no_peers)[0].eq(0).all()


def test_what_stands_in_for_a_missing_difference_changes_nothing() -> None:
    """Zeros are put there; neither tokens nor losses nor gradients may depend on it."""
    module = make()
    outcomes = []
    for filler in (torch.zeros(2, SIZE), 7 * unit(2, 3)):
        module.zero_grad()
        soft, losses = module(unit(2), filler, torch.tensor([False, False]))
        (soft.square().sum() + losses.sum()).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
        outcomes.append([soft.detach(), losses.detach(), *gradients])
    for left, right in zip(*outcomes, strict=True):
        torch.testing.assert_close(left, right)


def test_zero_reviews_give_zero_tokens_and_gradients_still_flow() -> None:
    module = make()
    soft, losses = module(torch.zeros(0, SIZE), torch.zeros(0, SIZE), torch.zeros(0, dtype=torch.bool))
    assert soft.shape == (0, 2, HIDDEN)
    assert losses.shape == (0,)
    (soft.sum() + losses.sum()).backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in module.parameters())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.005, 5.0))
def test_calibrated_soft_tokens_have_the_rms_that_was_asked_for(seed: int, wanted: float) -> None:
    module, own, difference = make(seed), unit(50, seed), 0.3 * unit(40, seed + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module.calibrate(own, difference, wanted)
    soft, _ = module(own[:40], difference, torch.ones(40, dtype=torch.bool))
    history = module(own, torch.zeros(50, SIZE), torch.zeros(50, dtype=torch.bool))[0][:, 0]
    assert rms(history) == pytest.approx(wanted, rel=1e-4)
    assert rms(soft[:, 1]) == pytest.approx(wanted, rel=1e-4)
    assert 0.2 * wanted < rms(module.no_peers) < 3 * wanted  # a draw of eight numbers


def test_calibration_without_differences_leaves_a_finite_module() -> None:
    module = make()
    module.calibrate(unit(5), torch.zeros(0, SIZE), 0.1)
    module.calibrate(torch.zeros(0, SIZE), torch.zeros(0, SIZE), 0.1)
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())


@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_saved_and_loaded_it_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    module = make(autoencoder=kind)
    module.calibrate(unit(5), unit(5, 2), 0.1)
    save_file(module.state_dict(), tmp_path / "adapter.safetensors")
    other = make(seed=99, autoencoder=kind)
    other.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    inputs = unit(6, 3), unit(6, 4), torch.tensor([True, False] * 3)
    for left, right in zip(module(*inputs), other(*inputs), strict=True):
        assert torch.equal(left, right)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from(["topk", "l1"]))
def test_sparsity_report_equals_a_count_by_hand(seed: int, count: int, kind: str) -> None:
    model, vectors = make(seed, autoencoder=kind), unit(count, seed)
    k = 5 if kind == "topk" else None
    codes = [naive_code(model.autoencoder, array(v), k) for v in vectors]
    mean = array(vectors).mean(0)
    residual = sum(
        float(((v - linear(model.autoencoder.decoder, c)) ** 2).sum())
        for v, c in zip(array(vectors), codes, strict=True)
    )
    total = sum(float(((v - mean) ** 2).sum()) for v in array(vectors))
    report = model.sparsity(vectors)
    assert report.l0 == pytest.approx(sum((c > 0).sum() for c in codes) / count)
    assert report.dead_share == pytest.approx(sum(all(c[i] <= 0 for c in codes) for i in range(LATENT)) / LATENT)
    if count > 1:
        assert report.explained_variance == pytest.approx(1 - residual / total, rel=1e-3, abs=1e-4)


def test_every_parameter_learns() -> None:
    """No part is cut off from both losses."""
    module = make()
    module.calibrate(unit(30), unit(30, 2), 0.1)
    soft, losses = module(unit(30), unit(30, 2), torch.tensor([True] * 15 + [False] * 15))
    (soft.square().sum() + losses.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
