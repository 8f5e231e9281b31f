"""The layers of a network, found by what they are: what probes, evaluation and initialization need to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

PARTS = ("weight", "norm", "act", "drop")  # children of a unit, whose own name stands for the layer


class Stochastic(nn.Module):
    """A layer that draws random numbers in training, from a generator of its own and never from the global one.

    `draws` and `apply_draws` let a stack of networks draw for each of them as it would draw alone; a layer without
    them cannot be stacked.
    """

    generator: torch.Generator | None = None

    def reseed(self, seed: int, device: torch.device) -> None:
        """Start a new sequence of draws; called once an epoch, so that a resumed run draws the same numbers."""
        self.generator = torch.Generator(device).manual_seed(seed)

    def own_generator(self, device: torch.device) -> torch.Generator | None:
        """The generator, made here where nobody has seeded it; none on the meta device, which draws nothing."""
        if self.generator is None and device.type != "meta":
            self.reseed(0, device)
        return self.generator


class Dropout(Stochastic):
    """Zero each value with probability `p` in training and scale the rest by 1 / (1 − p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_draws(x, *self.draws(x)) if self.training else x

    def draws(self, x: Tensor) -> tuple[Tensor]:
        """What x is multiplied with."""
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.own_generator(x.device))
        return (kept.div_(1 - self.p),)

    @staticmethod
    def apply_draws(x: Tensor, kept: Tensor) -> Tensor:
        """x with them."""
        return x * kept


def mean_over_positions(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C): global average pooling.

    It is x.mean((2, 3)), whose gradient torch would lay out channel by channel: the backward pass of the layer before
    then takes several times as long where activations are channels-last.
    """
    return x.permute(0, 2, 3, 1).mean((1, 2))


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Take these hooks away at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_name(module_name: str) -> str:
    """`units.0.norm` is layer `units.0`: weight, norm and activation of one unit share a name."""
    parts = module_name.split(".")
    for index, part in enumerate(parts):
        if part in PARTS and index > 0:
            return ".".join(parts[:index])
        if part == "input_norm":
            return ".".join(parts[: index + 1])
    return module_name


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every convolution and linear layer in the order of construction, which is that of the forward pass."""
    return [(layer_name(n), m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def activation_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every activation, named by its layer."""
    return [(layer_name(name), module) for name, module in model.named_modules() if name.rpartition(".")[2] == "act"]


def norm_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every norm that has parameters or statistics, named by its layer; one over time steps counts once."""
    found = [(n, m) for n, m in model.named_modules() if n.rpartition(".")[2] in ("norm", "input_norm")]
    return [(layer_name(name), module) for name, module in found if module.state_dict()]


def running_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with running statistics, by its full name: buffers `running_mean` and `running_var`, (C,) each."""

    def has_them(module: nn.Module) -> bool:
        buffers = dict(module.named_buffers(recurse=False))
        return all(name in buffers and buffers[name].ndim == 1 for name in ("running_mean", "running_var"))

    return [(name, module) for name, module in model.named_modules() if has_them(module)]


def stochastic_layers(model: nn.Module) -> list[tuple[str, Stochastic]]:
    """Every layer that draws random numbers, by its full name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Stochastic)]
