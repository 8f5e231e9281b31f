"""Intervals of comparisons whose arms chose a learning rate, recomputed with plain loops and scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from made_up import CHANCE, SEEDS, Ended, Outcome, Run, judged, numbers, selected, study, whole, without
from scipy import stats as scipy_stats

from bnexp.analysis.choice import STRICT
from bnexp.analysis.claims import ClaimVerdict, judge_study, view_of
from bnexp.analysis.contrasts import Contrast, slope_weights
from bnexp.analysis.tuned import contrast_at_rate, contrast_with_choice
from bnexp.analysis.verdicts import Effect, Verdict
from bnexp.study import StudySpec, study_from_dict

TWO = (0.1, 0.3)


class Ladder(NamedTuple):
    """What one arm in one stratum adds to a weighted sum: (seeds, rates) each."""

    weight: float
    votes: np.ndarray
    scores: np.ndarray
    failed: np.ndarray


def drawn(case: int, *, apart: float = 0.0, gains: dict[str, float] | None = None) -> Outcome:
    """Runs of which validation and test share some luck, at rates that are `apart` in quality."""

    def outcome(run: Run) -> Ended:
        levels = [round(math.log2(float(str(level)))) for level in run.at]
        rng = np.random.default_rng([case, *map(ord, run.arm[:2]), round(100 * run.lr), run.seed, *levels])
        shared, own = rng.normal(0, 0.01, size=2)
        seed = np.random.default_rng([case, run.seed]).normal(0, 0.02)
        quality = 0.6 + seed + (gains or {}).get(run.arm, 0.0) + apart * (run.lr == 0.3)
        test = quality + shared
        return "finished", {
            "accuracy": 0.9, "val_accuracy": quality + 0.5 * shared + 0.7 * own, "test_accuracy": test,
            "generalization_gap": 0.05 + 0.3 * abs(own), "accuracy_precise": test + 0.3 * own,
        }  # fmt: skip

    return outcome


def ladder(
    outcome: Outcome, arm: str, at: tuple[object, ...] = (), *, weight: float = 1.0, rates: Sequence[float] = TWO,
    seeds: Sequence[int] = SEEDS, measure: str = "test_accuracy",
) -> Ladder:  # fmt: skip
    def read(name: str) -> np.ndarray:
        ended: Any = [[outcome(Run(arm, lr, seed, at)) for lr in rates] for seed in seeds]
        return np.array([[how[1][name] if how[0] == "finished" else CHANCE for how in row] for row in ended])

    failed = [[(outcome(Run(arm, lr, seed, at)) or ("", 0))[0] != "finished" for lr in rates] for seed in seeds]
    return Ladder(weight, read("val_accuracy"), read(measure), np.array(failed))


def beaten_p(votes: np.ndarray, chosen: int, other: int) -> float:
    """One-sided p that the chosen rate is no better on validation than another."""
    ahead = votes[:, chosen] - votes[:, other]
    if np.ptp(ahead) < 1e-12:
        return 1.0 if ahead[0] <= 0 else 0.0
    return float(scipy_stats.ttest_1samp(ahead, 0, alternative="greater").pvalue)


def plausible(votes: np.ndarray, level: float) -> list[int]:
    chosen = int(votes.mean(axis=0).argmax())
    return [k for k in range(votes.shape[1]) if k == chosen or beaten_p(votes, chosen, k) > level]


def raised(one: Ladder) -> np.ndarray:
    scores = one.scores.copy()
    for seed, rate in zip(*np.nonzero(one.failed), strict=True):
        healthy = one.scores[~one.failed[:, rate], rate]
        if len(healthy):
            scores[seed, rate] = max(scores[seed, rate], healthy.mean())
    return scores


def flattery(one: Ladder) -> tuple[float, float]:
    """By how much resamples flatter the rate that they choose, and the one that looks best in hindsight."""
    num, rates = one.votes.shape
    resamples = np.random.default_rng(0).integers(0, num, size=(1000, num))
    scores = raised(one)
    usual = [float(np.mean([scores[rows, rate].mean() for rows in resamples])) for rate in range(rates)]
    chosen, hindsight = [], []
    for rows in resamples:
        validated = int(np.argmax([one.votes[rows, rate].mean() for rate in range(rates)]))
        best = int(np.argmax([scores[rows, rate].mean() for rate in range(rates)]))
        chosen.append(scores[rows, validated].mean() - usual[validated])
        hindsight.append(scores[rows, best].mean() - usual[best])
    return float(np.mean(chosen)), float(np.mean(hindsight))


def end_by_hand(ladders: Sequence[Ladder], sign: int, level: float, constant: float = 0.0) -> float:
    """The lower end, sign 1, or the upper one, −1: the worst of t intervals at every rate that the others may be at."""
    own = [one.weight * sign > 0 for one in ladders]
    curse = [flattery(one) for one in ladders]
    guard = sum(abs(one.weight) * (c[0] if mine else -c[1]) for one, mine, c in zip(ladders, own, curse, strict=True))
    places = [
        [int(one.votes.mean(axis=0).argmax())] if mine else plausible(one.votes, STRICT)
        for one, mine in zip(ladders, own, strict=True)
    ]
    ends = []
    for rates in itertools.product(*places):
        values = sum(
            one.weight * (one.scores if mine else raised(one))[:, rate]
            for one, mine, rate in zip(ladders, own, rates, strict=True)
        )
        values = np.asarray(values) - constant
        half = scipy_stats.t.isf((1 - level) / 2, len(values) - 1) * scipy_stats.sem(values)
        ends.append(sign * (values.mean() - sign * max(0.0, guard)) - half)
    return float(sign * min(ends))


def effect_of(claim: ClaimVerdict) -> Effect:
    assert claim.verdict.effect is not None
    return claim.verdict.effect


def interval(effect: Effect) -> tuple[float, float]:
    return effect.deciding.low, effect.deciding.high


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
        signs = {"batch": 1, control: -1} if control else {"batch": 1}
        found = {(arm, depth): ladder(outcome, arm, (depth,), rates=rates).scores for arm in signs for depth in depths}
        values = [sum(sign * found[arm, depth][:, 0] for arm, sign in signs.items()) for depth in depths]
        slopes = [scipy_stats.linregress(x, own).slope for own in np.array(values).T]
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


# what no rate is chosen for


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({"shape": "ratio", "measure": "test_accuracy", "margin": 1.02},
         lambda one, other: np.log(one["test_accuracy"] / other["test_accuracy"])),
        ({"measure": "generalization_gap", "margin": 0.001, "direction": "lower"},
         lambda one, other: one["generalization_gap"] - other["generalization_gap"]),
        ({"control_measure": "accuracy_precise", "margin": 0.001},
         lambda one, other: one["test_accuracy"] - other["accuracy_precise"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("case", [1, 2, 6])
def test_what_no_rate_is_chosen_for_holds_at_every_pair_of_plausible_rates(
    change: dict[str, Any], read: Callable[[Any, Any], np.ndarray], case: int
) -> None:
    rates = (0.1, 0.3, 1.0)
    outcome = drawn(case, apart=0.004)
    (claim,) = judged(study(change, rates=rates), outcome)
    names = ("test_accuracy", "generalization_gap", "accuracy_precise", "val_accuracy")
    arms = {arm: {name: ladder(outcome, arm, rates=rates, measure=name).scores for name in names}
            for arm in ("batch", "none")}  # fmt: skip
    places = {arm: plausible(columns["val_accuracy"], 0.1) for arm, columns in arms.items()}
    intervals = []
    for here, there in itertools.product(places["batch"], places["none"]):
        one, other = (
            {name: column[:, k] for name, column in arms[arm].items()} for arm, k in (("batch", here), ("none", there))
        )
        intervals.append(scipy_stats.ttest_1samp(read(one, other), 0).confidence_interval(0.95))
    assert len(intervals) > 1
    assert interval(effect_of(claim)) == pytest.approx((min(i.low for i in intervals), max(i.high for i in intervals)))
    best = [int(arms[arm]["val_accuracy"].mean(axis=0).argmax()) for arm in ("batch", "none")]
    own = read(*({name: column[:, k] for name, column in arms[arm].items()}
                 for arm, k in zip(("batch", "none"), best, strict=True)))  # fmt: skip
    assert effect_of(claim).deciding.mean == pytest.approx(own.mean())


def test_two_measures_of_one_arm_are_read_at_each_rate_that_it_may_be_best_at() -> None:
    outcome = drawn(4)
    spec = study({"control": "batch", "control_measure": "accuracy_precise", "direction": "same"}, rates=TWO)
    (claim,) = judged(spec, outcome)
    test, precise = (ladder(outcome, "batch", measure=name) for name in ("test_accuracy", "accuracy_precise"))
    found = [
        scipy_stats.ttest_rel(test.scores[:, k], precise.scores[:, k]).confidence_interval(0.95)
        for k in plausible(test.votes, 0.1)
    ]
    assert len(found) == 2
    assert interval(effect_of(claim)) == pytest.approx((min(i.low for i in found), max(i.high for i in found)))


# one seed less


def brute_force(spec: StudySpec, outcome: Outcome, **options: Any) -> list[Verdict]:
    """The verdicts of the study without each of its seeds in turn."""
    found = []
    for seed in spec.seeds("small"):
        lacking = selected(spec, without(outcome, lambda run, seed=seed: run.seed == seed))
        kept = replace(whole(spec), seeds=tuple(other for other in SEEDS if other != seed))
        (claim,) = judge_study(lacking, spec, declared=kept, **options)
        found.append(claim.verdict)
    return found


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("change", [{}, {"measure": "val_accuracy", "direction": "same"}])
def test_verdicts_without_a_seed_are_those_of_studies_without_it(case: int, change: dict[str, Any]) -> None:
    spec = study(change, rates=TWO)
    outcome = drawn(case, gains={"batch": 0.012 * (case % 3)})
    (claim,) = judged(spec, outcome)
    others = brute_force(spec, outcome)
    assert claim.contrast is not None
    assert len(claim.contrast.left_out) == len(SEEDS)
    for ends, verdict in zip(claim.contrast.left_out, others, strict=True):
        low, high = ends.interval(0.05)
        assert verdict.effect is not None
        assert (low[0], high[0]) == pytest.approx((verdict.effect.plain.low, verdict.effect.plain.high))
    assert effect_of(claim).same_verdict == sum(verdict.outcome == claim.verdict.outcome for verdict in others)


def test_one_seed_may_carry_a_verdict() -> None:
    found = set()
    for case in range(12):
        (claim,) = judged(study(rates=TWO), drawn(case, gains={"batch": 0.016}))
        found.add(effect_of(claim).same_verdict)
    assert max(number for number in found if number is not None) == len(SEEDS)
    assert min(number for number in found if number is not None) < len(SEEDS)


def test_of_two_seeds_none_can_be_spared() -> None:
    spec = study(rates=TWO)
    lacking = selected(spec, without(drawn(0), lambda run: run.seed not in SEEDS[:2]))
    contrast = contrast_with_choice(view_of(lacking, None), spec.comparisons[0], "")
    assert (len(contrast.values), contrast.left_out) == (2, ())


# studies that were frozen before


def test_a_declaration_that_names_tuning_seeds_is_read_and_all_of_its_seeds_report() -> None:
    spec = study(rates=TWO)
    frozen = spec.declaration("small") | {
        "choose": {"factor": "lr", "metric": "val_accuracy", "seeds": list(SEEDS[:2])}
    }
    old = study_from_dict(frozen)
    assert old == spec
    assert old.seeds("small") == SEEDS
    outcome = drawn(2)
    (claim,), (now,) = judged(old, outcome), judged(spec, outcome)
    assert set(claim.values) == set(SEEDS)
    assert claim == now
