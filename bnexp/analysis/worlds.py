"""Simulated studies whose truth is known, to measure how often the rule errs and finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.rule import Decision, Rule, decide, ends_of, weigh
from bnexp.analysis.significance import Array
from bnexp.comparison import Direction

Shape = Literal["normal", "skewed"]
SEED_SD, RUN_SD = 0.02, 0.01  # what the seed does to both arms, and what is each run's own
HEALTHY, CHANCE = 0.9, 0.1


@dataclass(frozen=True)
class World:
    """Two arms with accuracies of 0.9 or so, whose pairs share what their seed does to them.

    Attributes:
        shape: of a run's own part: normal, or exponential with its tail to the bad side.
        effect: what the treatment adds to each of its healthy runs; with equal failure rates of 0, the true mean.
        treatment_fails, control_fails: chance of a run to fail, independently; it then scores 0.1.
    """

    shape: Shape = "normal"
    effect: float = 0.0
    treatment_fails: float = 0.0
    control_fails: float = 0.0

    @property
    def sd(self) -> float:
        """Of the per-seed differences where no run fails."""
        return RUN_SD * math.sqrt(2)

    def draw(self, rng: np.random.Generator, num_studies: int, num_pairs: int) -> tuple[Array, NDArray[np.bool_]]:
        """Differences and whether a failed run is behind each, both (num_studies, num_pairs)."""
        size = (num_studies, num_pairs)
        shared = SEED_SD * rng.standard_normal(size)
        treatment = HEALTHY + shared + RUN_SD * self._own(rng, size) + self.effect
        control = HEALTHY + shared + RUN_SD * self._own(rng, size)
        treatment_failed, control_failed = (
            rng.random(size) < self.treatment_fails,
            rng.random(size) < self.control_fails,
        )
        differences = np.where(treatment_failed, CHANCE, treatment) - np.where(control_failed, CHANCE, control)
        return differences, treatment_failed | control_failed

    def _own(self, rng: np.random.Generator, size: tuple[int, int]) -> Array:
        """(size) with mean 0 and standard deviation 1."""
        if self.shape == "normal":
            return rng.standard_normal(size)
        return 1 - rng.standard_exponential(size)


# arms that do not differ, in every way that a rule might fall for
SAME_ARMS = {
    "normal": World(),
    "skewed": World("skewed"),
    "3 % fail": World(treatment_fails=0.03, control_fails=0.03),
    "20 % fail": World(treatment_fails=0.2, control_fails=0.2),
    "45 % fail": World(treatment_fails=0.45, control_fails=0.45),
}


def outcome_rates(
    world: World,
    *,
    num_pairs: int,
    margin: float,
    direction: Direction = "higher",
    family_size: int = 1,
    num_studies: int = 2_000,
    seed: int = 0,
) -> dict[Decision, float]:
    """The share of simulated studies with each outcome.

    Args:
        margin: in accuracy, as a fraction.
        family_size: comparisons in the family, of which this one is tested at Holm's first level.
        seed: of the simulation.
    """
    differences, failed = world.draw(np.random.default_rng(seed), num_studies, num_pairs)
    rule = Rule(direction, margin)
    level = replace(rule, alpha=rule.alpha / family_size)
    evidence = weigh(ends_of(differences, failed=np.asarray(failed.any(axis=-1))), level, only_below=level.alpha)
    outcomes = decide(evidence, level, num_pairs=num_pairs)
    return {decision: float((outcomes == decision).mean()) for decision in get_args(Decision)}
