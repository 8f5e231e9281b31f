"""The optimizers of `build_optimizer` for a stack of networks, each with its own learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnexp.config import RunConfig
from bnexp.engine.build import decay_groups
from bnexp.nn.stack import by_network


class StackedOptimizer:
    """SGD, Adam, AdamW or RMSprop, with torch's formulas, on all networks at once.

    Everything per network is a tensor that is broadcast over the network's numbers: no step waits for the device, and
    a network with gradients that are not finite spoils nothing but itself.

    Args:
        stack: as `stack_networks` makes it.
        configs: one for each network; alike in optim but for weight_decay.
        captured: steps are to be captured, and counted on the device.
    """

    def __init__(self, stack: nn.Module, configs: Sequence[RunConfig], *, captured: bool = False) -> None:
        self._optim, self._num = configs[0].optim, len(configs)
        device = next(stack.parameters()).device
        self._count: int | Tensor = torch.zeros((), dtype=torch.float64, device=device) if captured else 0
        decays = torch.tensor([config.optim.weight_decay for config in configs])
        self._parameters: list[nn.Parameter] = []
        self._values: list[Tensor] = []  # (K, ...) views of the parameters
        self._decays: list[Tensor | None] = []
        for group, decayed in zip(decay_groups(stack), (True, self._optim.decay == "all"), strict=True):
            for parameter in group:
                value = by_network(parameter.detach(), self._num)
                self._parameters.append(parameter)
                self._values.append(value)
                some = decayed and bool(decays.any())
                self._decays.append(_spread(decays.to(value), value) if some else None)
        self._state: dict[str, list[Tensor]] = {
            name: [torch.zeros_like(value) for value in self._values] for name in self._state_names()
        }

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Update every parameter from its gradient, which is spoiled.

        Args:
            lr: (K,), of this step.
        """
        self._count += 1
        gradients = []
        for parameter in self._parameters:
            assert parameter.grad is not None
            gradients.append(by_network(parameter.grad, self._num))
        if self._optim.clip_norm is not None:
            self._clip(gradients, self._optim.clip_norm)
        spread = {value.ndim: _spread(lr, value) for value in self._values}
        corrections = self._bias_corrections()
        for index, gradient in enumerate(gradients):
            rate = spread[gradient.ndim]
            self._decay(index, gradient, rate)
            if self._optim.name == "sgd":
                self._sgd(index, gradient, rate)
            elif self._optim.name == "rmsprop":
                self._rmsprop(index, gradient, rate)
            else:
                self._adam(index, gradient, rate, corrections)

    def write_to(self, optimizer: torch.optim.Optimizer, index: int, *, steps: int) -> None:
        """Give a network's own optimizer, as `build_optimizer` makes it, the state of that network after its steps."""
        for place, parameter in enumerate(_parameters_of(optimizer)):
            own = {name: values[place][index].clone().view_as(parameter) for name, values in self._state.items()}
            count = {} if self._optim.name == "sgd" else {"step": torch.tensor(float(steps))}
            optimizer.state[parameter] = {**count, **own}

    def read_from(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Go on from the states of the networks' own optimizers, which have made equally many steps."""
        steps = 0
        for index, optimizer in enumerate(optimizers):
            for place, parameter in enumerate(_parameters_of(optimizer)):
                state = optimizer.state[parameter]
                steps = int(state.get("step", 0))
                for name, values in self._state.items():
                    values[place][index].copy_(state[name].view_as(values[place][index]))
        self._count += steps  # from 0

    def _state_names(self) -> tuple[str, ...]:
        optim = self._optim
        if optim.name in ("adam", "adamw"):
            return "exp_avg", "exp_avg_sq"
        momentum = ("momentum_buffer",) if optim.momentum else ()
        return momentum if optim.name == "sgd" else ("square_avg", *momentum)

    def _clip(self, gradients: Sequence[Tensor], clip_norm: float) -> None:
        norms = [torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))) for g in gradients]
        total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (clip_norm / (total + 1e-6)).clamp(max=1.0)  # as in torch.nn.utils.clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(_spread(factor, gradient))

    def _decay(self, index: int, gradient: Tensor, lr: Tensor) -> None:
        decay, value = self._decays[index], self._values[index]
        if decay is None:
            return
        if self._optim.name == "adamw":
            value.mul_(1 - lr * decay)
        else:
            gradient.addcmul_(value, decay)

    def _sgd(self, index: int, gradient: Tensor, lr: Tensor) -> None:
        momentum = self._optim.momentum
        if momentum:
            velocity = self._state["momentum_buffer"][index].mul_(momentum).add_(gradient)
            gradient = gradient.add_(velocity, alpha=momentum) if self._optim.nesterov else velocity
        self._values[index].addcmul_(gradient, lr, value=-1)

    def _bias_corrections(self) -> tuple[float | Tensor, float | Tensor]:
        """Of Adam's mean and of its scale, after the steps so far."""
        beta1, beta2 = self._optim.beta1, self._optim.beta2
        if beta1 is None or beta2 is None:
            return 1.0, 1.0
        mean, square = 1 - beta1**self._count, 1 - beta2**self._count
        return mean, square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)

    def _adam(
        self, index: int, gradient: Tensor, lr: Tensor, corrections: tuple[float | Tensor, float | Tensor]
    ) -> None:
        beta1, beta2, eps = self._optim.beta1, self._optim.beta2, self._optim.eps
        assert beta1 is not None
        assert beta2 is not None
        assert eps is not None
        mean = self._state["exp_avg"][index].lerp_(gradient, 1 - beta1)
        square = self._state["exp_avg_sq"][index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        of_mean, of_scale = corrections
        scale = square.sqrt().div_(of_scale).add_(eps)
        self._values[index].addcmul_(mean / scale, lr / of_mean, value=-1)

    def _rmsprop(self, index: int, gradient: Tensor, lr: Tensor) -> None:
        alpha, eps = self._optim.alpha, self._optim.eps
        assert alpha is not None
        assert eps is not None
        square = self._state["square_avg"][index].mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        gradient = gradient.div_(square.sqrt().add_(eps))
        if self._optim.momentum:
            gradient = self._state["momentum_buffer"][index].mul_(self._optim.momentum).add_(gradient)
        self._values[index].addcmul_(gradient, lr, value=-1)


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(K,) as (K, 1, ...), with as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
