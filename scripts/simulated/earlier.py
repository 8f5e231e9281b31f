"""What was done before: a few seeds choose the rates, and the others are compared there by a plain t interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnexp.analysis.choice import Term, chosen_rates
from bnexp.analysis.rule import Rule, ends_of, weigh
from bnexp.analysis.significance import Array
from bnexp.analysis.worlds import Judged, TunedStudies, raised_by


def num_tuning(num_seeds: int) -> int:
    """Seeds that only chose: 3, and 2 of six."""
    return 2 if num_seeds <= 6 else 3


def judge_earlier(studies: TunedStudies, rule: Rule, *, gains: Sequence[float] = (0.0,)) -> list[Judged]:
    """What the earlier rule said where the treatment is that much better; one answer a gain.

    A difference was said where the t interval excluded 0 and the mean reached the margin; an equivalence where the
    90 % interval lay inside the margin. Exact sign flips had to agree where a run failed, as they have to now. With six
    seeds four were left, which the rule refused to judge: what is counted there is what its interval would have said.
    """
    first = num_tuning(studies.control.scores.shape[1])
    parts = [_reported(term, first) for term in (studies.treatment, studies.control)]
    values = parts[0][0] - parts[1][0]
    ends = ends_of(values, failed=np.asarray((parts[0][1] | parts[1][1]).any(axis=1)))
    found = []
    for gain in gains:
        moved = raised_by(ends, gain)
        evidence = weigh(moved, rule, only_below=2 * rule.alpha)
        low, high = moved.interval(rule.alpha)
        large = np.abs(moved.mean) >= rule.margin
        said = np.where(large, evidence.direction, 1.0)
        # two one-sided tests at alpha, not at alpha / 2
        found.append(Judged(evidence.side, said, said, evidence.equivalence / 2, low, high))
    return found


def plain_t(studies: TunedStudies, rule: Rule) -> Judged:
    """The same choice, and the t interval alone, whatever the margin."""
    return judge_earlier(studies, replace(rule, margin=1e-9))[0]


def _reported(term: Term, first: int) -> tuple[Array, NDArray[np.bool_]]:
    """(rows, seeds) scores and failures of the seeds after the first ones, at the rate that those chose."""
    at = chosen_rates(term.votes[:, :first])[:, None, None]
    return (
        np.take_along_axis(term.scores[:, first:], at, axis=2)[:, :, 0],
        np.take_along_axis(term.failed[:, first:], at, axis=2)[:, :, 0],
    )
