"""From the runs of a study to the verdict on each of its comparisons, in each stratum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from bnexp.analysis import verdicts
from bnexp.analysis.contrasts import Arm, Contrast, arm_of, healthy_ratio, paired
from bnexp.analysis.rule import Rule
from bnexp.analysis.select import Selection
from bnexp.analysis.verdicts import Verdict, judge_family
from bnexp.errors import StoreError
from bnexp.study import Comparison, StudySpec


@dataclass(frozen=True)
class ClaimVerdict:
    """What one comparison of a study comes to in one stratum.

    Attributes:
        verdict: each arm at its own best learning rate, or over all of them where that is what is compared.
        same_lr: the same at each learning rate of the ladder, both arms at that rate: all rates in all strata are a
            family of their own, so that nobody picks the rate that pleases. Empty where the comparison is over all
            rates, or there is but one.
    """

    comparison: Comparison
    stratum: str
    verdict: Verdict
    same_lr: dict[float, Verdict]
    exploratory: bool = False

    @property
    def outcome(self) -> str:
        """`supported`, or `exploratory: supported` where the declared study was changed: no verdict on its claim."""
        return f"exploratory: {self.verdict.outcome}" if self.exploratory else self.verdict.outcome


@dataclass(frozen=True)
class Declared:
    """What a study declares to run in each arm and stratum; what lacks of it makes a comparison untested.

    Attributes:
        seeds: those that are reported.
        tuning_seeds, rates: every rate is tried at every tuning seed; no rates: nothing is chosen.
        num_strata: with those of which nothing has run yet.
    """

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    num_strata: int = 1


def declared_of(study: StudySpec, tier: str) -> Declared:
    return Declared(study.seeds(tier), study.choose.seeds, study.rates(tier), study.num_strata(tier))


def judge_study(selection: Selection, study: StudySpec, *, declared: Declared | None) -> list[ClaimVerdict]:
    """The verdicts, by stratum, all of them one Holm family.

    Args:
        declared: None for an exploratory study, which keeps to no declaration.

    Raises:
        StoreError: two runs of one arm and stratum share a learning rate and a seed.
    """
    keys = [(comparison, stratum) for stratum in selection.strata for comparison in study.comparisons]
    cases: dict[str, verdicts.Comparison] = {}
    at_rates: dict[str, verdicts.Comparison] = {}
    for index, (comparison, stratum) in enumerate(keys):
        contrast, rule = contrast_of(selection, comparison, stratum, declared), rule_of(comparison)
        cases[str(index)] = verdicts.Comparison(contrast, rule)
        for lr, at_rate in _same_lr(selection, comparison, stratum, declared).items():
            at_rates[f"{index} {lr!r}"] = verdicts.Comparison(at_rate, rule)
    # a stratum of which nothing has run yet keeps its place in the family
    strata = max(len(selection.strata), declared.num_strata if declared else 0)
    judged = judge_family(cases, family_size=max(1, strata * len(study.comparisons)))
    same_lr: dict[str, dict[float, Verdict]] = {str(index): {} for index in range(len(keys))}
    for name, verdict in judge_family(at_rates).items():
        index_word, _, lr_word = name.partition(" ")
        same_lr[index_word][float(lr_word)] = verdict
    return [
        ClaimVerdict(comparison, stratum, judged[str(i)], same_lr[str(i)], exploratory=declared is None)
        for i, (comparison, stratum) in enumerate(keys)
    ]


def rule_of(comparison: Comparison) -> Rule:
    """A ratio is judged on its logarithm to base 10."""
    margin = math.log10(comparison.margin) if comparison.shape == "healthy_lr" else comparison.margin
    return Rule(direction=comparison.direction, margin=margin)


def contrast_of(selection: Selection, comparison: Comparison, stratum: str, declared: Declared | None) -> Contrast:
    """The per-seed numbers of a comparison in a stratum."""
    if comparison.shape == "healthy_lr":
        return _healthy_contrast(selection, comparison, stratum, declared)
    names = (comparison.treatment, comparison.control)
    runs = selection.reporting()
    treatment, control = (_arm(selection, runs, name, stratum) for name in names)
    contrast = paired(treatment, control, seeds=declared.seeds if declared else None)
    # a rate that was not chosen as declared is a search that was not the same for both arms
    untuned = tuple(
        f"{name}: tuning runs are missing" for name in names if _untuned(selection, name, stratum, declared)
    )
    return replace(contrast, missing=(*contrast.missing, *untuned))


def _untuned(selection: Selection, name: str, stratum: str, declared: Declared | None) -> bool:
    if declared is None:
        return (name, stratum) in (*selection.untuned, *selection.gaps)
    if len(declared.rates) < 2:
        return False
    cell = selection.cell(selection.runs, name, stratum)
    tried = {(float(lr), int(seed)) for lr, seed in zip(cell["lr"], cell["seed"], strict=True)}
    # of no arm must a rate be missing: others may lack it too, and the runs alone would not show it
    return not {(lr, seed) for lr in declared.rates for seed in declared.tuning_seeds} <= tried


def _healthy_contrast(
    selection: Selection, comparison: Comparison, stratum: str, declared: Declared | None
) -> Contrast:
    names = (comparison.treatment, comparison.control)
    runs = selection.reported_seeds(selection.runs)
    one, other = (_ladders(selection.cell(runs, name, stratum), name) for name in names)
    if not one or not other:
        return Contrast({}, tuple(f"no {name}" for name, arm in zip(names, (one, other), strict=True) if not arm))
    tried = {lr for arm in (one, other) for rates in arm.values() for lr in rates}
    if len(tried) < 2:
        return Contrast({}, ("two learning rates at least",))
    contrast = healthy_ratio(one, other, seeds=declared.seeds if declared else None, names=names)
    lacking = tuple(f"learning rate {lr:g}: no run" for lr in (declared.rates if declared else ()) if lr not in tried)
    return replace(contrast, missing=(*contrast.missing, *lacking))


def _same_lr(
    selection: Selection, comparison: Comparison, stratum: str, declared: Declared | None
) -> dict[float, Contrast]:
    """Learning rate -> the contrast with both arms at that rate."""
    runs = selection.reported_seeds(selection.runs)
    here = runs[(runs["stratum"] == stratum) & runs["arm"].isin((comparison.treatment, comparison.control))]
    rates = sorted({float(lr) for lr in here["lr"]} | set(declared.rates if declared else ()))
    if comparison.shape != "difference" or len(rates) < 2:
        return {}
    found = {}
    for lr in rates:
        at_rate = runs[runs["lr"] == lr]
        arms = (_arm(selection, at_rate, name, stratum) for name in (comparison.treatment, comparison.control))
        found[lr] = paired(*arms, seeds=declared.seeds if declared else None)
    return found


def _arm(selection: Selection, runs: pd.DataFrame, name: str, stratum: str) -> Arm:
    cell = selection.cell(runs, name, stratum)
    rows = zip(cell["seed"], cell["score"], ~cell["healthy"], strict=True)
    return arm_of(name, ((int(seed), float(score), bool(failed)) for seed, score, failed in rows))


def _ladders(cell: pd.DataFrame, name: str) -> dict[int, dict[float, bool]]:
    """Seed -> learning rate -> whether the run neither diverged nor collapsed."""
    if cell.duplicated(["seed", "lr"]).any():
        raise StoreError(f"arm {name!r}: a seed occurs twice at one learning rate, so its pair is ambiguous")
    ladders: dict[int, dict[float, bool]] = {}
    for seed, lr, healthy in zip(cell["seed"], cell["lr"], cell["healthy"], strict=True):
        ladders.setdefault(int(seed), {})[float(lr)] = bool(healthy)
    return ladders
