"""LSTM and GRU classifiers that read an image as a sequence, with a norm on their recurrent transforms.

Shapes: x_tnc is (T steps, N examples, C features of a step); h and c are (N, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.layers import Stochastic
from bnexp.nn.norms import NoNorm
from bnexp.nn.unit import Unit, UnitFactory

SEQUENCES = ("rows", "pixels")
STEP_STATISTICS = ("per_step", "shared")
PERMUTATION_SEED = 20160330  # one permutation for every network and run: arms must read the same task
WITHOUT_SHIFT = {"both": "scale", "shift": "none"}


class StepNorm(nn.Module):
    """One norm for each time step: gamma, beta and any other parameter are shared, running statistics are not.

    A norm without buffers does the same at every step, and is made once. Parameters are trained and counted once, as
    the first step's, `steps.0.weight`, however many steps there are; a state_dict names them at every step.

    Args:
        make: gives a fresh norm.
        num_steps: how many steps have statistics of their own; with 1, all steps move the same running statistics.

    Source: Cooijmans et al. 2016, "Recurrent batch normalization".
    """

    def __init__(self, make: Callable[[], nn.Module], num_steps: int) -> None:
        super().__init__()
        first = make()
        others = range(1, num_steps) if any(True for _ in first.buffers()) else ()
        self.steps = nn.ModuleList([first, *(_share_parameters(first, make()) for _ in others)])

    def forward(self, x: Tensor, step: int) -> Tensor:
        """(N, C) of step `step`, from 0; a step past the last one uses the last one's statistics."""
        out: Tensor = self.steps[min(step, len(self.steps) - 1)](x)
        return out


def _share_parameters(first: nn.Module, other: nn.Module) -> nn.Module:
    for source, target in zip(first.modules(), other.modules(), strict=True):
        for name, parameter in source.named_parameters(recurse=False):
            target.register_parameter(name, parameter)
    return other


def _take_norm(units: UnitFactory, num_features: int, *, scale_only: bool, num_steps: int, shared: bool) -> StepNorm:
    """The norm of (N, num_features) at each step.

    Args:
        scale_only: leave beta out, as a bias follows that does its work; a norm without `affine` is taken as it is.
        num_steps: that training reads.
    """
    norm: Any = units.next_norm()
    affine, momentum = getattr(norm, "affine", None), getattr(norm, "momentum", None)
    if scale_only and affine in WITHOUT_SHIFT:
        norm = replace(norm, affine=WITHOUT_SHIFT[affine])
    if shared and momentum is not None:
        # one pass over all steps then weighs the old statistics as one batch of one step does, and its steps alike
        norm = replace(norm, momentum=1 - (1 - momentum) ** (1 / num_steps))
    return StepNorm(partial(norm.make, num_features, ndim=2), 1 if shared else num_steps)


class InitialNoise(Stochastic):
    """Gaussian noise on the first state, in training alone.

    Where the first inputs are the same for all examples, as blank rows and pixels are, states do not vary, and batch
    norm would divide by sqrt(eps) step after step: gradients explode.

    Source: Cooijmans et al. 2016, section 5.1.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, state: Tensor) -> Tensor:
        """(N, width) plus noise of this standard deviation."""
        if not self.training or self.std == 0:
            return state
        noise = torch.randn(state.shape, generator=self.own_generator(state.device), device=state.device)
        return state + self.std * noise.to(state.dtype)


class TakeNorm(Protocol):
    """Gives a norm for so many features."""

    def __call__(self, num_features: int, *, scale_only: bool) -> StepNorm: ...


class Transform(nn.Module):
    """A weight without bias and the norm of its output."""

    def __init__(self, in_features: int, out_features: int, take_norm: TakeNorm) -> None:
        super().__init__()
        self.weight = nn.Linear(in_features, out_features, bias=False)
        self.norm = take_norm(out_features, scale_only=True)

    def forward(self, x: Tensor, step: int) -> Tensor:
        out: Tensor = self.norm(self.weight(x), step)
        return out


class CellOutput(nn.Module):
    """The norm of an LSTM's cell state and tanh."""

    def __init__(self, width: int, take_norm: TakeNorm) -> None:
        super().__init__()
        self.norm = take_norm(width, scale_only=False)
        self.act = nn.Tanh()

    def forward(self, c: Tensor, step: int) -> Tensor:
        out: Tensor = self.act(self.norm(c, step))
        return out


class RecurrentLayer(nn.Module):
    """What LSTM and GRU have in common: the transforms of input and hidden state, all gates side by side, and a bias.

    Args:
        in_features: C of the input.
        width: hidden units.
        initial_noise: standard deviation of `InitialNoise`.
    """

    num_gates: int

    def __init__(self, in_features: int, width: int, take_norm: TakeNorm, initial_noise: float) -> None:
        super().__init__()
        self.width = width
        self.start = InitialNoise(initial_noise)
        self.input = Transform(in_features, self.num_gates * width, take_norm)
        self.hidden = Transform(width, self.num_gates * width, take_norm)
        self.bias = nn.Parameter(torch.zeros(self.num_gates * width))

    def forward(self, x_tnc: Tensor) -> list[Tensor]:
        """The hidden state after each step, from zeros or, in training, noise around them."""
        num_steps, num, _ = x_tnc.shape
        # one product for all steps; unbind, as indexing each step would cost a zero-filled whole in the backward pass
        inputs = self.input.weight(x_tnc.flatten(0, 1)).view(num_steps, num, -1).unbind(0)
        return self.run(inputs, self.start(x_tnc.new_zeros(num, self.width)))

    def run(self, inputs: tuple[Tensor, ...], h: Tensor) -> list[Tensor]:
        """The loop over steps.

        Args:
            inputs: W_x x of each step, (N, num_gates · width), not yet normalized.
            h: the first hidden state, (N, width).
        """
        raise NotImplementedError


class LstmLayer(RecurrentLayer):
    """Gates (i, f, g, o) = norm(W_h h) + norm(W_x x) + b; c = σ(f) c + σ(i) tanh(g); h = σ(o) tanh(norm(c)).

    The order of the gates is torch's; its two biases are one here. A norm that spans channels, as layer norm does,
    spans all four gates, as in Ba, Kiros & Hinton 2016.

    Source: Cooijmans et al. 2016, "Recurrent batch normalization", equations 6 to 8.
    """

    num_gates = 4

    def __init__(self, in_features: int, width: int, take_norm: TakeNorm, initial_noise: float) -> None:
        super().__init__(in_features, width, take_norm, initial_noise)
        self.cell = CellOutput(width, take_norm)

    def run(self, inputs: tuple[Tensor, ...], h: Tensor) -> list[Tensor]:
        c = self.start(torch.zeros_like(h))
        states = []
        for step, x in enumerate(inputs):
            gates = self.hidden(h, step) + self.input.norm(x, step) + self.bias
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.cell(c, step)
            states.append(h)
        return states


class GruLayer(RecurrentLayer):
    """With a = norm(W_x x) + b and u = norm(W_h h), each of gates (r, z, n): r = σ(a_r + u_r), z = σ(a_z + u_z),
    n = tanh(a_n + r (u_n + b_h)), h = (1 − z) n + z h.

    Order and form are torch's; its two biases of r and of z are one here. The hidden state is a mean of bounded values,
    so no norm stands on it as it does on the LSTM's cell state.

    Source: Cho et al. 2014 with the reset after the product; the norms as in `LstmLayer`.
    """

    num_gates = 3

    def __init__(self, in_features: int, width: int, take_norm: TakeNorm, initial_noise: float) -> None:
        super().__init__(in_features, width, take_norm, initial_noise)
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.cell = Unit(("act",), act=nn.Tanh())

    def run(self, inputs: tuple[Tensor, ...], h: Tensor) -> list[Tensor]:
        states = []
        sizes = [2 * self.width, self.width]
        for step, x in enumerate(inputs):
            a_rz, a_n = (self.input.norm(x, step) + self.bias).split(sizes, 1)
            u_rz, u_n = self.hidden(h, step).split(sizes, 1)
            r, z = (a_rz + u_rz).sigmoid().chunk(2, 1)
            n = self.cell(a_n + r * (u_n + self.hidden_bias))
            h = n + z * (h - n)
            states.append(h)
        return states


class Recurrent(nn.Module):
    """Stacked recurrent layers over an image's rows or pixels, and a linear layer on the last hidden state.

    Per step or shared, training normalizes each step by its own batch. Per step, each also has running statistics of
    its own. Shared, all steps move the same ones in turn, all with nearly the same weight, and evaluation uses those at
    every step: how far a step's own statistics are from them is what training does not see.

    Args:
        depth: layers.
        width: hidden units of each.
        units: of activation tanh, and with its norm, if any, placed before the activation.
        sequence: rows, H steps of C·W values; pixels, H·W steps of C values.
        permute: read the steps in a random order, the same for every network and run.
        step_statistics: per_step or shared.
        gamma_init: the first value of gamma, of every norm but that of the input.
        initial_noise: standard deviation of the noise on the first state, in training.
        train_steps: how many steps training reads, from the first of the (permuted) sequence; None, all. Evaluation
            reads all, and past the last trained step it uses that one's statistics.

    Raises:
        ConfigError: an unknown sequence or step_statistics, train_steps that the sequence does not have, another
            activation than tanh, a norm after the activation, one that (N, C) inputs cannot have, or group_ws.

    Source: Cooijmans et al. 2016, also for gamma_init, initial_noise, train_steps and pixels in a random order. Their
    identity start of the recurrent weights is not here: initial values are those of `model.init`, for all gates of a
    transform as one matrix.
    """

    layer_class: type[RecurrentLayer]
    permutation: Tensor | None

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        depth: int,
        width: int,
        units: UnitFactory,
        sequence: str = "rows",
        permute: bool = False,
        step_statistics: str = "per_step",
        gamma_init: float = 0.1,
        initial_noise: float = 0.1,
        train_steps: int | None = None,
    ) -> None:
        super().__init__()
        _check_units(units)
        if sequence not in SEQUENCES:
            raise ConfigError("model.sequence", got=sequence, choices=SEQUENCES)
        if step_statistics not in STEP_STATISTICS:
            raise ConfigError("model.step_statistics", got=step_statistics, choices=STEP_STATISTICS)
        num_steps = image_size if sequence == "rows" else image_size**2
        if train_steps is not None and not 1 <= train_steps <= num_steps:
            raise ConfigError("model.train_steps", got=train_steps, hint=f"this sequence has 1 to {num_steps} steps")
        self.sequence, self.train_steps = sequence, train_steps
        # drawn on the CPU whatever the default device, which may be meta and draw nothing
        order = torch.randperm(num_steps, generator=torch.Generator("cpu").manual_seed(PERMUTATION_SEED), device="cpu")
        permutation = order.to(torch.get_default_device()) if permute else None
        self.register_buffer("permutation", permutation, persistent=False)

        shared = step_statistics == "shared"
        take_norm = partial(_take_norm, units, num_steps=train_steps or num_steps, shared=shared)
        features = in_channels * image_size if sequence == "rows" else in_channels
        sizes = [features, *[width] * depth]
        self.input_norm = units.input_norm(in_channels)
        self.layers = nn.ModuleList(self.layer_class(sizes[i], width, take_norm, initial_noise) for i in range(depth))
        self.drop = units.head_dropout()
        self.head = nn.Linear(width, num_classes)
        for norm in (module for module in self.layers.modules() if isinstance(module, StepNorm)):
            _fill_gamma(norm, gamma_init)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x_tnc = self._steps(self.input_norm(x))
        states: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            states = layer(torch.stack(states) if index else x_tnc)
        logits: Tensor = self.head(self.drop(states[-1]))
        return logits

    def _steps(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (T, N, features), in reading order; in training only the first `train_steps`."""
        x = x if self.sequence == "rows" else x.flatten(2).unsqueeze(3)  # pixels are rows of one pixel
        x_tnc = x.permute(2, 0, 1, 3).flatten(2)
        x_tnc = x_tnc if self.permutation is None else x_tnc[self.permutation]
        return x_tnc[: self.train_steps] if self.training else x_tnc


class Lstm(Recurrent):
    """See `Recurrent` and `LstmLayer`."""

    layer_class = LstmLayer

    @torch.no_grad()
    def finish_init(self) -> None:
        """Set the forget gate's bias to 1; the others stay. Source: Jozefowicz, Zaremba & Sutskever 2015."""
        for layer in self.layers:
            assert isinstance(layer, LstmLayer)
            layer.bias[layer.width : 2 * layer.width] = 1.0


class Gru(Recurrent):
    """See `Recurrent` and `GruLayer`."""

    layer_class = GruLayer


def _check_units(units: UnitFactory) -> None:
    if units.activation != "tanh":
        hint = "the gates of lstm and gru are fixed; use model.activation=tanh"
        raise ConfigError("model.activation", got=units.activation, hint=hint)
    if units.placement != "before" and not isinstance(units.norm, NoNorm):
        hint = "lstm and gru normalize ahead of their gates; use norm.placement=before"
        raise ConfigError("norm.placement", got=units.placement, hint=hint)
    if units.dropout and units.dropout_placement != "head":
        hint = "lstm and gru drop values once, before the last layer; use model.dropout_placement=head"
        raise ConfigError("model.dropout_placement", got=units.dropout_placement, hint=hint)
    if getattr(units.norm, "standardizes_weights", False):
        hint = "lstm and gru do not standardize their weights; use norm=group"
        raise ConfigError("norm.kind", got="group_ws", hint=hint)


@torch.no_grad()
def _fill_gamma(norm: StepNorm, value: float) -> None:
    for name, parameter in norm.named_parameters():
        if name.rpartition(".")[2] == "weight":
            parameter.fill_(value)
