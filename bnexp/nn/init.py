"""Initial values, each parameter from a generator of its own, so that networks share what they share by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.layers import hooked, stochastic_layers, weight_layers
from bnexp.nn.norm_layers import StandardizedConv2d, StandardizedLinear
from bnexp.nn.statistics import kept_statistics

INITS = ("he", "xavier", "default", "normal", "orthogonal", "lsuv")
LSUV_TOLERANCE, LSUV_ROUNDS = 0.01, 10


@torch.no_grad()
def init_parameters(
    model: nn.Module, *, scheme: str, gain: float, activation: str, seed_of: Callable[[str], int]
) -> None:
    """Draw the weights of every linear and convolutional layer on the CPU in fp32; norm layers keep 1 and 0.

    Args:
        scheme: he, N(0, g²/fan_in) with torch's gain g of the activation (√2 for relu and gelu, 5/3 for tanh, 1 for
            sigmoid); xavier, N(0, 2/(fan_in + fan_out)); default, torch's uniform(±1/√fan_in) for weights and biases;
            normal, N(0, 1/fan_in); orthogonal, semi-orthogonal rows or columns times g; lsuv, the same, which
            `scale_to_unit_variance` then finishes. Biases are 0 but for default, and in recurrent layers always.
            `head`, which no activation follows, has g = 1. Last, layers with rules of their own apply them
            (`finish_init`).
        gain: multiplies every drawn value.
        seed_of: the seed for a parameter's name.

    Raises:
        ConfigError: an unknown scheme.

    Source: He et al. 2015 "Delving deep into rectifiers"; Glorot & Bengio 2010; Saxe et al. 2014.
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
        own_gain = 1.0 if name == "head" else activation_gain(activation)
        if scheme == "default":
            bound = gain / math.sqrt(fan_in)
            _draw_uniform(module.weight, bound, generator)
        elif scheme in ("orthogonal", "lsuv"):
            drawn = nn.init.orthogonal_(torch.empty(module.weight.shape), gain * own_gain, generator=generator)
            module.weight.copy_(drawn)
        else:
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
    for module in model.modules():
        finish = getattr(module, "finish_init", None)
        if finish is not None:
            finish()


@torch.no_grad()
def scale_to_unit_variance(model: nn.Module, x: Tensor, *, gain: float) -> None:
    """Scale each weight layer in forward order until its output has variance 1 on `x`, times `gain` in the end.

    The variance is over examples, units and, in a recurrent layer, steps. A layer whose output does not vary, or whose
    weights are standardized anyway, stays as it is. Dropout and noise are off, norms see the batch as in training, and
    their running statistics are left alone.

    Args:
        x: a batch of the network's inputs, (N, C, H, W).
        gain: multiplies the scaled weights.

    Source: Mishkin & Matas 2016, "All you need is a good init", algorithm 1, with a tighter tolerance of 0.01.
    """
    outputs: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output.float().flatten())

    with kept_statistics(model):
        model.train()
        for _, noisy in stochastic_layers(model):
            noisy.eval()
        standardized = StandardizedConv2d | StandardizedLinear
        layers = [layer for _, layer in weight_layers(model) if not isinstance(layer, standardized)]
        for layer in layers:
            with hooked([layer.register_forward_hook(note)]):
                for _ in range(LSUV_ROUNDS):
                    outputs.clear()
                    model(x)
                    found = torch.cat(outputs).var().item()
                    if abs(found - 1) < LSUV_TOLERANCE or not 0 < found < math.inf:
                        break
                    layer.get_parameter("weight").div_(math.sqrt(found))
    for layer in layers:
        layer.get_parameter("weight").mul_(gain)


def activation_gain(activation: str) -> float:
    """torch's recommended gain; gelu, for which it has none, takes relu's."""
    return float(nn.init.calculate_gain("relu" if activation == "gelu" else activation))  # type: ignore[arg-type]


def _draw_uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
