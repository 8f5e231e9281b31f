"""One run from its config to its record: the lock, the resume, and the one place that catches everything."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bnexp.config import DataConfig, ExecConfig, RunConfig
from bnexp.engine.build import DeviceData, HostData, load_host_data, to_device
from bnexp.engine.checkpoint import load_weights, save_weights
from bnexp.engine.device import environment
from bnexp.engine.loop import Checkpointing, measure_trained, train_run
from bnexp.identity import cell_id, run_id
from bnexp.probes import END_PROBES
from bnexp.records import RunRecord
from bnexp.store import Store

# a killed sweep's workers notice within a second and free their locks; a run locked for longer runs elsewhere
LOCK_SECONDS = 5.0


@dataclass
class Worker:
    """What executes runs one after another in one process, and keeps their data on the device between them.

    Attributes:
        hosts: data sets that the parent has read already.
    """

    exec: ExecConfig
    device: torch.device
    threads: int
    hosts: dict[DataConfig, HostData]
    _on_device: dict[DataConfig, DeviceData] = field(default_factory=dict)

    def start(self) -> None:
        """Settle what belongs to the whole process."""
        torch.set_num_threads(self.threads)
        # fp32 means fp32: without this, convolutions on CUDA would silently round to TF32
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def data(self, config: DataConfig) -> DeviceData:
        if config not in self._on_device:
            self._on_device.clear()  # one data set at a time: sweeps go through them in turn
            host = self.hosts.get(config) or load_host_data(config, self.exec.data_root)
            self._on_device[config] = to_device(host, self.device)
        return self._on_device[config]


def execute_run(
    config: RunConfig, worker: Worker, store: Store, *, on_epoch: Callable[[], None] = lambda: None
) -> RunRecord | None:
    """Train one run, unless its record is there, and write its record; an exception becomes a failed record.

    Returns:
        The record, or None when another process is training this run.
    """
    name = run_id(config)
    try:
        with store.lock(name, timeout_seconds=LOCK_SECONDS) as held:
            if not held:
                return None
            done = store.record(name)
            if done is not None and done.has_ended_with(worker.exec.probes):
                return done
            record = None if done is None else _measure(config, done, worker, store)
            if record is None:
                record = _train(config, name, _with_probes_of(done, worker), store, on_epoch)
            store.write_record(record)
            store.checkpoint_path(name).unlink(missing_ok=True)
            store.error_path(name).unlink(missing_ok=True)
            return record
    except Exception as error:  # the one boundary: whatever a run raises must not stop the others
        record = failed_record(config, worker.exec, error=_last_line(error))
        write_failure(record, store, traceback.format_exc())
        return record


def _measure(config: RunConfig, done: RunRecord, worker: Worker, store: Store) -> RunRecord | None:
    """The record of a trained run with the probes that it lacked, or None where they need the training itself."""
    missing = done.unmeasured(worker.exec.probes)
    if done.status == "failed" or not set(missing) <= set(END_PROBES):
        return None
    rows = [row for row in store.probes(done.run_id) if row["probe"] not in missing]
    seconds = 0.0
    if done.status != "diverged":
        weights = load_weights(store.weights_path(done.run_id))
        if weights is None:
            return None
        torch.set_num_threads(worker.threads)
        step = store.history(done.run_id)[-1]["step"]
        measured = measure_trained(config, worker.data(config.data), worker.device, weights, probes=missing, step=step)
        if measured is None:
            return None
        rows, seconds = rows + measured[0], measured[1]
    store.write_probes(done.run_id, rows)
    probes = {**done.exec.get("probes", {}), **missing}
    spent = done.seconds | {"probes": done.seconds.get("probes", 0.0) + seconds}
    return replace(done, exec=done.exec | {"probes": probes}, seconds=spent)


def _with_probes_of(done: RunRecord | None, worker: Worker) -> Worker:
    """The worker, which measures anew what an earlier record of the run has besides."""
    if done is None or done.status == "failed":
        return worker
    probes = {**done.exec.get("probes", {}), **worker.exec.probes}
    return replace(worker, exec=replace(worker.exec, probes=probes))


def write_failure(record: RunRecord, store: Store, details: str) -> None:
    """Leave a failed record and its traceback; where not even that can be written, the sweep goes on without.

    A run that had ended well, and crashed when it was repeated for more probes, keeps its record.
    """
    try:
        store.run_dir(record.run_id).mkdir(parents=True, exist_ok=True)
        store.error_path(record.run_id).write_text(details)
        done = store.record(record.run_id)
        if done is None or done.status == "failed":
            store.write_record(record)
    except OSError as error:
        print(f"bnexp: {record.run_id}: its failure could not be recorded ({error})", file=sys.stderr)


def failed_record(config: RunConfig, exec_config: ExecConfig, *, error: str) -> RunRecord:
    """The record of a run that crashed."""
    return RunRecord(
        run_id(config), cell_id(config), "failed", config.to_dict(), _exec_dict(exec_config, None), error=error
    )


def _train(config: RunConfig, name: str, worker: Worker, store: Store, on_epoch: Callable[[], None]) -> RunRecord:
    store.write_config(name, config.to_dict())
    rows: list[dict[str, Any]] = []

    def log(row: dict[str, Any]) -> None:
        if not rows:  # the first epoch of this process: drop rows past the checkpoint that it went on from
            store.write_history(name, [old for old in store.history(name) if old["epoch"] < row["epoch"]])
        rows.append(row)
        store.append_history(name, row)
        on_epoch()

    torch.set_num_threads(worker.threads)
    checkpointing = Checkpointing(store.checkpoint_path(name), worker.exec.checkpoint_seconds)
    outcome = train_run(
        config, worker.data(config.data), worker.device, checkpointing=checkpointing, probes=worker.exec.probes,
        on_epoch=log,
    )  # fmt: skip
    store.write_history(name, outcome.history)
    if worker.exec.probes:
        store.write_probes(name, outcome.probes)
    if outcome.weights is not None:
        save_weights(store.weights_path(name), outcome.weights)
    assert all(value is None or math.isfinite(value) for value in outcome.final.values())
    return RunRecord(
        run_id=name,
        cell_id=cell_id(config),
        status=outcome.status,
        config=config.to_dict(),
        exec=_exec_dict(worker.exec, worker),
        final=outcome.final,
        seconds=outcome.seconds,
        environment=environment(worker.device, config.precision),
        num_params=outcome.num_params,
        epochs_done=len(outcome.history),
    )


def _exec_dict(config: ExecConfig, worker: Worker | None) -> dict[str, Any]:
    used = {} if worker is None else {"device": str(worker.device), "threads": torch.get_num_threads()}
    return config.to_dict() | used


def _last_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
