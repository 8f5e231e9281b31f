"""Verdicts as a reader meets them: a table of all, and one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnexp.analysis.claims import ClaimVerdict
from bnexp.analysis.select import Selection
from bnexp.analysis.stats import Estimate
from bnexp.analysis.verdicts import Verdict
from bnexp.metrics import METRICS
from bnexp.report.tables import Rows, Table, table_of
from bnexp.report.words import count, signed
from bnexp.study import Comparison

TITLE = "Verdicts, corrected for their number (Holm); those at the same learning rate are a family of their own"


def verdicts_table(claims: Sequence[ClaimVerdict], selection: Selection) -> Table:
    """A row for each comparison and stratum."""
    exact: Rows = []
    shown: Rows = []
    for claim in claims:
        comparison, verdict, effect = claim.comparison, claim.verdict, claim.verdict.effect
        key = {"stratum": claim.stratum, "treatment": comparison.treatment, "control": comparison.control}
        exact.append({
            **key, "shape": comparison.shape, "direction": comparison.direction, "margin": comparison.margin,
            "verdict": claim.outcome, "reason": verdict.reason, "n": verdict.num_pairs,
            "mean": effect and effect.t.mean, "t_low": effect and effect.t.low, "t_high": effect and effect.t.high,
            "bca_low": effect and effect.bca.low, "bca_high": effect and effect.bca.high,
            "equivalence_low": effect and effect.equivalence.low,
            "equivalence_high": effect and effect.equivalence.high,
            "p": effect and effect.p, "p_sign_flip": effect and effect.p_sign_flip, "p_holm": effect and effect.p_holm,
            "p_equivalence_holm": effect and effect.p_equivalence_holm,
            "pairing_gain": effect and effect.gain, "incomplete": "; ".join(verdict.incomplete),
            "same_lr": " ".join(f"{lr:g}:{other.outcome}" for lr, other in claim.same_lr.items()),
        })  # fmt: skip
        shown.append({
            "stratum": claim.stratum, "claimed": _claimed(comparison, selection), "verdict": claim.outcome,
            "effect [95 %]": "—" if effect is None else _interval(effect.t, comparison, selection),
            "p (Holm)": "—" if effect is None else _p(effect.p_holm), "n": str(verdict.num_pairs),
            "at the same learning rate": _same_lr(claim) or "—",
        })  # fmt: skip
    return table_of("verdicts", TITLE, exact, shown, selection)


def verdict_sentence(claim: ClaimVerdict, selection: Selection) -> str:
    """`relu: supported. after − before: +1.20 points [...], n = 6 pairs: why.` and what else a reader must know."""
    verdict, effect = claim.verdict, claim.verdict.effect
    where = f"{claim.stratum}: " if claim.stratum else ""
    head = f"{where}{claim.outcome}."
    if effect is None:
        lacking = f" ({_some(verdict.incomplete)})" if verdict.incomplete else ""
        return f"{head} {_contrast(claim.comparison)}: {verdict.reason}{lacking}."
    mean, reason = _interval(effect.t, claim.comparison, selection), verdict.reason
    if claim.comparison.shape == "healthy_lr":  # a ratio of 1 is a logarithm of 0
        reason = reason.replace("excludes 0", "excludes 1").replace("includes 0", "includes 1")
    parts = [f"{head} {_contrast(claim.comparison)}: {mean}, {count(verdict.num_pairs, 'pair')}: {reason}."]
    if verdict.needed is not None:
        parts.append(_needed(verdict))
    if effect.failures and (effect.failures.treatment or effect.failures.control):
        failures = effect.failures
        parts.append(
            f"Diverged or collapsed: {failures.treatment} of {claim.comparison.treatment}, {failures.control} of "
            f"{claim.comparison.control}, scored at chance or as they ended."
        )
    same = _same_lr(claim)
    if same:
        parts.append(f"At the same learning rate: {same}.")
    return " ".join(parts)


def _contrast(comparison: Comparison) -> str:
    if comparison.shape == "healthy_lr":
        return f"largest healthy learning rate, {comparison.treatment} over {comparison.control}"
    return f"{comparison.treatment} − {comparison.control}"


def _claimed(comparison: Comparison, selection: Selection) -> str:
    if comparison.shape == "healthy_lr":
        size = f"at least ×{comparison.margin:g}"
    else:
        size = f"by {_amount(comparison.margin, selection)}"
    if comparison.direction == "same":
        return f"{_contrast(comparison)}: no difference beyond {size.removeprefix('by ')}"
    return f"{_contrast(comparison)}: {comparison.direction} {size}"


def _interval(estimate: Estimate, comparison: Comparison, selection: Selection) -> str:
    if comparison.shape == "healthy_lr":
        mean, low, high = (10**value if math.isfinite(value) else math.nan for value in
                           (estimate.mean, estimate.low, estimate.high))  # fmt: skip
        bounds = f" [{_times(low)}, {_times(high)}]" if math.isfinite(low) else ""
        return f"×{_times(mean)}{bounds}"
    metric = METRICS[selection.metric]
    bounds = f" [{signed(estimate.low, metric)}, {signed(estimate.high, metric)}]"
    return f"{signed(estimate.mean, metric)} {_unit(selection)}{bounds if math.isfinite(estimate.low) else ''}"


def _amount(value: float, selection: Selection) -> str:
    """`1 point`, `0.3 points`."""
    number, unit = f"{value * METRICS[selection.metric].scale:g}", _unit(selection)
    return f"{number} {'point' if (number, unit) == ('1', 'points') else unit}"


def _times(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _unit(selection: Selection) -> str:
    metric = METRICS[selection.metric]
    return "points" if metric.unit == "fraction" else metric.shown_unit


def _same_lr(claim: ClaimVerdict) -> str:
    """`supported at 0.1; inconclusive at 0.03, 0.3`: in the order of the ladder's first mention."""
    rates: dict[str, list[str]] = {}
    for lr, verdict in claim.same_lr.items():
        rates.setdefault(verdict.outcome, []).append(f"{lr:g}")
    return "; ".join(f"{outcome} at {', '.join(found)}" for outcome, found in rates.items())


def _needed(verdict: Verdict) -> str:
    assert verdict.needed is not None
    if verdict.needed.num_pairs is None:
        return "If mean and spread stay so, no number of seeds up to 1,000 decides it."
    return f"If mean and spread stay so, {verdict.needed.num_pairs} pairs decide it: {verdict.needed.decision}."


def _some(phrases: Sequence[str], most: int = 4) -> str:
    more = f" and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "—"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
