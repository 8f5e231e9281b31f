"""Norm layers against a float64 formula in numpy, against torch.nn and against a textbook's 1-D example.

Noisy batch norm is held here without its noise, and batch renormalization at its first step, where both are batch norm;
what is their own is in test_nn_norm_layers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.norms import NORMS, GhostBatchNorm, make_norm_factory, norm_options

N, C, SIDE = 8, 6, 5
EPS = 1e-3  # not the default, and large enough to be seen
GHOST, GROUPS = 4, 3
OPTIONS: dict[str, dict[str, Any]] = {
    "batch": {},
    "group": {"num_groups": GROUPS},
    "layer": {},
    "instance": {},
    "ghost": {"ghost_size": GHOST},
    "batch_renorm": {"r_max": 3.0, "d_max": 5.0, "ramp_steps": 10},
    "noisy_batch": {"noise_shift": 0.0, "noise_scale": 1.0, "noise_jitter": 0.0},
    "group_ws": {"num_groups": GROUPS},
}
CASES = [(kind, ndim) for kind in OPTIONS for ndim in (4, 2) if (kind, ndim) != ("instance", 2)]
RUNNING = ["batch", "ghost", "batch_renorm", "noisy_batch"]


def set_labels(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which set of values, numbered from 0, every element is normalized in."""
    indices = np.indices(shape)
    n, c = indices[0], indices[1]
    group = n * GROUPS + c // (C // GROUPS)
    own = {"group": group, "group_ws": group, "layer": n, "instance": n * C + c, "ghost": (n // GHOST) * C + c}
    return own.get(kind, c)


def set_mean(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    flat = labels.ravel()
    return (np.bincount(flat, values.ravel()) / np.bincount(flat))[labels]


def per_channel(v: np.ndarray, ndim: int) -> np.ndarray:
    return v.reshape(1, -1, *[1] * (ndim - 2))


def channel_sum(values: np.ndarray) -> np.ndarray:
    return values.sum(axis=tuple(a for a in range(values.ndim) if a != 1))


def reference(
    x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, labels: np.ndarray, eps: float
) -> dict[str, np.ndarray]:
    """Output and gradients of y = gamma (x - mean) / sqrt(var + eps) + beta; the backward pass is written by hand."""
    mean = set_mean(x, labels)
    sigma = np.sqrt(set_mean((x - mean) ** 2, labels) + eps)
    x_hat = (x - mean) / sigma
    g = dy * per_channel(gamma, x.ndim)
    return {
        "y": x_hat * per_channel(gamma, x.ndim) + per_channel(beta, x.ndim),
        "dx": (g - set_mean(g, labels) - x_hat * set_mean(g * x_hat, labels)) / sigma,
        "dgamma": channel_sum(dy * x_hat),
        "dbeta": channel_sum(dy),
    }


def draw(ndim: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x with a mean and scale of its own in every channel and example, dy, gamma, beta."""
    rng = np.random.default_rng(seed)
    shape = (N, C, SIDE, SIDE)[:ndim]
    x = rng.normal(size=shape) * per_channel(rng.uniform(0.5, 2, C), ndim) + per_channel(rng.normal(size=C), ndim)
    x = x + 0.3 * rng.normal(size=(N, *[1] * (ndim - 1)))
    return x, rng.normal(size=shape), rng.uniform(0.5, 1.5, C), rng.normal(size=C)


def make_layer(kind: str, ndim: int, dtype: torch.dtype, *, affine: str = "both", **options: Any) -> nn.Module:
    norm = make_norm_factory(kind, eps=EPS, affine=affine, **OPTIONS[kind], **options)
    return norm.make(C, ndim=ndim).to(dtype)


def with_affine(layer: Any) -> Any:
    """The module that has gamma, beta and running statistics: noisy batch norm's is its first part."""
    return layer[0] if isinstance(layer, nn.Sequential) else layer


def set_affine(layer: Any, gamma: np.ndarray, beta: np.ndarray) -> None:
    """Set what of gamma and beta the layer has."""
    inner = with_affine(layer)
    with torch.no_grad():
        for parameter, value in ((inner.weight, gamma), (inner.bias, beta)):
            if parameter is not None:
                parameter.copy_(torch.from_numpy(value))


def run_layer(layer: Any, x: np.ndarray, dy: np.ndarray, dtype: torch.dtype) -> dict[str, Tensor]:
    leaf = torch.from_numpy(x).to(dtype).requires_grad_()
    y = layer(leaf)
    y.backward(torch.from_numpy(dy).to(dtype))
    assert leaf.grad is not None
    out = {"y": y.detach(), "dx": leaf.grad}
    inner = with_affine(layer)
    if inner.weight is not None:
        out["dgamma"] = inner.weight.grad
    if inner.bias is not None:
        out["dbeta"] = inner.bias.grad
    return out


def assert_near(got: Tensor, want: np.ndarray | Tensor, tolerance: float) -> None:
    np.testing.assert_allclose(
        got.detach().double().numpy(), np.asarray(want, dtype=np.float64), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("kind", "ndim"), CASES)
def test_norm_in_training_matches_the_formula(kind: str, ndim: int, dtype: torch.dtype, tolerance: float) -> None:
    x, dy, gamma, beta = draw(ndim)
    layer = make_layer(kind, ndim, dtype)
    set_affine(layer, gamma, beta)
    want = reference(x, dy, gamma, beta, set_labels(kind, x.shape), EPS)
    got = run_layer(layer, x, dy, dtype)
    assert set(got) == set(want)
    for name in want:
        assert_near(got[name], want[name], tolerance)


@pytest.mark.parametrize("affine", ["scale", "shift", "none"])
@pytest.mark.parametrize(("kind", "ndim"), CASES)
def test_norm_with_part_of_its_affine_leaves_the_rest_at_one_and_zero(kind: str, ndim: int, affine: str) -> None:
    x, dy, gamma, beta = draw(ndim)
    layer = make_layer(kind, ndim, torch.float64, affine=affine)
    set_affine(layer, gamma, beta)
    left = {"scale": ["weight"], "shift": ["bias"], "none": []}[affine]
    assert [name for name, _ in with_affine(layer).named_parameters()] == left
    assert len(list(layer.parameters())) == len(left)
    gamma = gamma if affine == "scale" else np.ones(C)
    beta = beta if affine == "shift" else np.zeros(C)
    want = reference(x, dy, gamma, beta, set_labels(kind, x.shape), EPS)
    got = run_layer(layer, x, dy, torch.float64)
    assert set(got) == {"y", "dx", *({"weight": "dgamma", "bias": "dbeta"}[name] for name in left)}
    for name, value in got.items():
        assert_near(value, want[name], 1e-10)


@pytest.mark.parametrize("kind", OPTIONS)
def test_unknown_affine_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^norm\.affine: 'shfit' is not one of both, scale, shift, none.*'shift'"):
        make_layer(kind, 4, torch.float64, affine="shfit")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("kind", "ndim"), CASES)
def test_norm_makes_what_torch_nn_has(kind: str, ndim: int, affine: bool) -> None:
    x_np, _, gamma, beta = draw(ndim)
    x = torch.from_numpy(x_np).float()
    layer = make_layer(kind, ndim, torch.float32, affine="both" if affine else "none")
    if affine:
        set_affine(layer, gamma, beta)
    batch_norm = nn.BatchNorm2d if ndim == 4 else nn.BatchNorm1d
    whole_example = nn.LayerNorm(x.shape[1:], eps=EPS, elementwise_affine=False)
    equivalents = {
        "batch": lambda: batch_norm(C, eps=EPS, affine=False)(x),
        "group": lambda: nn.GroupNorm(GROUPS, C, eps=EPS, affine=False)(x),
        "group_ws": lambda: nn.GroupNorm(GROUPS, C, eps=EPS, affine=False)(x),
        "layer": lambda: whole_example(x),
        "instance": lambda: nn.InstanceNorm2d(C, eps=EPS)(x),
        "ghost": lambda: torch.cat([batch_norm(C, eps=EPS, affine=False)(ghost) for ghost in x.split(GHOST)]),
    }
    want = equivalents.get(kind, equivalents["batch"])().double().numpy()
    if affine:
        want = want * per_channel(gamma, ndim) + per_channel(beta, ndim)
    assert_near(layer(x), want, 1e-5)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("ndim", [4, 2])
@pytest.mark.parametrize("kind", RUNNING)
def test_running_statistics_and_evaluation_match_the_formula(kind: str, ndim: int, momentum: float | None) -> None:
    layer: Any = make_layer(kind, ndim, torch.float64, momentum=momentum)
    running_mean, running_var = np.zeros(C), np.ones(C)
    for step in range(1, 4):
        x, dy, gamma, beta = draw(ndim, seed=step)
        set_affine(layer, gamma, beta)
        layer(torch.from_numpy(x))
        ghosts = x.reshape(-1, GHOST if kind == "ghost" else N, *x.shape[1:])
        axes = tuple(a for a in range(1, ghosts.ndim) if a != 2)
        weight = 1 / step if momentum is None else momentum
        running_mean = (1 - weight) * running_mean + weight * ghosts.mean(axes).mean(0)
        if kind == "batch_renorm":  # whose average is of standard deviations
            old, new = np.sqrt(running_var + EPS), np.sqrt(ghosts.var(axes).mean(0) + EPS)
            running_var = ((1 - weight) * old + weight * new) ** 2 - EPS
        else:
            running_var = (1 - weight) * running_var + weight * ghosts.var(axes, ddof=1).mean(0)
        inner = with_affine(layer)
        assert_near(inner.running_mean, running_mean, 1e-10)
        assert_near(inner.running_var, running_var, 1e-10)
        assert int(inner.num_batches_tracked) == step

    layer.eval()
    layer.zero_grad()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    got = run_layer(layer, x[:3], dy[:3], torch.float64)  # 3: evaluation asks for no multiple of the ghost size
    sigma = per_channel(np.sqrt(running_var + EPS), ndim)
    x_hat = (x[:3] - per_channel(running_mean, ndim)) / sigma
    assert_near(got["y"], x_hat * per_channel(gamma, ndim) + per_channel(beta, ndim), 1e-10)
    assert_near(got["dx"], dy[:3] * per_channel(gamma, ndim) / sigma, 1e-10)
    assert_near(got["dgamma"], channel_sum(dy[:3] * x_hat), 1e-10)
    assert_near(got["dbeta"], channel_sum(dy[:3]), 1e-10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("kind", ["group", "layer", "instance"])
def test_norm_of_one_example_is_the_same_in_evaluation_and_alone(kind: str) -> None:
    x = torch.from_numpy(draw(4)[0])
    layer = make_layer(kind, 4, torch.float64)
    in_batch = layer(x)
    assert not list(layer.buffers())
    assert_near(layer.eval()(x[:1]), in_batch[:1].detach(), 1e-12)


def test_ghost_is_normalized_by_its_own_ghost_alone() -> None:
    x = torch.from_numpy(draw(4)[0])
    layer = make_layer("ghost", 4, torch.float64)
    first = layer(x)[:GHOST]
    x[GHOST:] = 100 * x[GHOST:] + 7
    assert_near(layer(x)[:GHOST], first.detach(), 1e-12)


def test_ghost_of_the_whole_batch_is_batch_norm() -> None:
    x = torch.from_numpy(draw(4)[0])
    ghost, batch = GhostBatchNorm(C, N).double(), nn.BatchNorm2d(C).double()
    assert_near(ghost(x), batch(x).detach(), 1e-12)
    assert ghost.state_dict().keys() == batch.state_dict().keys()
    for name, value in batch.state_dict().items():
        assert_near(ghost.state_dict()[name], value, 1e-12)


def csharp_normalize(inputs: list[float], epsilon: float = 1e-5) -> list[float]:
    """Transcribed from an interview guide's C# layer: average, population variance, and no running statistics."""
    mean = sum(inputs) / len(inputs)
    variance = sum(math.pow(x - mean, 2) for x in inputs) / len(inputs)
    return [(x - mean) / math.sqrt(variance + epsilon) for x in inputs]


def csharp_forward_pass(inputs: list[float], *, gamma: float = 1.0, beta: float = 0.0) -> list[float]:
    return [gamma * x + beta for x in csharp_normalize(inputs)]


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (1.7, -0.4)])
@pytest.mark.parametrize(
    "inputs",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [-3.5, 0.25, 8.0],
        [1e-3, 2e-3, 4e-3],  # variance below eps, which then decides
        [2.0, 2.0, 2.0],
    ],
)
def test_batch_norm_in_training_is_the_textbook_layer(inputs: list[float], gamma: float, beta: float) -> None:
    layer: Any = make_norm_factory("batch").make(1, ndim=2).double()
    set_affine(layer, np.array([gamma]), np.array([beta]))
    layer.running_mean += 5  # the textbook keeps no running statistics, and training must not read ours
    got = layer(torch.tensor(inputs, dtype=torch.float64).unsqueeze(1)).squeeze(1)
    assert_near(got, np.array(csharp_forward_pass(inputs, gamma=gamma, beta=beta)), 1e-12)


def test_textbook_layer_of_one_to_five() -> None:
    # population variance 2, not the sample's 2.5: -2 / sqrt(2.00001)
    assert csharp_normalize([1.0, 2.0, 3.0, 4.0, 5.0])[0] == pytest.approx(-1.4142100268)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", OPTIONS)
def test_statistics_are_fp32_under_bf16_autocast(kind: str, memory_format: torch.memory_format) -> None:
    # near 100 bf16 resolves 0.5: x is exact in bf16, its mean and variance are not
    rng = np.random.default_rng(0)
    x = 100 + 0.5 * rng.integers(-8, 9, size=(N, C, SIDE, SIDE)) + 4.0 * np.arange(C).reshape(1, C, 1, 1)
    low = torch.from_numpy(x).bfloat16().contiguous(memory_format=memory_format)
    assert torch.equal(low.double(), torch.from_numpy(x))
    layer: Any = make_norm_factory(kind, **OPTIONS[kind]).make(C, ndim=4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(low)
    want = reference(x, x, np.ones(C), np.zeros(C), set_labels(kind, x.shape), 1e-5)["y"]
    # a bf16 result carries a relative 2^-9; bf16 statistics would be off by 0.05 and more
    np.testing.assert_allclose(y.detach().double().numpy(), want, rtol=2**-8, atol=2e-3)
    assert {buffer.dtype for buffer in layer.buffers()} <= {torch.float32, torch.int64}
    if kind in RUNNING:
        assert_near(with_affine(layer).running_mean, 0.1 * x.mean((0, 2, 3)), 1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [*OPTIONS, "filter_response"])
def test_norm_keeps_the_memory_format_and_ignores_it(kind: str, training: bool) -> None:
    """A convolution behind a norm takes the format that it is given."""
    x, dy, _, _ = draw(4)
    norm = make_norm_factory(kind, eps=EPS, **OPTIONS.get(kind, {}))
    outs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = torch.from_numpy(x).contiguous(memory_format=memory_format).requires_grad_()
        y = norm.make(C, ndim=4).double().train(training)(leaf)
        assert y.is_contiguous(memory_format=memory_format)
        y.backward(torch.from_numpy(dy))
        assert leaf.grad is not None
        outs.append((y.detach(), leaf.grad))
    assert_near(outs[1][0], outs[0][0], 1e-12)
    assert_near(outs[1][1], outs[0][1], 1e-12)


def test_none_is_the_identity() -> None:
    x = torch.randn(3, 4)
    assert make_norm_factory("none").make(4, ndim=2)(x) is x


def test_norm_options_are_those_of_the_kind_alone() -> None:
    assert {kind: norm_options(kind) for kind in NORMS} == {
        "none": (),
        "batch": ("eps", "momentum", "affine", "freeze_at"),
        "group": ("eps", "affine", "num_groups"),
        "layer": ("eps", "affine"),
        "instance": ("eps", "affine"),
        "ghost": ("eps", "momentum", "affine", "ghost_size"),
        "batch_renorm": ("eps", "momentum", "affine", "r_max", "d_max", "ramp_steps"),
        "noisy_batch": ("eps", "momentum", "affine", "noise_shift", "noise_scale", "noise_jitter"),
        "group_ws": ("eps", "affine", "num_groups"),
        "filter_response": ("eps", "threshold"),
    }


def test_norm_defaults_are_torchs() -> None:
    layer: Any = make_norm_factory("batch").make(C, ndim=4)
    default = nn.BatchNorm2d(C)
    assert type(layer) is nn.BatchNorm2d
    assert (layer.eps, layer.momentum) == (default.eps, default.momentum)
    ghost: Any = make_norm_factory("ghost").make(C, ndim=4)
    assert (ghost.eps, ghost.momentum, ghost.ghost_size) == (default.eps, default.momentum, 16)
    group: Any = make_norm_factory("group").make(16, ndim=4)
    assert (group.num_groups, group.eps) == (8, nn.GroupNorm(8, 16).eps)


def test_make_norm_factory_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.kind: 'btach' is not one of .*did you mean 'batch'"):
        make_norm_factory("btach")


def test_group_norm_that_does_not_divide_says_which_layer() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.num_groups: 8: does not divide the 20 channels of a layer$"):
        make_norm_factory("group").make(20, ndim=4)


def test_group_norm_of_single_units_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.num_groups: 8: leaves one value a group"):
        make_norm_factory("group").make(8, ndim=2)


@pytest.mark.parametrize("kind", ["instance", "filter_response"])
def test_norm_over_positions_of_a_fully_connected_layer_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"^norm\.kind: '{kind}': [^\n]*fully connected"):
        make_norm_factory(kind).make(C, ndim=2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["instance", "filter_response"])
def test_norm_over_positions_of_one_pixel_is_refused(kind: str, training: bool) -> None:
    layer = make_norm_factory(kind).make(C, ndim=4).train(training)
    with pytest.raises(ConfigError, match=rf"^norm\.kind: '{kind}': [^\n]*1×1"):
        layer(torch.zeros(N, C, 1, 1))
    assert layer(torch.zeros(1, C, 1, 2)).shape == (1, C, 1, 2)  # two are enough


def test_ghost_size_that_does_not_divide_the_batch_is_refused_in_training_only() -> None:
    layer = make_norm_factory("ghost", ghost_size=3).make(C, ndim=4)
    with pytest.raises(ConfigError, match=r"^norm\.ghost_size: 3: does not divide a batch of 8$"):
        layer(torch.zeros(N, C, 2, 2))
    assert layer.eval()(torch.zeros(N, C, 2, 2)).shape == (N, C, 2, 2)


@pytest.mark.parametrize(
    ("kind", "options", "num"),
    [("batch", {}, 1), ("ghost", {"ghost_size": 1}, N), ("batch_renorm", {}, 1), ("noisy_batch", {}, 1)],
)
@pytest.mark.parametrize("shape", [(C, 1, 1), (C,)])
def test_one_value_per_channel_is_a_value_error_in_training_only(
    kind: str, options: Any, num: int, shape: tuple[int, ...]
) -> None:
    layer = make_norm_factory(kind, **options).make(C, ndim=len(shape) + 1)
    with pytest.raises(ValueError, match="xpected more than 1 value per channel when training"):
        layer(torch.zeros(num, *shape))
    assert layer.eval()(torch.zeros(num, *shape)).shape == (num, *shape)


def test_replaces_bias_by_kind_and_affine() -> None:
    def answers(kind: str) -> tuple[bool, ...]:
        affines = ("both", "scale", "shift", "none")
        return tuple(make_norm_factory(kind, affine=affine, **OPTIONS[kind]).replaces_bias for affine in affines)

    assert not make_norm_factory("none").replaces_bias
    assert not make_norm_factory("filter_response").replaces_bias
    by_mean, by_beta = (True, True, True, True), (True, False, True, False)
    across_channels = {"group", "layer", "group_ws"}
    assert {kind: answers(kind) for kind in OPTIONS} == {
        kind: by_beta if kind in across_channels else by_mean for kind in OPTIONS
    }


@pytest.mark.parametrize(("affine", "want"), [("both", True), ("scale", False), ("shift", True), ("none", False)])
def test_batch_norm_whose_mean_freezes_replaces_a_bias_by_its_own_alone(affine: str, want: bool) -> None:
    for freeze_at in (0, 3):
        assert make_norm_factory("batch", affine=affine, freeze_at=freeze_at).replaces_bias is want
    assert make_norm_factory("batch", affine=affine, freeze_at=None).replaces_bias
    # with frozen statistics a bias does count, and beta / gamma / sigma is as good as one
    layer: Any = make_norm_factory("batch", affine=affine).make(C, ndim=2).double().eval()
    x = torch.from_numpy(draw(2)[0])
    bias = torch.ones(1, C, dtype=torch.float64)
    moved = layer(x + bias)
    assert not torch.allclose(moved, layer(x))
    if want:
        scale = (1 + layer.eps) ** -0.5  # gamma is 1, and so is the running variance
        layer.bias.data += scale
        assert_near(layer(x), moved.detach(), 1e-12)


@pytest.mark.parametrize("kind", ["batch", "ghost", "instance", "batch_renorm", "noisy_batch"])
def test_replaces_bias_because_the_mean_cancels_it(kind: str) -> None:
    x = torch.from_numpy(draw(4)[0])
    layer = make_layer(kind, 4, torch.float64, affine="none")
    moved = make_layer(kind, 4, torch.float64, affine="none")
    assert_near(moved(x + torch.randn(1, C, 1, 1, dtype=torch.float64)), layer(x), 1e-12)


def test_replaces_bias_under_batch_renorm_for_it_would_never_move() -> None:
    """Past the first step d sees a bias, which the running mean lags behind, but its gradient is 0: d is a constant."""
    layer = make_layer("batch_renorm", 4, torch.float64)
    for seed in range(3):
        x, dy, gamma, beta = draw(4, seed=seed)
        set_affine(layer, gamma, beta)
        bias = torch.ones(C, dtype=torch.float64, requires_grad=True)
        y = layer(torch.from_numpy(x) + bias.view(1, -1, 1, 1))
        (y * torch.from_numpy(dy)).sum().backward()
        assert bias.grad is not None
        assert_near(bias.grad, np.zeros(C), 1e-12)


@pytest.mark.parametrize("affine", ["both", "scale", "shift", "none"])
@pytest.mark.parametrize(
    ("kind", "ndim"),
    [(kind, n) for kind in NORMS if "affine" in norm_options(kind) for n in (2, 4) if (kind, n) != ("instance", 2)],
)
def test_every_affine_trains_in_bf16(kind: str, affine: str, ndim: int) -> None:
    options = {"num_groups": 4} if kind.startswith("group") else {"ghost_size": 4} if kind == "ghost" else {}
    layer = make_norm_factory(kind, affine=affine, **options).make(8, ndim=ndim)
    x = torch.randn(16, 8, *([3, 3] if ndim == 4 else []), generator=torch.Generator().manual_seed(0))
    low = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(low)
    out.float().square().mean().backward()
    assert low.grad is not None
    assert low.grad.isfinite().all()
    if kind != "noisy_batch":  # which draws anew
        torch.testing.assert_close(out.float(), layer(low.float()), rtol=0.02, atol=0.03)
