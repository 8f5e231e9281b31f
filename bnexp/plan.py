"""`bnexp plan`: what a request would run, and for how long. Trains nothing that is kept."""

from __future__ import annotations

import heapq
import json
import resource
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bnexp.engine.batches import Batch
from bnexp.engine.estimate import COUNTED_PROBES, Estimator
from bnexp.frozen import check_studies
from bnexp.identity import cell_id, run_id
from bnexp.planned import Plan, PlannedRun, make_plan
from bnexp.progress import described, merged_note, part_lines
from bnexp.request import Request

MOST_SHOWN = 20


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print the runs, their states and an estimate of their time from every shape that is still to run."""
    plan = make_plan(request)
    frozen = check_studies(plan, request)
    batches, reason = plan.batches(plan.todo, executor=request.exec.executor)
    seconds = estimate_seconds(plan, batches)
    timed, left_out = _estimated(plan, request)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    cells = {cell_id(run.config) for run in plan.runs}
    power = _power(plan, list(frozen.values()))  # after the peak, which is that of training
    summary = {
        "cells": len(cells),
        "runs": len(plan.runs),
        "done": plan.count("done"),
        "measure": plan.count("measure"),
        "resume": plan.count("resume"),
        "todo": plan.count("todo") + plan.count("retry"),
        "minutes": round(seconds / 60, 4),
        "not_in_minutes": left_out,
        "peak_mib": round(peak_mib * plan.slots),
        "studies": [
            {"name": planned.part.study.key, "runs": len(planned.run_ids), "shared": planned.num_shared}
            for planned in plan.parts
            if planned.part.study is not None
        ],
        "widening": len(plan.further),
        "power": power or None,
    }
    if as_json:
        print(json.dumps(summary))
        return
    states = f"{summary['done']} done, {summary['resume']} to resume, {summary['todo']} to do"
    states += f", {summary['measure']} to measure" if summary["measure"] else ""
    print(f"{_counted(len(plan.runs), 'run')} in {_counted(len(cells), 'cell')}{merged_note(plan)}: {states}")
    for line in part_lines(plan, request):
        print(line)
    if plan.further:
        print(_widening_line(plan, request))
    _print_runs(plan)
    if reason:
        print(reason)
    stacks = any(len(batch) > 1 for batch in batches)
    at_once = f"{plan.at_once} {'stacks of runs ' * stacks}at a time"
    print(f"about {seconds / 60:.1f} minutes on {plan.worker.device}, {at_once} ({timed}), "
          f"at most about {summary['peak_mib']} MiB of memory")  # fmt: skip
    for row in power:
        print(_power_line(row, plan))


def _print_runs(plan: Plan) -> None:
    for run in plan.runs[:MOST_SHOWN]:
        print(f"  {run.run_id}  {run.state:7}  {described(run, plan)}".rstrip())
    if len(plan.runs) > MOST_SHOWN:
        print(f"  ... and {len(plan.runs) - MOST_SHOWN} more")


def _widening_line(plan: Plan, request: Request) -> str:
    """How many runs may be added where a best learning rate is at an end of its ladder."""
    rates = sorted({lr for study in request.studies for lr in study.further_rates})
    done = sum(run.state == "done" for run in plan.further)
    there = f", {done} of which are done" if done else ""
    listed = ", ".join(f"{lr:g}" for lr in rates)
    return f"  widening the ladder may add at most {_counted(len(plan.further), 'run')} (at lr {listed}){there}"


def _power_line(row: Mapping[str, Any], plan: Plan) -> str:
    what = row["treatment"] + (f" against {row['control']}" if row["control"] else "")
    where = [row["study"]] if len(plan.parts) > 1 else []
    where += [row["stratum"]] if row["stratum"] else []
    rounds = f" with looks at {', '.join(map(str, row['looks']))}" if row["looks"] else ""
    least = "at least " * bool(row["looks"])  # the chance at one look: that of any of them is larger
    return (
        f"power of {''.join(f'{word}: ' for word in where)}{what}, {row['num_pairs']} pairs{rounds}, from a pilot of "
        f"{row['num_pilot']}: {least}{100 * row['to_find']:.0f} % to find {_what_is_found(row['direction'])}, "
        f"{least}{100 * row['to_equate']:.0f} % to show that {_what_is_shown(row['direction'])}; at given rates, on "
        "these test images: choosing rates and judging for new images take some of it"
    )


def _what_is_found(direction: str) -> str:
    return "a loss of twice the margin" if direction == "not lower" else "twice the margin"


def _what_is_shown(direction: str) -> str:
    shown = {"same": "there is nothing, as claimed", "not lower": "less than the margin is lost, as claimed"}
    return shown.get(direction, "there is nothing")


def _power(plan: Plan, frozen: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chances of each comparison, where runs of its study are there to tell the spread.

    Args:
        frozen: study.json of each of the plan's studies, in their order.
    """
    from bnexp.analysis.claims import declared_of, load_study
    from bnexp.analysis.planning import plan_power
    from bnexp.analysis.sequential import looks_of
    from bnexp.analysis.widening import runs_in_force

    rows = []
    of_studies = (planned for planned in plan.parts if planned.part.study is not None)
    for planned, content in zip(of_studies, frozen, strict=True):
        study = planned.part.study
        assert study is not None
        if study.overrides:
            continue
        spec = study.spec.at(study.tier)
        in_force = runs_in_force(plan.store, content)
        _, selection = load_study(plan.store, spec, in_force.run_ids, in_force.arms)
        declared, looks = declared_of(spec, study.tier), looks_of(content)
        powers = [] if selection is None else plan_power(selection, spec, declared, looks)
        rows += [
            {"study": study.key, "looks": [look.num_pairs for look in looks],
             "treatment": power.comparison.treatment, "control": power.comparison.control,
             "direction": power.comparison.direction,
             "stratum": power.stratum, "num_pilot": power.num_pilot, "sd": power.sd, "num_pairs": power.num_pairs,
             "to_find": round(power.to_find, 4), "to_equate": round(power.to_equate, 4)}
            for power in powers
        ]  # fmt: skip
    return rows


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def estimate_seconds(plan: Plan, batches: Sequence[Batch]) -> float:
    """Wall seconds of what is not done, in these batches: of probes, those of `COUNTED_PROBES` are in it."""
    plan.worker.start()
    estimator = Estimator(plan.worker)
    runs = {run.run_id: run for run in plan.todo}
    free_at = [0.0] * plan.slots  # a batch is taken by the worker that is free first
    for batch in batches:
        to_train = [job for job in batch if runs[run_id(job.config)].state != "measure"]
        seconds = estimator.of_training(to_train) if to_train else 0.0
        for job in batch:
            if "statistics" in _to_measure(runs[run_id(job.config)], plan):
                seconds += estimator.of_statistics(job.config)
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def _to_measure(run: PlannedRun, plan: Plan) -> Collection[str]:
    """The probes that a run still lacks."""
    record = plan.store.record(run.run_id) if run.state == "measure" else None
    return run.probes if record is None else record.unmeasured(run.probes)


def _estimated(plan: Plan, request: Request) -> tuple[str, list[str]]:
    """What the minutes are of, in words, and the probes that are left out of them."""
    wanted = dict.fromkeys(probe for run in plan.todo for probe in _to_measure(run, plan))
    left_out = [probe for probe in wanted if probe not in COUNTED_PROBES]
    told = ["training", "evaluation", *(f"probe {probe}" for probe in wanted if probe in COUNTED_PROBES)]
    words = ", ".join(told) + (f"; without probe {', '.join(left_out)}" if left_out else "")
    if plan.worker.lanes > 1:
        words += "; as if none were in flight beside another"
    if plan.further:
        words += "; without what widening the ladder adds"
    if any(study.stop_decided for study in request.studies):
        words += "; fewer where seeds are left out because all is decided"
    return words, left_out
