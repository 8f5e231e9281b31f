"""How far two arms go on a ladder of levels, seed by seed: their largest good level, or the decades that they hold.

A ladder tells limits only to within a step: the true limit of a seed that is good at one rung and not at the next lies
anywhere between the two. So each seed's number is an interval, and a verdict has to hold whichever end is taken: the
numbers are the midpoints, and `Contrast.bounds` are the two ends for all seeds at once.

These ends are as tight as the data allow. That all limits of one arm lie at their rungs, and all of the other just
below their next ones, is compatible with every observation, so the mean can be at either end. Midpoints alone would be
right on average if limits fell evenly within a step, but paired seeds of one network tend to share their place within
it, and then no number of seeds averages the error out.

What this costs: on a ladder whose levels are a factor s apart, the lower end of a true ratio R is between R / s² and R,
and R / s on average where limits fall evenly. So only a ratio above margin · s² reaches the margin for certain, and one
below the margin never does, but for noise between seeds. Equal arms that end at the same rung read as anything from
1 / s to s, so `negligible` needs a margin above s. A finer ladder buys power, more seeds do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from bnexp.analysis.contrasts import CEILING, Arm, Contrast, paired

# level, above 0 -> whether the run there is good; None where that is not defined
Ladder = Mapping[float, bool | None]


class Interval(NamedTuple):
    """What a ladder leaves open of a number: it lies from `low` to `high`."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def healthy_ratio(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    *,
    seeds: Collection[int] | None = None,
    names: tuple[str, str] = ("treatment", "control"),
) -> Contrast:
    """log10(treatment's largest good level / control's) by seed; a ratio of at least 3 is `higher`, margin log10 3.

    Each number is the midpoint of what the ladder allows, see `largest_good`; the two bounds take all seeds at the end
    that favours the treatment, and at the end that favours the control.

    Args:
        treatment, control: seed -> its ladder. A seed that lacks a level any other has is missing, for its largest good
            level may be that one.
        names: of the two arms.

    Raises:
        ValueError: fewer than two levels, or one that is not above 0.
    """
    top = _levels(treatment, control)[-1]
    return _interval_contrast(
        treatment, control, largest_good, censored=lambda run: bool(run[top]), seeds=seeds, names=names
    )


def span(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    *,
    seeds: Collection[int] | None = None,
    names: tuple[str, str] = ("treatment", "control"),
) -> Contrast:
    """Decades of the ladder at which the treatment is good − those of the control, by seed.

    Each number is the midpoint of what the ladder allows, see `decades_held`; the bounds are as in `healthy_ratio`.

    Args, raises: as in `healthy_ratio`.
    """
    _levels(treatment, control)
    return _interval_contrast(
        treatment, control, decades_held, censored=lambda run: all(run.values()), seeds=seeds, names=names
    )


def largest_good(ladder: Ladder) -> Interval:
    """log10 of the largest level at which a seed is good: from the largest good rung to the next one.

    Good at the top: up to ten times the top. Good nowhere: from a decade below the lowest level, or a step where steps
    are larger, to that level. Where a smaller rung is bad, the largest good one counts all the same.

    Args:
        ladder: two levels at least, all of them defined.
    """
    levels = sorted(ladder)
    best = max((index for index, level in enumerate(levels) if ladder[level]), default=None)
    if best is None:
        low = min(levels[0] / CEILING, levels[0] ** 2 / levels[1])
        return Interval(math.log10(low), math.log10(levels[0]))
    following = levels[best + 1] if best + 1 < len(levels) else levels[best] * CEILING
    return Interval(math.log10(levels[best]), math.log10(following))


def decades_held(ladder: Ladder) -> Interval:
    """Decades of the ladder that are good.

    Between two good rungs all is good, and between two bad ones nothing is. Between a good and a bad one the limit may
    lie anywhere, so that the midpoint has half of the step. A seed that is good at every level may hold a decade more
    than the ladder has.

    Args:
        ladder: two levels at least, all of them defined.
    """
    levels = sorted(ladder)
    steps = [(lower, upper, math.log10(upper / lower)) for lower, upper in pairwise(levels)]
    low = sum(width for lower, upper, width in steps if ladder[lower] and ladder[upper])
    high = sum(width for lower, upper, width in steps if ladder[lower] or ladder[upper])
    return Interval(low, high + (math.log10(CEILING) if all(ladder.values()) else 0.0))


def _levels(*arms: Mapping[int, Ladder]) -> list[float]:
    """All levels of any seed, ascending."""
    levels = sorted({level for arm in arms for ladder in arm.values() for level in ladder})
    if len(levels) < 2 or levels[0] <= 0:
        raise ValueError("a ladder needs two levels at least, all above 0")
    return levels


def _interval_contrast(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    number: Callable[[Ladder], Interval],
    *,
    censored: Callable[[Ladder], bool],
    seeds: Collection[int] | None,
    names: tuple[str, str],
) -> Contrast:
    """Treatment − control of a number that each seed's ladder gives as an interval.

    Args:
        number: of a whole ladder.
        censored: whether a ladder was too short for its seed.
    """
    size = len(_levels(treatment, control))

    def arm(name: str, ladders: Mapping[int, Ladder], end: Callable[[Interval], float]) -> Arm:
        whole = {seed for seed, run in ladders.items() if len(run) == size}
        known = {seed: run for seed, run in ladders.items() if seed in whole and None not in run.values()}
        scores = {seed: end(number(known[seed])) if seed in known else math.nan for seed in ladders}
        failed = {seed for seed, run in known.items() if censored(run) or not any(run.values())}
        return Arm(name, scores, frozenset(failed), partial=frozenset(set(ladders) - whole))

    def contrast(of_treatment: Callable[[Interval], float], of_control: Callable[[Interval], float]) -> Contrast:
        arms = arm(names[0], treatment, of_treatment), arm(names[1], control, of_control)
        return paired(*arms, seeds=seeds)

    def low(interval: Interval) -> float:
        return interval.low

    def high(interval: Interval) -> float:
        return interval.high

    def middle(interval: Interval) -> float:
        return interval.middle

    found = contrast(middle, middle)
    bounds = contrast(high, low).values, contrast(low, high).values
    judged = [ladders[seed] for ladders in (treatment, control) for seed in found.values]
    return replace(
        found,
        bounds=bounds if any(values != found.values for values in bounds) else (),
        failures=None,  # to be good all the way is no failure to count
        hopeless=bool(judged) and not any(any(ladder.values()) for ladder in judged),
    )
