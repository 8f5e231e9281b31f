"""VGG for small and large images."""

from __future__ import annotations

from torch import Tensor, nn

from bnexp.errors import ConfigError
from bnexp.nn.layers import mean_over_positions
from bnexp.nn.unit import UnitFactory

# depth -> convolutions in each of five stages (Simonyan & Zisserman 2015, table 1: A, B, D, E)
CONVS: dict[int, tuple[int, ...]] = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
MULTIPLES = (1, 2, 4, 8, 8)


class Vgg(nn.Module):
    """The convolutions of VGG with global average pooling and one linear layer, as is usual on CIFAR.

    A max-pool of 2 follows each stage as long as the map is larger than one pixel.

    Args:
        depth: 11, 13, 16 or 19, counted with the original's three fully connected layers.
        width: channels of the first stage; 64 is the original.

    Raises:
        ConfigError: another depth.

    Source: Simonyan & Zisserman 2015.
    """

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, depth: int, width: int, units: UnitFactory
    ) -> None:
        super().__init__()
        if depth not in CONVS:
            raise ConfigError("model.depth", got=depth, choices=[str(d) for d in CONVS], hint="a depth of vgg")
        self.input_norm = units.input_norm(in_channels)
        layers: list[nn.Module] = []
        size = image_size
        for num_convs, multiple in zip(CONVS[depth], MULTIPLES, strict=True):
            for _ in range(num_convs):
                layers.append(units.conv(in_channels, width * multiple))
                in_channels = width * multiple
            if size > 1:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.units = nn.Sequential(*layers)
        self.drop = units.head_dropout()
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.head(self.drop(mean_over_positions(self.units(self.input_norm(x)))))
        return logits
