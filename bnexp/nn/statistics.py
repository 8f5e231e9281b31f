"""The statistics that a network evaluates with: running, recomputed over the training set, or the batch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.nn.layers import Stochastic, hooked, running_norms


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
    with kept_statistics(model):
        model.eval()
        handles = [module.register_forward_pre_hook(_put_own) for _, module in running_norms(model)]
        with hooked(handles):
            yield


def _put_own(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    mean, var = input_moments(inputs[0])
    dtype = module.get_buffer("running_mean").dtype
    # new tensors: writing into the old ones would spoil a backward pass that has saved them, as that of a norm shared
    # over time steps does
    module.running_mean, module.running_var = mean.to(dtype), var.to(dtype)


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
def measure_statistics(model: nn.Module, batches: Callable[[], Iterable[Tensor]], *, noise: bool = False) -> None:
    """Set every running mean and variance to the exact ones over all of `batches`, layer by layer.

    A layer is measured with all before it already exact: the result is what one pass of everything as a single batch
    would give, whatever the batches, up to rounding. Moments of batches are fp32 and pooled in float64; the variance
    is biased. Costs about half a forward pass over `batches` for each layer. A recurrent network reads the steps that
    it was trained on.

    Norms that run several times in one pass, as those shared over time steps do, have no such exact value, for they
    stand before themselves: they are measured together, each call normalized by its own batch as in training, and
    pooled over calls and batches. That depends on the batches, and not on what was there before.

    Args:
        batches: called once a layer; gives the network's inputs, (N, C, H, W), always the same.
        noise: leave dropout and other noise on, as training has them; evaluation has them off.

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, made exact.
    """
    with kept_modes(model):
        model.eval()
        for module in model.modules():
            if hasattr(module, "train_steps") or (noise and isinstance(module, Stochastic)):
                module.training = True
        calls = _calls(model, batches)
        repeated = [layer for layer in calls if calls[layer] > 1]
        for index, (layer, count) in enumerate(calls.items()):
            if count == 1:
                _measure(model, [layer], batches, stop=True)
            elif layer is repeated[0]:
                # with those that run once among them, which their turn then makes exact
                _measure(model, list(calls)[index:], batches, stop=False)


def _calls(model: nn.Module, batches: Callable[[], Iterable[Tensor]]) -> dict[nn.Module, int]:
    """The norms in the order in which a forward pass first reaches them, and how often it does."""
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    handles = [module.register_forward_pre_hook(note) for _, module in running_norms(model)]
    with hooked(handles):
        model(next(iter(batches()))[:2])
    return calls


def _measure(model: nn.Module, layers: list[nn.Module], batches: Callable[[], Iterable[Tensor]], *, stop: bool) -> None:
    """Measure these layers in one pass over the batches, which goes no further than the first of them if `stop`."""
    moments: dict[nn.Module, list[tuple[int, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = input_moments(inputs[0])
        moments[module].append((inputs[0].numel() // len(mean), mean, var))
        if stop:
            raise _Reached
        _put_own(module, inputs)

    kept = [(layer, layer.get_buffer("running_mean"), layer.get_buffer("running_var")) for layer in layers]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with hooked(handles):
            for batch in batches():
                with suppress(_Reached):
                    model(batch)
    finally:
        for layer, mean, var in kept:
            layer.running_mean, layer.running_var = mean, var
    for layer, old_mean, old_var in kept:
        nums, means, variances = zip(*moments[layer], strict=True)
        mean, var = _pool(nums, means, variances)
        old_mean.copy_(mean)
        old_var.copy_(var)


def _pool(nums: tuple[int, ...], means: tuple[Tensor, ...], variances: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all values, (C,) float64 each, from those of batches of `nums` values a channel."""
    # on the CPU, for not every device has float64
    share = torch.tensor(nums, dtype=torch.float64)[:, None] / sum(nums)
    each_mean, each_var = (torch.stack(t).cpu().double() for t in (means, variances))
    mean = (share * each_mean).sum(0)
    # within batches and between them: no difference of large squares, which would cancel
    return mean, (share * (each_var + (each_mean - mean) ** 2)).sum(0)
