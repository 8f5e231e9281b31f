"""`stop=decided`: seeds are added in rounds until a study's verdicts are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnexp.analysis.claims import declared_of, load_study
from bnexp.analysis.rounds import Rounds, count_runs, judge_rounds
from bnexp.analysis.sequential import FINAL, Look, looks_of
from bnexp.planned import Plan, PlannedPart, PlannedRun
from bnexp.records import RunRecord
from bnexp.request import StudyRequest

Execute = Callable[[Sequence[PlannedRun]], dict[str, RunRecord]]


@dataclass(frozen=True)
class _Started:
    """A frozen study: its name on disk, its runs, and the looks that it was started with."""

    key: str
    planned: PlannedPart
    looks: tuple[Look, ...]


def execute_in_rounds(
    plan: Plan, studies: Sequence[str], execute: Execute
) -> tuple[dict[str, RunRecord], list[PlannedRun]]:
    """Execute what each study of a plan needs for its next look, judge, and go on until each is decided.

    The looks were frozen before the first run; a study that has been judged at some of them goes on with the next.

    Args:
        studies: the names on disk of the plan's studies, in their order.
        execute: runs of the plan -> run id -> record of those that ended.

    Returns:
        The records of all that ended now, and the runs that were asked for.
    """
    records: dict[str, RunRecord] = {}
    asked: list[PlannedRun] = []
    todo = {run.run_id: run for run in plan.todo}
    waiting = [_started(plan, *pair) for pair in zip(studies, plan.parts, strict=True)]
    reached = {study.key: _judge(plan, study) for study in waiting}
    for study in [study for study in waiting if reached[study.key].stop]:
        print(_told(study, reached[study.key]))
        waiting.remove(study)
    while waiting:
        needed = {name for study in waiting for name in _next_runs(plan, study, reached[study.key])}
        batch = [run for name, run in todo.items() if name in needed and name not in records]
        asked += batch
        records |= execute(batch)
        for study in list(waiting):
            before, reached[study.key] = reached[study.key].number, _judge(plan, study)
            if reached[study.key].number == before:  # no further: what is missing crashed, or another process has it
                print(f"{study.key}: runs are missing for look {before + 1}; the same command tries again")
                waiting.remove(study)
                continue
            print(_told(study, reached[study.key]))
            if reached[study.key].stop:
                waiting.remove(study)
    return records, asked


def _started(plan: Plan, key: str, planned: PlannedPart) -> _Started:
    frozen = plan.store.study(key)
    assert frozen is not None
    return _Started(key, planned, looks_of(frozen))


def _judge(plan: Plan, started: _Started) -> Rounds:
    study, planned = _study(started.planned), started.planned
    spec = study.spec.at(study.tier)
    _, selection = load_study(plan.store, spec, planned.run_ids, planned.arms)
    if selection is None:
        return Rounds([], 0, stop=False)
    declared = declared_of(spec, study.tier)
    runs = count_runs(plan.store, planned.run_ids, spec, declared, started.looks)
    return judge_rounds(selection, spec, declared, started.looks, runs)


def _next_runs(plan: Plan, started: _Started, rounds: Rounds) -> set[str]:
    """The ids of the runs that the next look takes in: those of the first seeds."""
    study = _study(started.planned)
    num_seeds = started.looks[rounds.number].num_pairs
    seeds = set(study.spec.seeds(study.tier)[:num_seeds])
    own = set(started.planned.run_ids)
    return {run.run_id for run in plan.runs if run.run_id in own and run.config.seed in seeds}


def _told(started: _Started, rounds: Rounds) -> str:
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


def _study(planned: PlannedPart) -> StudyRequest:
    assert planned.part.study is not None
    return planned.part.study
