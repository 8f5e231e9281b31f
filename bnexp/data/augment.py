"""Random crops and flips of whole batches on the device, drawn for a whole epoch at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnexp.errors import ConfigError

AUGMENTS = ("none", "flip", "crop", "crop_flip")


@dataclass(frozen=True)
class Augmentation:
    """One epoch's draws: what the k-th example of the epoch gets does not depend on the batch size.

    Attributes:
        pad: pixels of black around the image before the crop.
        dy, dx: (N,) int64 offsets of the crop in 0..2·pad, or None.
        flip: (N,) bool, or None.
    """

    pad: int
    dy: Tensor | None
    dx: Tensor | None
    flip: Tensor | None

    def to(self, device: torch.device) -> Augmentation:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(self, dy=move(self.dy), dx=move(self.dx), flip=move(self.flip))


def pad_for(image_size: int) -> int:
    """Four pixels at 28 and more, as is usual on CIFAR; one below, where four would be half the image."""
    return 4 if image_size >= 28 else 1


def draw_augmentation(kind: str, num_examples: int, *, pad: int, generator: torch.Generator) -> Augmentation | None:
    """The random numbers of one epoch; None for kind "none".

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in AUGMENTS:
        raise ConfigError("data.augment", got=kind, choices=AUGMENTS)
    if kind == "none":
        return None
    dy, dx = torch.randint(0, 2 * pad + 1, (2, num_examples), generator=generator)
    flip = torch.rand(num_examples, generator=generator) < 0.5
    crop = kind in ("crop", "crop_flip")
    return Augmentation(pad, dy if crop else None, dx if crop else None, flip if kind != "crop" else None)


def apply_augmentation(x: Tensor, augmentation: Augmentation, start: int, stop: int) -> Tensor:
    """Crop and flip the examples `start` to `stop` of the epoch.

    Args:
        x: (stop − start, C, H, W) raw pixels; the crop brings in zeros, which are black.

    Source: pad 4, random crop and flip as in He et al. 2015, section 4.2.
    """
    num, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device).expand(num, height)
    columns = torch.arange(width, device=x.device).expand(num, width)
    if augmentation.flip is not None:
        flip = augmentation.flip[start:stop, None]
        columns = torch.where(flip, width - 1 - columns, columns)
    pad = 0
    if augmentation.dy is not None and augmentation.dx is not None:
        pad = augmentation.pad
        rows = rows + augmentation.dy[start:stop, None]
        columns = columns + augmentation.dx[start:stop, None]
        x = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    index = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).reshape(num, 1, height * width)
    flat = x.reshape(num, channels, -1).gather(2, index.expand(num, channels, height * width))
    return flat.reshape(num, channels, height, width)
