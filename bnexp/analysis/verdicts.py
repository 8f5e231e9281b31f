"""A verdict on a claim: what the rule says of its per-seed numbers, and everything a reader needs to check it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np

from bnexp.analysis.contrasts import Contrast, Failures
from bnexp.analysis.power import Test, seeds_needed
from bnexp.analysis.rule import MIN_PAIRS, Decision, Ends, Evidence, Rule, decide, weigh
from bnexp.analysis.significance import holm
from bnexp.analysis.stats import Estimate, mean_interval

Outcome = Literal[Decision, "untested", "invalid"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
DECIDED: tuple[Outcome, ...] = ("supported", "contradicted", "negligible")
UNJUDGED: tuple[Outcome, ...] = ("untested", "invalid")
Kind = Literal["direction", "size", "equivalence"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Comparison:
    """One claim in one stratum, ready to be judged.

    Attributes:
        gate: why a baseline gate failed, in a phrase; empty where all passed.
    """

    contrast: Contrast
    rule: Rule
    gate: str = ""


@dataclass(frozen=True)
class Seeds:
    """How many seeds of a new study would settle it at 80 % power, and into what, if mean and spread are as observed.

    Attributes:
        num_pairs: None where 1,000 would not, for the effect is too close to the margin, or where no number would,
            for censored runs leave open even its sign or on which side of a margin it is.
    """

    num_pairs: int | None
    decision: Decision


@dataclass(frozen=True)
class Effect:
    """The numbers behind a verdict; p values are two-sided: those of an interval.

    Attributes:
        deciding: the mean with the interval that decided, at `level`: corrected for the family.
        level: its confidence, such as 0.9917 for the first of six at 95 %.
        plain: the mean with the interval at 1 − alpha, as if there were no family.
        sd: standard deviation of the per-seed numbers.
        p: that there is no difference, before the family.
        p_direction, p_size, p_equivalence: of the three statements, corrected for the family.
        guarded: the sign-flip test had to agree, for runs failed or were censored, or the numbers take few sizes.
        gain: how many times smaller pairing made the variance of the mean; nan where there are no two arms.
        failures: of each arm; None where there are no two arms.
        healthy: the mean among the pairs in which nothing failed, with its t interval; None where nothing failed, or
            where all did.
        above: the share of seeds above 0, ties counted half: how often the one beats the other.
        same_verdict: how many times the verdict stays when one seed is left out; None where that was not tried.
    """

    deciding: Estimate
    level: float
    plain: Estimate
    sd: float
    p: float
    p_direction: float
    p_size: float
    p_equivalence: float
    guarded: bool
    gain: float
    failures: Failures | None
    healthy: Estimate | None
    above: float
    same_verdict: int | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        reason: why, in words; numbers are for the report to format.
        effect: None where the outcome is untested or invalid, so that no number can be quoted.
        num_pairs: complete pairs.
        incomplete: incomplete pairs and what each lacks.
        undeclared: seeds that were left out because nobody declared them.
        needed: where the outcome is not decided.
    """

    outcome: Outcome
    reason: str
    effect: Effect | None
    num_pairs: int
    incomplete: tuple[str, ...] = ()
    undeclared: tuple[int, ...] = ()
    needed: Seeds | None = None


def judge(contrast: Contrast, rule: Rule, *, gate: str = "") -> Verdict:
    """The verdict on a claim that is a family of its own.

    Args:
        gate: why a baseline gate failed; empty where all passed.
    """
    return judge_family({"": Comparison(contrast, rule, gate)})[""]


def judge_family(comparisons: Mapping[str, Comparison], *, family_size: int | None = None) -> dict[str, Verdict]:
    """The verdicts on a Holm family.

    Comparisons that are untested or invalid keep their place in the family: what is missing must not make the rest
    easier.

    Args:
        comparisons: name -> comparison; all at the same alpha.
        family_size: as declared, where it is larger than what is given.

    Raises:
        ValueError: rules with different alphas, or more comparisons than the family has.
    """
    if len({comparison.rule.alpha for comparison in comparisons.values()}) > 1:
        raise ValueError("a family has one alpha")
    size = max(1, len(comparisons)) if family_size is None else family_size
    refused = {name: verdict for name, case in comparisons.items() if (verdict := _refusal(case))}
    judged = {name: case for name, case in comparisons.items() if name not in refused}
    raw = {name: _weigh(case) for name, case in judged.items()}
    steps: dict[Kind, list[int]] = {}
    corrected: dict[Kind, list[float]] = {}
    for kind in KINDS:
        p_values = [float(getattr(raw[name], kind)[0]) for name in judged]
        alpha = next((case.rule.alpha for case in judged.values()), 0.05)
        corrected[kind], steps[kind] = holm(p_values, family_size=size), _steps(p_values, size, alpha)
    verdicts = dict(refused)
    for index, (name, case) in enumerate(judged.items()):
        evidence = replace(raw[name], **{kind: np.array([corrected[kind][index]]) for kind in KINDS})
        verdicts[name] = _verdict(case, raw[name], evidence, {kind: steps[kind][index] for kind in KINDS})
    return {name: verdicts[name] for name in comparisons}


def _steps(p_values: Sequence[float], size: int, alpha: float) -> list[int]:
    """What alpha is divided by for each: its own step where Holm rejects, else that at which Holm stopped."""
    adjusted = holm(p_values, family_size=size)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = [index for index in order if adjusted[index] <= alpha]
    steps = [size - len(rejected)] * len(p_values)
    for rank, index in enumerate(rejected):
        steps[index] = size - rank
    return [max(1, step) for step in steps]


def _refusal(case: Comparison) -> Verdict | None:
    """Invalid or untested, or None where there is something to judge."""
    contrast = case.contrast
    num = len(contrast.values)

    def refuse(outcome: Outcome, reason: str) -> Verdict:
        incomplete = (*contrast.missing, *contrast.undefined)
        return Verdict(outcome, reason, None, num, incomplete, contrast.undeclared)

    if case.gate:
        return refuse("invalid", case.gate)
    if contrast.missing:
        return refuse("untested", "runs are missing")
    if contrast.undefined:
        return refuse("untested", "the runs are there, but the measure has no value for some of them")
    if not num:
        return refuse("untested", "there are no runs")
    if contrast.hopeless:
        return refuse("invalid", "every run of every arm failed or never arrived, so there is nothing to compare")
    return None


def _weigh(case: Comparison) -> Evidence:
    """The evidence of one comparison; of a single pair there is none."""
    values = np.array(list(case.contrast.values.values()))
    if len(values) < 2:
        one = np.ones(1)
        return Evidence(values, np.sign(values), one, one, one, np.array([False]))
    return weigh(case.contrast.all_ends(), case.rule)


def _verdict(case: Comparison, raw: Evidence, evidence: Evidence, steps: Mapping[Kind, int]) -> Verdict:
    """The verdict, given evidence that is corrected for the family.

    Args:
        raw: the same, uncorrected.
        steps: what alpha was divided by for each statement.
    """
    num = len(case.contrast.values)
    outcome = cast(Decision, str(decide(evidence, case.rule, num_pairs=num)[0]))
    effect = _effect(case, raw, evidence, outcome, steps)
    needed = _needed(case, effect, steps) if outcome not in DECIDED else None
    reason = _reason(case, outcome, effect, raw)
    return Verdict(outcome, reason, effect, num, undeclared=case.contrast.undeclared, needed=needed)


def deciding_kind(outcome: Decision, rule: Rule) -> Kind | None:
    """Which of the three statements an outcome rests on; None where none could be made."""
    if outcome == "inconclusive":
        return None
    if outcome == "negligible" or (outcome == "supported" and rule.direction in ("same", "not lower")):
        return "equivalence"
    return "direction" if "direction only" in outcome else "size"


def _effect(
    case: Comparison, raw: Evidence, evidence: Evidence, outcome: Decision, steps: Mapping[Kind, int]
) -> Effect:
    contrast, alpha = case.contrast, case.rule.alpha
    values = np.array(list(contrast.values.values()))
    several = len(values) > 1
    step = _printed_step(outcome, case.rule, raw, steps)
    healthy = [value for seed, value in contrast.values.items() if seed not in contrast.failed]
    return Effect(
        deciding=_interval(contrast, alpha / step),
        level=1 - alpha / step,
        plain=_interval(contrast, alpha),
        sd=float(values.std(ddof=1)) if several else math.nan,
        p=float(raw.direction[0]),
        p_direction=float(evidence.direction[0]),
        p_size=float(evidence.size[0]),
        p_equivalence=float(evidence.equivalence[0]),
        guarded=bool(evidence.guarded[0]),
        gain=contrast.gain,
        failures=contrast.failures,
        healthy=mean_interval(healthy, confidence=1 - alpha) if contrast.failed and healthy else None,
        above=float((values > 0).mean() + (values == 0).mean() / 2),
        same_verdict=_same_verdict(case, outcome, steps) if contrast.left_out and len(values) > MIN_PAIRS else None,
    )


def _printed_step(outcome: Decision, rule: Rule, raw: Evidence, steps: Mapping[Kind, int]) -> int:
    """What alpha is divided by for the interval that is printed: it shows what was decided and nothing else."""
    kind = deciding_kind(outcome, rule)
    if kind is None:  # the widest of the intervals that were asked
        asked: Kind = "size" if rule.direction in ("same", "not lower") else "direction"
        return max(steps[asked], steps["equivalence"])
    if kind == "direction":  # as wide as it can be and exclude 0: at its own step it may lie beyond a margin as well
        return max(step for step in steps.values() if step * raw.direction[0] <= rule.alpha or step == steps[kind])
    return steps[kind]


def _interval(contrast: Contrast, alpha: float) -> Estimate:
    values = list(contrast.values.values())
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan, len(values))
    low, high = contrast.all_ends().interval(alpha)
    return Estimate(mean, float(low[0]), float(high[0]), len(values))


def _same_verdict(case: Comparison, outcome: Decision, steps: Mapping[Kind, int]) -> int:
    """How often the outcome stays when one seed is left out, at the levels that the whole was judged at."""
    return sum(_outcome_at(ends, case.rule, steps) == outcome for ends in case.contrast.left_out)


def _outcome_at(ends: Ends, rule: Rule, steps: Mapping[Kind, int]) -> str:
    evidence = weigh(ends, rule)
    corrected = replace(evidence, **{kind: getattr(evidence, kind) * steps[kind] for kind in KINDS})
    return str(decide(corrected, rule, num_pairs=MIN_PAIRS)[0])


def _needed(case: Comparison, effect: Effect, steps: Mapping[Kind, int]) -> Seeds | None:
    """The seeds of a new study that would settle it; None where a single pair shows no spread.

    Planned with the half-width of the plain interval, in which the choice of rates and the images have their part; of
    that part, more seeds make only what is not the images' smaller.
    """
    rule, num_pairs = case.rule, len(case.contrast.values)
    if num_pairs < 2:
        return None
    test, decision, weak, room = _heading(rule, case.contrast)
    if weak is None:
        return Seeds(None, decision)
    family = max(1, steps["equivalence" if test == "equivalence" or test == "non-inferiority" else "size"])
    # the interval that decides is a 1 − alpha one on both sides, and those tests are one-sided
    alpha = rule.alpha if test == "difference" else rule.alpha / 2
    margin, mean = (0.0, room) if test == "difference" else (rule.margin, weak)
    fixed = _fixed_variance(case.contrast, effect)
    moving = max(effect.sd**2, _effective_sd(case, effect) ** 2 - num_pairs * fixed)
    found = seeds_needed(
        test, sd=math.sqrt(moving), effect=mean, margin=margin, alpha=alpha, family_size=family, fixed_variance=fixed
    )
    return Seeds(None if found is None else max(found, num_pairs + 1, MIN_PAIRS), decision)


def _fixed_variance(contrast: Contrast, effect: Effect) -> float:
    """The part of the variance of the mean that more seeds leave as it is: of test images, of splits that overlap."""
    of_splits = (contrast.overlap**2 - 1) * effect.sd**2 / len(contrast.values)
    return of_splits + (contrast.crossed.images if contrast.crossed else 0.0)


def _effective_sd(case: Comparison, effect: Effect) -> float:
    """The spread of per-seed numbers whose plain t interval would be as wide as this one.

    What bounds leave open is not in it: no seed that is added makes it less, and it is planned for by its worse end.
    """
    from scipy.stats import t as student

    num, means = len(case.contrast.values), _reading_means(case.contrast)
    half = (effect.plain.high - effect.plain.low - (means[-1] - means[0])) / 2
    return half / float(student.isf(case.rule.alpha / 2, num - 1)) * math.sqrt(num)


def _reading_means(contrast: Contrast) -> list[float]:
    """Ascending, of the numbers and their bounds."""
    return sorted(float(np.mean(list(reading.values()))) for reading in (contrast.values, *contrast.bounds))


def _heading(rule: Rule, contrast: Contrast) -> tuple[Test, Decision, float | None, float]:
    """What more seeds like these would decide: by which test, into what, the mean to plan with, and its room.

    The mean is None where no number of seeds decides: the readings lie on both sides of the margin, or differ in sign.
    """
    means = _reading_means(contrast)
    low, high = means[0], means[-1]
    if rule.direction == "not lower":
        if low > -rule.margin:
            return "non-inferiority", "supported", low, 0.0
        return "difference", "contradicted", high if high < -rule.margin else None, -high - rule.margin
    if max(abs(low), abs(high)) < rule.margin:
        decision: Decision = "supported" if rule.direction == "same" else "negligible"
        return "equivalence", decision, max(low, high, key=abs), 0.0
    far = low > rule.margin or high < -rule.margin
    side = "higher" if low > 0 else "lower"
    word: Decision = "supported" if rule.direction == side else "contradicted"
    nearest = min(low, high, key=abs)
    return "difference", word, nearest if far else None, abs(nearest) - rule.margin


def _reason(case: Comparison, outcome: Decision, effect: Effect, raw: Evidence) -> str:
    """Why it ended so, in words that go with the interval beside them."""
    rule = case.rule
    if len(case.contrast.values) < MIN_PAIRS:
        return f"fewer than {MIN_PAIRS} seeds decide nothing"
    kind = deciding_kind(outcome, rule)
    if kind == "equivalence":
        if rule.direction == "not lower":
            return "all of the interval lies above the loss that would matter"
        return "all of the interval lies inside the margin: too small to matter"
    if kind is not None:
        side = "claimed" if outcome.startswith("supported") else "opposite"
        if rule.direction == "same":
            return "all of the interval lies beyond the margin: there is a difference that matters"
        if rule.direction == "not lower":
            return "all of the interval lies beyond the margin: it is lower by an amount that matters"
        if kind == "size":
            return f"all of the interval lies beyond the margin, on the {side} side"
        if _reads(effect.deciding, rule) != outcome:
            less = "the exact sign-flip test" if effect.guarded else "the correction for the family"
            return f"the interval excludes 0 on the {side} side; {less} leaves open whether it reaches the margin"
        return f"the interval excludes 0 on the {side} side; whether the effect reaches the margin is open"
    low, high, margin = effect.deciding.low, effect.deciding.high, rule.margin
    large = raw.size if rule.direction in ("same", "not lower") else raw.direction
    if min(large[0], raw.equivalence[0]) <= rule.alpha:
        return "decided by itself, but not after the correction for the number of comparisons"
    if effect.guarded and _reads(effect.deciding, rule) != "inconclusive":
        return "the interval would decide, but the exact sign-flip test, which must agree here, does not"
    if low > 0 or high < 0:
        return "there is a difference; whether it reaches the margin is open"
    if low <= -margin and high >= margin:
        return "differences that matter are possible on either side"
    return "the interval includes 0 and a difference that matters"


def _reads(interval: Estimate, rule: Rule) -> Decision:
    """What an interval shows by itself."""
    low, high, margin = interval.low, interval.high, rule.margin
    if rule.direction == "not lower":
        return "supported" if low > -margin else "contradicted" if high <= -margin else "inconclusive"
    inside, beyond = low > -margin and high < margin, low >= margin or high <= -margin
    if rule.direction == "same":
        return "supported" if inside else "contradicted" if beyond else "inconclusive"
    if inside or low <= 0 <= high:
        return "negligible" if inside else "inconclusive"
    claimed = (low > 0) == (rule.direction == "higher")
    if beyond:
        return "supported" if claimed else "contradicted"
    return "supported, direction only" if claimed else "contradicted, direction only"
