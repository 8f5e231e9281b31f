"""Executes runs over worker processes: each takes the next run when it is free, and a killed one costs one run.

concurrent.futures ends the whole pool when one worker dies; here the dead worker's run becomes a failed record and
a fresh worker goes on with the rest.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from bnexp.config import RunConfig
from bnexp.engine.execute import Job, Worker, execute_run, execute_stack, failed_record, write_failure
from bnexp.identity import run_id
from bnexp.records import RunRecord
from bnexp.store import Store

PARENT_POLL_SECONDS = 0.5
TELL_SECONDS = 0.2  # least time between two messages about epochs


@dataclass
class _Slot:
    """A living worker and the runs that it has in hand: one, or a stack."""

    index: int
    process: BaseProcess
    pipe: Connection
    jobs: tuple[Job, ...] = ()


def execute_processes(
    batches: Sequence[tuple[Job, ...]],
    worker: Worker,
    store: Store,
    *,
    slots: int,
    on_epoch: Callable[[RunConfig], None],
    on_record: Callable[[RunConfig, RunRecord | None], None],
) -> None:
    """Execute in order of `batches`, `slots` at a time; calls back as `execute_serial` does, in order of completion.

    The runs of a batch are trained side by side; where its worker dies, they are tried again one by one.
    """
    pending = deque(batches)
    living: list[_Slot] = []
    try:
        while pending or any(slot.jobs for slot in living):
            while pending and len(living) < slots:
                used = {slot.index for slot in living}
                free = next(index for index in range(slots) if index not in used)
                living.append(_start(worker, store, index=free))
            for slot in living:
                if not slot.jobs and pending:
                    try:
                        slot.pipe.send(pending[0])
                    except BrokenPipeError:  # it died while idle: the run stays pending, a fresh worker comes
                        continue
                    slot.jobs = pending.popleft()
            wait([handle for slot in living for handle in (slot.pipe, slot.process.sentinel)])
            for slot in list(living):
                if not _listen(slot, on_epoch, on_record):
                    living.remove(slot)
                    if len(slot.jobs) > 1:
                        pending.extendleft((job,) for job in reversed(slot.jobs))
                    for job in slot.jobs if len(slot.jobs) == 1 else ():
                        on_record(job.config, _record_death(slot, job, worker, store))
    finally:
        for slot in living:
            slot.process.terminate()
        for slot in living:
            slot.process.join()


def process_context(device: torch.device) -> Any:
    """How worker processes are started.

    A fork before torch's first operation costs 0.03 s where a fresh interpreter costs seconds; CUDA forbids it.
    """
    return mp.get_context("fork" if device.type == "cpu" and sys.platform == "linux" else "spawn")


def call_in_processes(device: torch.device, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call these at once, each in a process of its own; what each returns, or None where its process died."""
    context = process_context(device)
    started = []
    for call in calls:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(there, call), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    found = []
    for process, here in started:
        try:
            found.append(here.recv())
        except EOFError:
            found.append(None)
        process.join()
    return found


def _answer(pipe: Connection, call: Callable[[], Any]) -> None:
    pipe.send(call())


def _start(worker: Worker, store: Store, *, index: int) -> _Slot:
    context = process_context(worker.device)
    if worker.device.type == "cuda":
        worker = replace(worker, device=torch.device("cuda", index % torch.cuda.device_count()))
    if context.get_start_method() != "fork":
        worker = replace(worker, hosts={})  # read again there: pickling the images costs more
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, worker, store, os.getpid()), daemon=True)
    process.start()
    there.close()
    return _Slot(index, process, here)


def _work(pipe: Connection, worker: Worker, store: Store, parent: int) -> None:
    """The worker: takes jobs from the pipe until it is terminated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    worker.start()
    epochs: Counter[int] = Counter()  # place in the batch -> epochs that were not told yet
    told_at = 0.0

    def on_epoch(index: int) -> None:
        nonlocal told_at
        epochs[index] += 1
        if time.monotonic() - told_at > TELL_SECONDS:
            pipe.send(dict(epochs))
            epochs.clear()
            told_at = time.monotonic()

    while True:
        jobs = pipe.recv()
        epochs.clear()  # what the last runs did not tell, their records told
        if len(jobs) > 1:
            pipe.send(execute_stack(jobs, worker, store, on_epoch=on_epoch))
        else:
            (job,) = jobs
            measuring = worker.measuring(job.probes)
            pipe.send([execute_run(job.config, measuring, store, on_epoch=lambda: on_epoch(0))])


def _die_with(parent: int) -> None:
    """End this process, wherever it is, once its parent is gone: a kill -9 there must not leave it training."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def _listen(
    slot: _Slot, on_epoch: Callable[[RunConfig], None], on_record: Callable[[RunConfig, RunRecord | None], None]
) -> bool:
    """Handle all that a worker has said; False once it is dead and has nothing more to say."""
    try:
        while slot.pipe.poll():
            message = slot.pipe.recv()
            if isinstance(message, dict):  # epochs of each run in hand; else its records, at the end
                for index in Counter(message).elements():
                    on_epoch(slot.jobs[index].config)
                continue
            jobs, slot.jobs = slot.jobs, ()
            for job, record in zip(jobs, message, strict=True):
                on_record(job.config, record)
    except (EOFError, ConnectionResetError):
        slot.process.join()
    return slot.process.is_alive()


def _record_death(slot: _Slot, job: Job, worker: Worker, store: Store) -> RunRecord:
    done = store.record(run_id(job.config))
    if done is not None and done.has_ended_with(job.probes):
        return done  # killed between writing its record and saying so
    code = slot.process.exitcode
    cause = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit status {code}"
    record = failed_record(job.config, worker.measuring(job.probes).exec, error=f"the worker process ended by {cause}")
    write_failure(record, store, f"{record.error}\nOut of memory, or killed from outside; there is no traceback.\n")
    return record
