"""The layers behind the norms that torch does not have, or not quite: what `norms` makes.

Shapes: x is (N, C, H, W), or (N, C) after a fully connected layer. Statistics are fp32 under autocast too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.errors import ConfigError
from bnexp.nn.layers import Stochastic

AFFINES = ("both", "scale", "shift", "none")


def keep_affine(layer: nn.Module, affine: str) -> nn.Module:
    """The layer with gamma (`weight`) and beta (`bias`), or what `affine` leaves of them: both, scale, shift, none.

    Raises:
        ConfigError: `affine` is none of these.
    """
    if affine not in AFFINES:
        raise ConfigError("norm.affine", got=affine, choices=AFFINES)
    if affine in ("shift", "none"):
        layer.register_parameter("weight", None)
    if affine in ("scale", "none"):
        layer.register_parameter("bias", None)
    return layer


class RunningStatistics(nn.Module):
    """gamma, beta and the running mean and variance per channel, for norms that torch does not have.

    Args:
        num_features: C of the (N, C, H, W) or (N, C) input.
        eps: added to the variance, in squared units of the input.
        momentum: weight of the new statistic; None averages over all steps.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, eps: float, momentum: float | None) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def by_running(self, x: Tensor) -> Tensor:
        """Normalized by the running statistics."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards these."""
        self.num_batches_tracked += 1
        weight = 1.0 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (var - self.running_var)


class GhostBatchNorm(RunningStatistics):
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

    def __init__(self, num_features: int, ghost_size: int, *, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.by_running(x)
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
        self.update(mean.view(ghosts, channels).mean(0), var.view(ghosts, channels).mean(0))
        out = out.reshape(self.ghost_size, ghosts, channels, *positions).transpose(0, 1).reshape(x.shape)
        return _in_format_of(x, out)


class BatchRenormalization(RunningStatistics):
    """y = gamma · ((x − mean_B) / sd_B · r + d) + beta; r and d, held constant in the backward pass, lead to the
    running statistics: r = sd_B / sd, clipped to [1/r_max, r_max], and d = (mean_B − mean) / sd, to [−d_max, d_max].

    The bounds grow linearly from r_max = 1 and d_max = 0, plain batch norm, over the first `ramp_steps` updates, in a
    norm shared over time steps over so many steps. The standard deviations are sqrt(biased batch variance + eps) and,
    kept as `running_var` = sd² − eps, the running average of the former: of standard deviations, not of variances.

    Raises:
        ValueError: in training, a batch with one value per channel.

    Source: Ioffe 2017, "Batch renormalization", algorithm 1; the paper starts its ramp after 5,000 steps.
    """

    def __init__(
        self, num_features: int, *, eps: float, momentum: float | None, r_max: float, d_max: float, ramp_steps: int
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.r_max, self.d_max, self.ramp_steps = r_max, d_max, ramp_steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.by_running(x)
        if x.numel() // x.shape[1] < 2:
            raise ValueError(f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        axes = [axis for axis in range(x.ndim) if axis != 1]
        with torch.no_grad():
            values = x.detach() if x.dtype == torch.float64 else x.detach().float()
            var, mean = torch.var_mean(values, axes, correction=0)
            sd, running_sd = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
            grown = (self.num_batches_tracked.to(sd.dtype) / self.ramp_steps).clamp(max=1.0)
            r_max, d_max = 1 + (self.r_max - 1) * grown, self.d_max * grown
            r = torch.minimum(torch.maximum(sd / running_sd, 1 / r_max), r_max)
            d = torch.minimum(torch.maximum((mean - self.running_mean) / running_sd, -d_max), d_max)
        # gamma (x_hat r + d) + beta is one batch_norm with gamma r for gamma and beta + gamma d for beta
        weight = r if self.weight is None else self.weight * r
        bias = d if self.weight is None else self.weight * d
        bias = bias if self.bias is None else bias + self.bias
        out = F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        self.update(mean, sd)
        return out

    @torch.no_grad()
    def update(self, mean: Tensor, sd: Tensor) -> None:
        """Move the running mean and standard deviation towards these."""
        running_sd = (self.running_var + self.eps).sqrt()
        self.running_var.copy_(running_sd)
        super().update(mean, sd)
        self.running_var.square_().sub_(self.eps).clamp_(min=0.0)


class ShiftingNoise(Stochastic):
    """In training x·s + m, with s and m per example and channel from distributions that are drawn anew each step.

    Each step draws for each channel a centre mu ~ U(−shift, shift) and a scale sigma ~ U(1, scale), and then for each
    example m ~ U(mu − jitter, mu + jitter) and s ~ N(sigma, jitter). All positions of a map share m and s. It does
    nothing in evaluation.

    Args:
        shift, jitter: in units of the input, which is batch norm's output.
        scale: at least 1.

    Source: Santurkar et al. 2018, appendix A ("noisy" batch norm); `jitter` is read as a standard deviation there.
    """

    def __init__(self, shift: float, scale: float, jitter: float) -> None:
        super().__init__()
        self.shift, self.scale, self.jitter = shift, scale, jitter

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_draws(x, *self.draws(x)) if self.training else x

    def draws(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and m, (N, C) each."""
        num, channels = x.shape[:2]
        generator = self.own_generator(x.device)
        centre, spread = torch.rand(2, 1, channels, generator=generator, device=x.device)
        offset = torch.rand(num, channels, generator=generator, device=x.device)
        normal = torch.randn(num, channels, generator=generator, device=x.device)
        m = self.shift * (2 * centre - 1) + self.jitter * (2 * offset - 1)
        return 1 + (self.scale - 1) * spread + self.jitter * normal, m

    @staticmethod
    def apply_draws(x: Tensor, s: Tensor, m: Tensor) -> Tensor:
        """x with them."""
        shape = (*s.shape, *[1] * (x.ndim - 2))
        return x * s.view(shape).to(x.dtype) + m.view(shape).to(x.dtype)


def standardize(weight: Tensor, eps: float = 1e-10) -> Tensor:
    """Each filter with mean 0 and variance 1 over its fan-in.

    Args:
        weight: (out, in, ...).
        eps: added to the variance, as in batch norm.

    Source: Qiao et al. 2019, equation 7, which has no epsilon.
    """
    axes = list(range(1, weight.ndim))
    var, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(var + eps)


class StandardizedConv2d(nn.Conv2d):
    """A convolution with its filters standardized in each forward pass: gradients flow through that."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, standardize(self.weight), self.bias)
        return out


class StandardizedLinear(nn.Linear):
    """A linear layer with its rows standardized in each forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, standardize(self.weight), self.bias)


class FilterResponse(nn.Module):
    """y = max(gamma · x / sqrt(mean of x² over positions + eps) + beta, tau); without `threshold` there is no max.

    Args:
        num_features: C of the (N, C, H, W) input.
        eps: in squared units of the input.
        threshold: learn tau, from 0.

    Raises:
        ConfigError: a map of one pixel.

    Source: Singh & Krishnan 2020, "Filter response normalization layer", with its fixed epsilon.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-6, threshold: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.tau = nn.Parameter(torch.zeros(num_features)) if threshold else None

    def forward(self, x: Tensor) -> Tensor:
        _require_more_than_a_pixel("filter_response", x)
        values = x if x.dtype == torch.float64 else x.float()
        power = values.square().mean((2, 3), keepdim=True)
        y = values * (self.weight.view(-1, 1, 1) * torch.rsqrt(power + self.eps)) + self.bias.view(-1, 1, 1)
        return (y if self.tau is None else torch.maximum(y, self.tau.view(-1, 1, 1))).to(x.dtype)


class ShiftedGroupNorm(nn.GroupNorm):
    """Group norm with beta and without gamma, which torch's own cannot do in bf16."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.group_norm(input, self.num_groups, eps=self.eps)
        return out + self.bias.view(-1, *[1] * (input.ndim - 2)).to(out.dtype)


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's own, but that a map of one pixel is the user's mistake and names its key."""

    def forward(self, input: Tensor) -> Tensor:
        _require_more_than_a_pixel("instance", input)
        return _in_format_of(input, super().forward(input))


def _in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """`out` in the memory format of x: a convolution that follows would otherwise take the other one."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous(memory_format=torch.channels_last) if last else out


def _require_more_than_a_pixel(kind: str, x: Tensor) -> None:
    if x.shape[2] * x.shape[3] == 1:
        hint = "has one value per statistic where a map is 1×1; use larger images, or norm=layer, group or batch"
        raise ConfigError("norm.kind", got=kind, hint=hint)
