"""Verdicts for new seeds and new test images: the interval of a two-way analysis of variance, by statsmodels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from by_hand import TWO, effect_of, flattery, interval, ladder, plausible
from made_up import CHANCE, SEEDS, Ended, Outcome, Run, runs_of, selected, study, whole, without
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from bnexp.analysis.claims import ClaimVerdict, judge_study
from bnexp.study import StudySpec

NUM_IMAGES = 20
STRICT = 0.01


@dataclass
class Answers:
    """Whether each run was right about each image, in the shape that a selection has its test images in."""

    right: dict[str, np.ndarray]
    per_seed: bool = False
    overlap: float = 0.0

    def scores(self, run_ids: Sequence[str]) -> np.ndarray | None:
        if not all(run_id in self.right for run_id in run_ids):
            return None
        return np.stack([self.right[run_id] for run_id in run_ids])

    def are_same(self, run_ids: Sequence[str]) -> bool:
        return bool(run_ids)


def answered(run: Run, case: int) -> np.ndarray:
    """Images differ in difficulty, for the one arm more than for the other."""
    rng = np.random.default_rng([case, *map(ord, run.arm[:2]), round(10 * run.lr), run.seed])
    hard = np.random.default_rng([case, ord(run.arm[0])]).uniform(0.05, 0.95, NUM_IMAGES)
    return (rng.uniform(size=NUM_IMAGES) < hard + (0.1 if run.arm == "batch" else 0.0)).astype(float)


def scored(case: int) -> Outcome:
    """Validation tells the rates apart as little as test does."""

    def outcome(run: Run) -> Ended:
        test = float(answered(run, case).mean())
        luck = np.random.default_rng([case, run.seed, round(10 * run.lr)]).normal(0, 0.02)
        return "finished", {"accuracy": 0.9, "test_accuracy": test, "val_accuracy": test + luck}

    return outcome


def answers(spec: StudySpec, case: int, **options: Any) -> Answers:
    return Answers({f"{run}": answered(run, case) for run in runs_of(spec)}, **options)


def judged_with(spec: StudySpec, outcome: Outcome, images: Answers | None) -> ClaimVerdict:
    found = replace(selected(spec, outcome), images=images)  # type: ignore[arg-type]
    (claim,) = judge_study(found, spec, declared=whole(spec))
    return claim


def crossed(differences: np.ndarray) -> tuple[float, float, float]:
    """Variance of the mean over seeds and images, the part of the images, and the degrees of freedom."""
    num, size = differences.shape
    seed, image = np.indices(differences.shape)
    frame = pd.DataFrame({"y": differences.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = anova_lm(ols("y ~ C(seed) + C(image)", frame).fit())
    square = (table["sum_sq"] / table["df"]).to_dict()
    seeds, images, rest = square["C(seed)"], square["C(image)"], square["Residual"]
    extra = max(0.0, images - rest)
    spread = seeds**2 / (num - 1)
    if extra:
        spread += images**2 / (size - 1) + rest**2 / ((num - 1) * (size - 1))
    return (seeds + extra) / (num * size), extra / (num * size), (seeds + extra) ** 2 / spread


def differences_at(case: int, rates: tuple[float, float], seeds: Sequence[int] = SEEDS) -> np.ndarray:
    one, other = (
        np.stack([answered(Run(arm, lr, seed), case) for seed in seeds])
        for arm, lr in zip(("batch", "none"), rates, strict=True)
    )
    return one - other


@pytest.mark.parametrize("case", range(4))
def test_at_one_rate_the_interval_is_that_of_seeds_and_images_crossed(case: int) -> None:
    spec = study(rates=(0.1,))
    claim = judged_with(spec, scored(case), answers(spec, case))
    table = differences_at(case, (0.1, 0.1))
    variance, _, degrees = crossed(table)
    half = scipy_stats.t.isf(0.025, degrees) * math.sqrt(variance)
    assert interval(effect_of(claim)) == pytest.approx((table.mean() - half, table.mean() + half))
    parts = claim.contrast.crossed if claim.contrast else None
    assert parts is not None
    assert (parts.variance, parts.degrees) == pytest.approx((variance, degrees))
    # wider than for new seeds on these images, which is what is said without predictions
    alone = judged_with(spec, scored(case), None)
    known = scipy_stats.ttest_1samp(table.mean(axis=1), 0).confidence_interval(0.95)
    assert interval(effect_of(alone)) == pytest.approx((known.low, known.high))
    assert parts.images > 0
    assert math.sqrt(variance) > scipy_stats.sem(table.mean(axis=1))


@pytest.mark.parametrize("case", range(4))
def test_every_rate_that_is_held_against_has_its_own_images(case: int) -> None:
    spec = study(rates=TWO)
    outcome = scored(case)
    claim = judged_with(spec, outcome, answers(spec, case))
    arms = {arm: ladder(outcome, arm) for arm in ("batch", "none")}
    best = {arm: int(one.votes.mean(axis=0).argmax()) for arm, one in arms.items()}
    curse = {arm: flattery(one) for arm, one in arms.items()}
    ends = {}
    for sign, own, other in ((1, "batch", "none"), (-1, "none", "batch")):
        guard = max(0.0, curse[own][0] - curse[other][1])
        found = []
        for k in plausible(arms[other].votes, STRICT):
            at = best | {other: k}
            table = differences_at(case, (TWO[at["batch"]], TWO[at["none"]]))
            variance, _, degrees = crossed(table)
            found.append(sign * table.mean() - guard - scipy_stats.t.isf(0.025, degrees) * math.sqrt(variance))
        ends[sign] = sign * min(found)
    assert interval(effect_of(claim)) == pytest.approx((ends[1], ends[-1]))


def test_where_a_prediction_is_missing_seeds_alone_are_judged() -> None:
    spec = study(rates=TWO)
    images, plain = answers(spec, 0), judged_with(spec, scored(0), None)
    del images.right[f"{Run('none', 0.3, 5)}"]
    claim = judged_with(spec, scored(0), images)
    assert claim.contrast is not None
    assert claim.contrast.crossed is None
    assert interval(effect_of(claim)) == interval(effect_of(plain))


@pytest.mark.parametrize("change", [{"measure": "val_accuracy"}, {"measure": "generalization_gap", "margin": 0.01}])
def test_what_is_no_mean_over_test_images_is_judged_over_seeds(change: dict[str, Any]) -> None:
    spec = study(change, rates=TWO)

    def outcome(run: Run) -> Ended:
        status, columns = scored(1)(run) or ("", {})
        return status, {**columns, "generalization_gap": 1.0 - columns["test_accuracy"]}  # type: ignore[dict-item,index]

    found = [judged_with(spec, outcome, images) for images in (answers(spec, 1), None)]
    assert interval(effect_of(found[0])) == interval(effect_of(found[1]))


@pytest.mark.parametrize("change", [{}, {"measure": "generalization_gap", "margin": 0.01}])
def test_splits_that_share_images_widen_every_interval(change: dict[str, Any]) -> None:
    spec = study(change, rates=(0.1,))

    def outcome(run: Run) -> Ended:
        status, columns = scored(2)(run) or ("", {})
        return status, {**columns, "generalization_gap": 1.0 - columns["test_accuracy"]}  # type: ignore[dict-item,index]

    claim = judged_with(spec, outcome, answers(spec, 2, per_seed=True, overlap=0.25))
    values = np.array(list(claim.values.values()))
    # Nadeau & Bengio: the variance of the mean is (1/n + test/train) s²
    half = scipy_stats.t.isf(0.025, 7) * math.sqrt(1 / 8 + 0.25) * values.std(ddof=1)
    assert interval(effect_of(claim)) == pytest.approx((values.mean() - half, values.mean() + half))
    assert claim.contrast is not None
    assert (claim.contrast.crossed, claim.contrast.overlap) == (None, pytest.approx(math.sqrt(3)))


def test_a_failed_control_leaves_the_images_their_part() -> None:
    """Raised to an average run it has no images of its own: the seeds' spread is that of the raised numbers."""
    spec, case, lost = study(rates=(0.1,)), 3, 4
    failing = without(scored(case), lambda run: run == Run("none", 0.1, lost), "diverged")
    images = answers(spec, case)
    always = np.zeros(NUM_IMAGES)
    always[: round(CHANCE * NUM_IMAGES)] = 1.0  # it names the largest class
    images.right[f"{Run('none', 0.1, lost)}"] = always
    claim = judged_with(spec, failing, images)
    table = differences_at(case, (0.1, 0.1))
    row = SEEDS.index(lost)
    table[row] = answered(Run("batch", 0.1, lost), case) - always
    variance, of_images, degrees = crossed(table)
    half = scipy_stats.t.isf(0.025, degrees) * math.sqrt(variance)
    control = np.array([answered(Run("none", 0.1, seed), case).mean() for seed in SEEDS])
    control[row] = np.delete(control, row).mean()
    lifted = np.array([answered(Run("batch", 0.1, seed), case).mean() for seed in SEEDS]) - control
    low = lifted.mean() - scipy_stats.t.isf(0.025, degrees) * math.sqrt(lifted.var(ddof=1) / 8 + of_images)
    assert interval(effect_of(claim)) == pytest.approx((low, table.mean() + half))
