"""`norm.where`: which norms stand and which weights then have a bias, as every network really runs them."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn import build_model, count_norm_positions
from bnexp.nn.layers import norm_layers, weight_layers
from bnexp.nn.norms import make_norm_factory
from bnexp.nn.where import canonical_where, select_positions

# all for (N, 3, 8, 8)
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 4, "width": 4},
    "vgg": {"name": "vgg", "depth": 11, "width": 4},
    "mlp": {"name": "mlp", "depth": 3, "width": 8},
    "resnet": {"name": "resnet", "depth": 8, "width": 4},
    "preactivation": {"name": "resnet", "depth": 8, "width": 4, "preactivation": True},
    "lstm": {"name": "lstm", "depth": 2, "width": 4, "activation": "tanh"},
    "gru": {"name": "gru", "depth": 2, "width": 4, "activation": "tanh"},
}
PLACED = [(n, p) for n in SMALL for p in ("before", "after") if p == "before" or n not in ("lstm", "gru")]
WHERES = ["all", "none", "input", "first", "last", "1", "all-2", "input+first", "0+2", "all-0-1", "input+all", "2+last"]


def arguments(network: str, *, kind: str = "batch", placement: str = "before", **changes: Any) -> dict[str, Any]:
    groups = {"num_groups": 2}
    options: dict[str, Any] = {"group": groups, "group_ws": groups, "ghost": {"ghost_size": 2}}.get(kind, {})
    fixed: dict[str, Any] = {"in_channels": 3, "image_size": 8, "num_classes": 10, "activation": "leaky_relu"}
    return fixed | {"norm": make_norm_factory(kind, **options), "placement": placement} | SMALL[network] | changes


def make(network: str, *, where: str = "all", **changes: Any) -> Any:
    """The network with the values that torch draws after one and the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(where=where, **arguments(network, **changes))


def images(num: int = 4) -> Tensor:
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def executed(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """The names of all modules of these kinds in the order in which a forward pass first runs them."""
    found: list[str] = []

    def note(name: str) -> None:
        if name not in found:
            found.append(name)

    handles = [
        module.register_forward_hook(lambda *_, name=name: note(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    model(images())
    for handle in handles:
        handle.remove()
    return found


def executed_norms(model: nn.Module) -> list[str]:
    """Batch norms, those over time steps by the module that holds the steps."""
    names = executed(model, (nn.BatchNorm1d, nn.BatchNorm2d))
    return list(dict.fromkeys(name.partition(".steps.")[0] for name in names))


# forward order of a network with a norm everywhere but on the input, by hand
BLOCKS = [f"blocks.{block}.{part}" for block in range(3) for part in ("unit1.norm", "unit2.norm")]
RECURRENT = [f"layers.{layer}.{part}.norm" for layer in range(2) for part in ("input", "hidden", "cell")]
POSITIONS = {
    ("cnn", "before"): [f"units.{index}.norm" for index in range(4)],
    ("vgg", "before"): [f"units.{index}.norm" for index in (0, 2, 4, 5, 7, 8, 9, 10)],  # three pools have numbers too
    ("mlp", "before"): [f"units.{index}.norm" for index in range(3)],
    ("resnet", "before"): ["stem.norm", *BLOCKS],
    ("resnet", "after"): ["stem.norm", *(name.replace("unit2", "tail") for name in BLOCKS)],
    ("preactivation", "before"): [*BLOCKS, "closing.norm"],
    ("lstm", "before"): RECURRENT,
    ("gru", "before"): [name for name in RECURRENT if "cell" not in name],
}
# where -> the positions it leaves of so many
CHOSEN = {
    "all": lambda count: range(count),
    "none": lambda count: (),
    "input": lambda count: (),
    "first": lambda count: (0,),
    "last": lambda count: (count - 1,),
    "1": lambda count: (1,),
    "all-2": lambda count: (0, 1, *range(3, count)),
    "input+first": lambda count: (0,),
    "0+2": lambda count: (0, 2),
    "all-0-1": lambda count: range(2, count),
    "input+all": lambda count: range(count),
    "2+last": lambda count: sorted({2, count - 1}),
}


@pytest.mark.parametrize(("network", "placement"), PLACED)
def test_selected_norms_alone_stand_and_run_in_forward_order(network: str, placement: str) -> None:
    positions = POSITIONS.get((network, placement)) or POSITIONS[network, "before"]
    assert count_norm_positions(**arguments(network, placement=placement)) == len(positions)
    assert sorted(CHOSEN) == sorted(WHERES)
    for where in WHERES:
        model = make(network, where=where, placement=placement)
        want = [positions[index] for index in CHOSEN[where](len(positions))]
        want = ["input_norm", *want] if "input" in where else want
        got = executed_norms(model)
        if network == "lstm":  # input and hidden transform are added up: neither comes before the other
            got.sort(key=want.index)
        assert got == want, where
        assert [name.removesuffix(".norm") for name in want] == [name for name, _ in norm_layers(model)], where
        others = [m for n, m in model.named_modules() if n.endswith("norm") and n not in want]
        assert all(not list(m.parameters()) and not list(m.buffers()) for m in others), where


def has_bias(model: nn.Module) -> dict[str, bool]:
    return {name: getattr(layer, "bias", None) is not None for name, layer in weight_layers(model) if name != "head"}


@pytest.mark.parametrize("network", ["cnn", "vgg", "mlp", "resnet"])
@pytest.mark.parametrize("where", WHERES)
def test_weight_ahead_of_its_norm_has_a_bias_where_the_norm_is_left_out(network: str, where: str) -> None:
    """Weights of units weight-norm-act are right before the position of the same name."""
    positions = [name.removesuffix(".norm") for name in POSITIONS[network, "before"]]
    chosen = {positions[index] for index in CHOSEN[where](len(positions))}
    assert has_bias(make(network, where=where)) == {name: name not in chosen for name in positions}
    after = has_bias(make(network, where=where, placement="after"))
    assert set(after.values()) == {True}
    assert after.keys() == set(positions)


@pytest.mark.parametrize("where", [*WHERES, "0+1+2+3+4+5+6"])
def test_preactivation_weights_have_biases_unless_every_norm_stands(where: str) -> None:
    """A later norm reads every weight's output from the sum: one that is left out gives all biases back."""
    everywhere = where in ("all", "input+all", "0+1+2+3+4+5+6")
    assert set(has_bias(make("preactivation", where=where)).values()) == {not everywhere}
    assert set(has_bias(make("preactivation", where=where, placement="after")).values()) == {True}


@pytest.mark.parametrize(("network", "placement"), [(n, p) for n, p in PLACED if n not in ("lstm", "gru")])
def test_biases_that_are_left_out_would_have_changed_nothing(network: str, placement: str) -> None:
    """Of lstm and gru one bias stands behind both transforms, whatever is selected."""
    for where in WHERES:
        model = make(network, where=where, placement=placement).double()
        without = model(images(8).double())
        for _, weight in weight_layers(model):
            if weight.bias is None:
                weight.bias = nn.Parameter(torch.randn(len(weight.weight), dtype=torch.float64))
        torch.testing.assert_close(model(images(8).double()), without, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["batch", "ghost", "layer", "filter_response", "group_ws"])
@pytest.mark.parametrize(("network", "placement"), PLACED)
def test_none_is_the_network_without_a_norm(network: str, placement: str, kind: str) -> None:
    if (network, kind) in (("lstm", "group_ws"), ("gru", "group_ws")):
        with pytest.raises(ConfigError, match=r"^norm\.kind: 'group_ws'"):
            make(network, kind=kind, where="none")
        return
    model = make(network, kind=kind, where="none", placement=placement)
    plain = make(network, kind="none", placement=placement)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for training in (True, False):
        assert torch.equal(model.train(training)(images()), plain.train(training)(images()))


@pytest.mark.parametrize(
    ("network", "kind"), [(n, "batch") for n in SMALL] + [(n, "group_ws") for n in SMALL if n not in ("lstm", "gru")]
)
def test_every_position_by_number_is_all(network: str, kind: str) -> None:
    count = count_norm_positions(**arguments(network, kind=kind))
    model = make(network, where="+".join(map(str, range(count))), kind=kind)
    whole = make(network, kind=kind)
    assert model.state_dict().keys() == whole.state_dict().keys()
    assert torch.equal(model(images()), whole(images()))


@pytest.mark.parametrize("kind", ["instance", "filter_response"])
def test_norm_that_hidden_layers_cannot_have_may_stand_on_the_input(kind: str) -> None:
    for network in ("mlp", "lstm", "gru"):
        model = make(network, kind=kind, where="input")
        assert [name for name, _ in norm_layers(model)] == ["input_norm"]
        assert model(images()).isfinite().all()
        with pytest.raises(ConfigError, match=rf"^norm\.kind: '{kind}': .*fully connected"):
            make(network, kind=kind, where="input+first")


def test_norm_on_the_input_is_of_the_input() -> None:
    model = make("cnn", where="input")
    seen: list[Tensor] = []
    model.units[0].weight.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = 3 + 5 * images(16)
    model(x)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(seen[0], (x - mean) / (var + 1e-5).sqrt())


def test_counting_draws_nothing_and_makes_no_norm() -> None:
    before = torch.get_rng_state()
    assert count_norm_positions(**arguments("mlp", kind="instance")) == 3
    assert count_norm_positions(**arguments("resnet", depth=20)) == 1 + 2 * 9
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("where", "chosen", "on_input"),
    [
        ("all", {0, 1, 2, 3}, False),
        ("none", set(), False),
        ("input", set(), True),
        ("first", {0}, False),
        ("last", {3}, False),
        ("2", {2}, False),
        ("all-2", {0, 1, 3}, False),
        ("all-first-last", {1, 2}, False),
        ("input+first", {0}, True),
        ("1+3", {1, 3}, False),
        ("1+1", {1}, False),
        ("3+1", {1, 3}, False),
        ("none+2", {2}, False),
        ("all-none", {0, 1, 2, 3}, False),
        ("all-all+1", {1}, False),
        ("1-1", set(), False),
        ("all-1+1", {0, 1, 2, 3}, False),  # from left to right
        ("1+all-1", {0, 2, 3}, False),
        ("all+input", {0, 1, 2, 3}, True),
        ("input+all-input", {0, 1, 2, 3}, False),
    ],
)
def test_terms_apply_from_left_to_right(where: str, chosen: set[int], on_input: bool) -> None:
    assert select_positions(where, 4) == (chosen, on_input)


@pytest.mark.parametrize(
    ("where", "want"),
    [
        ("first", "0"),
        ("last", "3"),
        ("0", "0"),
        ("3+1", "1+3"),
        ("0+1+2", "all-3"),
        ("all-0-1", "2+3"),  # half: the shorter of the two ways to say it
        ("0+1+2+3", "all"),
        ("all-0-1-2-3", "none"),
        ("first+input", "input+0"),
        ("all+input", "input+all"),
        ("input-input", "none"),
        ("none+input", "input"),
        ("all-last+input", "input+all-3"),
    ],
)
def test_canonical_where_has_one_spelling_for_each_selection(where: str, want: str) -> None:
    assert canonical_where(where, 4) == want


def test_canonical_where_selects_the_same() -> None:
    spellings = set()
    for size, on_input in itertools.product(range(5), (False, True)):
        for chosen in itertools.combinations(range(4), size):
            terms = [*(["input"] if on_input else ["none"]), *map(str, reversed(chosen))]
            spelling = canonical_where("+".join(terms), 4)
            assert select_positions(spelling, 4) == (set(chosen), on_input)
            assert canonical_where(spelling, 4) == spelling
            spellings.add(spelling)
    assert len(spellings) == 2 * 2**4


BAD = ["", "foo", "-1", "-all", "all--1", "all-", "all+", "all++1", "all1", "1 2", "0,3", "all -2", "ALL", "1.5", "[0]"]


@pytest.mark.parametrize("where", BAD)
def test_bad_spelling_is_one_line_that_names_the_key(where: str) -> None:
    for call in (select_positions, canonical_where):
        with pytest.raises(ConfigError, match=r"^norm\.where: [^\n]*expected all, none, input, first") as raised:
            call(where, 4)
        assert str(raised.value).startswith(f"norm.where: {where!r}: ")


@pytest.mark.parametrize("where", ["first", "last", "0", "all-last", "input+first"])
def test_network_without_positions_has_neither_a_first_nor_a_last(where: str) -> None:
    for call in (select_positions, canonical_where):
        message = rf"^norm\.where: '{re.escape(where)}': this network has no norm layer besides the input$"
        with pytest.raises(ConfigError, match=message):
            call(where, 0)
    with pytest.raises(ConfigError, match=r"'1': this network has one norm layer, 0, besides the input$"):
        select_positions("1", 1)
    assert select_positions("last", 1) == ({0}, False)


def test_network_without_positions_has_its_input_alone_to_choose() -> None:
    for where, on_input in (("all", False), ("none", False), ("input", True), ("input+all", True)):
        assert select_positions(where, 0) == (set(), on_input)
        assert canonical_where(where, 0) == ("input" if on_input else "none")


@pytest.mark.parametrize("where", ["9", "4", "all-4", "0+44", "input+7"])
def test_position_that_the_network_does_not_have_is_refused(where: str) -> None:
    message = r"^norm\.where: [^\n]*this network has 4 norm layers, 0 to 3, besides the input$"
    with pytest.raises(ConfigError, match=message):
        make("cnn", where=where)
