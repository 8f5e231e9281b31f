"""Mere differences of arms, for a report of every run: paired by seed, and judged by no declared rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from bnexp.analysis.claims import view_of
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.rule import ALPHA
from bnexp.analysis.select import Selection
from bnexp.analysis.stats import Estimate, PairedDifference, paired_difference
from bnexp.analysis.tuned import contrast_at_rate, contrast_with_choice
from bnexp.comparison import Comparison
from bnexp.errors import StoreError


@dataclass(frozen=True)
class Effect:
    """One comparison in one stratum.

    Attributes:
        lr: the learning rate that both arms share, or None: each is at its own best.
        unhealthy: paired seeds with a diverged or collapsed run in either arm.
    """

    control: str
    treatment: str
    stratum: str
    lr: float | None
    difference: PairedDifference
    unhealthy: tuple[int, ...]


def own_best_effects(selection: Selection) -> list[Effect]:
    """Every comparison in every stratum, each arm at its own best learning rate."""
    return _effects(selection, selection.reporting(), None)


def same_lr_effects(selection: Selection) -> list[Effect]:
    """Every comparison in every stratum at every learning rate that both arms have."""
    return [
        effect
        for lr, group in selection.runs.groupby("lr", sort=True)
        for effect in _effects(selection, group, float(str(lr)))
    ]


def _effects(selection: Selection, runs: pd.DataFrame, lr: float | None) -> list[Effect]:
    effects = []
    for stratum, control, treatment in selection.pairs:
        cells = [selection.cell(runs, arm, stratum) for arm in (treatment, control)]
        difference = paired_difference(_by_seed(cells[0]), _by_seed(cells[1]))
        if difference is not None:
            difference = replace(difference, t=_interval(selection, (stratum, control, treatment), lr, difference))
            sick = {int(seed) for cell in cells for seed in cell.loc[~cell["healthy"], "seed"]}
            unhealthy = tuple(seed for seed in difference.seeds if seed in sick)
            effects.append(Effect(control, treatment, stratum, lr, difference, unhealthy))
    return effects


def _by_seed(runs: pd.DataFrame) -> dict[int, float]:
    scored = runs.dropna(subset=["score"])
    if not scored["seed"].is_unique:
        raise StoreError(f"arm {runs['arm'].iloc[0]!r}: a seed occurs twice, so its pair is ambiguous")
    return {int(seed): float(value) for seed, value in zip(scored["seed"], scored["score"], strict=True)}


def _interval(
    selection: Selection, pair: tuple[str, str, str], lr: float | None, difference: PairedDifference
) -> Estimate:
    """The mean with its 95 % interval, in which the choice of rates and the test images have their part."""
    stratum, control, treatment = pair
    comparison = Comparison(
        "difference", "same", margin=1.0, measure=selection.metric, treatment=treatment, control=control
    )
    view = view_of(selection, None)
    contrast: Contrast = (
        contrast_with_choice(view, comparison, stratum)
        if lr is None
        else contrast_at_rate(view, comparison, stratum, lr)
    )
    if contrast.ends is None or len(contrast.values) != difference.t.num:
        return difference.t
    low, high = contrast.ends.interval(ALPHA)
    return Estimate(difference.t.mean, float(low[0]), float(high[0]), difference.t.num)
