"""Simulated studies are what they are said to be, and are judged as the product judges."""

from __future__ import annotations

import numpy as np
import pytest

from bnexp.analysis.choice import Term
from bnexp.analysis.rule import Rule
from bnexp.analysis.worlds import FAILED_AT, SHARED, TunedStudies, TunedWorld, joined, judge_studies

LADDER = (-1.0, 0.0, -0.5, -2.0)
OTHER = (0.0, 0.0, -3.0, -0.2)
RULE = Rule("higher", 1.0)


@pytest.mark.parametrize("noise", ["gaussian", "skewed", "growing", "failing"])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_the_best_rates_differ_by_the_effect(noise: str, effect: float) -> None:
    world = TunedWorld(noise, LADDER, OTHER, effect)  # type: ignore[arg-type]
    # where runs fail, the control's best rate is its first, at which none does, and so is the treatment's
    assert world.truth == pytest.approx(effect + (1.0 if noise == "failing" else 0.0))
    studies = world.draw(np.random.default_rng(0), 5_000, 6)
    best = [float(arm.scores.mean(axis=(0, 1)).max()) for arm in (studies.control, studies.treatment)]
    assert best[1] - best[0] == pytest.approx(world.truth, abs=0.05)


def test_seeds_share_luck_between_the_arms_and_validation_shares_it_with_test() -> None:
    studies = TunedWorld("gaussian", LADDER, LADDER).draw(np.random.default_rng(0), 5_000, 6)
    control, treatment = studies.control, studies.treatment
    shared = np.corrcoef(control.scores[:, :, 1].ravel(), treatment.scores[:, :, 1].ravel())[0, 1]
    assert shared == pytest.approx(SHARED, abs=0.02)
    assert np.corrcoef(control.votes[:, :, 1].ravel(), control.scores[:, :, 1].ravel())[0, 1] == pytest.approx(
        1 / np.sqrt(1 + 0.5**2), abs=0.02
    )


def test_failures_grow_along_the_ladder_and_score_chance() -> None:
    studies = TunedWorld("failing", LADDER, LADDER).draw(np.random.default_rng(0), 5_000, 6)
    for arm in (studies.control, studies.treatment):
        assert arm.failed.mean(axis=(0, 1)) == pytest.approx([0, 1 / 30, 2 / 30, 0.1], abs=0.006)
        assert (arm.scores[arm.failed] == FAILED_AT).all()
        assert (arm.votes[arm.failed] == FAILED_AT).all()


def test_a_gain_is_judged_as_if_every_run_had_gained_it() -> None:
    studies = TunedWorld("skewed", LADDER, OTHER).draw(np.random.default_rng(1), 60, 7)
    arm = studies.treatment
    better = TunedStudies(studies.control, Term(1.0, arm.votes + 1.5, arm.scores + 1.5, arm.failed))
    by_gain, by_draw = judge_studies(studies, RULE, gains=(1.5,))[0], judge_studies(better, RULE)[0]
    for name in ("side", "direction", "size", "equivalence", "low", "high"):
        assert getattr(by_gain, name) == pytest.approx(getattr(by_draw, name)), name


def test_studies_judged_in_parts_are_those_judged_at_once() -> None:
    studies = TunedWorld("growing", LADDER, OTHER).draw(np.random.default_rng(2), 30, 6)
    parts = [judge_studies(studies.rows(slice(k, k + 10)), RULE)[0] for k in (0, 10, 20)]
    whole = judge_studies(studies, RULE)[0]
    assert joined(parts).low == pytest.approx(whole.low)
    assert joined(parts).direction == pytest.approx(whole.direction)
