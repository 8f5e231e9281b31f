"""`bnexp plan`: what a request would run, and for how long. Trains nothing that is kept."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bnexp.config import RunConfig
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network, normalize
from bnexp.engine.execute import Worker
from bnexp.engine.step import train_step
from bnexp.frozen import check_studies
from bnexp.identity import cell_id
from bnexp.planned import Plan, make_plan
from bnexp.progress import described, merged_note, part_lines
from bnexp.request import Request

PROBE_SECONDS = 0.4
WARMUP_STEPS = 2
MOST_SHOWN = 20


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print the runs, their states and an estimate from timed steps of every shape that is still to run."""
    plan = make_plan(request)
    check_studies(plan, request)
    seconds = estimate_seconds(plan)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    cells = {cell_id(run.config) for run in plan.runs}
    power = _power(plan)  # after the peak, which is that of training
    summary = {
        "cells": len(cells),
        "runs": len(plan.runs),
        "done": plan.count("done"),
        "measure": plan.count("measure"),
        "resume": plan.count("resume"),
        "todo": plan.count("todo") + plan.count("retry"),
        "minutes": round(seconds / 60, 4),
        "peak_mib": round(peak_mib * plan.slots),
        "studies": [
            {"name": planned.part.study.key, "runs": len(planned.run_ids), "shared": planned.num_shared}
            for planned in plan.parts
            if planned.part.study is not None
        ],
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
    _print_runs(plan)
    print(f"about {seconds / 60:.1f} minutes on {plan.worker.device}, {plan.slots} at a time, "
          f"at most about {summary['peak_mib']} MiB of memory")  # fmt: skip
    for row in power:
        print(_power_line(row, plan))


def _print_runs(plan: Plan) -> None:
    for run in plan.runs[:MOST_SHOWN]:
        print(f"  {run.run_id}  {run.state:7}  {described(run, plan)}".rstrip())
    if len(plan.runs) > MOST_SHOWN:
        print(f"  ... and {len(plan.runs) - MOST_SHOWN} more")


def _power_line(row: Mapping[str, Any], plan: Plan) -> str:
    what = row["treatment"] + (f" against {row['control']}" if row["control"] else "")
    where = [row["study"]] if len(plan.parts) > 1 else []
    where += [row["stratum"]] if row["stratum"] else []
    return (
        f"power of {''.join(f'{word}: ' for word in where)}{what}, {row['num_pairs']} pairs, from a pilot of "
        f"{row['num_pilot']}: {100 * row['to_find']:.0f} % to find twice the margin, "
        f"{100 * row['to_equate']:.0f} % to show that there is nothing"
    )


def _power(plan: Plan) -> list[dict[str, Any]]:
    """The chances of each comparison, where runs of its study are there to tell the spread."""
    from bnexp.analysis.claims import declared_of, load_study
    from bnexp.analysis.planning import plan_power

    rows = []
    for planned in plan.parts:
        study = planned.part.study
        if study is None or study.overrides:
            continue
        spec = study.spec.at(study.tier)
        _, selection = load_study(plan.store, spec, planned.run_ids, planned.arms)
        powers = [] if selection is None else plan_power(selection, spec, declared_of(spec, study.tier))
        rows += [
            {"study": study.key, "treatment": power.comparison.treatment, "control": power.comparison.control,
             "stratum": power.stratum, "num_pilot": power.num_pilot, "sd": power.sd, "num_pairs": power.num_pairs,
             "to_find": round(power.to_find, 4), "to_equate": round(power.to_equate, 4)}
            for power in powers
        ]  # fmt: skip
    return rows


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def estimate_seconds(plan: Plan) -> float:
    """Wall seconds of what is not done, from a few timed steps of each distinct shape; evaluation is not in it."""
    plan.worker.start()
    step_seconds: dict[RunConfig, float] = {}
    total = 0.0
    for run in plan.todo:
        if run.state == "measure":  # trained already
            continue
        data = plan.worker.data(run.config.data)
        shape = replace(run.config, seed=0, lr=1e-4, epochs=10**9)
        if shape not in step_seconds:
            step_seconds[shape] = _time_step(shape, plan.worker, data)
        total += step_seconds[shape] * run.config.epochs * (len(data.train_y) // run.config.batch_size)
    return total / plan.slots


def _time_step(config: RunConfig, worker: Worker, data: DeviceData) -> float:
    _, channels, size, _ = data.train_x.shape
    model = build_network(config, in_channels=channels, image_size=size, num_classes=data.num_classes)
    init_network(model, config, data)
    model.to(worker.device).train()
    optimizer = build_optimizer(model, config.optim, config.lr)
    steps, started = -WARMUP_STEPS, time.perf_counter()
    while steps < 1 or time.perf_counter() - started < PROBE_SECONDS:
        if steps == 0:
            started = time.perf_counter()
        loss, _ = train_step(
            model,
            optimizer,
            config,
            normalize(data.train_x[: config.batch_size], data),
            data.train_y[: config.batch_size],
        )
        loss.item()
        steps += 1
    return (time.perf_counter() - started) / steps
