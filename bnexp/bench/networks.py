"""The benchmarked networks in torch.nn's own layers, as someone writes them who has no laboratory."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.bench.sizes import NUM_CLASSES, Size

FINAL_MAP = 8


def network(size: Size) -> nn.Module:
    """What `bnexp train` builds of this size, with batch norm: the same layers in the same order."""
    return ResNet(size) if size.model == "resnet" else cnn(size)


def cnn(size: Size) -> nn.Sequential:
    """Convolution, norm and activation in stages, with max-pooling in between."""
    wanted = max(2, round(math.log2(size.side / FINAL_MAP)) + 1)
    num_stages = min(size.depth, wanted)
    stem_stride = 2 ** (wanted - num_stages) if wanted > 2 else 1
    layers: list[nn.Module] = []
    in_channels, last = size.channels, 0
    for index in range(size.depth):
        stage = index * num_stages // size.depth
        out_channels, stride = size.width * 2**stage, stem_stride if index == 0 else 1
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if stage != last else []
        layers.append(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
        in_channels, last = out_channels, stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, NUM_CLASSES))


class ResNet(nn.Module):
    """The residual network for CIFAR. Source: He et al. 2015, section 4.2, with option A's shortcuts."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv2d(size.channels, size.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(size.width),
        )
        blocks, channels = [], size.width
        for stage in range(3):
            for index in range((size.depth - 2) // 6):
                out_channels = size.width * 2**stage
                blocks.append(Block(channels, out_channels, stride=2 if stage and not index else 1))
                channels = out_channels
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Block(nn.Module):
    """Two convolutions, and what came in added to what comes out."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + shortcut)
