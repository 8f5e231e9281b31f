"""Networks from units, and the norm layers that go into them. Plain values in: nothing here knows a config."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnexp.errors import ConfigError
from bnexp.nn.cnn import Cnn
from bnexp.nn.mlp import Mlp
from bnexp.nn.norms import NORMS, Norm
from bnexp.nn.recurrent import Gru, Lstm
from bnexp.nn.resnet import ResNet
from bnexp.nn.unit import NormPositions, UnitFactory
from bnexp.nn.vgg import Vgg
from bnexp.nn.where import select_positions
from bnexp.plugins import load_plugin, plugin_error, plugin_names, require_signature

__all__ = ["MODELS", "NORMS", "build_model", "count_norm_positions"]

MODELS: dict[str, type[nn.Module]] = {
    "cnn": Cnn,
    "vgg": Vgg,
    "resnet": ResNet,
    "mlp": Mlp,
    "lstm": Lstm,
    "gru": Gru,
}


def build_model(name: str, *, where: str = "all", **arguments: Any) -> nn.Module:
    """A network for (N, in_channels, image_size, image_size) images, with torch's own initial values.

    Args:
        where: the norm positions that have their norm, as `norm.where` spells them.
        arguments: in_channels, image_size, num_classes, depth, width, activation, norm, placement; dropout and
            dropout_placement; and what only this model takes.

    Raises:
        ConfigError: an unknown name, or options that do not fit together.
    """
    if where == "all":
        return _build(name, NormPositions(), **arguments)
    count = count_norm_positions(name, **arguments)
    chosen, on_input = select_positions(where, count)
    # `input+all` differs from `all` on the input alone: with every position chosen, the same weights have biases
    return _build(name, NormPositions(None if len(chosen) == count else chosen, on_input), **arguments)


def count_norm_positions(name: str, **arguments: Any) -> int:
    """How many places for a norm this network has, the input's not counted; arguments as in `build_model`."""
    positions = NormPositions(frozenset())  # makes no norm: one that does not fit a position may not be wanted there
    with torch.device("meta"):
        _build(name, positions, **arguments)
    return positions.count


def _build(
    name: str,
    positions: NormPositions,
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    depth: int,
    width: int,
    activation: str,
    norm: Norm,
    placement: str,
    dropout: float = 0.0,
    dropout_placement: str = "after",
    **options: Any,
) -> nn.Module:
    units = UnitFactory(norm, placement, activation, positions, dropout, dropout_placement)
    make = _model_class(name)
    model: nn.Module = make(in_channels, image_size, num_classes, depth=depth, width=width, units=units, **options)
    return model


def _model_class(name: str) -> Any:
    if name in MODELS:
        return MODELS[name]
    if name not in plugin_names("model"):
        raise ConfigError("model.name", got=name, choices=sorted((*MODELS, *plugin_names("model"))))
    make = load_plugin("model", name)
    expected = "(in_channels, image_size, num_classes, *, depth, width, units)"
    require_signature("model", name, make, expected, 1, 8, 10, depth=1, width=1, units=None)
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise plugin_error("model", name, "is not a torch.nn.Module class")
    return make
