"""A verdict on a claim: what the rule says of its per-seed numbers, and everything a reader needs to check it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from bnexp.analysis.contrasts import Contrast, Failures
from bnexp.analysis.power import Test, seeds_needed, seeds_needed_from_pilot
from bnexp.analysis.rule import MIN_PAIRS, Decision, Evidence, Rule, decide, weakest, weigh
from bnexp.analysis.significance import (
    Array,
    holm,
    sign_flip_equivalence_p,
    sign_flip_non_inferiority_p,
    sign_flip_p,
    t_p,
)
from bnexp.analysis.stats import Estimate, bootstrap_interval, mean_interval

Outcome = Literal["supported", "contradicted", "negligible", "inconclusive", "untested", "invalid"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


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
    """How many pairs would decide it at 80 % power, and into what, if mean and spread are as observed.

    Attributes:
        num_pairs: None where 1,000 would not, for the effect is too close to the margin, or where no number would,
            for censored runs leave open even its sign or on which side of a margin it is.
    """

    num_pairs: int | None
    decision: Decision


@dataclass(frozen=True)
class Effect:
    """The numbers behind a verdict; p values are two-sided unless they are of the equivalence or of `not lower`.

    Attributes:
        t, bca: mean with its t and its BCa interval at 1 − alpha, 95 % unless alpha says otherwise.
        equivalence: mean with its t interval at 1 − 2 alpha, which must lie inside ±margin, or above −margin for
            `not lower`.
        sd: standard deviation of the per-seed numbers.
        p: of the t test.
        p_sign_flip: of the exact sign-flip test.
        guarded: both had to agree, for runs failed or were censored, or the numbers take few distinct sizes.
        p_holm: the p that decides about a difference, corrected for the family.
        p_equivalence_holm: the p that decides about an equivalence, or about `not lower`, corrected for the family.
        gain: how many times smaller pairing made the variance of the mean; nan where there are no two arms.
        failures: of each arm; None where there are no two arms.
    """

    t: Estimate
    bca: Estimate
    equivalence: Estimate
    sd: float
    p: float
    p_sign_flip: float
    guarded: bool
    p_holm: float
    p_equivalence_holm: float
    gain: float
    failures: Failures | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        reason: why, in words; numbers are for the report to format.
        effect: None where the outcome is untested or invalid, so that no number can be quoted.
        num_pairs: complete pairs.
        incomplete: incomplete pairs and what each lacks.
        undeclared: seeds that were left out because nobody declared them.
        needed: where the outcome is inconclusive.
    """

    outcome: Outcome
    reason: str
    effect: Effect | None
    num_pairs: int
    incomplete: tuple[str, ...] = ()
    undeclared: tuple[int, ...] = ()
    needed: Seeds | None = None


def judge(contrast: Contrast, rule: Rule, *, gate: str = "", seed: int = 0) -> Verdict:
    """The verdict on a claim that is a family of its own.

    Args:
        gate: why a baseline gate failed; empty where all passed.
        seed: of the bootstrap.
    """
    return judge_family({"": Comparison(contrast, rule, gate)}, seed=seed)[""]


def judge_family(
    comparisons: Mapping[str, Comparison], *, family_size: int | None = None, seed: int = 0
) -> dict[str, Verdict]:
    """The verdicts on a Holm family.

    Comparisons that are untested or invalid keep their place in the family: what is missing must not make the rest
    easier.

    Args:
        comparisons: name -> comparison; all at the same alpha.
        family_size: as declared, where it is larger than what is given.
        seed: of the bootstrap.

    Raises:
        ValueError: rules with different alphas, or more comparisons than the family has.
    """
    if len({comparison.rule.alpha for comparison in comparisons.values()}) > 1:
        raise ValueError("a family has one alpha")
    size = max(1, len(comparisons)) if family_size is None else family_size
    refused = {name: verdict for name, case in comparisons.items() if (verdict := _refusal(case))}
    judged = {name: case for name, case in comparisons.items() if name not in refused}
    raw = {name: _weigh(case) for name, case in judged.items()}
    difference = holm([float(raw[name].difference[0]) for name in judged], family_size=size)
    equivalence = holm([float(raw[name].equivalence[0]) for name in judged], family_size=size)
    verdicts = dict(refused)
    for index, (name, case) in enumerate(judged.items()):
        corrected = Evidence(
            raw[name].mean, np.array([difference[index]]), np.array([equivalence[index]]), raw[name].guarded
        )
        left = tuple(size - sum(p <= case.rule.alpha for p in values) for values in (difference, equivalence))
        verdicts[name] = _verdict(case, corrected, (left[0], left[1]), seed)
    return {name: verdicts[name] for name in comparisons}


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
    """The evidence of one comparison, of its weakest reading."""
    contrast = case.contrast
    if len(contrast.values) < 2:
        return Evidence(np.array(list(contrast.values.values())), np.ones(1), np.ones(1), np.array([False]))
    return weakest(
        [
            weigh(np.array([list(reading.values())]), case.rule, failed=np.array([bool(contrast.failed)]))
            for reading in (contrast.values, *contrast.bounds)
        ]
    )


def _verdict(case: Comparison, evidence: Evidence, left: tuple[int, int], seed: int) -> Verdict:
    """The verdict, given evidence that is corrected for the family.

    Args:
        left: comparisons of the family without a difference, and without an equivalence or `not lower`, so far.
    """
    num = len(case.contrast.values)
    effect = _effect(case, evidence, seed)
    outcome = cast(Decision, str(decide(evidence, case.rule, num_pairs=num)[0]))
    needed = _needed(case, effect, left) if outcome == "inconclusive" else None
    reason = _reason(case, outcome, effect)
    return Verdict(outcome, reason, effect, num, undeclared=case.contrast.undeclared, needed=needed)


def _effect(case: Comparison, evidence: Evidence, seed: int) -> Effect:
    values, alpha = list(case.contrast.values.values()), case.rule.alpha
    array = np.array(values)
    several = len(values) > 1
    return Effect(
        t=mean_interval(values, confidence=1 - alpha),
        bca=bootstrap_interval(values, seed=seed, confidence=1 - alpha),
        equivalence=mean_interval(values, confidence=1 - 2 * alpha),
        sd=float(array.std(ddof=1)) if several else math.nan,
        p=float(t_p(array[None])[0]) if several else math.nan,
        p_sign_flip=sign_flip_p(array),
        guarded=bool(evidence.guarded[0]),
        p_holm=float(evidence.difference[0]),
        p_equivalence_holm=float(evidence.equivalence[0]),
        gain=case.contrast.gain,
        failures=case.contrast.failures,
    )


def _needed(case: Comparison, effect: Effect, left: tuple[int, int]) -> Seeds | None:
    """The pairs that would decide an inconclusive comparison; None where a single pair shows no spread."""
    rule, num_pairs = case.rule, len(case.contrast.values)
    if num_pairs < 2:
        return None
    readings = [np.array(list(reading.values())) for reading in (case.contrast.values, *case.contrast.bounds)]
    test, decision, weak = _heading(rule, readings)
    if weak is None:
        return Seeds(None, decision)
    mean, sd = float(weak.mean()), float(weak.std(ddof=1))
    family = max(1, left[0] if test == "difference" else left[1])
    num = seeds_needed(test, sd=sd, effect=mean, margin=rule.margin, alpha=rule.alpha, family_size=family)
    if num is None:
        return Seeds(None, decision)
    num = max(num, num_pairs + 1, MIN_PAIRS)
    if effect.guarded:
        # no formula knows how often the signs agree too; the flags say no more than that the guard is on
        flags = [bool(case.contrast.failed)] * num_pairs
        pilot = weak.tolist()
        num = seeds_needed_from_pilot(decision, rule, pilot=pilot, failed=flags, family_size=family, start=num) or num
    return Seeds(num, decision)


def _heading(rule: Rule, readings: Sequence[Array]) -> tuple[Test, Decision, Array | None]:
    """What more seeds like these would decide: by which test, into what, and the least favourable reading.

    The reading is None where no number of seeds decides: for an equivalence or `not lower` it is not within the margin,
    for a difference the readings differ in sign.
    """
    ascending = sorted(readings, key=lambda reading: float(reading.mean()))
    means = [float(reading.mean()) for reading in ascending]
    if rule.direction == "not lower" and means[-1] > -rule.margin:
        return "non-inferiority", "supported", ascending[0] if means[0] > -rule.margin else None
    nearest = int(np.argmin(np.abs(means)))
    mean = means[nearest]
    if abs(mean) < rule.margin:
        farthest = int(np.argmax(np.abs(means)))
        inside = abs(means[farthest]) < rule.margin
        decision: Decision = "supported" if rule.direction == "same" else "negligible"
        return "equivalence", decision, ascending[farthest] if inside else None
    claimed = mean > 0 if rule.direction == "higher" else rule.direction == "lower" and mean < 0
    weak = ascending[nearest] if len(set(np.sign(means))) == 1 else None
    return "difference", "supported" if claimed else "contradicted", weak


def _reason(case: Comparison, outcome: Decision, effect: Effect) -> str:
    rule, values = case.rule, list(case.contrast.values.values())
    if len(values) < MIN_PAIRS:
        return f"under {MIN_PAIRS} pairs nothing is decided"
    if outcome != "inconclusive":
        return _why(rule, outcome)
    by_t, by_signs = "", 0.0
    if rule.direction == "not lower" and effect.equivalence.low > -rule.margin:
        by_t, by_signs = _why(rule, "supported"), sign_flip_non_inferiority_p(values, rule.margin)
    elif effect.p <= rule.alpha and abs(effect.t.mean) >= rule.margin:
        by_t, by_signs = "the interval excludes 0", effect.p_sign_flip
    elif -rule.margin < effect.equivalence.low and effect.equivalence.high < rule.margin:
        by_t, by_signs = _why(rule, "negligible"), sign_flip_equivalence_p(values, rule.margin)
    if by_t and effect.guarded and by_signs > rule.alpha:
        return f"{by_t}, but the exact sign-flip test, which must agree here, does not"
    if by_t:
        return f"{by_t}, but not after correction for the family or not under every bound"
    if effect.p <= rule.alpha:
        return "there is a difference, but whether it reaches the margin is open"
    return "the interval includes 0 and reaches beyond the margin"


def _why(rule: Rule, outcome: Decision) -> str:
    """Why it was decided so."""
    if rule.direction == "not lower" and outcome == "supported":
        return "the one-sided test rules out a mean that is lower by the margin or more"
    if rule.direction == "not lower":
        return "the interval excludes 0 and the mean is lower by the margin or more"
    if outcome == "negligible" or (outcome == "supported" and rule.direction == "same"):
        return "the two one-sided tests place the mean inside the margin"
    side = "on the claimed side " if outcome == "supported" else "on the other side than claimed "
    return f"the interval excludes 0 {'' if rule.direction == 'same' else side}and the mean reaches the margin"
