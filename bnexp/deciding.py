"""Runs that follow from other runs: rates that widen a ladder, and seeds in rounds with `stop=decided`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bnexp.analysis.claims import declared_of, load_study
from bnexp.analysis.rounds import Rounds, count_runs, judge_rounds
from bnexp.analysis.sequential import FINAL, Look, looks_of
from bnexp.analysis.widening import InForce, Ladder, Rung, runs_in_force
from bnexp.planned import Plan, PlannedPart, PlannedRun
from bnexp.records import RunRecord
from bnexp.request import StudyRequest

FEW = 3  # arms that are named
Execute = Callable[[Sequence[PlannedRun]], dict[str, RunRecord]]


class Executed(NamedTuple):
    """What came of a request.

    Attributes:
        records: run id -> record, of the runs that ended now.
        asked: the runs that were to be executed now.
        added: the runs that were added by widening ladders, whenever they are executed.
    """

    records: dict[str, RunRecord]
    asked: list[PlannedRun]
    added: list[PlannedRun]


@dataclass(frozen=True)
class _Started:
    """A frozen study: its name on disk, study.json, its runs, and the looks that it was started with."""

    key: str
    frozen: dict[str, Any]
    planned: PlannedPart
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class _Step:
    """How far a study is.

    Attributes:
        wanted: the runs that it needs before it goes on, ended or not.
        rounds: the looks that have been judged; None where a study has none.
        finished: nothing follows from what is there.
    """

    in_force: InForce
    wanted: frozenset[str]
    rounds: Rounds | None = None
    finished: bool = False


def execute_in_rounds(plan: Plan, studies: Sequence[str], execute: Execute) -> Executed:
    """Execute what each study of a plan needs next, look at what came out, and go on until nothing follows.

    Within each round of seeds the ladders widen until they are settled; then the round is judged. The looks and the
    rates to add were frozen before the first run, so that the same command goes on where an earlier one ended.

    Args:
        studies: the names on disk of the plan's studies, in their order.
        execute: runs of the plan -> run id -> record of those that ended.
    """
    records: dict[str, RunRecord] = {}
    asked: list[PlannedRun] = []
    todo = {run.run_id: run for run in (*plan.runs, *plan.further) if run.state != "done"}
    waiting = [_started(plan, *pair) for pair in zip(studies, plan.parts, strict=True)]
    steps = {study.key: _next(plan, study, todo) for study in waiting}
    said: set[str] = set()
    for study in list(waiting):
        _say_looks(study, None, steps[study.key])
        if steps[study.key].finished:
            waiting.remove(study)
    while waiting:
        outstanding = todo.keys() - records.keys()
        lines = [line for study in waiting for line in _widening_lines(study, steps[study.key], outstanding)]
        for line in dict.fromkeys(line for line in lines if line not in said):
            print(line)
            said.add(line)
        wanted = {name for study in waiting for name in steps[study.key].wanted}
        batch = [run for name, run in todo.items() if name in wanted and name in outstanding]
        asked += batch
        records |= execute(batch)
        for study in list(waiting):
            before = steps[study.key]
            steps[study.key] = step = _next(plan, study, todo.keys() - records.keys())
            _say_looks(study, before, step)
            if step.wanted == before.wanted and not step.finished:  # what is missing crashed, or is in other hands
                _say_missing(study, step)
            if step.finished or step.wanted == before.wanted:
                waiting.remove(study)
    in_force = {name for step in steps.values() for name in step.in_force.run_ids}
    return Executed(records, asked, [run for run in plan.further if run.run_id in in_force])


def _started(plan: Plan, key: str, planned: PlannedPart) -> _Started:
    frozen = plan.store.study(key)
    assert frozen is not None
    return _Started(key, frozen, planned, looks_of(frozen))


def _next(plan: Plan, started: _Started, outstanding: Collection[str]) -> _Step:
    """What a study needs next, from the records that are there.

    Args:
        outstanding: runs that are not done, or not measured.
    """
    in_force = runs_in_force(plan.store, started.frozen)
    if started.looks:
        return _next_look(plan, started, in_force)
    wanted = frozenset(in_force.run_ids)
    settled = all(widened.settled for widened in in_force.ladders())
    return _Step(in_force, wanted, finished=settled and wanted.isdisjoint(outstanding))


def _next_look(plan: Plan, started: _Started, in_force: InForce) -> _Step:
    study, planned, looks = _study(started.planned), started.planned, started.looks
    spec = study.spec.at(study.tier)
    rounds = Rounds([], 0, stop=False)
    _, selection = load_study(plan.store, spec, in_force.run_ids, in_force.arms)
    if selection is not None:
        declared = declared_of(spec, study.tier)
        runs = count_runs(plan.store, planned.run_ids, spec, declared, looks, in_force.further)
        rounds = judge_rounds(selection, spec, declared, looks, runs, in_force.left_out())
    if rounds.stop:
        return _Step(in_force, frozenset(), rounds, finished=True)
    seeds = set(study.spec.seeds(study.tier)[: looks[rounds.number].num_pairs])
    declared_ids = set(planned.run_ids)
    wanted = {run.run_id for run in plan.runs if run.run_id in declared_ids and run.config.seed in seeds}
    further = in_force.further[rounds.number] if in_force.further else frozenset()
    return _Step(in_force, frozenset(wanted | further), rounds)


def _say_looks(started: _Started, before: _Step | None, step: _Step) -> None:
    """Print how a study stands after a look; before anything is executed, only where it is over already."""
    rounds = step.rounds
    if rounds is None:
        return
    if rounds.stop if before is None or before.rounds is None else rounds.number > before.rounds.number:
        print(_look_line(started, rounds))


def _say_missing(started: _Started, step: _Step) -> None:
    """Print what a study waits for, where that keeps it from going on."""
    again = "the same command tries again"
    if step.rounds is not None:
        print(f"{started.key}: runs are missing for look {step.rounds.number + 1}; {again}")
        return
    open_yet = [widened.ladder.stratum for widened in step.in_force.ladders() if not widened.settled]
    if open_yet:
        where = f" of {'; '.join(open_yet)}" if any(open_yet) else ""
        print(f"{started.key}: runs are missing, so the ladder{where} is not settled; {again}")


def _look_line(started: _Started, rounds: Rounds) -> str:
    decided = sum(claim.verdict.outcome in FINAL for claim in rounds.claims)
    look = started.looks[rounds.number - 1]
    where = (
        f"{started.key}: look {look.number} of {len(started.looks)}, {look.num_pairs} seeds: "
        f"{decided} of {len(rounds.claims)} decided"
    )
    if not rounds.stop:
        return where
    if look.last and decided < len(rounds.claims):
        return f"{where}; that was the last look"
    return f"{where}; no more seeds are needed" if not look.last else where


def _widening_lines(started: _Started, step: _Step, outstanding: Collection[str]) -> list[str]:
    """A line for each rate that was added and of which runs are still to be executed."""
    return [
        _widening_line(started.key, widened.ladder, rung)
        for ladders in step.in_force.rounds
        for widened in ladders
        for rung in widened.rungs
        if not step.wanted.isdisjoint({*widened.ladder.ids_at(rung.lr)} & {*outstanding})
    ]


def _widening_line(key: str, ladder: Ladder, rung: Rung) -> str:
    """`placement: cnn, relu: adding rate 3 for both arms: the largest tried, 1, is the best of after`."""
    where = f"{key}: {ladder.stratum}" if ladder.stratum else key
    num_arms = len(ladder.declared)
    who = {1: "", 2: " for both arms"}.get(num_arms, f" for all {num_arms} arms")
    arms = list(rung.reasons)
    more = f" and {len(arms) - FEW} more" if len(arms) > FEW else ""
    best = next(iter(rung.reasons.values()))  # the end of a ladder that all arms share
    named = f"{', '.join(arms[:FEW])}{more}"
    return f"{where}: adding rate {rung.lr:g}{who}: the {rung.side} tried, {best:g}, is the best of {named}"


def _study(planned: PlannedPart) -> StudyRequest:
    assert planned.part.study is not None
    return planned.part.study
