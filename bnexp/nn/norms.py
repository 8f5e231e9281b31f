"""The norm layers: one frozen dataclass for each kind, whose fields are its options.

Shapes: x is (N, C, H, W) where `ndim` is 4 and (N, C) where it is 2. Statistics are fp32 under autocast too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.errors import ConfigError


class Norm(Protocol):
    """What a network needs of a norm: a layer for so many features."""

    @property
    def replaces_bias(self) -> bool:
        """Whether a weight right before this norm goes without a bias.

        Batch, ghost and instance norm subtract a mean per channel, which cancels a bias exactly, affine or not. Group
        and layer norm subtract one mean for several channels: only the part of a bias that those share is cancelled,
        and beta stands in for the rest, so they replace a bias only when affine.
        """
        ...

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        """A layer for (N, num_features, H, W) where `ndim` is 4, for (N, num_features) where it is 2."""
        ...


@dataclass(frozen=True)
class NoNorm:
    """No norm layer: the identity."""

    replaces_bias = False

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class BatchNorm:
    """Statistics over the batch and all positions of a channel; running ones for evaluation.

    `momentum` is the weight of the new statistic; None averages over all batches.
    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        kind = nn.BatchNorm2d if ndim == 4 else nn.BatchNorm1d
        return kind(num_features, eps=self.eps, momentum=self.momentum, affine=self.affine)


@dataclass(frozen=True)
class GroupNorm:
    """Statistics over the positions and the channels of a group, one example at a time. Source: Wu & He 2018."""

    eps: float = 1e-5
    affine: bool = True
    num_groups: int = 8

    @property
    def replaces_bias(self) -> bool:
        return self.affine

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        if num_features % self.num_groups:
            hint = f"does not divide the {num_features} channels of a layer"
            raise ConfigError("norm.num_groups", got=self.num_groups, hint=hint)
        if ndim == 2 and num_features == self.num_groups:
            hint = f"leaves one value a group in a layer of {num_features} units, and one value normalizes to 0"
            raise ConfigError("norm.num_groups", got=self.num_groups, hint=hint)
        return nn.GroupNorm(self.num_groups, num_features, eps=self.eps, affine=self.affine)


@dataclass(frozen=True)
class LayerNorm:
    """Statistics over all channels and positions of one example; gamma and beta per channel.

    On (N, C) it is torch's LayerNorm; on (N, C, H, W) it is group norm with one group, which unlike torch's
    LayerNorm((C, H, W)) has no parameters per position and so takes any image size.
    Source: Ba, Kiros & Hinton 2016; for convolutions as in Wu & He 2018, section 3.1.
    """

    eps: float = 1e-5
    affine: bool = True

    @property
    def replaces_bias(self) -> bool:
        return self.affine

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        return nn.GroupNorm(1, num_features, eps=self.eps, affine=self.affine)


@dataclass(frozen=True)
class InstanceNorm:
    """Statistics over the positions of one channel of one example; none are kept. Source: Ulyanov et al. 2016."""

    eps: float = 1e-5
    affine: bool = True

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        if ndim == 2:
            hint = "has one value per statistic in a fully connected layer; use norm=layer, group or batch there"
            raise ConfigError("norm.kind", got="instance", hint=hint)
        return _InstanceNorm2d(num_features, eps=self.eps, affine=self.affine)


class _InstanceNorm2d(nn.InstanceNorm2d):
    """torch's own, but that a map of one pixel is the user's mistake and names its key."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] * input.shape[3] == 1:
            hint = "has one value per statistic where a map is 1×1; use larger images, or norm=layer, group or batch"
            raise ConfigError("norm.kind", got="instance", hint=hint)
        return super().forward(input)


@dataclass(frozen=True)
class GhostNorm:
    """Batch norm whose statistics come from `ghost_size` examples at a time. See `GhostBatchNorm`."""

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    ghost_size: int = 16

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        return GhostBatchNorm(num_features, self.ghost_size, eps=self.eps, momentum=self.momentum, affine=self.affine)


class GhostBatchNorm(nn.Module):
    """Normalize every ghost batch by its own biased statistics; in evaluation, all by the running ones.

    The running statistics move once a step, towards the means over the ghosts of their means and unbiased variances:
    what evaluation then sees is the variance *within* a ghost batch, as training did.

    Args:
        num_features: C of the (N, C, H, W) or (N, C) input; in training N must be a multiple of `ghost_size`.
        ghost_size: examples per ghost batch.
        eps: added to the variance, in squared units of the input.
        momentum: weight of the new statistic; None averages over all steps.

    Raises:
        ConfigError: in training, N is not a multiple of `ghost_size`.
        ValueError: in training, a ghost batch has one value per channel.

    Source: Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", algorithm 1.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.ghost_size, self.eps, self.momentum = ghost_size, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        num, channels, *positions = x.shape
        if num % self.ghost_size:
            hint = f"does not divide a batch of {num}"
            raise ConfigError("norm.ghost_size", got=self.ghost_size, hint=hint)
        ghosts = num // self.ghost_size
        # every ghost's channels side by side: one batch_norm call then has a statistic for each
        folded = x.reshape(ghosts, self.ghost_size, channels, *positions).transpose(0, 1)
        folded = folded.reshape(self.ghost_size, ghosts * channels, *positions)
        mean, var = self.running_mean.new_zeros(2, ghosts * channels)
        out = F.batch_norm(
            folded,
            mean,  # with momentum 1 these buffers receive exactly this batch's mean and unbiased variance
            var,
            None if self.weight is None else self.weight.repeat(ghosts),
            None if self.bias is None else self.bias.repeat(ghosts),
            training=True,
            momentum=1.0,
            eps=self.eps,
        )
        self._update(mean.view(ghosts, channels).mean(0), var.view(ghosts, channels).mean(0))
        return out.reshape(self.ghost_size, ghosts, channels, *positions).transpose(0, 1).reshape(x.shape)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked += 1
        weight = 1.0 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (var - self.running_var)


NORMS: dict[str, type[Any]] = {
    "none": NoNorm,
    "batch": BatchNorm,
    "group": GroupNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "ghost": GhostNorm,
}


def norm_options(kind: str) -> tuple[str, ...]:
    """The option names of a kind."""
    return tuple(field.name for field in fields(NORMS[kind]))


def make_norm_factory(kind: str, **options: Any) -> Norm:
    """The norm of this kind with these options.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in NORMS:
        raise ConfigError("norm.kind", got=kind, choices=sorted(NORMS))
    norm: Norm = NORMS[kind](**options)
    return norm
