"""Worlds that the four of pipeline.csv leave out: where the procedure might break, and where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np

from bnexp.analysis.choice import Term
from bnexp.analysis.rule import Rule
from bnexp.analysis.worlds import FAILED_AT, TunedStudies, TunedWorld, judge_studies
from simulated.tables import MARGIN, Row, arms_of, share, write_rows

RULE = Rule("higher", MARGIN)
SEEDS = (6, 10)
LADDERS = ("0", "0 0 0 0", "-3 -.7 0 -.7", "-1 0 -1 -2", "-1.5 -1.5 0 -1.5", "0 0 0 0 | -1.5 -1.5 0 -1.5")
NUM_VAL, NUM_TEST = 287, 360  # images of the smallest data set
COLUMNS = (
    "case",
    "ladder",
    "num_seeds",
    "num_worlds",
    "false_difference",
    "false_equivalence",
    "coverage",
    "power_one_margin",
)
Change = Callable[[Term, np.random.Generator], Term]


def write_limits(folder: Path, num: int) -> None:
    write_rows(folder / "limits.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for (place, (case, change)), ladder, seeds in product(enumerate(CASES.items()), LADDERS, SEEDS):
        rng = np.random.default_rng([place, LADDERS.index(ladder), seeds])
        studies = TunedWorld("gaussian", *arms_of(ladder)).draw(rng, num, seeds)
        changed = TunedStudies(change(studies.control, rng), change(studies.treatment, rng))
        zero, one = judge_studies(changed, RULE, gains=(0.0, MARGIN))
        yield {
            "case": case,
            "ladder": ladder,
            "num_seeds": seeds,
            "num_worlds": num,
            "false_difference": share(zero.direction <= RULE.alpha),
            "false_equivalence": share(one.equivalence <= RULE.alpha),
            "coverage": share((zero.low <= 0) & (zero.high >= 0)),
            "power_one_margin": share((one.direction <= RULE.alpha) & (one.side > 0)),
        }


def biased(points: float) -> Change:
    """The images of a small validation set favour some rates of an arm, in every seed alike."""

    def change(term: Term, rng: np.random.Generator) -> Term:
        shape = (len(term.votes), 1, term.votes.shape[2])
        return Term(term.weight, term.votes + points * rng.standard_normal(shape), term.scores, term.failed)

    return change


def coarse(term: Term, rng: np.random.Generator) -> Term:
    """Accuracies are whole numbers of images, so that many tie."""
    del rng
    votes, scores = (
        np.round(numbers * num / 100) * 100 / num for numbers, num in ((term.votes, NUM_VAL), (term.scores, NUM_TEST))
    )
    return Term(term.weight, votes, scores, term.failed)


def own_seeds(points: float) -> Change:
    """A seed does something to all rates of one arm alike."""

    def change(term: Term, rng: np.random.Generator) -> Term:
        both = points * rng.standard_normal((*term.votes.shape[:2], 1))
        return Term(term.weight, term.votes + both, term.scores + both, term.failed)

    return change


def failing(chance: float) -> Change:
    """Runs fail as often at the best rate as at any other."""

    def change(term: Term, rng: np.random.Generator) -> Term:
        failed = rng.random(term.votes.shape) < chance
        votes, scores = (np.where(failed, FAILED_AT, numbers) for numbers in (term.votes, term.scores))
        return Term(term.weight, votes, scores, failed)

    return change


def failing_treatment(chance: float) -> Change:
    """Runs of the treatment alone fail, at every rate; its healthy ones are so much better that the means are equal."""
    better = -chance * FAILED_AT / (1 - chance)

    def change(term: Term, rng: np.random.Generator) -> Term:
        if term.weight < 0:
            return term
        healthy = Term(term.weight, term.votes + better, term.scores + better, term.failed)
        return failing(chance)(healthy, rng)

    return change


CASES: dict[str, Change] = {
    "none": lambda term, rng: term,
    "accuracies of few images": coarse,
    "a seed moves all rates of an arm by 1 point": own_seeds(1.0),
    "3 % of the runs fail, at every rate": failing(0.03),
    "10 % of the runs fail, at every rate": failing(0.1),
    "30 % of the runs fail, at every rate": failing(0.3),
    "7 % of the treatment's runs fail, and the others make up for it": failing_treatment(0.07),
    "20 % of the treatment's runs fail, and the others make up for it": failing_treatment(0.2),
    "validation favours rates by 0.3 points": biased(0.3),
    "validation favours rates by 0.6 points": biased(0.6),
    "validation favours rates by 1.2 points": biased(1.2),
}
