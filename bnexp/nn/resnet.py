"""The CIFAR residual family, in its original and its pre-activation form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.errors import ConfigError
from bnexp.nn.layers import mean_over_positions
from bnexp.nn.norms import NoNorm
from bnexp.nn.unit import UnitFactory

# plain: shortcut + branch; skipinit and fixup: shortcut + scale · branch, with a learned scalar for each block
BRANCHES = ("plain", "skipinit", "fixup")


def option_a_shortcut(x: Tensor, *, num_channels: int, stride: int, num_networks: int = 1) -> Tensor:
    """The identity, subsampled by `stride` and padded with zero channels; it has no parameters.

    Args:
        x: (N, num_networks · C, H, W) with C at most `num_channels`; networks side by side, each padded for itself.

    Returns:
        (N, num_networks · num_channels, ceil(H / stride), ceil(W / stride)).

    Source: He et al. 2015, section 3.3, option A.
    """
    if stride != 1:
        x = x[:, :, ::stride, ::stride]
    missing = num_channels - x.shape[1] // num_networks
    if not missing:
        return x
    if num_networks == 1:
        return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
    # channels last, where a pixel's channels lie together: the sum with the branch would have to reorder it otherwise
    num, channels, height, width = x.shape
    x_nhwkc = x.permute(0, 2, 3, 1).reshape(num, height, width, num_networks, channels // num_networks)
    return F.pad(x_nhwkc, (missing // 2, missing - missing // 2)).flatten(3).permute(0, 3, 1, 2)


def scale_branch(branch: Tensor, scale: Tensor | None) -> Tensor:
    """The branch times its scalar, (1,), or those of k networks, (k,), side by side along its channels."""
    if scale is None:
        return branch
    if len(scale) == 1:
        return branch * scale
    return branch * scale.repeat_interleave(branch.shape[1] // len(scale)).view(-1, 1, 1)


class PostActivationBlock(nn.Module):
    """He et al. 2015. The activation after the addition is what `placement` refers to in the second half.

    before: conv-norm-act-conv-norm, + shortcut, act. The norm ends the branch, ahead of the addition.
    after: conv-act-norm-conv, + shortcut, act-norm. The norm follows the activation and so acts on the sum,
    which the next block's shortcut carries on: there is no un-normalized path through the network.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, units: UnitFactory, branch: str) -> None:
        super().__init__()
        self.in_channels, self.num_channels, self.stride = in_channels, out_channels, stride
        self.scale = branch_scale(branch)
        self.unit1 = units.conv(in_channels, out_channels, stride=stride)
        self.unit2 = units.conv(out_channels, out_channels, act=False)
        self.tail = units.tail(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = option_a_shortcut(
            x, num_channels=self.num_channels, stride=self.stride, num_networks=x.shape[1] // self.in_channels
        )
        branch = self.unit2(self.unit1(x))
        out: Tensor = self.tail(scale_branch(branch, self.scale) + shortcut)
        return out


class PreActivationBlock(nn.Module):
    """He et al. 2016: nothing stands on the identity path.

    before: norm-act-conv-norm-act-conv, + shortcut (the paper's full pre-activation).
    after: act-norm-conv-act-norm-conv, + shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, units: UnitFactory, branch: str) -> None:
        super().__init__()
        self.in_channels, self.num_channels, self.stride = in_channels, out_channels, stride
        self.scale = branch_scale(branch)
        self.unit1 = units.preactivation_conv(in_channels, out_channels, stride=stride)
        self.unit2 = units.preactivation_conv(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = option_a_shortcut(
            x, num_channels=self.num_channels, stride=self.stride, num_networks=x.shape[1] // self.in_channels
        )
        branch: Tensor = self.unit2(self.unit1(x))
        return scale_branch(branch, self.scale) + shortcut


def branch_scale(branch: str) -> nn.Parameter | None:
    """The scalar on a residual branch: none for plain, from 0 for skipinit, from 1 for fixup.

    Raises:
        ConfigError: an unknown kind of branch.
    """
    if branch not in BRANCHES:
        raise ConfigError("model.branch", got=branch, choices=BRANCHES)
    return None if branch == "plain" else nn.Parameter(torch.full((1,), float(branch == "fixup")))


class ResNet(nn.Module):
    """Three stages of n residual blocks, depth 6n+2; channels double and resolution halves between stages.

    `placement` is where the norm stands relative to the activation; what that means around the addition is stated in
    `PostActivationBlock` and `PreActivationBlock`. Without pre-activation the stem is a unit of its own; with it, the
    stem is a bare convolution and a last norm and activation precede the pooling.

    Args:
        depth: 6n+2: 8, 14, 20, 32, 44, 56, 110, ...
        width: channels of the first stage; 16 is the original.
        branch: plain; skipinit, a learned scalar from 0 on each branch; fixup, see `finish_init`.

    Raises:
        ConfigError: a depth that is not 6n+2, an unknown branch, or fixup with a norm.

    Source: He et al. 2015, section 4.2; He et al. 2016, "Identity mappings in deep residual networks"; De & Smith 2020,
    "Batch normalization biases residual blocks towards the identity function" (skipinit); Zhang et al. 2019 (fixup).
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
        branch: str = "plain",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError("model.depth", got=depth, hint="resnet depth is 6n+2: 8, 14, 20, 32, 44, 56, 110, ...")
        if branch == "fixup" and not isinstance(units.norm, NoNorm):
            raise ConfigError("model.branch", got=branch, hint="fixup stands in for a norm: use it with norm=none")
        self.branch = branch
        self.input_norm = units.input_norm(in_channels)
        block = PreActivationBlock if preactivation else PostActivationBlock
        self.stem = (units.preactivation_stem if preactivation else units.conv)(in_channels, width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride=stride, units=units, branch=branch))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.closing = units.closing(channels) if preactivation else nn.Identity()
        self.drop = units.head_dropout()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.closing(self.blocks(self.stem(self.input_norm(x))))
        logits: Tensor = self.head(self.drop(mean_over_positions(x)))
        return logits

    @torch.no_grad()
    def finish_init(self) -> None:
        """Fixup's rules, after the usual draw: L blocks of two convolutions scale the first by L^(−1/2) and start the
        second, all biases and the head at 0.

        The biases are one for each channel, behind each convolution, in the place of the paper's scalars.

        Source: Zhang, Dauphin & Ma 2019, "Fixup initialization", section 3 with m = 2.
        """
        if self.branch != "fixup":
            return
        for block in self.blocks:
            first, second = block.get_submodule("unit1.weight"), block.get_submodule("unit2.weight")
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            first.weight.mul_(len(self.blocks) ** -0.5)
            second.weight.zero_()
            for conv in (first, second):
                assert conv.bias is not None
                conv.bias.zero_()
        self.head.weight.zero_()
        self.head.bias.zero_()
