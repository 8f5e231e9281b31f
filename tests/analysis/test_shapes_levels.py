"""The number of each seed, worked out by hand: shapes that ask how far an arm goes, and what a search costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from made_up import CHANCE, RATES, SEEDS, Ended, Run, judged, numbers, study, two_arms, without
from scipy import stats as scipy_stats

from bnexp.analysis.contrasts import search_regret

# seed -> how many of the three rates stay healthy, from the smallest on
LIMITS = {"batch": dict(zip(SEEDS, (3, 3, 3, 3, 2, 3, 3, 3), strict=True)),
          "none": dict(zip(SEEDS, (1, 1, 2, 1, 1, 0, 1, 1), strict=True))}  # fmt: skip
REACH = {"shape": "reach", "over": "lr", "margin": 3}
DEPTHS = {"model.depth": [2, 4, 8, 16]}
DEEPEST = {"shape": "reach", "over": "model.depth", "margin": 1.5, "within": 0.05}


def middle(low: float, high: float) -> float:
    """Of a limit that lies between two levels, on a logarithm."""
    return math.log10(low * high) / 2


def ladder(run: Run) -> Ended:
    healthy = LIMITS[run.arm][run.seed]
    return ("finished", 0.9) if RATES.index(run.lr) < healthy else ("diverged", CHANCE)


def test_reach_is_a_ratio_of_the_largest_healthy_rates() -> None:
    (claim,) = judged(study(REACH), ladder)
    (free,) = judged(study(REACH), ladder, exploratory=True)
    assert free.verdict == claim.verdict
    # where a limit lies that is at none of the rates, at the first, the second or the last of them
    limits = ((0.01, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 10.0))
    pairs = [(limits[LIMITS["batch"][s]], limits[LIMITS["none"][s]]) for s in SEEDS]
    middles, least, most = (
        [middle(*one) - middle(*other) for one, other in pairs],
        [math.log10(one[0] / other[1]) for one, other in pairs],
        [math.log10(one[1] / other[0]) for one, other in pairs],
    )
    assert claim.values == pytest.approx(dict(zip(SEEDS, middles, strict=True)))
    effect = claim.verdict.effect
    assert effect is not None
    low, high = (scipy_stats.ttest_1samp(each, 0).confidence_interval(0.95) for each in (least, most))
    found = effect.deciding
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(middles), low.low, high.high))
    # two of the eight are 0 at the least, so that the signs of six decide: 4 of 256 patterns, on either side
    assert effect.p == pytest.approx(max(2 * 4 / 256, scipy_stats.ttest_1samp(least, 0).pvalue))
    assert effect.failures is None  # to be healthy at the top is no failure
    assert 1.25 < 10**low.low < 3
    for margin, outcome in ((3, "supported, direction only"), (1.25, "supported")):
        (claim,) = judged(study(REACH | {"margin": margin}), ladder)
        assert claim.verdict.outcome == outcome


@pytest.mark.parametrize("shape", ["reach", "span"])
@pytest.mark.parametrize(
    ("lacking", "phrase"),
    [
        (lambda run: run == Run("batch", 1.0, 4), "seed 4: not all of batch"),
        (lambda run: run.lr == 1.0, "learning rate 1: no run"),
        (lambda run: run.arm == "none", "no none"),
        (lambda run: run.lr > 0.1, "lr: two levels at least"),
        (lambda run: run.arm == "none" and run.lr == 1.0, "seed 4: not all of none"),
        (lambda run: run.arm == "none" and run.seed == 4, "seed 4: no none"),
    ],
)
def test_a_ladder_with_a_hole_is_untested(lacking: Any, phrase: str, shape: str) -> None:
    (claim,) = judged(study(REACH | {"shape": shape}), without(ladder, lacking))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert claim.verdict.reason == "runs are missing"
    assert phrase in claim.verdict.incomplete


@pytest.mark.parametrize("change", [REACH, {"shape": "span", "over": "lr", "margin": 0.5}])
def test_a_ladder_that_is_too_short_for_both_arms_decides_nothing(change: dict[str, Any]) -> None:
    (claim,) = judged(study(change), two_arms(0.0))
    assert claim.verdict.outcome == "inconclusive"
    assert claim.verdict.needed is not None
    assert claim.verdict.needed.num_pairs is None


def deep(tops: Mapping[str, Mapping[int, int]], *, drop: float = 0.2) -> Any:
    """Arms that lose `drop` of their accuracy beyond a depth; 8 where nothing is said of a seed."""

    def outcome(run: Run) -> Ended:
        depth = int(str(run.at[0]))
        return "finished", 0.9 - drop * (depth > tops.get(run.arm, {}).get(run.seed, 8)) - 0.3 * (run.lr != 0.3)

    return outcome


def test_reach_over_a_key_goes_as_far_as_an_arm_is_near_the_best() -> None:
    spec = study(DEEPEST, axes=DEPTHS)
    found = numbers(spec, deep({"none": {2: 4, 3: 2}}))
    expected = dict.fromkeys(SEEDS, 0.0) | {2: math.log10(8 / 4), 3: math.log10(8 / 2)}
    assert found.values == pytest.approx(expected)
    assert found.failed == frozenset()
    further, shorter = (dict.fromkeys(SEEDS, sign * math.log10(2)) for sign in (1, -1))
    assert [dict(bound) for bound in found.bounds] == [
        pytest.approx(further | {2: math.log10(16 / 4), 3: math.log10(16 / 2)}),
        pytest.approx(shorter | {2: 0.0, 3: math.log10(8 / 4)}),
    ]
    near = numbers(spec, deep({"none": {2: 4}}, drop=0.05))  # no worse by more than 0.05: good, however it is rounded
    assert near.values == pytest.approx(dict.fromkeys(SEEDS, 0.0))
    assert near.failed == set(SEEDS)  # all are good at the deepest
    whole = numbers(
        study({key: DEEPEST[key] for key in DEEPEST if key != "within"}, axes=DEPTHS), deep({"none": {2: 4}})
    )
    assert whole.values == pytest.approx(dict.fromkeys(SEEDS, 0.0))  # healthy at every depth


def poor(name: str, best: float) -> Any:
    """An arm that is right so often at depth 2, but for one seed at chance, which is 0.1; and at chance elsewhere."""

    def arms(run: Run) -> Ended:
        depth = int(str(run.at[0]))
        if run.arm != name:
            return "finished", 0.9 - 0.3 * (depth == 16) - 0.3 * (run.lr != 0.3)
        healthy = depth == 2 and run.lr == 0.3 and run.seed != SEEDS[0]
        return ("finished", best) if healthy else ("collapsed", 0.3)

    return arms


@pytest.mark.parametrize(("best", "outcome"), [(0.53, "invalid"), (0.55, "supported")])  # means of 0.476 and 0.494
def test_an_arm_that_has_learned_next_to_nothing_falls_off_from_nothing(best: float, outcome: str) -> None:
    (claim,) = judged(study(DEEPEST | {"least": 0.48}, axes=DEPTHS), poor("none", best))
    assert claim.verdict.outcome == outcome
    if outcome == "invalid":
        assert claim.verdict.effect is None
        assert claim.verdict.reason == (
            "none is 47.6 % accurate at its best model.depth, less than the 48 % of a trained network, so that it says "
            "nothing of model.depth"
        )
    (claim,) = judged(study(DEEPEST, axes=DEPTHS), poor("none", best))
    assert claim.verdict.outcome == "supported"


def test_near_its_own_best_both_arms_have_to_learn_and_near_the_pairs_best_the_control_has_to() -> None:
    own = study(DEEPEST | {"least": 0.48}, DEEPEST | {"least": 0.48, "best": "pair"}, axes=DEPTHS)
    assert [claim.verdict.outcome for claim in judged(own, poor("none", 0.53))] == ["invalid", "invalid"]
    assert [claim.verdict.outcome for claim in judged(own, poor("batch", 0.53))] == ["invalid", "contradicted"]


def test_what_is_missing_may_be_what_an_arm_is_good_at() -> None:
    spec = study(DEEPEST | {"least": 0.48}, axes=DEPTHS)
    lacking = without(poor("none", 0.9), lambda run: run.arm == "none" and run.at == (2,))
    (claim,) = judged(spec, lacking)
    assert (claim.verdict.outcome, claim.verdict.reason) == ("untested", "runs are missing")


@pytest.mark.parametrize(
    ("shape", "expected", "better"),
    [
        # batch to 8; none at no depth, so from a decade below the ladder to 2: its own best, at 16, is not good
        ("reach", middle(8, 16) - middle(0.2, 2), middle(0.2, 2) - middle(4, 8)),
        # half a step around 2, a whole one around 4 and around 8
        ("span", 2.5 * math.log10(2), -1.5 * math.log10(2)),
    ],
)
def test_good_is_near_the_best_of_either_arm_at_the_same_seed(shape: str, expected: float, better: float) -> None:
    spec = study(DEEPEST | {"shape": shape, "best": "pair"}, axes=DEPTHS)

    def outcome(run: Run) -> Ended:
        depth = int(str(run.at[0]))
        if run.arm == "none" and run.seed == 3:
            return "finished", 0.96 if depth <= 4 else 0.7  # 0.9 is no longer near enough, at this seed alone
        return "finished", 0.9 if run.arm == "batch" and depth <= 8 else 0.7

    found = numbers(spec, outcome)
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, expected) | {3: better})
    assert found.failed == set(SEEDS)  # an arm has no good depth
    to_batch = dict.fromkeys(SEEDS, math.log10(16 / 0.2)) | {3: math.log10(2 / 4)}
    to_none = dict.fromkeys(SEEDS, math.log10(8 / 2)) | {3: math.log10(0.2 / 8)}
    if shape == "span":  # three steps at the most and two at the least, against none; then none against one or two
        to_batch = dict.fromkeys(SEEDS, 3 * math.log10(2)) | {3: -math.log10(2)}
        to_none = dict.fromkeys(SEEDS, 2 * math.log10(2)) | {3: -2 * math.log10(2)}
    assert [dict(bound) for bound in found.bounds] == [pytest.approx(to_batch), pytest.approx(to_none)]


def test_good_is_near_the_best_of_its_own_arm_where_no_pair_is_asked_for() -> None:
    def outcome(run: Run) -> Ended:  # worse at every depth, and yet it falls off later
        depth = int(str(run.at[0]))
        return "finished", (0.9 if depth <= 4 else 0.5) if run.arm == "batch" else (0.6 if depth <= 8 else 0.3)

    found = numbers(study(DEEPEST, axes=DEPTHS), outcome)
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, math.log10(4 / 8)))
    assert found.failed == frozenset()
    assert [dict(bound) for bound in found.bounds] == [
        pytest.approx(dict.fromkeys(SEEDS, math.log10(8 / 8))), pytest.approx(dict.fromkeys(SEEDS, math.log10(4 / 16))),
    ]  # fmt: skip


def test_reach_at_the_deepest_net_is_open_upwards_once_for_each_arm() -> None:
    found = numbers(study(DEEPEST, axes=DEPTHS), deep({"batch": {2: 16, 3: 16}, "none": {3: 16}}))
    assert [found.values[seed] for seed in (2, 3, 4)] == pytest.approx([middle(16, 160) - middle(8, 16), 0, 0])
    treatment, control = found.bounds
    assert [treatment[seed] for seed in (2, 3, 4)] == pytest.approx([math.log10(160 / 8), 1, math.log10(2)])
    assert [control[seed] for seed in (2, 3, 4)] == pytest.approx([0, -1, -math.log10(2)])
    assert found.failed == {2, 3}


def test_a_failed_level_is_neither_good_nor_the_best() -> None:
    spec = study(DEEPEST | {"best": "pair"}, axes=DEPTHS)
    # healthy, and under what a failed run scores
    weak = {"batch": {4: 0.06, 8: 0.02, 16: 0.02}, "none": {2: 0.05, 4: 0.03, 8: 0.0, 16: 0.0}}

    def outcome(run: Run) -> Ended:
        depth = int(str(run.at[0]))
        if run.seed == 5:
            failed = run.arm == "batch" and depth == 2
            return ("diverged", CHANCE) if failed else ("finished", weak[run.arm][depth])
        return "finished", 0.9 if depth <= 4 else 0.5

    # the best healthy one is 0.06: batch is within 0.05 of it at 16, none at 4; 0.1 at a failed one sets no bar
    assert numbers(spec, outcome).values == pytest.approx(
        dict.fromkeys(SEEDS, 0.0) | {5: middle(16, 160) - middle(4, 8)}
    )
    # seed 6 of batch fails at every depth: from a decade below the ladder to its lowest
    failing = numbers(spec, without(outcome, lambda run: run.arm == "batch" and run.seed == 6, "collapsed"))
    assert failing.values[6] == pytest.approx(middle(0.2, 2) - middle(4, 8))
    assert 6 in failing.failed


def test_within_of_a_measure_where_less_is_better_and_of_one_without_a_value() -> None:
    spec = study(DEEPEST | {"measure": "test_loss", "within": 0.1}, axes=DEPTHS)
    losses = {2: 0.40, 4: 0.30, 8: 0.39, 16: 0.41}

    def outcome(run: Run) -> Ended:
        depth = int(str(run.at[0]))
        loss = losses[depth] if run.arm == "batch" else 0.3 + 0.2 * (depth > 2)
        unknown = run.arm == "none" and run.seed == 7 and depth == 8
        return "finished", {"accuracy": 0.9, "test_loss": math.nan if unknown else loss}

    found = numbers(spec, outcome)
    # batch is good at 2 (0.40), 4 and 8, and not at 16
    assert found.values == pytest.approx(dict.fromkeys(set(SEEDS) - {7}, math.log10(8 / 2)))
    assert (found.missing, found.undefined) == ((), ("seed 7: no value of none",))
    failed = without(outcome, lambda run: run.arm == "none" and run.seed == 7 and run.at == (8,), "diverged")
    assert numbers(spec, failed).values[7] == pytest.approx(math.log10(8 / 2))  # a failed run needs no value


def test_levels_are_each_at_the_best_rate_of_their_own() -> None:
    spec = study(DEEPEST, axes=DEPTHS)

    def outcome(run: Run) -> Ended:
        best = {2: 1.0, 4: 1.0, 8: 0.3, 16: 0.1}[int(str(run.at[0]))]
        return "finished", 0.9 if run.lr == best or (run.arm == "none" and run.lr == 1.0) else 0.5

    found = numbers(spec, outcome)
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, 0.0))
    assert found.failed == set(SEEDS)  # all good, at the deepest too


# spans


def test_span_counts_the_decades_around_each_good_level() -> None:
    gains = {"model.init_gain": [0.01, 0.1, 1, 100]}
    spec = study({"shape": "span", "over": "model.init_gain", "margin": 0.5}, axes=gains)
    sick = {("none", 2): (0.01,), ("none", 3): (0.1, 1), ("none", 4): (0.01, 0.1, 1, 100), ("batch", 5): (100,),
            ("none", 5): (100,)}  # fmt: skip

    def outcome(run: Run) -> Ended:
        bad = run.at[0] in sick.get((run.arm, run.seed), ())
        return ("collapsed", CHANCE) if bad else ("finished", 0.9)

    found = numbers(spec, outcome)
    # of steps of 1, 1 and 2 decades: 4 to 5 against 3 to 4, 0 to 3, and none; then 2 to 4 against as many
    expected = {2: 1.0, 3: 3.0, 4: 4.5, 5: 0.0, **dict.fromkeys((6, 7, 8, 9), 0.0)}
    assert found.values == pytest.approx(expected)
    assert found.failed == set(SEEDS) - {5}  # of each of these an arm holds everything, or nothing
    treatment, control = found.bounds
    assert treatment == pytest.approx({2: 2.0, 3: 5.0, 4: 5.0, 5: 2.0, **dict.fromkeys((6, 7, 8, 9), 1.0)})
    assert control == pytest.approx({2: 0.0, 3: 1.0, 4: 4.0, 5: -2.0, **dict.fromkeys((6, 7, 8, 9), -1.0)})
    assert found.failures is None


# searches


def regret_by_enumeration(votes: list[float], scores: list[float], budget: int) -> float:
    """All draws of so many settings; among the best votes of a draw each is as likely."""

    def picked(drawn: tuple[int, ...]) -> float:
        best = max(votes[i] for i in drawn)
        return float(np.mean([scores[i] for i in drawn if votes[i] == best]))

    draws = itertools.combinations(range(len(votes)), budget)
    return picked(tuple(range(len(votes)))) - float(np.mean([picked(drawn) for drawn in draws]))


@pytest.mark.parametrize("budget", range(1, 8))
def test_search_regret_is_that_of_all_draws(budget: int) -> None:
    rng = np.random.default_rng(budget)
    for levels in (100, 3):  # hardly any ties, and many
        votes = rng.integers(0, levels, size=7).astype(float).tolist()
        scores = rng.uniform(size=7).tolist()
        # a tie for the best within a draw is broken by chance, and so is which of the tied is drawn at all
        assert search_regret(votes, scores, budget) == pytest.approx(regret_by_enumeration(votes, scores, budget))


def test_search_regret_by_hand() -> None:
    assert search_regret([0.9, 0.5, 0.7], [0.8, 0.2, 0.6], 1) == pytest.approx(0.8 - (0.8 + 0.2 + 0.6) / 3)
    assert search_regret([0.9, 0.5, 0.7], [0.8, 0.2, 0.6], 2) == pytest.approx(0.8 - (2 * 0.8 + 0.6) / 3)
    assert search_regret([0.9, 0.5, 0.7], [0.8, 0.2, 0.6], 3) == pytest.approx(0.0)
    assert search_regret([0.9, 0.5], [0.1, 0.4], 1) == pytest.approx(0.1 - 0.25)  # luck on validation, paid on test
    for budget in (0, 3):
        with pytest.raises(ValueError, match=rf"budget: {budget} of 2 settings"):
            search_regret([0.9, 0.5], [0.1, 0.4], budget)


def settings(run: Run) -> Ended:
    rng = np.random.default_rng(
        [run.seed, RATES.index(run.lr), int(str(run.at[0])) if run.at else 0, run.arm == "none"]
    )
    val, test = rng.uniform(0.2, 0.9, size=2).tolist()
    return "finished", {"accuracy": 0.5, "val_accuracy": val, "test_accuracy": test, "test_loss": -test}


@pytest.mark.parametrize("axes", [{}, {"model.depth": [2, 4]}])
def test_search_is_over_all_rates_and_levels_of_a_seed(axes: dict[str, list[int]]) -> None:
    over = {"over": "model.depth"} if axes else {}
    spec = study({"shape": "search", "budget": 2, **over}, axes=axes)
    places: list[tuple[int, ...]] = [(depth,) for depth in axes.get("model.depth", [])] or [()]

    def regret(arm: str, seed: int) -> float:
        ended = [settings(Run(arm, lr, seed, place)) for place in places for lr in RATES]
        columns: list[Any] = [how[1] for how in ended if how is not None]
        return regret_by_enumeration([c["val_accuracy"] for c in columns], [c["test_accuracy"] for c in columns], 2)

    found = numbers(spec, settings)
    assert found.values == pytest.approx({seed: regret("batch", seed) - regret("none", seed) for seed in SEEDS})
    assert found.failures is None
    loss = study({"shape": "search", "budget": 2, "measure": "test_loss", "margin": 0.1, **over}, axes=axes)
    assert numbers(loss, settings).values == pytest.approx(found.values)  # less is better there


@pytest.mark.parametrize(
    ("lacking", "phrases"),
    [
        (lambda run: run == Run("batch", 1.0, 4), ["seed 4: not all of batch"]),
        (lambda run: run.arm == "batch" and run.lr == 1.0, [f"seed {seed}: not all of batch" for seed in SEEDS]),
        (lambda run: run.lr == 1.0, ["learning rate 1: no run"]),
        (lambda run: run.seed == 4, ["seed 4: no batch and no none"]),
    ],
)
def test_both_arms_search_the_same_settings(lacking: Any, phrases: list[str]) -> None:
    (claim,) = judged(study({"shape": "search", "budget": 1}), without(settings, lacking))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("untested", None)
    assert claim.verdict.reason == "runs are missing"
    assert set(phrases) <= set(claim.verdict.incomplete)


def test_a_setting_that_neither_arm_has_been_run_at_is_missing() -> None:
    spec = study({"shape": "search", "budget": 2, "over": "model.depth"}, axes={"model.depth": [2, 4]})
    lost = numbers(spec, without(settings, lambda run: (run.lr, run.at) == (1.0, (4,))))
    # there are runs at 1.0, and at a depth of 4
    assert lost.missing == tuple(f"seed {seed}: not all of batch and not all of none" for seed in SEEDS)
    level = numbers(spec, without(settings, lambda run: run.at == (4,)))
    assert "model.depth 4: no run" in level.missing


def test_both_arms_search_the_same_settings_in_an_exploratory_study_too() -> None:
    lost = without(settings, lambda run: run.arm == "batch" and run.lr == 1.0)
    spec = study({"shape": "search", "budget": 2})
    assert numbers(spec, lost, exploratory=True).missing == tuple(f"seed {seed}: not all of batch" for seed in SEEDS)
    few = numbers(spec, without(settings, lambda run: run.lr != 0.3), exploratory=True)
    assert (dict(few.values), few.missing) == ({}, ("2 settings at least",))


def test_a_setting_that_failed_is_found_out_by_its_vote() -> None:
    spec = study({"shape": "search", "budget": 1})
    failing = without(settings, lambda run: run == Run("batch", 0.1, 4), "diverged")
    found = numbers(spec, failing)
    ends: list[Any] = [settings(Run("batch", lr, 4)) for lr in RATES[1:]]
    votes, scores = ([CHANCE, *(how[1][key] for how in ends)] for key in ("val_accuracy", "test_accuracy"))
    control: list[Any] = [settings(Run("none", lr, 4)) for lr in RATES]
    expected = regret_by_enumeration(votes, scores, 1) - regret_by_enumeration(
        *([how[1][key] for how in control] for key in ("val_accuracy", "test_accuracy")), 1
    )
    assert found.values[4] == pytest.approx(expected)
    assert found.failed == frozenset()
    hopeless = numbers(spec, without(settings, lambda run: run.arm == "batch" and run.seed == 4, "diverged"))
    assert hopeless.failed == {4}
