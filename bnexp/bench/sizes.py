"""What is benchmarked: networks with batch norm, on images of three shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnexp.data import ImageSet, channel_statistics, load_images, split_train_val
from bnexp.engine.build import HostData

NUM_CLASSES = 10
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Size:
    """One network and its images, in the terms of `bnexp train`.

    Attributes:
        channels, side: of an image.
        num_train, num_test: images, of random pixels: speed does not depend on what they show. 0: the embedded digits.
    """

    name: str
    what: str
    channels: int
    side: int
    num_train: int
    num_test: int
    depth: int
    width: int
    batch_size: int
    model: str = "cnn"

    def arguments(self) -> list[str]:
        """Overrides of `bnexp train` that make this network; the data are `images()`."""
        return [
            f"model={self.model}", f"model.depth={self.depth}", f"model.width={self.width}", "norm=batch", "lr=0.05",
            f"batch_size={self.batch_size}", "schedule=constant", f"data.val_fraction={VAL_FRACTION}",
        ]  # fmt: skip

    def images(self) -> ImageSet:
        if not self.num_train:
            return load_images("digits", root=None, image_size=None)
        rng = np.random.default_rng(0)

        def split(num: int) -> tuple[np.ndarray, np.ndarray]:
            images = rng.integers(0, 256, (num, self.channels, self.side, self.side), dtype=np.uint8)
            return images, rng.integers(0, NUM_CLASSES, num)

        return ImageSet(*split(self.num_train), *split(self.num_test), classes=tuple(map(str, range(NUM_CLASSES))))

    def host(self) -> HostData:
        images = self.images()
        split = split_train_val(images.train_labels, val_fraction=VAL_FRACTION, seed=0, train_limit=None)
        return HostData(images, split, *channel_statistics(images.train_images, split.train))


SIZES = {
    size.name: size
    for size in (
        Size("tiny", "2 convolutions of 8 and 16 channels, digits", 1, 8, 0, 0, 2, 8, 32),
        Size("small", "2 convolutions of 16 and 32 channels, MNIST's shape", 1, 28, 10_000, 2_000, 2, 16, 128),
        Size("medium", "6 convolutions of 32 to 128 channels, CIFAR's shape", 3, 32, 2_000, 500, 6, 32, 128),
        Size("resnet20", "ResNet-20, CIFAR's shape", 3, 32, 20_000, 500, 20, 16, 128, "resnet"),
    )
}
ON_A_CPU = ("tiny", "small", "medium")  # where no size is asked for
