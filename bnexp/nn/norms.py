"""The norms: one frozen dataclass for each kind, whose fields are its options and which makes its layers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.norm_layers import (
    BatchRenormalization,
    FilterResponse,
    GhostBatchNorm,
    InstanceNorm2d,
    ShiftedGroupNorm,
    ShiftingNoise,
    keep_affine,
)
from bnexp.plugins import load_plugin, plugin_error, plugin_names, require_signature


class Norm(Protocol):
    """What a network needs of a norm: a layer for so many features.

    Ours may have more: `standardizes_weights`, the weights ahead of it are standardized (`StandardizedConv2d`), and
    `without_activation()`, the norm ends in an activation of its own, which takes the place of one that would follow it
    at once; elsewhere it stands without.
    """

    @property
    def replaces_bias(self) -> bool:
        """Whether a weight right before this norm goes without a bias.

        Batch norm in all its forms and instance norm subtract a mean per channel, which cancels a bias exactly, affine
        or not, unless that mean is frozen. Group and layer norm subtract one mean for several channels: only the part
        of a bias that those share is cancelled, and beta stands in for the rest, so they replace a bias only where they
        have a beta.
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

    `momentum` is the weight of the new statistic; None averages over all batches. `freeze_at` is an epoch: at its start
    the statistics of the whole training set are measured, dropout and noise on, and from then on training normalizes
    with them, unchanged; at 0 they are those of the untrained network. It is carried out by the training loop.
    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: str = "both"
    freeze_at: int | None = None

    @property
    def replaces_bias(self) -> bool:
        return self.freeze_at is None or _has_shift(self.affine)

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        kind = nn.BatchNorm2d if ndim == 4 else nn.BatchNorm1d
        return keep_affine(kind(num_features, eps=self.eps, momentum=self.momentum), self.affine)


@dataclass(frozen=True)
class GroupNorm:
    """Statistics over the positions and the channels of a group, one example at a time. Source: Wu & He 2018."""

    eps: float = 1e-5
    affine: str = "both"
    num_groups: int = 8

    @property
    def replaces_bias(self) -> bool:
        return _has_shift(self.affine)

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        if num_features % self.num_groups:
            hint = f"does not divide the {num_features} channels of a layer"
            raise ConfigError("norm.num_groups", got=self.num_groups, hint=hint)
        if ndim == 2 and num_features == self.num_groups:
            hint = f"leaves one value a group in a layer of {num_features} units, and one value normalizes to 0"
            raise ConfigError("norm.num_groups", got=self.num_groups, hint=hint)
        kind = ShiftedGroupNorm if self.affine == "shift" else nn.GroupNorm
        return keep_affine(kind(self.num_groups, num_features, eps=self.eps), self.affine)


@dataclass(frozen=True)
class GroupNormWithStandardizedWeights(GroupNorm):
    """Group norm in a network whose convolutions and hidden linear layers are `StandardizedConv2d` and its like.

    Source: Qiao et al. 2019, "Micro-batch training with batch-channel normalization and weight standardization".
    """

    standardizes_weights = True


@dataclass(frozen=True)
class LayerNorm:
    """Statistics over all channels and positions of one example; gamma and beta per channel.

    On (N, C) it is torch's LayerNorm; on (N, C, H, W) it is group norm with one group, which unlike torch's
    LayerNorm((C, H, W)) has no parameters per position and so takes any image size.
    Source: Ba, Kiros & Hinton 2016; for convolutions as in Wu & He 2018, section 3.1.
    """

    eps: float = 1e-5
    affine: str = "both"

    @property
    def replaces_bias(self) -> bool:
        return _has_shift(self.affine)

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        if ndim == 4 or self.affine == "shift":
            return GroupNorm(self.eps, self.affine, num_groups=1).make(num_features, ndim=4)
        # on (N, C) it is the same, and takes a third of the time
        return keep_affine(nn.LayerNorm(num_features, self.eps), self.affine)


@dataclass(frozen=True)
class InstanceNorm:
    """Statistics over the positions of one channel of one example; none are kept. Source: Ulyanov et al. 2016."""

    eps: float = 1e-5
    affine: str = "both"

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        _require_positions("instance", ndim)
        return keep_affine(InstanceNorm2d(num_features, eps=self.eps, affine=True), self.affine)


def _has_shift(affine: str) -> bool:
    return affine in ("both", "shift")


def _require_positions(kind: str, ndim: int) -> None:
    if ndim == 2:
        hint = "has one value per statistic in a fully connected layer; use norm=layer, group or batch there"
        raise ConfigError("norm.kind", got=kind, hint=hint)


@dataclass(frozen=True)
class FilterResponseNorm:
    """`FilterResponse`: over the positions of one channel of one example, without a mean.

    With `threshold` (the default) the paper's thresholded linear unit takes the place of an activation that would
    follow it at once; where none would, as on the network's input or at the end of a residual branch, it has none.
    """

    eps: float = 1e-6
    threshold: bool = True

    replaces_bias = False  # no mean is subtracted, and beta stands behind a division

    def without_activation(self) -> FilterResponseNorm:
        """The same norm, and nothing behind it."""
        return replace(self, threshold=False)

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        _require_positions("filter_response", ndim)
        return FilterResponse(num_features, eps=self.eps, threshold=self.threshold)


@dataclass(frozen=True)
class GhostNorm:
    """Batch norm whose statistics come from `ghost_size` examples at a time. See `GhostBatchNorm`."""

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: str = "both"
    ghost_size: int = 16

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        layer = GhostBatchNorm(num_features, self.ghost_size, eps=self.eps, momentum=self.momentum)
        return keep_affine(layer, self.affine)


@dataclass(frozen=True)
class BatchRenorm:
    """Batch norm corrected towards its running statistics, in training too. See `BatchRenormalization`."""

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: str = "both"
    r_max: float = 3.0
    d_max: float = 5.0
    ramp_steps: int = 1000

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        layer = BatchRenormalization(
            num_features, eps=self.eps, momentum=self.momentum, r_max=self.r_max, d_max=self.d_max,
            ramp_steps=self.ramp_steps,
        )  # fmt: skip
        return keep_affine(layer, self.affine)


@dataclass(frozen=True)
class NoisyBatchNorm:
    """Batch norm whose output is shifted and scaled at random in training, by other distributions at each step.

    See `ShiftingNoise`.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: str = "both"
    noise_shift: float = 0.5
    noise_scale: float = 1.25
    noise_jitter: float = 0.1

    replaces_bias = True

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        batch = BatchNorm(self.eps, self.momentum, self.affine).make(num_features, ndim=ndim)
        return nn.Sequential(batch, ShiftingNoise(self.noise_shift, self.noise_scale, self.noise_jitter))


NORMS: dict[str, type[Any]] = {
    "none": NoNorm,
    "batch": BatchNorm,
    "group": GroupNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "ghost": GhostNorm,
    "batch_renorm": BatchRenorm,
    "noisy_batch": NoisyBatchNorm,
    "group_ws": GroupNormWithStandardizedWeights,
    "filter_response": FilterResponseNorm,
}


def norm_options(kind: str) -> tuple[str, ...]:
    """The option names of a kind."""
    return tuple(field.name for field in fields(NORMS[kind]))


def make_norm_factory(kind: str, **options: Any) -> Norm:
    """The norm of this kind with these options, ours or that of a user's package.

    Raises:
        ConfigError: there is no such kind, or the package's cannot be used.
    """
    if kind in NORMS:
        norm: Norm = NORMS[kind](**options)
        return norm
    if kind not in plugin_names("norm"):
        raise ConfigError("norm.kind", got=kind, choices=sorted((*NORMS, *plugin_names("norm"))))
    made = load_plugin("norm", kind)
    require_signature("norm", kind, made, f"the options {', '.join(options) or 'none'}", **options)
    return UserNorm(kind, made(**options))


@dataclass(frozen=True)
class UserNorm:
    """A norm from a user's package, held to what networks rely on.

    `replaces_bias` is the package's own, or False: a bias too many changes no result, one too few might.
    """

    kind: str
    made: Any

    @property
    def replaces_bias(self) -> bool:
        return bool(getattr(self.made, "replaces_bias", False))

    def make(self, num_features: int, *, ndim: int) -> nn.Module:
        make = getattr(self.made, "make", None)
        if not callable(make):
            raise plugin_error("norm", self.kind, "has no method make(num_features, *, ndim)")
        require_signature("norm", self.kind, make, "make(num_features, *, ndim)", num_features, ndim=ndim)
        layer = make(num_features, ndim=ndim)
        if not isinstance(layer, nn.Module):
            raise plugin_error("norm", self.kind, f"made a {type(layer).__name__}, not a torch.nn.Module")
        layer.register_forward_hook(self._check_shape)
        return layer

    def _check_shape(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or output.shape != inputs[0].shape:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise plugin_error("norm", self.kind, f"returned {shape} for an input of {tuple(inputs[0].shape)}")
