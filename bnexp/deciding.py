"""`stop=decided`: seeds are added in rounds until a study's verdicts are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnexp.analysis.claims import declared_of, load_study
from bnexp.analysis.rounds import Rounds, judge_rounds
from bnexp.analysis.sequential import DECIDED, Look, plan_looks
from bnexp.frozen import looks_of
from bnexp.planned import Plan, PlannedPart, PlannedRun
from bnexp.records import RunRecord
from bnexp.request import StudyRequest

Execute = Callable[[Sequence[PlannedRun]], dict[str, RunRecord]]


def execute_in_rounds(plan: Plan, execute: Execute) -> tuple[dict[str, RunRecord], list[PlannedRun]]:
    """Execute what each study of a plan needs for its next look, judge, and go on until each is decided.

    The looks were frozen before the first run; a study that has been judged at some of them goes on with the next.

    Args:
        execute: runs of the plan -> run id -> record of those that ended.

    Returns:
        The records of all that ended now, and the runs that were asked for.
    """
    records: dict[str, RunRecord] = {}
    asked: list[PlannedRun] = []
    todo = {run.run_id: run for run in plan.todo}
    waiting = {planned.part.study.key: planned for planned in plan.parts if planned.part.study is not None}
    reached = {key: _judge(plan, planned) for key, planned in waiting.items()}
    for key in [key for key, rounds in reached.items() if rounds.stop]:
        print(_told(key, reached[key], _looks(waiting.pop(key))))
    while waiting:
        needed = {name for key, planned in waiting.items() for name in _next_runs(plan, planned, reached[key])}
        batch = [run for name, run in todo.items() if name in needed and name not in records]
        asked += batch
        records |= execute(batch)
        for key, planned in list(waiting.items()):
            before, reached[key] = reached[key].number, _judge(plan, planned)
            print(_told(key, reached[key], _looks(planned)))
            if reached[key].stop or reached[key].number == before:  # no further: what is missing crashed
                del waiting[key]
    return records, asked


def _looks(planned: PlannedPart) -> tuple[Look, ...]:
    return plan_looks(looks_of(_study(planned)))


def _judge(plan: Plan, planned: PlannedPart) -> Rounds:
    study = _study(planned)
    spec = study.spec.at(study.tier)
    _, selection = load_study(plan.store, spec, planned.run_ids, planned.arms)
    if selection is None:
        return Rounds([], 0, stop=False)
    return judge_rounds(selection, spec, declared_of(spec, study.tier), _looks(planned))


def _next_runs(plan: Plan, planned: PlannedPart, rounds: Rounds) -> set[str]:
    """The ids of the runs that the next look takes in: those of the tuning seeds, and of the first reported ones."""
    study = _study(planned)
    num_seeds = _looks(planned)[rounds.number].num_pairs
    seeds = {*study.spec.choose.seeds, *study.spec.seeds(study.tier)[:num_seeds]}
    own = set(planned.run_ids)
    return {run.run_id for run in plan.runs if run.run_id in own and run.config.seed in seeds}


def _told(key: str, rounds: Rounds, looks: Sequence[Look]) -> str:
    if rounds.number == 0:
        return f"{key}: runs are missing for the first look; the same command tries again"
    decided = sum(claim.verdict.outcome in DECIDED for claim in rounds.claims)
    look = looks[rounds.number - 1]
    where = (
        f"{key}: look {look.number} of {len(looks)}, {look.num_pairs} seeds: {decided} of {len(rounds.claims)} decided"
    )
    if not rounds.stop:
        return where
    if look.last and decided < len(rounds.claims):
        return f"{where}; that was the last look"
    return f"{where}; no more seeds are needed" if not look.last else where


def _study(planned: PlannedPart) -> StudyRequest:
    assert planned.part.study is not None
    return planned.part.study
