"""The number of each seed that a declared comparison comes down to, worked out by hand: shapes that compare values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from made_up import CHANCE, NOISE, SEEDS, Ended, Run, judged, numbers, study, two_arms, without
from scipy import stats as scipy_stats

from bnexp.analysis.measures import Curve

DEPTHS = {"model.depth": [2, 4, 8]}
TIME = "epochs_to_target@0.5"
RATIO = {"shape": "ratio", "measure": "epochs_to_target", "direction": "lower", "margin": 1.25}


def depth_of(run: Run) -> float:
    return float(str(run.at[0]))


def by_seed(value: float, spread: float = 1.0) -> dict[int, float]:
    return {seed: value + spread * NOISE[seed] for seed in SEEDS}


def test_difference_is_treatment_minus_control_each_at_its_own_best_rate() -> None:
    def outcome(run: Run) -> Ended:
        best = {"none": 0.1, "batch": 1.0}[run.arm]
        return "finished", 0.6 + 0.2 * (run.lr == best) + (run.arm == "batch") * (0.05 + NOISE.get(run.seed, 0))

    assert numbers(study(), outcome).values == pytest.approx(by_seed(0.05))


def test_difference_may_read_the_control_in_another_measure() -> None:
    same_arm = {"control": "batch", "control_measure": "accuracy_precise", "direction": "same"}

    def outcome(run: Run) -> Ended:
        return "finished", {"accuracy": 0.9, "accuracy_precise": 0.88 - NOISE.get(run.seed, 0)}

    assert numbers(study(same_arm), outcome).values == pytest.approx(by_seed(0.02))

    def unmeasured(run: Run) -> Ended:
        return "finished", {"accuracy": 0.9, "accuracy_precise": 0.88 if run.seed != 3 else math.nan}

    assert numbers(study(same_arm), unmeasured).undefined == ("seed 3: no value of accuracy_precise",)
    lost = numbers(study(same_arm), without(outcome, lambda run: run.arm == "batch" and run.seed == 3))
    assert lost.missing == ("seed 3: no test_accuracy and no accuracy_precise",)


def test_difference_of_losses_of_a_diverged_run_is_undefined() -> None:
    def outcome(run: Run) -> Ended:
        diverged = run.arm == "none" and run.seed == 6
        return "diverged" if diverged else "finished", {"accuracy": 0.9, "test_loss": math.nan if diverged else 0.3}

    found = numbers(study({"measure": "test_loss", "direction": "lower", "margin": 0.1}), outcome)
    assert (found.missing, found.undefined) == ((), ("seed 6: no value of none",))
    assert 6 not in found.values


def test_ratio_is_a_natural_logarithm_and_so_is_its_margin() -> None:
    def outcome(run: Run) -> Ended:
        return "finished", {"accuracy": 0.9, "step_cost": (1.3 + NOISE.get(run.seed, 0)) if run.arm == "batch" else 1.0}

    cost = {"shape": "ratio", "measure": "step_cost", "direction": "higher"}
    fixed = {"fixed": {"probes": ["cost"]}, "axes": {"lr": [0.1], "seed": list(SEEDS)}}

    def spec(margin: float) -> Any:
        return study(cost | {"margin": margin}, tiers={"small": fixed})

    found = numbers(spec(1.25), outcome)
    assert found.values == pytest.approx({seed: math.log(1.3 + NOISE[seed]) for seed in SEEDS})
    outcomes = {margin: judged(spec(margin), outcome)[0].verdict.outcome for margin in (1.29, 1.32)}
    assert outcomes == {1.29: "supported", 1.32: "negligible"}


def test_ratio_has_no_logarithm_at_or_below_zero() -> None:
    def outcome(run: Run) -> Ended:
        gap = -0.01 if run.seed == 4 else 0.0 if run.seed == 5 else 0.02
        return "finished", {"accuracy": 0.9, "generalization_gap": gap if run.arm == "batch" else 0.02}

    found = numbers(study({"shape": "ratio", "measure": "generalization_gap", "margin": 2}), outcome)
    assert found.undefined == ("seed 4: no value of batch", "seed 5: no value of batch")
    assert found.values == pytest.approx(dict.fromkeys((2, 3, 6, 7, 8, 9), 0.0))


# times to a target, in a budget of 8 epochs


def timed(times: dict[tuple[str, int], float], statuses: dict[tuple[str, int], str] | None = None) -> Any:
    """Times by arm and seed, 4 epochs for all others."""

    def outcome(run: Run) -> Ended:
        key = (run.arm, run.seed)
        seconds = {"train_seconds": 40.0 if run.arm == "batch" else 24.0}
        status = (statuses or {}).get(key, "finished")
        return status, {"accuracy": 0.9, TIME: times.get(key, 4.0), "epochs": 8, **seconds}

    return outcome


def test_ratio_of_times_without_censoring_has_one_reading() -> None:
    found = numbers(study(RATIO), timed({("batch", 2): 1.0, ("none", 3): 7.9}))
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, 0.0) | {2: math.log(1 / 4), 3: math.log(4 / 7.9)})
    assert (found.bounds, found.failed) == ((), frozenset())


def test_ratio_of_times_counts_what_never_arrived_at_the_budget_of_epochs() -> None:
    times = {("batch", 2): math.inf, ("none", 3): math.inf, ("none", 4): math.inf}
    found = numbers(study(RATIO), timed(times, {("none", 4): "diverged", ("none", 3): "collapsed"}))
    late = {2: math.log(8 / 4), 3: math.log(4 / 8), 4: math.log(4 / 8)}
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, 0.0) | late)
    low, high = found.bounds  # ten budgets, once for each arm
    assert [low[seed] for seed in (2, 3, 4)] == pytest.approx([math.log(2), math.log(4 / 80), math.log(4 / 80)])
    assert [high[seed] for seed in (2, 3, 4)] == pytest.approx([math.log(80 / 4), math.log(1 / 2), math.log(1 / 2)])
    assert found.failed == {2, 3, 4}
    assert found.failures is not None
    assert (found.failures.treatment, found.failures.control) == (1, 2)


def test_ratio_of_seconds_censors_at_the_shortest_training_that_did_not_arrive() -> None:
    seconds = RATIO | {"measure": "seconds_to_target"}

    def outcome(run: Run) -> Ended:
        # none trains for 24 s and batch for 40 s in all; a diverged run stopped after 1 s and says nothing of budgets
        times = {("none", 3): math.inf, ("batch", 4): math.inf, ("batch", 5): 30.0, ("batch", 6): math.inf}
        took = times.get((run.arm, run.seed), 12.0)
        total = 1.0 if (run.arm, run.seed) == ("batch", 4) else {"batch": 40.0, "none": 24.0}[run.arm]
        status = "diverged" if total == 1.0 else "finished"
        return status, {"accuracy": 0.9, "seconds_to_target@0.5": took, "train_seconds": total}

    found = numbers(study(seconds), outcome)
    late = {3: math.log(12 / 24), **dict.fromkeys((4, 5, 6), math.log(24 / 12))}  # 30 s are beyond 24 too
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, 0.0) | late)
    assert found.failed == {3, 4, 5, 6}


def test_ratio_of_times_where_no_run_of_either_arm_arrived_is_invalid() -> None:
    never = {(arm, seed): math.inf for arm in ("none", "batch") for seed in SEEDS}
    (claim,) = judged(study(RATIO), timed(never))
    assert (claim.verdict.outcome, claim.verdict.effect) == ("invalid", None)
    assert "never arrived" in claim.verdict.reason
    one_arm = {key: time for key, time in never.items() if key[0] == "none"}
    (claim,) = judged(study(RATIO), timed(one_arm | {("batch", seed): 2.0 + NOISE[seed] for seed in SEEDS}))
    assert claim.verdict.outcome == "supported"  # none needs 8 epochs at least, and batch 2


def test_ratio_of_times_knows_no_time_at_a_target_that_chance_reaches() -> None:
    found = numbers(study(RATIO), timed({("batch", 4): 0.0, ("none", 5): math.nan}))
    assert (found.missing, found.undefined) == ((), ("seed 4: no value of batch", "seed 5: no value of none"))


def test_difference_of_times_is_undefined_where_one_never_arrived() -> None:
    spec = study(RATIO | {"shape": "difference", "margin": 1.0})
    assert numbers(spec, timed({("batch", 2): 1.5})).values[2] == -2.5
    assert numbers(spec, timed({("batch", 2): math.inf})).undefined == ("seed 2: no value of batch",)


# matched, at a target of 0.5

MATCHED = {"shape": "matched", "measure": "val_accuracy"}
FAST = Curve((1, 2, 3), (0.4, 0.8, 1.0), (0.5, 0.7, 0.9))
SLOW = Curve((1, 2, 3), (0.2, 0.4, 0.7), (0.3, 0.5, 0.62))
LOW = Curve((1, 2, 3), (0.2, 0.3, 0.49), (0.2, 0.3, 0.4))  # never reaches the target


def curved(ends: dict[tuple[str, int], Curve | str | None]) -> Any:
    """By arm and seed, the curve of a run that finished, or how it failed; batch is fast and none slow elsewhere."""

    def outcome(run: Run) -> Any:
        end = ends.get((run.arm, run.seed), FAST if run.arm == "batch" else SLOW)
        status, curve = (end, None) if isinstance(end, str) else ("finished", end)
        return status, {"accuracy": 0.95, "accuracy_curve": curve}

    return outcome


def test_matched_reads_both_where_they_first_reach_what_both_reach() -> None:
    found = numbers(study(MATCHED), curved({("batch", 3): SLOW, ("none", 3): FAST, ("none", 4): FAST}))
    # 0.7 is the slow one's highest, at epoch 2.5: 0.56; the fast one is there at epoch 1.25: 0.55
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, -0.01) | {3: 0.01, 4: 0.0})
    assert (found.missing, found.undefined, found.failed) == ((), (), frozenset())


def test_matched_scores_a_failed_run_at_chance_and_its_partner_at_its_own_highest() -> None:
    ends: dict[tuple[str, int], Curve | str | None] = {
        ("batch", 3): "diverged", ("none", 4): "collapsed", ("batch", 5): "collapsed", ("none", 5): "diverged",
        ("batch", 6): "diverged", ("none", 6): LOW,
    }  # fmt: skip
    found = numbers(study(MATCHED), curved(ends))
    # the highest of the fast one is at epoch 2.5 too: 0.8; that of the low one, 0.35, needs not reach the target
    failed = {3: CHANCE - 0.56, 4: 0.8 - CHANCE, 5: 0.0, 6: CHANCE - 0.35}
    assert found.values == pytest.approx(dict.fromkeys(SEEDS, -0.01) | failed)
    assert (found.undefined, found.failed, found.hopeless) == ((), {3, 4, 5, 6}, False)
    assert found.failures is not None
    assert (found.failures.treatment, found.failures.control) == (3, 2)
    (claim,) = judged(study(MATCHED), curved({(arm, seed): "diverged" for arm in ("batch", "none") for seed in SEEDS}))
    assert claim.verdict.outcome == "invalid"


def test_matched_healthy_runs_that_share_no_level_have_no_value() -> None:
    at_target = Curve((1, 2, 3), (0.2, 0.3, 0.5), (0.2, 0.3, 0.4))  # at epoch 2.5: 0.35; the fast one at 0.75: 0.5
    ends: dict[tuple[str, int], Curve | str | None] = {
        ("none", 3): LOW, ("batch", 4): LOW, ("none", 5): at_target, ("none", 6): None,
    }  # fmt: skip
    for exploratory in (False, True):
        lacking = without(curved(ends), lambda run: run.arm == "batch" and run.seed == 7)
        found = numbers(study(MATCHED), lacking, exploratory=exploratory)
        assert found.values == pytest.approx({2: -0.01, 5: 0.15, 8: -0.01, 9: -0.01})
        assert found.missing == ("seed 7: no batch",)
        assert found.undefined == (
            "seed 6: no value of none", "seed 3: no train accuracy of 50 % in both",
            "seed 4: no train accuracy of 50 % in both",
        )  # fmt: skip
        assert found.undeclared == ()
    (claim,) = judged(study(MATCHED), curved(ends))
    assert claim.verdict.outcome == "untested"


def test_matched_is_read_at_each_rate_too() -> None:
    def outcome(run: Run) -> Any:
        status, columns = curved({})(run)
        if run.arm == "batch" and run.lr == 0.1:
            columns["accuracy_curve"] = Curve((1, 2, 3), (0.4, 0.8, 1.0), (0.8 + NOISE.get(run.seed, 0.0), 0.8, 0.8))
        return status, columns | {"val_accuracy": 0.9 if run.lr == 0.3 else 0.8}

    (claim,) = judged(study(MATCHED), outcome)
    means = {lr: verdict.effect and verdict.effect.deciding.mean for lr, verdict in claim.same_lr.items()}
    # at epoch 1.25, a quarter of the way from the first validation
    assert means == pytest.approx({0.1: 0.8 - 0.56, 0.3: -0.01, 1.0: -0.01})


# level, slope, interaction, worst


def test_level_is_how_far_an_arm_lies_above_a_number() -> None:
    spec = study({"shape": "level", "control": None, "reference": 0.8})

    def outcome(run: Run) -> Ended:
        return ("diverged", CHANCE) if run.seed == 9 else ("finished", 0.82 + NOISE.get(run.seed, 0))

    found = numbers(spec, outcome)
    assert found.values == pytest.approx(by_seed(0.02) | {9: CHANCE - 0.8})  # a failed run scores chance here too
    assert (found.failed, found.failures) == ({9}, None)
    (claim,) = judged(spec, lambda run: ("diverged", CHANCE))
    assert claim.verdict.outcome == "contradicted"  # a constant does not fail: there is something to compare


def test_slope_is_per_doubling_of_a_key() -> None:
    gains = {2.0: 0.01, 4.0: 0.05, 8.0: 0.03}

    def outcome(run: Run) -> Ended:
        gain = gains[depth_of(run)] + NOISE.get(run.seed, 0) * depth_of(run) if run.arm == "batch" else 0.0
        return "finished", 0.8 - 0.1 * math.log2(depth_of(run)) + gain

    two = numbers(study({"shape": "slope", "over": "model.depth"}, axes=DEPTHS), outcome)
    one = numbers(study({"shape": "slope", "over": "model.depth", "control": None}, axes=DEPTHS), outcome)
    for seed in SEEDS:
        line = [gains[depth] + NOISE[seed] * depth for depth in gains]
        expected = scipy_stats.linregress([1, 2, 3], line).slope
        assert two.values[seed] == pytest.approx(expected)
        assert one.values[seed] == pytest.approx(expected - 0.1)


def test_slope_over_arms() -> None:
    levels = {"none": 1, "batch": 2, "group": 8}
    spec = study({"shape": "slope", "treatment": None, "control": None, "levels": levels}, arms=("group", *levels))
    scores = {"none": 0.5, "batch": 0.4, "group": 0.9}
    outcome = two_arms(0.0, 0.0)

    def scored(run: Run) -> Ended:
        return "finished", scores[run.arm] + 0.1 * (run.lr == 0.3) + NOISE.get(run.seed, 0) * levels[run.arm]

    found = numbers(spec, scored)
    for seed in SEEDS:
        line = [scores[arm] + NOISE[seed] * level for arm, level in levels.items()]
        assert found.values[seed] == pytest.approx(scipy_stats.linregress([0, 1, 3], line).slope)
    lost = numbers(spec, without(outcome, lambda run: run == Run("group", 0.3, 5)))
    assert lost.missing == ("8, seed 5: no group",)
    assert 5 not in lost.values


def test_slope_needs_all_its_declared_levels() -> None:
    spec = study({"shape": "slope", "over": "model.depth"}, axes=DEPTHS)
    lost = numbers(spec, without(two_arms(0.0), lambda run: run.at == (4,)))
    assert lost.missing == ("model.depth 4: no run",)
    single = numbers(spec, without(two_arms(0.0), lambda run: run.at != (4,)))
    assert (dict(single.values), single.missing[0]) == ({}, "model.depth: two levels at least")
    seed = numbers(spec, without(two_arms(0.0), lambda run: run == Run("batch", 0.3, 5, (8,))))
    assert seed.missing == ("8, seed 5: no batch",)


def test_interaction_is_the_difference_of_two_differences() -> None:
    arms = {"none": 0.50, "batch": 0.60, "group": 0.70, "layer": 0.73}
    spec = study({"shape": "interaction", "against": ["layer", "group"]}, arms=arms)

    def outcome(run: Run) -> Ended:
        return "finished", arms[run.arm] + (run.arm == "layer") * NOISE.get(run.seed, 0)

    found = numbers(spec, outcome)
    assert found.values == pytest.approx({seed: 0.10 - 0.03 - NOISE[seed] for seed in SEEDS})
    failing = numbers(spec, without(outcome, lambda run: run.arm == "layer" and run.seed == 3, "collapsed"))
    assert failing.values[3] == pytest.approx(0.10 - (CHANCE - 0.70))
    assert failing.failed == {3}
    lost = numbers(spec, without(outcome, lambda run: run.arm == "layer" and run.seed == 3))
    assert lost.missing == ("there, seed 3: no layer",)


@pytest.mark.parametrize(("measure", "worst"), [("val_accuracy", min), ("train_accuracy", min), ("val_loss", max)])
def test_worst_is_that_of_each_seed_and_arm_whatever_its_level(measure: str, worst: Any) -> None:
    spec = study({"shape": "worst", "over": "model.depth", "measure": measure, "margin": 0.01}, axes=DEPTHS)
    values = {
        (arm, depth, seed): float(np.random.default_rng([depth, seed, arm == "batch"]).uniform(0.3, 0.9))
        for arm in spec.arms for depth in (2, 4, 8) for seed in (0, 1, *SEEDS)
    }  # fmt: skip

    def outcome(run: Run) -> Ended:
        chosen = run.lr == 0.3
        value = values[run.arm, int(depth_of(run)), run.seed]
        return "finished", {"accuracy": 0.9 if chosen else 0.2, measure: value if chosen else 0.2}

    found = numbers(spec, outcome)
    ends = {(arm, seed): worst(values[arm, depth, seed] for depth in (2, 4, 8)) for arm in spec.arms for seed in SEEDS}
    assert found.values == pytest.approx({seed: ends["batch", seed] - ends["none", seed] for seed in SEEDS})


def test_worst_counts_a_failed_level_at_chance_and_needs_every_level() -> None:
    spec = study({"shape": "worst", "over": "model.depth"}, axes=DEPTHS)
    plain = two_arms(0.03, 0.0)
    failing = numbers(spec, without(plain, lambda run: run.arm == "batch" and run[2:] == (5, (8,)), "collapsed"))
    base = 0.85 + 0.003 * math.sin(5)
    assert failing.values == pytest.approx(dict.fromkeys(SEEDS, 0.03) | {5: CHANCE - base})
    assert failing.failed == {5}
    assert failing.failures is not None
    assert (failing.failures.treatment, failing.failures.control) == (1, 0)
    lost = numbers(spec, without(plain, lambda run: run.arm == "batch" and run[2:] == (5, (8,))))
    assert (lost.missing, set(lost.values)) == (("seed 5: not all of batch",), set(SEEDS) - {5})
    level = numbers(spec, without(plain, lambda run: run.at == (8,)))
    assert level.missing == ("model.depth 8: no run",)
    free = numbers(spec, without(plain, lambda run: run.at == (8,)), exploratory=True)
    assert free.missing == ()


def test_worst_goes_over_names_and_null_too() -> None:
    spec = study({"shape": "worst", "over": "data.train_limit"}, {"shape": "worst", "over": "data.augment"},
                 axes={"data.train_limit": [500, None], "data.augment": ["flip", "none"]})  # fmt: skip
    scores = {(500, "flip"): 0.6, (None, "flip"): 0.9, (500, "none"): 0.5, (None, "none"): 0.95}

    def outcome(run: Run) -> Ended:
        return "finished", scores[run.at] if run.arm == "batch" else 0.4  # type: ignore[index]

    claims = judged(spec, outcome)
    found = {(claim.comparison.over, claim.stratum): claim.values[2] for claim in claims}
    assert found == pytest.approx({
        ("data.train_limit", "flip"): 0.2, ("data.train_limit", "none"): 0.1,
        ("data.augment", "train limit 500"): 0.1, ("data.augment", "train limit none"): 0.5,
    })  # fmt: skip
    lost = judged(spec, without(outcome, lambda run: run.at[0] is None))
    assert "data.train_limit None: no run" in lost[0].verdict.incomplete


def test_a_stratum_is_compared_by_itself() -> None:
    spec = study(axes={"model.activation": ["relu", "tanh"]})
    effects = {"relu": 0.02, "tanh": -0.04}

    def outcome(run: Run) -> Ended:
        return two_arms(effects[str(run.at[0])])(run)

    for act, effect in effects.items():
        assert numbers(spec, outcome, group=act).values == pytest.approx(by_seed(effect))
