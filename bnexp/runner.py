"""Executes the runs of a request that are not done, and says what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from bnexp.config import ExecConfig, RunConfig
from bnexp.engine.process import execute_processes
from bnexp.engine.serial import execute_serial
from bnexp.errors import StoreError
from bnexp.frozen import freeze_studies
from bnexp.identity import run_id
from bnexp.planned import Plan, PlannedRun, make_plan, processes_on_a_gpu
from bnexp.progress import described, ending, print_opening, print_summary
from bnexp.records import RunRecord
from bnexp.request import Part, Request


def train(request: Request) -> int:
    """Execute a request and print a line a run and a summary; the exit status: 0, or 1 if a run crashed."""
    plan = make_plan(request)
    plan.store.require_writable()
    studies = freeze_studies(plan, request)
    print_opening(plan, request)
    asked: Sequence[PlannedRun] = plan.todo
    added: Sequence[PlannedRun] = ()
    executor = request.exec.executor
    if any(study.stop_decided or study.further_rates for study in request.studies):
        from bnexp.deciding import execute_in_rounds  # it needs pandas, which no other training does

        records, asked, added = execute_in_rounds(plan, studies, lambda runs: execute(plan, runs, executor=executor))
    else:
        records = execute(plan, asked, executor=executor)
    print_summary(plan, records, asked, request, studies, added=added)
    unfinished = any(run.run_id not in records for run in asked)  # another process has them in hand
    return 1 if unfinished or any(record.status == "failed" for record in records.values()) else 0


def train_one(config: RunConfig, exec_config: ExecConfig) -> float | None:
    """One job under a launcher or sweeper of the user's choice: trains here and returns validation accuracy.

    An optimizing sweeper maximizes or minimizes what comes back; a diverged run returns chance accuracy.
    """
    plan = make_plan(Request((Part((config,)),), exec_config))
    plan.store.require_writable()
    (run,) = plan.runs
    ended = execute(plan, plan.todo, executor=exec_config.executor).get(run.run_id)
    record = plan.store.record(run.run_id)
    if record is None or "failed" in (record.status, ended and ended.status):
        raise StoreError(f"run {run.run_id} crashed; traceback: {plan.store.error_path(run.run_id)}")
    value = record.final["val_accuracy"]
    return record.final["chance_val_accuracy"] if value is None else value


def execute(plan: Plan, runs: Sequence[PlannedRun], *, executor: str) -> dict[str, RunRecord]:
    """Execute these runs of a plan, a line each as it ends; run id -> record for all that ended here.

    Args:
        executor: of `EXECUTORS`.
    """
    records: dict[str, RunRecord] = {}
    if not runs:
        return records
    planned = {run.run_id: run for run in runs}
    total = sum(run.config.epochs for run in runs)
    with tqdm(total=total, unit="epoch", disable=None, dynamic_ncols=True, smoothing=0.05) as bar:
        seen: Counter[str] = Counter()

        def on_epoch(config: RunConfig) -> None:
            seen[run_id(config)] += 1
            bar.update()

        def on_record(config: RunConfig, record: RunRecord | None) -> None:
            name = run_id(config)
            bar.update(config.epochs - seen[name])
            if record is not None:
                records[name] = record
            count = f"[{len(records):>{len(str(len(runs)))}}/{len(runs)}] " if len(runs) > 1 else ""
            bar.write(f"{count}{name}  {described(planned[name], plan)}  {ending(record)}".replace("    ", "  "))

        batches, reason = plan.batches(runs, executor=executor)
        if reason:
            bar.write(reason)
        if executor in ("process", "stacked", "graph") or (len(runs) > 1 and executor != "serial"):
            slots = min(plan.slots, len(batches))
            lanes = min(plan.worker.lanes, -(-len(batches) // slots))
            sharing = processes_on_a_gpu(slots, plan.worker.device.type)
            worker = replace(plan.worker, lanes=lanes, sharing=sharing)
            execute_processes(batches, worker, plan.store, slots=slots, on_epoch=on_epoch, on_record=on_record)
        else:
            worker = replace(plan.worker, lanes=1)
            execute_serial([job for (job,) in batches], worker, plan.store, on_epoch=on_epoch, on_record=on_record)
    return records
