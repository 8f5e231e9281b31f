"""Other shapes of a claim than a difference of two arms: one arm against a constant, interactions, slopes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from bnexp.analysis.choice import Term, ends_of_choice
from bnexp.analysis.contrasts import slope_weights
from bnexp.analysis.rule import Ends, Rule
from bnexp.analysis.worlds import CHUNK, LEAST_BEHIND_POINTS, Judged, TunedWorld, joined, judge_ends
from simulated.tables import MARGIN, Row, as_ladder, share, write_rows

SEEDS = (6, 10)
RULE = Rule("higher", MARGIN)
SHAPES = {
    "level": (1.0,),
    "interaction": (1.0, -1.0, -1.0, 1.0),
    "slope over 3 levels": tuple(w for w in slope_weights([1, 2, 8]) if w),
}
FLAT, POINTED, NEAR = "0 0 0 0", "-1.5 -1.5 0 -1.5", "-.7 0 -.3 -1.5"
# of the terms that count upwards, and of those that count downwards
LADDERS = ((FLAT, FLAT), (POINTED, POINTED), (NEAR, NEAR), (FLAT, POINTED), (POINTED, FLAT))
COLUMNS = ("shape", "upward", "downward", "num_seeds", "num_worlds", "false_difference", "coverage")


def write_sums(folder: Path, num: int) -> None:
    write_rows(folder / "sums.csv", _rows(num), COLUMNS)


def _rows(num: int) -> Iterator[Row]:
    for (shape, weights), (place, (upward, downward)), seeds in product(SHAPES.items(), enumerate(LADDERS), SEEDS):
        if len(weights) == 1 and place >= 3:
            continue  # it has no second ladder
        rng = np.random.default_rng([list(SHAPES).index(shape), place, seeds])
        terms = [_term(weight, upward if weight > 0 else downward, num, seeds, rng) for weight in weights]
        judged = joined([judge_ends(_ends(terms, slice(k, k + CHUNK)), RULE) for k in range(0, num, CHUNK)])
        yield {
            "shape": shape,
            "upward": upward,
            "downward": downward if len(weights) > 1 else "",
            "num_seeds": seeds,
            "num_worlds": num,
            "false_difference": share(judged.direction <= RULE.alpha),
            "coverage": share(_covers_zero(judged)),
        }


def _term(weight: float, ladder: str, num: int, seeds: int, rng: np.random.Generator) -> Term:
    means = as_ladder(ladder)
    return replace(TunedWorld("gaussian", means, means).draw(rng, num, seeds).treatment, weight=weight)


def _ends(terms: list[Term], kept: slice) -> Ends:
    parts = [Term(t.weight, t.votes[kept], t.scores[kept], t.failed[kept]) for t in terms]
    return ends_of_choice(
        parts, failed=np.zeros(len(parts[0].votes), dtype=np.bool_), least_behind=LEAST_BEHIND_POINTS
    )[0]


def _covers_zero(judged: Judged) -> np.ndarray:
    return np.asarray((judged.low <= 0) & (judged.high >= 0))
