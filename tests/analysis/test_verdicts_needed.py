"""How many seeds would decide what is open: against simulated studies that are judged by scipy's intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.rule import Rule, ends_of_readings
from bnexp.analysis.verdicts import Comparison, Seeds, judge, judge_family

NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
SD = float(np.std(NOISE, ddof=1))
HIGHER, SAME, NOT_LOWER = (Rule(direction, 0.01) for direction in ("higher", "same", "not lower"))  # type: ignore[arg-type]


def contrast(mean: float, spread: float = 1.0) -> Contrast:
    return Contrast(dict(enumerate((mean + spread * NOISE).tolist())))


def rate(found: Seeds | None, mean: float, sd: float, direction: str, level: float = 0.95) -> float:
    """How often as many seeds as needed decide as said, by the ends of scipy's intervals."""
    assert found is not None
    assert found.num_pairs is not None
    draws = np.random.default_rng(0).normal(mean, sd, size=(4000, found.num_pairs))
    low, high = scipy_stats.ttest_1samp(draws, 0, axis=1).confidence_interval(level)
    above, below, inside = low >= 0.01, high <= -0.01, (low > -0.01) & (high < 0.01)
    decided = {
        "higher": {"supported": above, "contradicted": below, "negligible": inside},
        "lower": {"supported": below, "contradicted": above, "negligible": inside},
        "same": {"supported": inside, "contradicted": above | below},
        "not lower": {"supported": low > -0.01, "contradicted": below},
    }
    return float(decided[direction][found.decision].mean())


@pytest.mark.parametrize(
    ("mean", "spread", "direction", "into"),
    [
        (0.03, 8.0, "higher", "supported"),
        (0.03, 8.0, "lower", "contradicted"),
        (-0.03, 8.0, "lower", "supported"),
        (0.0, 8.0, "higher", "negligible"),
        (0.0, 8.0, "same", "supported"),
        (-0.03, 8.0, "same", "contradicted"),
        (0.0, 9.0, "not lower", "supported"),
        (0.012, 9.0, "not lower", "supported"),
        (-0.03, 9.0, "not lower", "contradicted"),
        (0.0125, 1.0, "higher", "supported"),  # whose direction is known
        (0.006, 1.0, "higher", "negligible"),
    ],
)
def test_what_is_open_says_how_many_seeds_would_decide_it(
    mean: float, spread: float, direction: str, into: str
) -> None:
    verdict = judge(contrast(mean, spread), Rule(direction, 0.01))  # type: ignore[arg-type]
    assert verdict.outcome in ("inconclusive", "supported, direction only")
    assert (verdict.outcome == "inconclusive") == (spread > 1)
    assert verdict.needed is not None
    assert verdict.needed.decision == into
    assert rate(verdict.needed, mean, spread * SD, direction) == pytest.approx(0.8, abs=0.03)


def test_at_a_look_they_are_counted_at_its_level() -> None:
    rule = Rule("higher", 0.01, alpha=0.02)
    verdict = judge(contrast(0.03, 6.0), rule)
    assert rate(verdict.needed, 0.03, 6 * SD, "higher", 0.98) == pytest.approx(0.8, abs=0.03)


def test_an_effect_at_the_margin_needs_more_seeds_than_anyone_has() -> None:
    assert judge(contrast(0.0099, 5.0), HIGHER).needed == Seeds(None, "negligible")
    assert judge(contrast(0.0101, 5.0), HIGHER).needed == Seeds(None, "supported")


def test_no_number_of_seeds_decides_what_a_bound_takes_across_the_margin() -> None:
    # the control reaches to 20, and the treatment to the top at 32 or to anything beyond it
    rule = Rule("higher", math.log10(2))
    for num in (10, 30, 60):
        least, most = (dict.fromkeys(range(num), math.log10(top / 20)) for top in (32, 128))
        assert judge(Contrast(least), rule).outcome == "negligible"
        verdict = judge(Contrast(least, bounds=(most,)), rule)
        assert verdict.outcome == "supported, direction only"  # it is farther, in either case
        assert verdict.needed is not None
        assert verdict.needed.num_pairs is None


@pytest.mark.parametrize(("rule", "into"), [(HIGHER, "negligible"), (SAME, "supported")])
def test_an_equivalence_counts_seeds_for_the_reading_that_is_farthest_from_zero(rule: Rule, into: str) -> None:
    near, far = (contrast(mean, 5.0) for mean in (0.001, -0.005))
    verdicts = [judge(Contrast(one.values, bounds=(other.values,)), rule) for one, other in ((near, far), (far, near))]
    assert [verdict.outcome for verdict in verdicts] == ["inconclusive"] * 2
    (needed,) = {verdict.needed for verdict in verdicts}  # that they differ in sign does not matter here
    assert needed is not None
    assert (needed.decision, needed) == (into, judge(far, rule).needed)
    assert rate(needed, -0.005, 5 * SD, rule.direction) == pytest.approx(0.8, abs=0.03)


def test_seeds_are_counted_for_the_least_favourable_bound() -> None:
    high, low, worse = (contrast(mean, 5.0) for mean in (0.005, -0.004, -0.03))
    alone = judge(low, NOT_LOWER).needed
    bounded = judge(Contrast(high.values, bounds=(low.values,)), NOT_LOWER).needed
    assert alone is not None
    assert bounded == alone
    # both signs are well above −margin: that they differ does not matter here
    easier = judge(Contrast(high.values, bounds=(high.values,)), NOT_LOWER).needed
    assert easier is None or (easier.num_pairs or 0) < (bounded.num_pairs or 0)
    astride = judge(Contrast(high.values, bounds=(worse.values,)), NOT_LOWER).needed
    assert astride is not None
    assert astride.num_pairs is None


def test_what_widens_an_interval_costs_seeds() -> None:
    values = contrast(0.03, 6.0).values
    numbers = np.array([[list(values.values())]])
    wider = Contrast(values, ends=ends_of_readings(numbers[:, 0], numbers, failed=False, widen=1.5))
    assert rate(judge(wider, HIGHER).needed, 0.03, 1.5 * 6 * SD, "higher") == pytest.approx(0.8, abs=0.03)


def test_seeds_are_counted_at_the_level_that_the_family_leaves() -> None:
    # one of four is an equivalence already: three are left, and the next is tested at alpha / 3
    family = {str(k): Comparison(contrast(0.0, 6.0), NOT_LOWER) for k in range(3)} | {
        "d": Comparison(contrast(0), SAME)
    }
    verdicts = judge_family(family)
    assert [verdict.outcome for verdict in verdicts.values()] == [*["inconclusive"] * 3, "supported"]
    needed = verdicts["0"].needed
    assert needed is not None
    num = needed.num_pairs or 0
    # the lower end of a 1 − alpha / 3 interval: one-sided at half of that
    chances = [
        TTestPower().power(0.01 / (6 * SD), pairs, 0.05 / 3 / 2, alternative="larger") for pairs in (num - 1, num)
    ]
    assert chances[0] < 0.8 <= chances[1]
