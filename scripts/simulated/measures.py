"""A measure that no rate is chosen for: its interval holds for every pair of rates that could be the best."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from bnexp.analysis.choice import Term, chosen_rates, plausible_rates
from bnexp.analysis.rule import Ends, Rule
from bnexp.analysis.significance import Array, mean_and_error
from bnexp.analysis.spread import Spread
from bnexp.analysis.worlds import OWN_SD, TunedWorld, judge_ends, raised_by
from simulated.tables import MARGIN, SEEDS, Row, arms_of, share, write_rows

RULE = Rule("higher", MARGIN)
LEVELS = (0.01, 0.025, 0.05, 0.1, 0.2)
# of validation: two rates tie; a near-tie; all tie; a plain best; and a plain best against a hair's breadth
LADDERS = ("0 0 -2 -4", "-.3 0 -.3 -1.5", "0 0 0 0", "-1.5 -1.5 0 -1.5", "-9 0 -9 -9 | -.1 0 -.1 -.1")
PER_RATE = (0.0, 1.0, 3.0)  # points that the measure changes by from one rate to the next
COLUMNS = (
    "level",
    "ladder",
    "change_per_rate",
    "num_seeds",
    "num_worlds",
    "false_difference",
    "false_equivalence",
    "coverage",
    "power_two_margins",
)


def write_measures(folder: Path, num: int) -> None:
    write_rows(folder / "measures.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for ladder, per_rate, seeds in product(LADDERS, PER_RATE, SEEDS):
        rng = np.random.default_rng([LADDERS.index(ladder), round(per_rate), seeds])
        studies = TunedWorld("gaussian", *arms_of(ladder)).draw(rng, num, seeds)
        terms = (studies.treatment, studies.control)
        # a run's luck moves both what is measured and what it is chosen by, as in a gap between two accuracies
        measured = [_measured(term, np.array(means), per_rate, rng)
                    for term, means in zip(terms, reversed(arms_of(ladder)), strict=True)]  # fmt: skip
        for level in LEVELS:
            ends = ends_of_every_pair(terms, measured, level)
            zero, one, two = (judge_ends(raised_by(ends, gain), RULE) for gain in (0.0, MARGIN, 2 * MARGIN))
            yield {
                "level": level,
                "ladder": ladder,
                "change_per_rate": per_rate,
                "num_seeds": seeds,
                "num_worlds": num,
                "false_difference": share(zero.direction <= RULE.alpha),
                "false_equivalence": share(one.equivalence <= RULE.alpha),
                "coverage": share((zero.low <= 0) & (zero.high >= 0)),
                "power_two_margins": share((two.direction <= RULE.alpha) & (two.side > 0)),
            }


def _measured(term: Term, means: Array, per_rate: float, rng: np.random.Generator) -> Array:
    """(rows, seeds, rates) a measure that depends on the rate, half of whose luck is that of the run."""
    luck = (term.scores - means + OWN_SD * rng.standard_normal(term.scores.shape)) / np.sqrt(2)
    return np.asarray(luck + per_rate * np.arange(term.scores.shape[2]))


def ends_of_every_pair(terms: tuple[Term, Term], measured: list[Array], level: float) -> Ends:
    """The ends of treatment − control that hold at every pair of plausible rates, as in `tuned.py`."""
    masks = [plausible_rates(term.votes, level) for term in terms]
    chosen = [chosen_rates(term.votes)[:, None, None] for term in terms]
    own = [np.take_along_axis(m, at, axis=2)[:, :, 0] for m, at in zip(measured, chosen, strict=True)]
    rates = [range(m.shape[2]) for m in measured]
    pairs = list(product(*rates))
    values = np.stack([measured[0][:, :, i] - measured[1][:, :, j] for i, j in pairs], axis=1)
    counts = np.stack([masks[0][:, i] & masks[1][:, j] for i, j in pairs], axis=1)
    mean, error, num = mean_and_error(values)
    degrees = np.full(mean.shape, num - 1.0)
    return Ends(
        (own[0] - own[1]).mean(axis=1),
        Spread(np.where(counts, mean, np.inf), error, degrees),
        Spread(np.where(counts, mean, -np.inf), error, degrees),
        np.zeros(len(mean), dtype=np.bool_),
        np.where(counts[:, :, None], values, np.nan),
        np.where(counts[:, :, None], values, np.nan),
    )
