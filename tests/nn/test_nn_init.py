"""Initial values: shared by name between arms, and spread as the formulas say."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn import build_model
from bnexp.nn.init import INITS, init_parameters, scale_to_unit_variance
from bnexp.nn.layers import Stochastic, stochastic_layers, weight_layers
from bnexp.nn.norms import make_norm_factory
from bnexp.seeding import seed_for

NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 3, "width": 8},
    "vgg": {"name": "vgg", "depth": 11, "width": 4},
    "mlp": {"name": "mlp", "depth": 2, "width": 16},
    "resnet": {"name": "resnet", "depth": 8, "width": 8},
    "preactivation": {"name": "resnet", "depth": 8, "width": 8, "preactivation": True},
}


def drawn(
    network: str, *, kind: str = "batch", placement: str = "before", scheme: str = "he", seed: int = 3
) -> dict[str, Tensor]:
    """A network's initial parameters by name."""
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    model = build_model(norm=make_norm_factory(kind), placement=placement, **fixed, **NETWORKS[network])
    init_parameters(model, scheme=scheme, gain=1.0, activation="relu", seed_of=partial(seed_for, seed, "init"))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("scheme", INITS)
@pytest.mark.parametrize("network", NETWORKS)
def test_arms_share_the_weights_that_they_share_by_name(network: str, scheme: str) -> None:
    reference = drawn(network, kind="none", scheme=scheme)
    num_weights = sum(value.ndim > 1 for value in reference.values())
    for kind, placement in (("batch", "before"), ("batch", "after"), ("layer", "before"), ("none", "after")):
        arm = drawn(network, kind=kind, placement=placement, scheme=scheme)
        shared = reference.keys() & arm.keys()
        assert sum(arm[name].ndim > 1 for name in shared) == num_weights  # every one of them
        for name in shared:
            assert torch.equal(arm[name], reference[name]), name


def test_preactivation_shares_its_weights_with_the_original() -> None:
    original, other = drawn("resnet"), drawn("preactivation")
    names = {name for name, value in original.items() if value.ndim > 1}
    assert names == {name for name, value in other.items() if value.ndim > 1}
    assert all(torch.equal(original[name], other[name]) for name in names)


def test_each_parameter_has_a_seed_of_its_own() -> None:
    first, second = drawn("mlp"), drawn("mlp", seed=4)
    for name, value in first.items():
        if value.ndim > 1:
            assert not torch.equal(value, second[name]), name
    a, b = drawn("resnet")["blocks.0.unit1.weight.weight"], drawn("resnet")["blocks.0.unit2.weight.weight"]
    assert a.shape == b.shape
    assert not torch.equal(a, b)


@pytest.mark.parametrize(("scheme", "biases"), [("he", False), ("default", True)])
def test_seed_is_asked_for_by_parameter_name(scheme: str, biases: bool) -> None:
    asked: list[str] = []

    def seed_of(name: str) -> int:
        asked.append(name)
        return len(asked)

    model = nn.ModuleDict({"body": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "head": nn.Linear(3, 2)})
    init_parameters(model, scheme=scheme, gain=1.0, activation="relu", seed_of=seed_of)
    both = ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert asked == (both if biases else both[::2])


def test_global_generator_is_left_alone() -> None:
    model = nn.Linear(4, 4)
    before = torch.get_rng_state()
    init_parameters(model, scheme="he", gain=1.0, activation="relu", seed_of=lambda _: 1)
    assert torch.equal(torch.get_rng_state(), before)


IN, OUT = 300, 500
# (scheme, activation) -> standard deviation of a hidden layer with IN inputs and OUT outputs
STDS = {
    ("he", "relu"): math.sqrt(2 / IN),
    ("he", "gelu"): math.sqrt(2 / IN),
    ("he", "leaky_relu"): math.sqrt(2 / (1 + 0.01**2) / IN),
    ("he", "tanh"): 5 / 3 / math.sqrt(IN),
    ("he", "sigmoid"): 1 / math.sqrt(IN),
    ("xavier", "relu"): math.sqrt(2 / (IN + OUT)),
    ("xavier", "tanh"): math.sqrt(2 / (IN + OUT)),
    ("normal", "relu"): math.sqrt(1 / IN),
}


def spread(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize(("scheme", "activation"), STDS)
def test_weights_are_normal_with_the_formulas_spread(scheme: str, activation: str, gain: float) -> None:
    model: Any = nn.ModuleDict({"body": nn.Linear(IN, OUT), "head": nn.Linear(IN, OUT)})
    init_parameters(model, scheme=scheme, gain=gain, activation=activation, seed_of=partial(seed_for, 0, "init"))
    body, head = model["body"].weight.detach(), model["head"].weight.detach()
    std = gain * STDS[scheme, activation]
    tolerance = 5 / math.sqrt(2 * IN * OUT)  # five standard errors
    assert spread(body) == pytest.approx(std, rel=tolerance)
    assert abs(float(body.mean())) < 5 * std / math.sqrt(IN * OUT)
    assert float((body.abs() > 2 * std).double().mean()) == pytest.approx(0.0455, abs=0.005)  # a normal's two tails
    # no activation follows the head
    assert spread(head) == pytest.approx(std if scheme == "xavier" else gain / math.sqrt(IN), rel=tolerance)
    assert not model["body"].bias.any()


@pytest.mark.parametrize(("scheme", "variance"), [("he", 2 / (9 * 60)), ("xavier", 2 / (9 * 60 + 9 * 100))])
def test_fan_of_a_convolution_counts_the_kernel(scheme: str, variance: float) -> None:
    model: Any = nn.Sequential(nn.Conv2d(60, 100, 3))
    init_parameters(model, scheme=scheme, gain=1.0, activation="relu", seed_of=lambda _: 11)
    assert spread(model[0].weight.detach()) == pytest.approx(math.sqrt(variance), rel=5 / math.sqrt(2 * 54_000))


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(8, 30, 3)])
def test_default_is_torchs_own(layer: nn.Module) -> None:
    model: Any = nn.ModuleDict({"body": layer})
    init_parameters(model, scheme="default", gain=0.5, activation="tanh", seed_of=lambda name: len(name))
    want = torch.empty_like(model["body"].weight)
    generator = torch.Generator().manual_seed(len("body.weight"))
    nn.init.kaiming_uniform_(want, a=math.sqrt(5), generator=generator)
    torch.testing.assert_close(model["body"].weight.detach(), 0.5 * want)
    bound = 0.5 / math.sqrt(want[0].numel())
    bias = model["body"].bias.detach()
    assert bound / 2 < float(bias.abs().max()) <= bound
    assert -bound / 2 < float(bias.mean()) < bound / 2


@pytest.mark.parametrize("scheme", INITS)
def test_norm_parameters_stay_one_and_zero(scheme: str) -> None:
    parameters = drawn("cnn", scheme=scheme)
    for unit in range(3):
        assert (parameters[f"units.{unit}.norm.weight"] == 1).all()
        assert (parameters[f"units.{unit}.norm.bias"] == 0).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_calls_its_last_layer_head(network: str) -> None:
    parameters = drawn(network)
    assert parameters["head.weight"].shape[0] == 10
    fan_in = parameters["head.weight"].shape[1]
    assert spread(parameters["head.weight"]) == pytest.approx(1 / math.sqrt(fan_in), rel=0.25)  # 80 values and more


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model\.init: 'hee' is not one of he, xavier, default, normal"):
        init_parameters(nn.Linear(2, 2), scheme="hee", gain=1.0, activation="relu", seed_of=lambda _: 0)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (5, 4, 1, 1), (64, 4, 3, 3), (10, 32)])
def test_orthogonal_weights_are_semi_orthogonal_times_the_gain(shape: tuple[int, ...]) -> None:
    layer = nn.Conv2d(shape[1], shape[0], shape[2]) if len(shape) == 4 else nn.Linear(shape[1], shape[0])
    init_parameters(nn.Sequential(layer), scheme="orthogonal", gain=0.5, activation="relu", seed_of=lambda name: 7)
    flat = layer.weight.detach().double().flatten(1)
    product = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    torch.testing.assert_close(product, 0.5 * torch.eye(len(product)).double(), atol=1e-6, rtol=0)  # (0.5 · √2)²


@pytest.mark.parametrize("kind", ["none", "batch", "layer", "noisy_batch"])
@pytest.mark.parametrize("network", NETWORKS)
def test_lsuv_gives_every_weight_layer_unit_variance(network: str, kind: str) -> None:
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    model = build_model(norm=make_norm_factory(kind), placement="before", dropout=0.5, **fixed, **NETWORKS[network])
    init_parameters(model, scheme="lsuv", gain=1.0, activation="relu", seed_of=partial(seed_for, 0, "init"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scale_to_unit_variance(model, x, gain=1.0)

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {name for name, value in before.items() if value.ndim > 1}  # no bias, gamma or statistic
    variances = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: variances.update({name: output.double().var().item()})
            )
    model.train()
    for module in model.modules():
        if isinstance(module, Stochastic):
            module.eval()
    model(x)
    assert len(variances) == sum(value.ndim > 1 for value in before.values())
    assert variances == pytest.approx(dict.fromkeys(variances, 1.0), abs=0.0101)


@pytest.mark.parametrize("kind", ["none", "batch", "layer"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_lsuv_gives_recurrent_layers_unit_variance_over_all_steps(name: str, kind: str) -> None:
    """W_h h of one step alone has another: none at the first, and more from step to step."""
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "tanh"}
    model = build_model(name, norm=make_norm_factory(kind), placement="before", depth=2, width=16, **fixed)
    init_parameters(model, scheme="lsuv", gain=1.0, activation="tanh", seed_of=partial(seed_for, 0, "init"))
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scale_to_unit_variance(model, x, gain=1.0)
    outputs: dict[str, list[Tensor]] = {}
    for layer, module in weight_layers(model):
        module.register_forward_hook(lambda _, __, out, layer=layer: outputs.setdefault(layer, []).append(out.double()))
    model.train()
    for _, noise in stochastic_layers(model):
        noise.eval()
    model(x)
    transforms = [f"layers.{index}.{part}" for index in range(2) for part in ("input", "hidden")]
    assert sorted(outputs) == sorted([*transforms, "head"])
    assert len(outputs["layers.1.hidden"]) == 8
    variances = {name: torch.stack(calls).var().item() for name, calls in outputs.items()}
    assert variances == pytest.approx(dict.fromkeys(outputs, 1.0), abs=0.0101)
    assert abs(outputs["layers.1.hidden"][-1].var().item() - 1) > 0.05


def test_lsuv_keeps_directions_and_ends_in_its_gain() -> None:
    def scaled(gain: float) -> list[Tensor]:
        model = build_model(
            norm=make_norm_factory("none"), placement="before", in_channels=3, image_size=8, num_classes=10,
            activation="tanh", **NETWORKS["cnn"],
        )  # fmt: skip
        init_parameters(model, scheme="lsuv", gain=1.0, activation="tanh", seed_of=partial(seed_for, 0, "init"))
        start = [p.detach().clone() for p in model.parameters() if p.ndim > 1]
        x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        scale_to_unit_variance(model, x, gain=gain)
        end = [p.detach() for p in model.parameters() if p.ndim > 1]
        for a, b in zip(start, end, strict=True):
            torch.testing.assert_close(a / a.norm(), b / b.norm())
        return end

    for one, two in zip(scaled(1.0), scaled(2.0), strict=True):
        torch.testing.assert_close(2 * one, two)


@pytest.mark.parametrize("scheme", ["he", "default"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_fixup_scales_first_convolutions_and_silences_branches_and_head(preactivation: bool, scheme: str) -> None:
    """Torch's default draws biases too."""
    network = {"name": "resnet", "depth": 14, "width": 4, "preactivation": preactivation, "branch": "fixup"}
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    model: Any = build_model(norm=make_norm_factory("none"), placement="before", **fixed, **network)
    plain: Any = build_model(
        norm=make_norm_factory("none"), placement="before", **fixed, **network | {"branch": "plain"}
    )
    for each in (model, plain):
        init_parameters(each, scheme=scheme, gain=1.0, activation="relu", seed_of=partial(seed_for, 0, "init"))
    for block, reference in zip(model.blocks, plain.blocks, strict=True):
        torch.testing.assert_close(block.unit1.weight.weight, reference.unit1.weight.weight / math.sqrt(6))
        assert not block.unit2.weight.weight.any()
        assert block.scale.item() == 1.0
        assert not block.unit1.weight.bias.any()
        assert not block.unit2.weight.bias.any()
    assert not model(torch.randn(2, 3, 8, 8)).any()
    x = torch.randn(2, 4, 8, 8).relu()
    assert torch.equal(model.blocks[0](x), x)


@pytest.mark.parametrize("preactivation", [False, True])
def test_skipinit_starts_as_its_shortcuts(preactivation: bool) -> None:
    network = {"name": "resnet", "depth": 14, "width": 4, "preactivation": preactivation, "branch": "skipinit"}
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    model: Any = build_model(norm=make_norm_factory("none"), placement="before", **fixed, **network)
    init_parameters(model, scheme="he", gain=1.0, activation="relu", seed_of=partial(seed_for, 0, "init"))
    x = torch.randn(2, 4, 8, 8).relu()
    assert torch.equal(model.blocks[0](x), x)
    with torch.no_grad():
        model.blocks[0].scale.fill_(1.0)
    assert not torch.equal(model.blocks[0](x), x)
