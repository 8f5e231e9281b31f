"""One run from its config to its record: the lock, the resume, and the one place that catches everything."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnexp.config import ExecConfig, RunConfig
from bnexp.engine.checkpoint import load_checkpoint, load_weights, save_weights
from bnexp.engine.device import environment
from bnexp.engine.lanes import Steps, Stepwise
from bnexp.engine.loop import Checkpointing, Outcome, measure_trained, predict_trained, train_run
from bnexp.engine.stacked import train_stack
from bnexp.engine.worker import Job, Worker
from bnexp.errors import RunError
from bnexp.identity import cell_id, run_id
from bnexp.probes import END_PROBES, STEP_PROBES
from bnexp.records import RunRecord
from bnexp.store import Store

# a killed sweep's workers notice within a second and free their locks; a run locked for longer runs elsewhere
LOCK_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.05
# probes of a trained network, which need its weights and no training
MEASURED_AFTERWARDS = frozenset(END_PROBES)
# images by which predictions of saved weights may miss the recorded accuracy: of a stack, sums differ by rounding
MOST_IMAGES_OFF = 2
TIMES = ("train_seconds", "cpu_seconds", "images_per_second")


@Stepwise
def execute_run(
    config: RunConfig, worker: Worker, store: Store, *, on_epoch: Callable[[], None] = lambda: None
) -> Steps[RunRecord | None]:
    """Train one run, unless its record is there, and write its record; an exception becomes a failed record.

    A run that has ended and lacks probes keeps its numbers: those of a trained network are measured from its weights,
    and for the others the training is repeated beside it.

    Returns:
        The record, or None when another process is training this run.
    """
    name = run_id(config)
    try:
        with ExitStack() as locks:
            if not (yield from _locked(name, worker, store, locks)):
                return None
            record = store.record(name)
            ended = record is not None and record.has_ended_with(worker.exec.probes)
            if record is not None and ended and not lacks_predictions(record, store):
                return record
            weights = None
            if record is None or record.status == "failed":
                record = yield from _train(config, name, worker, store, on_epoch)
            else:
                weights = load_weights(store.weights_path(name))
                if not ended and _must_repeat(record, worker, weights):
                    record = yield from _repeat(config, record, worker, store, weights, on_epoch)
            store.checkpoint_path(name).unlink(missing_ok=True)
            record = _measure(config, record, worker, store, weights)
            if lacks_predictions(record, store):
                _predict(config, record, worker, store, weights)
            store.error_path(name).unlink(missing_ok=True)
            return record
    except Exception as error:  # the one boundary: whatever a run raises must not stop the others
        record = failed_record(config, worker.exec, error=_last_line(error))
        write_failure(record, store, traceback.format_exc())
        return record


def _locked(name: str, worker: Worker, store: Store, locks: ExitStack) -> Steps[bool]:
    """Take a run's lock; False where another process has kept it for all of `LOCK_SECONDS`."""
    deadline = time.monotonic() + LOCK_SECONDS
    due = 0.0
    while True:
        now = time.monotonic()
        if now >= min(due, deadline):
            with ExitStack() as attempt:
                if attempt.enter_context(store.lock(name, timeout_seconds=0.0)):
                    locks.enter_context(attempt.pop_all())
                    return True
            due = now + LOCK_POLL_SECONDS
        if now >= deadline:
            return False
        if worker.lanes == 1:
            time.sleep(LOCK_POLL_SECONDS)
        yield


@Stepwise
def execute_stack(
    jobs: Sequence[Job], worker: Worker, store: Store, *, on_epoch: Callable[[int], None] = lambda index: None
) -> Steps[list[RunRecord | None]]:
    """Execute runs of one `stack_key` side by side, each with a record of its own; or one by one where that fails.

    Runs that have ended, that another process has in hand, or that have got further than the others, are left to
    `execute_run`.

    Args:
        on_epoch: called with the place in `jobs` of a run that has trained for an epoch.

    Returns:
        As `execute_run`, of each job in its place. Where a stack lacks memory beside others, failed records of all its
        runs that are nowhere on disk: it is to be tried again apart.
    """
    names = [run_id(job.config) for job in jobs]
    with ExitStack() as locks:
        held = [locks.enter_context(store.lock(name, timeout_seconds=0.0)) for name in names]
        try:
            together = _of_one_epoch([index for index, mine in enumerate(held) if mine], names, store)
            if len(together) > 1:
                yield from _train_stack(
                    [jobs[index] for index in together], worker, store, lambda i: on_epoch(together[i])
                )
        except Exception as error:  # each is then tried alone, where whatever it raises becomes its own record
            lacked_memory = isinstance(error, torch.OutOfMemoryError)
            if lacked_memory and worker.lanes > 1:  # it is tried again side by side, with nothing else in flight
                records = [failed_record(job.config, worker.exec, error=_last_line(error)) for job in jobs]
                return [record if mine else None for record, mine in zip(records, held, strict=True)]
            print(f"bnexp: {len(jobs)} runs cannot be trained side by side ({_last_line(error)})", file=sys.stderr)
    ended: list[RunRecord | None] = [None] * len(jobs)
    for index, job in enumerate(jobs):
        if held[index]:
            measuring = worker.measuring(job.probes)
            ended[index] = yield from execute_run.in_steps(
                job.config, measuring, store, on_epoch=partial(on_epoch, index)
            )
    return ended


def _of_one_epoch(places: Sequence[int], names: Sequence[str], store: Store) -> list[int]:
    """The places of the most runs that have not ended and whose last checkpoints, or beginnings, are of one epoch."""
    by_epoch: dict[int, list[int]] = {}
    for index in places:
        record = store.record(names[index])
        if record is None or record.status == "failed":
            state = load_checkpoint(store.checkpoint_path(names[index]), torch.device("cpu"))
            by_epoch.setdefault(0 if state is None else len(state["history"]), []).append(index)
    return max(by_epoch.values(), key=len, default=[])


def _train_stack(jobs: Sequence[Job], worker: Worker, store: Store, on_epoch: Callable[[int], None]) -> Steps[None]:
    """Train and record runs side by side."""
    configs = [job.config for job in jobs]
    names = [run_id(config) for config in configs]
    torch.set_num_threads(worker.threads)
    for name, config in zip(names, configs, strict=True):
        store.write_config(name, config.to_dict())
    logs = [_history_log(name, store, partial(on_epoch, index)) for index, name in enumerate(names)]

    def on_end(index: int, outcome: Outcome) -> None:
        _record(configs[index], outcome, worker, store, {"probes": {}, "stack": len(jobs)})
        store.checkpoint_path(names[index]).unlink(missing_ok=True)

    yield from train_stack.in_steps(
        configs,
        worker.stack_data(configs[0].data, [config.seed for config in configs]),
        worker.device,
        checkpointing=[Checkpointing(store.checkpoint_path(name), worker.exec.checkpoint_seconds) for name in names],
        captured=worker.captures,
        on_epoch=lambda index, row: logs[index](row),
        on_end=on_end,
    )


def write_failure(record: RunRecord, store: Store, details: str) -> None:
    """Leave a failed record and its traceback; where not even that can be written, the sweep goes on without.

    A run that had ended well, and failed when it was measured or repeated for more probes, keeps its record.
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


def _train(
    config: RunConfig, name: str, worker: Worker, store: Store, on_epoch: Callable[[], None]
) -> Steps[RunRecord]:
    """Train and record; what its probes measure of the trained network is not in it yet."""
    store.write_config(name, config.to_dict())
    probes = {key: dict(options) for key, options in worker.exec.probes.items() if key in STEP_PROBES}
    outcome = yield from _train_run(
        config, name, worker, store, threads=worker.threads, probes=probes, on_epoch=_history_log(name, store, on_epoch)
    )
    return _record(config, outcome, worker, store, {"probes": probes})


def _history_log(name: str, store: Store, on_epoch: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """What appends each new row to a run's history; rows past the checkpoint that it went on from are dropped."""
    begun = False

    def log(row: dict[str, Any]) -> None:
        nonlocal begun
        if not begun and (before := store.history(name)):
            store.write_history(name, [old for old in before if old["epoch"] < row["epoch"]])
        begun = True
        store.append_history(name, row)
        on_epoch()

    return log


def _record(
    config: RunConfig, outcome: Outcome, worker: Worker, store: Store, execution: Mapping[str, Any]
) -> RunRecord:
    """Write all that training gave, the record last.

    Args:
        execution: what `exec` of the record says besides the worker's.
    """
    name = run_id(config)
    store.error_path(name).unlink(missing_ok=True)
    store.write_history(name, outcome.history)
    store.write_probes(name, outcome.probes)
    _write_weights(name, outcome, store)
    _write_predictions(name, outcome, store)
    assert all(value is None or math.isfinite(value) for value in outcome.final.values())
    record = RunRecord(
        run_id=name,
        cell_id=cell_id(config),
        status=outcome.status,
        config=config.to_dict(),
        exec=_exec_dict(worker.exec, worker) | dict(execution) | ({"captured": True} if outcome.captured else {}),
        final=outcome.final,
        seconds=outcome.seconds,
        environment=environment(worker.device, config.precision),
        num_params=outcome.num_params,
        epochs_done=len(outcome.history),
    )
    store.write_record(record)
    return record


def _must_repeat(record: RunRecord, worker: Worker, weights: dict[str, Tensor] | None) -> bool:
    """Whether a probe that the ended run lacks looks at steps, or at weights that are not there."""
    missing = record.unmeasured(worker.exec.probes)
    if not set(missing) <= MEASURED_AFTERWARDS:
        return True
    return record.status != "diverged" and weights is None


def _repeat(
    config: RunConfig,
    done: RunRecord,
    worker: Worker,
    store: Store,
    weights: dict[str, Tensor] | None,
    on_epoch: Callable[[], None],
) -> Steps[RunRecord]:
    """Train an ended run again for the probes that it lacks; nothing of it is touched before it has ended alike.

    Alike is to the bit on a CPU. Elsewhere sums are not repeatable, and neither are those of a run that was trained in
    a stack: there it is the status alone, and what the probes measured is of a run that differs by rounding.

    Raises:
        RunError: it ended otherwise.
    """
    name = done.run_id
    missing = {key: options for key, options in done.unmeasured(worker.exec.probes).items() if key in STEP_PROBES}
    threads = done.exec.get("threads", worker.threads)  # sums depend on it
    outcome = yield from _train_run(
        config, name, worker, store, threads=threads, probes=missing, on_epoch=lambda row: on_epoch()
    )
    before = (_untimed(done.final), [_untimed(row) for row in store.history(name)])
    repeatable = worker.device.type == "cpu" and done.exec.get("device") == "cpu" and "stack" not in done.exec
    alike = not repeatable or before == (_untimed(outcome.final), [_untimed(row) for row in outcome.history])
    if done.status != outcome.status or not alike:
        store.checkpoint_path(name).unlink(missing_ok=True)
        raise RunError(
            "repeated for its probes, the run gave other numbers, as on other hardware or versions; its record is kept "
            "and nothing was measured: use another results folder"
        )
    store.write_probes(name, [row for row in store.probes(name) if row["probe"] not in missing] + outcome.probes)
    if weights is None:
        _write_weights(name, outcome, store)
        _write_predictions(name, outcome, store)  # they are of these weights
    return _add_probes(done, missing, outcome.seconds["probes"], store)


def _measure(
    config: RunConfig, record: RunRecord, worker: Worker, store: Store, weights: dict[str, Tensor] | None
) -> RunRecord:
    """Measure what is missing of a trained network, from its weights.

    Args:
        weights: as read from disk already, if they were.

    Raises:
        RunError: the weights are not there, or the run was made on another device and its cost is asked for.
    """
    missing = {k: options for k, options in record.unmeasured(worker.exec.probes).items() if k in MEASURED_AFTERWARDS}
    if not missing:
        return record
    name, seconds = record.run_id, 0.0
    made_on = str(record.exec.get("device", worker.device)).partition(":")[0]
    elsewhere = "cost" in missing and record.status != "diverged" and made_on != worker.device.type
    if elsewhere:
        del missing["cost"]
    if missing and record.status != "diverged":
        weights = load_weights(store.weights_path(name)) if weights is None else weights
        torch.set_num_threads(record.exec.get("threads", worker.threads))
        data, step = worker.data(config.data, config.seed), store.history(name)[-1]["step"]
        measured = None if weights is None else measure_trained(
            config, data, worker.device, weights, probes=missing, step=step
        )  # fmt: skip
        if measured is None:
            raise _foreign_weights(name, store)
        rows, seconds = measured
        store.write_probes(name, [row for row in store.probes(name) if row["probe"] not in missing] + rows)
    record = _add_probes(record, missing, seconds, store)
    if elsewhere:
        raise RunError(f"probes=[cost]: this run was made on {made_on}, and its cost cannot be told on {worker.device}")
    return record


def lacks_predictions(record: RunRecord, store: Store) -> bool:
    """Whether a run of an earlier version can still be told its predictions: they are missing, and its weights not."""
    if record.status not in ("finished", "collapsed") or store.predictions_path(record.run_id).exists():
        return False
    return store.weights_path(record.run_id).exists()


def _predict(
    config: RunConfig, record: RunRecord, worker: Worker, store: Store, weights: dict[str, Tensor] | None
) -> None:
    """Write the predictions of a run that ended without them, from its weights.

    Args:
        weights: as read from disk already, if they were.

    Raises:
        RunError: the weights are not this network's, or do not give the accuracy that was recorded.
    """
    name = record.run_id
    weights = load_weights(store.weights_path(name)) if weights is None else weights
    torch.set_num_threads(record.exec.get("threads", worker.threads))  # sums depend on it
    data = worker.data(config.data, config.seed)
    predictions = None if weights is None else predict_trained(config, data, worker.device, weights)
    if predictions is None:
        raise _foreign_weights(name, store)
    num_correct, num = int((predictions.predicted == predictions.label).sum()), len(predictions.label)
    recorded = record.final["test_accuracy"]
    assert recorded is not None
    if abs(num_correct - recorded * num) > MOST_IMAGES_OFF + 1e-6:
        raise RunError(
            f"{store.weights_path(name)}: classifies {num_correct} of {num} test images correctly where "
            f"{round(recorded * num)} were recorded, as on other hardware or versions; the record is kept, without "
            "predictions: use another results folder"
        )
    store.add_predictions(name, predictions)


def _foreign_weights(name: str, store: Store) -> RunError:
    return RunError(
        f"{store.weights_path(name)}: not this network's weights, as of another version of bnexp; the record "
        "is kept: use another results folder"
    )


def _train_run(
    config: RunConfig,
    name: str,
    worker: Worker,
    store: Store,
    *,
    threads: int,
    probes: dict[str, dict[str, Any]],
    on_epoch: Callable[[dict[str, Any]], None],
) -> Steps[Outcome]:
    torch.set_num_threads(threads)
    checkpointing = Checkpointing(store.checkpoint_path(name), worker.exec.checkpoint_seconds)
    outcome = yield from train_run.in_steps(
        config,
        worker.data(config.data, config.seed),
        worker.device,
        checkpointing=checkpointing,
        probes=probes,
        captured=worker.captures,
        on_epoch=on_epoch,
    )
    return outcome


def _add_probes(record: RunRecord, probes: dict[str, dict[str, Any]], seconds: float, store: Store) -> RunRecord:
    known = {**record.exec.get("probes", {}), **probes}
    spent = record.seconds | {"probes": record.seconds.get("probes", 0.0) + seconds}
    record = replace(record, exec=record.exec | {"probes": known}, seconds=spent)
    store.write_record(record)
    return record


def _write_weights(name: str, outcome: Outcome, store: Store) -> None:
    if outcome.weights is None:
        store.weights_path(name).unlink(missing_ok=True)
    else:
        save_weights(store.weights_path(name), outcome.weights)


def _write_predictions(name: str, outcome: Outcome, store: Store) -> None:
    if outcome.predictions is None:
        store.predictions_path(name).unlink(missing_ok=True)
    else:
        store.write_predictions(name, outcome.predictions)


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def _exec_dict(config: ExecConfig, worker: Worker | None) -> dict[str, Any]:
    if worker is None:
        return config.to_dict()
    used = {"device": str(worker.device), "threads": torch.get_num_threads()}
    in_flight = worker.lanes * worker.sharing
    return config.to_dict() | used | ({"in_flight": in_flight} if in_flight > 1 else {})


def _last_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
