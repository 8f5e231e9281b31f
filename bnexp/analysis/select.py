"""Which runs are which arm, in which stratum, at which learning rate: decided by rule, from the config alone."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from bnexp.analysis.frame import UNHEALTHY, config_keys, score
from bnexp.analysis.stats import VOTE_DECIMALS, largest_healthy
from bnexp.analysis.test_images import TestImages
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
        runs: with the columns arm, stratum, score (of `metric`), healthy and vote added: what chooses a learning rate,
            more being better.
        arms, strata: their labels, in the order they are shown.
        best_lr: (arm, stratum) -> the learning rate with the best mean validation accuracy over all seeds.
        gaps: (arm, stratum) -> learning rates that others in its stratum were run at and it was not, or not with all
            of its seeds.
        pairs: (stratum, control arm, treatment arm), each to be compared.
        margin: the smallest difference that matters, in the metric's stored unit; None where nothing was declared.
        confounded: keys outside the norm that differ between the arms as well.
        fixed: key -> value that all runs share, for captions.
        places: stratum -> key -> value: what its label says in words.
        images: what every run predicted for every test image, where that was kept.
    """

    runs: pd.DataFrame
    metric: str
    arms: tuple[str, ...]
    strata: tuple[str, ...]
    best_lr: dict[tuple[str, str], float]
    gaps: dict[tuple[str, str], tuple[float, ...]]
    pairs: tuple[tuple[str, str, str], ...]
    margin: float | None
    confounded: tuple[str, ...]
    fixed: dict[str, object] = field(default_factory=dict)
    places: dict[str, dict[str, object]] = field(default_factory=dict)
    images: TestImages | None = None

    def groups(self, over: str | None) -> dict[str, list[str]]:
        """Label without what a comparison goes over -> the strata that differ in nothing else, in their order."""
        found: dict[str, list[str]] = {}
        for stratum in self.strata:
            place = {key: value for key, value in self.places[stratum].items() if key != over}
            found.setdefault(_stratum_label(place), []).append(stratum)
        return found

    def levels(self, over: str, group: str) -> dict[object, str]:
        """Level of a key -> the stratum of a group of `groups` in which the key has it; numbers ascend."""
        strata = [stratum for stratum in self.groups(over).get(group, []) if over in self.places[stratum]]
        found = {level_of(self.places[stratum][over]): stratum for stratum in strata}
        return dict(sorted(found.items(), key=lambda item: _rank(item[0])))

    def reporting(self) -> pd.DataFrame:
        """The runs at each arm's own best learning rate."""
        chosen = [
            self.best_lr[arm, stratum] for arm, stratum in zip(self.runs["arm"], self.runs["stratum"], strict=True)
        ]
        return self.runs[self.runs["lr"] == chosen]

    def of_runs(self, runs: pd.DataFrame) -> Selection:
        """The same from some of its runs alone: they choose the learning rates anew."""
        best, gaps = _choose_lr(runs)
        return replace(self, runs=runs, best_lr=best, gaps=gaps)

    def cell(self, runs: pd.DataFrame, arm: str, stratum: str) -> pd.DataFrame:
        return runs[(runs["arm"] == arm) & (runs["stratum"] == stratum)]


def select(runs: pd.DataFrame, study: StudySpec | None, arms: Mapping[str, Sequence[str]] | None = None) -> Selection:
    """Sort runs into arms and strata.

    Args:
        runs: `Frame.runs`, not empty.
        study: its declaration names arms, comparisons, strata and metric; without one, whatever varies of the norm
            makes the arms and whatever else varies makes the strata.
        arms: of a study, the run ids of each arm, as frozen; a run may belong to several.
    """
    metric = study.metric if study else "test_accuracy"
    runs = runs.copy() if arms is None else _in_arms(runs, arms)
    keys = [key for key in config_keys(runs) if "@" not in key]  # epochs_to_target@0.9 has a dot and is no key
    varying = [key for key in keys if runs[key].nunique(dropna=False) > 1]
    # what the arms of a study differ in need not be config keys alone: their names part them
    arm_keys = ["arm"] if study else _independent(runs, _arm_keys(varying), given=[])
    others = [key for key in varying if key not in (*arm_keys, "lr", "seed")]
    if study is None:  # what varies of the norm is an arm then
        others = [key for key in others if not key.startswith("norm.")]
    declared = [key for key in (study.strata if study else ()) if key in varying]
    strata_keys = _independent(runs, [*declared, *_names_first(others)], given=arm_keys)
    confounded = tuple(
        key for key in others if key not in strata_keys and _refines(runs, key, given=strata_keys) and arm_keys
    )
    if study is None:
        runs["arm"] = [_arm_label(row, arm_keys) for _, row in runs.iterrows()]
    placed = [_place(row, strata_keys, declared) for _, row in runs.iterrows()]
    runs["stratum"] = [_stratum_label(place) for place in placed]
    places = dict(sorted(zip(runs["stratum"], placed, strict=True), key=lambda item: _ranks(item[1], strata_keys)))
    runs["score"] = score(runs, metric)
    runs["healthy"] = ~runs["status"].isin(UNHEALTHY)
    names = _arm_order(runs, study)
    strata = tuple(places)
    # a run without this metric, having diverged, must lose the vote and not be left out of it
    chooser = study.choose.metric if study else "val_accuracy"
    sign = 1.0 if METRICS[chooser].direction == "higher" else -1.0
    runs["vote"] = (sign * score(runs, chooser)).fillna(WORST)
    best, gaps = _choose_lr(runs)
    return Selection(
        runs=runs,
        metric=metric,
        arms=names,
        strata=strata,
        best_lr=best,
        gaps=gaps,
        pairs=tuple(pair for stratum in strata for pair in _pairs(runs, names, stratum, study)),
        margin=_margin(study),
        confounded=() if study else confounded,
        fixed={key: runs[key].iloc[0] for key in keys if key not in varying},
        places=places,
    )


def _in_arms(runs: pd.DataFrame, arms: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """A row for each run in each of its arms."""
    members = pd.DataFrame([(arm, run_id) for arm, ids in arms.items() for run_id in ids], columns=["arm", "run_id"])
    return members.merge(runs, on="run_id")


def _margin(study: StudySpec | None) -> float | None:
    """The smallest difference in the study's metric that matters, where one is declared."""
    if study is None:
        return None
    alike = (c.margin for c in study.comparisons if c.shape == "difference" and c.measure == study.metric)
    return next(alike, next((tier.margin for tier in study.tiers.values()), None))


def healthy_limits(selection: Selection) -> dict[tuple[str, str], float | None]:
    """(arm, stratum) -> the largest learning rate at which at least 80 % of the runs are healthy."""
    return {key: largest_healthy(ladder) for key, ladder in health_ladders(selection).items()}


def health_ladders(selection: Selection) -> dict[tuple[str, str], dict[float, list[bool]]]:
    """(arm, stratum) -> learning rate -> whether each reported run neither diverged nor collapsed."""
    return {
        (str(arm), str(stratum)): {float(str(lr)): list(flags) for lr, flags in group.groupby("lr")["healthy"]}
        for (arm, stratum), group in selection.runs.groupby(["arm", "stratum"], sort=False)
    }


def _arm_keys(varying: Sequence[str]) -> list[str]:
    """What parts the arms where no study does: whatever varies of the norm, else the first other key."""
    norm = [key for key in ("norm.kind", "norm.placement") if key in varying]
    norm += [key for key in varying if key.startswith("norm.") and key not in norm]
    if norm:
        return norm
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


def level_of(value: object) -> object:
    """A value of a config key, by which levels are told apart: a number as a float, null and nan as None."""
    if _absent(value):
        return None
    return value if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)


def _place(row: pd.Series, keys: Sequence[str], declared: Sequence[str]) -> dict[str, object]:
    """Key -> value that its stratum stands for; null is a value where the key is declared, else it does not apply."""
    values = {key: None if _absent(row[key]) else row[key] for key in keys}
    return {key: value for key, value in values.items() if value is not None or key in declared}


def _ranks(place: Mapping[str, object], keys: Sequence[str]) -> list[tuple[int, float, str]]:
    return [_rank(place.get(key)) for key in keys]


def _rank(value: object) -> tuple[int, float, str]:
    """Sorts what pandas will not: numbers before names, and null last."""
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if isinstance(value, numbers.Real) else (1, 0.0, str(value))


def _stratum_label(place: Mapping[str, object]) -> str:
    return ", ".join(_word(key, value) for key, value in place.items())


def _word(key: str, value: object) -> str:
    """`relu` speaks for itself; a number, or a yes or no, needs its key. No two values share a word."""
    if isinstance(value, str):
        return value
    leaf = key.rpartition(".")[2].replace("_", " ")
    if value is None:
        return f"{leaf} none"
    if isinstance(value, float) and value.is_integer():  # pandas reads 500 and null as 500.0 and nan
        value = int(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{leaf} {value:g}"
    return f"{leaf} {value}"


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _arm_order(runs: pd.DataFrame, study: StudySpec | None) -> tuple[str, ...]:
    """As the study declares them; else no norm first, and the others by name."""
    arms = set(runs["arm"])
    if study:
        return tuple(arm for arm in study.arms if arm in arms)
    return tuple(sorted(arms, key=lambda arm: (not arm.startswith(NO_NORM), arm)))


def _pairs(
    runs: pd.DataFrame, arms: Sequence[str], stratum: str, study: StudySpec | None
) -> list[tuple[str, str, str]]:
    """What to compare in a stratum: what the study declares; without a study, each arm with the first.

    A stratum that lacks the arm without a norm still compares those it has.
    """
    here = set(runs.loc[runs["stratum"] == stratum, "arm"])
    present = [arm for arm in arms if arm in here]
    if study is None:
        return [(stratum, present[0], arm) for arm in present[1:]]
    named = [(c.control, c.treatment) for c in study.comparisons]
    declared = dict.fromkeys((one, other) for one, other in named if one is not None and other is not None)
    return [(stratum, *pair) for pair in declared if set(pair) <= here and pair[0] != pair[1]]


def _choose_lr(
    runs: pd.DataFrame,
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], tuple[float, ...]]]:
    """Each arm's own best learning rate, by the mean vote of all its seeds, and its gaps; ties: the smaller rate."""
    ladders = {str(stratum): sorted(group["lr"].unique()) for stratum, group in runs.groupby("stratum")}
    best: dict[tuple[str, str], float] = {}
    gaps: dict[tuple[str, str], tuple[float, ...]] = {}
    for (arm, stratum), group in runs.groupby(["arm", "stratum"], sort=False):
        key = (str(arm), str(stratum))
        seeds = set(group["seed"])
        voted = {float(str(lr)): set(cell["seed"]) for lr, cell in group.groupby("lr")}
        lacking = tuple(float(lr) for lr in ladders[key[1]] if voted.get(float(lr), set()) != seeds)
        if lacking:
            gaps[key] = lacking
        best[key] = float(str(group.groupby("lr", sort=True)["vote"].mean().round(VOTE_DECIMALS).idxmax()))
    return best, gaps
