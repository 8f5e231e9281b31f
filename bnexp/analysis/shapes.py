"""From runs to the one number a seed that a declared comparison comes down to, whatever its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from bnexp.analysis import contrasts, ladders
from bnexp.analysis.contrasts import Arm, Contrast, arm_of
from bnexp.analysis.frame import score
from bnexp.analysis.measures import ACCURACIES, Curve, column
from bnexp.analysis.select import Selection
from bnexp.comparison import Comparison
from bnexp.errors import StoreError
from bnexp.metrics import CURVE, NEEDS_TARGET, metric_of

ROUNDING = 1e-9  # 0.95 is no worse than 0.96 by more than 0.01, however the two were rounded


@dataclass(frozen=True)
class View:
    """The runs that a comparison is read from, and what of them was declared.

    Attributes:
        runs: at each arm's own best learning rate, or at one for both.
        ladder: those at every learning rate.
        seeds: those declared; None: all that there are.
        levels: config key -> the levels declared of it; what is absent is what has been run.
        rates: the learning rates declared.
        overlap: test images for each training image where every seed drew its own split, else 0: see `overlap_factor`.
    """

    selection: Selection
    runs: pd.DataFrame
    ladder: pd.DataFrame
    seeds: tuple[int, ...] | None
    levels: Mapping[str, tuple[object, ...]]
    rates: tuple[float, ...]
    overlap: float = 0.0

    def strata(self, comparison: Comparison, group: str) -> dict[object, str]:
        """Level of what the comparison goes over -> the stratum it is in; without levels a single one."""
        if comparison.over in (None, "lr"):
            return {None: group}
        return self.selection.levels(str(comparison.over), group)

    def numbered(self, comparison: Comparison, group: str) -> dict[float, str]:
        """Level -> stratum, of levels that are numbers, as a study's are where its shapes reckon with them."""
        return {level: name for level, name in self.strata(comparison, group).items() if isinstance(level, float)}

    def arm(self, name: str, stratum: str, comparison: Comparison, *, measure: str | None = None) -> Arm:
        """The seeds of an arm in a stratum with their values of the comparison's measure."""
        cell, measure = self.selection.cell(self.runs, name, stratum), measure or comparison.measure
        failed = cell["status"] == "diverged" if measure in ACCURACIES else ~cell["healthy"]
        rows = zip(cell["seed"], values_of(cell, comparison, measure), failed, strict=True)
        return arm_of(name, ((int(seed), float(value), bool(failed)) for seed, value, failed in rows))


def contrast_of(view: View, comparison: Comparison, group: str) -> Contrast:
    """The per-seed numbers of a comparison in a stratum, or in the strata that its levels are.

    Raises:
        StoreError: two runs of one arm, level and learning rate share a seed.
    """
    found = _SHAPES[comparison.shape](view, comparison, group)
    return replace(found, missing=(*found.missing, *_absent(view, comparison, group)))


def _difference(view: View, comparison: Comparison, group: str) -> Contrast:
    return contrasts.paired(*_two(view, comparison, group), seeds=view.seeds)


def _ratio(view: View, comparison: Comparison, group: str) -> Contrast:
    treatment, control = _two(view, comparison, group)
    if comparison.measure not in NEEDS_TARGET:
        return contrasts.ratio(treatment, control, seeds=view.seeds)
    budget = _budget(view, comparison, group)
    arms = (_positive(arm) for arm in (treatment, control))
    return contrasts.epochs_ratio(*arms, budget=budget, seeds=view.seeds)


def _positive(arm: Arm) -> Arm:
    """A target that chance reaches is reached in no time, which has no ratio to anything."""
    return replace(arm, scores={seed: time if time > 0 else math.nan for seed, time in arm.scores.items()})


def _budget(view: View, comparison: Comparison, group: str) -> float:
    """What the runs that never reached the target are known to have taken: the least of any of them, in its unit."""
    cells = pd.concat([view.selection.cell(view.runs, name, group) for name in _names(comparison)])
    spent = cells["epochs" if metric_of(str(comparison.measure)).unit == "epochs" else "train_seconds"].astype(float)
    late = values_of(cells, comparison, comparison.measure) == math.inf
    if not late.any():
        return math.inf
    # a diverged run stopped early; it had the budget of the others all the same
    whole = spent[late & (cells["status"] != "diverged")]
    return float(whole.min() if len(whole) else spent.max())


def _matched(view: View, comparison: Comparison, group: str) -> Contrast:
    """Validation accuracy of each run where it first reaches the highest train accuracy that both of its pair reach.

    A failed run scores chance and sets no level, so that its partner is read at the partner's own highest; a pair of
    healthy runs that does not reach the target together has no value.
    """
    least = comparison.target
    assert least is not None
    names = _names(comparison)
    arms = [view.arm(name, group, comparison) for name in names]
    curves = [_curves(view.selection.cell(view.runs, name, group)) for name in names]
    one, other = curves
    levels = {seed: min(c[seed].highest for c in curves if seed in c) for seed in {*one, *other}}
    short = {seed for seed in one.keys() & other.keys() if levels[seed] < least}

    def read(arm: Arm, own: Mapping[int, Curve]) -> Arm:
        scores = {seed: score if seed in arm.failed else math.nan for seed, score in arm.scores.items()}
        scores |= {seed: curve.val_at(levels[seed]) for seed, curve in own.items()}
        return replace(arm, scores={seed: score for seed, score in scores.items() if seed not in short})

    treatment, control = (read(arm, own) for arm, own in zip(arms, curves, strict=True))
    wanted = sorted({seed for arm in arms for seed in arm.scores} if view.seeds is None else view.seeds)
    found = contrasts.paired(treatment, control, seeds=[seed for seed in wanted if seed not in short])
    apart = [f"seed {seed}: no train accuracy of {100 * least:g} % in both" for seed in wanted if seed in short]
    return replace(found, undefined=(*found.undefined, *apart))


def _curves(cell: pd.DataFrame) -> dict[int, Curve]:
    """Seed -> the curve of its run; without those that have none."""
    return {int(seed): curve for seed, curve in zip(cell["seed"], cell[CURVE], strict=True) if isinstance(curve, Curve)}


def _level(view: View, comparison: Comparison, group: str) -> Contrast:
    assert comparison.treatment is not None
    assert comparison.reference is not None
    found = contrasts.alone(view.arm(comparison.treatment, group, comparison), seeds=view.seeds)
    return contrasts.minus_constant(found, comparison.reference)


def _slope(view: View, comparison: Comparison, group: str) -> Contrast:
    if comparison.levels:
        parts = {
            level: contrasts.alone(view.arm(name, group, comparison), seeds=view.seeds)
            for name, level in comparison.levels
        }
        return contrasts.slope(parts)
    levels = view.numbered(comparison, group)
    if len(levels) < 2:
        return _too_few(comparison)
    parts = {level: _simple(view, comparison, stratum) for level, stratum in levels.items()}
    return contrasts.slope(parts)


def _interaction(view: View, comparison: Comparison, group: str) -> Contrast:
    assert comparison.against is not None
    there = replace(comparison, treatment=comparison.against[0], control=comparison.against[1])
    return contrasts.interaction(_difference(view, comparison, group), _difference(view, there, group))


def _worst(view: View, comparison: Comparison, group: str) -> Contrast:
    worst = min if metric_of(str(comparison.measure)).direction != "lower" else max
    one, other = (_over_levels(view, comparison, group, name, worst) for name in _names(comparison))
    return contrasts.paired(one, other, seeds=view.seeds)


def _reach(view: View, comparison: Comparison, group: str) -> Contrast:
    return _of_ladders(view, comparison, group, ladders.healthy_ratio)


def _span(view: View, comparison: Comparison, group: str) -> Contrast:
    return _of_ladders(view, comparison, group, ladders.span)


def _of_ladders(view: View, comparison: Comparison, group: str, contrast: Callable[..., Contrast]) -> Contrast:
    names = _names(comparison)
    one, other = _ladders(comparison, *(_values_by_level(view, comparison, group, name) for name in names))
    if not one or not other:
        return Contrast({}, tuple(f"no {name}" for name, arm in zip(names, (one, other), strict=True) if not arm))
    if len({level for arm in (one, other) for run in arm.values() for level in run}) < 2:
        return _too_few(comparison)
    return contrast(one, other, seeds=view.seeds, names=names)


def _too_few(comparison: Comparison) -> Contrast:
    return Contrast({}, (f"{comparison.over}: two levels at least",))


def _search(view: View, comparison: Comparison, group: str) -> Contrast:
    """Both arms search the same settings: those declared, and whatever else either has been run at."""
    assert comparison.budget is not None
    names, strata = _names(comparison), view.strata(comparison, group).values()
    runs = _as_declared(view, view.ladder[view.ladder["arm"].isin(names) & view.ladder["stratum"].isin(strata)])
    run_at = {(str(stratum), float(lr)) for stratum, lr in zip(runs["stratum"], runs["lr"], strict=True)}
    settings = run_at | {(stratum, lr) for stratum in strata for lr in view.rates}
    if len(settings) < comparison.budget:
        return Contrast({}, (f"{comparison.budget} settings at least",))
    one, other = (_regrets(runs[runs["arm"] == name], comparison, settings, name) for name in names)
    # a setting that fails is one not to choose, and no failure to count
    return replace(contrasts.paired(one, other, seeds=view.seeds), failures=None)


def _regrets(runs: pd.DataFrame, comparison: Comparison, settings: Collection[object], name: str) -> Arm:
    """What each seed of an arm loses by a small search over all settings; failed where every setting failed."""
    assert comparison.budget is not None
    lower = metric_of(str(comparison.measure)).direction == "lower"
    scores = values_of(runs, comparison, comparison.measure)
    table = runs.assign(_vote=score(runs, "val_accuracy"), _score=-scores if lower else scores)
    regrets, failed, partial = {}, set(), set()
    for key, tried in table.groupby("seed"):
        seed = int(str(key))
        if tried.duplicated(["stratum", "lr"]).any():
            raise StoreError(f"arm {name!r}: seed {seed} occurs twice at one setting, so its number is ambiguous")
        regrets[seed] = math.nan
        if len(tried) < len(settings):
            partial.add(seed)
        elif tried[["_vote", "_score"]].notna().all(axis=None):
            votes, values = tried["_vote"].to_list(), tried["_score"].to_list()
            regrets[seed] = contrasts.search_regret(votes, values, comparison.budget)
            failed |= set() if tried["healthy"].any() else {seed}
    return Arm(name, regrets, frozenset(failed), frozenset(partial))


_SHAPES: dict[str, Callable[[View, Comparison, str], Contrast]] = {
    "difference": _difference,
    "ratio": _ratio,
    "matched": _matched,
    "level": _level,
    "reach": _reach,
    "span": _span,
    "worst": _worst,
    "slope": _slope,
    "interaction": _interaction,
    "search": _search,
}


def _simple(view: View, comparison: Comparison, stratum: str) -> Contrast:
    """Treatment − control in one stratum, or the treatment alone where nothing is taken off."""
    if comparison.control is not None:
        return _difference(view, comparison, stratum)
    assert comparison.treatment is not None
    return contrasts.alone(view.arm(comparison.treatment, stratum, comparison), seeds=view.seeds)


def _names(comparison: Comparison) -> tuple[str, str]:
    assert comparison.treatment is not None
    assert comparison.control is not None
    return comparison.treatment, comparison.control


def _two(view: View, comparison: Comparison, stratum: str) -> tuple[Arm, Arm]:
    treatment, control = _names(comparison)
    one = view.arm(treatment, stratum, comparison)
    other = view.arm(control, stratum, comparison, measure=comparison.control_measure)
    if treatment == control:  # one run read in two measures: messages have to tell them apart
        one, other = replace(one, name=str(comparison.measure)), replace(other, name=str(comparison.control_measure))
    return one, other


def values_of(cell: pd.DataFrame, comparison: Comparison, measure: str | None) -> pd.Series:
    """The value of a measure of each of these runs, with the comparison's target where it needs one."""
    assert measure is not None
    return score(cell, column(measure, comparison.target if measure in NEEDS_TARGET else None))


def _by_level(view: View, comparison: Comparison, group: str, name: str) -> dict[float, pd.DataFrame]:
    """Level -> the runs of an arm there."""
    if comparison.over != "lr":
        levels = view.numbered(comparison, group)
        return {level: view.selection.cell(view.runs, name, stratum) for level, stratum in levels.items()}
    cell = _as_declared(view, view.selection.cell(view.ladder, name, group))
    return {float(str(lr)): rows for lr, rows in cell.groupby("lr")}


def _as_declared(view: View, runs: pd.DataFrame) -> pd.DataFrame:
    """These runs without the rates that a ladder was widened by: what goes over rates judges the ladder as declared."""
    return runs[runs["lr"].isin(view.rates)] if view.rates else runs


def _values_by_level(view: View, comparison: Comparison, group: str, name: str) -> dict[int, dict[float, float]]:
    """Seed -> level -> the value of the run there, more being better; minus infinity where it failed."""
    found: dict[int, dict[float, float]] = {}
    lower = metric_of(str(comparison.measure)).direction == "lower"
    for level, cell in _by_level(view, comparison, group, name).items():
        if cell["seed"].duplicated().any():
            raise StoreError(
                f"arm {name!r}: a seed occurs twice at {comparison.over} {level:g}, so its pair is ambiguous"
            )
        # without a distance to the best, a value is neither needed nor looked at
        read = comparison.within is not None
        values = values_of(cell, comparison, comparison.measure) if read else pd.Series(0.0, cell.index)
        # a collapse is read off the running statistics: under other ones the accuracy itself says it
        sound = cell["status"] != "diverged" if read and comparison.measure in ACCURACIES else cell["healthy"]
        for seed, good, value in zip(cell["seed"], sound, values, strict=True):
            found.setdefault(int(seed), {})[level] = float(-value if lower else value) if good else -math.inf
    return found


def _ladders(
    comparison: Comparison, *arms: Mapping[int, Mapping[float, float]]
) -> list[dict[int, dict[float, bool | None]]]:
    """Seed -> level -> whether a run is good, of each arm: healthy, and near enough to the best of its seed.

    Args:
        arms: seed -> level -> value, as in `_values_by_level`.
    """
    assert comparison.within != "margin", "settled at the tier"
    near = (comparison.within or 0.0) + ROUNDING
    if comparison.best != "pair":
        return [{seed: _near_best(run, _best(run) - near) for seed, run in arm.items()} for arm in arms]
    best: dict[int, float] = {}
    for arm in arms:
        for seed, run in arm.items():
            best[seed] = max(best.get(seed, -math.inf), _best(run))
    return [{seed: _near_best(run, best[seed] - near) for seed, run in arm.items()} for arm in arms]


def _best(values: Mapping[float, float]) -> float:
    return max((value for value in values.values() if not math.isnan(value)), default=-math.inf)


def _near_best(values: Mapping[float, float], least: float) -> dict[float, bool | None]:
    """Level -> whether its run is healthy and no worse than that; None where an unknown value may be the best."""
    if any(math.isnan(value) for value in values.values()):
        return {level: False if value == -math.inf else None for level, value in values.items()}
    return {level: value > -math.inf and value >= least for level, value in values.items()}


def _over_levels(
    view: View, comparison: Comparison, group: str, name: str, reduce: Callable[[list[float]], float]
) -> Arm:
    """A number of each seed made of its values at all levels; without one of them it has none."""
    arms = [view.arm(name, stratum, comparison) for stratum in view.strata(comparison, group).values()]
    scores, partial = {}, set()
    for seed in sorted({seed for arm in arms for seed in arm.scores}):
        values = [arm.scores.get(seed, math.nan) for arm in arms]
        scores[seed] = reduce(values) if all(math.isfinite(value) for value in values) else math.nan
        partial |= set() if all(arm.has_runs(seed) for arm in arms) else {seed}
    failed = frozenset(seed for arm in arms for seed in arm.failed)
    return Arm(name, scores, failed, frozenset(partial))


def _absent(view: View, comparison: Comparison, group: str) -> tuple[str, ...]:
    """Declared levels, or learning rates that are compared, at which no arm has a run."""
    over, there, absent = comparison.over, view.strata(comparison, group), []
    if over == "lr" or comparison.shape == "search":
        here = view.ladder[view.ladder["arm"].isin(comparison.arms) & view.ladder["stratum"].isin(there.values())]
        tried = {float(lr) for lr in here["lr"]}
        absent += [f"learning rate {lr:g}: no run" for lr in view.rates if lr not in tried]
    for level in view.levels.get(over or "", ()):
        if level not in there:
            absent.append(f"{over} {level:g}: no run" if isinstance(level, float) else f"{over} {level}: no run")
    return tuple(absent)
