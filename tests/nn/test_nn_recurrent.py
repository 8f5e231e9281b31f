"""LSTM and GRU against torch's own, and their norms against an unrolled float64 formula with means and variances."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.data.sources import load_digits
from bnexp.errors import ConfigError
from bnexp.nn.init import init_parameters
from bnexp.nn.layers import activation_layers, norm_layers, running_norms, stochastic_layers, weight_layers
from bnexp.nn.norms import NORMS, make_norm_factory
from bnexp.nn.recurrent import Gru, InitialNoise, Lstm, Recurrent, StepNorm
from bnexp.nn.statistics import batch_statistics, measure_statistics
from bnexp.nn.unit import NormPositions, UnitFactory
from bnexp.seeding import seed_for

N, CHANNELS, SIDE, CLASSES, WIDTH, DEPTH = 7, 2, 4, 3, 6, 2
EPS = 1e-3  # not the default, and large enough to be seen
MOMENTUM = 0.3
CELLS = [Lstm, Gru]
REFUSED = ("instance", "filter_response", "group_ws")
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "batch": {"eps": EPS, "momentum": MOMENTUM},
    "layer": {"eps": EPS},
    "group": {"num_groups": 2},
    "ghost": {"ghost_size": N},
    "noisy_batch": {"eps": EPS, "momentum": MOMENTUM},
}

Normalize = Callable[[str, int, Tensor], Tensor]


def make(cell: type[Recurrent] = Lstm, kind: str = "batch", *, seed: int = 0, **changes: Any) -> Any:
    """A float64 network with every parameter drawn, so that no gamma is 1 and no bias 0; its first state is 0."""
    norm = make_norm_factory(kind, **OPTIONS.get(kind, {}) | changes.pop("norm", {}))
    arguments: dict[str, Any] = {"depth": DEPTH, "width": WIDTH, "units": UnitFactory(norm, "before", "tanh")}
    model = cell(CHANNELS, SIDE, CLASSES, **arguments | {"initial_noise": 0.0} | changes).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def images(*, seed: int = 0, num: int = N) -> Tensor:
    """(num, C, H, W) with a mean and scale of its own in every row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    rows = torch.arange(SIDE).double().view(1, 1, SIDE, 1)
    return x * (1 + 0.5 * rows) + rows - 1


def by_rows(x: Tensor) -> list[Tensor]:
    """The steps of images read by rows, (N, C·W) each."""
    return [torch.cat([x[:, c, row] for c in range(x.shape[1])], 1) for row in range(x.shape[2])]


def by_pixels(x: Tensor) -> list[Tensor]:
    """The steps of images read by pixels, (N, C) each."""
    return [x[:, :, row, column] for row in range(x.shape[2]) for column in range(x.shape[3])]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def unrolled(
    model: Recurrent, steps: Sequence[Tensor], normalize: Normalize, starts: Sequence[tuple[Tensor, Tensor]] = ()
) -> Tensor:
    """The logits by the textbook, gate by gate, from each layer's first h and c, or from zeros."""
    p = dict(model.named_parameters())
    states = list(steps)
    for layer in range(len(model.layers)):
        name = f"layers.{layer}"
        w_x, w_h, b = p[f"{name}.input.weight.weight"], p[f"{name}.hidden.weight.weight"], p[f"{name}.bias"]
        h = c = torch.zeros(len(steps[0]), WIDTH, dtype=torch.float64)
        h, c = starts[layer] if starts else (h, c)
        outputs = []
        for t, x in enumerate(states):
            from_x = normalize(f"{name}.input.norm", t, x @ w_x.T) + b
            from_h = normalize(f"{name}.hidden.norm", t, h @ w_h.T)
            k = [slice(gate * WIDTH, (gate + 1) * WIDTH) for gate in range(4)]
            if isinstance(model, Lstm):
                i, f, g, o = (from_x[:, s] + from_h[:, s] for s in k)
                c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
                h = sigmoid(o) * torch.tanh(normalize(f"{name}.cell.norm", t, c))
            else:
                r = sigmoid(from_x[:, k[0]] + from_h[:, k[0]])
                z = sigmoid(from_x[:, k[1]] + from_h[:, k[1]])
                n = torch.tanh(from_x[:, k[2]] + r * (from_h[:, k[2]] + p[f"{name}.hidden_bias"]))
                h = (1 - z) * n + z * h
            outputs.append(h)
        states = outputs
    return states[-1] @ p["head.weight"].T + p["head.bias"]


class BatchFormula:
    """Batch norm by hand: `training` notes every step's mean and variance and moves running ones, `evaluation` reads.

    Args:
        num_kept: steps with running statistics of their own; later ones use the last of them.
    """

    def __init__(self, model: Recurrent, num_kept: int, momentum: float = MOMENTUM) -> None:
        self.model, self.last, self.momentum = model, num_kept - 1, momentum
        self.noted: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.running: dict[tuple[str, int], tuple[Any, Any]] = {}

    def training(self, name: str, t: int, x: Tensor) -> Tensor:
        num = len(x)
        mean = x.sum(0) / num
        var = ((x - mean) ** 2).sum(0) / num
        self.noted[name, t] = (mean.detach(), var.detach())
        key = (name, min(t, self.last))
        old_mean, old_var = self.running.get(key, (0.0, 1.0))
        self.running[key] = (
            (1 - self.momentum) * old_mean + self.momentum * mean.detach(),
            (1 - self.momentum) * old_var + self.momentum * var.detach() * num / (num - 1),
        )
        return self._scaled(name, (x - mean) / torch.sqrt(var + EPS))

    def evaluation(self, name: str, t: int, x: Tensor) -> Tensor:
        mean, var = self.running[name, min(t, self.last)]
        return self._scaled(name, (x - mean) / torch.sqrt(var + EPS))

    def _scaled(self, name: str, x_hat: Tensor) -> Tensor:
        return scaled(self.model, name, x_hat)


def scaled(model: Recurrent, name: str, x_hat: Tensor) -> Tensor:
    """gamma x_hat, and + beta for the cell state alone."""
    inner: Any = model.get_submodule(f"{name}.steps.0")
    inner = inner[0] if isinstance(inner, nn.Sequential) else inner  # noisy batch norm's batch norm
    y = x_hat * inner.weight
    return y + inner.bias if name.endswith("cell.norm") else y


def assert_same(model: Recurrent, got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    """Values, and gradients of a random projection by every parameter."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), list(model.parameters()), retain_graph=True) for y in (got, want)]
    for name, a, b in zip(names, *grads, strict=True):
        assert a.abs().max() > 1e-6, name
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def assert_running(model: Recurrent, want: dict[tuple[str, int], tuple[Tensor, Tensor]], tolerance: float) -> None:
    found: dict[tuple[str, int], Any] = {}
    for full_name, norm in running_norms(model):
        match = re.fullmatch(r"(.+)\.steps\.(\d+)(\.0)?", full_name)
        assert match
        found[match[1], int(match[2])] = norm
    assert found.keys() == want.keys()
    for key, (mean, var) in want.items():
        torch.testing.assert_close(found[key].running_mean, mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found[key].running_var, var, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_without_norm_it_is_torchs_own(cell: type[Recurrent]) -> None:
    model, kind = make(cell, "none"), {Lstm: nn.LSTM, Gru: nn.GRU}[cell]
    theirs: Any = kind(CHANNELS * SIDE, WIDTH, num_layers=DEPTH).double()
    with torch.no_grad():
        for k, layer in enumerate(model.layers):
            getattr(theirs, f"weight_ih_l{k}").copy_(layer.input.weight.weight)
            getattr(theirs, f"weight_hh_l{k}").copy_(layer.hidden.weight.weight)
            # where torch adds two biases, only their sum counts: here it is split anyhow
            second = getattr(theirs, f"bias_hh_l{k}")
            if cell is Gru:
                second[2 * WIDTH :] = 0
            getattr(theirs, f"bias_ih_l{k}").copy_(layer.bias - second)
            if cell is Gru:
                second[2 * WIDTH :] = layer.hidden_bias
    x = images()
    outputs, _ = theirs(torch.stack(by_rows(x)))
    want, got = F.linear(outputs[-1], model.head.weight, model.head.bias), model(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    got.square().sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    want.square().sum().backward()
    for k in range(DEPTH):
        pairs = {
            f"layers.{k}.input.weight.weight": getattr(theirs, f"weight_ih_l{k}").grad,
            f"layers.{k}.hidden.weight.weight": getattr(theirs, f"weight_hh_l{k}").grad,
            f"layers.{k}.bias": getattr(theirs, f"bias_ih_l{k}").grad,
        }
        if cell is Gru:
            pairs[f"layers.{k}.hidden_bias"] = getattr(theirs, f"bias_hh_l{k}").grad[2 * WIDTH :]
        for name, grad in pairs.items():
            assert grad.abs().max() > 1e-4
            torch.testing.assert_close(ours.pop(name), grad, rtol=1e-10, atol=1e-10)
    assert ours.keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("step_statistics", ["per_step", "shared"])
@pytest.mark.parametrize("cell", CELLS)
def test_batch_norm_matches_the_unrolled_formula(cell: type[Recurrent], step_statistics: str) -> None:
    model = make(cell, step_statistics=step_statistics)
    shared = {"num_kept": 1, "momentum": 1 - (1 - MOMENTUM) ** (1 / SIDE)}  # 0.7 is left of the old after SIDE steps
    formula = BatchFormula(model, **{"num_kept": SIDE} if step_statistics == "per_step" else shared)
    for seed in range(3):
        x = images(seed=seed)
        assert_same(model, model(x), unrolled(model, by_rows(x), formula.training))
        assert_running(model, formula.running, 1e-10)
    model.eval()
    x = images(seed=5, num=3)
    assert_same(model, model(x), unrolled(model, by_rows(x), formula.evaluation))
    assert_running(model, formula.running, 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_matches_the_unrolled_formula(cell: type[Recurrent], training: bool) -> None:
    model = make(cell, "layer").train(training)

    def normalize(name: str, t: int, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        return scaled(model, name, (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + EPS))

    assert_same(model, model(images()), unrolled(model, by_rows(images()), normalize))


@pytest.mark.parametrize("sequence", ["rows", "pixels"])
def test_steps_are_read_in_order(sequence: str) -> None:
    model = make(kind="none", sequence=sequence, depth=1)
    steps = {"rows": by_rows, "pixels": by_pixels}[sequence](images())
    torch.testing.assert_close(model(images()), unrolled(model, steps, lambda name, t, x: x), rtol=1e-10, atol=1e-10)
    channels_last = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last), model(images()), rtol=1e-12, atol=1e-12)


def test_running_statistics_of_a_step_are_of_that_step_alone() -> None:
    first, other = make(depth=1), make(depth=1)
    x = images()
    first(x)
    x[:, :, 2] = 5 * x[:, :, 2] + 3
    other(x)

    def changed(transform: str) -> list[bool]:
        pairs = zip(getattr(first.layers[0], transform).norm.steps, getattr(other.layers[0], transform).norm.steps,
                    strict=True)  # fmt: skip
        return [not torch.equal(a.running_mean, b.running_mean) for a, b in pairs]

    assert changed("input") == [False, False, True, False]
    assert changed("hidden") == [False, False, False, True]  # the state after step 2 is first read at step 3
    assert changed("cell") == [False, False, True, True]


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_are_shared_by_all_steps_and_buffers_are_not(cell: type[Recurrent]) -> None:
    per_step, shared, layer = make(cell), make(cell, step_statistics="shared"), make(cell, "layer")
    names = [name for name, _ in per_step.named_parameters()]
    assert names == [name for name, _ in shared.named_parameters()]
    assert names == [name for name, _ in layer.named_parameters()]
    gates = 4 if cell is Lstm else 3
    # gamma of two transforms; gamma and beta of the cell state, which only the LSTM has
    extra = DEPTH * WIDTH * (2 * gates + (2 if cell is Lstm else 0))
    assert sum(p.numel() for p in per_step.parameters()) == extra + sum(
        p.numel() for p in make(cell, "none").parameters()
    )
    norms = DEPTH * (3 if cell is Lstm else 2)
    assert len(list(per_step.buffers())) == 3 * SIDE * norms
    assert len(list(shared.buffers())) == 3 * norms
    assert not list(layer.buffers())
    assert {len(m.steps) for m in layer.modules() if isinstance(m, StepNorm)} == {1}


def test_parameters_stay_shared_when_copied_cast_and_loaded() -> None:
    model = make()
    count = len(list(model.parameters()))
    copied = copy.deepcopy(model).float().to(memory_format=torch.channels_last)
    assert len(list(copied.parameters())) == count
    copied.load_state_dict(model.state_dict())
    assert len(list(copied.parameters())) == count
    steps = copied.layers[0].cell.norm.steps
    assert all(step.weight is steps[0].weight and step.bias is steps[0].bias for step in steps)


@pytest.mark.parametrize("affine", ["both", "scale", "shift", "none"])
def test_beta_is_left_out_where_a_bias_follows(affine: str) -> None:
    layer = make(norm={"affine": affine}).layers[0]

    def has(norm: Any) -> tuple[bool, bool]:
        return norm.steps[0].weight is not None, norm.steps[0].bias is not None

    gamma, beta = affine in ("both", "scale"), affine in ("both", "shift")
    assert has(layer.input.norm) == has(layer.hidden.norm) == (gamma, False)
    assert has(layer.cell.norm) == (gamma, beta)


@pytest.mark.parametrize("kind", ["batch", "layer", "noisy_batch", "ghost", "batch_renorm", "group"])
@pytest.mark.parametrize(("changes", "want"), [({}, 0.1), ({"gamma_init": 0.7}, 0.7)])
def test_gamma_starts_at_gamma_init(kind: str, changes: dict[str, float], want: float) -> None:
    units = UnitFactory(make_norm_factory(kind, **OPTIONS.get(kind, {})), "before", "tanh")
    model = Lstm(CHANNELS, SIDE, CLASSES, depth=2, width=WIDTH, units=units, **changes)  # type: ignore[arg-type]
    init_parameters(model, scheme="he", gain=1.0, activation="tanh", seed_of=partial(seed_for, 0, "init"))
    gammas = {n: p for n, p in model.named_parameters() if ".norm." in n and n.endswith("weight")}
    betas = {n: p for n, p in model.named_parameters() if ".norm." in n and n.endswith("bias")}
    assert len(gammas) == 6
    assert len(betas) == 2
    assert all(torch.equal(gamma, torch.full_like(gamma, want)) for gamma in gammas.values())
    assert not any(beta.any() for beta in betas.values())


def test_finish_init_opens_the_forget_gate_alone() -> None:
    units = UnitFactory(make_norm_factory("batch"), "before", "tanh")
    model = Lstm(CHANNELS, SIDE, CLASSES, depth=2, width=WIDTH, units=units)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.finish_init()
    for name, value in model.state_dict().items():
        if name in ("layers.0.bias", "layers.1.bias"):
            assert value.tolist() == [0.0] * WIDTH + [1.0] * WIDTH + [0.0] * 2 * WIDTH
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("train_steps", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_past_the_trained_ones_use_the_last_ones_statistics(cell: type[Recurrent], train_steps: int) -> None:
    model = make(cell, train_steps=train_steps)
    formula = BatchFormula(model, train_steps)
    for seed in range(3):
        x = images(seed=seed)
        got = model(x)
        want = unrolled(model, by_rows(x)[:train_steps], formula.training)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert_running(model, formula.running, 1e-10)
    x = images(seed=5)
    model.eval()
    torch.testing.assert_close(model(x), unrolled(model, by_rows(x), formula.evaluation), rtol=1e-9, atol=1e-9)


def test_train_steps_truncate_in_training_only() -> None:
    model = make(train_steps=2)
    x = images()
    changed = x.clone()
    changed[:, :, 2:] += 1
    assert torch.equal(model(x), model(changed))
    model.eval()
    assert not torch.equal(model(x), model(changed))


def test_permutation_is_one_for_all_networks() -> None:
    first, other = make(permute=True), make(Gru, "none", seed=1, depth=1, permute=True)
    assert torch.equal(first.permutation, other.permutation)
    assert sorted(first.permutation.tolist()) == list(range(SIDE))
    assert make().permutation is None
    pixels = make(permute=True, sequence="pixels").permutation.tolist()
    assert sorted(pixels) == list(range(SIDE**2))
    # runs of other days and machines must have read the same order
    assert pixels == [2, 0, 10, 8, 15, 14, 7, 11, 1, 6, 3, 9, 5, 13, 4, 12]


@pytest.mark.parametrize("sequence", ["rows", "pixels"])
def test_permuted_sequence_is_the_same_steps_in_another_order(sequence: str) -> None:
    model = make(kind="none", permute=True, sequence=sequence)
    steps = {"rows": by_rows, "pixels": by_pixels}[sequence](images())
    order = model.permutation.tolist()
    assert order != sorted(order)
    want = unrolled(model, [steps[t] for t in order], lambda name, t, x: x)
    torch.testing.assert_close(model(images()), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("permute", [True, False])
def test_state_dict_round_trip(permute: bool) -> None:
    model, other = make(permute=permute), make(seed=1, permute=permute)
    for seed in range(2):
        model(images(seed=seed))
    assert "permutation" not in model.state_dict()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = images(seed=3)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert torch.equal(model.train()(x), other.train()(x))


@pytest.mark.parametrize("sequence", ["rows", "pixels"])
@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind not in REFUSED])
@pytest.mark.parametrize("cell", CELLS)
def test_shapes_on_the_meta_device(cell: type[Recurrent], kind: str, sequence: str) -> None:
    norm = make_norm_factory(kind, **OPTIONS.get(kind, {}))
    with torch.device("meta"):
        units = UnitFactory(norm, "before", "tanh")
        model = cell(
            CHANNELS, SIDE, CLASSES, depth=2, width=WIDTH, units=units, sequence=sequence, permute=True, train_steps=3
        )
        assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
        for training in (True, False):
            out = model.train(training)(torch.empty(N, CHANNELS, SIDE, SIDE))
            assert (out.shape, out.device.type) == ((N, CLASSES), "meta")


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind not in REFUSED])
@pytest.mark.parametrize("cell", CELLS)
def test_every_norm_trains_and_evaluates_under_autocast_too(cell: type[Recurrent], kind: str) -> None:
    for bf16 in (False, True):
        model = make(cell, kind, initial_noise=0.1).float()
        x = images().float()
        for training in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = model.train(training)(x)
            assert out.isfinite().all()
            out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert {b.dtype for name, b in model.named_buffers() if "running" in name} <= {torch.float32}


def test_layers_are_found_by_name() -> None:
    model = make()
    parts = [f"layers.{k}.{part}" for k in range(DEPTH) for part in ("input", "hidden", "cell")]
    assert [name for name, _ in norm_layers(model)] == parts
    assert [name for name, _ in activation_layers(model)] == ["layers.0.cell", "layers.1.cell"]
    assert [name for name, _ in weight_layers(model)] == [p for p in parts if "cell" not in p] + ["head"]
    assert [name for name, _ in activation_layers(make(Gru))] == ["layers.0.cell", "layers.1.cell"]
    assert norm_layers(make(kind="none")) == []


@pytest.mark.parametrize("cell", CELLS)
def test_activation_is_called_at_every_step(cell: type[Recurrent]) -> None:
    model = make(cell)
    shapes: list[tuple[int, ...]] = []
    for _, act in activation_layers(model):
        act.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(images())
    assert shapes == [(N, WIDTH)] * DEPTH * SIDE


def batches() -> list[Tensor]:
    """Of different sizes, means and scales."""
    return [images(seed=2), 2 * images(seed=3, num=4) + 1, images(seed=4) - 2]


@pytest.mark.parametrize("kind", ["batch", "noisy_batch"])
@pytest.mark.parametrize("train_steps", [None, 1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_measured_statistics_of_each_step_are_exact(cell: type[Recurrent], train_steps: int | None, kind: str) -> None:
    """Those of the last trained step are its own alone, though evaluation has the later steps use them too."""
    model = make(cell, kind, train_steps=train_steps, initial_noise=0.1)
    model(images(seed=1))
    modes = [module.training for module in model.modules()]
    measure_statistics(model, batches)
    assert [module.training for module in model.modules()] == modes
    # with all before it exact, each step sees what it would see if everything were one batch
    formula = BatchFormula(model, SIDE)
    unrolled(model, by_rows(torch.cat(batches()))[:train_steps], formula.training)
    assert_running(model, formula.noted, 1e-10)


class Pooled:
    """Batch norm by each call's own batch, and the inputs of all calls of a norm together."""

    def __init__(self, model: Recurrent) -> None:
        self.model = model
        self.inputs: dict[str, list[Tensor]] = {}

    def normalize(self, name: str, t: int, x: Tensor) -> Tensor:
        self.inputs.setdefault(name, []).append(x.detach())
        return scaled(self.model, name, (x - x.mean(0)) / torch.sqrt(((x - x.mean(0)) ** 2).mean(0) + EPS))

    def moments(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        whole = {name: torch.cat(inputs) for name, inputs in self.inputs.items()}
        return {(name, 0): (x.mean(0), ((x - x.mean(0)) ** 2).mean(0)) for name, x in whole.items()}


@pytest.mark.parametrize("kind", ["batch", "noisy_batch"])
@pytest.mark.parametrize("train_steps", [None, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_measured_shared_statistics_are_pooled_over_steps_and_batches(
    cell: type[Recurrent], train_steps: int | None, kind: str
) -> None:
    model = make(cell, kind, step_statistics="shared", train_steps=train_steps)
    pooled = Pooled(model)
    for x in batches():
        unrolled(model, by_rows(x)[:train_steps], pooled.normalize)
    for seed in (1, 6):  # from two different pasts, and once more from its own result
        for step in range(seed):
            model(3 * images(seed=step))
        for _ in range(2):
            measure_statistics(model, batches)
            assert_running(model, pooled.moments(), 1e-10)
    once = copy.deepcopy(model.state_dict())
    measure_statistics(model, batches)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("cell", CELLS)
def test_measured_shared_statistics_of_one_trained_step_are_exact(cell: type[Recurrent]) -> None:
    model = make(cell, step_statistics="shared", train_steps=1)
    model(images(seed=1))
    measure_statistics(model, batches)
    formula = BatchFormula(model, 1)
    unrolled(model, by_rows(torch.cat(batches()))[:1], formula.training)
    assert_running(model, formula.noted, 1e-10)


def test_measured_shared_statistics_stand_behind_an_exact_norm_of_the_input() -> None:
    units = UnitFactory(make_norm_factory("batch", **OPTIONS["batch"]), "before", "tanh", NormPositions(None, True))
    model = make(units=units, step_statistics="shared")
    measure_statistics(model, batches)
    whole = torch.cat(batches())
    mean = whole.mean((0, 2, 3), keepdim=True)
    sigma = torch.sqrt(((whole - mean) ** 2).mean((0, 2, 3), keepdim=True) + EPS)
    gamma, beta = (getattr(model.input_norm, name).view(1, -1, 1, 1) for name in ("weight", "bias"))
    torch.testing.assert_close(model.input_norm.running_mean, mean.flatten(), rtol=1e-10, atol=1e-10)
    pooled = Pooled(model)
    for x in batches():
        unrolled(model, by_rows((x - mean) / sigma * gamma + beta), pooled.normalize)
    norm: Any = model.layers[0].cell.norm.steps[0]
    want_mean, want_var = pooled.moments()["layers.0.cell.norm", 0]
    torch.testing.assert_close(norm.running_mean, want_mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.running_var, want_var, rtol=1e-10, atol=1e-10)


def test_step_past_the_last_one_calls_the_last_ones_norm() -> None:
    norm = StepNorm(lambda: nn.BatchNorm1d(3), 3)
    called: list[tuple[int, nn.Module]] = []
    for module in norm.steps:
        module.register_forward_hook(lambda module, *_: called.append((now, module)))
    for now in (0, 1, 2, 3, 7):
        norm(torch.randn(4, 3), now)
    assert called == [(step, norm.steps[min(step, 2)]) for step in (0, 1, 2, 3, 7)]


@pytest.mark.parametrize("step_statistics", ["per_step", "shared"])
@pytest.mark.parametrize("cell", CELLS)
def test_batch_statistics_are_each_steps_own_past_the_trained_ones_too(
    cell: type[Recurrent], step_statistics: str
) -> None:
    model = make(cell, train_steps=2, step_statistics=step_statistics)
    model(images(seed=1))
    x = images(seed=5)
    with batch_statistics(model):
        got = model(x)
    torch.testing.assert_close(got, unrolled(model, by_rows(x), Pooled(model).normalize), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train_steps", [None, 3])
@pytest.mark.parametrize("kind", ["batch", "ghost", "noisy_batch"])
@pytest.mark.parametrize("cell", CELLS)
def test_one_pass_leaves_as_much_of_shared_statistics_as_one_batch_of_the_others(
    cell: type[Recurrent], kind: str, train_steps: int | None
) -> None:
    norm = {"momentum": MOMENTUM}
    model = make(cell, kind, norm=norm, step_statistics="shared", train_steps=train_steps)
    other = copy.deepcopy(model)
    for _, layer in running_norms(other):
        layer.get_buffer("running_mean").add_(50)
        layer.get_buffer("running_var").add_(80)
    for each in (model, other):
        for _, noise in stochastic_layers(each):
            noise.reseed(0, torch.device("cpu"))
        each(images())
    for (_, a), (_, b) in zip(running_norms(model), running_norms(other), strict=True):
        for name, added in (("running_mean", 50), ("running_var", 80)):
            left = b.get_buffer(name) - a.get_buffer(name)
            torch.testing.assert_close(left, torch.full_like(left, 0.7 * added), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_shared_statistics_weigh_all_steps_nearly_alike(cell: type[Recurrent]) -> None:
    """Rows with means 0 to 27: with the plain momentum the running mean would be near that of the last ten."""
    units = UnitFactory(make_norm_factory("batch"), "before", "tanh")
    model = cell(1, 28, 3, depth=1, width=2, units=units, step_statistics="shared")
    rows = torch.arange(28.0).view(1, 1, 28, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.get_parameter("layers.0.input.weight.weight").fill_(1 / 28)  # its output is the row's mean
        for _ in range(100):
            model(rows + torch.randn(64, 1, 28, 28, generator=generator))
    norm: Any = model.get_submodule("layers.0.input.norm.steps.0")
    # the last step's weight is 1/0.9 of the first one's: by 0.25 to the later steps
    torch.testing.assert_close(norm.running_mean, torch.full_like(norm.running_mean, 13.5), rtol=0, atol=0.35)
    assert norm.running_mean.min() > 13.6


def test_momentum_of_shared_statistics_alone_is_by_steps() -> None:
    def momenta(**changes: Any) -> set[float | None]:
        return {norm.momentum for _, norm in running_norms(make(**changes))}

    assert momenta() == {MOMENTUM}
    assert momenta(norm={"momentum": None}, step_statistics="shared") == {None}
    units = UnitFactory(make_norm_factory("batch", momentum=0.3), "before", "tanh", NormPositions(None, True))
    model = make(units=units, step_statistics="shared")
    assert model.input_norm.momentum == 0.3  # which runs once a pass


@pytest.mark.parametrize("prefix", [28, 60])
@pytest.mark.parametrize("cell", CELLS)
def test_initial_noise_keeps_gradients_finite_past_a_blank_beginning(cell: type[Recurrent], prefix: int) -> None:
    def largest_gradient(**changes: float) -> float:
        units = UnitFactory(make_norm_factory("batch"), "before", "tanh")
        model = cell(1, 8, 3, depth=1, width=8, units=units, sequence="pixels", **changes)  # type: ignore[arg-type]
        init_parameters(model, scheme="xavier", gain=1.0, activation="tanh", seed_of=partial(seed_for, 0, "init"))
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        x[:, :prefix] = 0.5
        F.cross_entropy(model(x.view(32, 1, 8, 8)), torch.arange(32) % 3).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return float(torch.stack([g.abs().max() for g in gradients]).max())  # nan where one is

    assert largest_gradient() < 10
    assert not largest_gradient(initial_noise=0.0) < 1e9  # most are nan


def test_initial_noise_is_normal_with_its_standard_deviation() -> None:
    noise = InitialNoise(0.3)
    noise.reseed(1, torch.device("cpu"))
    state = torch.full((400, 250), 2.0, dtype=torch.float64)
    drawn = (noise(state) - 2).numpy().ravel()
    assert abs(drawn.mean()) < 4 * 0.3 / len(drawn) ** 0.5
    assert drawn.std() == pytest.approx(0.3, rel=4 / (2 * len(drawn)) ** 0.5)
    assert stats.kstest(drawn[::10] / 0.3, stats.norm.cdf).pvalue > 1e-3
    assert noise.eval()(state) is state
    assert InitialNoise(0.0)(state) is state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_initial_noise_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert InitialNoise(0.3)(torch.zeros(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("cell", CELLS)
def test_initial_noise_starts_every_layers_states_in_training_alone(cell: type[Recurrent]) -> None:
    model = make(cell, initial_noise=0.5)
    drawn: list[Tensor] = []
    names = [name for name, _ in stochastic_layers(model)]
    assert names == ["layers.0.start", "layers.1.start"]
    for index, (_, layer) in enumerate(stochastic_layers(model)):
        layer.reseed(index, torch.device("cpu"))
        layer.register_forward_hook(lambda _, __, out: drawn.append(out))
    x = images()
    got = model(x)
    # h and then, in an LSTM, c, each its own
    starts = [(h, c) for h, c in zip(drawn[::2], drawn[1::2], strict=True)] if cell is Lstm else [(h, h) for h in drawn]
    assert len(starts) == DEPTH
    assert len({tensor.sum().item() for pair in starts for tensor in pair}) == (4 if cell is Lstm else 2)
    want = unrolled(model, by_rows(x), Pooled(model).normalize, starts)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    drawn.clear()
    model.eval()(x)
    assert not any(state.any() for state in drawn)
    units = UnitFactory(make_norm_factory("none"), "before", "tanh")
    by_default: Any = cell(CHANNELS, SIDE, CLASSES, depth=1, width=2, units=units)
    assert by_default.layers[0].start.std == 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_initial_noise_repeats_from_a_seed_and_leaves_the_global_generator_alone(cell: type[Recurrent]) -> None:
    model, x = make(cell, "none", initial_noise=0.1), images()
    before = torch.get_rng_state()

    def passes(seed: int) -> Tensor:
        for index, (_, layer) in enumerate(stochastic_layers(model)):
            layer.reseed(seed + 10 * index, torch.device("cpu"))
        return torch.stack([model(x) for _ in range(2)])

    unseeded = model(x)
    first = passes(5)
    assert torch.equal(passes(5), first)
    assert not torch.equal(passes(6), first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(unseeded, model.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["none", "batch"])
def test_it_learns_digits_by_rows(kind: str) -> None:
    digits = load_digits()
    x, test_x = (torch.from_numpy(a).float() / 255 for a in (digits.train_images, digits.test_images))
    y, test_y = (torch.from_numpy(a) for a in (digits.train_labels, digits.test_labels))
    model = Lstm(1, 8, 10, depth=1, width=32, units=UnitFactory(make_norm_factory(kind), "before", "tanh"))
    init_parameters(model, scheme="xavier", gain=1.0, activation="tanh", seed_of=partial(seed_for, 0, "init"))
    model.finish_init()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for index in torch.randperm(len(y), generator=generator).split(64)[:-1]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    accuracy = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
    assert accuracy > 0.85


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": "row"}, r"^model\.sequence: 'row' is not one of rows, pixels \(did you mean 'rows'\?\)$"),
        ({"step_statistics": "share"}, r"^model\.step_statistics: 'share' is not one of per_step, shared"),
        ({"train_steps": 0}, r"^model\.train_steps: 0: this sequence has 1 to 4 steps$"),
        ({"train_steps": 5}, r"^model\.train_steps: 5: this sequence has 1 to 4 steps$"),
        ({"train_steps": 17, "sequence": "pixels"}, r"^model\.train_steps: 17: this sequence has 1 to 16 steps$"),
    ],
)
def test_unusable_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)
    assert make(sequence="pixels", train_steps=16).train_steps == 16


@pytest.mark.parametrize("cell", CELLS)
def test_units_that_it_cannot_use_are_refused(cell: type[Recurrent]) -> None:
    batch = make_norm_factory("batch")
    with pytest.raises(ConfigError, match=r"^model\.activation: 'relu': .*gates .*fixed"):
        make(cell, units=UnitFactory(batch, "before", "relu"))
    with pytest.raises(ConfigError, match=r"^norm\.placement: 'after': .*norm\.placement=before"):
        make(cell, units=UnitFactory(batch, "after", "tanh"))
    make(cell, units=UnitFactory(make_norm_factory("none"), "after", "tanh"))
    for kind in REFUSED:
        with pytest.raises(ConfigError, match=rf"^norm\.kind: '{kind}'"):
            make(cell, kind)
