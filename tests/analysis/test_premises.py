"""What a verdict rests on besides its own numbers: premises that have to hold, and times that were taken alike."""

from __future__ import annotations

import pytest
from made_up import NOISE, Ended, Outcome, Run, judged, study

from bnexp.errors import ConfigError

CLAIM = {"treatment": "noisy", "control": "batch", "direction": "lower"}
PREMISE = {"treatment": "batch", "control": "none", "premise": True}
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
        (-0.05, 1.0, "contradicted", "invalid"),
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

    found = {(claim.stratum, claim.comparison.premise): claim.outcome for claim in judged(spec, outcome)}
    assert found == {("relu", False): "supported", ("relu", True): "supported",
                     ("tanh", False): "invalid", ("tanh", True): "negligible"}  # fmt: skip


def test_premise_that_has_not_run_leaves_the_claim_untested() -> None:
    spec = study(CLAIM, PREMISE, arms=ARMS, rates=(0.1,))
    found = judged(spec, lambda run: None if run.arm == "none" else arms(0.05, 0.05)(run))
    assert [verdict.outcome for verdict in found] == ["untested", "untested"]


def test_premise_stands_behind_what_rests_on_it() -> None:
    with pytest.raises(ConfigError, match="a premise stands behind the comparison that needs it"):
        study(PREMISE, CLAIM, arms=ARMS)
    with pytest.raises(ConfigError, match="expected true or false"):
        study(CLAIM, PREMISE | {"premise": "yes"}, arms=ARMS)


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
