"""What a probe is given, what it returns, and the guard that leaves training as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# probe, step, epoch, layer, quantity, value; robustness and statistics add columns of their own
Row = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """A network in training, right before an update.

    Attributes:
        x, y: the batch of the update to come: (N, C, H, W) float32, normalized, and (N,) int64.
        loss: (logits, labels) -> the optimized loss, a mean over the batch.
        update: do the update to come, in fp32 and with this batch: forward, backward, clipping, optimizer step.
        lr: learning rate of the update to come.
        step: updates done so far.
        epoch: from 0.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    update: Callable[[], None]
    lr: float
    step: int
    epoch: int

    def row(self, probe: str, layer: str, quantity: str, value: float) -> Row:
        """One tidy row of this moment."""
        return {
            "probe": probe,
            "step": self.step,
            "epoch": self.epoch,
            "layer": layer,
            "quantity": quantity,
            "value": value,
        }


class StepProbe(Protocol):
    """Looks at the network between two updates."""

    def when(self, step: int) -> bool:
        """Whether to measure before the update that follows `step` updates."""
        ...

    def measure(self, moment: Moment) -> list[Row]:
        """Tidy rows; anything it changes in the network or its optimizer is put back by `undisturbed`."""
        ...


@dataclass(frozen=True)
class Ending:
    """A trained network and what to evaluate it on.

    Attributes:
        train_x, test_x: (N, C, H, W) uint8; train_y, test_y: (N,) int64.
        normalize: raw pixels in 0..255, uint8 or float32, (N, C, H, W) -> the float32 input of the network.
        seed_of: a seed for a purpose and its keys, as strings or numbers.
        twin: () -> an untrained network of the same shape without norm layers, on the same device.
        step_of: network -> a function of no arguments that does one training step with it on a batch of fixed images.
        step, epoch: updates and epochs done.
        batch_size: examples of a training step.
    """

    model: nn.Module
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    normalize: Callable[[Tensor], Tensor]
    seed_of: Callable[..., int]
    twin: Callable[[], nn.Module]
    step_of: Callable[[nn.Module], Callable[[], None]]
    step: int
    epoch: int
    batch_size: int

    def row(self, probe: str, quantity: str, value: float, **columns: Any) -> Row:
        """One tidy row of the whole network, or of a `layer`, with columns of the probe's own."""
        base = {"probe": probe, "step": self.step, "epoch": self.epoch, "layer": "", "quantity": quantity}
        return {**base, "value": value, **columns}


class EndProbe(Protocol):
    """Looks at the network once, when training is over."""

    def measure(self, ending: Ending) -> list[Row]:
        """Tidy rows; anything it changes in the network is put back by `undisturbed`."""
        ...


def kept_buffers(model: nn.Module) -> Callable[[], None]:
    """A function that puts every buffer back: the tensor that it is now, with its value of now."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]

    @torch.no_grad()
    def put_back() -> None:
        for module, name, buffer, value in kept:
            buffer.copy_(value)
            setattr(module, name, buffer)

    return put_back


@contextmanager
def undisturbed(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Whatever happens inside, afterwards all is bitwise as it was before.

    Kept: parameters, gradients, buffers, modes, the optimizer's state, the generators of stochastic layers and
    PyTorch's global ones. Values are put back into the tensors that held them, so nothing that points to them goes
    stale, and a buffer that was replaced by another tensor is the old one again.
    """
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    put_buffers_back = kept_buffers(model)
    grads = [(p, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    generators = [g for m in model.modules() if isinstance(g := getattr(m, "generator", None), torch.Generator)]
    states = [(g, g.get_state()) for g in generators]
    optimizer_state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
        put_buffers_back()
        for parameter, grad in grads:
            parameter.grad = grad
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        for generator, state in states:
            generator.set_state(state)
        if optimizer is not None and optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
