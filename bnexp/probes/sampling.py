"""How far the statistics of one batch, or ghost batch, are from those of the whole training set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnexp.nn.layers import hooked, layer_name, running_norms
from bnexp.nn.statistics import kept_statistics, measure_statistics
from bnexp.probes.base import Ending, Row
from bnexp.probes.evaluation import train_inputs

MOST_IMAGES = 2048  # enough for a mean over groups, and a small part of an epoch on larger data
QUANTITIES = ("batch_mean_error", "batch_std_error")
Errors = tuple[Tensor, Tensor]  # squared, (group, channel): of the means, and of the standard deviations


@dataclass(frozen=True)
class SamplingProbe:
    """The error of a batch's statistics as estimates of those of the training set, in the trained network, in fp32.

    A group is what a norm takes its statistics over in training: `ghost_size` examples of a ghost norm, a whole batch
    of any other norm with running statistics. Groups are drawn from the training images, without augmentation, in a
    fixed random order; as many whole batches as 2,048 images hold, one at least. The statistics of the training set are
    the precise ones of the probe `statistics`. Every layer is looked at with those in all layers before it, so that its
    error is that of its own sample and not what earlier layers hand on. All variances are biased and get the norm's
    eps first.

    Quantities, per layer with running statistics:
        batch_mean_error: root mean square, over groups and channels, of (group mean − mean) / std.
        batch_std_error: root mean square, over groups and channels, of group std / std − 1.

    Cost: that of the precise statistics, half a forward pass over the training set for each norm, and a forward pass
    over the groups.
    """

    def measure(self, ending: Ending) -> list[Row]:
        """Two rows for each layer; none without running statistics, or where no whole batch can be drawn."""
        norms = running_norms(ending.model)
        seen: dict[str, list[Errors]] = {layer_name(name): [] for name, _ in norms}
        if norms:
            with kept_statistics(ending.model), torch.no_grad():
                measure_statistics(ending.model, lambda: train_inputs(ending))
                ending.model.eval()
                hooks = [_compare(norm, ending.batch_size, seen[layer_name(name)]) for name, norm in norms]
                pairs = zip(norms, hooks, strict=True)
                with hooked([norm.register_forward_pre_hook(hook) for (_, norm), hook in pairs]):
                    for batch in _batches(ending):
                        ending.model(ending.normalize(ending.train_x[batch]))
        rows = []
        for layer, groups in seen.items():
            for index, quantity in enumerate(QUANTITIES if groups else ()):
                value = torch.cat([squares[index].flatten() for squares in groups]).mean().sqrt().item()
                rows.append(ending.row("sampling", quantity, value, layer=layer))
        return rows


def _batches(ending: Ending) -> Iterator[Tensor]:
    """Indices of whole batches of training images, the same at every call."""
    num, size = len(ending.train_y), ending.batch_size
    generator = torch.Generator().manual_seed(ending.seed_of("sampling", "order"))
    order = torch.randperm(num, generator=generator).to(ending.train_y.device)
    for index in range(min(num // size, max(1, MOST_IMAGES // size))):
        yield order[index * size : (index + 1) * size]


def _compare(norm: nn.Module, batch_size: int, seen: list[Errors]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    group_size = int(getattr(norm, "ghost_size", batch_size))
    eps = float(getattr(norm, "eps", 0.0))

    def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        values = x.reshape(len(x) // group_size, group_size, x.shape[1], -1)  # group, example, channel, position
        mean, std = norm.get_buffer("running_mean"), (norm.get_buffer("running_var") + eps).sqrt()
        var, group_mean = torch.var_mean(values, dim=(1, 3), correction=0)
        seen.append((((group_mean - mean) / std).square(), ((var + eps).sqrt() / std - 1).square()))

    return compare
