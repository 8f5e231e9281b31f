"""The norms that torch does not have: batch renorm, noise, standardized weights and filter response, each in float64.

Formulas are in numpy, and so are the gradients but batch renorm's, whose formula is differentiated by autograd with r
and d as constants.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.errors import ConfigError
from bnexp.nn import build_model
from bnexp.nn.layers import stochastic_layers, weight_layers
from bnexp.nn.norm_layers import (
    BatchRenormalization,
    FilterResponse,
    ShiftingNoise,
    StandardizedConv2d,
    StandardizedLinear,
    standardize,
)
from bnexp.nn.norms import make_norm_factory
from bnexp.nn.unit import Unit, UnitFactory

N, C, SIDE = 6, 5, 4
EPS = 1e-3  # not the default, and large enough to be seen


def per_channel(v: np.ndarray, ndim: int) -> np.ndarray:
    return v.reshape(1, -1, *[1] * (ndim - 2))


def axes_of(x: np.ndarray) -> tuple[int, ...]:
    """All but the channels'."""
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def assert_near(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    got, want = (v.detach().double().numpy() if isinstance(v, Tensor) else v for v in (got, want))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def renorm_statistics(
    x: np.ndarray, running_mean: np.ndarray, running_sigma: np.ndarray, r_max: float, d_max: float
) -> tuple[np.ndarray, ...]:
    """mean and sigma of the batch, r and d, (C,) each: the first half of Ioffe 2017, algorithm 1."""
    mean, sigma = x.mean(axes_of(x)), np.sqrt(x.var(axes_of(x)) + EPS)
    r = np.clip(sigma / running_sigma, 1 / r_max, r_max)
    d = np.clip((mean - running_mean) / running_sigma, -d_max, d_max)
    return mean, sigma, r, d


def renorm_gradients(
    x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, r: np.ndarray, d: np.ndarray
) -> dict[str, Tensor]:
    """Autograd of the formula, with r and d as constants."""
    leaf, g, b = (torch.from_numpy(v).requires_grad_() for v in (x, gamma, beta))
    axes = list(axes_of(x))
    centred = leaf - leaf.mean(axes, keepdim=True)
    x_hat = centred / (centred.pow(2).mean(axes, keepdim=True) + EPS).pow(0.5)
    scale, shift, r_, d_ = (v.view(1, -1, *[1] * (x.ndim - 2)) for v in (g, b, torch.tensor(r), torch.tensor(d)))
    ((scale * (x_hat * r_ + d_) + shift) * torch.from_numpy(dy)).sum().backward()
    assert leaf.grad is not None
    assert g.grad is not None
    assert b.grad is not None
    return {"x": leaf.grad, "weight": g.grad, "bias": b.grad}


def renorm_batch(ndim: int, step: int) -> tuple[np.ndarray, ...]:
    """x whose channels wander far from the running statistics and back, dy, gamma, beta."""
    rng = np.random.default_rng(step)
    shape = (N, C, SIDE, SIDE)[:ndim]
    scale = np.roll([0.2, 0.9, 1.1, 4.0, 1.0], step)
    offset = np.roll([0.0, -4.0, 4.0, 0.1, -0.1], step)
    x = rng.normal(size=shape) * per_channel(scale, ndim) + per_channel(offset, ndim)
    return x, rng.normal(size=shape), rng.uniform(0.5, 1.5, C), rng.normal(size=C)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", ["both", "scale", "shift", "none"])
@pytest.mark.parametrize("ndim", [4, 2])
def test_batch_renorm_matches_algorithm_1(ndim: int, affine: str, momentum: float | None) -> None:
    options: dict[str, Any] = {"r_max": 1.5, "d_max": 0.8, "ramp_steps": 3}
    norm = make_norm_factory("batch_renorm", eps=EPS, affine=affine, momentum=momentum, **options)
    layer: Any = norm.make(C, ndim=ndim).double()
    running_mean, running_sigma = np.zeros(C), np.full(C, np.sqrt(1 + EPS))
    seen: set[str] = set()
    for step in range(6):
        x, dy, gamma, beta = renorm_batch(ndim, step)
        gamma = gamma if affine in ("both", "scale") else np.ones(C)
        beta = beta if affine in ("both", "shift") else np.zeros(C)
        with torch.no_grad():
            for parameter, value in ((layer.weight, gamma), (layer.bias, beta)):
                if parameter is not None:
                    parameter.copy_(torch.from_numpy(value))
        grown = min(step / 3, 1.0)
        r_max, d_max = 1 + 0.5 * grown, 0.8 * grown
        mean, sigma, r, d = renorm_statistics(x, running_mean, running_sigma, r_max, d_max)
        if grown == 1:
            seen |= {"r inside" if 1 / r_max < v < r_max else f"r {v:.2f}" for v in r}
            seen |= {"d inside" if -d_max < v < d_max else f"d {v:.1f}" for v in d}
        mean_, sigma_, r_, d_, gamma_, beta_ = (per_channel(v, ndim) for v in (mean, sigma, r, d, gamma, beta))
        want = gamma_ * ((x - mean_) / sigma_ * r_ + d_) + beta_

        leaf = torch.from_numpy(x).requires_grad_()
        layer.zero_grad()
        y = layer(leaf)
        y.backward(torch.from_numpy(dy))
        assert_near(y, want)
        gradients = renorm_gradients(x, dy, gamma, beta, r, d)
        assert_near(leaf.grad, gradients["x"])
        for name, parameter in layer.named_parameters():
            assert_near(parameter.grad, gradients[name])

        weight = 1 / (step + 1) if momentum is None else momentum
        running_mean = running_mean + weight * (mean - running_mean)
        running_sigma = running_sigma + weight * (sigma - running_sigma)  # of deviations: not sqrt of a mean of squares
        assert_near(layer.running_mean, running_mean)
        assert_near(layer.running_var, running_sigma**2 - EPS)
    assert seen == {"r inside", "r 0.67", "r 1.50", "d inside", "d -0.8", "d 0.8"}  # every side of both bounds

    layer.eval()
    y = layer(torch.from_numpy(x))
    want = (x - per_channel(running_mean, ndim)) / per_channel(running_sigma, ndim)
    assert_near(y, want * per_channel(gamma, ndim) + per_channel(beta, ndim))
    assert_near(layer.running_mean, running_mean)
    assert int(layer.num_batches_tracked) == 6


@pytest.mark.parametrize("sign", [1, -1])
def test_batch_renorm_bounds_grow_with_the_updates(sign: int) -> None:
    """Batches far beyond the bounds on every side show these as the spread and mean of the output."""
    layer = BatchRenormalization(2, eps=1e-12, momentum=1e-9, r_max=3.0, d_max=5.0, ramp_steps=4).double()
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0, correction=0) * 100.0**sign + 1000 * sign
    for r_max, d_max in [(1.0, 0.0), (1.5, 1.25), (2.0, 2.5), (2.5, 3.75), (3.0, 5.0), (3.0, 5.0)]:
        y = layer(x).detach()
        assert_near(y.std(0, correction=0), np.full(2, r_max**sign), 1e-6)
        assert_near(y.mean(0), np.full(2, d_max * sign), 1e-6)


def test_batch_renorm_starts_as_batch_norm() -> None:
    x, dy, _, _ = renorm_batch(4, 0)
    norm = make_norm_factory("batch_renorm").make(C, ndim=4).double()
    batch = nn.BatchNorm2d(C).double()
    outs = []
    for layer in (norm, batch):
        leaf = torch.from_numpy(x).requires_grad_()
        y = layer(leaf)
        y.backward(torch.from_numpy(dy))
        outs.append((y, leaf.grad))
    assert_near(outs[0][0], outs[1][0])
    assert_near(outs[0][1], outs[1][1])
    assert norm.state_dict().keys() == batch.state_dict().keys()
    for name, value in batch.state_dict().items():
        if name != "running_var":  # which is of standard deviations here
            assert_near(norm.state_dict()[name], value)


@pytest.mark.parametrize("num", [2, 4, 8])
def test_batch_renorm_corrects_by_one_on_average_however_small_the_batch(num: int) -> None:
    """A running average of variances would have r at 0.80, 0.92 and 0.97: sd_B is that far below its root mean square.

    What is seen of r is the spread of the output, which without bounds is exactly r.
    """
    layer = BatchRenormalization(2000, eps=1e-12, momentum=0.02, r_max=1e9, d_max=1e9, ramp_steps=1).double()
    generator = torch.Generator().manual_seed(num)
    spreads = []
    for step in range(260):
        y = layer(torch.randn(num, 2000, dtype=torch.float64, generator=generator)).detach()
        spreads += [y.std(0, correction=0).mean().item()] if step >= 200 else []
    # the running average is over about 100 batches, and E(1 / sd) a little above 1 / E(sd)
    assert np.mean(spreads) == pytest.approx(1, abs=0.015)


def test_batch_renorm_without_bounds_trains_with_what_evaluation_sees() -> None:
    layer = BatchRenormalization(C, eps=EPS, momentum=0.3, r_max=1e9, d_max=1e9, ramp_steps=1).double()
    layer(torch.from_numpy(renorm_batch(4, 0)[0]))
    before = copy.deepcopy(layer).eval()
    x = torch.from_numpy(renorm_batch(4, 1)[0])
    assert_near(layer(x), before(x))


def test_batch_renorm_corrects_in_fp32_under_bf16_autocast() -> None:
    layer = BatchRenormalization(C, eps=EPS, momentum=0.1, r_max=3.0, d_max=5.0, ramp_steps=1)
    layer(torch.zeros(2, C))
    layer.running_mean += 100
    # near 100 bf16 resolves 0.5: x is exact in bf16, its mean and variance are not
    x = 101 + 0.5 * np.random.default_rng(0).integers(-6, 7, size=(N, C, SIDE, SIDE))
    running_sigma = np.sqrt(layer.running_var.double().numpy() + EPS)
    mean, sigma, r, d = renorm_statistics(x, layer.running_mean.double().numpy(), running_sigma, 3.0, 5.0)
    assert (np.abs(d) < 5).all()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.from_numpy(x).bfloat16())
    mean_, sigma_, r_, d_ = (per_channel(v, 4) for v in (mean, sigma, r, d))
    np.testing.assert_allclose(y.detach().double().numpy(), (x - mean_) / sigma_ * r_ + d_, rtol=2**-8, atol=5e-3)
    assert {layer.running_mean.dtype, layer.running_var.dtype} == {torch.float32}


SHIFT, SCALE, JITTER = 0.5, 1.25, 0.1


def drawn_noise(layer: ShiftingNoise, num: int, channels: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """m and s of one step, (num, channels) each."""

    def at(value: float) -> np.ndarray:
        layer.reseed(seed, torch.device("cpu"))
        return layer(torch.full((num, channels), value, dtype=torch.float64)).numpy()

    m = at(0.0)
    return m, at(1.0) - m


def test_noise_has_the_papers_distributions() -> None:
    """Of 500 channels with 400 examples each; a mean over examples is a channel's centre to within JITTER / 20."""
    m, s = drawn_noise(ShiftingNoise(SHIFT, SCALE, JITTER), 400, 500, seed=1)
    centre, spread = m.mean(0), s.mean(0)
    assert stats.kstest(centre, stats.uniform(-SHIFT, 2 * SHIFT).cdf).pvalue > 1e-3
    assert stats.kstest(spread, stats.uniform(1, SCALE - 1).cdf).pvalue > 1e-3
    assert stats.kstest(((m - centre) / JITTER).ravel()[::10], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(((s - spread) / JITTER).ravel()[::10], stats.norm.cdf).pvalue > 1e-3
    assert (np.abs(m) < SHIFT + JITTER).all()
    for a, b in ((m - centre, s - spread), (centre, spread)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_noise_is_new_each_step() -> None:
    layer = ShiftingNoise(SHIFT, SCALE, JITTER)
    layer.reseed(0, torch.device("cpu"))
    steps = np.stack([layer(torch.zeros(200, 100)).mean(0).numpy() for _ in range(40)])
    # a channel's centre is drawn anew too, not its examples' alone: U(-SHIFT, SHIFT) over the steps
    assert stats.kstest(steps.ravel(), stats.uniform(-SHIFT, 2 * SHIFT).cdf).pvalue > 1e-3
    assert steps.std(0) == pytest.approx(SHIFT / np.sqrt(3), rel=0.5)


def test_noise_is_one_for_all_positions_and_one_for_each_example_and_channel() -> None:
    layer = ShiftingNoise(SHIFT, SCALE, JITTER)
    layer.reseed(0, torch.device("cpu"))
    x = torch.zeros(4, 3, 5, 6)
    x[..., 0] = 1.0
    y = layer(x)
    for column in (y[..., 0], y[..., 1:].flatten(2)):
        assert (column.amax(-1) == column.amin(-1)).all()
    assert len(y[:, :, 0, 0].unique()) == len(y[:, :, 0, 1].unique()) == 12
    assert layer.eval()(x) is x


def test_noise_scales_the_gradient_alone() -> None:
    layer = ShiftingNoise(SHIFT, SCALE, JITTER)
    _, s = drawn_noise(layer, N, C, seed=3)
    layer.reseed(3, torch.device("cpu"))
    x = torch.zeros(N, C, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert_near(x.grad, s, 1e-6)  # the noise itself is fp32


def test_noise_repeats_from_a_seed_and_leaves_the_global_generator_alone() -> None:
    layer = ShiftingNoise(SHIFT, SCALE, JITTER)
    x = torch.randn(N, C, SIDE, SIDE)
    before = torch.get_rng_state()
    assert not torch.equal(layer(x), x)  # nobody has seeded it

    def steps(seed: int) -> Tensor:
        layer.reseed(seed, torch.device("cpu"))
        return torch.stack([layer(x) for _ in range(3)])

    first = steps(5)
    assert torch.equal(steps(5), first)
    assert not torch.equal(steps(6), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_noisy_batch_is_batch_norm_and_then_noise_and_in_evaluation_batch_norm_alone() -> None:
    noisy = make_norm_factory("noisy_batch", eps=EPS, momentum=0.3).make(C, ndim=4)
    batch = make_norm_factory("batch", eps=EPS, momentum=0.3).make(C, ndim=4)
    ((_, noise),) = stochastic_layers(noisy)
    assert [n for n, _ in noisy.named_parameters()] == ["0.weight", "0.bias"]
    assert (noise.shift, noise.scale, noise.jitter) == (SHIFT, SCALE, JITTER)  # the paper's, by default
    for step in range(2):
        x = torch.randn(N, C, SIDE, SIDE)
        noise.reseed(step, torch.device("cpu"))
        got = noisy(x)
        noise.reseed(step, torch.device("cpu"))
        assert torch.equal(got, noise(batch(x)))
        assert not torch.equal(got, batch.train()(x))
        noisy.load_state_dict({f"0.{key}": value for key, value in batch.state_dict().items()})
    assert torch.equal(noisy.eval()(x), batch.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_noise_keeps_dtype_and_memory_format(dtype: torch.dtype) -> None:
    x = torch.randn(N, C, SIDE, SIDE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    y = ShiftingNoise(SHIFT, SCALE, JITTER)(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


def standardized_by_hand(weight: np.ndarray, eps: float = 1e-10) -> tuple[np.ndarray, np.ndarray]:
    """Every filter with mean 0 and variance 1, and the standard deviations, (out, 1)."""
    flat = weight.reshape(len(weight), -1)
    mean = flat.sum(1, keepdims=True) / flat.shape[1]
    sigma = np.sqrt(((flat - mean) ** 2).sum(1, keepdims=True) / flat.shape[1] + eps)
    return ((flat - mean) / sigma).reshape(weight.shape), sigma


def standardized_layer(kind: str) -> tuple[Any, Tensor, Any]:
    """A layer with a drawn weight, an input, and the same layer's plain function of a weight."""
    generator = torch.Generator().manual_seed(0)
    if kind == "linear":
        layer: Any = StandardizedLinear(7, 4).double()
        x = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        plain: Any = lambda w: F.linear(x, w, layer.bias)  # noqa: E731
    else:
        layer = StandardizedConv2d(3, 4, 3, stride=2, padding=1).double()
        x = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
        plain = lambda w: F.conv2d(x, w, layer.bias, stride=2, padding=1)  # noqa: E731
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.2)
    return layer, x, plain


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_standardized_layer_matches_the_formula_and_its_gradient(kind: str) -> None:
    layer, x, plain = standardized_layer(kind)
    w_hat, sigma = standardized_by_hand(layer.weight.detach().numpy())
    leaf = torch.from_numpy(w_hat).requires_grad_()
    want, got = plain(leaf), layer(x)
    assert_near(got, want)
    dy = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want.backward(dy)
    assert leaf.grad is not None
    layer.zero_grad()
    got.backward(dy)
    # the gradient of (w - mean) / sigma, by hand
    g, flat = leaf.grad.flatten(1).numpy(), w_hat.reshape(len(w_hat), -1)
    by_hand = (g - g.mean(1, keepdims=True) - flat * (g * flat).mean(1, keepdims=True)) / sigma
    assert np.abs(by_hand).max() > 0.1
    assert_near(layer.weight.grad.flatten(1), by_hand, 1e-8)
    assert_near(layer.bias.grad, dy.sum([0, 2, 3] if kind == "conv" else [0]))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_standardized_layer_ignores_scale_and_mean_of_each_filter(kind: str) -> None:
    layer, x, _ = standardized_layer(kind)
    before = layer(x)
    with torch.no_grad():
        each = [-1, *[1] * (layer.weight.ndim - 1)]
        layer.weight.mul_(torch.tensor([0.5, 2.0, 3.0, 10.0], dtype=torch.float64).view(each))
        layer.weight.add_(torch.tensor([0.0, 1.0, -5.0, 0.3], dtype=torch.float64).view(each))
    assert_near(layer(x), before, 1e-7)


def test_standardize_epsilon_is_in_squared_units_and_small() -> None:
    weight = torch.tensor([[1.0, -1.0], [1e-5, -1e-5], [3.0, 3.0]], dtype=torch.float64)
    want = [1.0, 1e-5 / np.sqrt(2e-10), 0.0]  # variances 1, 1e-10 and 0
    assert_near(standardize(weight)[:, 0], np.array(want))
    assert_near(standardize(weight)[:, 1], -np.array(want))


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"depth": 3}),
        ("vgg", {"depth": 11}),
        ("mlp", {"depth": 2}),
        ("resnet", {"depth": 8}),
        ("resnet", {"depth": 8, "preactivation": True}),
    ],
)
def test_group_ws_standardizes_every_weight_but_the_heads(name: str, options: dict[str, Any], placement: str) -> None:
    def make(kind: str) -> nn.Module:
        norm = make_norm_factory(kind, num_groups=4)
        fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
        return build_model(name, width=8, norm=norm, placement=placement, **fixed, **options)

    with torch.device("meta"):
        model, plain = make("group_ws"), make("group")
    kinds = {layer: type(module) for layer, module in weight_layers(model)}
    hidden = StandardizedLinear if name == "mlp" else StandardizedConv2d
    assert kinds.pop("head") is nn.Linear
    assert set(kinds.values()) == {hidden}
    assert all(type(module) in (nn.Conv2d, nn.Linear) for _, module in weight_layers(plain))
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, plain)]
    assert shapes[0] == shapes[1]  # the same parameters by name, and so the same initial values


# where -> the weights of unit index, for the units in order, that are standardized
PARTLY = {"none": (), "input": (), "first": (0,), "all-1": (0, 2), "input+last": (2,), "input+all": (0, 1, 2)}


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("where", PARTLY)
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_group_ws_standardizes_weights_where_their_own_norm_stands(name: str, where: str, placement: str) -> None:
    kinds = standardized(name, where=where, placement=placement, depth=3)
    assert kinds == {f"units.{index}": index in PARTLY[where] for index in range(3)}


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_group_ws_standardizes_weights_without_a_position_where_all_norms_stand(
    placement: str, preactivation: bool
) -> None:
    fixed: dict[str, Any] = {"depth": 8, "placement": placement, "preactivation": preactivation}
    # a pre-activation stem, and the end of a branch whose norm follows the sum, have no norm of their own
    ends = [f"blocks.{index}.unit2" for index in range(3)]
    bare = {"stem"} if preactivation else set(ends) if placement == "after" else set()
    count = 7
    for where in ("all", "input+all", "+".join(map(str, range(count)))):
        assert set(standardized("resnet", where=where, **fixed).values()) == {True}
    for where in ("none", "input"):
        assert set(standardized("resnet", where=where, **fixed).values()) == {False}
    # the last position: the closing norm, or that behind the last sum, has no weight right ahead of it
    want = {"stem", *(f"blocks.{index}.{unit}" for index in range(3) for unit in ("unit1", "unit2"))} - bare
    some = standardized("resnet", where="all-last", **fixed)
    assert {layer for layer, yes in some.items() if yes} == want - (set() if bare else {ends[-1]})
    one = standardized("resnet", where="1", **fixed)
    assert {layer for layer, yes in one.items() if yes} == {"blocks.0.unit2" if preactivation else "blocks.0.unit1"}


def standardized(name: str, *, placement: str, **options: Any) -> dict[str, bool]:
    """Which weights are standardized, of all but the head's."""
    fixed: dict[str, Any] = {"in_channels": 4, "image_size": 8, "num_classes": 10, "activation": "relu", "width": 8}
    norm = make_norm_factory("group_ws", num_groups=4)
    with torch.device("meta"):
        model = build_model(name, norm=norm, placement=placement, **fixed, **options)
    layers = [(layer, module) for layer, module in weight_layers(model) if layer != "head"]
    return {layer: isinstance(module, StandardizedConv2d | StandardizedLinear) for layer, module in layers}


def filter_response_by_hand(
    x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, tau: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Output and gradients of max(gamma x / sqrt(mean of x² + eps) + beta, tau)."""
    s = 1 / np.sqrt((x**2).mean((2, 3), keepdims=True) + EPS)
    y = per_channel(gamma, 4) * x * s + per_channel(beta, 4)
    above = np.ones_like(x, dtype=bool) if tau is None else y > per_channel(tau, 4)
    g = np.where(above, dy, 0) * per_channel(gamma, 4)
    out = {
        "y": y if tau is None else np.where(above, y, per_channel(tau, 4)),
        "dx": s * g - s**3 * x * (g * x).mean((2, 3), keepdims=True),
        "weight": (np.where(above, dy, 0) * x * s).sum((0, 2, 3)),
        "bias": np.where(above, dy, 0).sum((0, 2, 3)),
    }
    return out if tau is None else out | {"tau": np.where(above, 0, dy).sum((0, 2, 3))}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("threshold", [True, False])
def test_filter_response_matches_the_formula(
    threshold: bool, dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, C, SIDE, SIDE)) * per_channel(rng.uniform(0.02, 2, C), 4) + 0.3  # eps counts in some
    dy, gamma, beta, tau = rng.normal(size=x.shape), rng.uniform(0.5, 1.5, C), rng.normal(size=C), rng.normal(size=C)
    layer = FilterResponse(C, eps=EPS, threshold=threshold).to(dtype)
    values = {"weight": gamma, "bias": beta} | ({"tau": tau} if threshold else {})
    assert {name: p.tolist() for name, p in layer.named_parameters()} == {
        name: [float(name == "weight")] * C for name in values
    }
    with torch.no_grad():
        for name, value in values.items():
            layer.get_parameter(name).copy_(torch.from_numpy(value))
    want = filter_response_by_hand(x, dy, gamma, beta, tau if threshold else None)
    for training in (True, False):
        leaf = torch.from_numpy(x).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        layer.zero_grad()
        y = layer.train(training)(leaf)
        y.backward(torch.from_numpy(dy).to(dtype))
        assert_near(y, want["y"], tolerance)
        assert_near(leaf.grad, want["dx"], tolerance)
        for name, parameter in layer.named_parameters():
            assert_near(parameter.grad, want[name], 10 * tolerance)
    assert not list(layer.buffers())


def test_filter_response_of_one_example_is_the_same_alone() -> None:
    layer = FilterResponse(C)
    x = torch.randn(N, C, SIDE, SIDE)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))
    assert layer.eps == 1e-6  # the paper's


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_filter_response_is_rounded_once_under_bf16_autocast(beta: float) -> None:
    """Every map has a scale of its own: statistics, or factors, in bf16 would be off by up to another 2^-8 in each."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=(N, C, 1, 1)))
    low = torch.from_numpy(scale * rng.uniform(0.3, 3, size=(N, C, 16, 16))).bfloat16()
    layer = FilterResponse(C, eps=EPS)
    nn.init.constant_(layer.bias, beta)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(low)
    assert y.dtype == torch.bfloat16
    x = low.double().numpy()
    ratio = y.detach().double().numpy() / (x / np.sqrt((x**2).mean((2, 3), keepdims=True) + EPS) + beta)
    # half a unit in bf16's last place; a map's few distinct values round alike, and their mean ratio would tell less
    assert np.abs(ratio - 1).max((2, 3)).max() < 2**-8 * 1.001


def units(placement: str, *, threshold: bool = True, **options: Any) -> UnitFactory:
    norm = make_norm_factory("filter_response", threshold=threshold)
    return UnitFactory(norm, placement, "relu", **options)


def test_filter_response_takes_the_place_of_an_activation_right_behind_it_alone() -> None:
    before, after, linear = units("before"), units("after"), units("before", threshold=False)

    def orders(factory: UnitFactory) -> list[tuple[str, ...]]:
        made = (
            factory.conv(3, 4),
            factory.conv(3, 4, act=False),
            factory.tail(4),
            factory.preactivation_conv(3, 4),
            factory.closing(4),
        )
        for unit in made:
            assert sorted(dict(unit.named_children())) == sorted(unit.order)
        return [unit.order for unit in made]

    assert orders(before) == [("weight", "norm"), ("weight", "norm"), ("act",), ("norm", "weight"), ("norm",)]
    assert orders(after) == [
        ("weight", "act", "norm"),
        ("weight",),
        ("act", "norm"),
        ("act", "norm", "weight"),
        ("act", "norm"),
    ]
    assert orders(linear) == [
        ("weight", "norm", "act"),
        ("weight", "norm"),
        ("act",),
        ("norm", "act", "weight"),
        ("norm", "act"),
    ]


def test_filter_response_has_a_threshold_where_it_takes_an_activations_place_alone() -> None:
    def thresholds(**arguments: Any) -> dict[str, bool]:
        fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
        norm = make_norm_factory("filter_response")
        model = build_model("resnet", depth=8, width=4, norm=norm, **fixed, **arguments)
        return {name: m.tau is not None for name, m in model.named_modules() if isinstance(m, FilterResponse)}

    firsts = {f"blocks.{index}.unit1.norm": True for index in range(3)}
    seconds = [f"blocks.{index}.unit2.norm" for index in range(3)]
    # at the end of a branch the activation waits for the addition
    want = {"stem.norm": True} | firsts | dict.fromkeys(seconds, False)
    assert thresholds(placement="before") == want
    assert thresholds(placement="before", where="input+all") == {"input_norm": False} | want
    assert thresholds(placement="before", preactivation=True) == firsts | dict.fromkeys(
        [*seconds, "closing.norm"], True
    )
    for preactivation in (False, True):
        after = thresholds(placement="after", where="input+all", preactivation=preactivation)
        assert set(after.values()) == {False}
        assert len(after) == 8


def test_filter_response_without_activation_is_the_same_but_for_the_threshold() -> None:
    norm: Any = make_norm_factory("filter_response", eps=EPS)
    plain = norm.without_activation()
    assert plain == make_norm_factory("filter_response", eps=EPS, threshold=False)
    assert plain.without_activation() == plain
    layer = plain.make(C, ndim=4)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert (layer(torch.randn(N, C, SIDE, SIDE)) < 0).any()


def test_filter_response_that_is_left_out_leaves_the_activation_in() -> None:
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    norm = make_norm_factory("filter_response")
    model: Any = build_model("cnn", depth=3, width=4, norm=norm, placement="before", where="all-1", **fixed)
    assert [unit.order for unit in model.units] == [("weight", "norm"), ("weight", "norm", "act"), ("weight", "norm")]


@pytest.mark.parametrize(
    ("placement", "want"), [("before", ("weight", "drop", "norm")), ("after", ("weight", "norm", "drop"))]
)
def test_filter_response_without_an_activation_keeps_its_dropout(placement: str, want: tuple[str, ...]) -> None:
    unit: Unit = units("before", dropout=0.5, dropout_placement=placement).conv(3, 4)
    assert unit.order == want


def test_filter_response_of_a_fully_connected_layer_is_refused_by_its_unit() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.kind: 'filter_response': [^\n]*fully connected"):
        units("before").linear(3, 4)
