"""The order of weight, norm, activation and dropout, as the modules of every network are really called."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnexp.errors import ConfigError
from bnexp.nn import build_model
from bnexp.nn.layers import Dropout, stochastic_layers
from bnexp.nn.norms import make_norm_factory
from bnexp.nn.unit import ACTIVATIONS, Unit, UnitFactory

# network -> arguments; all for (N, 3, 8, 8)
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 4, "width": 4},
    "vgg": {"name": "vgg", "depth": 11, "width": 4},
    "mlp": {"name": "mlp", "depth": 2, "width": 16},
    "resnet": {"name": "resnet", "depth": 8, "width": 4},
    "preactivation": {"name": "resnet", "depth": 8, "width": 4, "preactivation": True},
}


def make(
    network: str,
    *,
    kind: str = "batch",
    placement: str = "before",
    dropout: float = 0.0,
    dropout_placement: str = "after",
    **norm_options: Any,
) -> nn.Module:
    norm = make_norm_factory(kind, **norm_options)
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "relu"}
    drop = {"dropout": dropout, "dropout_placement": dropout_placement}
    return build_model(norm=norm, placement=placement, **fixed, **drop, **SMALL[network])


class _Additions(TorchFunctionMode):
    """Notes every `a + b` of two tensors."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("add", "__add__") and all(isinstance(a, Tensor) for a in args):
            self.calls.append("+")
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[list[str]]:
    """The modules in the order of their calls: w(eight), n(orm), a(ct), p(ool), d(rop), h(ead); + is an addition."""
    calls: list[str] = []

    def note(module: nn.Module, _: Any, __: Any) -> None:
        calls.append(labels[module])

    labels: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in ("weight", "norm", "act", "head"):
            labels[module] = leaf[0]
        elif isinstance(module, nn.MaxPool2d | Dropout):
            labels[module] = "p" if isinstance(module, nn.MaxPool2d) else "d"
    handles = [module.register_forward_hook(note) for module in labels]
    with _Additions(calls):
        yield calls
    for handle in handles:
        handle.remove()


EXPECTED = {
    ("cnn", "before"): "wna wna p wna wna h",
    ("cnn", "after"): "wan wan p wan wan h",
    ("vgg", "before"): "wna p wna p wna wna p wna wna wna wna h",
    ("vgg", "after"): "wan p wan p wan wan p wan wan wan wan h",
    ("mlp", "before"): "wna wna h",
    ("mlp", "after"): "wan wan h",
    ("resnet", "before"): "wna wnawn+a wnawn+a wnawn+a h",
    ("resnet", "after"): "wan wanw+an wanw+an wanw+an h",
    ("preactivation", "before"): "w nawnaw+ nawnaw+ nawnaw+ na h",
    ("preactivation", "after"): "w anwanw+ anwanw+ anwanw+ an h",
}


@pytest.mark.parametrize("kind", ["batch", "none"])
@pytest.mark.parametrize(("network", "placement"), EXPECTED)
def test_modules_are_called_in_the_order_of_the_placement(network: str, placement: str, kind: str) -> None:
    model = make(network, kind=kind, placement=placement)
    with recorded_calls(model) as calls:
        model(torch.randn(4, 3, 8, 8))
    assert "".join(calls) == EXPECTED[network, placement].replace(" ", "")


# network, norm's placement, dropout's placement
EXPECTED_WITH_DROPOUT = {
    ("cnn", "before", "before"): "wdna wdna p wdna wdna h",
    ("cnn", "before", "after"): "wnad wnad p wnad wnad h",
    ("cnn", "before", "head"): "wna wna p wna wna dh",
    ("cnn", "after", "before"): "wadn wadn p wadn wadn h",
    ("cnn", "after", "after"): "wand wand p wand wand h",
    ("cnn", "after", "head"): "wan wan p wan wan dh",
    ("vgg", "before", "head"): "wna p wna p wna wna p wna wna wna wna dh",
    ("vgg", "after", "before"): "wadn p wadn p wadn wadn p wadn wadn wadn wadn h",
    ("mlp", "before", "before"): "wdna wdna h",
    ("mlp", "before", "after"): "wnad wnad h",
    ("mlp", "after", "before"): "wadn wadn h",
    ("mlp", "after", "after"): "wand wand h",
    ("mlp", "after", "head"): "wan wan dh",
    # the unit that ends a residual branch has no activation, and the tail no weight: neither has dropout
    ("resnet", "before", "before"): "wdna wdnawn+a wdnawn+a wdnawn+a h",
    ("resnet", "before", "after"): "wnad wnadwn+a wnadwn+a wnadwn+a h",
    ("resnet", "before", "head"): "wna wnawn+a wnawn+a wnawn+a dh",
    ("resnet", "after", "before"): "wadn wadnw+an wadnw+an wadnw+an h",
    ("resnet", "after", "after"): "wand wandw+an wandw+an wandw+an h",
    # nor the bare stem and the closing norm and activation
    ("preactivation", "before", "before"): "w dnawdnaw+ dnawdnaw+ dnawdnaw+ na h",
    ("preactivation", "before", "after"): "w nadwnadw+ nadwnadw+ nadwnadw+ na h",
    ("preactivation", "after", "before"): "w adnwadnw+ adnwadnw+ adnwadnw+ an h",
    ("preactivation", "after", "after"): "w andwandw+ andwandw+ andwandw+ an h",
    ("preactivation", "after", "head"): "w anwanw+ anwanw+ anwanw+ an dh",
}


@pytest.mark.parametrize("kind", ["batch", "none"])
@pytest.mark.parametrize(("network", "placement", "dropout_placement"), EXPECTED_WITH_DROPOUT)
def test_dropout_stands_where_its_placement_says(
    network: str, placement: str, dropout_placement: str, kind: str
) -> None:
    model = make(network, kind=kind, placement=placement, dropout=0.1, dropout_placement=dropout_placement)
    with recorded_calls(model) as calls:
        model(torch.randn(4, 3, 8, 8))
    assert "".join(calls) == EXPECTED_WITH_DROPOUT[network, placement, dropout_placement].replace(" ", "")


@pytest.mark.parametrize("dropout_placement", ["before", "after", "head"])
@pytest.mark.parametrize("network", SMALL)
def test_dropout_adds_no_parameters_and_at_zero_no_module(network: str, dropout_placement: str) -> None:
    dropped = make(network, dropout=0.2, dropout_placement=dropout_placement)
    without = make(network, dropout=0.0, dropout_placement=dropout_placement)
    layers = stochastic_layers(dropped)
    assert {layer.p for _, layer in layers if isinstance(layer, Dropout)} == {0.2}
    assert {name.rpartition(".")[2] for name, _ in layers} == {"drop"}
    assert stochastic_layers(without) == []
    dropped.load_state_dict(without.state_dict())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(dropped.eval()(x), without.eval()(x))
    assert not torch.equal(dropped.train()(x), without.train()(x))


def test_head_dropout_is_of_the_last_layers_input() -> None:
    model: Any = make("cnn", dropout=0.5, dropout_placement="head")
    seen: list[Tensor] = []
    model.drop.register_forward_hook(lambda _, inputs, out: seen.extend((inputs[0], out)))
    logits = model(torch.randn(8, 3, 8, 8))
    assert seen[0].shape == (8, 8)  # (N, C), pooled
    torch.testing.assert_close(logits, model.head(seen[1]))
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], 2 * seen[0][kept])


def dropped_ones(p: float, shape: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    layer = Dropout(p)
    layer.reseed(seed, torch.device("cpu"))
    return layer(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_so_many_and_keeps_the_expected_value(p: float) -> None:
    y = dropped_ones(p, (50, 20, 10, 10))
    assert {round(v, 5) for v in y.unique().tolist()} == {0.0, round(1 / (1 - p), 5)}
    error = math.sqrt(p * (1 - p) / y.numel())
    assert float((y == 0).double().mean()) == pytest.approx(p, abs=4 * error)
    assert float(y.double().mean()) == pytest.approx(1, abs=4 * error / (1 - p))
    # every value by itself: neither whole examples, channels nor positions
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1)):
        zeros = (y == 0).double().mean(axes)
        spread = math.sqrt(p * (1 - p) * zeros.numel() / y.numel())
        assert float(zeros.std(correction=0)) == pytest.approx(spread, rel=0.5)


def test_dropout_is_off_in_evaluation_and_its_gradient_has_the_same_zeros() -> None:
    layer = Dropout(0.4)
    x = torch.randn(20, 30, requires_grad=True)
    assert layer.eval()(x) is x
    y = layer.train()(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(y, x * x.grad)
    assert {round(v, 5) for v in x.grad.unique().tolist()} == {0.0, round(1 / 0.6, 5)}


def test_dropout_repeats_from_a_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    assert not Dropout(0.5)(torch.ones(100, 10)).all()  # nobody has seeded it
    first = dropped_ones(0.5, (100, 10))
    assert torch.equal(dropped_ones(0.5, (100, 10)), first)
    assert not torch.equal(dropped_ones(0.5, (100, 10), seed=1), first)
    layer = Dropout(0.5)
    layer.reseed(0, torch.device("cpu"))
    assert torch.equal(layer(torch.ones(100, 10)), first)
    assert not torch.equal(layer(torch.ones(100, 10)), first)  # new each step
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dropout_keeps_dtype_and_memory_format(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    y = Dropout(0.5)(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_unit_computes_what_its_order_says(placement: str) -> None:
    unit: Any = UnitFactory(make_norm_factory("batch"), placement, "tanh").linear(3, 5)
    x = torch.randn(16, 3)
    z = nn.functional.linear(x, unit.weight.weight, unit.weight.bias)

    def standardize(h: Tensor) -> Tensor:
        return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()

    want = standardize(z).tanh() if placement == "before" else standardize(z.tanh())
    torch.testing.assert_close(unit(x), want, rtol=1e-5, atol=1e-5)


def test_unit_children_are_named_alike_in_every_order() -> None:
    for placement in ("before", "after"):
        units = UnitFactory(make_norm_factory("batch"), placement, "relu")
        for unit in (units.conv(3, 4), units.linear(3, 4), units.preactivation_conv(3, 4)):
            assert sorted(dict(unit.named_children())) == ["act", "norm", "weight"]
        assert list(dict(units.preactivation_stem(3, 4).named_children())) == ["weight"]
        assert units.conv(3, 4, act=False).order == (("weight", "norm") if placement == "before" else ("weight",))
        assert units.tail(4).order == (("act",) if placement == "before" else ("act", "norm"))
        assert units.closing(4).order == (("norm", "act") if placement == "before" else ("act", "norm"))


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("kind", ["none", "batch", "group"])
def test_norm_of_a_preactivation_unit_has_the_features_of_its_input(kind: str, placement: str) -> None:
    units = UnitFactory(make_norm_factory(kind), placement, "relu")
    assert units.preactivation_conv(8, 16, stride=2)(torch.randn(2, 8, 6, 6)).shape == (2, 16, 3, 3)
    assert units.conv(8, 16, kernel=5, stride=2)(torch.randn(2, 8, 6, 6)).shape == (2, 16, 3, 3)


def weights(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Every weight but the head's."""
    named = model.named_modules()
    return [m for name, m in named if isinstance(m, nn.Conv2d | nn.Linear) and name != "head"]


@pytest.mark.parametrize("network", SMALL)
def test_weight_has_a_bias_unless_a_norm_replaces_it(network: str) -> None:
    def biases(**arguments: Any) -> set[bool]:
        model: Any = make(network, **arguments)
        assert model.head.bias is not None
        return {weight.bias is not None for weight in weights(model)}

    assert biases(kind="batch", placement="before") == {False}
    assert biases(kind="batch", placement="after") == {True}
    assert biases(kind="none", placement="before") == {True}
    assert biases(kind="none", placement="after") == {True}
    assert biases(kind="layer", affine="none") == {True}
    assert biases(kind="batch", affine="none") == {False}
    assert biases(kind="batch", affine="both", freeze_at=1) == {False}
    assert biases(kind="batch", affine="scale", freeze_at=1) == {True}


@pytest.mark.parametrize("network", SMALL)
def test_bias_that_is_left_out_would_have_changed_nothing(network: str) -> None:
    model = make(network).double()
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    without = model(x)
    for weight in weights(model):
        weight.bias = nn.Parameter(torch.randn(weight.weight.shape[0], dtype=torch.float64))
    torch.testing.assert_close(model(x), without, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("network", SMALL)
def test_hooks_see_what_a_module_really_returned(network: str, placement: str) -> None:
    """An activation in place would rewrite what a hook has stored, and a full backward hook refuses it."""
    model = make(network, placement=placement)
    seen: list[tuple[str, Tensor, Tensor]] = []
    backward: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, out, name=name: seen.append((name, out, out.detach().clone())))
            module.register_full_backward_hook(lambda *_, name=name: backward.append(name))
    model(torch.randn(4, 3, 8, 8, requires_grad=True)).sum().backward()
    assert len(seen) == len(backward) > 4
    for name, stored, copy in seen:
        assert torch.equal(stored, copy), name


@pytest.mark.parametrize(
    ("activation", "want"),
    [
        ("relu", [0.0, 0.0, 2.0]),
        ("tanh", [-0.7615942, 0.0, 0.9640276]),
        ("sigmoid", [0.2689414, 0.5, 0.8807971]),
        ("gelu", [-0.1586553, 0.0, 1.9544997]),
        ("leaky_relu", [-0.01, 0.0, 2.0]),
    ],
)
def test_activation_values(activation: str, want: list[float]) -> None:
    torch.testing.assert_close(ACTIVATIONS[activation]()(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor(want))


def test_activations_are_all_tested() -> None:
    assert sorted(ACTIVATIONS) == ["gelu", "leaky_relu", "relu", "sigmoid", "tanh"]


def test_unit_factory_refuses_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.placement: 'behind' is not one of before, after"):
        UnitFactory(make_norm_factory("batch"), "behind", "relu")
    with pytest.raises(ConfigError, match=r"^model\.activation: 'rleu' is not one of .*did you mean 'relu'"):
        UnitFactory(make_norm_factory("batch"), "before", "rleu")
    with pytest.raises(ConfigError, match=r"^model\.dropout_placement: 'behind' is not one of before, after, head"):
        UnitFactory(make_norm_factory("batch"), "before", "relu", dropout_placement="behind")


def test_unit_refuses_an_order_without_its_parts() -> None:
    with pytest.raises(AssertionError):
        Unit(("weight", "norm"), weight=nn.Linear(2, 2))
