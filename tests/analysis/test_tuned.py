"""Intervals of arms that chose a learning rate each, recomputed with plain loops and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import STRICT, TWO, drawn, effect_of, end_by_hand, flattery, interval, ladder, plausible
from made_up import CHANCE, SEEDS, Ended, Outcome, Run, judged, numbers, selected, study, without
from scipy import stats as scipy_stats

from bnexp.analysis.claims import view_of
from bnexp.analysis.contrasts import Contrast, slope_weights
from bnexp.analysis.tuned import contrast_at_rate
from bnexp.study import StudySpec

# each arm at the best of its ladder


@pytest.mark.parametrize("case", range(6))
def test_the_chosen_rate_is_held_against_every_rate_of_the_other_arm(case: int) -> None:
    outcome = drawn(case, apart=0.004 * (case % 3))
    (claim,) = judged(study(rates=TWO), outcome)
    batch, none = ladder(outcome, "batch"), ladder(outcome, "none", weight=-1.0)
    best = [int(one.votes.mean(axis=0).argmax()) for one in (batch, none)]
    values = batch.scores[:, best[0]] - none.scores[:, best[1]]
    assert claim.values == pytest.approx(dict(zip(SEEDS, values, strict=True)))
    effect = effect_of(claim)
    assert effect.deciding.mean == pytest.approx(values.mean())
    assert interval(effect) == pytest.approx([end_by_hand([batch, none], sign, 0.95) for sign in (1, -1)])
    # never narrower than if the rates had been known
    known = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert effect.deciding.low <= known.low + 1e-12
    assert effect.deciding.high >= known.high - 1e-12


def test_what_was_held_against_is_worse_in_some_studies_and_flattered_in_some() -> None:
    """So that the test above tells the rule from less than it."""
    guards, more = [], 0
    for case in range(6):
        outcome = drawn(case, apart=0.004 * (case % 3))
        one, other = ladder(outcome, "batch"), ladder(outcome, "none")
        guards.append(flattery(one)[0] - flattery(other)[1])
        more += len(plausible(other.votes, STRICT)) > 1
    assert max(guards) > 1e-4
    assert min(guards) < 0
    assert more >= 3


def test_a_rate_that_validation_rules_out_is_not_read() -> None:
    def outcome(run: Run) -> Ended:  # far better on test at the rate that is far worse on validation
        noise = np.random.default_rng([ord(run.arm[0]), run.seed, round(10 * run.lr)]).normal(0, 0.005, size=2)
        val, test = (0.8, 0.6) if run.lr == 0.1 else (0.6, 0.9)
        return "finished", {"accuracy": 0.9, "val_accuracy": val + noise[0], "test_accuracy": test + noise[1]}

    (claim,) = judged(study(rates=TWO), outcome)
    values = [ladder(outcome, arm).scores[:, 0] for arm in ("batch", "none")]
    known = scipy_stats.ttest_rel(*values).confidence_interval(0.95)
    assert interval(effect_of(claim)) == pytest.approx((known.low, known.high))
    choice = (claim.contrast or Contrast({})).choice
    assert choice is not None
    assert choice.chosen == {("batch", ""): 0.1, ("none", ""): 0.1}
    assert choice.plausible == {("batch", ""): (0.1,), ("none", ""): (0.1,)}
    assert choice.same == 1.0


@pytest.mark.parametrize("case", [0, 3])
def test_a_choice_says_how_firm_it_is_and_which_rates_move_the_ends(case: int) -> None:
    outcome = drawn(case)
    (claim,) = judged(study(rates=TWO), outcome)
    choice = (claim.contrast or Contrast({})).choice
    assert choice is not None
    arms = {name: ladder(outcome, name) for name in ("batch", "none")}
    best = {name: int(one.votes.mean(axis=0).argmax()) for name, one in arms.items()}
    assert choice.chosen == {(name, ""): TWO[place] for name, place in best.items()}
    assert choice.plausible == {
        (name, ""): tuple(TWO[k] for k in plausible(one.votes, 0.1)) for name, one in arms.items()
    }
    resamples = np.random.default_rng(0).integers(0, 8, size=(1000, 8))
    same = [
        all(one.votes[rows].mean(axis=0).argmax() == best[name] for name, one in arms.items()) for rows in resamples
    ]
    assert choice.same == pytest.approx(np.mean(same))
    lows = {}
    for k in plausible(arms["none"].votes, STRICT):
        values = arms["batch"].scores[:, best["batch"]] - arms["none"].scores[:, k]
        lows[TWO[k]] = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95).low
    assert choice.lower_at == {("batch", ""): TWO[best["batch"]], ("none", ""): min(lows, key=lambda lr: lows[lr])}


def test_at_one_rate_nothing_is_chosen_and_nothing_widens() -> None:
    outcome = drawn(1)
    (claim,) = judged(study(rates=TWO), outcome)
    for k, lr in enumerate(TWO):
        values = [ladder(outcome, arm).scores[:, k] for arm in ("batch", "none")]
        found = claim.same_lr[lr].effect
        assert found is not None
        known = scipy_stats.ttest_rel(*values).confidence_interval(0.95)
        assert (found.plain.low, found.plain.high) == pytest.approx((known.low, known.high))
        at = contrast_at_rate(view_of(selected(study(rates=TWO), outcome), None), claim.comparison, "", lr)
        assert (at.choice, at.left_out) == (None, ())


# weighted sums of arms


@pytest.mark.parametrize("rates", [(0.1,), TWO])
def test_interaction_is_a_sum_of_four_arms_each_at_its_best(rates: tuple[float, ...]) -> None:
    spec = study(
        {"shape": "interaction", "against": ["layer", "group"]}, arms=("none", "batch", "group", "layer"), rates=rates
    )
    outcome = drawn(5)
    (claim,) = judged(spec, outcome)
    weights = {"batch": 1.0, "none": -1.0, "layer": -1.0, "group": 1.0}
    ladders = [ladder(outcome, arm, weight=weight, rates=rates) for arm, weight in weights.items()]
    assert interval(effect_of(claim)) == pytest.approx([end_by_hand(ladders, sign, 0.95) for sign in (1, -1)])
    assert claim.values == pytest.approx(numbers(spec, outcome).values)


@pytest.mark.parametrize("rates", [(0.1,), TWO])
@pytest.mark.parametrize("control", ["none", None])
def test_slope_over_levels_is_a_sum_of_arms_in_strata(rates: tuple[float, ...], control: str | None) -> None:
    depths = [2, 4, 16]
    spec = study(
        {"shape": "slope", "over": "model.depth", "control": control}, axes={"model.depth": depths}, rates=rates
    )
    outcome = drawn(2)
    (claim,) = judged(spec, outcome)
    x = np.log2(depths)
    line = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    assert slope_weights([2, 4, 16]) == pytest.approx(line)
    ladders = [
        ladder(outcome, arm, (depth,), weight=side * weight, rates=rates)
        for arm, side in (("batch", 1.0), ("none", -1.0)) if arm in ("batch", control)
        for depth, weight in zip(depths, line, strict=True)
    ]  # fmt: skip
    assert interval(effect_of(claim)) == pytest.approx([end_by_hand(ladders, sign, 0.95) for sign in (1, -1)])
    if len(rates) == 1:
        signs = {"batch": 1.0} | ({control: -1.0} if control else {})
        gains = [
            sum(sign * ladder(outcome, arm, (depth,), rates=rates).scores[:, 0] for arm, sign in signs.items())
            for depth in depths
        ]
        slopes = [scipy_stats.linregress(x, line).slope for line in np.transpose(gains)]
        known = scipy_stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
        assert interval(effect_of(claim)) == pytest.approx((known.low, known.high))


def test_slope_over_arms_leaves_out_what_has_no_weight() -> None:
    levels = {"none": 1, "batch": 2, "group": 4}
    spec = study({"shape": "slope", "treatment": None, "control": None, "levels": levels}, arms=levels, rates=TWO)
    outcome = drawn(4)
    (claim,) = judged(spec, outcome)
    ladders = [ladder(outcome, "none", weight=-0.5), ladder(outcome, "group", weight=0.5)]  # batch is in the middle
    assert interval(effect_of(claim)) == pytest.approx([end_by_hand(ladders, sign, 0.95) for sign in (1, -1)])


def test_level_is_the_best_of_one_arm_against_a_constant() -> None:
    outcome = drawn(3)
    (claim,) = judged(study({"shape": "level", "control": None, "reference": 0.55}, rates=TWO), outcome)
    one = [ladder(outcome, "batch")]
    assert interval(effect_of(claim)) == pytest.approx([end_by_hand(one, sign, 0.95, 0.55) for sign in (1, -1)])


# failures


def six(effect: float = 0.05) -> tuple[StudySpec, Outcome]:
    """Six seeds, clear of any doubt; 0.3 is best for both."""
    spec = study(rates=TWO, seeds=SEEDS[:6])
    noise = dict(zip(SEEDS, (0.004, -0.006, 0.001, 0.009, -0.003, -0.005), strict=False))

    def outcome(run: Run) -> Ended:
        test = 0.8 + (run.arm == "batch") * (effect + noise[run.seed]) - 0.6 * (run.lr == 0.1)
        return "finished", {"accuracy": 0.9, "val_accuracy": test, "test_accuracy": test}

    return spec, outcome


def test_a_failed_control_does_not_bury_what_the_other_seeds_show() -> None:
    spec, outcome = six()
    failing = without(outcome, lambda run: run == Run("none", 0.3, 4), "diverged")
    (claim,) = judged(spec, failing)
    one, other = (ladder(failing, arm, weight=w, seeds=SEEDS[:6]) for arm, w in (("batch", 1.0), ("none", -1.0)))
    effect = effect_of(claim)
    # the raw differences would leave even the direction open
    raw = one.scores[:, 1] - other.scores[:, 1]
    assert raw[2] == pytest.approx(0.851 - CHANCE)
    assert scipy_stats.ttest_1samp(raw, 0).confidence_interval(0.95).low < 0
    assert effect.deciding.mean == pytest.approx(raw.mean())  # the failure counts in full
    # in the lower end it counts as an average run of the control, which is better: all others are at 0.8
    lifted = raw.copy()
    lifted[2] = 0.851 - 0.8
    low = scipy_stats.ttest_1samp(lifted, 0).confidence_interval(0.95).low
    assert effect.deciding.low == pytest.approx(low - (flattery(one)[0] - flattery(other)[1]), abs=1e-9)
    assert effect.guarded
    assert effect.p_size == pytest.approx(2 / 64)  # all six signs agree, and no t test is surer than that
    assert claim.outcome == "supported"
    assert effect.healthy is not None
    rest = scipy_stats.ttest_1samp(np.delete(raw, 2), 0).confidence_interval(0.95)
    assert (effect.healthy.low, effect.healthy.high, effect.healthy.num) == pytest.approx((rest.low, rest.high, 5))
    assert effect.failures is not None
    assert (effect.failures.treatment, effect.failures.control) == (0, 1)


def test_a_failed_treatment_does_bury_it() -> None:
    spec, outcome = six()
    (claim,) = judged(spec, without(outcome, lambda run: run == Run("batch", 0.3, 4), "diverged"))
    effect = effect_of(claim)
    assert claim.outcome == "inconclusive"
    raw = np.array([0.054, 0.044, CHANCE - 0.8, 0.059, 0.047, 0.045])
    low = scipy_stats.ttest_1samp(raw, 0).confidence_interval(0.95).low
    assert effect.deciding.low <= low < 0
    assert effect.healthy is not None
    assert effect.healthy.low > 0.01  # what is said of the others is beside the verdict, and none
    # the other way round the two change places
    mirrored = study({"direction": "lower"}, rates=TWO, seeds=SEEDS[:6])
    _, worse = six(-0.05)
    outcomes = [
        judged(mirrored, without(worse, lambda run, arm=arm: run == Run(arm, 0.3, 4), "diverged"))[0].outcome
        for arm in ("batch", "none")
    ]
    assert outcomes == ["supported", "inconclusive"]
