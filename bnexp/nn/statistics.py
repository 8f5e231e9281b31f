"""The statistics that a network evaluates with: running, recomputed over the training set, or the batch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.nn.layers import running_norms


class _Reached(Exception):
    """The layer under measurement has seen its input: the rest of the forward pass is not needed."""


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put every module's mode back at the end."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Put running statistics and modes back at the end, into the tensors they were in."""
    kept = [(m, name, t, t.clone()) for _, m in running_norms(model) for name, t in m.named_buffers(recurse=False)]
    try:
        with kept_modes(model):
            yield
    finally:
        with torch.no_grad():
            for module, name, tensor, value in kept:
                tensor.copy_(value)
                setattr(module, name, tensor)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """In here the network is in eval mode and each batch is normalized by its own mean and biased variance.

    Nothing is kept. It serves every norm that has running statistics, for it puts them there right before they are
    read. They are constants to autograd, as running ones are.

    Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation",
    with all weight on the test batch (N = 0).
    """

    def put(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = input_moments(inputs[0])
        dtype = module.get_buffer("running_mean").dtype
        # new tensors: writing into the old ones would spoil a backward pass that has saved them, as that of a norm
        # shared over time steps does
        module.running_mean, module.running_var = mean.to(dtype), var.to(dtype)

    with kept_statistics(model):
        model.eval()
        handles = [module.register_forward_pre_hook(put) for _, module in running_norms(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def input_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, (C,) each, of (N, C) or (N, C, H, W), in at least fp32; no gradient."""
    x = x if x.dtype == torch.float64 else x.float()
    num = x.numel() // x.shape[1]
    if num == 1:
        return x.flatten().clone(), torch.zeros_like(x.flatten())
    # in training and with momentum 1, torch leaves here the mean and the unbiased variance of the batch: on a CPU that
    # is several times faster than torch.var_mean
    mean, var = x.new_zeros(2, x.shape[1])
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    return mean, var * ((num - 1) / num)


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Callable[[], Iterable[Tensor]]) -> None:
    """Set every running mean and variance to the exact ones over all of `batches`, layer by layer.

    A layer is measured with all before it already exact: the result is what one pass of everything as a single batch
    would give, whatever the batches, up to rounding. Moments of batches are fp32 and pooled in float64; the variance
    is biased. Costs about half a forward pass over `batches` for each layer. A norm that runs several times in one
    pass, as one shared over time steps does, reads its own statistics: it is measured with those it has.

    Args:
        batches: called once a layer; gives the network's inputs, (N, C, H, W), always the same.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, made exact.
    """
    with kept_modes(model):
        model.eval()
        for layer, calls in _in_order(model, batches):
            _measure_layer(model, layer, batches, calls=calls)


def _in_order(model: nn.Module, batches: Callable[[], Iterable[Tensor]]) -> list[tuple[nn.Module, int]]:
    """The norms in the order in which a forward pass first reaches them, and how often it does."""
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    handles = [module.register_forward_pre_hook(note) for _, module in running_norms(model)]
    try:
        model(next(iter(batches()))[:2])
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.items())


def _measure_layer(model: nn.Module, layer: nn.Module, batches: Callable[[], Iterable[Tensor]], *, calls: int) -> None:
    nums: list[int] = []
    means: list[Tensor] = []
    variances: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = input_moments(inputs[0])
        nums.append(inputs[0].numel() // len(mean))
        means.append(mean)
        variances.append(var)
        if len(nums) % calls == 0:
            raise _Reached

    handle = layer.register_forward_pre_hook(note)
    try:
        for batch in batches():
            with suppress(_Reached):
                model(batch)
    finally:
        handle.remove()
    mean, var = _pool(nums, means, variances)
    layer.get_buffer("running_mean").copy_(mean)
    layer.get_buffer("running_var").copy_(var)


def _pool(nums: list[int], means: list[Tensor], variances: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all values, (C,) float64 each, from those of batches of `nums` values a channel."""
    # on the CPU, for not every device has float64
    share = torch.tensor(nums, dtype=torch.float64)[:, None] / sum(nums)
    each_mean, each_var = (torch.stack(t).cpu().double() for t in (means, variances))
    mean = (share * each_mean).sum(0)
    # within batches and between them: no difference of large squares, which would cancel
    return mean, (share * (each_var + (each_mean - mean) ** 2)).sum(0)
