"""Whether an interval over seeds and test images covers what new seeds and new images would show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.significance import Array
from bnexp.analysis.spread import over_seeds, over_seeds_and_images
from simulated.tables import Row, share, write_rows

NUM_IMAGES = (360, 2_000)
SEEDS = (6, 10)
EASE = 4.0  # log odds of a right answer on an image of middling difficulty: about 93 % of images
COLUMNS = (
    "world",
    "num_images",
    "num_seeds",
    "num_worlds",
    "true_difference_points",
    "coverage_seeds_and_images",
    "coverage_seeds_alone",
    "half_width_seeds_and_images",
    "half_width_seeds_alone",
)


@dataclass(frozen=True)
class ImageWorld:
    """Two arms that answer the same images; log odds of a right answer are a sum of normal effects.

    Attributes:
        effect: of the treatment.
        difficulty: standard deviation of an image's own part, alike for both arms.
        taste: of what an image does to one arm more than to the other.
        luck: of what a seed does to one arm, on every image.
    """

    effect: float = 0.0
    difficulty: float = 2.5
    taste: float = 0.0
    luck: float = 0.1

    def truth(self) -> float:
        """The difference of accuracies over all seeds and all images."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        spread = np.sqrt(self.difficulty**2 + self.taste**2 + self.luck**2)
        weights = weights / weights.sum()
        better, base = (float(weights @ _logistic(EASE + by + spread * nodes)) for by in (self.effect, 0.0))
        return better - base

    def draw(self, rng: np.random.Generator, num_seeds: int, num_images: int) -> Array:
        """(seeds, images) whether the treatment was right, less whether the control was."""
        image = EASE + self.difficulty * rng.standard_normal(num_images)
        right: list[NDArray[np.bool_]] = []
        for effect in (self.effect, 0.0):
            arm = image + effect + self.taste * rng.standard_normal(num_images)
            seed = self.luck * rng.standard_normal((num_seeds, 1))
            # a run answers an image always alike; which way is what chance decides here
            right.append(rng.random((num_seeds, num_images)) < _logistic(arm + seed))
        return right[0].astype(np.float64) - right[1]


WORLDS = {
    "same arms": ImageWorld(),
    "same arms, seeds that differ much": ImageWorld(luck=0.5),
    "same arms on average, each with its own images": ImageWorld(taste=1.0),
    "an effect": ImageWorld(effect=0.3),
    "an effect, each arm with its own images": ImageWorld(effect=0.3, taste=1.0),
}


def write_images(folder: Path, num: int) -> None:
    write_rows(folder / "images.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for (name, world), num_images, num_seeds in product(WORLDS.items(), NUM_IMAGES, SEEDS):
        rng = np.random.default_rng([list(WORLDS).index(name), num_images, num_seeds])
        truth = world.truth()
        halves, distances = np.empty((2, num)), np.empty(num)
        for study in range(num):
            scores = world.draw(rng, num_seeds, num_images)
            distances[study] = abs(float(scores.mean()) - truth)
            halves[:, study] = half_widths(scores)
        covered = distances <= halves
        yield {
            "world": name,
            "num_images": num_images,
            "num_seeds": num_seeds,
            "num_worlds": num,
            "true_difference_points": round(100 * truth, 3),
            "coverage_seeds_and_images": share(covered[0]),
            "coverage_seeds_alone": share(covered[1]),
            "half_width_seeds_and_images": round(100 * float(np.median(halves[0])), 3),
            "half_width_seeds_alone": round(100 * float(np.median(halves[1])), 3),
        }


def half_widths(scores: Array) -> tuple[float, float]:
    """Of the 95 % interval over seeds and images, and of that over seeds alone."""
    from scipy.stats import t as student

    crossed, seeds = over_seeds_and_images(scores), over_seeds(scores.mean(axis=1)[None])
    both = student.isf(0.025, crossed.degrees) * np.sqrt(crossed.variance)
    return float(both), float(student.isf(0.025, seeds.degrees[0, 0]) * seeds.error[0, 0])


def _logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))
