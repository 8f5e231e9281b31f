"""Several runs in flight in one process: what each comes to does not depend on the others, nor on how it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import compose, untimed

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine import execute, process
from bnexp.engine.build import DeviceData
from bnexp.engine.execute import execute_run
from bnexp.engine.lanes import IN_FLIGHT, Lanes, Steps, Stepwise
from bnexp.engine.loop import Outcome, train_run
from bnexp.engine.process import execute_processes
from bnexp.engine.stacked import train_stack
from bnexp.engine.worker import Job, Worker
from bnexp.identity import run_id
from bnexp.planned import _slots_and_lanes, make_plan, processes_on_a_gpu
from bnexp.records import RunRecord
from bnexp.store import Store

CPU = torch.device("cpu")
SMALL = ("data.train_limit=200", "model.depth=2", "model.width=4", "exec.precision=fp32", "lr=0.01", "epochs=3")


def jobs(*argv: str, lanes: int) -> tuple[list[Job], Worker]:
    """Resolved jobs of a grid, and a worker that has their data."""
    plan = make_plan(request_from_argv(["-m", *SMALL, "exec.threads=1", *argv]))
    plan.worker.start()
    return [Job(run.config, run.probes) for run in plan.runs], replace(plan.worker, lanes=lanes)


def executed(
    found: list[Job], worker: Worker, store: Store, *, batches: list[tuple[Job, ...]] | None = None
) -> dict[int, RunRecord]:
    """Each alone in its batch, or in these batches, in one process; seed -> what was said of it."""
    records: dict[int, RunRecord] = {}

    def on_record(config: RunConfig, record: RunRecord | None) -> None:
        assert record is not None
        assert config.seed not in records
        records[config.seed] = record

    batches = [(job,) for job in found] if batches is None else batches
    execute_processes(batches, worker, store, slots=1, on_epoch=lambda config: None, on_record=on_record)
    return records


def test_a_training_pauses_after_each_step(data: DeviceData) -> None:
    config = compose("batch_size=50")
    steps = train_run.in_steps(config, data, CPU)
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        pauses += 1
    assert pauses == outcome.history[-1]["step"] == 3 * (len(data.train_y) // 50)
    assert untimed(outcome.history) == untimed(train_run(config, data, CPU).history)


def test_what_is_in_flight_is_bitwise_what_it_is_alone(data: DeviceData) -> None:
    configs = [
        compose("norm=noisy_batch", "lr=0.1", "batch_size=40"),
        compose("norm=batch", "model.dropout=0.2", "data.augment=crop_flip"),
        compose("norm=batch", "lr=1e30"),  # ends at once
        compose("norm=layer", "optim=adamw", "lr=0.001"),
    ]
    pair = request_from_argv(
        ["-m", "exec.precision=fp32", "data.train_limit=200", "epochs=3", "norm=batch", "seed=0,1"]
    )
    alone = [train_run(config, data, CPU) for config in configs]
    stacked = train_stack(pair.configs, data, CPU)
    lanes: Lanes[Any] = Lanes(CPU, 5)
    for key, config in enumerate(configs):
        lanes.begin(key, train_run.in_steps(config, data, CPU))
    assert lanes.free
    lanes.begin(4, train_stack.in_steps(pair.configs, data, CPU))
    assert not lanes.free
    ended: list[int] = []
    found: dict[int, Any] = {}
    while lanes:
        for key, outcome in lanes.advance():
            ended.append(key)
            found[key] = outcome
    assert ended[0] == 2
    for key, outcome in enumerate(alone):
        assert untimed(found[key].history) == untimed(outcome.history)
        assert found[key].status == outcome.status
    for one, other in zip(found[4], stacked, strict=True):
        assert untimed(one.history) == untimed(other.history)


def test_lanes_take_turns_and_are_used_again() -> None:
    order: list[str] = []

    def work(name: str, num: int) -> Steps[str]:
        for k in range(num):
            order.append(f"{name}{k}")
            yield
        return name

    lanes: Lanes[str] = Lanes(CPU, 2)
    lanes.begin(7, work("a", 2))
    lanes.begin(8, work("b", 1))
    assert lanes.advance() == []
    assert lanes.advance() == [(8, "b")]
    lanes.begin(9, work("c", 1))
    assert lanes.advance() == [(7, "a")]
    assert lanes.advance() == [(9, "c")]
    assert order == ["a0", "b0", "a1", "c0"]


def test_a_process_with_several_in_flight_leaves_what_runs_alone_leave(tmp_path: Path) -> None:
    found, worker = jobs("seed=0,1,2,3,4", lanes=3)
    store, alone = Store(tmp_path / "lanes"), Store(tmp_path / "alone")
    records = executed(found, worker, store)
    for job in found:
        other = execute_run(job.config, replace(worker, lanes=1), alone)
        assert other is not None
        record = records[job.config.seed]
        assert (record.exec["in_flight"], "in_flight" in other.exec) == (3, False)
        assert untimed([record.final]) == untimed([other.final])
        assert untimed(store.history(record.run_id)) == untimed(alone.history(record.run_id))


def test_what_is_timed_has_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, worker = jobs("seed=0,1,2,3", lanes=4)
    found[1] = replace(found[1], timed=True)
    real, log = train_run.in_steps, tmp_path / "log"

    def logged(config: RunConfig, *args: Any, **options: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{config.seed} ")
        outcome = yield from real(config, *args, **options)
        with log.open("a") as file:
            file.write(f"{config.seed} ")
        return outcome

    monkeypatch.setattr(execute.train_run, "in_steps", logged)
    records = executed(found, worker, Store(tmp_path))
    began = log.read_text().split()
    assert sorted(began[:3]) == ["0", "2", "3"]  # together, and the timed one when they are done
    assert began[-2:] == ["1", "1"]
    assert [records[seed].exec.get("in_flight") for seed in range(4)] == [4, None, 4, 4]


def stumble(at: Path, how: Callable[[], None]) -> Callable[..., Any]:
    """`train_run` that fails once, with seed 1, after a few steps."""
    real = train_run.in_steps

    def training(config: RunConfig, *args: Any, **options: Any) -> Any:
        steps = real(config, *args, **options)
        if config.seed == 1 and not at.exists():
            at.touch()
            next(steps)
            yield
            how()
        return (yield from steps)

    return training


def die() -> None:
    os._exit(3)


def lack_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


@pytest.mark.parametrize(("how", "apart"), [(die, {0, 1, 2}), (lack_memory, {1})])
def test_what_was_in_flight_at_a_failure_is_tried_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None], apart: set[int]
) -> None:
    found, worker = jobs("seed=0,1,2,3", lanes=3)
    monkeypatch.setattr(execute.train_run, "in_steps", stumble(tmp_path / "stumbled", how))
    store = Store(tmp_path)
    records = executed(found, worker, store)
    assert {record.status for record in records.values()} <= {"finished", "collapsed"}
    assert len(records) == 4
    assert {seed for seed, record in records.items() if "in_flight" not in record.exec} == apart
    assert not any(store.error_path(run_id(job.config)).exists() for job in found)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_process_that_lost_its_gpu_costs_the_run_that_did_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, stacked: bool
) -> None:
    found, worker = jobs("seed=0,1,2,3,4", lanes=lanes)
    broken: list[int] = []  # of each process its own

    def breaking(real: Callable[..., Any]) -> Callable[..., Any]:
        def training(configs: Any, *args: Any, **options: Any) -> Any:
            seeds = [configs.seed] if isinstance(configs, RunConfig) else [config.seed for config in configs]
            steps = real(configs, *args, **options)
            while True:
                if broken:
                    raise RuntimeError("an illegal access was encountered")
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value
                yield
                if 1 in seeds and not broken:
                    broken.append(1)
                    for _ in range(3):  # whoever launches next is told
                        yield
                    raise RuntimeError("an illegal access was encountered")

        return training

    def slowly(worker: Worker) -> bool:
        time.sleep(0.2)  # long enough for the parent to hand out the next run
        return bool(broken)

    for function in (execute.train_run, execute.train_stack):
        monkeypatch.setattr(function, "in_steps", breaking(function.in_steps))
    monkeypatch.setattr(process, "_is_broken", slowly)
    store = Store(tmp_path)
    batches = [tuple(found[:3]), (found[3],), (found[4],)] if stacked else [(job,) for job in found]
    records = executed(found, worker, store, batches=batches)
    assert {seed for seed, record in records.items() if record.status == "failed"} == {1}
    assert len(records) == 5
    assert "illegal access" in (records[1].error or "")
    assert "illegal access" in store.error_path(records[1].run_id).read_text()


def test_a_stack_that_lacked_memory_in_company_is_tried_apart_as_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, worker = jobs("seed=0,1,2,3,4", lanes=2)
    real, tried = train_stack.in_steps, tmp_path / "tried"

    def lacking(*args: Any, **options: Any) -> Any:
        if not tried.exists():
            tried.touch()
            yield
            lack_memory()
        return (yield from real(*args, **options))

    monkeypatch.setattr(execute.train_stack, "in_steps", lacking)
    records = executed(found, worker, Store(tmp_path), batches=[tuple(found[:4]), (found[4],)])
    assert [records[seed].exec.get("stack") for seed in range(5)] == [4, 4, 4, 4, None]
    assert ["in_flight" in records[seed].exec for seed in range(5)] == [False] * 4 + [True]
    assert {record.status for record in records.values()} <= {"finished", "collapsed"}


def test_processes_that_share_a_gpu_are_counted_too(tmp_path: Path) -> None:
    found, worker = jobs("seed=0,1", lanes=1)
    records = executed(found, replace(worker, sharing=3), Store(tmp_path))
    assert [records[seed].exec["in_flight"] for seed in (0, 1)] == [3, 3]


def test_a_run_that_lacks_memory_apart_too_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, worker = jobs("seed=0,1", lanes=2)

    def never(config: RunConfig, *args: Any, **options: Any) -> Any:
        lack_memory()
        yield

    monkeypatch.setattr(execute.train_run, "in_steps", never)
    records = executed(found, worker, Store(tmp_path))
    assert [records[seed].status for seed in (0, 1)] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("executor", "slots", "devices", "expected", "sharing"),
    [
        ("auto", None, 1, (1, IN_FLIGHT), 1),
        ("graph", None, 2, (2, IN_FLIGHT), 1),
        ("graph", 6, 1, (1, 6), 1),
        ("auto", 1, 2, (1, 1), 1),
        ("auto", 3, 2, (2, 1), 1),
        ("process", None, 2, (2, 1), 1),
        ("process", 5, 2, (5, 1), 3),
        ("process", 6, 1, (6, 1), 6),
        ("stacked", 2, 1, (2, 1), 2),
        ("serial", 4, 1, (1, 1), 1),
    ],
)
def test_slots_of_a_gpu_are_streams_where_steps_are_captured(
    monkeypatch: pytest.MonkeyPatch,
    executor: str,
    slots: int | None,
    devices: int,
    expected: tuple[int, int],
    sharing: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    config = replace(request_from_argv([]).exec, executor=executor, slots=slots)
    assert _slots_and_lanes(config, "cuda") == expected
    assert _slots_and_lanes(config, "cpu")[1] == 1
    assert processes_on_a_gpu(expected[0], "cuda") == sharing
    assert processes_on_a_gpu(expected[0], "cpu") == 1


def test_stepwise_keeps_the_name_and_the_documentation_of_its_function() -> None:
    def three() -> Any:
        """Three."""
        yield
        return 3

    stepwise = Stepwise(three)
    assert stepwise() == 3
    assert stepwise.__doc__ == "Three."
    assert stepwise.__name__ == "three"  # type: ignore[attr-defined]


def test_a_run_that_is_locked_elsewhere_is_waited_for_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, worker = jobs("seed=0,1,2", lanes=3)
    store = Store(tmp_path)
    monkeypatch.setattr(execute, "LOCK_SECONDS", 1.0)
    order: list[tuple[int, bool]] = []
    with store.lock(run_id(found[0].config), timeout_seconds=0.0) as held:
        assert held
        execute_processes(
            [(job,) for job in found],
            worker,
            store,
            slots=1,
            on_epoch=lambda config: None,
            on_record=lambda config, record: order.append((config.seed, record is not None)),
        )
    assert sorted(order[:2]) == [(1, True), (2, True)]
    assert order[2] == (0, False)


def test_a_lock_that_is_freed_late_is_taken_at_the_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, *_), worker = jobs("seed=0,1", lanes=2)
    store = Store(tmp_path)
    monkeypatch.setattr(execute, "LOCK_SECONDS", 0.2)
    steps = execute_run.in_steps(job.config, worker, store)
    with store.lock(run_id(job.config), timeout_seconds=0.0):
        next(steps)
        time.sleep(0.3)  # as where another lane reads its data: no attempt is made in the meantime
    lanes: Lanes[RunRecord | None] = Lanes(CPU, 2)
    lanes.begin(0, steps)
    ended: list[tuple[int, RunRecord | None]] = []
    while lanes:
        ended += lanes.advance()
    ((_, record),) = ended
    assert record is not None
    assert record.status in ("finished", "collapsed")


def test_runs_of_a_study_that_compares_seconds_have_the_gpu_to_themselves() -> None:
    tier = ["tier=small", "seed=0", "data.train_limit=200"]
    plan = make_plan(request_from_argv(["-m", "study=cost", *tier, "lr=0.1"]))
    other = make_plan(request_from_argv(["-m", "study=lr-range", *tier, "lr=0.1"]))
    assert all(Job(run.config, run.probes, run.timed).apart for run in plan.runs)
    assert not any(Job(run.config, run.probes, run.timed).apart for run in other.runs)
    config = other.runs[0].config
    assert Job(config, {"cost": {}}).apart
    assert Job(replace(config, model=replace(config.model, name="a package's")), {}).apart
    assert Job(replace(config, norm=replace(config.norm, kind="a package's")), {}).apart
