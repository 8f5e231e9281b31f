"""`bnexp plan`: what a request would run, and for how long. Trains nothing that is kept."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from typing import Any

from bnexp.config import RunConfig
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network, normalize
from bnexp.engine.execute import Worker
from bnexp.engine.step import train_step
from bnexp.identity import cell_id
from bnexp.request import Request
from bnexp.runner import Plan, describe, make_plan

PROBE_SECONDS = 0.4
WARMUP_STEPS = 2
MOST_SHOWN = 20


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print the runs, their states and an estimate from timed steps of every shape that is still to run."""
    plan = make_plan(request)
    seconds = estimate_seconds(plan)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    cells = {cell_id(run.config) for run in plan.runs}
    power = _power(plan, request)  # after the peak, which is that of training
    summary = {
        "cells": len(cells),
        "runs": len(plan.runs),
        "done": plan.count("done"),
        "measure": plan.count("measure"),
        "resume": plan.count("resume"),
        "todo": plan.count("todo") + plan.count("retry"),
        "minutes": round(seconds / 60, 4),
        "peak_mib": round(peak_mib * plan.slots),
        "power": power,
    }
    if as_json:
        print(json.dumps(summary))
        return
    merged = plan.num_composed - len(plan.runs)
    note = f" ({merged} of {plan.num_composed} grid points are the same runs)" if merged else ""
    states = f"{summary['done']} done, {summary['resume']} to resume, {summary['todo']} to do"
    states += f", {summary['measure']} to measure" if summary["measure"] else ""
    print(f"{_counted(len(plan.runs), 'run')} in {_counted(len(cells), 'cell')}{note}: {states}")
    for run in plan.runs[:MOST_SHOWN]:
        print(f"  {run.run_id}  {run.state:7}  {describe(run.config, request.swept)}".rstrip())
    if len(plan.runs) > MOST_SHOWN:
        print(f"  ... and {len(plan.runs) - MOST_SHOWN} more")
    print(f"about {seconds / 60:.1f} minutes on {plan.worker.device}, {plan.slots} at a time, "
          f"at most about {summary['peak_mib']} MiB of memory")  # fmt: skip
    for row in power or ():
        where = f"{row['stratum']}: " if row["stratum"] else ""
        print(f"power of {where}{row['treatment']} against {row['control']}, {row['num_pairs']} pairs, from a pilot of "
              f"{row['num_pilot']}: {100 * row['to_find']:.0f} % to find twice the margin, "
              f"{100 * row['to_equate']:.0f} % to show that there is nothing")  # fmt: skip


def _power(plan: Plan, request: Request) -> list[dict[str, Any]] | None:
    """The chances of each comparison, where runs of the study are there to tell the spread."""
    if request.study is None or request.study.overrides:
        return None
    from bnexp.analysis.claims import declared_of
    from bnexp.analysis.frame import load_frame
    from bnexp.analysis.planning import plan_power
    from bnexp.analysis.select import select

    study = request.study.spec
    runs = load_frame(plan.store, [run.run_id for run in plan.runs]).runs
    if runs.empty:
        return None
    powers = plan_power(select(runs, study, plan.arms), study, declared_of(study, request.study.tier))
    return [
        {"treatment": power.comparison.treatment, "control": power.comparison.control, "stratum": power.stratum,
         "num_pilot": power.num_pilot, "sd": power.sd, "num_pairs": power.num_pairs,
         "to_find": round(power.to_find, 4), "to_equate": round(power.to_equate, 4)}
        for power in powers
    ] or None  # fmt: skip


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
