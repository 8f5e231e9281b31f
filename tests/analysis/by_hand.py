"""What an interval over chosen rates should be, by plain loops and scipy alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from made_up import CHANCE, SEEDS, Ended, Outcome, Run
from scipy import stats as scipy_stats

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.verdicts import Effect

STRICT = 0.01  # a rate that the chosen one beats on validation at this one-sided level is not read
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


def plausible(votes: np.ndarray, level: float, *, least_behind: float = 0.0) -> list[int]:
    chosen = int(votes.mean(axis=0).argmax())
    behind = votes.mean(axis=0)[chosen] - votes.mean(axis=0)
    rates = range(votes.shape[1])
    return [k for k in rates if k == chosen or behind[k] <= least_behind or beaten_p(votes, chosen, k) > level]


def raised(one: Ladder) -> np.ndarray:
    scores = one.scores.copy()
    for seed, rate in zip(*np.nonzero(one.failed), strict=True):
        healthy = one.scores[~one.failed[:, rate], rate]
        if 2 * len(healthy) >= len(one.failed):
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
        # ties go to the first, however a mean is rounded
        validated = int(np.argmax([round(one.votes[rows, rate].mean(), 12) for rate in range(rates)]))
        best = int(np.argmax([round(scores[rows, rate].mean(), 12) for rate in range(rates)]))
        chosen.append(scores[rows, validated].mean() - usual[validated])
        hindsight.append(scores[rows, best].mean() - usual[best])
    return float(np.mean(chosen)), float(np.mean(hindsight))


def end_by_hand(ladders: Sequence[Ladder], sign: int, level: float, constant: float = 0.0) -> float:
    """The lower end, sign 1, or the upper one, −1: the worst of t intervals at every rate that the others may be at."""
    own = [one.weight * sign > 0 for one in ladders]
    curse = [flattery(one) for one in ladders]
    guard = sum(abs(one.weight) * (c[0] if mine else -c[1]) for one, mine, c in zip(ladders, own, curse, strict=True))
    places = []
    for one, mine in zip(ladders, own, strict=True):
        rates, best, failures = (
            plausible(one.votes, STRICT, least_behind=0.05),
            int(one.votes.mean(axis=0).argmax()),
            one.failed.sum(axis=0),
        )
        places.append([k for k in rates if k == best or (k < best and failures[k] > failures[best])] if mine else rates)
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
