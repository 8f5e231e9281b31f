"""What every data set becomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory.

    Attributes:
        train_images, test_images: (N, C, H, W) uint8, square.
        train_labels, test_labels: (N,) int64, indices into `classes`.
        fingerprint: SHA-256 of the content of a folder or of a user's own set; empty for the named sets.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return int(self.train_images.shape[1])

    @property
    def image_size(self) -> int:
        return int(self.train_images.shape[2])
