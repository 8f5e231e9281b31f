"""What a verdict rests on besides its own numbers: premises that have to hold, and times that were taken alike."""

from __future__ import annotations

import math

import pytest
from made_up import NOISE, Ended, Outcome, Run, judged, study

from bnexp.errors import ConfigError

CLAIM = {"treatment": "noisy", "control": "batch", "direction": "lower"}
PREMISE = {"treatment": "batch", "control": "none", "role": "premise"}
ARMS = ("none", "batch", "noisy")


def arms(gain: float, loss: float, spread: float = 1.0) -> Outcome:
    """Batch gains over none, and noisy loses of it; of the gain, `spread` is the noise."""

    def outcome(run: Run) -> Ended:
        noise = NOISE.get(run.seed, 0.0)
        added = {"none": 0.0, "batch": gain + spread * noise, "noisy": gain - loss + (spread - 1) * noise}
        return "finished", 0.7 + added[run.arm]

    return outcome


@pytest.mark.parametrize(
    ("gain", "spread", "premise", "claim"),
    [
        (0.05, 1.0, "supported", "supported"),
        (0.0, 0.3, "negligible", "invalid"),
        (0.012, 1.0, "supported, direction only", "inconclusive"),
        (-0.05, 1.0, "contradicted", "invalid"),
        (-0.012, 1.0, "contradicted, direction only", "inconclusive"),
        (0.02, 5.0, "inconclusive", "inconclusive"),
    ],
)
def test_claim_is_drawn_where_its_premise_holds(gain: float, spread: float, premise: str, claim: str) -> None:
    spec = study(CLAIM, PREMISE, arms=ARMS, rates=(0.1,))
    found = judged(spec, arms(gain, 0.05, spread))
    assert [verdict.outcome for verdict in found] == [claim, premise]
    if claim != premise:
        assert found[0].verdict.effect is None
        assert found[0].verdict.reason == f"its premise is {premise}: batch against none in test accuracy (%)"


def test_premise_counts_in_its_own_stratum_alone() -> None:
    spec = study(CLAIM, PREMISE, arms=ARMS, rates=(0.1,), axes={"model.activation": ["relu", "tanh"]})

    def outcome(run: Run) -> Ended:
        return arms(0.05 if "relu" in run.at else 0.0, 0.05, 0.3)(run)

    found = {(claim.stratum, claim.comparison.role): claim.outcome for claim in judged(spec, outcome)}
    assert found == {("relu", "claim"): "supported", ("relu", "premise"): "supported",
                     ("tanh", "claim"): "invalid", ("tanh", "premise"): "negligible"}  # fmt: skip


def test_premise_that_has_not_run_leaves_the_claim_untested() -> None:
    spec = study(CLAIM, PREMISE, arms=ARMS, rates=(0.1,))
    found = judged(spec, lambda run: None if run.arm == "none" else arms(0.05, 0.05)(run))
    assert [verdict.outcome for verdict in found] == ["untested", "untested"]


def test_first_comparison_is_a_claim_and_a_role_has_a_name() -> None:
    with pytest.raises(ConfigError, match="the first comparison is the primary claim"):
        study(PREMISE, CLAIM, arms=ARMS)
    with pytest.raises(ConfigError, match="'yes' is not one of claim, premise, context"):
        study(CLAIM, PREMISE | {"role": "yes"}, arms=ARMS)


def test_context_is_judged_in_a_family_of_its_own() -> None:
    """What is not on trial makes the claims no harder."""
    context = {"treatment": "noisy", "control": "none", "role": "context"}
    alone = judged(study(CLAIM, arms=ARMS, rates=(0.1,)), arms(0.05, 0.05, 2.0))
    beside = judged(study(CLAIM, context, context | {"margin": 0.02}, arms=ARMS, rates=(0.1,)), arms(0.05, 0.05, 2.0))
    rival = judged(study(CLAIM, context | {"role": "claim"}, arms=ARMS, rates=(0.1,)), arms(0.05, 0.05, 2.0))
    p_of_claim = [found[0].verdict.effect.p_direction for found in (alone, beside, rival) if found[0].verdict.effect]
    assert p_of_claim[0] == p_of_claim[1] < p_of_claim[2]
    levels = [found[0].verdict.effect.level for found in (alone, beside, rival) if found[0].verdict.effect]
    assert levels == pytest.approx([0.95, 0.95, 0.975])


def test_margin_of_a_slope_is_the_tiers_over_all_levels() -> None:
    spec = study({"shape": "slope", "over": "model.depth", "margin": None}, axes={"model.depth": [2, 4, 16]})
    assert spec.comparisons[0].margin == pytest.approx(0.01 / 3)  # three doublings
    levels = {"none": 2, "batch": 8}
    over_arms = {"shape": "slope", "levels": levels, "treatment": None, "control": None, "margin": None}
    assert study(over_arms).comparisons[0].margin == pytest.approx(0.01 / 2)


def test_within_the_margin_is_settled_by_the_tier() -> None:
    reach = {"shape": "reach", "over": "model.depth", "within": "margin", "margin": 2}
    assert study(reach, axes={"model.depth": [2, 4]}).comparisons[0].within == 0.01


@pytest.mark.parametrize(("where", "outcome"), [("alone", "supported"), ("in a stack", "invalid")])
def test_times_that_were_taken_otherwise_are_not_compared(where: str, outcome: str) -> None:
    spec = study({"measure": "train_seconds", "shape": "ratio", "direction": "lower", "margin": 1.25})

    def run_of(run: Run) -> Ended:
        noise = 10 * NOISE.get(run.seed, 0.0)
        seconds = 2.0 + noise if run.arm == "batch" else 4.0
        return "finished", {"accuracy": 0.8, "train_seconds": seconds, "timed": where if run.seed == 3 else "alone"}

    (claim,) = judged(spec, run_of)
    assert claim.outcome == outcome
    if outcome == "invalid":
        assert claim.verdict.reason == "its runs were not timed alike: alone and in a stack"


@pytest.mark.parametrize(("share", "outcome"), [(0.94, "invalid"), (0.97, "supported"), (math.nan, "supported")])
def test_times_of_a_busy_machine_are_not_compared(share: float, outcome: str) -> None:
    spec = study({"measure": "train_seconds", "shape": "ratio", "direction": "lower", "margin": 1.25}, {})

    def run_of(run: Run) -> Ended:
        seconds = (2.0 if run.arm == "batch" else 4.0) + 10 * NOISE.get(run.seed, 0.0)
        shares = {"batch": 0.99, "none": share}
        taken = {"train_seconds": seconds, "timed": "alone", "core_share": shares[run.arm]}
        return "finished", {"accuracy": 0.8, **taken}

    times, accuracy = judged(spec, run_of)
    assert (times.outcome, accuracy.outcome) == (outcome, "negligible")
    if outcome == "invalid":
        assert times.verdict.reason == (
            "its runs had a core for 94 % of their seconds (none): they waited for other work, and times say nothing"
        )


def test_times_of_runs_that_shared_a_gpu_are_not_compared() -> None:
    spec = study({"measure": "train_seconds", "shape": "ratio", "direction": "lower", "margin": 1.25}, {})

    def run_of(run: Run) -> Ended:
        seconds = (2.0 if run.arm == "batch" else 4.0) + 10 * NOISE.get(run.seed, 0.0)
        return "finished", {"accuracy": 0.8, "train_seconds": seconds, "in_flight": 4}

    times, accuracy = judged(spec, run_of)
    assert (times.outcome, accuracy.outcome) == ("invalid", "negligible")
    assert times.verdict.reason.startswith("up to 4 runs or stacks had its GPU at once, and times say")
