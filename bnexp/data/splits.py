"""Validation carved from train, and statistics of train alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnexp.errors import ConfigError, DataError

CHUNK = 4096  # images at a time, so that float copies stay small


@dataclass(frozen=True)
class Split:
    """Indices into the training images, int64, ascending and disjoint."""

    train: np.ndarray
    val: np.ndarray


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
    rng = np.random.Generator(np.random.PCG64(seed))
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    counts = np.array([len(m) for m in members])
    num_val = _apportion(counts, round(val_fraction * len(labels)))
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
    return Split(np.sort(np.concatenate(rest)), np.sort(val))


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
    count = len(indices) * images.shape[2] * images.shape[3]
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
