"""Every outcome of the rule, on numbers whose verdict is known by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bnexp.analysis.contrasts import Arm, Contrast, epochs_ratio, paired
from bnexp.analysis.rule import Rule, coarse, decide, weakest, weigh
from bnexp.analysis.stats import bootstrap_interval
from bnexp.analysis.verdicts import OUTCOMES, Comparison, Seeds, Verdict, judge, judge_family

SEEDS = range(8)
NOISE = np.array([0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002])  # its mean is 0
HIGHER = Rule("higher", 0.01)


def contrast(mean: float, spread: float = 1.0, num: int = 8, **fields: object) -> Contrast:
    noise = NOISE[:num] - NOISE[:num].mean()
    return Contrast(dict(enumerate((mean + spread * noise).tolist())), **fields)  # type: ignore[arg-type]


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
        (0.009, 1.0, "higher", "inconclusive"),  # surely above 0, and the margin inside the 90 % interval
        (0.01, 0.1, "higher", "supported"),
    ],
)
def test_outcome(mean: float, spread: float, direction: str, outcome: str) -> None:
    verdict = judge(contrast(mean, spread), Rule(direction, 0.01))  # type: ignore[arg-type]
    assert verdict.outcome == outcome
    assert verdict.reason


def test_a_verdict_carries_what_a_reader_needs_to_check_it() -> None:
    scores = {seed: 0.9 + NOISE[seed] for seed in SEEDS}
    control = {seed: 0.87 - NOISE[seed] for seed in SEEDS}
    verdict = judge(paired(Arm("batch", scores), Arm("none", control)), HIGHER)
    effect = verdict.effect
    assert effect is not None
    differences = [scores[seed] - control[seed] for seed in SEEDS]
    test = scipy_stats.ttest_rel(list(scores.values()), list(control.values()))
    for estimate, confidence in ((effect.t, 0.95), (effect.equivalence, 0.9)):
        interval = test.confidence_interval(confidence)
        assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    assert effect.bca == bootstrap_interval(differences, seed=0)
    assert effect.bca != effect.t
    assert (effect.p, effect.p_holm) == pytest.approx((test.pvalue, test.pvalue))
    assert effect.sd == pytest.approx(np.std(differences, ddof=1))
    assert effect.failures is not None
    assert effect.failures.p == 1.0
    assert not effect.guarded
    assert verdict.num_pairs == 8
    assert effect.gain < 1  # these arms move against each other: pairing costs, and the number says so


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
def test_under_six_pairs_nothing_is_decided(num: int, mean: float) -> None:
    verdict = judge(contrast(mean, 1e-6, num=num), HIGHER)
    assert verdict.outcome == "inconclusive"
    if num > 1:
        assert verdict.needed is not None
        assert verdict.needed.num_pairs == 6


@pytest.mark.parametrize(
    ("mean", "direction", "into"),
    [
        (0.03, "higher", "supported"),
        (0.03, "lower", "contradicted"),
        (0.0, "higher", "negligible"),
        (0.0, "same", "supported"),
        (-0.03, "same", "contradicted"),
    ],
)
def test_inconclusive_says_how_many_seeds_would_decide_it(mean: float, direction: str, into: str) -> None:
    rule = Rule(direction, 0.01)  # type: ignore[arg-type]
    verdict = judge(contrast(mean, 8.0), rule)
    assert verdict.outcome == "inconclusive"
    assert verdict.needed is not None
    assert verdict.needed.decision == into
    num, sd = verdict.needed.num_pairs, float(np.std(8 * NOISE, ddof=1))
    assert num is not None
    draws = np.random.default_rng(0).normal(mean, sd, size=(4000, num))
    outcomes = decide(weigh(draws, rule, failed=np.zeros(4000, dtype=bool)), rule, num_pairs=num)
    assert (outcomes == into).mean() == pytest.approx(0.8, abs=0.03)


def test_an_effect_at_the_margin_needs_more_seeds_than_anyone_has() -> None:
    verdict = judge(contrast(0.0099, 5.0), HIGHER)
    assert verdict.needed is not None
    assert verdict.needed.num_pairs is None


def test_no_number_of_seeds_decides_an_equivalence_that_a_bound_takes_beyond_the_margin() -> None:
    # the control reaches to 20, and the treatment to the top at 32 or to anything beyond it
    rule = Rule("higher", math.log10(2))
    for num in (10, 30, 60):
        least, most = (dict.fromkeys(range(num), math.log10(top / 20)) for top in (32, 128))
        assert judge(Contrast(least), rule).outcome == "negligible"
        verdict = judge(Contrast(least, bounds=(most,)), rule)
        assert (verdict.outcome, verdict.needed) == ("inconclusive", Seeds(None, "negligible"))


@pytest.mark.parametrize(("direction", "into"), [("higher", "negligible"), ("same", "supported")])
def test_an_equivalence_counts_seeds_for_the_reading_that_is_farthest_from_zero(direction: str, into: str) -> None:
    rule = Rule(direction, 0.01)  # type: ignore[arg-type]
    near, far = (contrast(mean, 5.0) for mean in (0.001, -0.005))
    verdicts = [judge(Contrast(one.values, bounds=(other.values,)), rule) for one, other in ((near, far), (far, near))]
    assert [verdict.outcome for verdict in verdicts] == ["inconclusive"] * 2
    (needed,) = {verdict.needed for verdict in verdicts}  # that they differ in sign does not matter here
    assert needed is not None
    assert (needed.decision, needed) == (into, judge(far, rule).needed)
    num = needed.num_pairs
    assert num is not None
    draws = np.random.default_rng(0).normal(-0.005, 5 * float(np.std(NOISE, ddof=1)), size=(4000, num))
    sides = [
        scipy_stats.ttest_1samp(draws, side, axis=1, alternative=towards).pvalue <= 0.05
        for side, towards in ((-0.01, "greater"), (0.01, "less"))
    ]
    assert (sides[0] & sides[1]).mean() == pytest.approx(0.8, abs=0.03)


def test_failed_runs_bring_the_exact_test_in() -> None:
    # four failures against none: t is sure (p = 0.025), and the signs are not (6 of 64)
    values = [0.8, 0.801, 0.799, 0.802, 0.001, -0.001]
    arms = [dict(enumerate(0.9 + np.array(part))) for part in (np.zeros(6), -np.array(values))]
    failing = paired(Arm("batch", arms[0]), Arm("none", arms[1], frozenset(range(4))))
    verdict = judge(failing, HIGHER)
    assert verdict.effect is not None
    assert verdict.effect.t.low > 0
    assert (verdict.outcome, verdict.effect.guarded) == ("inconclusive", True)
    assert "sign-flip" in verdict.reason
    assert verdict.effect.p_holm == verdict.effect.p_sign_flip > 0.05
    assert verdict.needed is not None
    num = verdict.needed.num_pairs
    assert num is not None
    draws = np.random.default_rng(0).choice(values, size=(1000, num))
    outcomes = decide(weigh(draws, HIGHER, failed=np.ones(1000, dtype=bool)), HIGHER, num_pairs=num)
    assert (outcomes == "supported").mean() > 0.75
    fewer = decide(weigh(draws[:, :7], HIGHER, failed=np.ones(1000, dtype=bool)), HIGHER, num_pairs=7)
    assert (fewer == "supported").mean() < 0.6


def test_all_control_runs_failing_is_support() -> None:
    failing = paired(
        Arm("batch", {seed: 0.9 + NOISE[seed] for seed in range(6)}),
        Arm("none", dict.fromkeys(range(6), 0.1), frozenset(range(6))),
    )
    assert judge(failing, HIGHER).outcome == "supported"


def test_few_distinct_sizes_bring_the_exact_test_in() -> None:
    rows = np.array([[1, 1, 1, 1, 0, 0], [1, -1, 2, 3, 4, 5], [0.1 + 0.2, 0.3, -0.3, 0.5, 0.5, 0.7]])
    assert coarse(rows).tolist() == [True, False, True]
    verdict = judge(Contrast(dict(enumerate([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]))), Rule("higher", 0.5))
    assert verdict.effect is not None
    assert verdict.effect.p < 0.05
    assert verdict.outcome == "inconclusive"


def test_six_equal_zeros_are_no_surer_than_six_signs_can_be() -> None:
    zeros = Contrast(dict.fromkeys(range(6), 0.0))
    verdict = judge(zeros, HIGHER)
    assert verdict.effect is not None
    assert (verdict.outcome, verdict.effect.p_equivalence_holm) == ("negligible", pytest.approx(1 / 64))
    family = judge_family({str(k): Comparison(zeros, HIGHER) for k in range(4)})
    assert {member.outcome for member in family.values()} == {"inconclusive"}


def test_readings_that_differ_in_sign_show_no_difference() -> None:
    readings = [weigh(sign * (0.03 + NOISE)[None], HIGHER, failed=np.array([False])) for sign in (1.0, 1.1, -1.2)]
    assert all(reading.difference[0] < 0.001 for reading in readings)
    assert weakest(readings).difference[0] == 1.0
    agreeing = weakest(readings[:2])
    assert agreeing.difference[0] == max(reading.difference[0] for reading in readings[:2])
    assert agreeing.mean[0] == pytest.approx(0.03)


def test_whether_the_exact_test_is_asked_never_depends_on_signs() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-4, 5, size=(200, 8)).astype(float)
    assert 0 < coarse(rows).mean() < 1
    flipped = rows * rng.choice([-1, 1], size=rows.shape)
    assert (coarse(rows) == coarse(flipped)).all()


def test_a_family_is_corrected_and_its_missing_members_keep_their_place() -> None:
    # p is 0.03 or so: enough alone, not enough for one of two
    member = contrast(0.0135, 2.6)
    alone = judge(member, HIGHER)
    assert alone.outcome == "supported"
    assert alone.effect is not None
    assert 0.025 < alone.effect.p < 0.05
    absent = Comparison(Contrast({}, missing=("seed 0: no batch",)), HIGHER)
    family = judge_family({"b": absent, "a": Comparison(member, HIGHER)})
    assert list(family) == ["b", "a"]
    assert (family["a"].outcome, family["b"].outcome) == ("inconclusive", "untested")
    assert "family" in family["a"].reason
    assert family["a"].effect is not None
    assert family["a"].effect.p_holm == pytest.approx(2 * alone.effect.p)


def test_equivalences_are_corrected_too() -> None:
    flat = contrast(0.0, 2.0)
    assert judge(flat, HIGHER).outcome == "negligible"
    family = judge_family({str(k): Comparison(flat, HIGHER) for k in range(12)})
    assert {verdict.outcome for verdict in family.values()} == {"inconclusive"}


@pytest.mark.parametrize(("mean", "half"), [(0.0, 0.0086), (0.0, 0.0105), (0.006, 0.0045)])
def test_an_interval_inside_the_margin_is_not_said_to_reach_beyond_it(mean: float, half: float) -> None:
    spread = half / scipy_stats.t.isf(0.025, 7) * math.sqrt(8) / float(np.std(NOISE, ddof=1))
    member = contrast(mean, spread)
    interval = scipy_stats.ttest_1samp(list(member.values.values()), 0).confidence_interval(0.9)
    assert -0.01 < interval.low < interval.high < 0.01
    inside = "the two one-sided tests place the mean inside the margin"
    alone = judge(member, HIGHER)
    assert (alone.outcome, alone.reason) == ("negligible", inside)
    corrected = f"{inside}, but not after correction for the family or not under every bound"
    family = judge_family({str(k): Comparison(member, HIGHER) for k in range(14)})
    bounded = judge(replace(member, bounds=(contrast(0.02).values,)), HIGHER)
    assert {(v.outcome, v.reason) for v in (*family.values(), bounded)} == {("inconclusive", corrected)}


def test_an_equivalence_that_the_signs_do_not_confirm_says_so() -> None:
    verdict = judge(Contrast(dict.fromkeys(range(6), 0.0)), Rule("higher", 0.01, alpha=0.015))  # 1 of 64 is more
    assert verdict.outcome == "inconclusive"
    assert verdict.reason == (
        "the two one-sided tests place the mean inside the margin, "
        "but the exact sign-flip test, which must agree here, does not"
    )


def test_a_family_has_one_alpha() -> None:
    with pytest.raises(ValueError, match="one alpha"):
        judge_family(
            {"a": Comparison(contrast(0), HIGHER), "b": Comparison(contrast(0), Rule("higher", 1, alpha=0.01))}
        )


def test_a_censored_verdict_has_to_hold_under_every_bound() -> None:
    rule = Rule("lower", -math.log(0.8))
    control = {seed: 18 + seed % 4 for seed in range(10)}
    quick = {seed: 7 + seed % 3 for seed in range(10)}
    assert judge(epochs_ratio(Arm("batch", quick), Arm("none", control), budget=30), rule).outcome == "supported"
    # control runs that never arrive can only make the treatment look faster
    never = epochs_ratio(Arm("batch", quick), Arm("none", {**control, 3: math.inf, 4: math.inf}), budget=30)
    assert judge(never, rule).outcome == "supported"
    # treatment runs that never arrive leave the mean ratio open, however quick the others are
    stuck = epochs_ratio(Arm("batch", {**quick, 3: math.inf, 4: math.inf}), Arm("none", control), budget=30)
    at_budget = judge(Contrast(stuck.values, failed=stuck.failed), rule)
    assert (at_budget.outcome, judge(stuck, rule).outcome) == ("supported", "inconclusive")
    assert "bound" in judge(stuck, rule).reason


@pytest.mark.parametrize(
    ("margin", "alpha", "direction"), [(0, 0.05, "same"), (math.nan, 0.05, "same"), (1, 0.5, "same"), (1, 0.05, "up")]
)
def test_a_rule_that_cannot_judge_is_refused(margin: float, alpha: float, direction: str) -> None:
    with pytest.raises(ValueError, match=r"margin|alpha|direction"):
        Rule(direction, margin, alpha)  # type: ignore[arg-type]


def test_simulations_and_verdicts_are_judged_by_the_same_lines() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0.01, 0.015, size=(40, 8))
    failed = rng.random((40, 8)) < 0.05
    rows[failed] += 0.8
    many = decide(weigh(rows, HIGHER, failed=failed.any(axis=1), only_below=0.05), HIGHER, num_pairs=8)
    one_by_one = [
        judge(Contrast(dict(enumerate(row)), failed=frozenset(np.flatnonzero(flags).tolist())), HIGHER).outcome
        for row, flags in zip(rows.tolist(), failed, strict=True)
    ]
    assert many.tolist() == one_by_one
    assert len(set(one_by_one)) >= 2


def test_outcomes_are_named_as_the_audit_has_them() -> None:
    assert OUTCOMES == ("supported", "contradicted", "negligible", "inconclusive", "untested", "invalid")
    assert Verdict("untested", "", None, 0).incomplete == ()
