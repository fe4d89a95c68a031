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
from methods.dep.modules import Autoencoder, DepModule

SIZE, LATENT, HIDDEN = 12, 20, 8
Array = npt.NDArray[np.float64]


def make(seed: int = 0, **config: Any) -> DepModule:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DepModule(SIZE, HIDDEN, DepConfig(latent_size=LATENT, **{"k": 5, **config}))


def inner(module: DepModule) -> Autoencoder:
    assert module.autoencoder is not None
    return module.autoencoder


def pair(module: DepModule, own: torch.Tensor, difference: torch.Tensor, has: torch.Tensor) -> torch.Tensor:
    """Soft tokens without trained markers: (reviews, 2, hidden)."""
    soft: torch.Tensor = module(own, difference, has)
    assert soft.shape == (len(own), 2, 1, HIDDEN)
    return soft[:, :, 0]


def directions(module: DepModule, vectors: torch.Tensor) -> torch.Tensor:
    """Directions of history tokens (n, hidden)."""
    soft: torch.Tensor = module(vectors, vectors, torch.ones(len(vectors), dtype=torch.bool))
    return torch.nn.functional.normalize(soft[:, 0, 0], dim=-1)


def each(module: DepModule, own: torch.Tensor, difference: torch.Tensor, has: torch.Tensor) -> torch.Tensor:
    """The autoencoder's loss with every review as a row of its own."""
    return module.row_losses(own, difference, has, torch.arange(len(own)), len(own))


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


def naive_code(model: Autoencoder, vector: Array, k: int | None) -> Array:
    """ReLU latents of one vector; with k, all but the k largest are put to zero one by one."""
    centred = vector - array(model.decoder.bias)
    latents = [max(0.0, float(row @ centred) + float(b)) for row, b in zip(*encoder(model), strict=True)]
    kept = range(len(latents)) if k is None else sorted(range(len(latents)), key=lambda i: -latents[i])[:k]
    return np.array([value if i in set(kept) else 0.0 for i, value in enumerate(latents)])


def encoder(model: Autoencoder) -> tuple[Array, Array]:
    return array(model.encoder.weight), array(model.encoder.bias)


def naive_loss(model: Autoencoder, vector: Array, k: int | None, l1: float) -> float:
    code = naive_code(model, vector, k)
    gaps = [abs(float(x)) for x in linear(model.decoder, code) - vector]
    smooth = [0.5 * g * g if g < 1 else g - 0.5 for g in gaps]
    return sum(smooth) / len(smooth) + l1 * sum(abs(float(c)) for c in code)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, LATENT + 5), st.integers(1, 6))
def test_topk_keeps_the_k_largest_and_nothing_negative(seed: int, k: int, count: int) -> None:
    model, vectors = inner(make(seed, k=k)), 3 * unit(count, seed)
    code = model.encode(vectors)
    assert code.shape == (count, LATENT)
    assert (code >= 0).all()
    for vector, row in zip(vectors, code, strict=True):
        positive = int((naive_code(model, array(vector), None) > 0).sum())
        assert int((row > 0).sum()) == min(k, positive)
        np.testing.assert_allclose(array(row), naive_code(model, array(vector), k), atol=1e-5)


def test_topk_keeps_exactly_k_where_enough_latents_are_positive() -> None:
    model = inner(make(k=5))
    with torch.no_grad():
        model.encoder.bias.fill_(10.0)
    assert ((model.encode(unit(30)) > 0).sum(-1) == 5).all()


def test_l1_keeps_every_positive_latent() -> None:
    model, vectors = inner(make(autoencoder="l1")), unit(9)
    expected = np.stack([naive_code(model, array(v), None) for v in vectors])
    np.testing.assert_allclose(array(model.encode(vectors)), expected, atol=1e-6)
    assert ((expected > 0).sum(-1) > 5).any()


@pytest.mark.parametrize(("kind", "k", "l1"), [("topk", 5, 0.0), ("l1", None, 0.25)])
def test_loss_of_each_vector_is_smooth_l1_plus_penalty(kind: str, k: int | None, l1: float) -> None:
    """Vectors long enough that both branches of smooth-L1 are met."""
    model, vectors = inner(make(autoencoder=kind, sparsity_weight=0.25)), 4 * unit(7)
    got = model.loss(vectors, model.encode(vectors), torch.arange(7), 7)
    np.testing.assert_allclose(array(got), [naive_loss(model, array(v), k, l1) for v in vectors], rtol=1e-5)


def test_the_decoder_is_linear() -> None:
    """It reaches values of any sign and size, and scales with the code."""
    decoder = inner(make()).decoder
    code = torch.rand(3, LATENT)
    flat = decoder(torch.zeros(1, LATENT))
    torch.testing.assert_close(decoder(50 * code) - flat, 50 * (decoder(code) - flat), rtol=1e-4, atol=1e-4)
    assert (decoder(50 * code) < -1).any()


@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_a_rows_loss_is_the_mean_over_its_vectors_with_a_difference_only_where_there_are_peers(kind: str) -> None:
    module = make(autoencoder=kind, sparsity_weight=0.1)
    own, difference, has_peers = unit(6), unit(6, 2), torch.tensor([True, False, True, False, False, True])
    owner = torch.tensor([0, 0, 0, 2, 2, 3])  # row 1 has no review at all
    losses = module.row_losses(own, difference, has_peers, owner, 5)
    k, l1 = (5, 0.0) if kind == "topk" else (None, 0.1)
    for row in range(5):
        mine = (owner == row).tolist()
        vectors = [v for v, m in zip(own, mine, strict=True) if m]
        vectors += [v for v, m, h in zip(difference, mine, has_peers.tolist(), strict=True) if m and h]
        naive = [naive_loss(inner(module), array(v), k, l1) for v in vectors]
        assert float(losses[row].detach()) == pytest.approx(sum(naive) / max(1, len(naive)), rel=1e-5)


def gelu(value: float) -> float:
    return 0.5 * value * (1 + math.erf(value / math.sqrt(2)))


def test_the_papers_loss_equals_its_formulas_written_out() -> None:
    """z = GELU(A e + a), e' = GELU(B z + b); smooth-L1 and KL(0.05 || mean z over the row's vectors), clamped."""
    module = make(autoencoder="paper", sparsity_weight=0.3)
    model, vectors = inner(module), 3 * unit(16)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.encoder.bias.normal_(std=0.3, generator=noise)  # zero at the start, where no mean would meet the clamp
        model.decoder.bias.normal_(std=0.3, generator=noise)
    codes = [[gelu(float(x)) for x in linear(model.encoder, array(v))] for v in vectors]
    np.testing.assert_allclose(array(model.encode(vectors)), codes, atol=1e-5)
    back = [[gelu(float(x)) for x in linear(model.decoder, np.array(c))] for c in codes]
    gaps = [abs(b - float(e)) for row, v in zip(back, vectors, strict=True) for b, e in zip(row, v, strict=True)]
    smooth = sum(0.5 * g * g if g < 1 else g - 0.5 for g in gaps) / len(gaps)
    means = [min(max(sum(c[j] for c in codes) / 16, 1e-6), 1 - 1e-6) for j in range(LATENT)]
    assert min(means) == 1e-6  # the clamp is met: GELU latents have means below zero
    divergence = [0.05 * math.log(0.05 / m) + 0.95 * math.log(0.95 / (1 - m)) for m in means]
    loss = model.loss(vectors, model.encode(vectors), torch.zeros(16, dtype=torch.long), 1)
    assert float(loss.detach()) == pytest.approx(smooth + 0.3 * sum(divergence) / LATENT, rel=1e-4)
    halves = vectors[:8], vectors[8:], torch.ones(8, dtype=torch.bool)
    both = module.row_losses(*halves, torch.zeros(8, dtype=torch.long), 1)
    torch.testing.assert_close(both, loss)  # history and difference vectors of a row share one mean


@pytest.mark.parametrize("kind", ["topk", "l1", "paper"])
def test_a_rows_loss_is_the_same_in_any_company(kind: str) -> None:
    module, has = make(autoencoder=kind), torch.tensor([True, True, False, True, True, False])
    own, difference, owner = unit(6), unit(6, 2), torch.tensor([0, 0, 1, 1, 1, 2])
    together = module.row_losses(own, difference, has, owner, 3)
    for row in range(3):
        mine = owner == row
        alone = module.row_losses(own[mine], difference[mine], has[mine], owner[mine] * 0, 1)
        torch.testing.assert_close(alone[0], together[row])


def test_without_an_autoencoder_vectors_go_straight_into_the_projectors() -> None:
    module = make(autoencoder="none", projector="linear")
    own, difference, has = unit(3), unit(3, 2), torch.ones(3, dtype=torch.bool)
    soft = pair(module, own, difference, has)
    for kind, (projector, vectors) in enumerate(((module.history, own), (module.difference, difference))):
        assert projector is not None
        for row, vector in enumerate(vectors):
            np.testing.assert_allclose(array(soft[row, kind]), linear(projector, array(vector)), atol=1e-5)
    assert each(module, own, difference, has).tolist() == [0.0] * 3
    assert module.sparsity(own) is None


@pytest.mark.parametrize("kind", ["history", "difference"])
def test_one_kind_of_token_alone_is_that_of_the_full_module(kind: str) -> None:
    full, alone = make(), make(tokens=kind)
    alone.load_state_dict({k: v for k, v in full.state_dict().items() if k in alone.state_dict()})
    inputs = unit(4), unit(4, 2), torch.tensor([True, False, True, True])
    index = 0 if kind == "history" else 1
    assert torch.equal(alone(*inputs), full(*inputs)[:, index : index + 1])
    only = make(tokens=kind, autoencoder="l1")
    vectors = inputs[0] if kind == "history" else inputs[1][inputs[2]]
    expected = sum(naive_loss(inner(only), array(v), None, 1e-3) for v in vectors) / len(vectors)
    got = only.row_losses(*inputs, torch.zeros(4, dtype=torch.long), 1)
    assert float(got.detach()) == pytest.approx(expected, rel=1e-5)


def test_trained_markers_stand_around_each_token_and_learn() -> None:
    plain, marked = make(), make(markers="trained")
    marked.load_state_dict(plain.state_dict(), strict=False)
    marked.calibrate(unit(0), unit(0), 0.3)
    marked.no_peers = plain.no_peers
    inputs = unit(4), unit(4, 2), torch.tensor([True, False, True, True])
    soft = marked(*inputs)
    assert soft.shape == (4, 2, 3, HIDDEN)
    assert marked.width == 3
    assert torch.equal(soft[:, :, 1], plain(*inputs)[:, :, 0])
    assert marked.markers is not None
    for kind in range(2):
        for end, place in enumerate((0, 2)):
            assert all(torch.equal(soft[i, kind, place], marked.markers[kind, end]) for i in range(4))
    gradient = torch.autograd.grad(soft.sum(), marked.markers)[0]
    torch.testing.assert_close(gradient, torch.full((2, 2, HIDDEN), 4.0))


def test_soft_tokens_are_the_projected_codes_scaled() -> None:
    module = make()
    module.scale.copy_(torch.tensor([3.0, 0.5]))
    own, difference = unit(4), unit(4, 2)
    soft = pair(module, own, difference, torch.ones(4, dtype=torch.bool))
    for kind, (projector, vectors) in enumerate(((module.history, own), (module.difference, difference))):
        for row, vector in enumerate(vectors):
            assert isinstance(projector, torch.nn.Sequential)
            first, _, last = projector
            hidden = linear(first, naive_code(inner(module), array(vector), 5))
            token = linear(last, np.array([gelu(h) for h in hidden.tolist()]))
            np.testing.assert_allclose(array(soft[row, kind]), token * float(module.scale[kind]), rtol=1e-4, atol=1e-6)


def test_the_no_peers_token_stands_exactly_where_there_are_none_and_learns_from_there() -> None:
    module = make()
    assert module.no_peers is not None
    with torch.no_grad():
        module.no_peers.normal_()
    has_peers = torch.tensor([False, True, False, True])
    own, difference = unit(4), unit(4, 2)
    soft = pair(module, own, difference, has_peers)
    assert [torch.equal(soft[i, 1], module.no_peers) for i in range(4)] == [True, False, True, False]
    assert not any(torch.equal(soft[i, 0], module.no_peers) for i in range(4))
    gradient = torch.autograd.grad(soft[:, 1].sum(), module.no_peers)[0]
    torch.testing.assert_close(gradient, torch.full((HIDDEN,), 2.0))
    soft = pair(module, own[1:2], difference[1:2], has_peers[1:2])
    assert torch.autograd.grad(soft.sum(), module.no_peers)[0].eq(0).all()


def test_what_stands_in_for_a_missing_difference_changes_nothing() -> None:
    """Zeros are put there; neither tokens nor losses nor gradients may depend on it."""
    module = make()
    outcomes = []
    for filler in (torch.zeros(2, SIZE), 7 * unit(2, 3)):
        module.zero_grad()
        inputs = unit(2), filler, torch.tensor([False, False])
        soft, losses = module(*inputs), each(module, *inputs)
        (soft.square().sum() + losses.sum()).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
        outcomes.append([soft.detach(), losses.detach(), *gradients])
    for left, right in zip(*outcomes, strict=True):
        torch.testing.assert_close(left, right)


def test_zero_reviews_give_zero_tokens_and_gradients_still_flow() -> None:
    module = make()
    nothing = torch.zeros(0, SIZE), torch.zeros(0, SIZE), torch.zeros(0, dtype=torch.bool)
    soft, losses = pair(module, *nothing), module.row_losses(*nothing, torch.zeros(0, dtype=torch.long), 2)
    assert losses.tolist() == [0.0, 0.0]
    (soft.sum() + losses.sum()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.eq(0).all() for p in module.parameters())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.005, 5.0))
def test_calibrated_soft_tokens_have_the_rms_that_was_asked_for(seed: int, wanted: float) -> None:
    module, own, difference = make(seed), unit(50, seed), 0.3 * unit(40, seed + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module.calibrate(own, difference, wanted)
    soft = pair(module, own[:40], difference, torch.ones(40, dtype=torch.bool))
    history = pair(module, own, torch.zeros(50, SIZE), torch.zeros(50, dtype=torch.bool))[:, 0]
    assert rms(history) == pytest.approx(wanted, rel=1e-4)
    assert rms(soft[:, 1]) == pytest.approx(wanted, rel=1e-4)
    assert module.no_peers is not None
    assert 0.2 * wanted < rms(module.no_peers) < 3 * wanted  # a draw of eight numbers


def test_calibration_without_differences_leaves_a_finite_module() -> None:
    module = make()
    module.calibrate(unit(5), torch.zeros(0, SIZE), 0.1)
    module.calibrate(torch.zeros(0, SIZE), torch.zeros(0, SIZE), 0.1)
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())


def test_calibrated_soft_tokens_of_unlike_vectors_are_unlike() -> None:
    """Vectors that share most of their direction, as embeddings of reviews do: as initialised, tokens share it too."""
    noise = torch.randn(60, 96, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(0.1 + 0.05 * noise, dim=-1)
    likeness = {}
    for whole in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = DepModule(96, 64, DepConfig(latent_size=128, k=16))
        module.calibrate(vectors, vectors[:30], 0.1, whole=whole)
        soft = directions(module, vectors)
        likeness[whole] = float((soft @ soft.T).detach().fill_diagonal_(0).sum() / (60 * 59))
    assert likeness[True] < 0.5 < likeness[False]


def test_every_layer_starts_as_in_the_public_code() -> None:
    """Xavier uniform: within the root of 6 / (in + out), with the variance of that interval; biases zero."""
    module = DepModule(96, 64, DepConfig(mode="paper", latent_size=128))
    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 6
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
    vectors = torch.nn.functional.normalize(torch.randn(60, 96, generator=torch.Generator().manual_seed(0)), dim=-1)
    soft = directions(module, vectors)
    assert float((soft @ soft.T).detach().fill_diagonal_(0).abs().max()) < 0.7  # unlike vectors, unlike tokens


def test_uncalibrated_projectors_are_left_as_they_are() -> None:
    module = make()
    module.calibrate(unit(5), unit(5, 2), 0.1, whole=False)
    before = make().state_dict()
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before if name != "no_peers")


@pytest.mark.parametrize("kind", ["topk", "l1", "paper", "none"])
def test_saved_and_loaded_it_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    module = make(autoencoder=kind)
    module.calibrate(unit(5), unit(5, 2), 0.1)
    save_file(module.state_dict(), tmp_path / "adapter.safetensors")
    other = make(seed=99, autoencoder=kind)
    other.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
    inputs = unit(6, 3), unit(6, 4), torch.tensor([True, False] * 3)
    assert torch.equal(module(*inputs), other(*inputs))
    assert torch.equal(each(module, *inputs), each(other, *inputs))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from(["topk", "l1"]))
def test_sparsity_report_equals_a_count_by_hand(seed: int, count: int, kind: str) -> None:
    model, vectors = make(seed, autoencoder=kind), unit(count, seed)
    k = 5 if kind == "topk" else None
    codes = [naive_code(inner(model), array(v), k) for v in vectors]
    mean = array(vectors).mean(0)
    residual = sum(
        float(((v - linear(inner(model).decoder, c)) ** 2).sum()) for v, c in zip(array(vectors), codes, strict=True)
    )
    total = sum(float(((v - mean) ** 2).sum()) for v in array(vectors))
    report = model.sparsity(vectors)
    assert report is not None
    assert report.l0 == pytest.approx(sum((c > 0).sum() for c in codes) / count)
    assert report.dead_share == pytest.approx(sum(all(c[i] <= 0 for c in codes) for i in range(LATENT)) / LATENT)
    if count > 1:
        assert report.explained_variance == pytest.approx(1 - residual / total, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("config", [{}, {"autoencoder": "paper", "markers": "trained"}, {"autoencoder": "none"}])
def test_every_parameter_learns(config: dict[str, Any]) -> None:
    """No part is cut off from both losses."""
    module = make(**config)
    module.calibrate(unit(30), unit(30, 2), 0.1)
    inputs = unit(30), unit(30, 2), torch.tensor([True] * 15 + [False] * 15)
    soft, losses = module(*inputs), each(module, *inputs)
    (soft.square().sum() + losses.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
