"""Whether an effect at each arm's own best learning rate lies outside all effects at equal rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_RATES = 2  # one rate has no range
ROUNDING = 1e-9  # equal means may differ by this, however they were summed


@dataclass(frozen=True)
class Outside:
    """An own-best effect beyond the range of the effects at equal rates.

    Such an effect is what two different rates do, or the choice of them, at least in part: at no rate that both arms
    share is it as large.

    Attributes:
        low, high: the smallest and the largest mean at any equal rate.
        beyond: own-best mean minus the end of the range that it passes; below 0 where it lies below `low`.
    """

    low: float
    high: float
    beyond: float


def outside_equal_rates(own_best: float, equal: Mapping[float, float]) -> Outside | None:
    """Where the own-best mean lies outside the means at equal rates, and by how much; None where it does not.

    None too where the own-best mean is not finite, or fewer than two rates have a finite mean: there is no range then.
    All means are in one unit, in which the result is too: for a ratio, the logarithms.

    Args:
        own_best: mean effect, each arm at its own best rate.
        equal: learning rate -> mean effect with both arms at it.
    """
    means = [mean for mean in equal.values() if math.isfinite(mean)]
    if not math.isfinite(own_best) or len(means) < LEAST_RATES:
        return None
    low, high = min(means), max(means)
    if low - ROUNDING <= own_best <= high + ROUNDING:
        return None
    return Outside(low, high, own_best - (high if own_best > high else low))
