"""The claim that nothing is lost: one-sided, held against scipy, enumeration and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.power import power_from_pilot, power_of_non_inferiority, seeds_needed
from bnexp.analysis.rule import Rule, decide, ends_of, ends_of_readings, weigh
from bnexp.analysis.verdicts import Comparison, judge, judge_family
from bnexp.analysis.worlds import SAME_ARMS, World, outcome_rates

NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
NOT_LOWER, SAME = Rule("not lower", 0.01), Rule("same", 0.01)
SD = World().sd
NUM_STUDIES = 2_000
# the lower end of a 95 % interval errs in 2.5 %
BOUND = scipy_stats.binom.ppf(0.99, NUM_STUDIES, 0.025) / NUM_STUDIES
# four failures of the control, and two pairs below −margin: t is sure (p = 0.02), and the signs are not (4 of 64)
LOPSIDED = [0.8, 0.801, 0.799, 0.802, -0.015, -0.013]


def contrast(mean: float, spread: float = 1.0) -> Contrast:
    return Contrast(dict(enumerate((mean + spread * NOISE).tolist())))


@pytest.mark.parametrize(
    ("mean", "spread", "outcome"),
    [
        (0.03, 1.0, "supported"),  # a gain is no loss
        (0.0, 1.0, "supported"),
        (0.008, 2.0, "supported"),  # how much higher is open, and not asked
        (-0.009, 0.1, "supported"),  # surely below 0, surely by less than the margin
        (-0.009, 1.0, "inconclusive"),
        (0.0, 5.0, "inconclusive"),
        (-0.03, 9.0, "inconclusive"),
        (-0.012, 1.0, "inconclusive"),  # surely below 0, and whether by as much as the margin is open
        (-0.0105, 0.1, "contradicted"),
        (-0.03, 1.0, "contradicted"),
    ],
)
def test_outcome(mean: float, spread: float, outcome: str) -> None:
    verdict = judge(contrast(mean, spread), NOT_LOWER)
    assert verdict.outcome == outcome
    assert verdict.effect is not None
    assert (verdict.effect.deciding.low > -0.01) == (outcome == "supported")
    assert (verdict.effect.deciding.high <= -0.01) == (outcome == "contradicted")
    values = mean + spread * NOISE
    greater = scipy_stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
    assert verdict.effect.p_equivalence == pytest.approx(min(1.0, 2 * greater))


def test_a_two_sided_claim_is_harder() -> None:
    assert judge(contrast(0.008, 2.0), SAME).outcome == "inconclusive"
    assert judge(contrast(0.03), SAME).outcome == "contradicted"


def test_failed_runs_bring_the_exact_test_in() -> None:
    values = dict(enumerate(LOPSIDED))
    by_t = judge(Contrast(values), NOT_LOWER)
    assert (by_t.outcome, by_t.reason) == ("supported", "all of the interval lies above the loss that would matter")
    verdict = judge(Contrast(values, failed=frozenset(range(4))), NOT_LOWER)
    assert verdict.outcome == "inconclusive"
    assert verdict.reason == "the interval would decide, but the exact sign-flip test, which must agree here, does not"
    assert verdict.effect is not None
    assert verdict.effect.p_equivalence == pytest.approx(2 * 4 / 64)


def test_a_verdict_has_to_hold_under_every_bound() -> None:
    high, low, worse = (dict(enumerate((mean + NOISE).tolist())) for mean in (0.0, -0.009, -0.03))
    assert judge(Contrast(high, bounds=(high,)), NOT_LOWER).outcome == "supported"
    bounded = judge(Contrast(high, bounds=(low,)), NOT_LOWER)
    assert bounded.outcome == "inconclusive"
    assert bounded.effect is not None
    interval = scipy_stats.ttest_1samp(list(low.values()), 0).confidence_interval(0.95)
    assert bounded.effect.deciding.low == pytest.approx(interval.low)
    assert judge(Contrast(worse, bounds=(worse,)), NOT_LOWER).outcome == "contradicted"
    assert judge(Contrast(worse, bounds=(low,)), NOT_LOWER).outcome == "inconclusive"
    rows = np.array([[list(values.values()) for values in (high, low)]])
    evidence = weigh(ends_of_readings(rows[:, 0], rows, failed=False), NOT_LOWER)
    expected = scipy_stats.ttest_1samp(rows[0, 1], -0.01, alternative="greater").pvalue
    assert evidence.equivalence[0] == pytest.approx(2 * expected)


def test_its_p_is_corrected_among_the_equivalences() -> None:
    members = {"a": (contrast(0.0, 1.5), NOT_LOWER), "b": (contrast(0.002), SAME), "c": (contrast(0.03), NOT_LOWER)}
    family = judge_family({name: Comparison(*member) for name, member in members.items()})
    one = {name: np.array(list(case.values.values())) for name, (case, _) in members.items()}
    greater = {name: scipy_stats.ttest_1samp(one[name], -0.01, alternative="greater").pvalue for name in one}
    less = scipy_stats.ttest_1samp(one["b"], 0.01, alternative="less").pvalue
    raw = [2 * p for p in (greater["a"], max(greater["b"], less), greater["c"])]
    found = [verdict.effect.p_equivalence for verdict in family.values() if verdict.effect]
    assert found == pytest.approx(multipletests(raw, method="holm")[1])
    # p is 0.03 or so: enough alone, not enough for one of two
    close = contrast(0.0, 1.85)
    assert judge(close, NOT_LOWER).outcome == "supported"
    pair = judge_family({"a": Comparison(close, NOT_LOWER), "b": Comparison(contrast(0.0, 9.0), SAME)})
    assert pair["a"].outcome == "inconclusive"
    assert "correction for the number of comparisons" in pair["a"].reason


@pytest.mark.parametrize(("num", "effect"), [(6, 0.0), (10, 0.2), (30, -0.1)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_is_that_of_the_one_sided_t_test(num: int, effect: float, alpha: float) -> None:
    expected = TTestPower().power((0.6 + effect) / 1.5, num, alpha, alternative="larger")
    found = power_of_non_inferiority(num, sd=1.5, margin=0.6, effect=effect, alpha=alpha)
    assert found == pytest.approx(expected, abs=1e-3)
    assert power_of_non_inferiority(5, sd=1.5, margin=0.6) == 0


def test_seeds_needed_is_the_first_number_with_the_power() -> None:
    about = {"sd": 1.0, "effect": -0.1, "margin": 0.5, "family_size": 4}
    num = seeds_needed("non-inferiority", **about)  # type: ignore[arg-type]
    assert num is not None
    expected = [TTestPower().power(0.4, pairs, 0.05 / 4, alternative="larger") for pairs in (num - 1, num)]
    assert expected[0] < 0.8 <= expected[1]
    assert seeds_needed("non-inferiority", sd=1, effect=-0.5, margin=0.5) is None
    assert seeds_needed("non-inferiority", sd=0.0, effect=0, margin=0.5) == 6


@pytest.mark.parametrize(("num_pairs", "margin"), [(6, 1.4), (10, 0.95), (30, 0.52)])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_true_zeros_are_supported_as_often_as_promised(shape: str, num_pairs: int, margin: float) -> None:
    margin *= SD
    promised = power_of_non_inferiority(num_pairs, sd=SD, margin=margin, alpha=0.025)
    found = outcome_rates(
        World(shape),  # type: ignore[arg-type]
        num_pairs=num_pairs, margin=margin, direction="not lower", num_studies=NUM_STUDIES,
    )  # fmt: skip
    assert 0.7 < promised < 0.9
    assert found["supported"] == pytest.approx(promised, abs=0.05)
    assert found["negligible"] == 0


@pytest.mark.parametrize("num_pairs", [6, 10, 30])
def test_true_zeros_among_failures_are_supported_as_a_pilot_promised(num_pairs: int) -> None:
    world, margin = World(treatment_fails=0.02, control_fails=0.02), 2 * SD
    pilot, failed = (part[:, 0] for part in world.draw(np.random.default_rng(1), 20_000, 1))
    rule = Rule("not lower", margin)
    promised = power_from_pilot("supported", rule, num_pairs, pilot=pilot, failed=failed, effect=0.0)
    found = outcome_rates(world, num_pairs=num_pairs, margin=margin, direction="not lower", num_studies=NUM_STUDIES)
    assert 0.1 < promised < 0.99
    assert found["supported"] == pytest.approx(promised, abs=0.05)


@pytest.mark.parametrize("margin", [0.5, 3.0])
@pytest.mark.parametrize("num_pairs", [6, 10, 30])
@pytest.mark.parametrize("name", SAME_ARMS)
def test_a_loss_of_the_margin_is_hardly_ever_called_none(name: str, num_pairs: int, margin: float) -> None:
    margin *= SD
    rates = outcome_rates(
        losing(name, margin), num_pairs=num_pairs, margin=margin, direction="not lower", num_studies=NUM_STUDIES
    )
    assert rates["supported"] <= BOUND


def test_t_alone_would_err_too_often_where_runs_fail() -> None:
    # the reason why the exact test has to agree here too, and proof that these simulations can see an excess
    differences, failed = losing("45 % fail", SD).draw(np.random.default_rng(0), 50_000, 10)
    assert differences.mean() == pytest.approx(-SD, abs=0.005)
    by_t = scipy_stats.ttest_1samp(differences, -SD, axis=1, alternative="greater").pvalue
    assert (by_t <= 0.025).mean() > scipy_stats.binom.ppf(0.99, 50_000, 0.025) / 50_000
    rule = Rule("not lower", SD)
    ends = ends_of(differences[:5_000], failed=failed[:5_000].any(axis=1))
    evidence = weigh(ends, rule, only_below=0.05)
    assert (decide(evidence, rule, num_pairs=10) == "supported").mean() < 0.025


def losing(name: str, margin: float) -> World:
    """This world of equal arms, its treatment made worse, so that the true mean is −margin."""
    same = SAME_ARMS[name]
    healthy = 1 - same.treatment_fails
    return World(same.shape, -margin / healthy, same.treatment_fails, same.control_fails)
