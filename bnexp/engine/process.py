"""Executes runs over worker processes: each takes the next run when it is free, and a killed one costs one run.

concurrent.futures ends the whole pool when one worker dies; here a fresh worker goes on with the rest. A run that was
alone in the dead one's hand becomes a failed record; of several it is not known which was to blame, and each is tried
again apart.
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from bnexp.config import RunConfig
from bnexp.engine.execute import execute_run, execute_stack, failed_record, write_failure
from bnexp.engine.lanes import Lanes, Steps
from bnexp.engine.worker import Job, Worker
from bnexp.identity import run_id
from bnexp.records import RunRecord
from bnexp.store import Store

PARENT_POLL_SECONDS = 0.5
TELL_SECONDS = 0.2  # least time between two messages about epochs
ASK_SECONDS = 0.005  # least time between two looks for more to take on, where something is in flight
GPU_LIBRARIES = ("OutOfMemoryError", "CUDA", "cuDNN", "CUDNN", "CUBLAS", "unable to find an engine")
BROKEN_STATUS = 3


@dataclass(frozen=True)
class _Batch:
    """Runs that are taken together: one, or a stack.

    Attributes:
        apart: nothing may be in flight beside it.
    """

    jobs: tuple[Job, ...]
    apart: bool

    def is_one_alone(self, worker: Worker) -> bool:
        """Whether it is a single run with nothing in flight beside it in its process, which then dies of it."""
        return len(self.jobs) == 1 and (self.apart or worker.lanes == 1)


@dataclass
class _Slot:
    """A living worker and what it has in flight, by number."""

    index: int
    process: BaseProcess
    pipe: Connection
    batches: dict[int, _Batch] = field(default_factory=dict)

    def takes(self, batch: _Batch, lanes: int) -> bool:
        """Whether it can take this too."""
        if batch.apart or any(other.apart for other in self.batches.values()):
            return not self.batches
        return len(self.batches) < lanes


def execute_processes(
    batches: Sequence[tuple[Job, ...]],
    worker: Worker,
    store: Store,
    *,
    slots: int,
    on_epoch: Callable[[RunConfig], None],
    on_record: Callable[[RunConfig, RunRecord | None], None],
) -> None:
    """Execute batches in so many processes; calls back as `execute_serial` does, in order of completion.

    The runs of a batch are trained side by side, and a process has as many batches in flight as its worker has lanes.
    They are begun in their order, but that with several in flight those that must be apart come last.
    """
    found = [_Batch(jobs, any(job.apart for job in jobs)) for jobs in batches]
    if worker.lanes > 1:
        found.sort(key=lambda batch: batch.apart)  # lanes are not left empty in between
    pending = deque(found)
    numbers = itertools.count()
    living: list[_Slot] = []
    try:
        while pending or any(slot.batches for slot in living):
            while pending and len(living) < slots:
                used = {slot.index for slot in living}
                free = next(index for index in range(slots) if index not in used)
                living.append(_start(worker, store, index=free))
            while pending and (takers := [slot for slot in living if slot.takes(pending[0], worker.lanes)]):
                slot, number = min(takers, key=lambda taker: len(taker.batches)), next(numbers)
                try:
                    slot.pipe.send((number, pending[0]))
                except BrokenPipeError:  # it died while idle: the batch stays pending, a fresh worker comes
                    break
                slot.batches[number] = pending.popleft()
            wait([handle for slot in living for handle in (slot.pipe, slot.process.sentinel)])
            for slot in list(living):
                alive, again = _listen(slot, worker, on_epoch, on_record)
                if not alive:
                    living.remove(slot)
                    in_hand = list(slot.batches.values())
                    if len(in_hand) == 1 and in_hand[0].is_one_alone(worker):
                        (job,) = in_hand[0].jobs
                        on_record(job.config, _record_death(slot, job, worker, store))
                    else:
                        again += [(job,) for batch in in_hand for job in batch.jobs]
                retried = [_Batch(jobs, apart=True) for jobs in again]
                if worker.lanes > 1:
                    pending.extend(retried)
                else:
                    pending.extendleft(reversed(retried))
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
    worker = worker.of_slot(index)
    if context.get_start_method() != "fork":
        worker = replace(worker, hosts={})  # read again there: pickling the images costs more
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, worker, store, os.getpid()), daemon=True)
    process.start()
    there.close()
    return _Slot(index, process, here)


def _work(pipe: Connection, worker: Worker, store: Store, parent: int) -> None:
    """The worker: takes batches from the pipe until it is terminated, or can no longer use its GPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    worker.start()
    epochs: Counter[tuple[int, int]] = Counter()  # batch and place in it -> epochs that were not told yet
    told_at = 0.0

    def on_epoch(number: int, place: int) -> None:
        nonlocal told_at
        epochs[number, place] += 1
        if time.monotonic() - told_at > TELL_SECONDS:
            try:
                pipe.send(dict(epochs))
            except BrokenPipeError:  # the parent is gone, which is no failure of the run
                os._exit(1)
            epochs.clear()
            told_at = time.monotonic()

    lanes: Lanes[list[RunRecord | None]] = Lanes(worker.device, worker.lanes)
    in_hand: dict[int, _Batch] = {}
    asked_at = 0.0
    while True:
        apart = any(batch.apart for batch in in_hand.values())
        while not lanes or (lanes.free and not apart and time.monotonic() - asked_at > ASK_SECONDS):
            asked_at = time.monotonic()
            if lanes and not pipe.poll():
                break
            number, batch = pipe.recv()
            in_hand[number], apart, asked_at = batch, batch.apart, 0.0
            executing = replace(worker, lanes=1) if apart else worker
            lanes.begin(number, _execute(batch.jobs, executing, store, partial(on_epoch, number)))
        for number, records in lanes.advance():
            for key in [key for key in epochs if key[0] == number]:  # its records tell them
                del epochs[key]
            batch = in_hand.pop(number)
            broken = any(record is not None and record.status == "failed" for record in records) and _is_broken(worker)
            if not broken or batch.is_one_alone(worker):  # else it is not known which run broke it
                pipe.send((number, records, broken))
            if broken:
                os._exit(BROKEN_STATUS)


def _is_broken(worker: Worker) -> bool:
    """Whether this process can no longer use its GPU, as after an illegal access: every call fails then."""
    if worker.device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(worker.device)
    except RuntimeError:
        return True
    return False


def _execute(
    jobs: Sequence[Job], worker: Worker, store: Store, on_epoch: Callable[[int], None]
) -> Steps[list[RunRecord | None]]:
    if len(jobs) > 1:
        return (yield from execute_stack.in_steps(jobs, worker, store, on_epoch=on_epoch))
    measuring = worker.measuring(jobs[0].probes)
    return [(yield from execute_run.in_steps(jobs[0].config, measuring, store, on_epoch=partial(on_epoch, 0)))]


def _die_with(parent: int) -> None:
    """End this process, wherever it is, once its parent is gone: a kill -9 there must not leave it training."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def _listen(
    slot: _Slot,
    worker: Worker,
    on_epoch: Callable[[RunConfig], None],
    on_record: Callable[[RunConfig, RunRecord | None], None],
) -> tuple[bool, list[tuple[Job, ...]]]:
    """Handle all that a worker has said: whether it lives or has more to say, and what is to be tried again apart."""
    again: list[tuple[Job, ...]] = []
    try:
        while slot.pipe.poll():
            message = slot.pipe.recv()
            if isinstance(message, dict):  # epochs of runs in hand; else the records of a batch, at its end
                for number, place in Counter(message).elements():
                    on_epoch(slot.batches[number].jobs[place].config)
                continue
            number, records, broken = message
            batch = slot.batches.pop(number)
            if worker.lanes > 1 and not batch.apart and any(map(_may_be_company, records)):
                again.append(batch.jobs)
            else:
                for job, record in zip(batch.jobs, records, strict=True):
                    on_record(job.config, record)
            if broken:
                slot.process.join()
    except (EOFError, ConnectionResetError):
        slot.process.join()
        return False, again  # its end is behind all that it said
    return True, again


def _may_be_company(record: RunRecord | None) -> bool:
    """Whether a run failed by what the GPU's libraries say where memory is short, among other things."""
    error = "" if record is None or record.error is None else record.error
    return any(library in error for library in GPU_LIBRARIES)


def _record_death(slot: _Slot, job: Job, worker: Worker, store: Store) -> RunRecord:
    done = store.record(run_id(job.config))
    if done is not None and done.has_ended_with(job.probes):
        return done  # killed between writing its record and saying so
    code = slot.process.exitcode
    cause = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit status {code}"
    record = failed_record(job.config, worker.measuring(job.probes).exec, error=f"the worker process ended by {cause}")
    write_failure(record, store, f"{record.error}\nOut of memory, or killed from outside; there is no traceback.\n")
    return record
