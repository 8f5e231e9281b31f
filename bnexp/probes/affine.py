"""What the norms put out before and after their scales and shifts, and where those stand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.nn.layers import hooked, norm_layers, stochastic_layers
from bnexp.probes.base import Moment, Row
from bnexp.probes.common import Found, Periodic, wide

# parameter -> the value at which it does nothing; tau is the threshold of filter response norm
NEUTRAL = {"weight": 1.0, "bias": 0.0, "tau": -math.inf}
PIECE = 8192  # positions at once: float64 copies of whole maps take three times as long, for want of memory at hand


@dataclass(frozen=True)
class AffineProbe(Periodic):
    """The learned gamma and beta of each norm, and the moments of each channel before and after them.

    Moments are over the batch and all positions, in float64, whatever a norm takes its own statistics over: the
    channel means of a layer or group norm are not 0, and those of frozen statistics are not either. A norm that runs
    several times in one forward pass, as over time steps, has the channels of all its calls. Standard deviations are
    biased. Norms without parameters and statistics are left out.

    Quantities, per norm, the first two groups where it has the parameter:
        gamma_mean, gamma_std, gamma_min, gamma_max: of gamma, over channels.
        beta_mean, beta_std, beta_min, beta_max: of beta.
        norm_mean_error: largest |channel mean| of the normalized values, before gamma, beta, and what may stand behind
            them: noise, the threshold of filter response norm. Zero but for rounding where each channel is normalized
            by the batch.
        norm_std_error: largest |channel std / sqrt(var / (var + eps)) − 1| of the same, var that of the input: without
            what eps takes off. Zero but for rounding in batch norm.
        output_mean: root mean square over channels of the channel mean of the norm's output.
        output_std_error: root mean square over channels of the output's channel std − 1.
        Channels whose input is constant have no std and are in neither std error; nan where there is no other.

    Cost: at every=100, 1.0 % of an epoch of the 4-convolution CNN on 28×28 images, batch 128, one CPU
    thread, fp32; about twice that of a bf16 epoch, for probes stay in fp32.
    """

    def measure(self, moment: Moment) -> list[Row]:
        """One forward pass, in which each norm works twice: as it is, and as a copy without gamma and beta."""
        norms = norm_layers(moment.model)
        seen: list[list[_Call]] = [[] for _ in norms]
        # copies before any hook is there; theirs move no statistics and draw no numbers of the network
        hooks = [_watch(_without_affine(norm), calls) for (_, norm), calls in zip(norms, seen, strict=True)]
        handles = [norm.register_forward_hook(hook) for (_, norm), hook in zip(norms, hooks, strict=True)]
        with hooked(handles), torch.no_grad():
            moment.model(moment.x)
        found = Found(moment, "affine")
        for (layer, norm), calls in zip(norms, seen, strict=True):
            for name, key in (("gamma", "weight"), ("beta", "bias")):
                values = _first(norm, key)
                if values is not None:
                    found.add(layer, **_summary(name, values.detach()))
            if calls:
                found.add(layer, **_describe(calls))
        return found.rows()


def _first(norm: nn.Module, key: str) -> Tensor | None:
    """The parameter of this name; a norm over time steps holds it in each of them, shared."""
    return next((p for name, p in norm.named_parameters() if name.rpartition(".")[2] == key), None)


def _summary(name: str, values: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}_mean": values.mean(),
        f"{name}_std": values.std(correction=0),
        f"{name}_min": values.min(),
        f"{name}_max": values.max(),
    }


@torch.no_grad()
def _without_affine(norm: nn.Module) -> nn.Module:
    """A copy that normalizes alike, with statistics and draws of its own, and does nothing else."""
    # a user's norm may keep tensors of its last pass: part of a graph, they cannot be copied, nor need they be
    kept = [value for module in norm.modules() for value in (*vars(module).values(), *module.buffers(recurse=False))]
    memo: dict[int, Any] = {id(value): value for value in kept if isinstance(value, Tensor) and not value.is_leaf}
    plain = copy.deepcopy(norm, memo)
    for name, parameter in plain.named_parameters():
        key = name.rpartition(".")[2]
        if key in NEUTRAL:
            parameter.fill_(NEUTRAL[key])
    for _, noise in stochastic_layers(plain):
        noise.eval()
    return plain


@dataclass(frozen=True)
class _Call:
    """Of one call, per channel: the std that eps leaves, and the moments before and after gamma and beta."""

    varies: Tensor
    expected_std: Tensor
    plain: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]


def _watch(plain: nn.Module, calls: list[_Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    options = (getattr(module, "eps", None) for module in plain.modules())
    eps = next((value for value in options if isinstance(value, float)), 0.0)

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        mean, var = _moments(inputs[0])
        # equal numbers may leave a rounding error of a variance; what is not finite is no constant
        varies = ~(var <= (4 * torch.finfo(var.dtype).eps * mean).square())
        expected = (var / (var + eps)).sqrt()
        calls.append(_Call(varies, expected, _moments(plain(*inputs)), _moments(output)))

    return look


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, (C,) each, in float64 where the device has it."""
    # fp32 batch norm of channels-last maps, as in `input_moments`, is off by 2e-5 on a CPU
    values = x.movedim(1, -1).reshape(-1, x.shape[1])
    pieces = torch.split(values, PIECE)
    mean = torch.stack([wide(piece).sum(0) for piece in pieces]).sum(0) / len(values)
    squares = torch.stack([(wide(piece) - mean).square().sum(0) for piece in pieces]).sum(0)
    return mean, squares / len(values)


def _describe(calls: list[_Call]) -> dict[str, Tensor]:
    varies = torch.cat([call.varies for call in calls])
    expected = torch.cat([call.expected_std for call in calls])
    mean, var = (torch.cat(values) for values in zip(*(call.plain for call in calls), strict=True))
    output_mean, output_var = (torch.cat(values) for values in zip(*(call.output for call in calls), strict=True))
    error = torch.where(varies, (var.sqrt() / expected - 1).abs(), -1.0).amax()
    output_error = torch.where(varies, (output_var.sqrt() - 1).square(), 0.0).sum() / varies.sum()
    return {
        "norm_mean_error": mean.abs().amax(),
        "norm_std_error": torch.where(error < 0, math.nan, error),
        "output_mean": output_mean.square().mean().sqrt(),
        "output_std_error": output_error.sqrt(),
    }
