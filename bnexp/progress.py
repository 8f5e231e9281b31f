"""What the commands say of runs: before, while and after they are executed."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bnexp.config import RunConfig
from bnexp.planned import Plan, PlannedRun
from bnexp.records import RunRecord
from bnexp.request import Request

# where the choice of a config group is written in a run's config
GROUP_LABELS = {
    "data": "data.name",
    "model": "model.name",
    "norm": "norm.kind",
    "optim": "optim.name",
    "schedule": "schedule.name",
    "exec.precision": "precision",
}


def describe(config: RunConfig, keys: Sequence[str]) -> str:
    """`norm=batch lr=0.1 seed=3`: a run in the words of the overrides that tell it from the others."""
    raw = config.to_dict()
    raw["data"]["split"] = config.data.split  # which a run's identity leaves out where it is fixed
    words = []
    for key in keys:
        node: Any = raw
        for part in GROUP_LABELS.get(key, key).split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is not None:
            words.append(f"{key}={node}")
    return " ".join(words)


def described(run: PlannedRun, plan: Plan) -> str:
    """A run in the words of the part that wants it; of several studies, with the name of the first that does."""
    words = describe(run.config, run.part.swept)
    return f"{run.part.study.spec.name}: {words}" if len(plan.parts) > 1 and run.part.study else words


def ending(record: RunRecord | None) -> str:
    """How a run has ended; None: in another process."""
    if record is None:
        return "skipped: another process is training it"
    if record.status == "failed":
        return f"FAILED  {record.error}"
    seconds = f"{record.seconds['train'] + record.seconds['eval']:.1f} s"
    accuracy = record.final["test_accuracy"]
    if accuracy is None:
        return f"{record.status} in epoch {record.epochs_done}  {seconds}"
    return f"{record.status}  test {100 * accuracy:.2f} %  {seconds}"


def merged_note(plan: Plan) -> str:
    """How many grid points are runs that another grid point is too, in brackets."""
    merged = plan.num_merged
    return f" ({merged} of {plan.num_composed} grid points are the same runs)" if merged else ""


def part_lines(plan: Plan, request: Request) -> list[str]:
    """Of several studies, a line each; of all studies, those that lack the tier."""
    lines = []
    width = max(len(planned.part.study.key) for planned in plan.parts if planned.part.study) if request.studies else 0
    for planned in plan.parts if len(plan.parts) > 1 else ():
        assert planned.part.study is not None
        shared = f", {planned.num_shared} shared with others" if planned.num_shared else ""
        lines.append(f"  {planned.part.study.key:{width}}  {len(planned.run_ids)} runs{shared}")
    if request.lacking:
        lines.append(f"  left out, without tier {request.studies[0].tier}: {', '.join(request.lacking)}")
    return lines


def print_opening(plan: Plan, request: Request) -> None:
    """What is about to be executed."""
    if len(plan.runs) > 1:
        states = [f"{plan.count('done')} done", f"{plan.count('resume')} to resume"]
        states += [f"{plan.count('retry')} to retry", f"{plan.count('todo')} to do"]
        states += [f"{plan.count('measure')} to measure"] if plan.count("measure") else []
        workers = f"{plan.at_once} at a time, {plan.worker.threads} thread{'s' * (plan.worker.threads > 1)} each"
        print(f"{len(plan.runs)} runs{merged_note(plan)}: {', '.join(states)}; on {plan.worker.device}, {workers}")
    for line in part_lines(plan, request):
        print(line)


def print_summary(
    plan: Plan,
    records: Mapping[str, RunRecord],
    asked: Sequence[PlannedRun],
    request: Request,
    studies: Sequence[str],
    *,
    added: Sequence[PlannedRun] = (),
) -> None:
    """What was executed, what failed, and where to look.

    Args:
        records: run id -> record, of what ended now.
        asked: the runs that were to be executed now.
        studies: their names on disk.
        added: the runs that were added to the plan by widening ladders of learning rates.
    """
    all_runs = [*plan.runs, *added]
    if len(plan.runs) == 1 and not records:
        record = plan.store.record(plan.runs[0].run_id)
        if record is not None:
            print(f"{record.run_id}  already done: {ending(record)}")
    elif len(plan.runs) > 1:
        ended: Counter[str] = Counter(record.status for record in records.values())
        left = len(asked) - len(records)
        spared = len({run.run_id for run in plan.todo} - {run.run_id for run in asked})
        ended.update({"left to another process": left} if left else {})
        ended.update({"not needed": spared} if spared else {})
        told = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "nothing left to train"
        num_done = sum(run.state == "done" for run in all_runs)
        widened = f", {len(added)} of them at added learning rates" if added else ""
        print(f"{len(all_runs)} runs{widened}: {num_done} were done before, now {told}")
    for run in asked:
        record = records.get(run.run_id)
        if record is not None and record.status == "failed":
            print(f"failed: {described(run, plan) or run.run_id}: {record.error}", file=sys.stderr)
            print(f"        traceback: {plan.store.error_path(run.run_id)}", file=sys.stderr)
    where = "" if request.exec.results.name == "results" else f" --results {shlex.quote(str(request.exec.results))}"
    if len(studies) == 1:
        print(f"report: bnexp report {studies[0]}{where}")
    elif len(plan.runs) > 1:
        print(f"report: bnexp report{where}")
    else:
        print(f"record: {plan.store.run_dir(plan.runs[0].run_id)}")
