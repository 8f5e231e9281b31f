"""Validation carved from train, or all three splits drawn from one pool, and statistics of train alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnexp.errors import ConfigError, DataError

CHUNK = 4096  # images at a time, so that float copies stay small


@dataclass(frozen=True)
class Split:
    """Indices of images, int64, ascending and disjoint.

    Attributes:
        train, val: into the training images or, where there is `test`, into the pool.
        test: into the pool; None for the data set's own test images.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray | None = None


def split_train_val(labels: np.ndarray, *, val_fraction: float, seed: int, train_limit: int | None) -> Split:
    """A stratified split, fixed by its seed.

    Args:
        labels: (N,) of the training images.
        val_fraction: share of all training images; each class has its share to within one image.
        train_limit: keep so many training images, stratified; a smaller limit keeps a subset of a larger one's.
            The validation images do not depend on it.

    Raises:
        DataError: a class has too few images for one on each side.
        ConfigError: a limit above what there is, or below one image a class.
    """
    return Split(*_train_and_val(_shuffled(labels, seed), val_fraction, train_limit))


def split_pool(labels: np.ndarray, *, num_test: int, val_fraction: float, seed: int, train_limit: int | None) -> Split:
    """Train, validation and test drawn from one pool, stratified, and fixed by the seed.

    How many images of each class are in each split depends on the labels alone: it is the same for every seed.

    Args:
        labels: (N,) of the pool.
        num_test: test images; which they are depends on neither `val_fraction` nor `train_limit`.
        val_fraction, train_limit: as in `split_train_val`, of the images that are not in test.

    Raises:
        DataError, ConfigError: as `split_train_val`.
    """
    members = _shuffled(labels, seed)
    num_of_each = _apportion(np.array([len(m) for m in members]), num_test)
    test = np.concatenate([m[:k] for m, k in zip(members, num_of_each, strict=True)])
    rest = [m[k:] for m, k in zip(members, num_of_each, strict=True)]
    return Split(*_train_and_val(rest, val_fraction, train_limit), np.sort(test))


def _shuffled(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The places of each class's images, in an order that the seed fixes."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return [rng.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]


def _train_and_val(
    members: list[np.ndarray], val_fraction: float, train_limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(m) for m in members])
    num_val = _apportion(counts, round(val_fraction * int(counts.sum())))
    num_val = np.clip(num_val, 1, counts - 1)
    for label, count in enumerate(counts):
        if count < 2:
            raise DataError(
                f"class {label} has {count} training images; one for train and one for validation are needed"
            )
    val = np.concatenate([m[:k] for m, k in zip(members, num_val, strict=True)])
    rest = [m[k:] for m, k in zip(members, num_val, strict=True)]
    if train_limit is not None:
        rest = _limit(rest, train_limit)
    return np.sort(np.concatenate(rest)), np.sort(val)


def channel_statistics(images: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over these images, of pixels scaled to [0, 1], in float64.

    A channel that is constant gets a standard deviation of 1, so that it normalizes to 0 and not to infinity.

    Args:
        images: (N, C, H, W) uint8.
        indices: (M,) into N.
    """
    # whole numbers: the sums are exact, whatever the order
    total = np.zeros(images.shape[1], dtype=np.int64)
    squares = np.zeros(images.shape[1], dtype=np.int64)
    for start in range(0, len(indices), CHUNK):
        chunk = images[indices[start : start + CHUNK]].astype(np.int32)
        total += chunk.sum((0, 2, 3), dtype=np.int64)
        squares += (chunk * chunk).sum((0, 2, 3), dtype=np.int64)
    return _moments(total, squares, len(indices) * images.shape[2] * images.shape[3])


def channel_sums(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of pixels and of their squares, (N, C) int64, over each channel of each image.

    Args:
        images: (N, C, H, W) uint8.
    """
    total, squares = (np.zeros(images.shape[:2], dtype=np.int64) for _ in range(2))
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].astype(np.int32)
        total[start : start + CHUNK] = chunk.sum((2, 3), dtype=np.int64)
        squares[start : start + CHUNK] = (chunk * chunk).sum((2, 3), dtype=np.int64)
    return total, squares


def statistics_of(
    sums: tuple[np.ndarray, np.ndarray], indices: np.ndarray, *, num_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `channel_statistics` gives of these images, to the bit, from the sums of `channel_sums`.

    Args:
        num_pixels: of a channel of one image.
    """
    total, squares = (each[indices].sum(0) for each in sums)
    return _moments(total, squares, len(indices) * num_pixels)


def _moments(total: np.ndarray, squares: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean / 255, np.where(std > 1e-9, std / 255, 1.0)


def _apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Split `total` in proportion to `counts` by largest remainders; sums to it exactly."""
    shares = counts * (total / counts.sum())
    whole: np.ndarray = np.floor(shares).astype(np.int64)
    order = np.argsort(whole - shares, kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def _limit(members: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """The first `limit` of one sequence that takes the classes in proportion, so that limits nest."""
    counts = np.array([len(m) for m in members])
    if not len(members) <= limit <= counts.sum():
        hint = f"expected {len(members)} (one a class) to {counts.sum()} (all that validation leaves)"
        raise ConfigError("data.train_limit", got=limit, hint=hint)
    # image j of a class of n stands at (j + 1/2)/n of the sequence; each class's first stands at its very beginning
    places = [np.where(np.arange(n) == 0, -1.0, (np.arange(n) + 0.5) / n) for n in counts]
    labels = np.concatenate([np.full(n, label) for label, n in enumerate(counts)])
    kept = labels[np.argsort(np.concatenate(places), kind="stable")[:limit]]
    return [m[: int((kept == label).sum())] for label, m in enumerate(members)]
