"""Simulated studies whose truth is known, to measure how often the rule errs and finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.choice import Term, chosen_rates, ends_of_choice
from bnexp.analysis.rule import Decision, Ends, Rule, decide, ends_of, weigh
from bnexp.analysis.significance import Array
from bnexp.analysis.tuned import LEAST_BEHIND
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


Noise = Literal["gaussian", "skewed", "growing", "failing"]
OWN_SD, SHARED = 1.0, 0.3  # points of one run, and the part of its variance that its seed gives to both arms
GROWTH = (0.5, 2.0)  # what the noise at the first and at the last rate is multiplied by where it grows
FAILING = 0.1  # chance of a run at the last rate to fail; it falls evenly to 0 at the first
LEAST_BEHIND_POINTS = 100 * LEAST_BEHIND
FAILED_AT = -80.0  # points: chance, where healthy runs score 90 %
CHUNK = 500  # studies judged at once, so that their resamples fit into a few dozen MiB


@dataclass(frozen=True)
class TunedWorld:
    """Two arms that each train every rate of a ladder with every seed; all in points.

    Attributes:
        noise: of a run's own part: normal; exponential with its tail to the bad side; normal and growing along the
            ladder; normal with failures, whose chance grows along the ladder alike in both arms.
        control, treatment: true means of healthy runs at each rate.
        effect: what the treatment's best rate gains; each of its healthy runs gains that, and a little more where some
            fail.
        vote_sd: of what validation adds to the luck of a run.
    """

    noise: Noise
    control: tuple[float, ...]
    treatment: tuple[float, ...]
    effect: float = 0.0
    vote_sd: float = 0.5

    @property
    def truth(self) -> float:
        """Treatment − control, each at the rate with its best true mean."""
        return float(self._means(self._healthy_treatment()).max() - self._means(self.control).max())

    def draw(self, rng: np.random.Generator, num_studies: int, num_seeds: int) -> TunedStudies:
        size = (num_studies, num_seeds, len(self.control))
        shared = math.sqrt(SHARED) * OWN_SD * rng.standard_normal((num_studies, num_seeds, 1))
        terms = []
        for weight, means in ((-1.0, np.array(self.control)), (1.0, self._healthy_treatment())):
            failed = rng.random(size) < self.fails
            scores = means + shared + math.sqrt(1 - SHARED) * OWN_SD * self._own(rng, size)
            votes = scores + self.vote_sd * rng.standard_normal(size)
            terms.append(Term(weight, np.where(failed, FAILED_AT, votes), np.where(failed, FAILED_AT, scores), failed))
        return TunedStudies(terms[0], terms[1])

    @property
    def fails(self) -> Array:
        """(rates,) the chance of a run to fail."""
        return np.linspace(0.0, FAILING if self.noise == "failing" else 0.0, len(self.control))

    def _healthy_treatment(self) -> Array:
        """(rates,) true means of the treatment's healthy runs: its best rate is `effect` better, failures included."""
        before = self._means(self.treatment)
        least = (before.max() + self.effect - before) / (1 - self.fails)
        return np.asarray(np.array(self.treatment) + least.min())

    def _means(self, healthy: Array | tuple[float, ...]) -> Array:
        return np.asarray((1 - self.fails) * np.asarray(healthy) + self.fails * FAILED_AT)

    def _own(self, rng: np.random.Generator, size: tuple[int, int, int]) -> Array:
        """(size) with mean 0, and standard deviation 1 where it does not grow."""
        if self.noise == "skewed":
            return 1 - rng.standard_exponential(size)
        factor = np.linspace(*GROWTH, size[2]) if self.noise == "growing" else 1.0
        return np.asarray(factor * rng.standard_normal(size))


@dataclass(frozen=True)
class TunedStudies:
    """Simulated studies, one a row, with what every run of both arms scored."""

    control: Term
    treatment: Term

    def rows(self, kept: slice) -> TunedStudies:
        return TunedStudies(
            *(Term(t.weight, t.votes[kept], t.scores[kept], t.failed[kept]) for t in (self.control, self.treatment))
        )

    def ends(self) -> Ends:
        """The ends of treatment − control, as the product makes them."""
        terms = (self.treatment, self.control)
        failed = np.zeros(len(self.control.votes), dtype=np.bool_)
        for term in terms:
            at = chosen_rates(term.votes)[:, None, None]
            failed |= np.take_along_axis(term.failed, at, axis=2).any(axis=(1, 2))
        return ends_of_choice(terms, failed=failed, least_behind=LEAST_BEHIND_POINTS)[0]


@dataclass(frozen=True)
class Judged:
    """What the rule says of simulated studies, before the correction for a family; every field is (rows,).

    Attributes:
        side, direction, size, equivalence: as in `rule.Evidence`.
        low, high: of the interval at 1 − alpha.
    """

    side: Array
    direction: Array
    size: Array
    equivalence: Array
    low: Array
    high: Array


def judge_studies(studies: TunedStudies, rule: Rule, *, gains: Sequence[float] = (0.0,)) -> list[Judged]:
    """What the rule says where the treatment's every score and vote is that much higher; one answer a gain."""
    found: list[list[Judged]] = [[] for _ in gains]
    for first in range(0, len(studies.control.votes), CHUNK):
        ends = studies.rows(slice(first, first + CHUNK)).ends()
        for gain, parts in zip(gains, found, strict=True):
            parts.append(judge_ends(raised_by(ends, gain), rule))
    return [joined(parts) for parts in found]


def joined(parts: Sequence[Judged]) -> Judged:
    return Judged(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Judged)}
    )


def judge_ends(ends: Ends, rule: Rule) -> Judged:
    evidence = weigh(ends, rule, only_below=rule.alpha)
    low, high = ends.interval(rule.alpha)
    return Judged(evidence.side, evidence.direction, evidence.size, evidence.equivalence, low, high)


def raised_by(ends: Ends, gain: float) -> Ends:
    """The ends of numbers that are all that much higher; no choice of a rate changes with it."""
    return replace(
        ends,
        mean=ends.mean + gain,
        lower=ends.lower._replace(mean=ends.lower.mean + gain),
        upper=ends.upper._replace(mean=ends.upper.mean + gain),
        lower_values=ends.lower_values + gain,
        upper_values=ends.upper_values + gain,
    )
