"""Which runs are which arm, in which stratum, at which learning rate: decided by rule, from the config alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from bnexp.analysis.frame import UNHEALTHY, config_keys, score
from bnexp.analysis.stats import PairedDifference, largest_healthy, paired_difference
from bnexp.errors import StoreError
from bnexp.metrics import METRICS
from bnexp.study import StudySpec

NO_NORM = "no norm"
WORST = -1e9  # the vote of a run that has no value to vote with
# names say more than numbers: where one key follows from another, the one named first here stands for both
FIRST_KEYS = ("data.name", "model.name", "model.activation", "model.init", "model.depth", "model.width", "optim.name")


@dataclass(frozen=True)
class Selection:
    """The runs of a report, sorted into arms and strata.

    Attributes:
        runs: with the columns arm, stratum, score (of `metric`) and healthy added.
        arms, strata: their labels, in the order they are shown.
        best_lr: (arm, stratum) -> the learning rate with the best mean validation accuracy over `tuning_seeds`.
        tuning_seeds: seeds that chose the learning rate; empty where there was nothing to choose.
        shared_seeds: the tuning seeds are reported too, for there are no others.
        untuned: (arm, stratum) without a tuning run that ended: chosen by the runs that are reported.
        pairs: (control arm, treatment arm), each to be compared.
        margin: the smallest difference that matters, in the metric's stored unit; None where nothing was declared.
        confounded: keys outside the norm that differ between the arms as well.
        fixed: key -> value that all runs share, for captions.
    """

    runs: pd.DataFrame
    metric: str
    arms: tuple[str, ...]
    strata: tuple[str, ...]
    best_lr: dict[tuple[str, str], float]
    tuning_seeds: tuple[int, ...]
    shared_seeds: bool
    untuned: tuple[tuple[str, str], ...]
    pairs: tuple[tuple[str, str], ...]
    margin: float | None
    confounded: tuple[str, ...]
    fixed: dict[str, object] = field(default_factory=dict)

    def reporting(self) -> pd.DataFrame:
        """The runs at each arm's own best learning rate, tuning seeds left out."""
        chosen = [
            self.best_lr[arm, stratum] for arm, stratum in zip(self.runs["arm"], self.runs["stratum"], strict=True)
        ]
        return self.reported_seeds(self.runs[self.runs["lr"] == chosen])

    def reported_seeds(self, runs: pd.DataFrame) -> pd.DataFrame:
        """These runs without those of the tuning seeds, unless there are no others."""
        return runs if self.shared_seeds else runs[~runs["seed"].isin(self.tuning_seeds)]

    def cell(self, runs: pd.DataFrame, arm: str, stratum: str) -> pd.DataFrame:
        return runs[(runs["arm"] == arm) & (runs["stratum"] == stratum)]


@dataclass(frozen=True)
class Effect:
    """One comparison in one stratum.

    Attributes:
        lr: the learning rate that both arms share, or None: each is at its own best.
    """

    control: str
    treatment: str
    stratum: str
    lr: float | None
    difference: PairedDifference


def select(runs: pd.DataFrame, study: StudySpec | None) -> Selection:
    """Sort runs into arms and strata.

    Args:
        runs: `Frame.runs`, not empty.
        study: its declaration names factor, strata, metric and tuning seeds; without one, whatever varies of the
            norm makes the arms and whatever else varies makes the strata.
    """
    runs = runs.copy()
    metric = study.metric if study else "test_accuracy"
    varying = [key for key in config_keys(runs) if runs[key].nunique(dropna=False) > 1]
    arm_keys = _independent(runs, _arm_keys(varying, study), given=[])
    others = [
        key for key in varying if key not in arm_keys and key not in ("lr", "seed") and not key.startswith("norm.")
    ]
    declared = [key for key in (study.strata if study else ()) if key in others]
    strata_keys = _independent(runs, [*declared, *_names_first(others)], given=arm_keys)
    confounded = tuple(
        key for key in others if key not in strata_keys and _refines(runs, key, given=strata_keys) and arm_keys
    )
    runs["arm"] = [_arm_label(row, arm_keys) for _, row in runs.iterrows()]
    runs["stratum"] = [_stratum_label(row, strata_keys) for _, row in runs.iterrows()]
    runs["score"] = score(runs, metric)
    runs["healthy"] = ~runs["status"].isin(UNHEALTHY)
    arms = _arm_order(runs, study)
    best, tuning, shared, untuned = _choose_lr(runs, study)
    return Selection(
        runs=runs,
        metric=metric,
        arms=arms,
        strata=tuple(runs.sort_values(strata_keys, kind="stable")["stratum"].unique()) if strata_keys else ("",),
        best_lr=best,
        tuning_seeds=tuning,
        shared_seeds=shared,
        untuned=untuned,
        pairs=_pairs(runs, arms, arm_keys, study),
        margin=study.margin if study else None,
        confounded=confounded,
        fixed={key: runs[key].iloc[0] for key in config_keys(runs) if key not in varying},
    )


def own_best_effects(selection: Selection) -> list[Effect]:
    """Every comparison in every stratum, each arm at its own best learning rate."""
    return _effects(selection, selection.reporting(), None)


def same_lr_effects(selection: Selection) -> list[Effect]:
    """Every comparison in every stratum at every learning rate that both arms have."""
    runs = selection.reported_seeds(selection.runs)
    return [
        effect for lr, group in runs.groupby("lr", sort=True) for effect in _effects(selection, group, float(str(lr)))
    ]


def healthy_limits(selection: Selection) -> dict[tuple[str, str], float | None]:
    """(arm, stratum) -> the largest learning rate at which at least 80 % of the runs are healthy."""
    return {key: largest_healthy(ladder) for key, ladder in health_ladders(selection).items()}


def health_ladders(selection: Selection) -> dict[tuple[str, str], dict[float, list[bool]]]:
    """(arm, stratum) -> learning rate -> whether each reported run neither diverged nor collapsed."""
    return {
        (str(arm), str(stratum)): {float(str(lr)): list(flags) for lr, flags in group.groupby("lr")["healthy"]}
        for (arm, stratum), group in selection.reported_seeds(selection.runs).groupby(["arm", "stratum"], sort=False)
    }


def _effects(selection: Selection, runs: pd.DataFrame, lr: float | None) -> list[Effect]:
    effects = []
    for stratum in selection.strata:
        for control, treatment in selection.pairs:
            values = [_by_seed(selection.cell(runs, arm, stratum)) for arm in (treatment, control)]
            difference = paired_difference(values[0], values[1])
            if difference is not None:
                effects.append(Effect(control, treatment, stratum, lr, difference))
    return effects


def _by_seed(runs: pd.DataFrame) -> dict[int, float]:
    scored = runs.dropna(subset=["score"])
    assert scored["seed"].is_unique, "two runs of one cell share a seed"
    return {int(seed): float(value) for seed, value in zip(scored["seed"], scored["score"], strict=True)}


def _arm_keys(varying: Sequence[str], study: StudySpec | None) -> list[str]:
    factor = [study.comparison.factor] if study and study.comparison.factor in varying else []
    norm = [key for key in ("norm.kind", "norm.placement") if key in varying and key not in factor]
    norm += [key for key in varying if key.startswith("norm.") and key not in norm and key not in factor]
    if factor or norm:
        return [*factor, *norm]
    rest = [key for key in _names_first(varying) if key not in ("lr", "seed", "batch_size")]
    return rest[:1]


def _names_first(keys: Sequence[str]) -> list[str]:
    return [key for key in FIRST_KEYS if key in keys] + [key for key in keys if key not in FIRST_KEYS]


def _independent(runs: pd.DataFrame, keys: Sequence[str], *, given: Sequence[str]) -> list[str]:
    """The keys that part the runs further than those before them do."""
    kept: list[str] = []
    for key in dict.fromkeys(keys):
        if _refines(runs, key, given=[*given, *kept]):
            kept.append(key)
    return kept


def _refines(runs: pd.DataFrame, key: str, *, given: Sequence[str]) -> bool:
    if not given:
        return bool(runs[key].nunique(dropna=False) > 1)
    before = runs.groupby(list(given), dropna=False).ngroups
    return bool(runs.groupby([*given, key], dropna=False).ngroups > before)


def _arm_label(row: pd.Series, keys: Sequence[str]) -> str:
    if row["norm.kind"] == "none" and (not keys or any(key.startswith("norm.") for key in keys)):
        rest = [key for key in keys if not key.startswith("norm.")]
        return ", ".join([NO_NORM, *(_word(key, row[key]) for key in rest)])
    words = [_word(key, row[key]) for key in keys if not _absent(row[key])]
    return ", ".join(words) or str(row["norm.kind"])


def _stratum_label(row: pd.Series, keys: Sequence[str]) -> str:
    return ", ".join(_word(key, row[key]) for key in keys if not _absent(row[key]))


def _word(key: str, value: object) -> str:
    """`relu` speaks for itself; a number, or a yes or no, needs its key."""
    if isinstance(value, str):
        return value
    return (
        f"{key.rpartition('.')[2]} {value:g}" if isinstance(value, int | float) else f"{key.rpartition('.')[2]} {value}"
    )


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _arm_order(runs: pd.DataFrame, study: StudySpec | None) -> tuple[str, ...]:
    """The control first: the study's, else no norm; the others as the grid has them."""
    arms = list(dict.fromkeys(runs["arm"]))
    if study and study.comparison.factor in runs:
        controls = set(runs.loc[runs[study.comparison.factor] == study.comparison.control, "arm"])
    else:
        controls = {arm for arm in arms if arm.startswith(NO_NORM)}
        arms.sort()
    return tuple(sorted(arms, key=lambda arm: arm not in controls))


def _pairs(
    runs: pd.DataFrame, arms: Sequence[str], arm_keys: Sequence[str], study: StudySpec | None
) -> tuple[tuple[str, str], ...]:
    if study is None:
        return tuple((arms[0], arm) for arm in arms[1:])
    if study.comparison.factor not in runs:
        raise StoreError(f"study {study.name!r}: its runs have no key {study.comparison.factor!r} to compare")
    factor = runs[study.comparison.factor]
    others = [key for key in arm_keys if key != study.comparison.factor and not _follows(runs, key, study)]
    pairs = []
    for control, treatment in itertools.permutations(arms, 2):
        a, b = runs[runs["arm"] == control].iloc[0], runs[runs["arm"] == treatment].iloc[0]
        factors = (a[study.comparison.factor], b[study.comparison.factor])
        if factors == (study.comparison.control, study.comparison.treatment) and all(a[k] == b[k] for k in others):
            pairs.append((control, treatment))
    if not pairs and {study.comparison.control, study.comparison.treatment} <= set(factor):
        raise StoreError(f"study {study.name!r}: no two arms differ in {study.comparison.factor} alone")
    return tuple(pairs)


def _follows(runs: pd.DataFrame, key: str, study: StudySpec) -> bool:
    """Whether an option exists for one value of the factor only, such as eps for a norm and not for none."""
    factor = study.comparison.factor
    return any(bool(group[key].isna().all()) for _, group in runs.groupby(factor, dropna=False))


def _choose_lr(
    runs: pd.DataFrame, study: StudySpec | None
) -> tuple[dict[tuple[str, str], float], tuple[int, ...], bool, tuple[tuple[str, str], ...]]:
    """Each arm's own best learning rate; ties go to the smaller one."""
    tuned = runs["lr"].nunique() > 1
    metric = study.choose.metric if study else "val_accuracy"
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    declared = [seed for seed in (study.choose.seeds if study else ()) if seed in seeds]
    shared = not declared or set(declared) == set(seeds)
    tuning = seeds if shared else declared
    # a run without this metric, having diverged, must lose the vote and not be left out of it
    sign = 1.0 if METRICS[metric].direction == "higher" else -1.0
    votes = runs.assign(vote=(sign * score(runs, metric)).fillna(WORST))
    best: dict[tuple[str, str], float] = {}
    untuned = []
    for (arm, stratum), group in votes.groupby(["arm", "stratum"], sort=False):
        voting = group[group["seed"].isin(tuning)]
        if voting.empty:
            untuned.append((str(arm), str(stratum)))
            voting = group
        votes_by_lr = voting.groupby("lr", sort=True)["vote"].mean()
        best[str(arm), str(stratum)] = float(str(votes_by_lr.idxmax()))
    return best, tuple(tuning) if tuned or not shared else (), shared, tuple(untuned)
