"""All images of a data set on a device, and the splits that seeds draw from them (`data.split=per_seed`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnexp.config import DataConfig
from bnexp.data import ImageSet, channel_sums, statistics_of
from bnexp.engine.build import DeviceData, majority_and_chance, normalization, pool_labels, split_of_seed


@dataclass(frozen=True)
class Pool:
    """All images of a data set, training ones first.

    Attributes:
        x: (N, C, H, W) uint8; y: (N,) int64; both on the device.
        labels: `y` on the host.
        sums: of `channel_sums`, on the host, so that no draw goes through the pixels again.
        num_test: test images of each draw.
    """

    x: Tensor
    y: Tensor
    labels: np.ndarray
    sums: tuple[np.ndarray, np.ndarray]
    num_test: int
    num_classes: int

    def draw(self, config: DataConfig, seed: int) -> Draw:
        """The splits of one seed; no image is copied."""
        split = split_of_seed(self.labels, self.num_test, config, seed=seed)
        assert split.test is not None
        mean, std = statistics_of(self.sums, split.train, num_pixels=self.x.shape[2] * self.x.shape[3])
        scale, shift = normalization(mean, std, self.x.device)
        of_split = {"train": split.train, "val": split.val, "test": split.test}
        majority, chance = majority_and_chance(*(self.labels[places] for places in of_split.values()))
        places = {name: torch.from_numpy(each).to(self.x.device) for name, each in of_split.items()}
        return Draw(self, places, scale, shift, chance, majority, split.test.astype(np.int32))


@dataclass(frozen=True)
class Draw:
    """The splits of one seed, as places in a pool; what is not said here is as in `DeviceData`.

    Attributes:
        places: split -> (M,) int64, ascending, on the device.
    """

    pool: Pool
    places: dict[str, Tensor]
    scale: Tensor
    shift: Tensor
    chance: dict[str, float]
    majority: int
    test_image: np.ndarray

    @property
    def num_classes(self) -> int:
        return self.pool.num_classes

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> its images."""
        return {split: len(places) for split, places in self.places.items()}

    def gathered(self) -> DeviceData:
        """The same with tensors of its own: as much memory again as the pool takes."""
        pool, places = self.pool, self.places
        return DeviceData(
            train_x=pool.x[places["train"]],
            train_y=pool.y[places["train"]],
            val_x=pool.x[places["val"]],
            val_y=pool.y[places["val"]],
            test_x=pool.x[places["test"]],
            test_y=pool.y[places["test"]],
            scale=self.scale,
            shift=self.shift,
            num_classes=pool.num_classes,
            chance=self.chance,
            majority=self.majority,
            test_image=self.test_image,
        )


def to_pool(images: ImageSet, device: torch.device) -> Pool:
    """Put all images on the device, once a worker."""
    x = np.concatenate([images.train_images, images.test_images])
    labels = pool_labels(images)
    return Pool(
        torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device), labels, channel_sums(x),
        len(images.test_labels), images.num_classes,
    )  # fmt: skip
