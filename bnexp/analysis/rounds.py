"""A study that adds seeds in rounds: judged at each planned look in turn, until all is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bnexp.analysis.claims import ClaimVerdict, Declared, judge_study
from bnexp.analysis.select import Selection
from bnexp.analysis.sequential import Look, settle, should_stop, waits
from bnexp.study import StudySpec


class Rounds(NamedTuple):
    """How far a study has come.

    Attributes:
        claims: each as at the look that decided it, or else at the last one.
        number: of the last look that all runs were there for, 0 where there is none: looks[number] comes next.
        stop: no more seeds are to be added.
    """

    claims: list[ClaimVerdict]
    number: int
    stop: bool


def judge_rounds(selection: Selection, study: StudySpec, declared: Declared, looks: Sequence[Look]) -> Rounds:
    """The verdicts after as many looks as there are runs for, each at its own alpha; the first decision stands.

    Every look is judged from the first reported seeds alone, whatever else has been run, so that judging again at any
    later time gives the same. Learning rates are chosen by the tuning seeds, which do not change between looks. A look
    that has begun and lacks runs ends the sequence: what it was to decide is untested. After a look that stops the
    study nothing is looked at, even where it has been run.

    Args:
        study: at one tier.
        declared: with all reported seeds, in their order.
        looks: as `plan_looks` has them, over numbers of reported seeds.

    Raises:
        ValueError: a look at more seeds than are declared.
        StoreError: two runs of one arm and stratum share a learning rate and a seed.
    """
    if not looks or looks[-1].num_pairs > len(declared.seeds):
        raise ValueError(f"looks at up to {looks[-1].num_pairs if looks else 0} of {len(declared.seeds)} seeds")
    claims: list[ClaimVerdict] = []
    for look in looks:
        if look.number > 1 and not _begun(selection, declared, looks[look.number - 2], look):
            return Rounds(claims, look.number - 1, stop=False)
        now = judge_look(selection, study, declared, look)
        # comparisons and strata do not change between looks, so their places name them
        settled = settle(*({str(i): claim.verdict for i, claim in enumerate(found)} for found in (claims, now)))
        claims = [
            claims[i] if claims and settled[str(i)] is claims[i].verdict else claim for i, claim in enumerate(now)
        ]
        if any(waits(verdict) for verdict in settled.values()):
            return Rounds(claims, look.number - 1, stop=False)
        if should_stop(look, settled):
            return Rounds(claims, look.number, stop=True)
    raise AssertionError("the last look stops")


def judge_look(selection: Selection, study: StudySpec, declared: Declared, look: Look) -> list[ClaimVerdict]:
    """The verdicts at one look by itself, from the seeds that it takes in."""
    later = declared.seeds[look.num_pairs :]
    taken_in = replace(selection, runs=selection.runs[~selection.runs["seed"].isin(later)])
    seeds = replace(declared, seeds=declared.seeds[: look.num_pairs])
    claims = judge_study(taken_in, study, declared=seeds, alpha=look.alpha)
    return [replace(claim, look=look.number) for claim in claims]


def _begun(selection: Selection, declared: Declared, before: Look, look: Look) -> bool:
    added = declared.seeds[before.num_pairs : look.num_pairs]
    return bool(selection.runs["seed"].isin(added).any())
