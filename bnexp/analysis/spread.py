"""How far a mean may lie from the truth: over seeds alone, over seeds and test images, over splits that overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnexp.analysis.significance import Array, mean_and_error


class Spread(NamedTuple):
    """A mean, its standard error and that error's degrees of freedom; every field is (rows, readings)."""

    mean: Array
    error: Array
    degrees: Array


@dataclass(frozen=True)
class Crossed:
    """The parts of the variance of a mean over seeds and test images, by the two-way random-effects model.

    Attributes:
        seeds, images, rest: variance of the mean that comes from seeds, from images, and from what one seed does to one
            image; none is below 0.
        variance, degrees: of the mean, and its degrees of freedom by Satterthwaite's formula.
    """

    seeds: float
    images: float
    rest: float
    variance: float
    degrees: float


def over_seeds(values: Array) -> Spread:
    """For new seeds, on these test images.

    Args:
        values: (rows, n) per-seed numbers, n at least 2.
    """
    mean, error, num = mean_and_error(values)
    return Spread(mean[:, None], error[:, None], np.full((len(values), 1), num - 1.0))


def over_seeds_and_images(scores: Array) -> Crossed:
    """For new seeds and new images like these: seeds and images crossed, both random.

    With mean squares S of seeds, I of images and E of the rest, S + I − E estimates n·m times the variance of the mean.
    It is at least S: what the seeds alone show is never taken back by an estimate that came out below 0.

    Args:
        scores: (n, m) of n seeds on the same m images, both at least 2: 0 or 1 each, or a difference of such.

    Source: Sellam et al. 2022, "The MultiBERTs"; Owen 2007, "The pigeonhole bootstrap"; Satterthwaite 1946.
    """
    num_seeds, num_images = scores.shape
    by_seed, by_image, mean = scores.mean(1), scores.mean(0), float(scores.mean())
    square_seeds = num_images * float(((by_seed - mean) ** 2).sum()) / (num_seeds - 1)
    square_images = num_seeds * float(((by_image - mean) ** 2).sum()) / (num_images - 1)
    total = float(((scores - mean) ** 2).sum())
    rest = total - square_seeds * (num_seeds - 1) - square_images * (num_images - 1)
    square_rest = max(0.0, rest) / ((num_seeds - 1) * (num_images - 1))
    size = num_seeds * num_images
    from_images = max(0.0, square_images - square_rest)
    whole = square_seeds + from_images
    freedom = square_seeds**2 / (num_seeds - 1)
    if from_images:
        freedom += square_images**2 / (num_images - 1) + square_rest**2 / ((num_seeds - 1) * (num_images - 1))
    return Crossed(
        seeds=max(0.0, square_seeds - square_rest) / size,
        images=from_images / size,
        rest=square_rest / size,
        variance=whole / size,
        degrees=whole**2 / freedom if freedom > 0 else num_seeds - 1.0,
    )


def overlap_factor(share: float, num_seeds: int) -> float:
    """By how much the standard error grows where every seed draws its own split of one data set.

    Training sets that overlap make seeds alike, so that s²/n is too small a variance of the mean: it is
    (1/n + test/train) · s².

    Args:
        share: test images for each training image; 0 where all seeds share one split.

    Source: Nadeau & Bengio 2003, "Inference for the generalization error".
    """
    return math.sqrt(1 + num_seeds * share)
