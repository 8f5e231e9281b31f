"""Networks of one structure side by side as one network: a kernel launched once does the work of many.

Shapes: B examples, K networks, C channels of one of them. Activations are (B, K·C, H, W) or (B, K·F), network by
network along the channels; each network has examples of its own. A parameter or buffer of the stack is the networks'
own ones, concatenated along the first axis; one without an axis, which counts steps, they share.

No operation mixes networks, so each sees the numbers that it would see alone up to the rounding of sums, and one that
overflows leaves the others as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.nn.cnn import Cnn
from bnexp.nn.layers import Dropout, Stochastic
from bnexp.nn.mlp import Mlp
from bnexp.nn.norm_layers import (
    BatchRenormalization,
    FilterResponse,
    GhostBatchNorm,
    InstanceNorm2d,
    ShiftedGroupNorm,
    ShiftingNoise,
    StandardizedConv2d,
    StandardizedLinear,
    standardize,
)
from bnexp.nn.resnet import PostActivationBlock, PreActivationBlock, ResNet
from bnexp.nn.unit import Unit
from bnexp.nn.vgg import Vgg

_CONV = ("in_channels", "out_channels", "groups")
_GROUP = ("num_groups", "num_channels")
# modules that compute a stack as they are, with concatenated tensors and K times these attributes
WIDENED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: _CONV,
    StandardizedConv2d: _CONV,
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    InstanceNorm2d: ("num_features",),
    nn.GroupNorm: _GROUP,
    ShiftedGroupNorm: _GROUP,
    GhostBatchNorm: (),
    BatchRenormalization: (),
    FilterResponse: (),
}
# modules that work position by position, or only hand on to others
UNCHANGED: tuple[type[nn.Module], ...] = (
    Cnn, Vgg, Mlp, ResNet, PostActivationBlock, PreActivationBlock, Unit, nn.Sequential, nn.ModuleList, nn.Identity,
    nn.MaxPool2d, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU,
)  # fmt: skip


class StackedLinear(nn.Module):
    """K linear layers: (B, K·in) to (B, K·out).

    Args:
        standardized: as in `StandardizedLinear`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, num_networks: int, *, standardized: bool) -> None:
        super().__init__()
        self.num_networks, self.standardized = num_networks, standardized

    def forward(self, x: Tensor) -> Tensor:
        x_kbf = x.view(len(x), self.num_networks, -1).transpose(0, 1)
        weight = standardize(self.weight) if self.standardized else self.weight
        weight = by_network(weight, self.num_networks).transpose(1, 2)
        if self.bias is None:
            y_kbf = torch.bmm(x_kbf, weight)
        else:
            y_kbf = torch.baddbmm(self.bias.view(self.num_networks, 1, -1), x_kbf, weight)
        return y_kbf.transpose(0, 1).flatten(1)


class StackedLayerNorm(nn.Module):
    """K layer norms on (B, K·F)."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, num_networks: int, eps: float) -> None:
        super().__init__()
        self.num_networks, self.eps = num_networks, eps

    def forward(self, x: Tensor) -> Tensor:
        x_bkf = x.view(len(x), self.num_networks, -1)
        out = F.layer_norm(x_bkf, x_bkf.shape[2:], eps=self.eps).flatten(1)
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias


class StackedStochastic(Stochastic):
    """K stochastic layers, each of which draws what it would draw alone."""

    def __init__(self, layers: Sequence[Dropout] | Sequence[ShiftingNoise]) -> None:
        super().__init__()
        # no children: those would be found, and seeded, as layers of the network
        self.layers = tuple(copy.deepcopy(layer) for layer in layers)

    def reseed_each(self, seeds: Sequence[int], device: torch.device) -> None:
        """Start each network's draws anew."""
        for layer, seed in zip(self.layers, seeds, strict=True):
            layer.reseed(seed, device)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        parts = zip(self.layers, x.chunk(len(self.layers), 1), strict=True)
        draws = zip(*(layer.draws(part) for layer, part in parts), strict=True)
        out: Tensor = self.layers[0].apply_draws(x, *(torch.cat(drawn, 1) for drawn in draws))
        return out


def why_not_stackable(network: nn.Module) -> str | None:
    """Why networks like this one cannot be computed side by side; None where they can."""
    for name, module in network.named_modules():
        kind = type(module)
        known = kind in WIDENED or kind in UNCHANGED or kind in REPLACED
        if not known or (kind is nn.BatchNorm2d and not module.track_running_stats):
            return f"{name or 'the network'} is a {kind.__name__}, which bnexp does not know how to lay side by side"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the network'} has a hook, which would see all networks at once"
    return None


def stack_networks(networks: Sequence[nn.Module]) -> nn.Module:
    """One network that computes all of these: (B, K·C, H, W) images to (B, K·num_classes) logits.

    Args:
        networks: of one structure, for which `why_not_stackable` says nothing; they are left as they are.
    """
    own = [dict(network.named_modules()) for network in networks]
    stack = copy.deepcopy(networks[0])
    for name, module in list(stack.named_modules()):
        alike = [modules[name] for modules in own]
        replacement = REPLACED[type(module)](alike) if type(module) in REPLACED else None
        if replacement is not None:
            stack.set_submodule(name, replacement)
        for attribute in WIDENED.get(type(module), ()):
            setattr(module, attribute, len(networks) * getattr(module, attribute))
        _concatenate(replacement or module, alike)
    return stack.train(networks[0].training)


def network_state(stack: nn.Module, index: int, num_networks: int) -> dict[str, Tensor]:
    """The state_dict of one network of the stack, in tensors of its own."""
    return {
        name: (by_network(value, num_networks)[index] if value.ndim else value).clone()
        for name, value in stack.state_dict().items()
    }


def by_network(value: Tensor, num_networks: int) -> Tensor:
    """A view of a parameter, or of its gradient, with the networks as an axis of their own: (K, ...)."""
    return value.view(num_networks, -1, *value.shape[1:])


@torch.no_grad()
def _concatenate(module: nn.Module, alike: Sequence[nn.Module]) -> None:
    for name, parameter in alike[0].named_parameters(recurse=False):
        joined = torch.cat([one.get_parameter(name) for one in alike])
        module.register_parameter(name, nn.Parameter(joined, requires_grad=parameter.requires_grad))
    for name, buffer in alike[0].named_buffers(recurse=False):
        buffers = [one.get_buffer(name) for one in alike]
        module.register_buffer(name, torch.cat(buffers) if buffer.ndim else buffer.clone())


def _stack_linear(layers: Sequence[nn.Linear]) -> nn.Module:
    stacked = StackedLinear(len(layers), standardized=isinstance(layers[0], StandardizedLinear))
    for name in ("weight", "bias"):  # in the order of the layer's own state_dict
        stacked.register_parameter(name, None)
    return stacked


def _stack_layer_norm(layers: Sequence[nn.LayerNorm]) -> nn.Module:
    stacked = StackedLayerNorm(len(layers), layers[0].eps)
    for name in ("weight", "bias"):
        stacked.register_parameter(name, None)
    return stacked


REPLACED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: _stack_linear,
    StandardizedLinear: _stack_linear,
    nn.LayerNorm: _stack_layer_norm,
    Dropout: StackedStochastic,
    ShiftingNoise: StackedStochastic,
}
