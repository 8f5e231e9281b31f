"""A multi-layer perceptron on flattened images."""

from __future__ import annotations

from torch import Tensor, nn

from bnexp.nn.unit import UnitFactory


class Mlp(nn.Module):
    """`depth` hidden layers of `width` units and a linear layer on top.

    Source: with depth 3, width 100 and sigmoid, the network of Ioffe & Szegedy 2015, section 4.1.
    """

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, depth: int, width: int, units: UnitFactory
    ) -> None:
        super().__init__()
        sizes = [in_channels * image_size**2, *[width] * depth]
        self.input_norm = units.input_norm(in_channels)
        self.units = nn.Sequential(*(units.linear(sizes[i], sizes[i + 1]) for i in range(depth)))
        self.drop = units.head_dropout()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.head(self.drop(self.units(self.input_norm(x).flatten(1))))
        return logits
