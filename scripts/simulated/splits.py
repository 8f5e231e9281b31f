"""Whether the factor for splits that overlap keeps the coverage, with classifiers that are really trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.significance import Array
from bnexp.analysis.spread import over_seeds, overlap_factor
from simulated.tables import Row, share, write_rows

NUM_TRAIN, NUM_VAL, NUM_TEST = 1_150, 287, 360  # of 1,797 digits, with a fifth of the rest for validation
NUM_ALL = NUM_TRAIN + NUM_VAL + NUM_TEST
CLASSES, FEATURES, HIDDEN = 10, 16, 60
APART = 1.0  # standard deviation of class means, where that of examples is 1
SEEDS = (6, 10)
TRUTH_SETS, TRUTH_TEST = 400, 20_000
Labels = NDArray[np.int64]
Learner = Callable[[Array, Labels, int], Callable[[Array], Labels]]
COLUMNS = (
    "learners",
    "num_seeds",
    "num_worlds",
    "true_difference_points",
    "coverage_with_factor",
    "coverage_without",
    "half_width_with_factor",
    "half_width_without",
)


def write_splits(folder: Path, num: int) -> None:
    write_rows(folder / "splits.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for name, (treatment, control) in LEARNERS.items():
        rng = np.random.default_rng(list(LEARNERS).index(name))
        centres = APART * rng.standard_normal((CLASSES, FEATURES))
        truth = _truth(centres, treatment, control, rng)
        # the first six of ten seeds are as good as six others
        values = np.array([_study(centres, treatment, control, max(SEEDS), rng) for _ in range(num)])
        for num_seeds in SEEDS:
            yield {"learners": name, "num_seeds": num_seeds, "num_worlds": num} | _coverage(
                values[:, :num_seeds], truth
            )


def _coverage(values: Array, truth: float) -> dict[str, float]:
    from scipy.stats import t as student

    spread = over_seeds(values)
    distance = np.abs(spread.mean - truth)[:, 0]
    without = (student.isf(0.025, spread.degrees) * spread.error)[:, 0]
    half = without * overlap_factor(NUM_TEST / NUM_TRAIN, values.shape[1])
    return {
        "true_difference_points": round(100 * truth, 3),
        "coverage_with_factor": share(distance <= half),
        "coverage_without": share(distance <= without),
        "half_width_with_factor": round(100 * float(np.median(half)), 3),
        "half_width_without": round(100 * float(np.median(without)), 3),
    }


def _draw(centres: Array, num: int, rng: np.random.Generator) -> tuple[Array, Labels]:
    labels = rng.integers(0, CLASSES, num)
    return centres[labels] + rng.standard_normal((num, FEATURES)), labels


def _truth(centres: Array, treatment: Learner, control: Learner, rng: np.random.Generator) -> float:
    """The mean difference over fresh training sets of this size, each asked about a large fresh test set."""
    found = []
    for seed in range(TRUTH_SETS):
        train, test = _draw(centres, NUM_TRAIN, rng), _draw(centres, TRUTH_TEST, rng)
        right = [float((learner(*train, seed)(test[0]) == test[1]).mean()) for learner in (treatment, control)]
        found.append(right[0] - right[1])
    return float(np.mean(found))


def _study(centres: Array, treatment: Learner, control: Learner, num_seeds: int, rng: np.random.Generator) -> Array:
    """(seeds,) differences of test accuracy, each on its own split of one data set."""
    examples, labels = _draw(centres, NUM_ALL, rng)
    values = np.empty(num_seeds)
    for seed in range(num_seeds):
        order = rng.permutation(NUM_ALL)
        train, test = order[:NUM_TRAIN], order[-NUM_TEST:]
        drawn = int(rng.integers(1 << 30))
        right = [
            float((learner(examples[train], labels[train], drawn)(examples[test]) == labels[test]).mean())
            for learner in (treatment, control)
        ]
        values[seed] = right[0] - right[1]
    return values


def ridge(penalty: float) -> Learner:
    """Least squares on one-hot labels, with a penalty on the squares of the weights."""
    return lambda examples, labels, seed: _least_squares(examples, labels, penalty)


def random_features(penalty: float) -> Learner:
    """Ridge on random rectified features, which the seed draws: a network whose first layer isn't trained."""

    def learn(examples: Array, labels: Labels, seed: int) -> Callable[[Array], Labels]:
        weights = np.random.default_rng(seed).standard_normal((FEATURES, HIDDEN)) / np.sqrt(FEATURES)
        predict = _least_squares(np.maximum(examples @ weights, 0), labels, penalty)
        return lambda test: predict(np.maximum(test @ weights, 0))

    return learn


def nearest_mean(examples: Array, labels: Labels, seed: int) -> Callable[[Array], Labels]:
    del seed
    means = np.stack([examples[labels == label].mean(axis=0) for label in range(CLASSES)])
    return lambda test: np.asarray((test @ means.T - (means**2).sum(axis=1) / 2).argmax(axis=1), dtype=np.int64)


def _least_squares(examples: Array, labels: Labels, penalty: float) -> Callable[[Array], Labels]:
    with_one = np.column_stack([examples, np.ones(len(examples))])
    square = with_one.T @ with_one + penalty * np.eye(with_one.shape[1])
    weights = np.linalg.solve(square, with_one.T @ np.eye(CLASSES)[labels])
    return lambda test: np.asarray((test @ weights[:-1] + weights[-1]).argmax(axis=1), dtype=np.int64)


LEARNERS: dict[str, tuple[Learner, Learner]] = {
    "ridge, penalty 1000 − 1": (ridge(1_000.0), ridge(1.0)),
    "nearest mean − ridge": (nearest_mean, ridge(1.0)),
    "random features, penalty 100 − 0.1": (random_features(100.0), random_features(0.1)),
}
