"""Initial values, each parameter from a generator of its own, so that networks share what they share by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError

INITS = ("he", "xavier", "default", "normal")


@torch.no_grad()
def init_parameters(
    model: nn.Module, *, scheme: str, gain: float, activation: str, seed_of: Callable[[str], int]
) -> None:
    """Draw the weights of every linear and convolutional layer on the CPU in fp32; norm layers keep 1 and 0.

    Args:
        scheme: he, N(0, g²/fan_in) with torch's gain g of the activation (√2 for relu and gelu, 5/3 for tanh, 1 for
            sigmoid); xavier, N(0, 2/(fan_in + fan_out)); default, torch's uniform(±1/√fan_in) for weights and biases;
            normal, N(0, 1/fan_in). Biases are 0 but for default. `head`, which no activation follows, has g = 1.
        gain: multiplies every drawn value.
        seed_of: the seed for a parameter's name.

    Raises:
        ConfigError: an unknown scheme.

    Source: He et al. 2015 "Delving deep into rectifiers"; Glorot & Bengio 2010.
    """
    if scheme not in INITS:
        raise ConfigError("model.init", got=scheme, choices=INITS)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            fan_out *= module.weight[0, 0].numel()
        generator = torch.Generator().manual_seed(seed_of(f"{name}.weight"))
        if scheme == "default":
            bound = gain / math.sqrt(fan_in)
            _draw_uniform(module.weight, bound, generator)
        else:
            own_gain = 1.0 if name == "head" else activation_gain(activation)
            std = {
                "he": own_gain / math.sqrt(fan_in),
                "xavier": math.sqrt(2.0 / (fan_in + fan_out)),
                "normal": 1.0 / math.sqrt(fan_in),
            }[scheme]
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (gain * std))
        if module.bias is None:
            continue
        if scheme == "default":
            _draw_uniform(module.bias, bound, torch.Generator().manual_seed(seed_of(f"{name}.bias")))
        else:
            module.bias.zero_()


def activation_gain(activation: str) -> float:
    """torch's recommended gain; gelu, for which it has none, takes relu's."""
    return float(nn.init.calculate_gain("relu" if activation == "gelu" else activation))  # type: ignore[arg-type]


def _draw_uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
