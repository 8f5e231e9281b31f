"""Random crops and flips of whole batches on the device, drawn for a whole epoch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
        return self.each(lambda tensor: tensor.to(device))

    def part(self, start: int, stop: int) -> Augmentation:
        """The draws of the examples `start` to `stop`."""
        return self.each(lambda tensor: tensor[start:stop])

    def each(self, change: Callable[[Tensor], Tensor]) -> Augmentation:
        """With every tensor that is there changed."""
        return self.with_tensors([change(tensor) for tensor in self.tensors().values()])

    def with_tensors(self, tensors: Iterable[Tensor]) -> Augmentation:
        """With others in place of those of `tensors()`, in its order."""
        named = dict(zip(self.tensors(), tensors, strict=True))
        return Augmentation(self.pad, named.get("dy"), named.get("dx"), named.get("flip"))

    def tensors(self) -> dict[str, Tensor]:
        """The draws that are there, by name."""
        named = {"dy": self.dy, "dx": self.dx, "flip": self.flip}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


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


def apply_augmentation(x: Tensor, augmentation: Augmentation) -> Tensor:
    """Crop and flip each example by its draws.

    Args:
        x: (N, C, H, W) raw pixels; the crop brings in zeros, which are black.

    Source: pad 4, random crop and flip as in He et al. 2015, section 4.2.
    """
    num, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device).expand(num, height)
    columns = torch.arange(width, device=x.device).expand(num, width)
    if augmentation.flip is not None:
        flip = augmentation.flip[:, None]
        columns = torch.where(flip, width - 1 - columns, columns)
    pad = 0
    if augmentation.dy is not None and augmentation.dx is not None:
        pad = augmentation.pad
        rows = rows + augmentation.dy[:, None]
        columns = columns + augmentation.dx[:, None]
        x = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    index = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).reshape(num, 1, height * width)
    flat = x.reshape(num, channels, -1).gather(2, index.expand(num, channels, height * width))
    return flat.reshape(num, channels, height, width)
