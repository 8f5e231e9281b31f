"""Promised power against statsmodels and simulation, and rounds of seeds against their sum of levels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.power import (
    Test,
    pilot_sd,
    power_from_pilot,
    power_of_difference,
    power_of_equivalence,
    seeds_needed,
)
from bnexp.analysis.rule import Rule
from bnexp.analysis.sequential import plan_looks, settle, should_stop
from bnexp.analysis.verdicts import Verdict, judge


@pytest.mark.parametrize("num", [6, 10, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_without_a_margin_is_that_of_the_paired_t_test(num: int, alpha: float) -> None:
    expected = TTestPower().power(0.9, num, alpha, alternative="two-sided")
    found = power_of_difference(num, sd=2.0, effect=1.8, margin=0.0, alpha=alpha)
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_family_is_planned_at_its_first_level() -> None:
    alone = power_of_difference(10, sd=1, effect=1, margin=0.3, alpha=0.0125)
    assert power_of_difference(10, sd=1, effect=1, margin=0.3, family_size=4) == alone
    assert alone < power_of_difference(10, sd=1, effect=1, margin=0.3)


def test_an_effect_of_the_margin_is_said_to_reach_it_as_often_as_the_level_allows() -> None:
    for num in (6, 500):
        assert power_of_difference(num, sd=1, effect=0.5, margin=0.5) == pytest.approx(0.025, abs=1e-4)


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_power_of_equivalence_with_many_pairs_is_the_normal_one(effect: float) -> None:
    num, sd, margin = 400, 1.0, 0.4
    spread = sd / np.sqrt(num)
    room = margin - scipy_stats.norm.isf(0.05) * spread
    expected = scipy_stats.norm.cdf((room - effect) / spread) - scipy_stats.norm.cdf((-room - effect) / spread)
    assert power_of_equivalence(num, sd=sd, margin=margin, effect=effect) == pytest.approx(expected, abs=5e-3)


def test_under_six_pairs_there_is_no_power() -> None:
    assert power_of_difference(5, sd=0.1, effect=9, margin=1) == 0
    assert power_of_equivalence(5, sd=0.1, margin=1) == 0
    pilot = {"pilot": [9.0, 9.1], "failed": [False, False]}
    assert power_from_pilot("supported", Rule("higher", 1), 5, **pilot) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("test", "effect"), [("difference", 1.1), ("difference", -0.9), ("equivalence", 0.1)])
@pytest.mark.parametrize("family_size", [1, 6])
def test_seeds_needed_is_the_first_number_with_the_power(test: Test, effect: float, family_size: int) -> None:
    about = {"sd": 1.0, "effect": effect, "margin": 0.5, "family_size": family_size}
    num = seeds_needed(test, **about)  # type: ignore[arg-type]
    assert num is not None
    chance = power_of_equivalence if test == "equivalence" else power_of_difference
    assert chance(num - 1, **about) < 0.8 <= chance(num, **about)  # type: ignore[arg-type]


def test_seeds_needed_knows_its_limits() -> None:
    assert seeds_needed("difference", sd=0.0, effect=1, margin=0.5) == 6
    assert seeds_needed("difference", sd=1, effect=0.4, margin=0.5) is None
    assert seeds_needed("equivalence", sd=1, effect=0.5, margin=0.5) is None
    with pytest.raises(ValueError, match="power"):
        seeds_needed("difference", sd=1, effect=1, margin=1, power=0.3)


@pytest.mark.parametrize(("effect", "margin"), [(1.0, 0.5), (0.9, 0.0), (-1.2, 0.4)])
def test_power_of_a_size_is_how_often_an_interval_lies_beyond_the_margin(effect: float, margin: float) -> None:
    draws = np.random.default_rng(0).normal(effect, 0.6, size=(20_000, 8))
    low, high = scipy_stats.ttest_1samp(draws, 0, axis=1).confidence_interval(0.95)
    beyond = low >= margin if effect > 0 else high <= -margin
    found = power_of_difference(8, sd=0.6, effect=effect, margin=margin)
    assert 0.3 < found < 0.99
    assert found == pytest.approx(beyond.mean(), abs=0.012)


def test_power_from_a_normal_pilot_is_the_computed_one() -> None:
    pilot = np.random.default_rng(0).normal(size=5000)
    found = power_from_pilot(
        "supported", Rule("higher", 0.5), 10, pilot=pilot.tolist(), failed=[False] * 5000, effect=1.0, family_size=3
    )
    expected = power_of_difference(10, sd=float(pilot.std()), effect=1.0, margin=0.5, family_size=3)
    assert found == pytest.approx(expected, abs=0.03)


def test_pilot_sd_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(scale=2, size=(1000, 6))
    assert np.mean([pilot_sd(row) >= 2 for row in draws.tolist()]) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_levels_of_the_looks_sum_to_alpha(rho: float) -> None:
    looks = plan_looks([6, 10, 15, 30], rho=rho)
    assert sum(look.alpha for look in looks) == pytest.approx(0.05)
    assert looks[0].alpha == pytest.approx(0.05 * 0.2**rho)
    assert [look.last for look in looks] == [False, False, False, True]


@pytest.mark.parametrize(("looks", "rho"), [([], 1), ([5, 10], 1), ([6, 6], 1), ([10, 8], 1), ([6, 10], 0)])
def test_looks_that_cannot_be_are_refused(looks: list[int], rho: float) -> None:
    with pytest.raises(ValueError, match=r"look|rho"):
        plan_looks(looks, rho=rho)


def verdict(outcome: str) -> Verdict:
    return Verdict(outcome, "", None, 6)  # type: ignore[arg-type]


def test_a_study_stops_when_all_is_decided_or_at_the_last_look() -> None:
    first, last = plan_looks([6, 10])
    half = {"a": verdict("supported"), "b": verdict("inconclusive")}
    assert not should_stop(first, half)
    assert should_stop(last, half)
    assert should_stop(first, {"a": verdict("negligible"), "b": verdict("invalid")})
    # all its runs were there, so what has no value will have none
    assert should_stop(first, {"a": verdict("supported"), "b": verdict("untested")})
    assert not should_stop(first, {"a": verdict("inconclusive"), "b": verdict("untested")})


def test_the_first_decision_stands() -> None:
    earlier = {"a": verdict("supported"), "b": verdict("inconclusive")}
    now = {"a": verdict("inconclusive"), "b": verdict("negligible"), "c": verdict("untested")}
    assert {name: v.outcome for name, v in settle(earlier, now).items()} == {
        "a": "supported",
        "b": "negligible",
        "c": "untested",
    }


def test_a_look_is_judged_at_its_own_level() -> None:
    values = Contrast(dict(enumerate([0.02, 0.04, 0.01, 0.05, 0.03, -0.004])))
    look = plan_looks([6, 30])[0]
    assert judge(values, Rule("higher", 0.01)).outcome == "supported, direction only"
    early = judge(values, Rule("higher", 0.01, alpha=look.alpha))
    assert early.outcome == "inconclusive"
    assert early.effect is not None
    assert early.effect.deciding.low == pytest.approx(
        scipy_stats.ttest_1samp(list(values.values.values()), 0).confidence_interval(0.99).low
    )
