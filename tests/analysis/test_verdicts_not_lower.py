"""The claim that nothing is lost: one-sided, held against scipy, enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.power import power_from_pilot, power_of_non_inferiority, seeds_needed
from bnexp.analysis.rule import Rule, decide, weakest, weigh
from bnexp.analysis.significance import (
    equivalence_p,
    non_inferiority_p,
    sign_flip_equivalence_p,
    sign_flip_non_inferiority_p,
)
from bnexp.analysis.stats import mean_interval
from bnexp.analysis.verdicts import Comparison, judge, judge_family
from bnexp.analysis.worlds import SAME_ARMS, World, outcome_rates

NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
NOT_LOWER, SAME = Rule("not lower", 0.01), Rule("same", 0.01)
SD = World().sd
NUM_STUDIES = 2_000
BOUND = scipy_stats.binom.ppf(0.99, NUM_STUDIES, 0.05) / NUM_STUDIES
# four failures of the control, and two pairs below −margin: t is sure (p = 0.01), and the signs are not (4 of 64)
LOPSIDED = [0.8, 0.801, 0.799, 0.802, -0.015, -0.013]


def contrast(mean: float, spread: float = 1.0) -> Contrast:
    return Contrast(dict(enumerate((mean + spread * NOISE).tolist())))


@pytest.mark.parametrize("margin", [0.001, 0.012, 0.05])
def test_non_inferiority_p_is_that_of_scipy_by_row(margin: float) -> None:
    rows = np.stack([NOISE, NOISE - 0.02, NOISE + 0.02])
    expected = scipy_stats.ttest_1samp(rows, -margin, axis=1, alternative="greater").pvalue
    assert non_inferiority_p(rows, margin) == pytest.approx(expected)
    assert equivalence_p(rows, margin)[2] > non_inferiority_p(rows, margin)[2]


def test_non_inferiority_p_and_the_lower_end_of_the_90_percent_interval_say_the_same() -> None:
    rng = np.random.default_rng(0)
    agreed = set()
    for _ in range(200):
        values = rng.normal(0.3, 1, size=9)
        above = mean_interval(values.tolist(), confidence=0.9).low > -0.4
        assert (non_inferiority_p(values[None], 0.4)[0] <= 0.05) == above
        agreed.add(above)
    assert agreed == {True, False}


def test_sign_flip_non_inferiority_enumerates_one_side() -> None:
    values, margin = NOISE[:6] + 0.01, 0.005
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    expected = (signs @ (margin + values) >= (margin + values).sum() - 1e-12).mean()
    assert sign_flip_non_inferiority_p(values, margin) == pytest.approx(expected)
    assert expected < 0.05 < sign_flip_equivalence_p(values, margin)
    assert sign_flip_non_inferiority_p(LOPSIDED, 0.01) == pytest.approx(4 / 64)


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
        (-0.01, 0.1, "contradicted"),
        (-0.03, 1.0, "contradicted"),
    ],
)
def test_outcome(mean: float, spread: float, outcome: str) -> None:
    verdict = judge(contrast(mean, spread), NOT_LOWER)
    assert verdict.outcome == outcome
    assert verdict.effect is not None
    assert (verdict.effect.equivalence.low > -0.01) == (outcome == "supported")


def test_a_two_sided_claim_is_harder() -> None:
    assert judge(contrast(0.008, 2.0), SAME).outcome == "inconclusive"
    assert judge(contrast(0.03), SAME).outcome == "contradicted"


def test_failed_runs_bring_the_exact_test_in() -> None:
    values = dict(enumerate(LOPSIDED))
    by_t = judge(Contrast(values), NOT_LOWER)
    assert (by_t.outcome, by_t.reason) == (
        "supported", "the one-sided test rules out a mean that is lower by the margin or more"
    )  # fmt: skip
    verdict = judge(Contrast(values, failed=frozenset(range(4))), NOT_LOWER)
    assert verdict.outcome == "inconclusive"
    assert verdict.reason == f"{by_t.reason}, but the exact sign-flip test, which must agree here, does not"
    assert verdict.effect is not None
    assert verdict.effect.p_equivalence_holm == pytest.approx(4 / 64)


def test_a_censored_verdict_has_to_hold_under_every_bound() -> None:
    high, low, worse = (dict(enumerate((mean + NOISE).tolist())) for mean in (0.0, -0.009, -0.03))
    assert judge(Contrast(high, bounds=(high,)), NOT_LOWER).outcome == "supported"
    bounded = judge(Contrast(high, bounds=(low,)), NOT_LOWER)
    assert bounded.outcome == "inconclusive"
    assert "under every bound" in bounded.reason
    assert judge(Contrast(worse, bounds=(worse,)), NOT_LOWER).outcome == "contradicted"
    assert judge(Contrast(worse, bounds=(low,)), NOT_LOWER).outcome == "inconclusive"
    readings = [
        weigh(np.array([list(values.values())]), NOT_LOWER, failed=np.array([False])) for values in (high, low, worse)
    ]
    assert weakest(readings[:2]).equivalence[0] == readings[1].equivalence[0] > readings[0].equivalence[0]
    assert weakest(readings[1:]).mean[0] == pytest.approx(-0.009)


def test_its_p_is_corrected_among_the_equivalences() -> None:
    members = {"a": (contrast(0.0, 1.5), NOT_LOWER), "b": (contrast(0.002), SAME), "c": (contrast(0.03), NOT_LOWER)}
    family = judge_family({name: Comparison(*member) for name, member in members.items()})
    one = {name: np.array(list(case.values.values())) for name, (case, _) in members.items()}
    greater = {name: scipy_stats.ttest_1samp(one[name], -0.01, alternative="greater").pvalue for name in one}
    less = scipy_stats.ttest_1samp(one["b"], 0.01, alternative="less").pvalue
    expected = multipletests([greater["a"], max(greater["b"], less), greater["c"]], method="holm")[1]
    found = [verdict.effect.p_equivalence_holm for verdict in family.values() if verdict.effect]
    assert found == pytest.approx(expected)
    # p is 0.03 or so: enough alone, not enough for one of two
    close = contrast(0.0, 2.4)
    assert judge(close, NOT_LOWER).outcome == "supported"
    pair = judge_family({"a": Comparison(close, NOT_LOWER), "b": Comparison(contrast(0.0, 9.0), SAME)})
    assert pair["a"].outcome == "inconclusive"
    assert "correction for the family" in pair["a"].reason


@pytest.mark.parametrize(("mean", "into"), [(0.0, "supported"), (0.012, "supported"), (-0.03, "contradicted")])
def test_inconclusive_says_how_many_seeds_would_decide_it(mean: float, into: str) -> None:
    verdict = judge(contrast(mean, 9.0), NOT_LOWER)
    assert verdict.outcome == "inconclusive"
    assert verdict.needed is not None
    assert verdict.needed.decision == into
    num, sd = verdict.needed.num_pairs, float(np.std(9 * NOISE, ddof=1))
    assert num is not None
    draws = np.random.default_rng(0).normal(mean, sd, size=(4000, num))
    if into == "supported":
        decided = scipy_stats.ttest_1samp(draws, -0.01, axis=1, alternative="greater").pvalue <= 0.05
    else:
        decided = (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue <= 0.05) & (draws.mean(axis=1) <= -0.01)
    assert decided.mean() == pytest.approx(0.8, abs=0.03)


def test_seeds_are_counted_for_the_least_favourable_bound() -> None:
    high, low, worse = (dict(enumerate((mean + 5 * NOISE).tolist())) for mean in (0.005, -0.004, -0.03))
    alone = judge(Contrast(low), NOT_LOWER).needed
    bounded = judge(Contrast(high, bounds=(low,)), NOT_LOWER).needed
    assert alone is not None
    assert bounded == alone
    # both signs are well above −margin: that they differ does not matter here
    assert (bounded.num_pairs or 0) > (judge(Contrast(high, bounds=(high,)), NOT_LOWER).needed or alone).num_pairs
    astride = judge(Contrast(high, bounds=(worse,)), NOT_LOWER).needed
    assert astride is not None
    assert astride.num_pairs is None


def test_seeds_are_counted_at_the_level_that_the_family_leaves() -> None:
    # one of four is an equivalence already: three are left, and the next is tested at alpha / 3
    family = {str(k): Comparison(contrast(0.0, 6.0), NOT_LOWER) for k in range(3)} | {
        "d": Comparison(contrast(0), SAME)
    }
    verdicts = judge_family(family)
    assert [verdict.outcome for verdict in verdicts.values()] == [*["inconclusive"] * 3, "supported"]
    size, needed = 0.01 / float(np.std(6 * NOISE, ddof=1)), verdicts["0"].needed
    assert needed is not None
    num = needed.num_pairs or 0
    chances = [TTestPower().power(size, pairs, 0.05 / 3, alternative="larger") for pairs in (num - 1, num)]
    assert chances[0] < 0.8 <= chances[1]


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


@pytest.mark.parametrize(("num_pairs", "margin"), [(6, 1.1), (10, 0.8), (30, 0.45)])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_true_zeros_are_supported_as_often_as_promised(shape: str, num_pairs: int, margin: float) -> None:
    margin *= SD
    promised = power_of_non_inferiority(num_pairs, sd=SD, margin=margin)
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
    differences, failed = losing("45 % fail", SD).draw(np.random.default_rng(0), 50_000, 6)
    assert differences.mean() == pytest.approx(-SD, abs=0.005)
    assert (non_inferiority_p(differences, SD) <= 0.05).mean() > scipy_stats.binom.ppf(0.99, 50_000, 0.05) / 50_000
    rule = Rule("not lower", SD)
    evidence = weigh(differences[:5_000], rule, failed=failed[:5_000].any(axis=1), only_below=0.05)
    assert (decide(evidence, rule, num_pairs=6) == "supported").mean() < 0.05


def losing(name: str, margin: float) -> World:
    """This world of equal arms, its treatment made worse, so that the true mean is −margin."""
    same = SAME_ARMS[name]
    healthy = 1 - same.treatment_fails
    return World(same.shape, -margin / healthy, same.treatment_fails, same.control_fails)
