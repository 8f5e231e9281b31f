"""Statistics to evaluate with, against numpy in float64 and against torch's own batch norm in training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.nn import build_model
from bnexp.nn.layers import Dropout, Stochastic, running_norms
from bnexp.nn.norms import make_norm_factory
from bnexp.nn.statistics import batch_statistics, input_moments, kept_statistics, measure_statistics

N = 24
NETWORKS: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 4, "width": 4, "activation": "relu"},
    "mlp": {"name": "mlp", "depth": 2, "width": 16, "activation": "relu"},
    "resnet": {"name": "resnet", "depth": 8, "width": 4, "activation": "relu"},
    "lstm": {"name": "lstm", "depth": 1, "width": 6, "activation": "tanh", "initial_noise": 0.0},
}
CHUNKS = [[N], [7, 1, 16], [1] * N]


def make(network: str, kind: str = "batch", **options: Any) -> nn.Module:
    """A network for (N, 3, 8, 8), in training mode, with gamma, beta and running statistics that all matter."""
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 5, "placement": "before"}
    model = build_model(norm=make_norm_factory(kind, **options), **fixed, **NETWORKS[network])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if parameter.ndim == 1 else drawn / parameter[0].numel() ** 0.5)
        for _, norm in running_norms(model):
            norm.get_buffer("running_mean").normal_(generator=generator)
            norm.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
            norm.get_buffer("num_batches_tracked").fill_(17)
    return model


def images(num: int = N) -> Tensor:
    """Of another mean and scale in every channel."""
    x = torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 0.3, 2.0]).view(1, 3, 1, 1) + torch.tensor([0.0, 2.0, -1.0]).view(1, 3, 1, 1)


def in_chunks(x: Tensor, sizes: list[int]) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(x.split(sizes))


def whole_batch(model: nn.Module, x: Tensor) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Logits of a float64 copy in training mode on everything at once, and each norm's input moments by numpy."""
    reference = copy.deepcopy(model).double().train()
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().numpy()
            axes = tuple(axis for axis in range(values.ndim) if axis != 1)
            found[name] = values.mean(axes), values.var(axes)

        return hook

    for name, norm in running_norms(reference):
        if hasattr(norm, "ghost_size"):
            norm.ghost_size = len(x)  # the whole batch is one ghost
        norm.register_forward_pre_hook(note(name))
    return reference(x.double()).detach().numpy(), found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor], tensors: list[Tensor], modes: list[bool]) -> None:
    """State bitwise, in the same tensors; modes; no hook left; no gradient."""
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(now is then for now, then in zip([*model.parameters(), *model.buffers()], tensors, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[Tensor], list[bool]]:
    tensors = [*model.parameters(), *model.buffers()]
    return state(model), tensors, [module.training for module in model.modules()]


def freeze_one(model: nn.Module) -> None:
    """One norm in eval mode within a network in training, as a norm with frozen statistics is."""
    model.train()
    running_norms(model)[0][1].eval()


@pytest.mark.parametrize("sizes", CHUNKS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "options"), [("batch", {}), ("ghost", {"ghost_size": 2})])
def test_measured_statistics_are_those_of_one_batch_in_float64(
    kind: str, options: dict[str, Any], network: str, sizes: list[int]
) -> None:
    model, x = make(network, kind, **options), images()
    logits, want = whole_batch(model, x)
    assert len(want) == len(running_norms(model)) >= 2
    measure_statistics(model, in_chunks(x, sizes))
    for name, norm in running_norms(model):
        mean, var = want[name]
        got_mean, got_var = (norm.get_buffer(key).double().numpy() for key in ("running_mean", "running_var"))
        # fp32 comes within 5e-7 of a standard deviation and 8e-7 of a variance
        np.testing.assert_array_less(np.abs(got_mean - mean), 4e-6 * np.sqrt(var) + 1e-12)
        np.testing.assert_allclose(got_var, var, rtol=1e-5)
    np.testing.assert_allclose(model.eval()(x).detach().numpy(), logits, rtol=1e-4, atol=1e-5)


def test_measured_statistics_need_not_be_near_what_was_there() -> None:
    """A later layer is measured behind the new statistics of an earlier one, not behind those it had."""
    near, far = make("cnn"), make("cnn")
    for _, norm in running_norms(far):
        norm.get_buffer("running_mean").add_(100)
        norm.get_buffer("running_var").mul_(1000)
    for model in (near, far):
        measure_statistics(model, in_chunks(images(), [12, 12]))
    for (_, a), (_, b) in zip(running_norms(near), running_norms(far), strict=True):
        assert torch.equal(a.get_buffer("running_mean"), b.get_buffer("running_mean"))
        assert torch.equal(a.get_buffer("running_var"), b.get_buffer("running_var"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_measured_statistics_survive_a_mean_far_from_zero(memory_format: torch.memory_format) -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3))
    x = (images() + 300).contiguous(memory_format=memory_format)  # the sum of squares in fp32 would be off by a percent
    measure_statistics(norm, in_chunks(x, [7, 1, 16]))
    values = x.double().numpy()
    np.testing.assert_allclose(norm.state_dict()["0.running_mean"].numpy(), values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(norm.state_dict()["0.running_var"].numpy(), values.var((0, 2, 3)), rtol=1e-4)


class SharedNorm(nn.Module):
    """One norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.norm(x) * 3 + 1)
        return out


def shared_norm() -> SharedNorm:
    model = SharedNorm()
    model.norm.running_mean = torch.tensor([1.0, 0.0, -1.0, 2.0])
    model.norm.running_var = torch.tensor([1.0, 4.0, 0.25, 2.0])
    return model


def vectors(num: int = 9) -> Tensor:
    return 2 * torch.randn(num, 4, generator=torch.Generator().manual_seed(3)) + 1


def by_own(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@pytest.mark.parametrize("old", [0.0, 100.0])
def test_measured_statistics_of_a_norm_that_runs_twice_are_over_both_calls(old: float) -> None:
    """Whatever was there before: each call is normalized by its own batch."""
    model, x = shared_norm(), vectors()
    model.norm.get_buffer("running_mean").add_(old)
    first = [chunk.double().numpy() for chunk in x.split([5, 4])]
    second = [by_own(chunk) * 3 + 1 for chunk in first]
    for _ in range(2):
        measure_statistics(model, in_chunks(x, [5, 4]))
        both = np.concatenate([*first, *second])
        np.testing.assert_allclose(model.norm.get_buffer("running_mean").numpy(), both.mean(0), rtol=1e-5)
        np.testing.assert_allclose(model.norm.get_buffer("running_var").numpy(), both.var(0), rtol=1e-5)


class MixedNorms(nn.Module):
    """One norm that runs once, between the two calls of another; and a third at the end."""

    def __init__(self, old: float) -> None:
        super().__init__()
        self.twice, self.once, self.last = (nn.BatchNorm1d(4) for _ in range(3))
        for _, norm in running_norms(self):
            norm.get_buffer("running_mean").fill_(old)
            norm.get_buffer("running_var").fill_(1 + old)

    def forward(self, x: Tensor) -> Tensor:
        x = self.once(self.twice(x).exp())
        out: Tensor = self.last(self.twice(x.exp()))
        return out


def test_measured_statistics_of_norms_that_run_once_and_twice_do_not_depend_on_the_old_ones() -> None:
    x = vectors(40)
    first = [chunk.double().numpy() for chunk in x.split([25, 15])]
    pooled = np.concatenate([*first, *(np.exp(by_own(np.exp(by_own(chunk)))) for chunk in first)])
    twice = np.concatenate(first)
    behind = np.exp((twice - pooled.mean(0)) / np.sqrt(pooled.var(0) + 1e-5))  # exact behind the pooled ones
    for old in (0.0, 7.0):
        model = MixedNorms(old)
        measure_statistics(model, in_chunks(x, [25, 15]))
        for norm, values in ((model.twice, pooled), (model.once, behind)):
            np.testing.assert_allclose(norm.get_buffer("running_mean").numpy(), values.mean(0), rtol=1e-5)
            np.testing.assert_allclose(norm.get_buffer("running_var").numpy(), values.var(0), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_noise_on_where_it_is_asked_to(training: bool) -> None:
    """Ones that are zeroed or doubled have variance 1; a first state of noise, that of its product with W_h."""
    dropped = nn.Sequential(Dropout(0.5), nn.BatchNorm1d(4)).train(training)
    recurrent: Any = build_model(
        norm=make_norm_factory("batch"), in_channels=3, image_size=8, num_classes=5, placement="before",
        **NETWORKS["lstm"] | {"initial_noise": 0.5},
    ).train(training)  # fmt: skip
    hidden = recurrent.layers[0].hidden
    of_noise = 0.25 * hidden.weight.weight.detach().square().sum(1)
    modes = [module.training for module in (*dropped.modules(), *recurrent.modules())]
    before = torch.get_rng_state()
    for noise in (True, False):
        measure_statistics(dropped, lambda: [torch.ones(5000, 4)] * 4, noise=noise)
        measure_statistics(recurrent, lambda: [images(1).expand(4000, -1, -1, -1)], noise=noise)
        got = dropped.state_dict()["1.running_var"]
        torch.testing.assert_close(got, torch.full((4,), float(noise)), rtol=0, atol=1e-3)
        got = hidden.norm.steps[0].running_var
        torch.testing.assert_close(got, of_noise * noise, rtol=0.15, atol=1e-6)  # 4000 draws: 2 % of standard error
        assert [module.training for module in (*dropped.modules(), *recurrent.modules())] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training is training for module in dropped.modules() if isinstance(module, Stochastic))


@pytest.mark.parametrize("network", NETWORKS)
def test_measuring_changes_running_means_and_variances_alone(network: str) -> None:
    model = make(network)
    freeze_one(model)
    before, tensors, modes = snapshot(model)
    with kept_statistics(model):
        measure_statistics(model, in_chunks(images(), [12, 12]))
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
        assert [module.training for module in model.modules()] == modes
    assert_untouched(model, before, tensors, modes)


def test_measuring_that_fails_leaves_modes_and_no_hooks() -> None:
    model = make("cnn")
    freeze_one(model)
    before, tensors, modes = snapshot(model)

    def batches() -> Iterator[Tensor]:
        yield images()[:12]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"), kept_statistics(model):
        measure_statistics(model, batches)
    assert_untouched(model, before, tensors, modes)


def test_measuring_a_network_without_running_statistics_does_nothing() -> None:
    model = make("cnn", "layer")
    snapped = snapshot(model)
    measure_statistics(model, in_chunks(images(), [12, 12]))
    assert_untouched(model, *snapped)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "options"), [("batch", {}), ("ghost", {"ghost_size": 5})])
def test_batch_statistics_are_those_of_training_with_the_biased_variance(
    kind: str, options: dict[str, Any], network: str, training: bool
) -> None:
    model, x = make(network, kind, **options).train(training), images()  # 24 is no multiple of the ghosts' 5
    want, _ = whole_batch(model, x)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    with batch_statistics(model), torch.no_grad():
        handles = [
            norm.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0], output)))
            for _, norm in running_norms(model)
        ]
        got = model(x)
        for handle in handles:
            handle.remove()
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)
    assert len(calls) == len(running_norms(model))
    for norm, inputs, output in calls:
        layer: Any = norm
        torchs = F.batch_norm(inputs, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        torch.testing.assert_close(output, torchs, rtol=1e-5, atol=1e-5)


def test_batch_statistics_of_an_example_depend_on_its_batch() -> None:
    model, x = make("cnn").eval(), images()
    with torch.no_grad(), batch_statistics(model):
        alone, together = model(x[:8]), model(x)[:8]
    assert not torch.allclose(alone, together, atol=1e-2)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_batch_statistics_leave_nothing_behind(network: str, fails: bool) -> None:
    model = make(network)
    freeze_one(model)
    snapped = snapshot(model)
    try:
        with batch_statistics(model):
            assert not any(module.training for module in model.modules())
            loss = model(images()).square().sum()
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            with torch.inference_mode():
                model(images())
            if fails:
                model(images()[:, :2])
    except RuntimeError:
        assert fails
    assert_untouched(model, *snapped)


def test_batch_statistics_are_constants_to_autograd() -> None:
    model = make("cnn").eval()
    x, fixed = images().requires_grad_(), copy.deepcopy(model)
    measure_statistics(fixed, in_chunks(images(), [N]))  # the same numbers, as ordinary running statistics
    with batch_statistics(model):
        (got,) = torch.autograd.grad(model(x).square().sum(), x)
    (want,) = torch.autograd.grad(fixed(x).square().sum(), x)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_batch_statistics_of_a_norm_that_runs_twice_have_a_backward_pass() -> None:
    model, x = shared_norm(), vectors().requires_grad_()
    with batch_statistics(model):
        (got,) = torch.autograd.grad(model(x).sum(), x)
    # by hand: each call divides by its own input's standard deviation, a constant
    first = x.detach().double()
    scale = (first.var(0, correction=0) + 1e-5).rsqrt()
    second = (first - first.mean(0)) * scale * 3 + 1
    scale = scale * 3 * (second.var(0, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(got.double(), scale.expand_as(first), rtol=1e-5, atol=1e-6)


def test_kept_statistics_put_back_tensors_that_were_replaced() -> None:
    model = make("cnn")
    snapped = snapshot(model)
    with kept_statistics(model):
        for _, norm in running_norms(model):
            norm.running_mean = torch.zeros_like(norm.get_buffer("running_mean"))
            norm.get_buffer("running_var").zero_()
            norm.get_buffer("num_batches_tracked").zero_()
        model.eval()
    assert_untouched(model, *snapped)


@pytest.mark.parametrize("shape", [(9, 4), (1, 4), (3, 4, 5, 2), (1, 4, 1, 1), (1, 4, 3, 3), (6, 4, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_input_moments_match_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2).to(dtype).requires_grad_()
    mean, var = input_moments(x)
    values = x.detach().double().numpy()
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    assert mean.dtype == var.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not mean.requires_grad
    assert not var.requires_grad
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(mean.numpy(), values.mean(axes), rtol=tolerance)
    np.testing.assert_allclose(var.numpy(), values.var(axes), rtol=tolerance, atol=tolerance)


def test_input_moments_are_copies() -> None:
    x = torch.arange(4.0).view(1, 4)
    mean, _ = input_moments(x)
    x += 1
    assert mean.tolist() == [0, 1, 2, 3]


def test_batch_statistics_under_bf16_autocast_are_fp32() -> None:
    model = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(3, affine=False))).eval()
    low = (
        100 + 0.5 * torch.randint(-8, 9, (N, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    ).bfloat16()  # exact in bf16, unlike its moments
    with batch_statistics(model), torch.autocast("cpu", torch.bfloat16):
        got = model(low)
    values = low.double().numpy()
    centred = values - values.mean((0, 2, 3), keepdims=True)
    want = centred / np.sqrt(values.var((0, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=2**-8, atol=2e-3)
