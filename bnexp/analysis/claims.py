"""From the runs of a study to the verdict on each of its comparisons, in each stratum."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import pandas as pd

from bnexp.analysis import verdicts
from bnexp.analysis.contrasts import Arm, Contrast, arm_of, healthy_ratio, paired
from bnexp.analysis.rule import Rule
from bnexp.analysis.select import Selection
from bnexp.analysis.stats import HEALTHY_SHARE
from bnexp.analysis.verdicts import Verdict, judge_family
from bnexp.study import Comparison, StudySpec


@dataclass(frozen=True)
class ClaimVerdict:
    """What one comparison of a study comes to in one stratum.

    Attributes:
        verdict: each arm at its own best learning rate, or over all of them where that is what is compared.
        same_lr: the same at each learning rate of the ladder, both arms at that rate; a family of its own, so that
            nobody picks the rate that pleases. Empty where the comparison is over all rates, or there is but one.
    """

    comparison: Comparison
    stratum: str
    verdict: Verdict
    same_lr: dict[float, Verdict]


def judge_study(selection: Selection, study: StudySpec, *, seeds: Collection[int] | None) -> list[ClaimVerdict]:
    """The verdicts, by stratum, all of them one Holm family.

    Args:
        seeds: those that are reported, as declared; None for an exploratory study, which declared none.
    """
    cases: dict[str, verdicts.Comparison] = {}
    at_rates: dict[str, dict[float, Verdict]] = {}
    keys = [(comparison, stratum) for stratum in selection.strata for comparison in study.comparisons]
    for index, (comparison, stratum) in enumerate(keys):
        case = verdicts.Comparison(
            _contrast(selection, comparison, stratum, seeds),
            _rule(comparison),
            _gate(selection, comparison, stratum),
        )
        cases[str(index)] = case
        at_rates[str(index)] = _same_lr(selection, comparison, stratum, seeds)
    judged = judge_family(cases)
    return [
        ClaimVerdict(comparison, stratum, judged[str(index)], at_rates[str(index)])
        for index, (comparison, stratum) in enumerate(keys)
    ]


def _rule(comparison: Comparison) -> Rule:
    margin = math.log10(comparison.margin) if comparison.shape == "healthy_lr" else comparison.margin
    return Rule(direction=comparison.direction, margin=margin)


def _contrast(selection: Selection, comparison: Comparison, stratum: str, seeds: Collection[int] | None) -> Contrast:
    names = (comparison.treatment, comparison.control)
    if comparison.shape == "healthy_lr":
        runs = selection.reported_seeds(selection.runs)
        one, other = (_ladders(selection.cell(runs, name, stratum)) for name in names)
        if not one or not other:
            missing = tuple(f"no {name}" for name, arm in zip(names, (one, other), strict=True) if not arm)
            return Contrast({}, missing)
        return healthy_ratio(one, other, seeds=seeds, names=names)
    runs = selection.reporting()
    treatment, control = (_arm(selection, runs, name, stratum) for name in names)
    contrast = paired(treatment, control, seeds=seeds)
    # a rate that was not chosen as declared is a search that was not the same for both arms
    open_search = [name for name in names if (name, stratum) in (*selection.untuned, *selection.gaps)]
    untuned = tuple(f"{name}: tuning runs are missing" for name in open_search)
    return replace(contrast, missing=(*contrast.missing, *untuned))


def _same_lr(
    selection: Selection, comparison: Comparison, stratum: str, seeds: Collection[int] | None
) -> dict[float, Verdict]:
    """Verdicts with both arms at the same learning rate, one family."""
    runs = selection.reported_seeds(selection.runs)
    here = runs[(runs["stratum"] == stratum) & runs["arm"].isin((comparison.treatment, comparison.control))]
    rates = sorted(float(lr) for lr in here["lr"].unique())
    if comparison.shape != "difference" or len(rates) < 2:
        return {}
    cases = {}
    for lr in rates:
        at_rate = runs[runs["lr"] == lr]
        arms = (_arm(selection, at_rate, name, stratum) for name in (comparison.treatment, comparison.control))
        cases[str(lr)] = verdicts.Comparison(paired(*arms, seeds=seeds), _rule(comparison))
    return {float(lr): verdict for lr, verdict in judge_family(cases).items()}


def _arm(selection: Selection, runs: pd.DataFrame, name: str, stratum: str) -> Arm:
    cell = selection.cell(runs, name, stratum)
    rows = zip(cell["seed"], cell["score"], ~cell["healthy"], strict=True)
    return arm_of(name, ((int(seed), float(score), bool(failed)) for seed, score, failed in rows))


def _ladders(cell: pd.DataFrame) -> dict[int, dict[float, bool]]:
    """Seed -> learning rate -> whether the run neither diverged nor collapsed."""
    ladders: dict[int, dict[float, bool]] = {}
    for seed, lr, healthy in zip(cell["seed"], cell["lr"], cell["healthy"], strict=True):
        ladders.setdefault(int(seed), {})[float(lr)] = bool(healthy)
    return ladders


def _gate(selection: Selection, comparison: Comparison, stratum: str) -> str:
    """Why the control is no fair baseline, or nothing: it must train at the learning rate it is judged at."""
    if comparison.shape != "difference":
        return ""
    cell = selection.cell(selection.reporting(), comparison.control, stratum)
    if cell.empty or cell["healthy"].mean() >= HEALTHY_SHARE:
        return ""
    failed = int((~cell["healthy"]).sum())
    return (
        f"{failed} of {len(cell)} runs of the control, {comparison.control}, diverged or collapsed at its own best "
        "learning rate: it is no baseline"
    )
