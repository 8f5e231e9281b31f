"""The CIFAR residual family, in its original and its pre-activation form."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.errors import ConfigError
from bnexp.nn.unit import UnitFactory


def option_a_shortcut(x: Tensor, *, num_channels: int, stride: int) -> Tensor:
    """The identity, subsampled by `stride` and padded with zero channels; it has no parameters.

    Args:
        x: (N, C, H, W) with C at most `num_channels`.

    Returns:
        (N, num_channels, ceil(H / stride), ceil(W / stride)).

    Source: He et al. 2015, section 3.3, option A.
    """
    if stride != 1:
        x = x[:, :, ::stride, ::stride]
    missing = num_channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2)) if missing else x


class PostActivationBlock(nn.Module):
    """He et al. 2015. The activation after the addition is what `placement` refers to in the second half.

    before: conv-norm-act-conv-norm, + shortcut, act. The norm ends the branch, ahead of the addition.
    after: conv-act-norm-conv, + shortcut, act-norm. The norm follows the activation and so acts on the sum,
    which the next block's shortcut carries on: there is no un-normalized path through the network.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, units: UnitFactory) -> None:
        super().__init__()
        self.num_channels, self.stride = out_channels, stride
        self.unit1 = units.conv(in_channels, out_channels, stride=stride)
        self.unit2 = units.conv(out_channels, out_channels, act=False)
        self.tail = units.tail(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = option_a_shortcut(x, num_channels=self.num_channels, stride=self.stride)
        out: Tensor = self.tail(self.unit2(self.unit1(x)) + shortcut)
        return out


class PreActivationBlock(nn.Module):
    """He et al. 2016: nothing stands on the identity path.

    before: norm-act-conv-norm-act-conv, + shortcut (the paper's full pre-activation).
    after: act-norm-conv-act-norm-conv, + shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, units: UnitFactory) -> None:
        super().__init__()
        self.num_channels, self.stride = out_channels, stride
        self.unit1 = units.preactivation_conv(in_channels, out_channels, stride=stride)
        self.unit2 = units.preactivation_conv(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = option_a_shortcut(x, num_channels=self.num_channels, stride=self.stride)
        out: Tensor = self.unit2(self.unit1(x)) + shortcut
        return out


class ResNet(nn.Module):
    """Three stages of n residual blocks, depth 6n+2; channels double and resolution halves between stages.

    `placement` is where the norm stands relative to the activation; what that means around the addition is stated in
    `PostActivationBlock` and `PreActivationBlock`. Without pre-activation the stem is a unit of its own; with it, the
    stem is a bare convolution and a last norm and activation precede the pooling.

    Args:
        depth: 6n+2: 8, 14, 20, 32, 44, 56, 110, ...
        width: channels of the first stage; 16 is the original.

    Raises:
        ConfigError: a depth that is not 6n+2.

    Source: He et al. 2015, section 4.2; He et al. 2016, "Identity mappings in deep residual networks".
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int,
        *,
        depth: int,
        width: int,
        units: UnitFactory,
        preactivation: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError("model.depth", got=depth, hint="resnet depth is 6n+2: 8, 14, 20, 32, 44, 56, 110, ...")
        block = PreActivationBlock if preactivation else PostActivationBlock
        self.stem = (units.preactivation_stem if preactivation else units.conv)(in_channels, width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride=stride, units=units))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.closing = units.closing(channels) if preactivation else nn.Identity()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.closing(self.blocks(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
