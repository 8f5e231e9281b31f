"""What the step probes share: their rhythm, repeatable forward passes, gradients, and one trip from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnexp.nn.layers import stochastic_layers
from bnexp.probes.base import Moment, Row, kept_buffers


@dataclass(frozen=True)
class Periodic:
    """Measures before the first update and then every so often.

    Attributes:
        every: updates from one measurement to the next.
    """

    every: int

    def when(self, step: int) -> bool:
        """Whether to measure before the update that follows `step` updates."""
        return step % self.every == 0


@dataclass
class Found:
    """Scalars on the device, collected under layer and quantity until they are wanted as rows."""

    moment: Moment
    probe: str

    def __post_init__(self) -> None:
        self._keys: list[tuple[str, str]] = []
        self._values: list[Tensor] = []

    def add(self, layer: str, **quantities: Tensor) -> None:
        """Note quantities of a layer, scalars each."""
        self._keys += [(layer, quantity) for quantity in quantities]
        self._values += quantities.values()

    def rows(self) -> list[Row]:
        """Everything noted; this waits for the device, once."""
        if not self._values:
            return []
        numbers = torch.cat([value.detach().reshape(1) for value in self._values]).tolist()
        pairs = zip(self._keys, numbers, strict=True)
        return [self.moment.row(self.probe, layer, quantity, number) for (layer, quantity), number in pairs]


def rewinder(model: nn.Module) -> Callable[[], None]:
    """A function that puts random draws and buffers back to where they are now.

    Called ahead of each forward pass, it makes the loss a function of the parameters alone.
    """
    generators = [layer.generator for _, layer in stochastic_layers(model) if layer.generator is not None]
    generators.append(torch.default_generator)  # which layers of a user's package draw from
    device = next(model.parameters()).device
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [(generator, generator.get_state()) for generator in generators]
    put_buffers_back = kept_buffers(model)

    def rewind() -> None:
        for generator, state in states:
            generator.set_state(state)
        put_buffers_back()

    return rewind


@torch.no_grad()
def write(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the first."""
    for tensor, value in pairs:
        tensor.copy_(value)


def copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The values of now, which a later update leaves alone."""
    return [parameter.detach().clone() for parameter in parameters]


def loss_and_gradients(moment: Moment, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss of the moment's batch and its gradients, zeros where the loss does not depend; `.grad` is left alone."""
    loss = moment.loss(moment.model(moment.x), moment.y)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return loss.detach(), list(gradients)


def wide(tensor: Tensor) -> Tensor:
    """In float64 where the device has it: fp32 loses the square of a vanishing or an exploding gradient."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """All elements in one wide vector."""
    return torch.cat([wide(tensor.detach()).flatten() for tensor in tensors])
