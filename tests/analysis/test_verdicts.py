"""Every outcome of the rule, on numbers whose verdict is known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.contrasts import Arm, Contrast, epochs_ratio, paired
from bnexp.analysis.rule import Rule, coarse, decide, ends_of, ends_of_readings, weigh
from bnexp.analysis.verdicts import OUTCOMES, Comparison, Verdict, judge, judge_family

SEEDS = range(8)
NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
HIGHER = Rule("higher", 0.01)


def contrast(mean: float, spread: float = 1.0, num: int = 8, **fields: object) -> Contrast:
    noise = NOISE[:num] - NOISE[:num].mean()
    return Contrast(dict(enumerate((mean + spread * noise).tolist())), **fields)  # type: ignore[arg-type]


# half of the 95 % interval of NOISE is 0.0049
@pytest.mark.parametrize(
    ("mean", "spread", "direction", "outcome"),
    [
        (0.03, 1.0, "higher", "supported"),
        (0.03, 1.0, "lower", "contradicted"),
        (0.03, 1.0, "same", "contradicted"),
        (-0.03, 1.0, "higher", "contradicted"),
        (-0.03, 1.0, "lower", "supported"),
        (0.0, 1.0, "higher", "negligible"),
        (0.0, 1.0, "lower", "negligible"),
        (0.0, 1.0, "same", "supported"),
        (0.0, 5.0, "higher", "inconclusive"),
        (0.03, 9.0, "higher", "inconclusive"),
        (0.009, 0.1, "higher", "negligible"),  # surely above 0, surely under the margin
        (0.009, 1.0, "higher", "supported, direction only"),  # surely above 0, and the margin inside the interval
        (0.009, 1.0, "lower", "contradicted, direction only"),
        (0.009, 1.0, "same", "inconclusive"),
        (0.012, 1.0, "higher", "supported, direction only"),  # the mean reaches the margin, the interval does not
        (-0.012, 1.0, "lower", "supported, direction only"),
        (0.012, 1.0, "same", "inconclusive"),
        (0.015, 1.0, "higher", "supported"),
        (0.015, 1.0, "same", "contradicted"),
        (0.01, 0.1, "higher", "supported, direction only"),
    ],
)
def test_outcome(mean: float, spread: float, direction: str, outcome: str) -> None:
    verdict = judge(contrast(mean, spread), Rule(direction, 0.01))  # type: ignore[arg-type]
    assert verdict.outcome == outcome
    assert verdict.reason
    # what has a size is settled, and a direction alone is not
    assert (verdict.needed is None) == (outcome in ("supported", "contradicted", "negligible"))


def test_a_difference_of_exactly_the_margin_reaches_it_however_it_was_rounded() -> None:
    assert 0.03 - 0.02 < 0.01
    values = dict.fromkeys(range(7), 0.03 - 0.02)
    assert judge(Contrast(values), HIGHER).outcome == "supported"
    assert judge(Contrast(values), Rule("lower", 0.01)).outcome == "contradicted"


def test_a_verdict_carries_what_a_reader_needs_to_check_it() -> None:
    scores = {seed: 0.9 + NOISE[seed] for seed in SEEDS}
    control = {seed: 0.87 - NOISE[seed] for seed in SEEDS}
    verdict = judge(paired(Arm("batch", scores), Arm("none", control)), HIGHER)
    effect = verdict.effect
    assert effect is not None
    differences = [scores[seed] - control[seed] for seed in SEEDS]
    test = scipy_stats.ttest_rel(list(scores.values()), list(control.values()))
    interval = test.confidence_interval(0.95)
    for estimate in (effect.deciding, effect.plain):
        found = (estimate.mean, estimate.low, estimate.high, estimate.num)
        assert found == pytest.approx((np.mean(differences), interval.low, interval.high, 8))
    assert effect.level == pytest.approx(0.95)
    greater = [scipy_stats.ttest_1samp(differences, least, alternative="greater").pvalue for least in (0.01, -0.01)]
    less = scipy_stats.ttest_1samp(differences, 0.01, alternative="less").pvalue
    assert (effect.p, effect.p_direction, effect.p_size) == pytest.approx((test.pvalue, test.pvalue, 2 * greater[0]))
    assert effect.p_equivalence == pytest.approx(min(1.0, 2 * max(greater[1], less)))
    assert effect.sd == pytest.approx(np.std(differences, ddof=1))
    assert (effect.healthy, effect.guarded, effect.same_verdict) == (None, False, None)
    assert effect.failures is not None
    assert effect.failures.p == 1.0
    assert verdict.num_pairs == 8
    assert effect.gain < 1  # these arms move against each other: pairing costs, and the number says so


def test_how_often_the_one_beats_the_other_counts_a_tie_as_half() -> None:
    verdict = judge(Contrast(dict(enumerate([0.1, 0.2, 0.0, -0.1, 0.3, 0.0, 0.4, -0.2]))), HIGHER)
    assert verdict.effect is not None
    assert verdict.effect.above == pytest.approx((4 + 2 / 2) / 8)


def test_missing_runs_are_untested_and_give_no_number() -> None:
    arms = (
        Arm("batch", dict.fromkeys(SEEDS, 0.9)),
        Arm("none", {0: 0.5, 1: math.nan, **dict.fromkeys(range(2, 7), 0.5)}),
    )
    verdict = judge(paired(*arms, seeds=SEEDS), HIGHER)
    assert (verdict.outcome, verdict.effect, verdict.needed) == ("untested", None, None)
    assert verdict.incomplete == ("seed 7: no none", "seed 1: no value of none")
    assert verdict.reason == "runs are missing"
    assert judge(Contrast({}), HIGHER).outcome == "untested"


def test_a_value_that_is_not_defined_is_untested_and_no_missing_run() -> None:
    scores = dict.fromkeys(SEEDS, 0.5)
    verdict = judge(paired(Arm("batch", scores), Arm("none", scores | {3: math.nan}), seeds=SEEDS), HIGHER)
    assert (verdict.outcome, verdict.effect) == ("untested", None)
    assert (verdict.reason, verdict.incomplete) == (
        "the runs are there, but the measure has no value for some of them", ("seed 3: no value of none",),
    )  # fmt: skip


def test_a_failed_gate_is_invalid_with_its_reason_and_no_number() -> None:
    verdict = judge(contrast(0.03), HIGHER, gate="the arm without norm had no He init")
    assert (verdict.outcome, verdict.reason) == ("invalid", "the arm without norm had no He init")
    assert verdict.effect is None


def test_arms_of_which_every_run_failed_are_invalid_and_not_negligible() -> None:
    chance = dict.fromkeys(SEEDS, 0.1)
    verdict = judge(paired(Arm("a", chance, frozenset(SEEDS)), Arm("b", chance, frozenset(SEEDS))), HIGHER)
    assert verdict.outcome == "invalid"
    assert judge(paired(Arm("a", chance), Arm("b", chance)), HIGHER).outcome == "negligible"


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("mean", [0.0, 0.9])
@pytest.mark.parametrize("direction", ["higher", "lower", "same", "not lower"])
def test_under_six_pairs_nothing_is_decided(num: int, mean: float, direction: str) -> None:
    verdict = judge(contrast(mean, 1e-6, num=num), Rule(direction, 0.01))  # type: ignore[arg-type]
    assert (verdict.outcome, verdict.reason) == ("inconclusive", "fewer than 6 seeds decide nothing")
    assert verdict.effect is not None
    assert math.isnan(verdict.effect.deciding.low) == (num == 1)
    if num > 1:
        assert verdict.needed is not None
        assert verdict.needed.num_pairs == 6


# failures, and numbers of few sizes: the exact test has to agree


def test_failed_runs_bring_the_exact_test_in() -> None:
    # four failures against none: t is sure (p = 0.025), and the signs are not (6 of 64)
    values = [0.8, 0.801, 0.799, 0.802, 0.001, -0.001]
    arms = [dict(enumerate(0.9 + np.array(part))) for part in (np.zeros(6), -np.array(values))]
    failing = paired(Arm("batch", arms[0]), Arm("none", arms[1], frozenset(range(4))))
    verdict = judge(failing, HIGHER)
    effect = verdict.effect
    assert effect is not None
    assert effect.deciding.low > 0
    assert (verdict.outcome, effect.guarded) == ("inconclusive", True)
    assert verdict.reason == "the interval would decide, but the exact sign-flip test, which must agree here, does not"
    assert effect.p == effect.p_direction == pytest.approx(6 / 64)
    assert effect.healthy is not None
    healthy = scipy_stats.ttest_1samp(values[4:], 0).confidence_interval(0.95)
    assert (effect.healthy.low, effect.healthy.high, effect.healthy.num) == pytest.approx((*healthy, 2))
    # the same numbers of runs that did not fail: two of six are small, which a t test has no trouble with
    assert judge(Contrast(failing.values), HIGHER).outcome == "supported"


def test_all_control_runs_failing_is_support() -> None:
    failing = paired(
        Arm("batch", {seed: 0.9 + NOISE[seed] for seed in range(6)}),
        Arm("none", dict.fromkeys(range(6), 0.1), frozenset(range(6))),
    )
    verdict = judge(failing, HIGHER)
    assert verdict.outcome == "supported"
    assert verdict.effect is not None
    assert (verdict.effect.healthy, verdict.effect.p_size) == (None, pytest.approx(2 / 64))


def test_few_distinct_sizes_bring_the_exact_test_in() -> None:
    rows = np.array([[1, 1, 1, 1, 0, 0], [1, -1, 2, 3, 4, 5], [0.1 + 0.2, 0.3, -0.3, 0.5, 0.5, 0.7]])
    assert coarse(rows).tolist() == [True, False, True]
    verdict = judge(Contrast(dict(enumerate([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]))), Rule("higher", 0.5))
    assert verdict.effect is not None
    assert scipy_stats.ttest_1samp(rows[0], 0).pvalue < 0.05
    assert verdict.effect.p == pytest.approx(2 * 4 / 64)  # those in which the four keep their signs, and the zeros any
    assert verdict.outcome == "inconclusive"


def test_six_equal_zeros_are_no_surer_than_six_signs_can_be() -> None:
    zeros = Contrast(dict.fromkeys(range(6), 0.0))
    verdict = judge(zeros, HIGHER)
    assert verdict.effect is not None
    assert (verdict.outcome, verdict.effect.p_equivalence) == ("negligible", pytest.approx(2 / 64))
    family = judge_family({str(k): Comparison(zeros, HIGHER) for k in range(2)})
    assert {member.outcome for member in family.values()} == {"inconclusive"}
    assert {"correction for the number of comparisons" in member.reason for member in family.values()} == {True}


def test_whether_the_exact_test_is_asked_never_depends_on_signs() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-4, 5, size=(200, 8)).astype(float)
    assert 0 < coarse(rows).mean() < 1
    flipped = rows * rng.choice([-1, 1], size=rows.shape)
    assert (coarse(rows) == coarse(flipped)).all()


# several readings of the same runs


def test_readings_that_differ_in_sign_show_no_difference() -> None:
    rows = np.array([[sign * (0.03 + NOISE) for sign in (1.0, 1.1, -1.2)]])
    assert (scipy_stats.ttest_1samp(rows[0], 0, axis=1).pvalue < 0.001).all()
    mixed = weigh(ends_of_readings(rows[:, 0], rows, failed=False), HIGHER)
    assert (mixed.direction[0], mixed.size[0], mixed.mean[0]) == (1.0, 1.0, pytest.approx(0.03))
    agreeing = weigh(ends_of_readings(rows[:, 0], rows[:, :2], failed=False), HIGHER)
    assert agreeing.direction[0] == pytest.approx(scipy_stats.ttest_1samp(rows[0], 0, axis=1).pvalue[:2].max())


def test_the_interval_spans_those_of_all_readings() -> None:
    numbers, more = contrast(0.02), contrast(0.035, 2.0)
    each = [scipy_stats.ttest_1samp(list(one.values.values()), 0).confidence_interval(0.95) for one in (numbers, more)]
    verdict = judge(Contrast(numbers.values, bounds=(more.values,)), HIGHER)
    assert verdict.effect is not None
    found = verdict.effect.deciding
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, each[0].low, each[1].high))
    assert verdict.outcome == "supported"


def test_censored_verdicts_have_to_hold_under_every_bound() -> None:
    rule = Rule("lower", math.log(1.25))
    quick = {seed: 5 + NOISE[seed % 8] for seed in range(10)}
    control = {seed: 20 + 100 * NOISE[seed % 8] for seed in range(10)}
    assert judge(epochs_ratio(Arm("batch", quick), Arm("none", control), budget=30), rule).outcome == "supported"
    # control runs that never arrive can only make the treatment look faster
    never = epochs_ratio(Arm("batch", quick), Arm("none", {**control, 3: math.inf, 4: math.inf}), budget=30)
    assert judge(never, rule).outcome == "supported"
    # treatment runs that never arrive leave the mean ratio open, however quick the others are
    stuck = epochs_ratio(Arm("batch", {**quick, 3: math.inf, 4: math.inf}), Arm("none", control), budget=30)
    at_budget = judge(Contrast(stuck.values, failed=stuck.failed), rule)
    assert (at_budget.outcome, judge(stuck, rule).outcome) == ("supported", "inconclusive")


# refusals


@pytest.mark.parametrize(
    ("margin", "alpha", "direction"), [(0, 0.05, "same"), (math.nan, 0.05, "same"), (1, 0.5, "same"), (1, 0.05, "up")]
)
def test_a_rule_that_cannot_judge_is_refused(margin: float, alpha: float, direction: str) -> None:
    with pytest.raises(ValueError, match=r"margin|alpha|direction"):
        Rule(direction, margin, alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["higher", "same", "not lower"])
def test_simulations_and_verdicts_are_judged_by_the_same_lines(direction: str) -> None:
    rule = Rule(direction, 0.01)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    rows = rng.normal(0.01, 0.015, size=(60, 8))
    failed = rng.random((60, 8)) < 0.05
    rows[failed] += 0.8
    many = decide(weigh(ends_of(rows, failed=failed.any(axis=1)), rule, only_below=0.05), rule, num_pairs=8)
    one_by_one = [
        judge(Contrast(dict(enumerate(row)), failed=frozenset(np.flatnonzero(flags).tolist())), rule).outcome
        for row, flags in zip(rows.tolist(), failed, strict=True)
    ]
    assert many.tolist() == one_by_one
    assert len(set(one_by_one)) >= 2


def test_outcomes_are_named_as_the_audit_has_them() -> None:
    assert OUTCOMES == (
        "supported", "supported, direction only", "contradicted", "contradicted, direction only", "negligible",
        "inconclusive", "untested", "invalid",
    )  # fmt: skip
    assert Verdict("untested", "", None, 0).incomplete == ()
