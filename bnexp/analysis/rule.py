"""The verdict rule on plain arrays: one comparison or ten thousand simulated ones, judged by the same lines.

**What decides.** Student's t interval of the per-seed numbers. BCa is shown beside it and decides nothing: at six
normal pairs its 95 % interval misses the truth three times as often as it says, at ten twice as often
(results/reference/verdict-error-rates). Where t's own premise is visibly broken,
because a run failed or was censored, or because the numbers take few distinct sizes, the exact sign-flip test has to
agree. That test cannot err more often than alpha when the arms are the same, whatever their distribution, and whether
it is asked depends on nothing that swapping the arms of a pair would change, so the promise holds for the two
together. Its price is paid only there: its p cannot go below 2^(1−n), 0.031 at six pairs.

**Families.** Holm corrects the p of the differences and the p of the equivalences, each among its own kind: in a
family of m comparisons at most alpha wrongly find a difference where there is none, and at most alpha wrongly call
one negligible that is at least the margin. A claim of `not lower` is one half of an equivalence, and its p is corrected
among those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.significance import (
    Array,
    equivalence_p,
    non_inferiority_p,
    sign_flip_equivalence_p,
    sign_flip_non_inferiority_p,
    sign_flip_p,
    t_p,
)
from bnexp.comparison import DIRECTIONS, Direction

Decision = Literal["supported", "contradicted", "negligible", "inconclusive"]

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
        alpha: two-sided error rate of a difference and one-sided one of an equivalence or of `not lower`, before Holm.

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


@dataclass(frozen=True)
class Evidence:
    """What the rule reads off per-seed numbers; every field is (rows,).

    Attributes:
        mean: the one nearest to 0 where there are several readings.
        difference: p that the mean is 0.
        equivalence: p that the mean is at least the margin away from 0; for `not lower`, that it is so far below 0.
        guarded: the sign-flip tests had to agree, and both p are the larger of the two tests'.
    """

    mean: Array
    difference: Array
    equivalence: Array
    guarded: NDArray[np.bool_]


def weigh(values: Array, rule: Rule, *, failed: NDArray[np.bool_], only_below: float = 1.0) -> Evidence:
    """The evidence in per-seed numbers, for a rule with this direction and margin.

    Args:
        values: (rows, n), n at least 2.
        failed: (rows,) whether a failed or censored run is behind any of a row's numbers.
        only_below: spare the sign flips where the t test's p is above this; such a p stays above it.
    """
    one_sided = rule.direction == "not lower"
    by_t, by_signs = (
        (non_inferiority_p, sign_flip_non_inferiority_p) if one_sided else (equivalence_p, sign_flip_equivalence_p)
    )
    difference, equivalence = t_p(values), by_t(values, rule.margin)
    guarded = failed | coarse(values)
    for row in np.flatnonzero(guarded):
        if difference[row] <= only_below:
            difference[row] = max(difference[row], sign_flip_p(values[row]))
        if equivalence[row] <= only_below:
            equivalence[row] = max(equivalence[row], by_signs(values[row], rule.margin))
    return Evidence(values.mean(axis=-1), difference, equivalence, guarded)


def weakest(readings: Sequence[Evidence]) -> Evidence:
    """The evidence that holds under every reading of the data: the largest p, and no difference where signs differ."""
    means = np.stack([reading.mean for reading in readings])
    agree = np.abs(np.sign(means).sum(axis=0)) == len(readings)
    nearest = np.abs(means).argmin(axis=0)
    return Evidence(
        mean=np.take_along_axis(means, nearest[None], axis=0)[0],
        difference=np.where(agree, np.max([reading.difference for reading in readings], axis=0), 1.0),
        equivalence=np.asarray(np.max([reading.equivalence for reading in readings], axis=0)),
        guarded=np.asarray(np.any([reading.guarded for reading in readings], axis=0)),
    )


def coarse(values: Array) -> NDArray[np.bool_]:
    """(rows,) whether the numbers take at most n/2 distinct sizes, sign aside: too few for a t test.

    Four ones and two zeros have t = 3.2 and p = 0.025, and yet one of eight sign patterns of the four does that.
    """
    sizes = np.sort(np.abs(values), axis=-1)
    steps = np.diff(sizes, axis=-1) > TOLERANCE * sizes[..., -1:]
    return np.asarray(2 * (1 + steps.sum(axis=-1)) <= values.shape[-1])


def decide(evidence: Evidence, rule: Rule, *, num_pairs: int) -> NDArray[np.str_]:
    """(rows,) supported, contradicted, negligible or inconclusive.

    Args:
        evidence: its p corrected for the family already, where there is one.
    """
    outcome = np.full(evidence.mean.shape, "inconclusive", dtype="<U12")
    if num_pairs < MIN_PAIRS:
        return outcome
    inside = evidence.equivalence <= rule.alpha
    matters = (evidence.difference <= rule.alpha) & (np.abs(evidence.mean) >= rule.margin * (1 - TOLERANCE))
    against = {"same": evidence.mean != 0, "lower": evidence.mean > 0}.get(rule.direction, evidence.mean < 0)
    if rule.direction in ("same", "not lower"):
        outcome[inside] = "supported"
    else:
        outcome[inside] = "negligible"
        outcome[matters] = "supported"
    outcome[matters & against] = "contradicted"
    return outcome
