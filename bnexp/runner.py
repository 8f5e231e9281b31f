"""Plans the runs of a request, skips or resumes what is there, executes the rest, and says what happened."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tqdm import tqdm

from bnexp.config import DataConfig, ExecConfig, RunConfig
from bnexp.engine.build import HostData, check_network, load_host_data, settle_plugins, settle_where
from bnexp.engine.device import resolve_device, resolve_precision
from bnexp.engine.execute import MEASURED_AFTERWARDS, Worker
from bnexp.engine.process import execute_processes
from bnexp.engine.serial import execute_serial
from bnexp.errors import ConfigError, StoreError
from bnexp.identity import run_id
from bnexp.records import RunRecord
from bnexp.request import Request, StudyRequest
from bnexp.store import Store
from bnexp.study import declaration_hash

State = Literal["done", "measure", "resume", "retry", "todo"]
# where the choice of a config group is written in a run's config
GROUP_LABELS = {
    "data": "data.name",
    "model": "model.name",
    "norm": "norm.kind",
    "optim": "optim.name",
    "schedule": "schedule.name",
    "exec.precision": "precision",
}


@dataclass(frozen=True)
class PlannedRun:
    """One distinct run and how far it is."""

    run_id: str
    config: RunConfig
    state: State


@dataclass(frozen=True)
class Plan:
    """The distinct runs of a request, in sweep order, and what executes them.

    Attributes:
        num_composed: grid points before equal runs were merged (no norm has no placement, for one).
        arms: of a study, the run ids of each of its arms.
    """

    runs: tuple[PlannedRun, ...]
    num_composed: int
    worker: Worker
    slots: int
    store: Store
    arms: dict[str, list[str]]

    @property
    def todo(self) -> list[PlannedRun]:
        """What is not done, in order."""
        return [run for run in self.runs if run.state != "done"]

    def count(self, state: State) -> int:
        return sum(run.state == state for run in self.runs)


def make_plan(request: Request) -> Plan:
    """Resolve, check and look up every run; nothing is trained or written.

    Raises:
        ConfigError, DataError, RunError: a run could not be executed here as asked.
    """
    store = Store(request.exec.results)
    device = resolve_device(request.exec.device)
    hosts: dict[DataConfig, HostData] = {}
    resolved = resolve_runs(request.configs, request.exec, hosts)
    runs = [PlannedRun(name, config, _state(store, name, request.exec)) for name, config in dict(resolved).items()]
    sweep = len(request.configs) > 1
    slots = _num_slots(request.exec, device.type) if sweep else 1
    threads = request.exec.threads or (1 if sweep else _num_cores())
    worker = Worker(request.exec, device, threads, hosts)
    arms: dict[str, dict[str, None]] = {arm: {} for arm in request.arms}
    for arm, (name, _) in zip(request.arms, resolved, strict=bool(request.arms)):
        arms[arm][name] = None  # a dict, for equal grid points of one arm are one run
    return Plan(
        tuple(runs), len(request.configs), worker, slots, store, {arm: list(names) for arm, names in arms.items()}
    )


def resolve_runs(
    configs: Sequence[RunConfig], exec_config: ExecConfig, hosts: dict[DataConfig, HostData]
) -> list[tuple[str, RunConfig]]:
    """The id of each, and the config with precision, the data's fingerprint and plug-ins' code settled.

    Args:
        hosts: filled with the data sets that had to be read.
    """
    device = resolve_device(exec_config.device)
    raw_hosts: dict[DataConfig, HostData] = {}
    checked: set[RunConfig] = set()
    resolved: list[tuple[str, RunConfig]] = []
    for config in configs:
        if config.data not in raw_hosts:
            raw_hosts[config.data] = load_host_data(config.data, exec_config.data_root)
        host = raw_hosts[config.data]
        config = settle_plugins(settle_where(config, host.images))
        shape = replace(config, seed=0, lr=1.0, epochs=10**9)  # what shapes do not depend on
        if shape not in checked:
            check_network(config, host.images, len(host.split.train))
            checked.add(shape)
        config = replace(
            config,
            precision=resolve_precision(config, device, host.images.image_size),
            data=replace(config.data, fingerprint=host.images.fingerprint),
        )
        hosts[config.data] = host
        resolved.append((run_id(config), config))
    return resolved


def train(request: Request) -> int:
    """Execute a request and print a line a run and a summary; the exit status: 0, or 1 if a run crashed."""
    plan = make_plan(request)
    plan.store.require_writable()
    if request.study is not None:
        freeze_study(plan, request.study, request.argv)
    keys = request.swept
    if len(plan.runs) > 1:
        print(_opening(plan))
    records = _execute(plan, request.exec, keys)
    _print_summary(plan, records, request, keys)
    unfinished = any(run.run_id not in records for run in plan.todo)  # another process has them in hand
    return 1 if unfinished or any(record.status == "failed" for record in records.values()) else 0


def train_one(config: RunConfig, exec_config: ExecConfig) -> float | None:
    """One job under a launcher or sweeper of the user's choice: trains here and returns validation accuracy.

    An optimizing sweeper maximizes or minimizes what comes back; a diverged run returns chance accuracy.
    """
    request = Request((config,), exec_config, None, (), multirun=False, argv=())
    plan = make_plan(request)
    plan.store.require_writable()
    (run,) = plan.runs
    ended = _execute(plan, exec_config, ()).get(run.run_id)
    record = plan.store.record(run.run_id)
    if record is None or "failed" in (record.status, ended and ended.status):
        raise StoreError(f"run {run.run_id} crashed; traceback: {plan.store.error_path(run.run_id)}")
    value = record.final["val_accuracy"]
    return record.final["chance_val_accuracy"] if value is None else value


def freeze_study(plan: Plan, study: StudyRequest, argv: Sequence[str]) -> None:
    """Write study.json before the first run.

    Raises:
        ConfigError: the study was started here under another declaration.
    """
    declaration = study.spec.declaration(study.tier)
    digest = declaration_hash(declaration)
    before = plan.store.study(study.key)
    if before is not None and before["hash"] != digest and not study.overrides:
        hint = (
            f"was started in {str(plan.store.root)!r} under another declaration (its file has changed since); "
            "give the changed study a new name, or use another results folder"
        )
        raise ConfigError("study", got=study.spec.name, hint=hint)
    run_ids = [run.run_id for run in plan.runs]
    if before is not None and before["run_ids"] != run_ids and not study.overrides:
        hint = (
            f"was started in {str(plan.store.root)!r} with other runs: the data, the precision or a default has "
            "changed since; use another results folder"
        )
        raise ConfigError("study", got=study.spec.name, hint=hint)
    plan.store.write_study(
        study.key,
        {
            "name": study.key,
            "tier": study.tier,
            "declaration": declaration,
            "hash": digest,
            "exploratory": bool(study.overrides),
            "overrides": list(study.overrides),
            "command": shlex.join(["bnexp", "train", *argv]),
            "run_ids": run_ids,
            "arms": plan.arms,
        },
    )


def describe(config: RunConfig, keys: Sequence[str]) -> str:
    """`norm=batch lr=0.1 seed=3`: a run in the words of the overrides that tell it from the others."""
    raw = config.to_dict()
    words = []
    for key in keys:
        node: Any = raw
        for part in GROUP_LABELS.get(key, key).split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is not None:
            words.append(f"{key}={node}")
    return " ".join(words)


def _state(store: Store, name: str, exec_config: ExecConfig) -> State:
    record = store.record(name)
    if record is not None and record.has_ended_with(exec_config.probes):
        return "done"
    if record is not None and record.status != "failed":
        has_weights = record.status == "diverged" or store.weights_path(name).exists()
        if has_weights and set(record.unmeasured(exec_config.probes)) <= MEASURED_AFTERWARDS:
            return "measure"
    if store.checkpoint_path(name).exists():
        return "resume"
    return "retry" if record is not None and record.status == "failed" else "todo"


def _num_slots(config: ExecConfig, device_type: str) -> int:
    if config.executor == "serial":
        return 1
    if config.slots is not None:
        return config.slots
    if device_type == "cuda":
        import torch

        return torch.cuda.device_count()
    return _num_cores()


def _num_cores() -> int:
    """The cores that this process may use, which in a container or a job are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _execute(plan: Plan, exec_config: ExecConfig, keys: Sequence[str]) -> dict[str, RunRecord]:
    """Run id -> record for all runs that ended, those done before included."""
    records: dict[str, RunRecord] = {}
    todo = [run.config for run in plan.todo]
    if not todo:
        return records
    total = sum(config.epochs for config in todo)
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
            count = f"[{len(records):>{len(str(len(todo)))}}/{len(todo)}] " if len(todo) > 1 else ""
            bar.write(f"{count}{name}  {describe(config, keys)}  {_ending(record)}".replace("    ", "  "))

        in_processes = len(todo) > 1 and exec_config.executor != "serial"
        if in_processes or exec_config.executor == "process":
            slots = min(plan.slots, len(todo))
            execute_processes(todo, plan.worker, plan.store, slots=slots, on_epoch=on_epoch, on_record=on_record)
        else:
            execute_serial(todo, plan.worker, plan.store, on_epoch=on_epoch, on_record=on_record)
    return records


def _ending(record: RunRecord | None) -> str:
    if record is None:
        return "skipped: another process is training it"
    if record.status == "failed":
        return f"FAILED  {record.error}"
    seconds = f"{record.seconds['train'] + record.seconds['eval']:.1f} s"
    accuracy = record.final["test_accuracy"]
    if accuracy is None:
        return f"{record.status} in epoch {record.epochs_done}  {seconds}"
    return f"{record.status}  test {100 * accuracy:.2f} %  {seconds}"


def _opening(plan: Plan) -> str:
    merged = plan.num_composed - len(plan.runs)
    parts = [f"{plan.count('done')} done", f"{plan.count('resume')} to resume"]
    parts += [f"{plan.count('retry')} to retry", f"{plan.count('todo')} to do"]
    parts += [f"{plan.count('measure')} to measure"] if plan.count("measure") else []
    note = f" ({merged} of {plan.num_composed} grid points are the same runs)" if merged else ""
    workers = f"{plan.slots} at a time, {plan.worker.threads} thread{'s' * (plan.worker.threads > 1)} each"
    return f"{len(plan.runs)} runs{note}: {', '.join(parts)}; on {plan.worker.device}, {workers}"


def _print_summary(plan: Plan, records: dict[str, RunRecord], request: Request, keys: Sequence[str]) -> None:
    if len(plan.runs) == 1 and not records:
        record = plan.store.record(plan.runs[0].run_id)
        if record is not None:
            print(f"{record.run_id}  already done: {_ending(record)}")
    elif len(plan.runs) > 1:
        ended: Counter[str] = Counter(record.status for record in records.values())
        left = len(plan.todo) - len(records)
        ended.update({"left to another process": left} if left else {})
        told = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "nothing left to train"
        print(f"{len(plan.runs)} runs: {plan.count('done')} were done before, now {told}")
    failures = [(run, records[run.run_id]) for run in plan.todo if run.run_id in records]
    for run, record in failures:
        if record.status == "failed":
            print(f"failed: {describe(run.config, keys) or run.run_id}: {record.error}", file=sys.stderr)
            print(f"        traceback: {plan.store.error_path(run.run_id)}", file=sys.stderr)
    where = "" if request.exec.results.name == "results" else f" --results {shlex.quote(str(request.exec.results))}"
    if request.study is not None:
        print(f"report: bnexp report {request.study.key}{where}")
    elif len(plan.runs) > 1:
        print(f"report: bnexp report{where}")
    else:
        print(f"record: {plan.store.run_dir(plan.runs[0].run_id)}")
