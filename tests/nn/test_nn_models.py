"""Networks: shapes, sizes and published parameter counts, on every norm, placement and image size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn import MODELS, build_model
from bnexp.nn.layers import stochastic_layers
from bnexp.nn.norms import NORMS, make_norm_factory
from bnexp.nn.resnet import option_a_shortcut

SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "depth": 4, "width": 4},
    "vgg": {"name": "vgg", "depth": 11, "width": 4},
    "mlp": {"name": "mlp", "depth": 2, "width": 16},
    "resnet": {"name": "resnet", "depth": 8, "width": 4},
    "preactivation": {"name": "resnet", "depth": 8, "width": 4, "preactivation": True},
}
NORM_OPTIONS: dict[str, dict[str, Any]] = {
    "group": {"num_groups": 4},
    "group_ws": {"num_groups": 4},
    "ghost": {"ghost_size": 2},
}


def make(
    name: str,
    *,
    depth: int,
    width: int,
    image_size: int = 32,
    in_channels: int = 3,
    kind: str = "batch",
    placement: str = "before",
    activation: str = "relu",
    **options: Any,
) -> nn.Module:
    norm = make_norm_factory(kind, **NORM_OPTIONS.get(kind, {}))
    return build_model(
        name,
        in_channels=in_channels,
        image_size=image_size,
        num_classes=10,
        depth=depth,
        width=width,
        activation=activation,
        norm=norm,
        placement=placement,
        **options,
    )


def images(num: int, channels: int, side: int, *, seed: int = 0) -> Tensor:
    return torch.randn(num, channels, side, side, generator=torch.Generator().manual_seed(seed))


def num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def is_undefined(network: str, kind: str, image_size: int) -> bool:
    """Two norms have nothing to average in a fully connected layer, nor where vgg has pooled down to one pixel."""
    return kind in ("instance", "filter_response") and (network == "mlp" or (network == "vgg" and image_size < 32))


@pytest.mark.parametrize("image_size", [8, 28, 32])
@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("network", SMALL)
def test_network_goes_forward_and_backward(network: str, kind: str, placement: str, image_size: int) -> None:
    def step() -> tuple[nn.Module, Tensor]:
        # leaky: no unit is dead, so that a gradient of zero means a parameter that does nothing
        fixed: dict[str, Any] = {"image_size": image_size, "kind": kind, "placement": placement}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = make(**SMALL[network], **fixed, activation="leaky_relu")
        return model, model(images(6, 3, image_size))

    if is_undefined(network, kind, image_size):
        with pytest.raises(ConfigError, match=rf"^norm\.kind: '{kind}'"):
            step()
        return
    model, logits = step()
    assert logits.shape == (6, 10)
    nn.functional.cross_entropy(logits, torch.arange(6)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if parameter.ndim > 1:
            assert parameter.grad.any(), name
    model.eval()
    assert torch.isfinite(model(images(1, 3, image_size))).all()


@pytest.mark.parametrize(("network", "kind"), [(n, k) for n in SMALL for k in NORMS if not is_undefined(n, k, 32)])
def test_network_runs_on_meta_and_in_channels_last(network: str, kind: str) -> None:
    with torch.device("meta"):
        assert make(**SMALL[network], kind=kind)(torch.empty(4, 3, 32, 32)).shape == (4, 10)
    model = make(**SMALL[network], kind=kind).double()
    x = images(4, 3, 32).double()
    state = copy.deepcopy(model.state_dict())
    outputs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory_format).load_state_dict(state)
        for _, layer in stochastic_layers(model):
            layer.reseed(0, x.device)
        outputs.append(model(x.contiguous(memory_format=memory_format)))
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("kind", NORMS)
def test_cnn_takes_large_images(kind: str, placement: str) -> None:
    with torch.device("meta"):
        model = make("cnn", depth=4, width=16, image_size=224, kind=kind, placement=placement)
        logits = model(torch.empty(4, 3, 224, 224))
        logits.sum().backward()
    assert logits.shape == (4, 10)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("network", SMALL)
def test_parameter_names_do_not_depend_on_placement(network: str) -> None:
    def names(**options: Any) -> set[str]:
        model = make(**SMALL[network], **options)
        return {name for name, p in model.named_parameters() if p.ndim > 1}

    assert names(placement="before") == names(placement="after") == names(kind="none") == names(kind="group")


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("depth", "width", "image_size", "channels"),
    [
        (2, 8, 8, [8, 16]),
        (4, 16, 8, [16, 16, 32, 32]),
        (6, 32, 32, [32, 32, 64, 64, 128, 128]),
        (6, 32, 28, [32, 32, 64, 64, 128, 128]),
    ],
)
def test_cnn_doubles_its_channels_at_even_stages(depth: int, width: int, image_size: int, channels: list[int]) -> None:
    layers = convolutions(make("cnn", depth=depth, width=width, image_size=image_size))
    assert [layer.out_channels for layer in layers] == channels
    assert {layer.kernel_size for layer in layers} == {(3, 3)}


def conv_maps(model: nn.Module, image_size: int) -> tuple[list[int], int]:
    """The side of the map that each convolution returns, and the multiplications of all for one image."""
    sides: list[int] = []
    multiplications = 0

    def note(layer: Any, _: Any, out: Tensor) -> None:
        nonlocal multiplications
        sides.append(out.shape[-1])
        multiplications += out.shape[-1] ** 2 * layer.weight.numel()

    for layer in convolutions(model):
        layer.register_forward_hook(note)
    model(torch.empty(2, 3, image_size, image_size))
    return sides, multiplications


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 10, 16])
@pytest.mark.parametrize("image_size", [7, 8, 12, 16, 28, 32, 48, 64, 96, 128, 224])
def test_cnn_maps_shrink_to_a_few_pixels_and_never_below_four(image_size: int, depth: int) -> None:
    with torch.device("meta"):
        sides, multiplications = conv_maps(make("cnn", depth=depth, width=16, image_size=image_size), image_size)
    assert len(sides) == depth
    assert sides == sorted(sides, reverse=True)
    assert 4 <= sides[-1] <= 16
    assert multiplications < 2e9  # half of a ResNet-50 at 224


@pytest.mark.parametrize(("depth", "image_size"), [(2, 224), (4, 224), (1, 32), (2, 64)])
def test_cnn_stem_sees_every_pixel(depth: int, image_size: int) -> None:
    stem: Any = convolutions(make("cnn", depth=depth, width=4, image_size=image_size))[0]
    assert stem.stride[0] > 1
    nn.init.ones_(stem.weight)
    x = torch.zeros(1, 3, image_size, image_size, requires_grad=True)
    stem(x).sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()


@pytest.mark.parametrize(
    ("depth", "want"),  # He et al. 2015, table 6, to the digit as the option-A implementations count them
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_resnet_has_the_published_parameters(depth: int, want: int) -> None:
    with torch.device("meta"):
        assert num_params(make("resnet", depth=depth, width=16)) == want


@pytest.mark.parametrize(
    (
        "depth",
        "convolutional",
    ),  # of torchvision's vgg11, 13, 16, 19: all parameters less the 123,642,856 fully connected
    [(11, 9_220_480), (13, 9_404_992), (16, 14_714_688), (19, 20_024_384)],
)
def test_vgg_has_the_published_parameters(depth: int, convolutional: int) -> None:
    with torch.device("meta"):
        plain, normed = (make("vgg", depth=depth, width=64, kind=kind) for kind in ("none", "batch"))
    assert num_params(plain) == convolutional + 512 * 10 + 10
    num_channels = sum(layer.out_channels for layer in convolutions(plain))
    assert num_params(normed) - num_params(plain) == num_channels  # gamma and beta come, one bias goes


def test_cnn_and_mlp_parameters_by_hand() -> None:
    assert num_params(make("cnn", depth=2, width=8, image_size=8, in_channels=1, kind="none")) == 80 + 1168 + 170
    assert num_params(make("cnn", depth=2, width=8, image_size=8, in_channels=1)) == 72 + 16 + 1152 + 32 + 170
    mlp = make("mlp", depth=3, width=100, image_size=28, in_channels=1, kind="none")
    assert num_params(mlp) == 78_500 + 2 * 10_100 + 1_010


@pytest.mark.parametrize(("image_size", "sides"), [(8, [8, 4, 2, 2, 1, 1, 1, 1]), (32, [32, 16, 8, 8, 4, 4, 2, 2])])
def test_vgg_skips_the_pools_that_nothing_is_left_for(image_size: int, sides: list[int]) -> None:
    with torch.device("meta"):
        assert conv_maps(make("vgg", depth=11, width=8, image_size=image_size), image_size)[0] == sides


@pytest.mark.parametrize("preactivation", [False, True])
def test_resnet_halves_twice(preactivation: bool) -> None:
    with torch.device("meta"):
        model = make("resnet", depth=14, width=4, preactivation=preactivation)
        assert conv_maps(model, 32)[0] == [32] * 5 + [16] * 4 + [8] * 4
    assert [layer.out_channels for layer in convolutions(model)] == [4] * 5 + [8] * 4 + [16] * 4


def test_option_a_shortcut_values() -> None:
    x = torch.arange(2 * 25, dtype=torch.float32).view(1, 2, 5, 5)
    out = option_a_shortcut(x, num_channels=4, stride=2)
    assert out.shape == (1, 4, 3, 3)
    assert out[0, 1].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert out[0, 2].tolist() == [[25, 27, 29], [35, 37, 39], [45, 47, 49]]
    assert not out[0, 0].any()
    assert not out[0, 3].any()
    assert option_a_shortcut(x, num_channels=2, stride=1) is x


@pytest.mark.parametrize("preactivation", [False, True])
def test_block_with_a_silent_branch_is_its_shortcut(preactivation: bool) -> None:
    model: Any = make("resnet", depth=8, width=4, kind="none", preactivation=preactivation)
    block = model.blocks[1]  # the first of the second stage: strided, and widened
    nn.init.zeros_(block.unit2.weight.weight)
    nn.init.zeros_(block.unit2.weight.bias)
    x = images(2, 4, 8)
    shortcut = option_a_shortcut(x, num_channels=8, stride=2)
    assert torch.equal(block(x), shortcut if preactivation else shortcut.relu())


def test_mlp_flattens_its_input() -> None:
    model: Any = make("mlp", depth=1, width=5, image_size=4, in_channels=2, kind="none")
    x = images(3, 2, 4)
    hidden = (x.reshape(3, 32) @ model.units[0].weight.weight.T + model.units[0].weight.bias).relu()
    torch.testing.assert_close(model(x), hidden @ model.head.weight.T + model.head.bias)


def test_build_model_refuses_an_unknown_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.name: 'resnt' is not one of cnn, gru, lstm, mlp, resnet, vgg.*'resnet'"
    ):
        make("resnt", depth=8, width=4)
    assert sorted(MODELS) == ["cnn", "gru", "lstm", "mlp", "resnet", "vgg"]


@pytest.mark.parametrize("depth", [2, 9, 18, 21])
def test_resnet_refuses_a_depth_that_is_not_6n_plus_2(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.depth: {depth}: resnet depth is 6n\+2: 8, 14, 20, "):
        make("resnet", depth=depth, width=4)


def test_vgg_refuses_an_unknown_depth() -> None:
    with pytest.raises(ConfigError, match=r"^model\.depth: 12 is not one of 11, 13, 16, 19"):
        make("vgg", depth=12, width=4)


def test_group_norm_error_reaches_the_builder() -> None:
    with pytest.raises(ConfigError, match=r"^norm\.num_groups: 4: does not divide the 6 channels of a layer$"):
        make("cnn", depth=2, width=6, kind="group")
