"""Studies that were never run: a declaration, runs with results made to order, and the verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from bnexp.analysis.claims import ClaimVerdict, Declared, declared_of, judge_study, view_of
from bnexp.analysis.contrasts import Contrast
from bnexp.analysis.select import Selection, select
from bnexp.analysis.shapes import contrast_of
from bnexp.study import StudySpec, study_from_dict

CHANCE = 0.1
RATES, SEEDS = (0.1, 0.3, 1.0), tuple(range(2, 10))
NOISE = dict(zip(SEEDS, (0.004, -0.006, 0.001, 0.009, -0.003, -0.008, 0.005, -0.002), strict=True))  # its mean is 0


class Run(NamedTuple):
    """A run, by arm, rate, seed, and its values of the axes."""

    arm: str
    lr: float
    seed: int
    at: tuple[object, ...] = ()


# how a run ended, and its accuracies or, in a dict, its columns; None: it has no record
Ended = tuple[str, float | Mapping[str, float | str]] | None
Outcome = Callable[[Run], Ended]


def study(
    *comparisons: Mapping[str, Any],
    arms: Iterable[str] = ("none", "batch"),
    axes: Mapping[str, Iterable[object]] | None = None,
    rates: Iterable[float] = RATES,
    seeds: Iterable[int] = SEEDS,
    **changes: Any,
) -> StudySpec:
    """A study at its only tier; each comparison is what differs from `batch higher than none by 0.01`."""
    claim = {"treatment": "batch", "control": "none", "shape": "difference", "direction": "higher", "margin": 0.01}
    swept = {key: list(values) for key, values in (axes or {}).items()}
    probes = ["shift", "statistics"]
    tier = {
        "fixed": {"probes": probes},
        "axes": swept | {"lr": list(rates), "seed": list(seeds)},
        "margin": 0.01,
        "target": 0.5,
    }
    raw = {
        "name": "made-up", "number": 1, "question": "q", "claim": "c", "known": "k", "sources": {"a": "b"},
        "against": {}, "arms": {arm: {"norm": arm} for arm in arms},
        "comparisons": [claim | change for change in comparisons or ({},)], "strata": list(swept),
        "choose": {"factor": "lr", "metric": "val_accuracy"}, "metric": "test_accuracy",
        "tiers": {"small": tier},
    }  # fmt: skip
    return study_from_dict(raw | changes).at("small")


def runs_of(spec: StudySpec) -> list[Run]:
    """The grid of the study."""
    axes = spec.tiers["small"].axes
    keys = [key for key in axes if key not in ("lr", "seed")]
    grid = product(spec.arms, product(*(axes[key] for key in keys)), axes["lr"], axes["seed"])
    return [Run(arm, lr, seed, at) for arm, at, lr, seed in grid]


def row_of(run: Run, spec: StudySpec, status: str, result: float | Mapping[str, float | str]) -> dict[str, Any]:
    """What a frame says of a run."""
    columns = dict(result) if isinstance(result, Mapping) else {}
    accuracy = math.nan if status == "diverged" else columns.get("accuracy", result)
    keys = [key for key in spec.tiers["small"].axes if key not in ("lr", "seed")]
    return {
        "run_id": f"{run}", "arm": run.arm, "status": status, "norm.kind": run.arm, "model.init": "he", "lr": run.lr,
        "seed": run.seed, "epochs": 8, "timed": "alone", "core_share": math.nan, "in_flight": 1,
        **dict(zip(keys, run.at, strict=True)),
        **{f"{split}_accuracy": accuracy for split in ("train", "val", "test")},
        **{f"chance_{split}_accuracy": CHANCE for split in ("train", "val", "test")},
        **columns,
    }  # fmt: skip


def selected(spec: StudySpec, outcome: Outcome) -> Selection:
    """The runs of the study with these outcomes, sorted as the report sorts them."""
    ended = ((run, outcome(run)) for run in runs_of(spec))
    rows = [row_of(run, spec, *how) for run, how in ended if how is not None]
    return select(pd.DataFrame(rows), spec)


def judged(spec: StudySpec, outcome: Outcome, *, exploratory: bool = False, **options: Any) -> list[ClaimVerdict]:
    return judge_study(selected(spec, outcome), spec, declared=None if exploratory else whole(spec), **options)


def numbers(spec: StudySpec, outcome: Outcome, *, group: str = "", exploratory: bool = False) -> Contrast:
    """The per-seed numbers of the first comparison."""
    view = view_of(selected(spec, outcome), None if exploratory else whole(spec))
    return contrast_of(view, spec.comparisons[0], group)


def whole(spec: StudySpec) -> Declared:
    return declared_of(spec, "small")


def two_arms(effect: float, spread: float = 1.0, best: float = 0.3) -> Outcome:
    """The treatment is better by `effect` on average; `best` is everybody's best rate by five points."""

    def outcome(run: Run) -> Ended:
        base = 0.8 + 0.05 * (run.lr == best) + 0.003 * math.sin(run.seed)
        return "finished", base + (run.arm == "batch") * (effect + spread * NOISE.get(run.seed, 0.0))

    return outcome


def without(outcome: Outcome, lacking: Callable[[Run], bool], instead: str | None = None) -> Outcome:
    """The same without some runs, or with these having ended otherwise."""

    def changed(run: Run) -> Ended:
        if not lacking(run):
            return outcome(run)
        return None if instead is None else (instead, CHANCE)

    return changed
