"""Comparing arms that each chose a learning rate: the choice is part of what is judged.

**What is estimated.** The difference of the arms, *each at the best rate of its ladder*. It depends neither on the
number of seeds nor on how noisy validation is. All seeds choose, by their mean on validation, and all are reported.

**How.** The rate that an arm chose is no better than its best one. So a lower end for "treatment's best − control's
best" is one for "treatment's chosen rate − the control's best", whichever rate of the control that is: the interval of
the chosen rate against *every* rate of the other arm must hold (an intersection–union test, which needs no correction).
Rates that validation shows to be far worse are left out: they are not the best. One thing is left to take
off: validation and test of a run share its luck, so the chosen rate looks better than it is. The mean excess of the
chosen rate over bootstrap resamples of the seeds says by how much, less the part that the other arm's best in hindsight
gains in the same way. The same holds for the upper end, with the arms swapped, and for any weighted sum of arms.

**Failures.** A run that diverges scores chance, far below the others, and larger rates make that likelier. Where an arm
chose a rate at which few or no runs failed, and more failed at a *smaller* one that validation does not rule out, the
chosen rate was lucky: its end must hold at that smaller rate too, which is valid because the best rate is no worse than
any. Where it is the arm to be beaten, its failures are
raised (`Term.raised`), so that one failed run does not bury what the other seeds say. A chance of failing that shows in
no run at all is in no interval.

Where the measure is not what a rate is chosen for (a gap, a time, a drift), no order of rates helps: there the interval
holds for every pair of rates that validation cannot tell from the best.

Its error rates are measured and not proved: results/reference/verdict-error-rates, which compares it with what was
done before. Source of the idea: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling"; of the guard:
Efron & Tibshirani 1993, "An introduction to the bootstrap", on optimism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.rule import Ends, coarse
from bnexp.analysis.significance import Array, above_p, mean_and_error
from bnexp.analysis.spread import Spread
from bnexp.analysis.stats import VOTE_DECIMALS

RESAMPLES = 1_000
# one-sided level at which validation rules a rate out: strict where the interval covers every rate that is left, and
# looser where it has to cover every pair of them
STRICT, LOOSE = 0.01, 0.05
MOST_READINGS = 4_096
Rates = tuple[int, ...]  # the place of each term's rate in its ladder


@dataclass(frozen=True)
class Term:
    """An arm in one stratum, as it enters a weighted sum.

    Attributes:
        weight: in the sum; not 0.
        votes: (rows, seeds, rates) what chooses, higher being better; rates ascend.
        scores: (rows, seeds, rates) what is compared, in its stored unit and higher being better.
        failed: (rows, seeds, rates) whether the run diverged or collapsed, so that its score is chance.
    """

    weight: float
    votes: Array
    scores: Array
    failed: NDArray[np.bool_]

    @cached_property
    def raised(self) -> Array:
        """The scores with each failed one raised to the mean of its rate's healthy ones, where half are healthy.

        Where an arm is the one to be beaten, a number that is too high only makes that harder, and so keeps an end
        valid. Its failures then no longer stretch the interval on the side where they speak for the other arm.
        """
        healthy = ~self.failed
        count = healthy.sum(axis=1, keepdims=True)
        mean = np.where(healthy, self.scores, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
        return np.where(self.failed & (2 * count >= healthy.shape[1]), np.maximum(mean, self.scores), self.scores)


@dataclass(frozen=True)
class Guards:
    """What the choice flatters, taken off the lower and added to the upper end; (rows,) each."""

    lower: Array
    upper: Array


def chosen_rates(votes: Array) -> NDArray[np.int64]:
    """(rows,) the place of the rate with the best mean vote; ties go to the first."""
    return np.asarray(votes.mean(axis=1).round(VOTE_DECIMALS).argmax(axis=1), dtype=np.int64)


def plausible_rates(votes: Array, level: float, *, widen: float = 1.0, least_behind: float = 0.0) -> NDArray[np.bool_]:
    """(rows, rates) whether the chosen rate does not beat it on validation, by a paired t test at this one-sided level.

    Args:
        votes: (rows, seeds, rates); with a single seed every rate is plausible.
        widen: what standard errors are multiplied by, for splits that share their images.
        least_behind: a rate that is behind by no more than this, in the unit of the votes, is plausible anyway.
    """
    rows, num_seeds, num_rates = votes.shape
    if num_seeds < 2:
        return np.ones((rows, num_rates), dtype=np.bool_)
    ahead = np.take_along_axis(votes, chosen_rates(votes)[:, None, None], axis=2) - votes
    mean, error, _ = mean_and_error(np.moveaxis(ahead, 1, 2))
    beaten = above_p(mean, widen * error, np.array(num_seeds - 1.0), 0.0) <= level
    return np.asarray(~beaten | (mean <= least_behind))


def guards_of(terms: Sequence[Term]) -> Guards:
    """The winner's curse of the chosen rates, less that of the other side's best in hindsight, where it is above 0."""
    excess = [_excess(term) for term in terms]

    def side(sign: int) -> Array:
        chosen = sum(abs(t.weight) * e[0] for t, e in zip(terms, excess, strict=True) if t.weight * sign > 0)
        hindsight = sum(abs(t.weight) * e[1] for t, e in zip(terms, excess, strict=True) if t.weight * sign < 0)
        return np.maximum(0.0, np.asarray(chosen - hindsight, dtype=np.float64)) + np.zeros(len(terms[0].votes))

    return Guards(side(1), side(-1))


def _excess(term: Term) -> tuple[Array, Array]:
    """(rows,) how much better than they are the rate that a resample validates, and its best in hindsight, look."""
    if term.votes.shape[2] == 1:
        return np.zeros(len(term.votes)), np.zeros(len(term.votes))
    weights = resampling_weights(term.votes.shape[1])
    votes, scores = weights @ term.votes, weights @ term.raised  # (rows, resamples, rates)
    # against the mean of these resamples: a rate that all of them choose has no excess, whatever was drawn
    above = scores - scores.mean(axis=1, keepdims=True)
    found = []
    for judge in (votes, scores):
        best = judge.round(VOTE_DECIMALS).argmax(axis=2)[:, :, None]
        found.append(np.take_along_axis(above, best, axis=2)[:, :, 0].mean(axis=1))
    return found[0], found[1]


@cache
def resampling_weights(num_seeds: int) -> Array:
    """(resamples, seeds) the share of each seed in each bootstrap resample; always the same ones."""
    drawn = np.random.default_rng(0).integers(0, num_seeds, size=(RESAMPLES, num_seeds))
    return np.stack([(drawn == seed).mean(axis=1) for seed in range(num_seeds)], axis=1)


def same_choice(terms: Sequence[Term]) -> Array:
    """(rows,) the share of resamples of the seeds in which every term chooses the rate that it chose."""
    weights = resampling_weights(terms[0].votes.shape[1])
    same = [
        (weights @ term.votes).round(VOTE_DECIMALS).argmax(axis=2) == chosen_rates(term.votes)[:, None]
        for term in terms
    ]
    return np.asarray(np.logical_and.reduce(same).mean(axis=1))


def ends_of_choice(
    terms: Sequence[Term],
    *,
    failed: NDArray[np.bool_],
    constant: float = 0.0,
    spread: Callable[[Rates, Array], Spread] | None = None,
    widen: float = 1.0,
    least_behind: float = 0.0,
) -> tuple[Ends, list[Rates], list[Rates]]:
    """The ends of Σ weight · (an arm at its best rate) − constant.

    Args:
        terms: of one number of rows and seeds.
        failed: (rows,) whether a failed run is behind any number of a row at the chosen rates.
        spread: from the rates of each term and the numbers there, (1, n), to their spread; for one row. None: over
            seeds alone.
        widen: what is multiplied by it because splits share images: the luck of the choice, and errors on validation.
        least_behind: as in `plausible_rates`: what one set of validation images may make of two equal rates.

    Returns:
        The ends, and the rates that each reading of the lower and of the upper one is at; of the first row.
    """
    chosen = [chosen_rates(term.votes) for term in terms]
    own = _sum(terms, [term.scores for term in terms], chosen) - constant
    guards = guards_of(terms)
    allowed = [plausible_rates(term.votes, STRICT, widen=widen, least_behind=least_behind) for term in terms]
    lower, low_values, low_rates = _end(terms, chosen, allowed, 1, constant, widen * guards.lower, spread)
    upper, high_values, high_rates = _end(terms, chosen, allowed, -1, constant, widen * guards.upper, spread)
    ends = Ends(own.mean(axis=1), lower, upper, failed | coarse(own), low_values, high_values)
    return ends, low_rates, high_rates


def _end(
    terms: Sequence[Term],
    chosen: Sequence[NDArray[np.int64]],
    plausible: Sequence[NDArray[np.bool_]],
    sign: int,
    constant: float,
    guard: Array,
    spread: Callable[[Rates, Array], Spread] | None,
) -> tuple[Spread, Array, list[Rates]]:
    """One end: terms on its side (weight · sign > 0) are at their chosen rates, all others at every plausible one.

    A term on its side is also at plausible rates below the chosen one at which more runs failed.
    """
    rows = len(terms[0].votes)
    own_side = [term.weight * sign > 0 for term in terms]
    allowed = [
        rates & (_more_failed(term, own) if mine else True)
        for term, rates, own, mine in zip(terms, plausible, chosen, own_side, strict=True)
    ]
    choices: list[list[int | None]] = [
        [*([None] if mine else []), *(int(place) for place in np.flatnonzero(mask.any(axis=0)))]
        for mask, mine in zip(allowed, own_side, strict=True)
    ]
    scores = [term.scores if mine else term.raised for term, mine in zip(terms, own_side, strict=True)]
    combinations = _combinations(terms, scores, choices, sign)
    means, errors, degrees, numbers, rates = [], [], [], [], []
    for combination in combinations:
        places = [
            own if place is None else np.full(rows, place) for own, place in zip(chosen, combination, strict=True)
        ]
        counts = np.logical_and.reduce(
            [
                np.ones(rows, dtype=bool) if place is None else mask[:, place]
                for mask, place in zip(allowed, combination, strict=True)
            ]
        )
        values = _sum(terms, scores, places) - constant - sign * guard[:, None]
        at = tuple(int(place[0]) for place in places)
        if spread is None:
            mean, error, num = mean_and_error(values)
            freedom = np.full(rows, num - 1.0)
        else:
            mean, error, freedom = (part[:, 0] for part in spread(at, values))
        means.append(np.where(counts, mean, sign * np.inf))
        errors.append(error)
        degrees.append(freedom)
        numbers.append(np.where(counts[:, None], values, np.nan))
        rates.append(at)
    stacked = Spread(np.stack(means, 1), np.stack(errors, 1), np.stack(degrees, 1))
    return stacked, np.stack(numbers, 1), rates


def _more_failed(term: Term, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(rows, rates) whether it is a smaller rate than the chosen one, and more runs failed there."""
    failures, places = term.failed.sum(axis=1), np.arange(term.failed.shape[2])
    return np.asarray((failures > np.take_along_axis(failures, chosen[:, None], axis=1)) & (places < chosen[:, None]))


def _combinations(
    terms: Sequence[Term], scores: Sequence[Array], choices: Sequence[list[int | None]], sign: int
) -> list[tuple[int | None, ...]]:
    """Every combination of rates; of too many, those that differ in one term from the one with the farthest mean.

    The mean of a sum is farthest where each term is at its own farthest rate; only its error depends on all of them.
    """
    if math.prod(len(own) for own in choices) <= MOST_READINGS:
        return list(product(*choices))
    farthest: list[int | None] = []
    for term, own_scores, own in zip(terms, scores, choices, strict=True):
        pull = sign * term.weight * own_scores.mean(axis=(0, 1))
        farthest.append(min(own, key=lambda place: -math.inf if place is None else float(pull[place])))
    changed = [(*farthest[:k], place, *farthest[k + 1 :]) for k, own in enumerate(choices) for place in own]
    return list(dict.fromkeys([tuple(farthest), *changed]))


def _sum(terms: Sequence[Term], scores: Sequence[Array], places: Sequence[NDArray[np.int64]]) -> Array:
    """(rows, seeds) the weighted sum of scores with each term at these rates."""
    return np.asarray(
        sum(
            term.weight * np.take_along_axis(own, place[:, None, None], axis=2)[:, :, 0]
            for term, own, place in zip(terms, scores, places, strict=True)
        )
    )
