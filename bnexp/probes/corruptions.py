"""Corrupted images at five severities: pure functions from (N, C, H, W) uint8 to the same.

The strengths are those of CIFAR-10-C. Values are rounded to the nearest integer, where the source drops the fraction.

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
make_cifar_c.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)

NOISE_STD = (0.04, 0.06, 0.08, 0.09, 0.10)  # of a range of 1
BLUR_STD = (0.4, 0.6, 0.7, 0.8, 1.0)  # in pixels
BLUR_TRUNCATE = 4  # standard deviations from the middle of the kernel to its end, as scikit-image has it
CONTRAST_FACTOR = (0.75, 0.5, 0.4, 0.3, 0.15)
BRIGHTNESS_SHIFT = (0.05, 0.10, 0.15, 0.20, 0.30)  # of a range of 1
JPEG_QUALITY = (80, 65, 58, 50, 40)
JPEG_CHANNELS = (1, 3)  # grey and RGB


def gaussian_noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add independent normal noise to every value.

    Args:
        generator: on the CPU, so that every device gets the same noise.
    """
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return _to_pixels(x.float() + 255 * NOISE_STD[severity - 1] * noise)


def gaussian_blur(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Convolve with a sampled Gaussian, cut off at four standard deviations; the border repeats the outermost pixel."""
    std, channels = BLUR_STD[severity - 1], x.shape[1]
    reach = int(BLUR_TRUNCATE * std + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    line = torch.softmax(-0.5 * (offsets / std) ** 2, 0)
    kernel = torch.outer(line, line).expand(channels, 1, -1, -1)
    padded = F.pad(x.float(), (reach, reach, reach, reach), mode="replicate")
    return _to_pixels(F.conv2d(padded, kernel, groups=channels))


def contrast(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shrink the distance of every pixel from its channel's mean over the image."""
    mean = x.float().mean((2, 3), keepdim=True)
    return _to_pixels(mean + CONTRAST_FACTOR[severity - 1] * (x.float() - mean))


def brightness(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Raise the value of HSV, the largest of a pixel's channels, up to white; hue and saturation stay."""
    value = x.float().amax(1, keepdim=True)
    raised = (value + 255 * BRIGHTNESS_SHIFT[severity - 1]).clamp(max=255)
    # with hue and saturation fixed the channels are in proportion to the value; black has neither, and turns grey
    return _to_pixels(torch.where(value > 0, x * (raised / value), raised))


def jpeg(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Compress as JPEG with Pillow's defaults, which halve the resolution of colours, and decompress.

    Args:
        x: of one channel, grey, or three, RGB.
    """
    quality = JPEG_QUALITY[severity - 1]
    compressed = np.stack([_through_jpeg(image, quality) for image in x.cpu().numpy()])
    return torch.from_numpy(compressed).to(x.device)


def _through_jpeg(image_chw: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    grey = len(image_chw) == 1
    file = io.BytesIO()
    Image.fromarray(image_chw[0] if grey else image_chw.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file))
    return decoded[None] if grey else decoded.transpose(2, 0, 1)


# name -> (images, severity from 1 to 5, generator) -> corrupted images
CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "brightness": brightness,
    "jpeg": jpeg,
}


def _to_pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
