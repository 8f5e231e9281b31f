"""What a study can find, from the spread of those of its runs that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnexp.analysis.claims import Declared, rule_of, view_of
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.gates import init_readings
from bnexp.analysis.power import (
    pilot_sd,
    power_from_pilot,
    power_of_difference,
    power_of_equivalence,
    power_of_non_inferiority,
)
from bnexp.analysis.rule import ALPHA, Decision, Rule, coarse
from bnexp.analysis.select import Selection
from bnexp.analysis.sequential import Look
from bnexp.analysis.shapes import View, contrast_of
from bnexp.comparison import Comparison
from bnexp.study import INIT, StudySpec


@dataclass(frozen=True)
class Power:
    """The chances of one comparison in one stratum, at Holm's first level, as if nothing else were true.

    Where there are several looks, each chance is that of the look which has the largest: all looks together have more.

    Attributes:
        num_pilot, sd: pairs that are there, and the spread to plan with, which is no smaller with 80 % assurance.
        num_pairs: as declared.
        to_find: chance to show the size of an effect of twice the margin, at a fixed learning rate; for `not lower`, of
            one that contradicts it.
        to_equate: chance to call a true zero negligible (or, where no difference is claimed or `not lower` is,
            supported).
    """

    comparison: Comparison
    stratum: str
    num_pilot: int
    sd: float
    num_pairs: int
    to_find: float
    to_equate: float


def plan_power(selection: Selection, study: StudySpec, declared: Declared, looks: Sequence[Look] = ()) -> list[Power]:
    """The power of each comparison in each stratum that has a verdict, and a pilot of two pairs at least.

    Args:
        looks: where seeds are added in rounds; else all are judged at once, at 0.05.
    """
    looks = looks or (Look(1, len(declared.seeds), ALPHA, last=True),)
    view = view_of(selection, None)
    keys = [(comparison, group) for comparison in study.comparisons for group in selection.groups(comparison.over)]
    readings = init_readings(selection, keys, declared.axes.get(INIT, ()))
    sizes = {True: 0, False: 0}  # of the family on trial, and of that of the context
    for comparison in study.comparisons:
        sizes[comparison.role != "context"] += declared.num_strata(comparison, selection)[0]
    found = (
        _power(view, *key, looks, family_size=max(1, sizes[key[0].role != "context"]))
        for key in keys
        if key not in readings
    )
    return [power for power in found if power is not None]


def _power(
    view: View, comparison: Comparison, stratum: str, looks: Sequence[Look], *, family_size: int
) -> Power | None:
    contrast, rule = contrast_of(view, comparison, stratum), rule_of(comparison)
    values = list(contrast.values.values())
    if len(values) < 2:
        return None
    each = [
        _chances(contrast, replace(rule, alpha=look.alpha), look.num_pairs, family_size=family_size) for look in looks
    ]
    to_find, to_equate = (max(chances) for chances in zip(*each, strict=True))
    return Power(comparison, stratum, len(values), pilot_sd(values), looks[-1].num_pairs, to_find, to_equate)


def _chances(contrast: Contrast, rule: Rule, num: int, *, family_size: int) -> tuple[float, float]:
    """To find an effect of twice the margin, and to equate a true zero, with so many pairs at the rule's alpha."""
    values = list(contrast.values.values())
    not_lower = rule.direction == "not lower"
    # no spread describes failing runs, bounds or numbers of few sizes: the rule is run on resampled pilots
    if contrast.failed or contrast.bounds or coarse(np.array([values]))[0]:
        questions: tuple[tuple[Decision, float], ...] = (("supported", 2 * rule.margin), ("negligible", 0.0))
        if not_lower:
            questions = (("contradicted", -2 * rule.margin), ("supported", 0.0))
        asked = rule if not_lower else replace(rule, direction="higher")
        find, equate = (
            _chance_from_pilot(contrast, decision, asked, num, effect=effect, family_size=family_size)
            for decision, effect in questions
        )
        return find, equate
    power_of_zero = power_of_non_inferiority if not_lower else power_of_equivalence
    sd, margin = pilot_sd(values), rule.margin
    find = power_of_difference(num, sd=sd, margin=margin, effect=2 * margin, alpha=rule.alpha, family_size=family_size)
    # an interval that decides on both sides at once: each of its ends is one-sided at half of alpha
    equate = power_of_zero(num, sd=sd, margin=margin, alpha=rule.alpha / 2, family_size=family_size)
    return find, equate


def _chance_from_pilot(
    contrast: Contrast, decision: Decision, rule: Rule, num_pairs: int, *, effect: float, family_size: int
) -> float:
    """The chance in the least favourable reading: what censored runs leave open, new seeds will leave open too."""
    readings = [np.array(list(reading.values())) for reading in (contrast.values, *contrast.bounds)]
    flags = [seed in contrast.failed for seed in contrast.values]
    return min(
        power_from_pilot(
            decision,
            rule,
            num_pairs,
            pilot=reading.tolist(),
            failed=flags,
            effect=effect + float(reading.mean() - readings[0].mean()),
            family_size=family_size,
        )
        for reading in readings
    )
