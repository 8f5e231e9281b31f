"""Where a rate is chosen for another measure, where a seed is spared, and studies that had seeds for tuning alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from by_hand import TWO, drawn, effect_of, interval, ladder, plausible
from made_up import SEEDS, Outcome, judged, selected, study, whole, without
from scipy import stats as scipy_stats

from bnexp.analysis.choice import LOOSE
from bnexp.analysis.claims import judge_study, view_of
from bnexp.analysis.tuned import contrast_with_choice
from bnexp.analysis.verdicts import Verdict
from bnexp.study import StudySpec, study_from_dict

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
    places = {arm: plausible(columns["val_accuracy"], LOOSE) for arm, columns in arms.items()}
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
        for k in plausible(test.votes, LOOSE)
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
