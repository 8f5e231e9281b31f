"""A study of the results folder with its runs and its verdicts: what its report and the audit are both made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bnexp.analysis.claims import ClaimVerdict, declared_of, judge_study, load_study
from bnexp.analysis.frame import Frame
from bnexp.analysis.rounds import LookRuns, count_runs, judge_rounds
from bnexp.analysis.select import Selection
from bnexp.analysis.sequential import Look, looks_of
from bnexp.analysis.verdicts import Verdict
from bnexp.analysis.widening import InForce, Widened, runs_in_force
from bnexp.errors import ConfigError, StoreError
from bnexp.report.integrity import Integrity, check_study
from bnexp.store import Store
from bnexp.study import StudySpec, declaration_hash, study_from_dict

NEEDED = ("tier", "declaration", "hash", "exploratory", "run_ids", "arms")


@dataclass(frozen=True)
class Judged:
    """One started study.

    Attributes:
        name: that of its folder.
        frozen: study.json.
        spec: what it declares, at the one tier it was started at.
        claims: the verdicts, by comparison and stratum; all invalid where anything was altered.
        looks: where seeds are added in rounds, those that were planned.
        num_looks: how many of them have been judged.
        decided: no more seeds are to be added.
        next_runs: otherwise, the runs of the look that comes next.
        integrity: whether all is as it was written, and other starts of the same comparison.
        ladders: where the study widens its ladder of learning rates, each stratum's, as of the last look.
    """

    name: str
    frozen: Mapping[str, Any]
    spec: StudySpec
    frame: Frame
    selection: Selection
    claims: list[ClaimVerdict]
    looks: tuple[Look, ...] = ()
    num_looks: int = 0
    decided: bool = False
    next_runs: LookRuns | None = None
    integrity: Integrity = field(default_factory=Integrity)
    ladders: tuple[Widened, ...] = ()


def judge_started(store: Store, name: str) -> Judged:
    """Read a started study, hold it against the ledger, and judge it.

    Raises:
        ConfigError: no such study was started here, or its declaration is none.
        StoreError: its declaration was changed, nothing has ended yet, or two runs claim one place.
    """
    frozen, spec = read_frozen(store, name)
    in_force = runs_in_force(store, frozen)
    frame, selection = load_study(store, spec, in_force.run_ids, in_force.arms)
    if selection is None:
        raise nothing_ended(f"study {name!r}", frame)
    judged = _judge(store, Judged(name, frozen, spec, frame, selection, []), in_force)
    integrity = check_study(store, name, frozen, spec, frame.runs)
    claims = [_void(claim, integrity.reason) for claim in judged.claims] if integrity.altered else judged.claims
    return replace(judged, claims=claims, integrity=integrity)


def _judge(store: Store, unjudged: Judged, in_force: InForce) -> Judged:
    frozen, spec, selection = unjudged.frozen, unjudged.spec, unjudged.selection
    declared = None if frozen["exploratory"] else declared_of(spec, frozen["tier"])
    looks = looks_of(frozen)
    if declared is None or not looks:
        claims = hold_back(judge_study(selection, spec, declared=declared), selection, in_force.unsettled_ids())
        return replace(unjudged, claims=claims, ladders=in_force.ladders())
    runs = count_runs(store, frozen["run_ids"], spec, declared, looks, in_force.further)
    rounds = judge_rounds(selection, spec, declared, looks, runs, in_force.left_out())
    # what was not run was not needed
    frame = replace(unjudged.frame, missing=()) if rounds.stop else unjudged.frame
    return replace(
        unjudged, frame=frame, claims=rounds.claims, looks=looks, num_looks=rounds.number, decided=rounds.stop,
        next_runs=None if rounds.stop else runs[rounds.number], ladders=in_force.ladders(max(0, rounds.number - 1)),
    )  # fmt: skip


def _void(claim: ClaimVerdict, reason: str) -> ClaimVerdict:
    """The claim without a verdict, for its numbers cannot be believed."""
    verdict = replace(claim.verdict, outcome="invalid", reason=reason, effect=None, needed=None)
    return replace(claim, verdict=verdict, readings={}, values={}, contrast=None, other_inits=())


def hold_back(claims: Sequence[ClaimVerdict], selection: Selection, unsettled: Collection[str]) -> list[ClaimVerdict]:
    """The verdicts, those at best learning rates untested in strata whose ladder is not settled yet.

    Comparisons that go over the learning rate judge the ladder as declared, which is whole.

    Args:
        unsettled: the ids of runs in these strata: `InForce.unsettled_ids`.
    """
    strata = set(selection.runs.loc[selection.runs["run_id"].isin(unsettled), "stratum"])
    return [
        _held_back(claim)
        if strata.intersection(selection.groups(claim.comparison.over).get(claim.stratum, ()))
        and claim.comparison.over != "lr"
        and claim.comparison.shape != "search"
        else claim
        for claim in claims
    ]


def _held_back(claim: ClaimVerdict) -> ClaimVerdict:
    reason = "the ladder of learning rates is not settled: runs are missing"
    verdict = Verdict("untested", reason, None, claim.verdict.num_pairs)
    return (
        claim if claim.verdict.outcome == "untested" else replace(claim, verdict=verdict, readings={}, other_inits=())
    )


def rounds_words(judged: Judged) -> list[str]:
    """How seeds were added, where they were added in rounds."""
    if not judged.looks:
        return []
    planned = ", ".join(str(look.num_pairs) for look in judged.looks)
    told = (
        f"Seeds are added in rounds: the study is judged at {planned} seeds. Each look has a stricter level of its "
        "own, so that all looks together err no more often than one look at 5 %."
    )
    there = "" if judged.next_runs is None else f"{judged.next_runs.there} of {judged.next_runs.needed} runs"
    lacking = f"Look {judged.num_looks + 1} is not complete: {there}."
    if not judged.num_looks:
        return [f"{told} {lacking}"]
    at = f"look {judged.num_looks} of {len(judged.looks)}, {judged.looks[judged.num_looks - 1].num_pairs} seeds"
    if not judged.decided:
        return [f"{told} So far: {at}. {lacking}"]
    early = " An effect that ends a study early tends to look larger than it is."
    return [f"{told} Ended at {at}.{early if judged.num_looks < len(judged.looks) else ''}"]


def read_frozen(store: Store, name: str) -> tuple[dict[str, Any], StudySpec]:
    """study.json and what it declares."""
    frozen = store.study(name)
    if frozen is None:
        names = store.study_names()
        hint = (
            "" if names else f"no study was started in {str(store.root)!r}; start one: bnexp train -m study=placement"
        )
        raise ConfigError("study", got=name, choices=names, hint=hint)
    lacking = [key for key in NEEDED if key not in frozen]
    if lacking:
        raise StoreError(f"{str(store.study_path(name))!r} lacks {', '.join(lacking)}: it is no frozen study")
    spec = study_from_dict(frozen["declaration"])
    if declaration_hash(frozen["declaration"]) != frozen["hash"]:
        raise StoreError(
            f"study {name!r}: the declaration in {str(store.study_path(name))!r} was changed after it was frozen"
        )
    return frozen, spec


def nothing_ended(what: str, frame: Frame) -> StoreError:
    """Says so, in one line."""
    hint = f"; {len(frame.failed)} crashed" if frame.failed else ""
    return StoreError(
        f"{what}: no run has ended yet{hint}; train some first, for example: bnexp train -m study=placement"
    )
