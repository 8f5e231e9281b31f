"""Networks side by side compute what each computes alone: outputs, gradients and statistics, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnexp.nn import build_model
from bnexp.nn.layers import Dropout, stochastic_layers
from bnexp.nn.norms import NORMS, make_norm_factory
from bnexp.nn.stack import (
    StackedStochastic,
    by_network,
    network_state,
    stack_networks,
    why_not_stackable,
)

NUM = 3
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 3, "width": 4},
    "odd width": {"name": "cnn", "depth": 2, "width": 5},
    "dropout": {"name": "cnn", "depth": 2, "width": 4, "dropout": 0.4},
    "vgg": {"name": "vgg", "depth": 11, "width": 4},
    "mlp": {"name": "mlp", "depth": 2, "width": 12},
    "resnet": {"name": "resnet", "depth": 8, "width": 4},
    "skipinit": {"name": "resnet", "depth": 8, "width": 4, "preactivation": True, "branch": "skipinit"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "group": {"num_groups": 2},
    "group_ws": {"num_groups": 2},
    "ghost": {"ghost_size": 4},
    "batch_renorm": {"ramp_steps": 1},
}
WITHOUT_FLAT = ("instance", "filter_response")


def networks(model: str, kind: str, **options: Any) -> list[nn.Module]:
    """Networks with random numbers in every parameter and statistic."""
    arguments: dict[str, Any] = {"in_channels": 2, "image_size": 32, "num_classes": 5, "activation": "gelu"}
    placement = options.pop("placement", "before")
    norm = make_norm_factory(kind, **OPTIONS.get(kind, {}), **options)
    made = [build_model(**MODELS[model], **arguments, norm=norm, placement=placement).double() for _ in range(NUM)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in made:
            for value in network.state_dict().values():
                if value.ndim:
                    value.add_(torch.rand(value.shape, generator=generator, dtype=torch.float64), alpha=0.3)
            for index, (_, layer) in enumerate(stochastic_layers(network)):
                layer.reseed(index + 10 * len(list(network.parameters())), torch.device("cpu"))
    return made


def images(num: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, NUM * 2, 32, 32, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def same(a: Tensor, b: Tensor, what: str) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


CASES = [
    (model, kind, {})
    for model in MODELS
    for kind in NORMS
    if not (model == "odd width" and kind.startswith("group")) and not (model == "mlp" and kind in WITHOUT_FLAT)
]
CASES += [("cnn", kind, {"affine": a}) for kind in ("group", "layer", "batch") for a in ("scale", "shift", "none")]
CASES += [("mlp", "layer", {"affine": "scale"}), ("resnet", "batch", {"placement": "after"})]
CASES += [("cnn", "batch", {"momentum": None}), ("cnn", "filter_response", {"threshold": False})]


@pytest.mark.parametrize(("model", "kind", "options"), CASES)
def test_a_stack_computes_what_its_networks_compute(model: str, kind: str, options: dict[str, Any]) -> None:
    alone = networks(model, kind, **options)
    if model == "vgg" and kind in WITHOUT_FLAT:
        for network in alone:  # its last maps are of one pixel
            network.units = network.units[:-4]  # type: ignore[index]
            network.head = nn.Linear(network.units[-1].weight.out_channels, 5).double()  # type: ignore[union-attr]
    assert why_not_stackable(alone[0]) is None
    stack = stack_networks(alone).to(memory_format=torch.channels_last)
    for (_, stacked), *layers in zip(stochastic_layers(stack), *map(stochastic_layers, alone), strict=True):
        assert isinstance(stacked, StackedStochastic)
        seeds = [7 * index for index in range(NUM)]
        stacked.reseed_each(seeds, torch.device("cpu"))
        for (_, layer), seed in zip(layers, seeds, strict=True):
            layer.reseed(seed, torch.device("cpu"))
    x = images()
    weights = torch.randn(8, NUM, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for training in (True, True, False):  # the second update starts from statistics that moved
        stack.train(training)
        out = stack(x).unflatten(1, (NUM, 5))
        stack.zero_grad()
        (out * weights).sum().backward()
        for index, network in enumerate(alone):
            network.to(memory_format=torch.channels_last).train(training).zero_grad()
            own = network(x.unflatten(1, (NUM, 2))[:, index].contiguous(memory_format=torch.channels_last))
            (own * weights[:, index]).sum().backward()
            same(out[:, index], own, f"logits of {index}")
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None
                stacked_grad = stack.get_parameter(name).grad
                assert stacked_grad is not None
                same(by_network(stacked_grad, NUM)[index], parameter.grad, name)
            state = network_state(stack, index, NUM)
            for name, value in network.state_dict().items():
                same(state[name], value, name)


@pytest.mark.parametrize("model", [model for model in MODELS if model != "dropout"])
def test_networks_come_out_of_a_stack_as_they_went_in(model: str) -> None:
    alone = networks(model, "batch")
    before = copy.deepcopy([network.state_dict() for network in alone])
    stack = stack_networks(alone)
    for index, network in enumerate(alone):
        state = network_state(stack, index, NUM)
        assert list(state) == list(before[index])
        for name, value in before[index].items():
            assert torch.equal(state[name], value), name
            assert torch.equal(network.state_dict()[name], value), name  # and stay as they are
            assert state[name].untyped_storage().nbytes() == value.untyped_storage().nbytes()  # no view of the stack
        network.load_state_dict(state)


def test_what_bnexp_does_not_know_is_not_stacked() -> None:
    network: Any = networks("cnn", "batch")[0]
    network.units[1].norm = nn.LocalResponseNorm(2)
    assert why_not_stackable(network) == (
        "units.1.norm is a LocalResponseNorm, which bnexp does not know how to lay side by side"
    )
    hooked: Any = networks("cnn", "batch")[0]
    hooked.units[0].act.register_forward_hook(lambda *_: None)
    assert why_not_stackable(hooked) == "units.0.act has a hook, which would see all networks at once"

    class Special(nn.BatchNorm2d):
        """Could do anything."""

    special: Any = networks("cnn", "batch")[0]
    special.units[0].norm = Special(4)
    assert "Special" in (why_not_stackable(special) or "")


def test_each_network_draws_for_itself() -> None:
    stacked = StackedStochastic([Dropout(0.5) for _ in range(NUM)])
    stacked.reseed_each([3, 4, 3], torch.device("cpu"))
    parts = stacked(torch.ones(16, NUM * 2, 6, 6)).chunk(NUM, 1)
    assert torch.equal(parts[0], parts[2])
    assert not torch.equal(parts[0], parts[1])
