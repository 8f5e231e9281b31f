"""Step probes against hand formulas, numpy and separately coded loops; and training with them against without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnexp.nn import build_model
from bnexp.nn.layers import Stochastic
from bnexp.nn.norms import make_norm_factory
from bnexp.probes.activations import SAMPLE, ActivationProbe
from bnexp.probes.affine import AffineProbe
from bnexp.probes.base import Moment, Row, StepProbe, undisturbed
from bnexp.probes.gradients import GradientProbe
from bnexp.probes.landscape import LandscapeProbe
from bnexp.probes.running import RunningProbe
from bnexp.probes.shift import ShiftProbe

N, SIDE, CLASSES = 12, 8, 3
LR, MOMENTUM, CLIP = 0.2, 0.9, 0.1
PROBES: list[Callable[[int], StepProbe]] = [
    GradientProbe,
    ActivationProbe,
    ShiftProbe,
    LandscapeProbe,
    AffineProbe,
    RunningProbe,
]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
}


class Noise(Stochastic):
    """Multiplicative Gaussian noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + 0.5 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype))


class NoisyNet(nn.Module):
    """A norm of the input, two noisy layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm1d(SIDE**2)
        self.first, self.noise = nn.Linear(SIDE**2, 5), Noise()
        self.norm, self.act = nn.BatchNorm1d(5), nn.Tanh()
        self.second, self.noise2 = nn.Linear(5, 4, bias=False), Noise()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.noise(self.first(self.input_norm(x.flatten(1))))))
        logits: Tensor = self.head(self.noise2(self.second(x)))
        return logits


class Average(nn.Module):
    """A norm as a user might write it: the running mean is a new tensor at each step."""

    avg: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("avg", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.avg = 0.9 * self.avg + 0.1 * x.detach().mean(0)
        return x - self.avg


class UsersNet(nn.Module):
    """What a user's package may bring: buffers that are replaced, and dropout from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm1d(SIDE**2)
        self.first, self.norm, self.act = nn.Linear(SIDE**2, 5), Average(), nn.ReLU()
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(self.input_norm(x.flatten(1)))))
        logits: Tensor = self.head(self.drop(x))
        return logits


class Steps(nn.Module):
    """A tiny recurrent network over the rows of an image: every module runs `SIDE` times."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.hidden = nn.Linear(SIDE, 4), nn.Linear(4, 4)
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU()
        self.head = nn.Linear(4, CLASSES)

    def states(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What goes into the norm and into the activation at each step, in one pass."""
        h, into_norm, into_act = x.new_zeros(len(x), 4), [], []
        for row in x.flatten(1, 2).unbind(1):
            into_norm.append(self.input(row) + self.hidden(h))
            into_act.append(self.norm(into_norm[-1]))
            h = self.act(into_act[-1])
        return into_norm, into_act

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act(self.states(x)[1][-1]))
        return logits


def build(name: str, *, norm: str = "batch", activation: str = "relu", depth: int = 2, **options: Any) -> nn.Module:
    """A small float64 network whose gamma and beta are not at their initial 1 and 0."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(
            name,
            in_channels=1,
            image_size=SIDE,
            num_classes=CLASSES,
            depth=depth,
            width=4,
            activation=activation,
            norm=make_norm_factory(norm, **options.pop("norm_options", {})),
            placement=options.pop("placement", "before"),
            **options,
        )
        shake(model)
    reseed(model, 5)
    return model.double()


def own(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind()
        shake(model)
    reseed(model, 5)
    return model.double()


@torch.no_grad()
def shake(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))


def reseed(model: nn.Module, seed: int) -> None:
    for module in model.modules():
        if isinstance(module, Stochastic):
            seed += 1
            module.reseed(seed, torch.device("cpu"))


def batch(seed: int = 0, *, num: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 1, SIDE, SIDE, generator=g, dtype=torch.float64) + 0.3
    return x.to(dtype), torch.randint(CLASSES, (num,), generator=g)


def moment_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    lr: float = LR,
    clip: float | None = None,
) -> Moment:
    """The moment before an update of this optimizer, plain SGD unless told."""
    the_optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    if x is None or y is None:
        x, y = batch()

    def update() -> None:
        value = loss(model(x), y)
        the_optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        the_optimizer.step()

    return Moment(model, x, y, loss, update, lr, 7, 2)


def table(rows: list[Row]) -> dict[tuple[str, str], float]:
    found = {(row["layer"], row["quantity"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def quantities(rows: list[Row], layer: str) -> dict[str, float]:
    return {quantity: value for (where, quantity), value in table(rows).items() if where == layer}


def gradients_by_backward(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def normalized(x: np.ndarray, norm: Any) -> Any:
    """Batch norm in training by its formula."""
    x_hat = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.eps)
    return x_hat * norm.weight.detach().numpy() + norm.bias.detach().numpy()


@pytest.mark.parametrize("kind", PROBES)
def test_probe_measures_before_the_first_update_and_every_so_often(kind: Callable[[int], StepProbe]) -> None:
    assert [step for step in range(10) if kind(4).when(step)] == [0, 4, 8]
    assert [step for step in range(3) if kind(1).when(step)] == [0, 1, 2]


def test_rows_carry_probe_step_and_epoch() -> None:
    model = build("cnn")
    names = ["gradients", "activations", "shift", "landscape", "affine", "running"]
    for kind, name in zip(PROBES, names, strict=True):
        rows = kind(1).measure(moment_of(model))
        assert rows
        for row in rows:
            assert list(row) == ["probe", "step", "epoch", "layer", "quantity", "value"]
            assert (row["probe"], row["step"], row["epoch"]) == (name, 7, 2)
            assert type(row["value"]) is float


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("gru", activation="tanh", dropout=0.2, dropout_placement="head"),
        lambda: build("vgg", depth=11, norm="noisy_batch"),
        lambda: build("resnet", depth=8, where="input+all-2"),
        lambda: build("cnn", norm="filter_response"),
        lambda: build("cnn", norm="group_ws", norm_options={"num_groups": 2}),
    ],
    ids=["gru", "vgg", "resnet", "filter_response", "group_ws"],
)
@pytest.mark.parametrize("kind", PROBES)
def test_rows_are_finite_and_one_a_quantity(kind: Callable[[int], StepProbe], make: Callable[[], nn.Module]) -> None:
    found = table(kind(1).measure(moment_of(make(), lr=0.01)))
    assert all(np.isfinite(list(found.values())))


# gradients


def test_gradient_norm_matches_finite_differences() -> None:
    model: Any = build("mlp", activation="tanh")
    x, y = batch()
    layers = {"units.0": model.units[0].weight, "units.1": model.units[1].weight, "head": model.head}
    want = {}
    with torch.no_grad():
        for name, layer in layers.items():
            flat, slopes = layer.weight.view(-1), []
            for index in range(len(flat)):
                value, sides = flat[index].item(), []
                for h in (1e-5, -1e-5):
                    flat[index] = value + h
                    sides.append(F.cross_entropy(model(x), y).item())
                flat[index] = value
                slopes.append((sides[0] - sides[1]) / 2e-5)
            want[name] = np.linalg.norm(slopes), np.linalg.norm(layer.weight.numpy())
    got = table(GradientProbe(1).measure(moment_of(model, clip=0.01)))
    assert {layer for layer, _ in got} == set(want)
    for name, (gradient_norm, weight_norm) in want.items():
        assert got[name, "gradient_norm"] == pytest.approx(gradient_norm, rel=1e-6)
        assert got[name, "weight_norm"] == pytest.approx(weight_norm, rel=1e-12)


def test_update_ratio_is_that_of_clipped_sgd_with_momentum_after_several_steps() -> None:
    model = build("cnn")
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    for step in range(4):
        x, y = batch(step)
        moment = moment_of(model, optimizer, x=x, y=y, clip=CLIP)
        got = table(GradientProbe(1).measure(moment))  # which does the update
        gradient = gradients_by_backward(by_hand, x, y)
        total = torch.cat([g.flatten() for g in gradient.values()]).norm()
        assert total > CLIP
        for name, parameter in by_hand.named_parameters():
            velocity[name] = MOMENTUM * velocity[name] + gradient[name] * CLIP / (total + 1e-6)
            layer = name.removesuffix(".weight").removesuffix(".weight")
            if parameter.ndim > 1:
                before = parameter.detach().norm()
                assert got[layer, "gradient_norm"] == pytest.approx(gradient[name].norm().item(), rel=1e-9)
                assert got[layer, "weight_norm"] == pytest.approx(before.item(), rel=1e-9)
                assert got[layer, "update_ratio"] == pytest.approx(
                    (LR * velocity[name].norm() / before).item(), rel=1e-9
                )
            parameter.data -= LR * velocity[name]
    assert {layer for layer, _ in got} == {"units.0", "units.1", "head"}


def test_gradient_of_a_weight_used_at_every_step_is_the_whole_one() -> None:
    model = own(Steps)
    x, y = batch()
    gradient = gradients_by_backward(model, x, y)
    got = table(GradientProbe(1).measure(moment_of(model)))
    for name in ("input", "hidden", "head"):
        assert got[name, "gradient_norm"] == pytest.approx(gradient[f"{name}.weight"].norm().item(), rel=1e-9)


def test_vanishing_gradients_have_a_norm_and_a_direction() -> None:
    model = build("mlp", activation="tanh").float()
    x, y = batch(dtype=torch.float32)
    tiny = 1e-32  # its square is 0 in fp32
    whole = moment_of(model, x=x, y=y)
    small = moment_of(model, x=x, y=y, loss=lambda a, b: tiny * F.cross_entropy(a, b))
    with undisturbed(model):
        want = table(GradientProbe(1).measure(whole))
    with undisturbed(model):
        got = table(GradientProbe(1).measure(small))
    for name in ("units.0", "units.1", "head"):
        assert got[name, "gradient_norm"] == pytest.approx(tiny * want[name, "gradient_norm"], rel=1e-3)
    assert table(ShiftProbe(1).measure(small))["head", "shift_cosine"] == pytest.approx(1, abs=1e-3)


def test_frozen_weights_have_no_gradient() -> None:
    model: Any = build("cnn")
    model.units[1].weight.requires_grad_(False)
    assert {row["layer"] for row in GradientProbe(1).measure(moment_of(model))} == {"units.0", "head"}
    assert {row["layer"] for row in ShiftProbe(1).measure(moment_of(model))} == {"head"}
    assert len(LandscapeProbe(1).measure(moment_of(model))) == 6


# activations


def expected_of(inputs: np.ndarray, outputs: np.ndarray, unit: np.ndarray) -> dict[str, float]:
    """By numpy alone; channels of `outputs` on axis 1."""
    channels = np.moveaxis(outputs, 1, 0).reshape(outputs.shape[1], -1)
    return {
        "mean": inputs.mean(),
        "std": inputs.std(),
        **{f"q{p}": np.percentile(inputs, p) for p in (15, 50, 85)},
        **{f"unit_q{p}": np.percentile(unit, p) for p in (15, 50, 85)},
        "output_mean": outputs.mean(),
        "output_std": outputs.std(),
        "dead_fraction": np.mean([len(set(channel)) == 1 for channel in channels]),
    }


def test_activations_of_a_perceptron_match_numpy() -> None:
    model: Any = build("mlp")
    model.units[1].norm.bias.data[2] = -99  # a dead unit
    x, _ = batch()
    h = x.flatten(1).numpy()
    rows = ActivationProbe(1).measure(moment_of(model))
    for index, unit in enumerate(model.units):
        a = normalized(h @ unit.weight.weight.detach().numpy().T, unit.norm)
        h = np.maximum(a, 0)
        assert quantities(rows, f"units.{index}") == pytest.approx(expected_of(a, h, a[:, 0]), rel=1e-9)
    assert quantities(rows, "units.0")["dead_fraction"] == 0
    assert quantities(rows, "units.1")["dead_fraction"] == 0.25
    assert {row["layer"] for row in rows} == {"units.0", "units.1"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_activations_of_a_convolution_match_numpy(placement: str, memory_format: torch.memory_format) -> None:
    model: Any = build("cnn", norm="group", norm_options={"num_groups": 2}, placement=placement, activation="gelu")
    x, y = batch()
    model.to(memory_format=memory_format)
    x = x.contiguous(memory_format=memory_format)
    unit = model.units[0]
    with torch.no_grad():
        a = F.conv2d(x, unit.weight.weight, unit.weight.bias, padding=1)
        if placement == "before":
            a = F.group_norm(a, 2, unit.norm.weight, unit.norm.bias)
        h = F.gelu(a)
    want = expected_of(a.numpy(), h.numpy(), a[:, 0].numpy())
    got = quantities(ActivationProbe(1).measure(moment_of(model, x=x, y=y)), "units.0")
    assert got == pytest.approx(want, rel=1e-9)


def test_activation_over_time_steps_is_pooled() -> None:
    model: Any = own(Steps)
    x, _ = batch()
    with torch.no_grad():
        a = torch.stack([*(steps := copy.deepcopy(model).states(x)[1]), steps[-1]], 2).numpy()
    assert a.shape == (N, 4, SIDE + 1)  # the head reads the last step through the activation once more
    got = quantities(ActivationProbe(1).measure(moment_of(model)), "act")
    assert got == pytest.approx(expected_of(a, np.maximum(a, 0), a[:, 0]), rel=1e-9)


class Applied(nn.Module):
    """An activation applied to parts of different size, as they are."""

    def __init__(self, parts: list[Tensor], act: nn.Module) -> None:
        super().__init__()
        self.parts, self.act = parts, act
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            self.act(part)
        return x


def applied(*parts: Tensor, act: nn.Module | None = None) -> dict[str, float]:
    model = Applied(list(parts), act or nn.ReLU())
    return quantities(ActivationProbe(1).measure(moment_of(model)), "act")


def test_dead_channels_put_out_one_number_throughout() -> None:
    x = torch.tensor([[-1.0, -1.0, 3.0, 1.0], [-2.0, 2.0, 3.0, 2.0]])
    assert applied(x)["dead_fraction"] == 0.5
    assert applied(x, act=nn.Tanh())["dead_fraction"] == 0.25
    assert applied(x, torch.tensor([[-1.0, -1.0, 4.0, -1.0]]))["dead_fraction"] == 0.25
    maps = -torch.rand(3, 2, 4, 4)
    maps[1, 1, 2, 3] = 1.0  # one position of one example is enough to live
    assert applied(maps)["dead_fraction"] == 0.5


def test_calls_of_different_size_count_by_their_elements() -> None:
    parts = [torch.randn(7, 2, dtype=torch.float64), 5 + 3 * torch.randn(40, 2, dtype=torch.float64)]
    a = torch.cat(parts).numpy()
    assert applied(*parts) == pytest.approx(expected_of(a, np.maximum(a, 0), a[:, 0]), rel=1e-9)


def test_moments_far_from_zero_keep_their_digits() -> None:
    x = 1000 + torch.randn(64, 4, 30, 30, generator=torch.Generator().manual_seed(0))
    got = applied(x)
    assert got["mean"] == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert got["std"] == pytest.approx(x.double().std().item(), rel=1e-3)
    assert got["output_std"] == got["std"]


def test_quantiles_of_many_elements_come_from_an_even_sample() -> None:
    # 42 columns, and the smallest stride that thins enough is 3: it would see every third column alone
    shape = (50, 8, 32, 42)
    assert np.prod(shape) / SAMPLE < 3 == 42 / 14
    thirds = (torch.arange(42) % 3).double().expand(shape)
    got = applied(thirds)
    assert (got["q15"], got["q50"], got["q85"]) == (0, 1, 2)
    channels = torch.arange(8).double().view(1, 8, 1, 1).expand(shape)
    got = applied(channels)
    assert (got["q15"], got["q85"], got["unit_q85"]) == (1, 6, 0)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = applied(x)
    for p in (15, 50, 85):
        assert got[f"q{p}"] == pytest.approx(np.percentile(x.numpy(), p), abs=0.015)
        assert got[f"unit_q{p}"] == pytest.approx(np.percentile(x[:, 0].numpy(), p), abs=1e-6)


def test_activation_that_never_runs_has_no_rows() -> None:
    assert applied() == {}


# shift


def squared(output: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (output.squeeze(1) - y).square().mean()


def scalar_chain(weights: list[float]) -> nn.Sequential:
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    return nn.Sequential(*layers)


def test_shift_of_a_chain_of_three_numbers_is_the_formula() -> None:
    a, b, c = 0.7, -1.1, 0.4
    x, y = np.array([0.5, -1.0, 2.0, 0.1]), np.array([1.0, 0.0, 2.0, -1.0])

    def slopes(a: float, b: float, c: float) -> tuple[float, float, float]:
        error = a * b * c * x - y
        return (error * b * c * x).mean(), (error * a * c * x).mean(), (error * a * b * x).mean()

    ga, gb, gc = slopes(a, b, c)
    new_a, new_b = a - LR * ga, b - LR * gb
    shift_b, shift_c = slopes(new_a, b, c)[1], slopes(new_a, new_b, c)[2]
    model = scalar_chain([a, b, c])
    moment = moment_of(model, x=torch.tensor(x)[:, None], y=torch.tensor(y), loss=squared)
    got = table(ShiftProbe(1).measure(moment))
    assert got == pytest.approx(
        {
            ("1", "shift_l2"): abs(gb - shift_b),
            ("1", "shift_cosine"): np.sign(gb * shift_b),
            ("1", "gradient_norm"): abs(gb),
            ("2", "shift_l2"): abs(gc - shift_c),
            ("2", "shift_cosine"): np.sign(gc * shift_c),
            ("2", "gradient_norm"): abs(gc),
        },
        rel=1e-12,
    )


# network -> its weight layers after the first, each with the prefixes of all that is before it
SHIFT_CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "cnn": (
        lambda: build("cnn", depth=3),
        {"units.1": ("units.0",), "units.2": ("units.0", "units.1"), "head": ("units",)},
    ),
    "cnn without norm": (lambda: build("cnn", norm="none"), {"units.1": ("units.0",), "head": ("units",)}),
    "preactivation": (
        lambda: build("resnet", depth=8, preactivation=True),
        {
            "blocks.0.unit1": ("stem",),
            "blocks.0.unit2": ("stem", "blocks.0.unit1"),
            "blocks.1.unit1": ("stem", "blocks.0"),
            "blocks.1.unit2": ("stem", "blocks.0", "blocks.1.unit1"),
            "blocks.2.unit1": ("stem", "blocks.0", "blocks.1"),
            "blocks.2.unit2": ("stem", "blocks.0", "blocks.1", "blocks.2.unit1"),
            "head": ("stem", "blocks", "closing"),
        },
    ),
    "scaled branches, norm of the sum": (
        lambda: build("resnet", depth=8, placement="after", branch="skipinit"),
        {
            "blocks.0.unit1": ("stem",),
            "blocks.0.unit2": ("stem", "blocks.0.unit1"),
            "blocks.1.unit1": ("stem", "blocks.0"),
            "blocks.1.unit2": ("stem", "blocks.0", "blocks.1.unit1"),
            "blocks.2.unit1": ("stem", "blocks.0", "blocks.1"),
            "blocks.2.unit2": ("stem", "blocks.0", "blocks.1", "blocks.2.unit1"),
            "head": ("stem", "blocks"),
        },
    ),
    "noise and a norm of the input": (
        lambda: own(NoisyNet),
        {
            "first": ("input_norm",),
            "second": ("input_norm", "first", "norm"),
            "head": ("input_norm", "first", "norm", "second"),
        },
    ),
    "lstm": (
        lambda: build("lstm", activation="tanh"),
        {
            "layers.0.hidden": ("layers.0.input",),
            "layers.1.input": ("layers.0",),
            "layers.1.hidden": ("layers.0", "layers.1.input"),
            "head": ("layers",),
        },
    ),
    "training reads running statistics": (
        lambda: build("cnn", norm="batch_renorm", norm_options={"ramp_steps": 1}, where="input+all"),
        {"units.0": ("input_norm",), "units.1": ("input_norm", "units.0"), "head": ("input_norm", "units")},
    ),
    "noisy norm and dropout": (
        lambda: build("cnn", norm="noisy_batch", dropout=0.3, dropout_placement="before"),
        {"units.1": ("units.0",), "head": ("units",)},
    ),
}


@pytest.mark.parametrize("case", SHIFT_CASES)
def test_shift_matches_two_networks_put_together(case: str) -> None:
    make, before = SHIFT_CASES[case]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for step in range(2):
        moment_of(model, optimizer, x=batch(step + 1)[0], y=batch(step + 1)[1], clip=CLIP).update()
    reseed(model, 5)
    x, y = batch()

    old, new = copy.deepcopy(model), copy.deepcopy(model)
    copied = torch.optim.SGD(new.parameters(), lr=LR, momentum=MOMENTUM)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    reseed(new, 5)
    moment_of(new, copied, x=x, y=y, clip=CLIP).update()
    new_values = dict(new.named_parameters())

    def gradient(layer: str, updated: tuple[str, ...]) -> np.ndarray:
        values: dict[str, Tensor] = {}
        for name, value in old.named_parameters():
            value = new_values[name] if any(f"{name}.".startswith(f"{p}.") for p in updated) else value
            values[name] = value.detach().clone().requires_grad_()
        twin = copy.deepcopy(old)
        reseed(twin, 5)
        F.cross_entropy(functional_call(twin, values, (x,)), y).backward()  # type: ignore[no-untyped-call]
        mine = [v.grad for n, v in values.items() if n in (f"{layer}.weight.weight", f"{layer}.weight.bias")]
        mine = mine or [v.grad for n, v in values.items() if n in (f"{layer}.weight", f"{layer}.bias")]
        return torch.cat([g.flatten() for g in mine if g is not None]).numpy()

    got = table(ShiftProbe(1).measure(moment_of(model, optimizer, x=x, y=y, clip=CLIP)))
    assert {layer for layer, _ in got} == set(before)
    for layer, updated in before.items():
        g, h = gradient(layer, ()), gradient(layer, updated)
        assert np.linalg.norm(g - h) > 1e-5 * np.linalg.norm(g)
        assert got[layer, "gradient_norm"] == pytest.approx(np.linalg.norm(g), rel=1e-9)
        assert got[layer, "shift_l2"] == pytest.approx(np.linalg.norm(g - h), rel=1e-9)
        cosine = g @ h / np.linalg.norm(g) / np.linalg.norm(h)
        assert got[layer, "shift_cosine"] == pytest.approx(cosine, rel=1e-9)


# landscape


def test_landscape_of_a_parabola_is_the_formula() -> None:
    x, y, w = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.0, 2.0]), 0.3
    curvature, slope = (x * x).mean(), ((w * x - y) * x).mean()
    etas = np.geomspace(0.5, 4, 8) * LR
    losses = [0.5 * (((w - eta * slope) * x - y) ** 2).mean() for eta in etas]
    moment = moment_of(scalar_chain([w]), x=torch.tensor(x)[:, None], y=torch.tensor(y), loss=squared)
    got = quantities(LandscapeProbe(1).measure(moment), "")
    assert got == pytest.approx(
        {
            "loss": 0.5 * ((w * x - y) ** 2).mean(),
            "loss_min": min(losses),
            "loss_max": max(losses),
            "gradient_distance_min": 0.5 * LR * abs(slope) * curvature,
            "gradient_distance_max": 4 * LR * abs(slope) * curvature,
            "smoothness": curvature,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("cnn"),
        lambda: own(NoisyNet),
        lambda: build("cnn", norm="batch_renorm", norm_options={"ramp_steps": 1}),
    ],
    ids=["cnn", "noisy", "renorm"],
)
def test_landscape_matches_a_loop_of_copies(make: Callable[[], nn.Module]) -> None:
    model = make()
    for step in range(3):
        model(batch(step + 1)[0])  # which moves running statistics
    reseed(model, 5)
    x, y = batch()
    lr = 0.05  # not the optimizer's: the probe goes by the moment's

    def look(eta: float, direction: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        twin = copy.deepcopy(model)
        reseed(twin, 5)
        for name, parameter in twin.named_parameters():
            parameter.data -= eta * direction.get(name, torch.zeros(()))
        loss = F.cross_entropy(twin(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}

    loss, g = look(0.0, {})
    length = np.sqrt(sum(float((v**2).sum()) for v in g.values()))
    losses, distances, slopes = [], [], []
    for multiple in np.geomspace(0.5, 4, 8):
        loss_there, h = look(lr * multiple, g)
        losses.append(loss_there)
        distances.append(np.sqrt(sum(float(((g[name] - h[name]) ** 2).sum()) for name in g)))
        slopes.append(distances[-1] / (lr * multiple * length))
    want = {
        "loss": loss,
        "loss_min": min(losses),
        "loss_max": max(losses),
        "gradient_distance_min": min(distances),
        "gradient_distance_max": max(distances),
        "smoothness": max(slopes),
    }
    moment = moment_of(model, torch.optim.SGD(model.parameters(), lr=9.0, momentum=0.9), lr=lr)
    assert quantities(LandscapeProbe(1).measure(moment), "") == pytest.approx(want, rel=1e-9)


# affine


MOMENTS = ("norm_mean_error", "norm_std_error", "output_mean", "output_std_error")


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def moments_of(x: np.ndarray, plain: np.ndarray, output: np.ndarray, eps: float) -> dict[str, float]:
    """By numpy alone; channels last."""
    x, plain, output = (values.reshape(-1, values.shape[-1]) for values in (x, plain, output))
    varies = np.ptp(x, axis=0) > 0
    expected = np.sqrt(x.var(0) / (x.var(0) + eps))[varies]
    return {
        "norm_mean_error": np.abs(plain.mean(0)).max(),
        "norm_std_error": np.abs(plain.std(0)[varies] / expected - 1).max(),
        "output_mean": rms(output.mean(0)),
        "output_std_error": rms(output.std(0)[varies] - 1),
    }


def moments(rows: list[Row], layer: str) -> dict[str, float]:
    return {name: value for name, value in quantities(rows, layer).items() if name in MOMENTS}


def test_affine_parameters_match_numpy() -> None:
    model: Any = build("cnn")
    rows = [row for row in AffineProbe(1).measure(moment_of(model)) if row["quantity"] not in MOMENTS]
    want: dict[tuple[str, str], float] = {}
    for index, unit in enumerate(model.units):
        for name, parameter in (("gamma", unit.norm.weight), ("beta", unit.norm.bias)):
            v = parameter.detach().numpy()
            values = {"mean": v.mean(), "std": v.std(), "min": v.min(), "max": v.max()}
            want |= {(f"units.{index}", f"{name}_{key}"): value for key, value in values.items()}
    assert table(rows) == pytest.approx(want, rel=1e-12)


def test_batch_norm_puts_out_mean_0_and_std_1_until_gamma_and_beta_move_them() -> None:
    eps = 0.5  # takes much off the std, and is no error
    model: Any = build("mlp", norm_options={"eps": eps})
    with torch.no_grad():
        model.units[0].norm.weight[1] = 0.0  # nothing is left to divide by
        model.units[0].weight.weight[2] = 0.0  # a constant channel
    x, _ = batch()
    h = x.flatten(1).numpy()
    rows = AffineProbe(1).measure(moment_of(model))
    for index, unit in enumerate(model.units):
        a = h @ unit.weight.weight.detach().numpy().T
        gamma, beta = unit.norm.weight.detach().numpy(), unit.norm.bias.detach().numpy()
        varies = np.ptp(a, axis=0) > 0
        assert varies.sum() == (3 if index == 0 else 4)
        std = np.abs(gamma) * np.sqrt(a.var(0) / (a.var(0) + eps))
        got = moments(rows, f"units.{index}")
        assert got["norm_mean_error"] < 1e-14
        assert got["norm_std_error"] < 1e-14
        assert got["output_mean"] == pytest.approx(rms(beta), rel=1e-12)
        assert got["output_std_error"] == pytest.approx(rms(std[varies] - 1), rel=1e-12)
        h = np.maximum(normalized(a, unit.norm), 0)


def group_by_hand(x: np.ndarray, eps: float) -> np.ndarray:
    """Two groups of two channels; (N, H, W, C)."""
    grouped = x.reshape(*x.shape[:3], 2, 2)
    mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + eps)).reshape(x.shape)


def ghosts_by_hand(x: np.ndarray, eps: float) -> np.ndarray:
    ghosts = x.reshape(3, 4, *x.shape[1:])
    mean, var = ghosts.mean((1, 2, 3), keepdims=True), ghosts.var((1, 2, 3), keepdims=True)
    return ((ghosts - mean) / np.sqrt(var + eps)).reshape(x.shape)


BY_HAND: dict[str, tuple[dict[str, Any], Callable[[np.ndarray, float], np.ndarray]]] = {
    "batch": ({}, lambda x, eps: (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + eps)),
    "ghost": ({"ghost_size": 4}, ghosts_by_hand),
    "group": ({"num_groups": 2}, group_by_hand),
    "layer": (
        {},
        lambda x, eps: (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + eps),
    ),
    "instance": ({}, lambda x, eps: (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + eps)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", BY_HAND)
def test_channel_moments_of_other_norms_are_what_they_are(norm: str, memory_format: torch.memory_format) -> None:
    options, by_hand = BY_HAND[norm]
    eps = 0.05
    model: Any = build("cnn", norm=norm, norm_options={"eps": eps, **options})
    (x, y), unit = batch(), model.units[0]
    model.to(memory_format=memory_format)
    x = x.contiguous(memory_format=memory_format)
    with torch.no_grad():
        a = unit.weight(x).permute(0, 2, 3, 1).numpy()
    plain = by_hand(a, eps)
    output = plain * unit.norm.weight.detach().numpy() + unit.norm.bias.detach().numpy()
    got = moments(AffineProbe(1).measure(moment_of(model, x=x, y=y)), "units.0")
    assert got == pytest.approx(moments_of(a, plain, output, eps), rel=1e-9, abs=1e-13)
    assert (got["norm_mean_error"] < 1e-9) == (norm in ("batch", "ghost", "instance"))
    assert (got["norm_std_error"] < 1e-9) == (norm == "batch")


def test_moments_of_batch_renorm_are_those_of_its_statistics_before_the_update() -> None:
    eps = 0.05
    model: Any = build("cnn", norm="batch_renorm", norm_options={"eps": eps, "ramp_steps": 2, "r_max": 1.5})
    for step in range(3):
        model(batch(step + 1)[0])
    unit, (x, _) = model.units[0], batch()
    mean, var = unit.norm.running_mean.numpy().copy(), unit.norm.running_var.numpy().copy()
    with torch.no_grad():
        a = unit.weight(x).permute(0, 2, 3, 1).numpy()
    sd, running_sd = np.sqrt(a.var((0, 1, 2)) + eps), np.sqrt(var + eps)
    r = np.clip(sd / running_sd, 1 / 1.5, 1.5)
    plain = (a - a.mean((0, 1, 2))) / sd * r + (a.mean((0, 1, 2)) - mean) / running_sd
    output = plain * unit.norm.weight.detach().numpy() + unit.norm.bias.detach().numpy()
    got = moments(AffineProbe(1).measure(moment_of(model)), "units.0")
    assert got == pytest.approx(moments_of(a, plain, output, eps), rel=1e-9)
    assert got["norm_mean_error"] > 1e-3


@pytest.mark.parametrize(("norm", "eps"), [("noisy_batch", 1e-5), ("filter_response", 1e-6)])
def test_noise_and_thresholds_stand_behind_the_normalized_values(norm: str, eps: float) -> None:
    model: Any = build("cnn", norm=norm)
    (x, _), unit = batch(), model.units[0]
    twin = copy.deepcopy(model.units[0])
    with torch.no_grad():
        a = twin.weight(x)
        output = twin.norm(a).permute(0, 2, 3, 1).numpy()
        plain = F.batch_norm(a, None, None, training=True, eps=eps)
        if norm == "filter_response":
            plain = a / (a.square().mean((2, 3), keepdim=True) + eps).sqrt()
            assert unit.norm.tau is not None
    want = moments_of(a.permute(0, 2, 3, 1).numpy(), plain.permute(0, 2, 3, 1).numpy(), output, eps)
    got = moments(AffineProbe(1).measure(moment_of(model)), "units.0")
    assert got == pytest.approx(want, rel=1e-9, abs=1e-13)


def test_moments_of_a_norm_over_time_steps_are_those_of_every_step() -> None:
    model: Any = build("lstm", activation="tanh", depth=1)
    layer, (x, _) = model.layers[0], batch()
    weight, norm = layer.input.weight.weight.detach(), layer.input.norm.steps[0]
    a = np.stack([(x[:, 0, index] @ weight.T).numpy() for index in range(SIDE)])
    shrunk = np.sqrt(a.var(1) / (a.var(1) + norm.eps))
    got = moments(AffineProbe(1).measure(moment_of(model)), "layers.0.input")
    assert got["norm_mean_error"] < 1e-12
    assert got["norm_std_error"] < 1e-12
    assert got["output_mean"] < 1e-12  # a bias after the gates stands in for beta
    want = rms(np.abs(norm.weight.detach().numpy()) * shrunk - 1)
    assert got["output_std_error"] == pytest.approx(want, rel=1e-9)


def test_norms_without_parameters_have_moments_alone_and_no_norm_has_nothing() -> None:
    assert AffineProbe(1).measure(moment_of(build("cnn", norm="none"))) == []
    rows = AffineProbe(1).measure(moment_of(build("cnn", norm_options={"affine": "none"})))
    assert [row["quantity"] for row in rows] == [*MOMENTS] * 2
    assert quantities(rows, "units.0")["output_mean"] < 1e-12


def test_affine_of_a_norm_over_time_steps_counts_once_and_gamma_may_stand_alone() -> None:
    class StepNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(3))
            for step in self.steps:
                step.weight = self.steps[0].weight
                step.register_parameter("bias", None)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.ModuleDict({"norm": StepNorm()})

        def forward(self, x: Tensor) -> Tensor:
            return x  # the norm never runs: it has parameters, and no moments

    model: Any = Net()
    model.cell["norm"].steps[2].weight.data = torch.tensor([1.0, 4.0])
    want = {"gamma_mean": 2.5, "gamma_std": 1.5, "gamma_min": 1.0, "gamma_max": 4.0}
    assert table(AffineProbe(1).measure(moment_of(model))) == {("cell", name): value for name, value in want.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_that_are_all_constant_have_no_std(dtype: torch.dtype) -> None:
    model: Any = build("mlp", depth=1).to(dtype)
    # the mean of equal numbers is not always exactly that number
    model.units[0].weight.weight.data.copy_(torch.tensor([0.1, 0.2, 0.3, 0.7])[:, None])
    x, y = batch(dtype=dtype)
    got = moments(AffineProbe(1).measure(moment_of(model, x=torch.full_like(x, 0.7), y=y)), "units.0")
    assert np.isnan([got["norm_std_error"], got["output_std_error"]]).all()
    assert got["norm_mean_error"] < 1e-2  # of a rounding error, divided by sqrt(eps)
    assert got["output_mean"] == pytest.approx(rms(model.units[0].norm.bias.detach().numpy()), rel=1e-2)


def test_moments_that_are_not_finite_are_not_taken_for_constants() -> None:
    model: Any = build("mlp", depth=1)
    model.units[0].weight.weight.data[0, 0] = torch.inf
    got = moments(AffineProbe(1).measure(moment_of(model)), "units.0")
    assert not np.isfinite(list(got.values())).any()


def test_moments_of_a_norm_that_keeps_a_tensor_of_its_last_pass() -> None:
    class Keeper(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            self.last = super().forward(input)
            return self.last

    model: Any = build("mlp", depth=1)
    model.units[0].norm = Keeper(4).double()
    moment = moment_of(model)
    moment.update()
    last = model.units[0].norm.last
    with undisturbed(model):
        assert moments(AffineProbe(1).measure(moment), "units.0")["norm_mean_error"] < 1e-12
    assert last.requires_grad


# running


def distances(x: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float) -> dict[str, float]:
    """`x`: (values, channels)."""
    std = np.sqrt(x.var(0) + eps)
    return {
        "mean_distance": np.sqrt((((mean - x.mean(0)) / std) ** 2).mean()),
        "std_distance": np.sqrt((np.log(np.sqrt(var + eps) / std) ** 2).mean()),
    }


@pytest.mark.parametrize(("norm", "options"), [("batch", {}), ("ghost", {"ghost_size": 4})])
def test_running_distances_match_numpy(norm: str, options: dict[str, Any]) -> None:
    eps = 0.05  # large enough to be seen
    model: Any = build("cnn", norm=norm, norm_options={"eps": eps, **options})
    for step in range(3):
        model(batch(step + 1)[0])
    unit, (x, _) = model.units[0], batch()
    with torch.no_grad():
        a = F.conv2d(x, unit.weight.weight, padding=1).transpose(0, 1).flatten(1).T.numpy()
    want = distances(a, unit.norm.running_mean.numpy().copy(), unit.norm.running_var.numpy().copy(), eps)
    rows = RunningProbe(1).measure(moment_of(model))
    assert quantities(rows, "units.0") == pytest.approx(want, rel=1e-9)
    assert {row["layer"] for row in rows} == {"units.0", "units.1"}


def test_running_distances_over_time_steps_are_averaged_against_the_statistics_of_the_start() -> None:
    model: Any = own(Steps)
    x, _ = batch()
    mean, var = np.full(4, 0.3), np.full(4, 1.7)
    model.norm.running_mean.copy_(torch.tensor(mean))
    model.norm.running_var.copy_(torch.tensor(var))
    with torch.no_grad():
        calls = [distances(a.numpy(), mean, var, model.norm.eps) for a in copy.deepcopy(model).states(x)[0]]
    want = {key: np.mean([call[key] for call in calls]) for key in calls[0]}
    assert quantities(RunningProbe(1).measure(moment_of(model)), "norm") == pytest.approx(want, rel=1e-9)


def test_running_statistics_of_each_time_step_are_averaged_over_the_layer() -> None:
    model: Any = build("lstm", activation="tanh", depth=1)
    x, _ = batch()
    for step in range(2):
        model(batch(step + 1)[0])
    layer = model.layers[0]
    weight, norms = layer.input.weight.weight.detach(), layer.input.norm.steps
    assert len(norms) == SIDE
    calls = [
        distances(
            (x[:, 0, index] @ weight.T).numpy(),
            norm.running_mean.numpy().copy(),
            norm.running_var.numpy().copy(),
            norm.eps,
        )
        for index, norm in enumerate(norms)
    ]
    want = {key: np.mean([call[key] for call in calls]) for key in calls[0]}
    rows = RunningProbe(1).measure(moment_of(model))
    assert quantities(rows, "layers.0.input") == pytest.approx(want, rel=1e-9)
    assert {row["layer"] for row in rows} == {"layers.0.input", "layers.0.hidden", "layers.0.cell"}


def test_running_of_norms_without_statistics_is_empty() -> None:
    assert RunningProbe(1).measure(moment_of(build("cnn", norm="layer"))) == []


# leaving training as it was


def flat(value: Any) -> Any:
    """Nested state with tensors as bytes: equal means bitwise."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), str(value.dtype), value.detach().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    generators = [m.generator for m in model.modules() if isinstance(m, Stochastic) and m.generator is not None]
    return flat(
        {
            "model": model.state_dict(),
            "grads": [p.grad for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "optimizer": optimizer.state_dict(),
            "generators": [g.get_state() for g in generators],
            "global": torch.get_rng_state(),
        }
    )


def hooks_of(model: nn.Module) -> int:
    of_modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in of_modules)
    return on_modules + sum(len(getattr(p, kind, None) or ()) for p in model.parameters() for kind in of_tensors)


def train(make: Callable[[], nn.Module], optimizer_name: str, *, probed: bool) -> list[Any]:
    model = make().float().to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    states = []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for step in range(10):
            x, y = batch(step, dtype=torch.float32)
            moment = moment_of(model, optimizer, x=x, y=y, clip=CLIP)
            for kind in PROBES if probed else []:
                before = state_of(model, optimizer)
                with undisturbed(model, optimizer):
                    assert kind(1).measure(moment)
                    torch.rand(1)  # were a probe to draw from the global generator
                assert state_of(model, optimizer) == before
            moment.update()
            states.append(state_of(model, optimizer))
    assert hooks_of(model) == 0
    return states


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("cnn"),
        lambda: own(NoisyNet),
        lambda: own(UsersNet),
        lambda: build("cnn", norm="noisy_batch"),
    ],
    ids=["cnn", "noisy", "users", "noisy norm"],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bitwise_the_same_with_all_probes_at_every_step(
    optimizer: str, make: Callable[[], nn.Module]
) -> None:
    with_probes, without = train(make, optimizer, probed=True), train(make, optimizer, probed=False)
    assert with_probes == without
    assert without[0] != without[1]


@pytest.mark.parametrize("kind", PROBES)
def test_probe_leaves_grads_alone_but_for_the_update(kind: Callable[[int], StepProbe]) -> None:
    model = build("cnn")
    moment = moment_of(model)
    moment.update()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags: list[int] = []
    kind(1).measure(replace(moment, update=lambda: flags.append(1)))
    assert flat(grads) == flat([p.grad for p in model.parameters()])
    assert len(flags) == (kind in (GradientProbe, ShiftProbe))


class Boom(Exception):
    pass


class Failing(nn.Module):
    """Raises at the end of a forward pass when `left` of them are done."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.left = own(NoisyNet), 99

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.left -= 1
        if self.left == 0:
            raise Boom
        return logits


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        (GradientProbe, 1),
        (ActivationProbe, 1),
        (AffineProbe, 1),
        (RunningProbe, 1),
        *((k, n) for k in PROBES[2:4] for n in (1, 2, 4)),
    ],
)
def test_exception_in_the_network_leaves_no_hooks_and_puts_all_back(
    kind: Callable[[int], StepProbe], passes: int
) -> None:
    model = Failing()
    cast(NoisyNet, model.net).act.eval()
    optimizer = torch.optim.Adam(model.parameters())
    moment = moment_of(model, optimizer)
    moment.update()
    before = state_of(model, optimizer)
    model.left = passes
    with pytest.raises(Boom), undisturbed(model, optimizer):
        kind(1).measure(moment)
    assert state_of(model, optimizer) == before
    assert hooks_of(model) == 0


@pytest.mark.parametrize("kind", [GradientProbe, ShiftProbe])
def test_exception_after_the_update_leaves_no_hooks_and_puts_all_back(kind: Callable[[int], StepProbe]) -> None:
    model = own(NoisyNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    moment = moment_of(model, optimizer)

    def update() -> None:
        moment.update()
        raise Boom

    before = state_of(model, optimizer)
    with pytest.raises(Boom), undisturbed(model, optimizer):
        kind(1).measure(replace(moment, update=update))
    assert state_of(model, optimizer) == before
    assert hooks_of(model) == 0


def test_undisturbed_puts_back_what_a_careless_probe_changes() -> None:
    model = own(NoisyNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    before = state_of(model, optimizer)  # no state and no grads yet
    with undisturbed(model, optimizer):
        moment_of(model, optimizer).update()
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        torch.rand(3)
        assert state_of(model, optimizer) != before
    assert state_of(model, optimizer) == before


def test_non_finite_values_are_returned_as_they_are() -> None:
    model: Any = build("cnn", norm="none")
    model.units[0].weight.weight.data[0, 0, 0, 0] = torch.inf
    for kind in (GradientProbe, ActivationProbe, ShiftProbe, LandscapeProbe):
        with undisturbed(model):
            values = [row["value"] for row in kind(1).measure(moment_of(model))]
        assert not all(np.isfinite(values))


def test_a_networks_own_dropout_is_no_part_of_the_landscape() -> None:
    model = own(UsersNet)
    moment = moment_of(model)
    nowhere = replace(moment, lr=1e-9)
    rows = {row["quantity"]: row["value"] for row in LandscapeProbe(1).measure(nowhere)}
    assert rows["loss_max"] == pytest.approx(rows["loss"], abs=1e-5)
    assert rows["gradient_distance_max"] < 1e-5
