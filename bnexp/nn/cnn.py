"""A plain convolutional network of free depth and width, sensible from 8×8 to 224×224 images."""

from __future__ import annotations

import math

from torch import Tensor, nn

from bnexp.nn.layers import mean_over_positions
from bnexp.nn.unit import UnitFactory

FINAL_MAP = 8  # the side, in pixels, that the last stage works at, about


class Cnn(nn.Module):
    """`depth` convolutions, 3×3, in stages; channels double and resolution halves from one stage to the next.

    A max-pool of 2 parts the stages; global average pooling and one linear layer close. The number of stages follows
    from the image size: 2 at 8×8, 3 at 28 and 32, 6 at 224, never more than `depth`. Where depth leaves too few
    stages, the first convolution is strided instead, so that the last stage works on about 8×8; its kernel then grows
    to 2·stride − 1, or a stride above 3 would skip pixels.

    Args:
        depth: convolutions.
        width: channels of the first stage.
    """

    def __init__(
        self, in_channels: int, image_size: int, num_classes: int, *, depth: int, width: int, units: UnitFactory
    ) -> None:
        super().__init__()
        wanted = max(2, round(math.log2(image_size / FINAL_MAP)) + 1)
        num_stages = min(depth, wanted)
        stem_stride = 2 ** (wanted - num_stages) if wanted > 2 else 1
        stages = [index * num_stages // depth for index in range(depth)]
        self.input_norm = units.input_norm(in_channels)
        layers: list[nn.Module] = []
        for index, stage in enumerate(stages):
            channels = width * 2**stage
            stride = stem_stride if index == 0 else 1
            layers.append(units.conv(in_channels, channels, kernel=max(3, 2 * stride - 1), stride=stride))
            in_channels = channels
        self.units = nn.ModuleList(layers)
        self.pool_before = tuple(i > 0 and stages[i] != stages[i - 1] for i in range(depth))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.drop = units.head_dropout()
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.input_norm(x)
        for unit, pool_first in zip(self.units, self.pool_before, strict=True):
            x = unit(self.pool(x) if pool_first else x)
        logits: Tensor = self.head(self.drop(mean_over_positions(x)))
        return logits
