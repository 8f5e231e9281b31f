"""What goes into the activations and what comes out: moments, quantiles, dead channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnexp.nn.layers import activation_layers, hooked
from bnexp.probes.base import Moment, Row
from bnexp.probes.common import Found, Periodic

QUANTILES = {"q15": 0.15, "q50": 0.50, "q85": 0.85}
SAMPLE = 200_000  # torch.quantile sorts, and refuses more than 2^24 elements


@dataclass(frozen=True)
class ActivationProbe(Periodic):
    """The distribution of each activation's input and output over the batch.

    An activation that runs several times in one forward pass, as over time steps, is described over all its calls
    together. Standard deviations are the biased ones.

    Quantities, per activation:
        mean, std, q15, q50, q85: of the input, over all examples, channels and positions. Quantiles are those of
            every k-th element where there are more than some 200,000, with k prime to the number of elements.
        unit_q15, unit_q50, unit_q85: of the input, channel 0 alone.
        output_mean, output_std: of the output, over all examples, channels and positions.
        dead_fraction: channels whose output is one and the same number throughout, as a fraction of all; with ReLU
            those that are never positive.

    Source: Ioffe & Szegedy 2015, figure 1 b and c, show the three quantiles of one typical unit.

    Cost: at every=100, 1.5 % of an epoch of the 4-convolution CNN on 28×28 images, batch 128, one CPU
    thread, fp32; about twice that of a bf16 epoch, for probes stay in fp32.
    """

    def measure(self, moment: Moment) -> list[Row]:
        """One forward pass."""
        layers = activation_layers(moment.model)
        seen: list[list[_Call]] = [[] for _ in layers]
        handles = [layer.register_forward_hook(_watch(calls)) for (_, layer), calls in zip(layers, seen, strict=True)]
        with hooked(handles), torch.no_grad():
            moment.model(moment.x)
        found = Found(moment, "activations")
        for (name, _), calls in zip(layers, seen, strict=True):
            if calls:
                found.add(name, **_describe(calls))
        return found.rows()


@dataclass(frozen=True)
class _Call:
    """What is kept of one call, much smaller than the activations themselves."""

    count: int
    x_moments: tuple[Tensor, Tensor]
    y_moments: tuple[Tensor, Tensor]
    sample: Tensor
    unit_sample: Tensor
    lowest: Tensor
    highest: Tensor


def _watch(calls: list[_Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = inputs[0], output
        lowest, highest = y.transpose(0, 1).flatten(1).aminmax(dim=1)
        calls.append(
            _Call(
                count=x.numel(),
                x_moments=_moments(x),
                y_moments=_moments(y),
                sample=_thin(x),
                unit_sample=_thin(x[:, 0]),
                lowest=lowest,
                highest=highest,
            )
        )

    return look


def _describe(calls: list[_Call]) -> dict[str, Tensor]:
    counts = [call.count for call in calls]
    mean, std = _pool(counts, [call.x_moments for call in calls])
    output_mean, output_std = _pool(counts, [call.y_moments for call in calls])
    lowest = torch.stack([call.lowest for call in calls]).amin(0)
    highest = torch.stack([call.highest for call in calls]).amax(0)
    return {
        "mean": mean,
        "std": std,
        **_quantiles([call.sample for call in calls]),
        **{f"unit_{name}": value for name, value in _quantiles([call.unit_sample for call in calls]).items()},
        "output_mean": output_mean,
        "output_std": output_std,
        "dead_fraction": (lowest == highest).to(mean.dtype).mean(),
    }


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(), x.var(correction=0)  # torch.var_mean takes six times as long


def _pool(counts: list[int], moments: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the union of sets with these counts, means and variances."""
    shares = torch.tensor(counts, dtype=moments[0][0].dtype, device=moments[0][0].device) / sum(counts)
    means, variances = (torch.stack(values) for values in zip(*moments, strict=True))
    mean = shares @ means
    return mean, (shares @ (variances + (means - mean) ** 2)).sqrt()


def _quantiles(samples: list[Tensor]) -> dict[str, Tensor]:
    sample = _thin(torch.cat(samples))
    values = torch.quantile(sample, sample.new_tensor(list(QUANTILES.values())))
    return dict(zip(QUANTILES, values.unbind(), strict=True))


def _thin(x: Tensor) -> Tensor:
    """At most `SAMPLE` elements, evenly spread."""
    stride = math.ceil(x.numel() / SAMPLE)
    # a stride that shares a factor with a row, an image or the channels would always meet the same columns or channels
    while math.gcd(stride, x.numel()) > 1:
        stride += 1
    return x.flatten()[::stride]
