"""What a study can find, from the spread of those of its runs that are there already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnexp.analysis.claims import Declared, rule_of, view_of
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.power import pilot_sd, power_from_pilot, power_of_difference, power_of_equivalence
from bnexp.analysis.rule import Decision, Rule, coarse
from bnexp.analysis.select import Selection
from bnexp.analysis.shapes import View, contrast_of
from bnexp.comparison import Comparison
from bnexp.study import StudySpec


@dataclass(frozen=True)
class Power:
    """The chances of one comparison in one stratum, at Holm's first level, as if nothing else were true.

    Attributes:
        num_pilot, sd: pairs that are there, and the spread to plan with, which is no smaller with 80 % assurance.
        num_pairs: as declared.
        to_find: chance to find an effect of twice the margin.
        to_equate: chance to call a true zero negligible (or, where no difference is claimed, supported).
    """

    comparison: Comparison
    stratum: str
    num_pilot: int
    sd: float
    num_pairs: int
    to_find: float
    to_equate: float


def plan_power(selection: Selection, study: StudySpec, declared: Declared) -> list[Power]:
    """The power of each comparison in each stratum that has a pilot of two pairs at least."""
    view = view_of(selection, None)
    keys = [(comparison, group) for comparison in study.comparisons for group in selection.groups(comparison.over)]
    sizes = {True: 0, False: 0}  # of the family on trial, and of that of the context
    for comparison in study.comparisons:
        sizes[comparison.role != "context"] += declared.num_strata(comparison.over)
    found = (_power(view, *key, declared, family_size=max(1, sizes[key[0].role != "context"])) for key in keys)
    return [power for power in found if power is not None]


def _power(view: View, comparison: Comparison, stratum: str, declared: Declared, *, family_size: int) -> Power | None:
    contrast, rule = contrast_of(view, comparison, stratum), rule_of(comparison)
    values, num = list(contrast.values.values()), len(declared.seeds)
    if len(values) < 2:
        return None
    sd = pilot_sd(values)
    # no spread describes failing runs or numbers of few sizes: the rule is run on resampled pilots
    if contrast.failed or coarse(np.array([values]))[0]:
        questions: tuple[tuple[Decision, float], ...] = (("supported", 2 * rule.margin), ("negligible", 0.0))
        chances = [
            _chance_from_pilot(contrast, decision, rule, num, effect=effect, family_size=family_size)
            for decision, effect in questions
        ]
    else:
        chances = [
            power_of_difference(num, sd=sd, effect=2 * rule.margin, margin=rule.margin, family_size=family_size),
            power_of_equivalence(num, sd=sd, margin=rule.margin, family_size=family_size),
        ]
    return Power(comparison, stratum, len(values), sd, num, *chances)


def _chance_from_pilot(
    contrast: Contrast, decision: Decision, rule: Rule, num_pairs: int, *, effect: float, family_size: int
) -> float:
    """The chance in the least favourable reading: what censored runs leave open, new seeds will leave open too."""
    readings = [np.array(list(reading.values())) for reading in (contrast.values, *contrast.bounds)]
    flags = [seed in contrast.failed for seed in contrast.values]
    return min(
        power_from_pilot(
            decision,
            Rule("higher", rule.margin),
            num_pairs,
            pilot=reading.tolist(),
            failed=flags,
            effect=effect + float(reading.mean() - readings[0].mean()),
            family_size=family_size,
        )
        for reading in readings
    )
