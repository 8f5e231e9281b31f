"""The verdict rule on plain arrays: one comparison or ten thousand simulated ones, judged by the same lines.

**One interval decides.** Its lower end is the lowest, and its upper end the highest, of several readings of the same
seeds: at the learning rates that the other arm may have been best at (choice.py), and at either bound of what is
censored. Each reading has a Student t interval, over seeds or over seeds and test images (spread.py). From that
interval follow three statements: the *direction* is shown where it excludes 0, the *size* is shown where it lies beyond
the margin, and an effect is *negligible* where it lies inside the margin on both sides. Where t's premise is visibly
broken, because a run failed or was censored or because the numbers take few distinct sizes, the exact sign-flip test
has to agree with every end. Its price is paid only there: its p cannot go below 2^(1−n), 0.031 at six pairs.

**Families.** Holm corrects the p of each of the three statements among its own kind: in a family of m comparisons at
most alpha wrongly find a difference where there is none, and so for sizes and for equivalences. The interval that is
printed is the one at the level that decided. How often the whole procedure errs, choice of the learning rate included,
is measured: results/reference/verdict-error-rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.significance import Array, above_p, mean_and_error, sign_flip_above_p
from bnexp.analysis.spread import Spread, over_seeds
from bnexp.comparison import DIRECTIONS, Direction

Decision = Literal[
    "supported",
    "supported, direction only",
    "contradicted",
    "contradicted, direction only",
    "negligible",
    "inconclusive",
]

MIN_PAIRS = 6  # five pairs cannot reach p < 0.05 two-sided by signs or ranks
ALPHA = 0.05
TOLERANCE = 1e-9  # relative: 0.95 − 0.94 is a margin of 0.01 however it was rounded


@dataclass(frozen=True)
class Rule:
    """What is declared of a comparison before its first run.

    Attributes:
        direction: the claimed sign of treatment − control in the metric's own unit; `same`: no difference is claimed;
            `not lower`: treatment − control > −margin is, so that nothing is negligible.
        margin: the smallest difference that matters, in the unit of the per-seed numbers.
        alpha: one minus the confidence of the interval that decides, before Holm.

    Raises:
        ValueError: a margin that is not above 0, or an alpha outside (0, 0.5).
    """

    direction: Direction
    margin: float
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise ValueError(f"margin: {self.margin!r} is not a number above 0")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha: {self.alpha!r} is not between 0 and 0.5")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction: {self.direction!r} is not one of {', '.join(DIRECTIONS)}")


@dataclass(frozen=True, eq=False)  # arrays have no single answer to whether they are equal
class Ends:
    """The readings that the two ends of an interval have to hold in.

    Attributes:
        mean: (rows,) the estimate.
        lower, upper: of each end; a reading that does not count for a row has a mean of ±inf. What the choice of a rate
            flatters is taken off the means already.
        guarded: (rows,) the sign-flip test has to agree.
        lower_values, upper_values: (rows, readings, n) the per-seed numbers behind the readings, for the sign flips.
    """

    mean: Array
    lower: Spread
    upper: Spread
    guarded: NDArray[np.bool_]
    lower_values: Array
    upper_values: Array

    def above(self, least: float, *, only_below: float = 1.0) -> Array:
        """(rows,) one-sided p that the truth is at most `least`: the largest p of any reading of the lower end.

        Args:
            only_below: spare the sign flips where the t test's p is above this; such a p stays above it.
        """
        return _side(self.lower, self.lower_values, self.guarded, least, only_below)

    def below(self, most: float, *, only_below: float = 1.0) -> Array:
        """(rows,) one-sided p that the truth is at least `most`."""
        mirrored = Spread(-self.upper.mean, self.upper.error, self.upper.degrees)
        return _side(mirrored, -self.upper_values, self.guarded, -most, only_below)

    def interval(self, alpha: float) -> tuple[Array, Array]:
        """(rows,) lower and upper ends at confidence 1 − alpha, by t."""
        from scipy.stats import t as student

        low, high = (student.isf(alpha / 2, spread.degrees) * spread.error for spread in (self.lower, self.upper))
        return (self.lower.mean - low).min(axis=1), (self.upper.mean + high).max(axis=1)


def _side(spread: Spread, values: Array, guarded: NDArray[np.bool_], least: float, only_below: float) -> Array:
    p = above_p(spread.mean, spread.error, spread.degrees, least).max(axis=1)
    for row in np.flatnonzero(guarded & (p <= only_below)):
        read = values[row][np.isfinite(values[row]).all(axis=1)]
        p[row] = max(p[row], *(sign_flip_above_p(one, least) for one in read))
    return np.asarray(p)


def ends_of(values: Array, *, failed: NDArray[np.bool_]) -> Ends:
    """The ends of numbers that are read in one way alone, where nothing was chosen; over seeds.

    Args:
        values: (rows, n), n at least 2.
        failed: (rows,) whether a failed or censored run is behind any of a row's numbers.
    """
    spread = over_seeds(values)
    return Ends(spread.mean[:, 0], spread, spread, failed | coarse(values), values[:, None], values[:, None])


def ends_of_readings(own: Array, readings: Array, *, failed: bool, widen: float = 1.0) -> Ends:
    """The ends of numbers of which there are several readings, each of which both ends have to hold in.

    Args:
        own: (1, n) the reading that is the estimate.
        readings: (1, readings, n), it among them.
        failed: whether a failed or censored run is behind any number.
        widen: what standard errors are multiplied by.
    """
    mean, error, num = mean_and_error(readings)
    spread = Spread(mean, error * widen, np.full(mean.shape, num - 1.0))
    guarded = coarse(own) | failed
    return Ends(own.mean(axis=-1), spread, spread, guarded, readings, readings)


@dataclass(frozen=True)
class Evidence:
    """What the rule reads off the ends; every field is (rows,), and p are two-sided: those of an interval.

    Attributes:
        mean: the estimate.
        side: 1 where the interval leans above 0, −1 where below.
        direction: p that there is no difference on that side.
        size: p that the difference on that side is not as large as the margin.
        equivalence: p that the mean is at least the margin away from 0; for `not lower`, that it is so far below 0.
        guarded: the sign-flip tests had to agree, and each p is the larger of the two tests'.
    """

    mean: Array
    side: Array
    direction: Array
    size: Array
    equivalence: Array
    guarded: NDArray[np.bool_]


def weigh(ends: Ends, rule: Rule, *, only_below: float = 1.0) -> Evidence:
    """The evidence for a rule with this direction and margin.

    Args:
        only_below: spare the sign flips where a two-sided p is above this; such a p stays above it.
    """
    half = only_below / 2
    up, down = ends.above(0.0, only_below=half), ends.below(0.0, only_below=half)
    least = rule.margin * (1 - TOLERANCE)
    far_up, far_down = ends.above(least, only_below=half), ends.below(-least, only_below=half)
    inside_low = ends.above(-least, only_below=half)
    inside = inside_low if rule.direction == "not lower" else np.maximum(inside_low, ends.below(least, only_below=half))
    return Evidence(
        mean=ends.mean,
        side=np.sign(down - up),
        direction=_two_sided(np.minimum(up, down)),
        size=_two_sided(np.minimum(far_up, far_down)),
        equivalence=_two_sided(inside),
        guarded=ends.guarded,
    )


def _two_sided(p: Array) -> Array:
    return np.asarray(np.minimum(1.0, 2 * p))


def coarse(values: Array) -> NDArray[np.bool_]:
    """(rows,) whether the numbers take at most n/2 distinct sizes, sign aside: too few for a t test.

    Four ones and two zeros have t = 3.2 and p = 0.025, and yet one of eight sign patterns of the four does that.
    """
    sizes = np.sort(np.abs(values), axis=-1)
    steps = np.diff(sizes, axis=-1) > TOLERANCE * sizes[..., -1:]
    return np.asarray(2 * (1 + steps.sum(axis=-1)) <= values.shape[-1])


def decide(evidence: Evidence, rule: Rule, *, num_pairs: int) -> NDArray[np.str_]:
    """(rows,) the outcome of each, in the words of `Decision`.

    Args:
        evidence: its p corrected for the family already, where there is one.
    """
    outcome = np.full(evidence.mean.shape, "inconclusive", dtype="<U28")
    if num_pairs < MIN_PAIRS:
        return outcome
    shown, large = evidence.direction <= rule.alpha, evidence.size <= rule.alpha
    inside = evidence.equivalence <= rule.alpha
    if rule.direction in ("same", "not lower"):
        outcome[inside] = "supported"
        outcome[large & ((evidence.side < 0) | (rule.direction == "same"))] = "contradicted"
        return outcome
    claimed = evidence.side == (1 if rule.direction == "higher" else -1)
    for word, side in (("supported", claimed), ("contradicted", ~claimed)):
        outcome[shown & side] = f"{word}, direction only"
        outcome[large & side] = word
    outcome[inside] = "negligible"
    return outcome
