"""The ends of a comparison whose arms chose their learning rates, whatever its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from bnexp.analysis.choice import (
    LOOSE,
    Rates,
    Term,
    chosen_rates,
    ends_of_choice,
    plausible_rates,
    same_choice,
)
from bnexp.analysis.contrasts import Choice, Contrast, slope_weights
from bnexp.analysis.measures import ACCURACIES
from bnexp.analysis.rule import Ends, ends_of_readings
from bnexp.analysis.shapes import View, contrast_of, values_of
from bnexp.analysis.significance import Array
from bnexp.analysis.spread import Crossed, Spread, over_seeds, over_seeds_and_images, overlap_factor
from bnexp.comparison import Comparison
from bnexp.errors import StoreError

# measures that a learning rate is chosen for: an arm's best rate is where they are highest
CHOSEN_FOR = ("test_accuracy", "val_accuracy", *ACCURACIES)
OF_IMAGES = "test_accuracy"
# all seeds may choose on the same few validation images, which can favour one of two equal rates by some points
LEAST_BEHIND = 0.05
MOST_IMAGES_OFF = 2.5  # of predictions that were made again from weights, by rounding
MOST_PAIRS = 1_024
Cell = tuple[str, str]  # arm, stratum


class _Part(NamedTuple):
    """A term of a weighted sum of arms: its weight, and which arm in which stratum."""

    weight: float
    cell: Cell


@dataclass(frozen=True)
class _Table:
    """The runs of a cell: what chooses, what is compared and what failed, (seeds, rates), and the runs' ids."""

    rates: tuple[float, ...]
    votes: Array
    scores: Array
    failed: np.ndarray
    run_ids: np.ndarray


def contrast_with_choice(view: View, comparison: Comparison, group: str) -> Contrast:
    """The per-seed numbers of a comparison at the chosen rates, with ends that hold for what could have been chosen."""
    contrast = contrast_of(view, comparison, group)
    if len(contrast.values) < 2:
        return contrast
    parts = _parts(view, comparison, group)
    if parts is not None:
        return _of_sum(view, comparison, contrast, parts, at=None)
    if comparison.over == "lr" or comparison.shape == "search":
        return _of_readings(view, contrast, [contrast])
    return _of_every_pair(view, comparison, group, contrast)


def contrast_at_rate(view: View, comparison: Comparison, group: str, lr: float) -> Contrast:
    """The per-seed numbers with every arm at one learning rate: nothing is chosen."""
    contrast = contrast_of(replace(view, runs=view.ladder[view.ladder["lr"] == lr]), comparison, group)
    if len(contrast.values) < 2:
        return contrast
    parts = _parts(view, comparison, group)
    if parts is None:
        return replace(_of_readings(view, contrast, [contrast]), left_out=())
    return _of_sum(view, comparison, contrast, parts, at=lr)


def _parts(view: View, comparison: Comparison, group: str) -> list[_Part] | None:
    """A comparison as a weighted sum of arms, each at its own best rate; None where it is no such sum."""
    chosen_for = view.selection.chooser in CHOSEN_FOR
    if not chosen_for or comparison.measure not in CHOSEN_FOR or comparison.control_measure is not None:
        return None
    one, other = comparison.treatment, comparison.control
    match comparison.shape:
        case "difference" if one != other:
            return [_Part(1.0, (str(one), group)), _Part(-1.0, (str(other), group))]
        case "level":
            return [_Part(1.0, (str(one), group))]
        case "interaction":
            assert comparison.against is not None
            four = (str(one), str(other), *comparison.against)
            if len(set(four)) < len(four):
                return None
            return [_Part(w, (arm, group)) for w, arm in zip((1.0, -1.0, -1.0, 1.0), four, strict=True)]
        case "slope" if comparison.levels:
            weights = slope_weights([level for _, level in comparison.levels])
            return [_Part(w, (arm, group)) for (arm, _), w in zip(comparison.levels, weights, strict=True) if w]
        case "slope":
            strata = view.numbered(comparison, group)
            weights = slope_weights(list(strata))
            arms = [(1.0, str(one))] + ([] if other is None else [(-1.0, str(other))])
            return [
                _Part(side * w, (arm, stratum))
                for side, arm in arms
                for stratum, w in zip(strata.values(), weights, strict=True)
                if w
            ]
        case _:
            return None


def _of_sum(
    view: View, comparison: Comparison, contrast: Contrast, parts: Sequence[_Part], *, at: float | None
) -> Contrast:
    """The contrast with the ends of a weighted sum of arms."""
    seeds = list(contrast.values)
    tables = [_table(view, comparison, part.cell, seeds, at) for part in parts]
    constant = float(comparison.reference or 0.0) if comparison.shape == "level" else 0.0
    images = _images(view, comparison, tables)
    failed = np.array([bool(contrast.failed)])

    def ends(kept: np.ndarray) -> tuple[Ends, list[Rates], list[Rates], list[Term]]:
        terms = [
            Term(part.weight, t.votes[None, kept], t.scores[None, kept], t.failed[None, kept])
            for part, t in zip(parts, tables, strict=True)
        ]
        spread = _spread_of(view, parts, terms, images, kept)
        widen = overlap_factor(view.overlap, len(kept))
        found = ends_of_choice(terms, failed=failed, constant=constant, spread=spread, widen=widen,
                               least_behind=LEAST_BEHIND)  # fmt: skip
        return (*found, terms)

    every = np.arange(len(seeds))
    whole, low, high, terms = ends(every)
    left_out = tuple(ends(np.delete(every, k))[0] for k in every) if len(seeds) > 2 and at is None else ()
    own = tuple(int(chosen_rates(term.votes)[0]) for term in terms)
    chosen = {part.cell: t.rates[k] for part, t, k in zip(parts, tables, own, strict=True)}
    lower_at, upper_at = (
        _binding(spread, rates, parts, tables, sign)
        for spread, rates, sign in ((whole.lower, low, 1), (whole.upper, high, -1))
    )
    # on its own side of the interval an arm is away from its chosen rate only where more runs failed at a smaller one
    by_failures = {
        part.cell: binding[part.cell]
        for part in parts
        if (binding := lower_at if part.weight > 0 else upper_at)[part.cell] != chosen[part.cell]
    }
    return replace(
        contrast,
        ends=whole,
        left_out=left_out,
        crossed=None if images is None else _crossed(parts, images, own, every),
        overlap=overlap_factor(view.overlap, len(seeds)),
        choice=None if at is not None or all(len(t.rates) < 2 for t in tables) else Choice(
            chosen=chosen,
            plausible={part.cell: _plausible(t, view) for part, t in zip(parts, tables, strict=True)},
            same=float(same_choice(terms)[0]),
            lower_at=lower_at,
            upper_at=upper_at,
            by_failures=by_failures,
        ),
    )  # fmt: skip


def _plausible(table: _Table, view: View) -> tuple[float, ...]:
    """The rates that validation cannot tell from the chosen one."""
    mask = plausible_rates(table.votes[None], LOOSE)[0]
    return tuple(rate for rate, kept in zip(table.rates, mask, strict=True) if kept)


def _binding(
    spread: Spread, rates: Sequence[Rates], parts: Sequence[_Part], tables: Sequence[_Table], sign: int
) -> dict[Cell, float]:
    """The rates at which an end is the farthest: what it takes to move it."""
    from scipy.stats import t as student

    half = student.isf(0.025, spread.degrees[0]) * spread.error[0]
    ends = sign * spread.mean[0] - half
    at = rates[int(np.argmin(ends))]
    return {part.cell: table.rates[place] for part, table, place in zip(parts, tables, at, strict=True)}


def _table(view: View, comparison: Comparison, cell: Cell, seeds: Sequence[int], at: float | None) -> _Table:
    """The runs of an arm in a stratum at every rate that all of these seeds were run at."""
    runs = view.selection.cell(view.ladder, *cell)
    if at is not None:
        runs = runs[runs["lr"] == at]
    failed = runs["status"] == "diverged" if comparison.measure in ACCURACIES else ~runs["healthy"]
    columns = runs[["seed", "lr", "vote", "run_id"]].assign(
        score=values_of(runs, comparison, comparison.measure), failed=failed
    )
    columns = columns[columns["seed"].isin(list(seeds))].dropna(subset=["score"])
    _refuse_twice(columns, cell[0])
    whole = [float(str(lr)) for lr, rows in columns.groupby("lr") if len(rows) == len(seeds)]
    found = {
        name: columns.pivot(index="seed", columns="lr", values=name).loc[list(seeds), whole].to_numpy()
        for name in ("vote", "score", "failed", "run_id")
    }
    return _Table(
        tuple(whole),
        found["vote"].astype(np.float64),
        found["score"].astype(np.float64),
        found["failed"].astype(np.bool_),
        found["run_id"],
    )


def _images(view: View, comparison: Comparison, tables: Sequence[_Table]) -> list[Array] | None:
    """(rates, seeds, images) of each term; None where images are no part of the spread, or predictions are missing."""
    known = view.selection.images
    if known is None or comparison.measure != OF_IMAGES or known.per_seed:
        return None
    found = []
    for table in tables:
        scores = known.scores(list(table.run_ids.T.ravel()))
        if scores is None or np.isnan(scores).any():
            return None
        found.append(scores.reshape(len(table.rates), len(table.scores), -1))
        scored = found[-1].mean(axis=2).T
        if np.abs(scored - table.scores).max() > MOST_IMAGES_OFF / found[-1].shape[2]:
            return None  # these are not the predictions of which the accuracy was recorded
    same = known.are_same([str(table.run_ids[0, 0]) for table in tables])
    return found if same and found[0].shape[2] > 1 else None


def _spread_of(
    view: View,
    parts: Sequence[_Part],
    terms: Sequence[Term],
    images: Sequence[Array] | None,
    kept: np.ndarray,
) -> Callable[[Rates, Array], Spread]:
    """From rates, and the numbers there, to their spread over seeds, and over test images where they are known."""

    def spread(at: Rates, values: Array) -> Spread:
        seeds = over_seeds(values)
        if images is None:
            return seeds._replace(error=seeds.error * overlap_factor(view.overlap, values.shape[-1]))
        crossed = _crossed(parts, images, at, kept)
        # a failed run that is raised for the other side has no images of its own: the seeds' own spread stands in then
        error = max(math.sqrt(crossed.variance), float(seeds.error[0, 0])) if not _raised(terms, at) else math.sqrt(
            float(seeds.error[0, 0]) ** 2 + crossed.images
        )  # fmt: skip
        degrees = seeds.degrees if error <= float(seeds.error[0, 0]) else np.full_like(seeds.degrees, crossed.degrees)
        return Spread(seeds.mean, np.full_like(seeds.error, error), degrees)

    return spread


def _raised(terms: Sequence[Term], at: Rates) -> bool:
    return any(bool(term.failed[0, :, place].any()) for term, place in zip(terms, at, strict=True))


def _crossed(parts: Sequence[_Part], images: Sequence[Array], at: Rates, kept: np.ndarray) -> Crossed:
    differences = sum(part.weight * scores[place][kept] for part, scores, place in zip(parts, images, at, strict=True))
    return over_seeds_and_images(np.asarray(differences, dtype=np.float64))


def _of_every_pair(view: View, comparison: Comparison, group: str, contrast: Contrast) -> Contrast:
    """The contrast with ends that hold at every combination of rates that validation cannot tell from the best."""
    seeds = list(contrast.values)
    cells = [(arm, stratum) for arm in comparison.arms for stratum in view.strata(comparison, group).values()]
    tables = {cell: _votes(view, cell, seeds) for cell in cells}
    tables = {cell: table for cell, table in tables.items() if not table.empty}
    plausible = {}
    for cell, votes in tables.items():
        widen = overlap_factor(view.overlap, len(seeds))
        mask = plausible_rates(votes.to_numpy()[None], LOOSE, widen=widen)[0]
        plausible[cell] = tuple(float(lr) for lr, kept in zip(votes.columns, mask, strict=True) if kept)
    chosen = {cell: view.selection.best_lr[cell] for cell in tables}
    readings = [contrast]
    rates = {cell: _distinct(view, comparison, cell, plausible[cell], chosen[cell]) for cell in tables}
    partial = math.prod(len(own) for own in rates.values()) > MOST_PAIRS
    for other in _assignments(chosen, rates):
        places = zip(view.ladder["arm"], view.ladder["stratum"], view.ladder["lr"], strict=True)
        runs = view.ladder[[other.get((arm, stratum)) == lr for arm, stratum, lr in places]]
        read = contrast_of(replace(view, runs=runs), comparison, group)
        if len(set(seeds) & set(read.values)) >= 2:  # a seed without a value there has no part in this reading
            readings.append(read)
    terms = [Term(1.0, table.to_numpy()[None], table.to_numpy()[None], np.zeros((1, *table.shape), bool))
             for table in tables.values()]  # fmt: skip
    several = any(table.shape[1] > 1 for table in tables.values())
    return replace(
        _of_readings(view, contrast, readings),
        choice=Choice(chosen, plausible, float(same_choice(terms)[0]), {}, {}, partial) if several else None,
    )


def _of_readings(view: View, contrast: Contrast, readings: Sequence[Contrast]) -> Contrast:
    """The contrast with ends that hold in all of these readings, and at the bounds of each."""
    seeds = list(contrast.values)
    numbers = np.array(
        [[values.get(seed, math.nan) for seed in seeds] for read in readings for values in (read.values, *read.bounds)]
    )
    own = np.array([[contrast.values[seed] for seed in seeds]])
    failed = any(bool(read.failed) for read in readings)

    def ends(kept: np.ndarray) -> Ends:
        widen = overlap_factor(view.overlap, len(kept))
        return ends_of_readings(own[:, kept], numbers[None][:, :, kept], failed=failed, widen=widen)

    every = np.arange(len(seeds))
    return replace(
        contrast,
        ends=ends(every),
        left_out=tuple(ends(np.delete(every, k)) for k in every) if len(seeds) > 2 else (),
        overlap=overlap_factor(view.overlap, len(seeds)),
    )


def _assignments(chosen: dict[Cell, float], rates: dict[Cell, tuple[float, ...]]) -> list[dict[Cell, float]]:
    """Every combination of rates but the chosen one; of too many, those in which one cell is not at its chosen rate."""
    cells = list(rates)
    if math.prod(len(own) for own in rates.values()) > MOST_PAIRS:
        return [chosen | {cell: lr} for cell in cells for lr in rates[cell] if lr != chosen[cell]]
    every = (dict(zip(cells, combination, strict=True)) for combination in product(*rates.values()))
    return [assignment for assignment in every if assignment != chosen]


def _distinct(
    view: View, comparison: Comparison, cell: Cell, rates: Sequence[float], chosen: float
) -> tuple[float, ...]:
    """Rates without those at which the runs are the same in all that is compared, as where all are at chance."""
    runs = view.selection.cell(view.ladder, *cell)
    seen: dict[tuple[object, ...], float] = {}
    for lr in [chosen, *(rate for rate in rates if rate != chosen)]:
        own = runs[runs["lr"] == lr].sort_values("seed")
        seen.setdefault((*values_of(own, comparison, comparison.measure).fillna(-1.0), *own["status"]), lr)
    return tuple(sorted(seen.values()))


def _votes(view: View, cell: Cell, seeds: Sequence[int]) -> pd.DataFrame:
    """Seeds by rates, of the rates that all of these seeds were run at."""
    runs = view.selection.cell(view.ladder, *cell)
    _refuse_twice(runs, cell[0])
    return runs[runs["seed"].isin(list(seeds))].pivot(index="seed", columns="lr", values="vote").dropna(axis=1)


def _refuse_twice(runs: pd.DataFrame, arm: str) -> None:
    twice = runs[runs.duplicated(["seed", "lr"])]
    if not twice.empty:
        seed, lr = twice[["seed", "lr"]].iloc[0]
        raise StoreError(f"arm {arm!r}: seed {int(seed)} occurs twice at learning rate {lr:g}: which of them counts?")
