"""What a claim comes down to: one number per seed, so that one rule judges every shape of claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnexp.analysis.rule import Ends, ends_of_readings
from bnexp.analysis.significance import Array, mcnemar_p
from bnexp.analysis.spread import Crossed
from bnexp.analysis.stats import pairing_gain
from bnexp.errors import StoreError

CEILING = 10.0  # budgets that a censored run may have needed: what PAR10 charges, see `epochs_ratio`


@dataclass(frozen=True)
class Arm:
    """An arm's scores.

    Attributes:
        name: as the report calls it.
        scores: seed -> the metric in its stored unit. A seed whose run is missing or crashed is left out; one whose run
            is there and has no value of the metric is nan. Its pair is incomplete in either case.
        failed: seeds whose run diverged or collapsed; their score is chance.
        partial: seeds of which some runs are missing, where several make one score.

    Raises:
        ValueError: a failed seed has no entry in the scores.
    """

    name: str
    scores: Mapping[int, float]
    failed: frozenset[int] = frozenset()
    partial: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.failed <= set(self.scores):
            raise ValueError(f"arm {self.name!r}: a failed run scores chance, so it needs a score")

    def has(self, seed: int) -> bool:
        return math.isfinite(self.scores.get(seed, math.nan))

    def has_runs(self, seed: int) -> bool:
        return seed in self.scores and seed not in self.partial

    def lack(self, seed: int) -> str:
        """What keeps a seed from having a number."""
        if seed in self.partial:
            return f"not all of {self.name}"
        return f"no value of {self.name}" if seed in self.scores else f"no {self.name}"


@dataclass(frozen=True)
class Failures:
    """Failed pairs: of each arm, of that arm alone, and McNemar's exact p that the arms fail alike."""

    treatment: int
    control: int
    only_treatment: int
    only_control: int
    p: float


@dataclass(frozen=True)
class Choice:
    """How learning rates were chosen; a cell is an arm in a stratum.

    Attributes:
        chosen: cell -> its rate.
        plausible: cell -> the rates that validation cannot tell from the chosen one.
        same: the share of resamples of the seeds in which every cell chooses the rate that it chose.
        lower_at, upper_at: cell -> its rate where the lower and the upper end are farthest; empty where every
            combination of plausible rates was read.
        by_failures: cell -> a rate below the chosen one at which more of its runs failed, and at which an end is
            farthest, because the chosen one was lucky then.
        partial: there were too many combinations, and in each that was read one cell alone is not at its chosen rate.
    """

    chosen: Mapping[tuple[str, str], float]
    plausible: Mapping[tuple[str, str], tuple[float, ...]]
    same: float
    lower_at: Mapping[tuple[str, str], float]
    upper_at: Mapping[tuple[str, str], float]
    partial: bool = False
    by_failures: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """One number per seed.

    Attributes:
        values: seed -> number; a mean above 0 speaks for `higher`.
        missing: runs that are not there, a phrase each, such as `seed 3: no batch`.
        undefined: the same where the runs are there and a measure has no value, such as `seed 3: no value of batch`.
        failed: seeds with a failed or censored run behind their number.
        bounds: other readings of the same runs where they leave the number open, all seeds at the one extreme and all
            at the other: a verdict must hold in all of them, and its interval spans all of theirs. None where the
            numbers are known exactly.
        failures: where two arms are compared.
        gain: how many times smaller pairing made the variance of the mean; nan where there are no two arms.
        undeclared: seeds that an arm has and the declaration has not; they are left out.
        hopeless: every run behind every number failed, so that their being alike says nothing.
        ends: what an interval has to hold in, where that is more than these numbers and their bounds: the learning
            rates that could have been chosen, the test images.
        left_out: the ends without each of the seeds in turn.
        crossed: the variance of the mean over seeds and test images; None where images are no part of it.
        overlap: what the standard error is multiplied by, for splits that share their images.
        choice: where learning rates were chosen.
    """

    values: Mapping[int, float]
    missing: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    failed: frozenset[int] = frozenset()
    bounds: tuple[Mapping[int, float], ...] = ()
    failures: Failures | None = None
    gain: float = math.nan
    undeclared: tuple[int, ...] = ()
    hopeless: bool = False
    ends: Ends | None = None
    left_out: tuple[Ends, ...] = ()
    crossed: Crossed | None = None
    overlap: float = 1.0
    choice: Choice | None = None

    def all_ends(self) -> Ends:
        """The ends; of these numbers and their bounds alone where nothing else was given. Two seeds at least."""
        if self.ends is not None:
            return self.ends
        seeds = list(self.values)
        readings = np.array([[[reading[seed] for seed in seeds] for reading in (self.values, *self.bounds)]])
        return ends_of_readings(readings[:, 0], readings, failed=bool(self.failed))


def arm_of(name: str, runs: Iterable[tuple[int, float, bool]]) -> Arm:
    """An arm from one (seed, score, failed) a run.

    Raises:
        StoreError: two runs share a seed; which of them counts is nobody's to guess.
    """
    scores: dict[int, float] = {}
    failed = set()
    for seed, score, has_failed in runs:
        if seed in scores:
            raise StoreError(f"arm {name!r}: seed {seed} occurs twice, so its pair is ambiguous")
        scores[seed] = score
        if has_failed:
            failed.add(seed)
    return Arm(name, scores, frozenset(failed))


def alone(arm: Arm, *, seeds: Collection[int] | None = None) -> Contrast:
    """An arm by itself: for a slope over its own scores, or a per-seed number made elsewhere.

    Args:
        seeds: those declared; None: those it has.
    """
    wanted = sorted(arm.scores if seeds is None else seeds)
    scored = [seed for seed in wanted if arm.has(seed)]
    missing, undefined = _lacking(wanted, arm)
    return Contrast(
        values={seed: arm.scores[seed] for seed in scored},
        missing=missing,
        undefined=undefined,
        failed=arm.failed & set(scored),
        undeclared=tuple(sorted(set(arm.scores) - set(wanted))),
        hopeless=bool(scored) and set(scored) <= arm.failed,
    )


def paired(treatment: Arm, control: Arm, *, seeds: Collection[int] | None = None) -> Contrast:
    """Treatment − control by seed, never by position.

    Args:
        seeds: those declared; None: all that either arm has.
    """
    known = set(treatment.scores) | set(control.scores)
    wanted = sorted(known if seeds is None else seeds)
    both = [seed for seed in wanted if treatment.has(seed) and control.has(seed)]
    one, other = ([arm.scores[seed] for seed in both] for arm in (treatment, control))
    missing, undefined = _lacking(wanted, treatment, control)
    return Contrast(
        values={seed: a - b for seed, a, b in zip(both, one, other, strict=True)},
        missing=missing,
        undefined=undefined,
        failed=(treatment.failed | control.failed) & set(both),
        failures=_failures(treatment.failed, control.failed, both),
        gain=pairing_gain(one, other),
        undeclared=tuple(sorted(known - set(wanted))),
        hopeless=bool(both) and set(both) <= treatment.failed & control.failed,
    )


def interaction(here: Contrast, there: Contrast) -> Contrast:
    """Difference of differences by seed: how much larger the effect is here than there."""
    return _combine({"here": here, "there": there}, lambda row: float(row[0] - row[1]))


def slope(levels: Mapping[float, Contrast]) -> Contrast:
    """Each seed's least-squares slope per doubling of a factor.

    Args:
        levels: value of the factor, above 0 -> the numbers there; two at least. Arms or their differences.

    Raises:
        ValueError: fewer than two levels, or one that is not above 0.
    """
    if len(levels) < 2 or min(levels) <= 0:
        raise ValueError("a slope over a logarithm needs two levels at least, all above 0")
    ordered = dict(sorted(levels.items()))
    weights = np.array(slope_weights(list(ordered)))
    return _combine({f"{level:g}": contrast for level, contrast in ordered.items()}, lambda row: float(weights @ row))


def slope_weights(levels: Sequence[float]) -> list[float]:
    """What the value at each level, above 0, counts for in the least-squares slope per doubling."""
    x = np.log2(np.array(levels))
    return [float(weight) for weight in (x - x.mean()) / ((x - x.mean()) ** 2).sum()]


def epochs_ratio(
    treatment: Arm,
    control: Arm,
    *,
    budget: float,
    seeds: Collection[int] | None = None,
    ceiling: float = CEILING,
) -> Contrast:
    """ln(treatment's epochs to the target / control's) by seed; a ratio of at most 0.8 is `lower` with margin −ln 0.8.

    A run that never reached the target is censored: all that is known is that it needs more than the budget. Its
    numbers count it at the budget, and two bounds take it to need anything from one budget to `ceiling` budgets,
    once in favour of each arm. A verdict has to hold in all three readings.

    Args:
        treatment, control: epochs (or steps, or seconds) above 0; math.inf where the target was never reached.
        budget: of both arms, in the same unit; whatever took longer is censored too.
        ceiling: budgets, at least 1.

    Raises:
        ValueError: a time that is not above 0, or a ceiling under 1.

    Source: the penalty of ten budgets is PAR10, as in Hutter, Hoos, Leyton-Brown & Stützle 2009, "ParamILS".
    """
    if ceiling < 1:
        raise ValueError(f"ceiling: {ceiling!r} is under one budget")
    for arm in (treatment, control):
        if any(time <= 0 for time in arm.scores.values()):
            raise ValueError(f"arm {arm.name!r}: a time to target is above 0")
    least = paired(_log_times(treatment, budget, budget), _log_times(control, budget, budget), seeds=seeds)
    if not least.failed:
        return least
    late = ceiling * budget
    fast = paired(_log_times(treatment, budget, budget), _log_times(control, budget, late), seeds=seeds)
    slow = paired(_log_times(treatment, budget, late), _log_times(control, budget, budget), seeds=seeds)
    return replace(least, bounds=(fast.values, slow.values))


def ratio(treatment: Arm, control: Arm, *, seeds: Collection[int] | None = None) -> Contrast:
    """ln(treatment / control) by seed, of numbers above 0; any other has no logarithm and leaves its pair undefined."""
    return paired(_logs(treatment), _logs(control), seeds=seeds)


def minus_constant(contrast: Contrast, reference: float) -> Contrast:
    """How far each number lies above a constant; a constant does not fail, so neither can all that is compared."""
    values = {seed: value - reference for seed, value in contrast.values.items()}
    return replace(contrast, values=values, hopeless=False)


def search_regret(votes: Sequence[float], scores: Sequence[float], budget: int) -> float:
    """What is lost by trying `budget` settings at random instead of all of them; the best vote wins in either case.

    The expectation over all draws without replacement, exactly. Settings of one vote share their scores.

    Args:
        votes: (n,) of each setting, on validation.
        scores: (n,) of the same settings, in the same order, on test.

    Raises:
        ValueError: fewer settings than the budget.

    Source: Dodge et al. 2019, "Show your work: improved reporting of experimental results", for draws with replacement.
    """
    if not 1 <= budget <= len(votes):
        raise ValueError(f"budget: {budget} of {len(votes)} settings")
    order = np.argsort(votes, kind="stable")
    ranked, tied = np.asarray(scores, dtype=float)[order], np.asarray(votes, dtype=float)[order]
    for vote in np.unique(tied):
        ranked[tied == vote] = ranked[tied == vote].mean()
    # the setting of rank i is the best of a draw that otherwise takes from the i − 1 below it
    chances = np.array([math.comb(rank, budget - 1) for rank in range(len(ranked))]) / math.comb(len(ranked), budget)
    return float(ranked[-1] - chances @ ranked)


def _combine(parts: Mapping[str, Contrast], reduce: Callable[[Array], float]) -> Contrast:
    """A number of each seed that all parts have; a seed is missing where any part lacks it."""
    contrasts = list(parts.values())
    if any(contrast.bounds for contrast in contrasts):
        raise ValueError("censored times have no slope or interaction: their bounds would not carry over")
    shared = sorted(set.intersection(*(set(contrast.values) for contrast in contrasts)))
    missing = [f"{name}, {phrase}" for name, contrast in parts.items() for phrase in contrast.missing]
    undefined = [f"{name}, {phrase}" for name, contrast in parts.items() for phrase in contrast.undefined]
    for seed in sorted(set().union(*(contrast.values for contrast in contrasts)) - set(shared)):
        # without declared seeds a part does not know what it lacks
        lacking = [name for name, contrast in parts.items() if seed not in contrast.values]
        missing += [f"{name}, seed {seed}" for name in lacking if not _named(parts[name], seed)]
    return Contrast(
        values={seed: reduce(np.array([contrast.values[seed] for contrast in contrasts])) for seed in shared},
        missing=tuple(missing),
        undefined=tuple(undefined),
        failed=frozenset().union(*(contrast.failed for contrast in contrasts)) & set(shared),
        undeclared=tuple(sorted({seed for contrast in contrasts for seed in contrast.undeclared})),
        hopeless=all(contrast.hopeless for contrast in contrasts),
    )


def _named(contrast: Contrast, seed: int) -> bool:
    return any(phrase.startswith(f"seed {seed}:") for phrase in (*contrast.missing, *contrast.undefined))


def _lacking(seeds: Sequence[int], *arms: Arm) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What seeds lack, a phrase each: those of which runs are missing, and those that only lack a value."""
    missing: list[str] = []
    undefined: list[str] = []
    for seed in seeds:
        lacking = [arm for arm in arms if not arm.has(seed)]
        if lacking:
            phrase = f"seed {seed}: {' and '.join(arm.lack(seed) for arm in lacking)}"
            (undefined if all(arm.has_runs(seed) for arm in lacking) else missing).append(phrase)
    return tuple(missing), tuple(undefined)


def _logs(arm: Arm) -> Arm:
    scores = {seed: math.log(score) if score > 0 else math.nan for seed, score in arm.scores.items()}
    return replace(arm, scores=scores)


def _log_times(arm: Arm, budget: float, late: float) -> Arm:
    """ln of the times, those beyond the budget as `late` and failed; a missing time stays nan."""
    censored = {seed for seed, time in arm.scores.items() if time > budget}
    scores = {seed: math.log(late if seed in censored else time) for seed, time in arm.scores.items()}
    return replace(arm, scores=scores, failed=frozenset(censored))


def _failures(treatment: Collection[int], control: Collection[int], seeds: Sequence[int]) -> Failures:
    one, other = set(treatment) & set(seeds), set(control) & set(seeds)
    only = len(one - other), len(other - one)
    return Failures(len(one), len(other), *only, p=mcnemar_p(*only))
