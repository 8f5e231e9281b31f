"""How often the rule errs and finds at rates that nobody chose, in 2,000 simulated studies a cell.

With a choice: test_choice.py, and results/reference/verdict-error-rates.

An error rate of at most 5 % shows up as at most 6.2 % in 2,000 simulations, 99 times of 100: the binomial bound below.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.power import power_from_pilot, power_of_difference, power_of_equivalence
from bnexp.analysis.rule import Decision, Rule, decide, ends_of, weigh
from bnexp.analysis.sequential import plan_looks
from bnexp.analysis.significance import holm, t_p
from bnexp.analysis.worlds import SAME_ARMS, World, outcome_rates

NUM_STUDIES = 2_000
BOUND = scipy_stats.binom.ppf(0.99, NUM_STUDIES, 0.05) / NUM_STUDIES
SD = World().sd
ONE_SIDED = 0.025  # a 95 % interval has to lie inside the margin: that is 2.5 % on each side
DIFFERENT: tuple[Decision, ...] = (
    "supported",
    "supported, direction only",
    "contradicted",
    "contradicted, direction only",
)


@pytest.mark.parametrize("num_pairs", [6, 10, 30])
@pytest.mark.parametrize("world", SAME_ARMS)
def test_the_same_arm_twice_is_hardly_ever_called_different(world: str, num_pairs: int) -> None:
    # a small margin is the worst case: a large one forgives what the interval got wrong
    rates = outcome_rates(SAME_ARMS[world], num_pairs=num_pairs, margin=SD / 100, num_studies=NUM_STUDIES)
    assert sum(rates[outcome] for outcome in DIFFERENT) <= BOUND
    assert sum(rates.values()) == pytest.approx(1)
    assert set(rates) == set(get_args(Decision))


def test_t_alone_would_err_too_often_where_runs_fail() -> None:
    # the reason why the exact test has to agree there, and proof that these simulations can see an excess
    world = SAME_ARMS["45 % fail"]
    differences, _ = world.draw(np.random.default_rng(0), 50_000, 10)
    least = scipy_stats.binom.ppf(0.99, 50_000, 0.05) / 50_000
    assert (t_p(differences) <= 0.05).mean() > least


@pytest.mark.parametrize(("num_pairs", "margin"), [(6, 1.45), (10, 1.0), (30, 0.53)])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_planted_effects_are_found_as_often_as_promised(shape: str, num_pairs: int, margin: float) -> None:
    margin *= SD
    world = World(shape, effect=2 * margin)  # type: ignore[arg-type]
    promised = power_of_difference(num_pairs, sd=SD, effect=2 * margin, margin=margin)
    found = outcome_rates(world, num_pairs=num_pairs, margin=margin, num_studies=NUM_STUDIES)
    assert 0.7 < promised < 0.9
    assert found["supported"] == pytest.approx(promised, abs=0.05)
    assert found["contradicted"] + found["contradicted, direction only"] < 0.01
    # the direction is shown as often as the textbook's t test of twice that effect
    direction = power_of_difference(num_pairs, sd=SD, effect=2 * margin, margin=0.0)
    assert found["supported"] + found["supported, direction only"] == pytest.approx(direction, abs=0.05)


@pytest.mark.parametrize(("num_pairs", "margin"), [(6, 1.7), (10, 1.2), (30, 0.63)])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_true_zeros_are_called_negligible_as_often_as_promised(shape: str, num_pairs: int, margin: float) -> None:
    margin *= SD
    promised = power_of_equivalence(num_pairs, sd=SD, margin=margin, alpha=ONE_SIDED)
    found = outcome_rates(World(shape), num_pairs=num_pairs, margin=margin, num_studies=NUM_STUDIES)  # type: ignore[arg-type]
    assert 0.7 < promised < 0.9
    assert found["negligible"] == pytest.approx(promised, abs=0.05)


@pytest.mark.parametrize(
    ("num_pairs", "treatment_fails", "control_fails"), [(6, 0.01, 0.9), (10, 0.05, 0.6), (30, 0.1, 0.4)]
)
def test_fewer_failures_are_found_as_often_as_a_pilot_promised(
    num_pairs: int, treatment_fails: float, control_fails: float
) -> None:
    world = World(treatment_fails=treatment_fails, control_fails=control_fails)
    margin = 0.8 * (control_fails - treatment_fails) / 2  # a failure costs 0.8
    pilot, failed = (part[:, 0] for part in world.draw(np.random.default_rng(1), 20_000, 1))
    num = 4_000 if num_pairs < 30 else 800  # many sign flips of thirty pairs take their time
    promised = power_from_pilot(
        "supported", Rule("higher", margin), num_pairs, pilot=pilot, failed=failed, num_simulations=num
    )
    found = outcome_rates(world, num_pairs=num_pairs, margin=margin, num_studies=num)
    assert 0.2 < promised < 0.95
    assert found["supported"] == pytest.approx(promised, abs=0.05)


@pytest.mark.parametrize("num_pairs", [6, 10, 30])
def test_effects_and_zeros_among_failures_end_as_a_pilot_promised(num_pairs: int) -> None:
    failing = World(treatment_fails=0.02, control_fails=0.02)
    pilot, failed = (part[:, 0] for part in failing.draw(np.random.default_rng(1), 20_000, 1))
    margin = 2 * SD
    for decision, effect in (("supported", 2 * margin), ("negligible", 0.0)):
        promised = power_from_pilot(
            decision,  # type: ignore[arg-type]
            Rule("higher", margin),
            num_pairs,
            pilot=pilot,
            failed=failed,
            effect=effect,
        )
        planted = World(treatment_fails=0.02, control_fails=0.02, effect=effect / (1 - 0.02))
        found = outcome_rates(planted, num_pairs=num_pairs, margin=margin, num_studies=NUM_STUDIES)
        assert 0.1 < promised < 0.95
        assert found[decision] == pytest.approx(promised, abs=0.05)  # type: ignore[index]


@pytest.mark.parametrize("num_pairs", [6, 10, 30])
def test_an_effect_of_the_margin_is_hardly_ever_called_negligible(num_pairs: int) -> None:
    margin = 1.4 * SD
    rates = outcome_rates(World(effect=margin), num_pairs=num_pairs, margin=margin, num_studies=NUM_STUDIES)
    assert rates["negligible"] <= BOUND


@pytest.mark.parametrize("corrected", [True, False])
def test_a_family_errs_no_more_often_than_one_comparison(corrected: bool) -> None:
    # four arms against one control, all the same: dependent comparisons, as a study has them
    rng = np.random.default_rng(0)
    control, arms = rng.standard_normal((NUM_STUDIES, 10)), rng.standard_normal((4, NUM_STUDIES, 10))
    rule, healthy = Rule("higher", 0.01), np.zeros(NUM_STUDIES, dtype=bool)
    evidence = [weigh(ends_of(arm - control, failed=healthy), rule) for arm in arms]
    p_values = np.stack([part.direction for part in evidence])
    if corrected:
        p_values = np.array([holm(column) for column in p_values.T.tolist()]).T
    any_error = np.zeros(NUM_STUDIES, dtype=bool)
    for part, p in zip(evidence, p_values, strict=True):
        outcomes = decide(replace(part, direction=p, size=np.ones_like(p)), rule, num_pairs=10)
        any_error |= np.isin(outcomes, DIFFERENT)
    assert (any_error.mean() <= BOUND) == corrected


@pytest.mark.parametrize("spending", [True, False])
@pytest.mark.parametrize("world", ["normal", "20 % fail"])
def test_looking_again_and_again_errs_no_more_often_than_once(world: str, spending: bool) -> None:
    differences, failed = SAME_ARMS[world].draw(np.random.default_rng(0), NUM_STUDIES, 20)
    ever = np.zeros(NUM_STUDIES, dtype=bool)
    for look in plan_looks([6, 8, 10, 12, 16, 20]):
        alpha = look.alpha if spending else 0.05
        part = differences[:, : look.num_pairs]
        rule = Rule("higher", 1e-4, alpha=alpha)
        ends = ends_of(part, failed=failed[:, : look.num_pairs].any(axis=1))
        evidence = weigh(ends, rule, only_below=alpha)
        outcomes = decide(evidence, rule, num_pairs=look.num_pairs)
        ever |= np.isin(outcomes, DIFFERENT)
    if spending:
        assert ever.mean() <= BOUND
    elif world == "normal":
        assert ever.mean() > 0.08  # what peeking costs, and proof that the simulation can see it
