"""Other ways to compare arms that chose a rate, on the same simulated studies: what each errs and finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bnexp.analysis.choice import Term, chosen_rates
from bnexp.analysis.rule import Rule
from bnexp.analysis.significance import Array, above_p, mean_and_error
from bnexp.analysis.worlds import TunedStudies, TunedWorld, judge_studies
from simulated.earlier import plain_t
from simulated.tables import MARGIN, Row, arms_of, write_rows

ALPHA = 0.05
NUM_SEEDS = 10
VOTE_SDS = (0.5, 1.5)  # little and much noise of validation
LADDERS = (
    "0 0 0 0",
    "-1 0 -1 -2",
    "-1.5 -1.5 0 -1.5",
    "-3 -.7 0 -.7",
    "-.7 0 -.3 -1.5",
    "0 -2 0 -2",
    "-8 -8 0 -8",
    "0 0 0 0 | -1.5 -1.5 0 -1.5",
    "-1 0 -1 -2 | -.7 -.7 0 -.7",
    "0 0 0 0 0 0 0 0",
    "-3 -2 -1 -.5 0 -.5 -1 -2",
)
COLUMNS = (
    "procedure",
    "num_worlds",
    "false_difference_mean",
    "false_difference_worst",
    "worst_ladder",
    "power_one_margin_little_noise",
    "power_one_margin_much_noise",
)


class Sides(NamedTuple):
    """(rows,) one-sided p that treatment − control is at most 0, and that it is at least 0."""

    above: Array
    below: Array


def write_procedures(folder: Path, num: int) -> None:
    write_rows(folder / "procedures.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for name, procedure in PROCEDURES.items():
        errors: dict[str, list[float]] = {}
        power: dict[float, list[float]] = {sd: [] for sd in VOTE_SDS}
        for place, ladder in enumerate(LADDERS):
            for sd in VOTE_SDS:
                same, better = (
                    TunedWorld("gaussian", *arms_of(ladder), effect, sd).draw(
                        np.random.default_rng([place, round(10 * sd)]), num, NUM_SEEDS
                    )
                    for effect in (0.0, MARGIN)
                )
                sides = procedure(same, ladder)
                errors.setdefault(ladder, []).append(float((np.minimum(sides.above, sides.below) <= ALPHA / 2).mean()))
                power[sd].append(float((procedure(better, ladder).above <= ALPHA / 2).mean()))
        worst = max(errors, key=lambda ladder: max(errors[ladder]))
        yield {
            "procedure": name,
            "num_worlds": num,
            "false_difference_mean": round(float(np.mean(list(errors.values()))), 4),
            "false_difference_worst": round(max(errors[worst]), 4),
            "worst_ladder": worst,
            "power_one_margin_little_noise": round(float(np.mean(power[VOTE_SDS[0]])), 4),
            "power_one_margin_much_noise": round(float(np.mean(power[VOTE_SDS[1]])), 4),
        }


def oracle(studies: TunedStudies, ladder: str) -> Sides:
    """The best rates are known."""
    control, treatment = (int(np.argmax(means)) for means in arms_of(ladder))
    return _t(studies.treatment.scores[:, :, treatment] - studies.control.scores[:, :, control])


def tuning_seeds(studies: TunedStudies, ladder: str) -> Sides:
    """Three seeds choose, seven are compared."""
    del ladder
    judged = plain_t(studies, Rule("higher", MARGIN))
    one_sided = judged.direction / 2
    return Sides(np.where(judged.side > 0, one_sided, 1.0), np.where(judged.side < 0, one_sided, 1.0))


def leave_one_out(studies: TunedStudies, ladder: str) -> Sides:
    """Each seed is compared at the rates that the others choose."""
    del ladder
    return _t(_by_the_others(studies.treatment) - _by_the_others(studies.control))


def leave_one_out_against_every_rate(studies: TunedStudies, ladder: str) -> Sides:
    """One arm at the rates that the other seeds choose has to beat every rate of the other arm."""
    del ladder
    above = _t(_by_the_others(studies.treatment)[:, None] - np.moveaxis(studies.control.scores, 2, 1)).above
    below = _t(np.moveaxis(studies.treatment.scores, 2, 1) - _by_the_others(studies.control)[:, None]).below
    return Sides(above.max(axis=1), below.max(axis=1))


def of_bnexp(studies: TunedStudies, ladder: str) -> Sides:
    """What the product does: the chosen rate against every plausible one, less the winner's curse."""
    del ladder
    judged = judge_studies(studies, Rule("higher", MARGIN))[0]
    one_sided = judged.direction / 2
    return Sides(np.where(judged.side > 0, one_sided, 1.0), np.where(judged.side < 0, one_sided, 1.0))


def _t(values: Array) -> Sides:
    mean, error, num = mean_and_error(values)
    degrees = np.array(num - 1.0)
    return Sides(above_p(mean, error, degrees, 0.0), above_p(-mean, error, degrees, 0.0))


def _by_the_others(term: Term) -> Array:
    """(rows, seeds) each seed's score at the rate that the other seeds choose."""
    num_studies, num_seeds = term.scores.shape[0], term.scores.shape[1]
    found = np.empty((num_studies, num_seeds))
    for seed in range(num_seeds):
        at = chosen_rates(np.delete(term.votes, seed, axis=1))
        found[:, seed] = np.take_along_axis(term.scores[:, seed], at[:, None], axis=1)[:, 0]
    return found


PROCEDURES: dict[str, Callable[[TunedStudies, str], Sides]] = {
    "best rates known": oracle,
    "three tuning seeds, t": tuning_seeds,
    "leave-one-out, t": leave_one_out,
    "leave-one-out against every rate": leave_one_out_against_every_rate,
    "bnexp": of_bnexp,
}
