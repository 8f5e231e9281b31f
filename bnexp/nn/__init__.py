"""Networks from units, and the norm layers that go into them. Plain values in: nothing here knows a config."""

from __future__ import annotations

from torch import nn

from bnexp.errors import ConfigError
from bnexp.nn.cnn import Cnn
from bnexp.nn.mlp import Mlp
from bnexp.nn.norms import NORMS, Norm
from bnexp.nn.resnet import ResNet
from bnexp.nn.unit import UnitFactory
from bnexp.nn.vgg import Vgg

__all__ = ["MODELS", "NORMS", "build_model"]

MODELS: dict[str, type[nn.Module]] = {"cnn": Cnn, "vgg": Vgg, "resnet": ResNet, "mlp": Mlp}


def build_model(
    name: str,
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    depth: int,
    width: int,
    activation: str,
    norm: Norm,
    placement: str,
    preactivation: bool = False,
) -> nn.Module:
    """A network for (N, in_channels, image_size, image_size) images, with torch's own initial values.

    Args:
        preactivation: norm and activation ahead of each weight; only resnet has this form.

    Raises:
        ConfigError: an unknown name, or options that do not fit together.
    """
    if name not in MODELS:
        raise ConfigError("model.name", got=name, choices=sorted(MODELS))
    if preactivation and name != "resnet":
        raise ConfigError("model.preactivation", got=True, hint=f"only resnet has it, and this is {name}")
    options = {"preactivation": True} if preactivation else {}
    units = UnitFactory(norm, placement, activation)
    return MODELS[name](in_channels, image_size, num_classes, depth=depth, width=width, units=units, **options)
