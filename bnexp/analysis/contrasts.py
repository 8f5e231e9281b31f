"""What a claim comes down to: one number per seed, so that one rule judges every shape of claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bnexp.analysis.significance import Array, mcnemar_p
from bnexp.analysis.stats import largest_healthy, pairing_gain
from bnexp.errors import StoreError

CEILING = 10.0  # budgets that a censored run may have needed: what PAR10 charges, see `epochs_ratio`


@dataclass(frozen=True)
class Arm:
    """An arm's scores.

    Attributes:
        name: as the report calls it.
        scores: seed -> the metric in its stored unit. A seed without a score (its run is missing or crashed, or the
            metric is undefined for it) is left out or nan, and its pair is then incomplete.
        failed: seeds whose run diverged or collapsed; their score is chance.

    Raises:
        ValueError: a failed seed has no entry in the scores.
    """

    name: str
    scores: Mapping[int, float]
    failed: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.failed <= set(self.scores):
            raise ValueError(f"arm {self.name!r}: a failed run scores chance, so it needs a score")


@dataclass(frozen=True)
class Failures:
    """Failed pairs: of each arm, of that arm alone, and McNemar's exact p that the arms fail alike."""

    treatment: int
    control: int
    only_treatment: int
    only_control: int
    p: float


@dataclass(frozen=True)
class Contrast:
    """One number per seed.

    Attributes:
        values: seed -> number; a mean above 0 speaks for `higher`.
        missing: what is incomplete, a phrase each, such as `seed 3: no batch`.
        failed: seeds with a failed or censored run behind their number.
        bounds: other readings of the same runs where they leave the number open: a verdict must hold in all of them.
        failures: where two arms are compared.
        gain: how many times smaller pairing made the variance of the mean; nan where there are no two arms.
        undeclared: seeds that an arm has and the declaration has not; they are left out.
    """

    values: Mapping[int, float]
    missing: tuple[str, ...] = ()
    failed: frozenset[int] = frozenset()
    bounds: tuple[Mapping[int, float], ...] = ()
    failures: Failures | None = None
    gain: float = math.nan
    undeclared: tuple[int, ...] = ()


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
    """An arm by itself: for slopes and trends over its own scores, or a per-seed number made elsewhere.

    Args:
        seeds: those declared; None: those it has.
    """
    wanted = sorted(arm.scores if seeds is None else seeds)
    scored = [seed for seed in wanted if _has_score(arm, seed)]
    return Contrast(
        values={seed: arm.scores[seed] for seed in scored},
        missing=tuple(f"seed {seed}: no {arm.name}" for seed in wanted if seed not in scored),
        failed=arm.failed & set(scored),
        undeclared=tuple(sorted(set(arm.scores) - set(wanted))),
    )


def paired(treatment: Arm, control: Arm, *, seeds: Collection[int] | None = None) -> Contrast:
    """Treatment − control by seed, never by position.

    Args:
        seeds: those declared; None: all that either arm has.
    """
    known = set(treatment.scores) | set(control.scores)
    wanted = sorted(known if seeds is None else seeds)
    lacking = {seed: [arm.name for arm in (treatment, control) if not _has_score(arm, seed)] for seed in wanted}
    both = [seed for seed in wanted if not lacking[seed]]
    one, other = ([arm.scores[seed] for seed in both] for arm in (treatment, control))
    return Contrast(
        values={seed: a - b for seed, a, b in zip(both, one, other, strict=True)},
        missing=tuple(f"seed {seed}: no {' and no '.join(names)}" for seed, names in lacking.items() if names),
        failed=(treatment.failed | control.failed) & set(both),
        failures=_failures(treatment.failed, control.failed, both),
        gain=pairing_gain(one, other),
        undeclared=tuple(sorted(known - set(wanted))),
    )


def interaction(here: Contrast, there: Contrast) -> Contrast:
    """Difference of differences by seed: how much larger the effect is here than there."""
    return _combine({"here": here, "there": there}, lambda row: float(row[0] - row[1]))


def slope(levels: Mapping[float, Contrast], *, per: str = "decade") -> Contrast:
    """Each seed's least-squares slope over the logarithm of a factor.

    Args:
        levels: value of the factor, above 0 -> the numbers there; two at least. Arms or their differences.
        per: `decade` (ten times the factor) or `octave` (twice).

    Raises:
        ValueError: fewer than two levels, one that is not above 0, or another unit.
    """
    if per not in ("decade", "octave"):
        raise ValueError(f"per: {per!r} is not one of decade, octave")
    if len(levels) < 2 or min(levels) <= 0:
        raise ValueError("a slope over a logarithm needs two levels at least, all above 0")
    ordered = dict(sorted(levels.items()))
    x = np.log(np.array(list(ordered))) / math.log(10 if per == "decade" else 2)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return _combine({f"{level:g}": contrast for level, contrast in ordered.items()}, lambda row: float(weights @ row))


def trend(levels: Sequence[Contrast]) -> Contrast:
    """Each seed's rank correlation (Spearman) with the order of the levels: −1 falls, 1 rises throughout.

    Its mean is Page's L on another scale. It says that the numbers tend to rise, not that no step falls: judge
    `steps` for that.

    Args:
        levels: in their declared order, three at least.

    Source: Page 1963, "Ordered hypotheses for multiple treatments".
    """
    if len(levels) < 3:
        raise ValueError("a trend needs three levels at least")
    from scipy.stats import rankdata

    order = np.arange(len(levels)) - (len(levels) - 1) / 2

    def correlation(row: Array) -> float:
        ranks = rankdata(row) - (len(levels) + 1) / 2
        spread = float(np.sqrt((ranks**2).sum() * (order**2).sum()))
        return float(ranks @ order) / spread if spread > 0 else 0.0  # all tied: neither rises nor falls

    return _combine({f"level {number}": contrast for number, contrast in enumerate(levels, start=1)}, correlation)


def steps(levels: Sequence[Contrast]) -> list[Contrast]:
    """Each level minus the one before, by seed: a factor is monotone where, judged as one family, no step falls."""
    return [interaction(later, earlier) for earlier, later in pairwise(levels)]


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
    return Contrast(
        values=least.values,
        missing=least.missing,
        failed=least.failed,
        bounds=(fast.values, slow.values),
        failures=least.failures,
        gain=least.gain,
        undeclared=least.undeclared,
    )


def healthy_ratio(
    treatment: Mapping[int, Mapping[float, bool]],
    control: Mapping[int, Mapping[float, bool]],
    *,
    seeds: Collection[int] | None = None,
    names: tuple[str, str] = ("treatment", "control"),
) -> Contrast:
    """log10(treatment's largest healthy level / control's) by seed; a ratio of at least 3 is `higher`, margin log10 3.

    A seed without a healthy level counts as one step below the ladder and as failed. One that is healthy at the top is
    censored: it counts as the top, and two bounds take it to go up to ten times as far, once in favour of each arm. A
    verdict has to hold in all three readings, so that a ladder which is too short for both arms decides nothing.

    Args:
        treatment, control: seed -> level -> whether that run was healthy. A seed that lacks a level any other has is
            missing, for its largest healthy level may be that one.
        names: of the two arms.

    Raises:
        ValueError: fewer than two levels, or one that is not above 0.
    """
    ladder = sorted({level for arm in (treatment, control) for run in arm.values() for level in run})
    if len(ladder) < 2 or ladder[0] <= 0:
        raise ValueError("a ladder needs two levels at least, all above 0")
    below = ladder[0] ** 2 / ladder[1]

    def tops(name: str, arm: Mapping[int, Mapping[float, bool]], top: float) -> Arm:
        whole = {seed: run for seed, run in arm.items() if len(run) == len(ladder)}
        best = {seed: max((level for level, ok in run.items() if ok), default=below) for seed, run in whole.items()}
        failed = frozenset(seed for seed, level in best.items() if level in (below, ladder[-1]))
        reached = {seed: top if level == ladder[-1] else level for seed, level in best.items()}
        scores = {seed: math.log10(reached[seed]) if seed in reached else math.nan for seed in arm}
        return Arm(name, scores, failed)

    def contrast(treatment_top: float, control_top: float) -> Contrast:
        arms = tops(names[0], treatment, treatment_top), tops(names[1], control, control_top)
        return paired(*arms, seeds=seeds)

    top, beyond = ladder[-1], CEILING * ladder[-1]
    least = contrast(top, top)
    bounds = tuple(other.values for other in (contrast(beyond, top), contrast(top, beyond)))
    censored = any(values != least.values for values in bounds)
    # being healthy at the top is no failure to count
    return replace(least, bounds=bounds if censored else (), failures=None)


def pooled_healthy_ratio(
    treatment: Mapping[float, Sequence[bool]], control: Mapping[float, Sequence[bool]]
) -> float | None:
    """Ratio of the largest levels at which at least 80 % of the runs are healthy; None where an arm has none.

    A single number without an interval: it describes, and `healthy_ratio` is what a verdict judges.
    """
    tops = largest_healthy(treatment), largest_healthy(control)
    return None if tops[0] is None or tops[1] is None else tops[0] / tops[1]


def _combine(parts: Mapping[str, Contrast], reduce: Callable[[Array], float]) -> Contrast:
    """A number of each seed that all parts have; a seed is missing where any part lacks it."""
    contrasts = list(parts.values())
    if any(contrast.bounds for contrast in contrasts):
        raise ValueError("censored times have no slope, trend or interaction: their bounds would not carry over")
    shared = sorted(set.intersection(*(set(contrast.values) for contrast in contrasts)))
    missing = [f"{name}, {phrase}" for name, contrast in parts.items() for phrase in contrast.missing]
    for seed in sorted(set().union(*(contrast.values for contrast in contrasts)) - set(shared)):
        # without declared seeds a part does not know what it lacks
        lacking = [name for name, contrast in parts.items() if seed not in contrast.values]
        missing += [f"{name}, seed {seed}" for name in lacking if not _named(parts[name], seed)]
    return Contrast(
        values={seed: reduce(np.array([contrast.values[seed] for contrast in contrasts])) for seed in shared},
        missing=tuple(missing),
        failed=frozenset().union(*(contrast.failed for contrast in contrasts)) & set(shared),
        undeclared=tuple(sorted({seed for contrast in contrasts for seed in contrast.undeclared})),
    )


def _named(contrast: Contrast, seed: int) -> bool:
    return any(phrase.startswith(f"seed {seed}:") for phrase in contrast.missing)


def _has_score(arm: Arm, seed: int) -> bool:
    return seed in arm.scores and math.isfinite(arm.scores[seed])


def _log_times(arm: Arm, budget: float, late: float) -> Arm:
    """ln of the times, those beyond the budget as `late` and failed; a missing time stays nan."""
    censored = {seed for seed, time in arm.scores.items() if time > budget}
    scores = {seed: math.log(late if seed in censored else time) for seed, time in arm.scores.items()}
    return Arm(arm.name, scores, frozenset(censored))


def _failures(treatment: Collection[int], control: Collection[int], seeds: Sequence[int]) -> Failures:
    one, other = set(treatment) & set(seeds), set(control) & set(seeds)
    only = len(one - other), len(other - one)
    return Failures(len(one), len(other), *only, p=mcnemar_p(*only))
