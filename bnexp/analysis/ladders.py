"""From which levels of a factor are good, seed by seed, to how far two arms go: their largest level, their span."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import pairwise

from bnexp.analysis.contrasts import CEILING, Arm, Contrast, paired

# level, above 0 -> whether the run there is good; None where that is not defined
Ladder = Mapping[float, bool | None]


def healthy_ratio(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    *,
    seeds: Collection[int] | None = None,
    names: tuple[str, str] = ("treatment", "control"),
    open_below: bool = False,
) -> Contrast:
    """log10(treatment's largest good level / control's) by seed; a ratio of at least 3 is `higher`, margin log10 3.

    A seed without a good level counts as one step below the ladder and as failed. One that is good at the top is
    censored: it counts as the top, and two bounds take it to go up to ten times as far, once in favour of each arm. A
    verdict has to hold in all three readings, so that a ladder which is too short for both arms decides nothing.

    Args:
        open_below: a seed may lack a good level though its runs are sound, so that its own may lie anywhere below the
            ladder: two bounds take it to reach almost its lowest level.
        treatment, control: seed -> its ladder. A seed that lacks a level any other has is missing, for its largest good
            level may be that one.
        names: of the two arms.

    Raises:
        ValueError: fewer than two levels, or one that is not above 0.
    """
    levels = _levels(treatment, control)
    top, below = levels[-1], levels[0] ** 2 / levels[1]

    def reached(beyond: float) -> Callable[[Ladder], float]:
        def number(run: Ladder) -> float:
            short = levels[0] if open_below and beyond > 1 else below
            best = max((level for level, good in run.items() if good), default=short)
            return math.log10(best * beyond if best == top else best)

        return number

    return _open_ended(treatment, control, reached, censored=lambda run: bool(run[top]), seeds=seeds, names=names)


def span(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    *,
    seeds: Collection[int] | None = None,
    names: tuple[str, str] = ("treatment", "control"),
) -> Contrast:
    """Decades of the ladder at which the treatment is good − those of the control, by seed.

    A seed that is good at every level is censored: it counts as the whole ladder, and two bounds take it to hold up to
    a decade more, once in favour of each arm.

    Args, raises: as in `healthy_ratio`.
    """
    _levels(treatment, control)

    def held(beyond: float) -> Callable[[Ladder], float]:
        return lambda run: decades_held(run) + (math.log10(beyond) if all(run.values()) else 0.0)

    return _open_ended(treatment, control, held, censored=lambda run: all(run.values()), seeds=seeds, names=names)


def decades_held(ladder: Ladder) -> float:
    """Decades of the ladder that are good: each level stands for half the way to its neighbours, the ends for theirs.

    Args:
        ladder: two levels at least, all of them defined.
    """
    levels = sorted(ladder)
    halves = [math.log10(upper / lower) / 2 for lower, upper in pairwise(levels)]
    widths = [left + right for left, right in zip([0.0, *halves], [*halves, 0.0], strict=True)]
    return sum(width for level, width in zip(levels, widths, strict=True) if ladder[level])


def _levels(*arms: Mapping[int, Ladder]) -> list[float]:
    """All levels of any seed, ascending."""
    levels = sorted({level for arm in arms for ladder in arm.values() for level in ladder})
    if len(levels) < 2 or levels[0] <= 0:
        raise ValueError("a ladder needs two levels at least, all above 0")
    return levels


def _open_ended(
    treatment: Mapping[int, Ladder],
    control: Mapping[int, Ladder],
    number: Callable[[float], Callable[[Ladder], float]],
    *,
    censored: Callable[[Ladder], bool],
    seeds: Collection[int] | None,
    names: tuple[str, str],
) -> Contrast:
    """Treatment − control of a number that is only bounded from below where a ladder was too short for its seed.

    Args:
        number: from the factor by which a censored seed goes beyond its ladder to the number of a whole ladder.
        censored: whether that is so of a ladder.
    """
    size = len(_levels(treatment, control))

    def arm(name: str, ladders: Mapping[int, Ladder], beyond: float) -> Arm:
        whole = {seed for seed, run in ladders.items() if len(run) == size}
        known = {seed: run for seed, run in ladders.items() if seed in whole and None not in run.values()}
        scores = {seed: number(beyond)(known[seed]) if seed in known else math.nan for seed in ladders}
        failed = {seed for seed, run in known.items() if censored(run) or not any(run.values())}
        return Arm(name, scores, frozenset(failed), partial=frozenset(set(ladders) - whole))

    def contrast(treatment_beyond: float, control_beyond: float) -> Contrast:
        arms = arm(names[0], treatment, treatment_beyond), arm(names[1], control, control_beyond)
        return paired(*arms, seeds=seeds)

    least = contrast(1.0, 1.0)
    bounds = contrast(CEILING, 1.0).values, contrast(1.0, CEILING).values
    judged = [ladders[seed] for ladders in (treatment, control) for seed in least.values]
    return replace(
        least,
        bounds=bounds if any(values != least.values for values in bounds) else (),
        failures=None,  # to be good all the way is no failure to count
        hopeless=bool(judged) and not any(any(ladder.values()) for ladder in judged),
    )
