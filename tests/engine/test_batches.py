"""Runs side by side, from jobs to records: what goes together, and what each run leaves behind."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.engine import execute, process
from bnexp.engine.batches import batched, stack_width
from bnexp.engine.execute import execute_run, execute_stack
from bnexp.engine.worker import Job, Worker
from bnexp.identity import run_id
from bnexp.planned import make_plan
from bnexp.records import RunRecord
from bnexp.store import Store

SMALL = ("data.train_limit=200", "model.depth=2", "model.width=4", "exec.precision=fp32", "lr=0.01")


def jobs(*argv: str) -> tuple[list[Job], Worker]:
    """Resolved jobs of a grid, and a worker that has their data."""
    epochs = [] if any(word.startswith("epochs=") for word in argv) else ["epochs=1"]
    plan = make_plan(request_from_argv(["-m", *SMALL, "exec.threads=1", *epochs, *argv]))
    plan.worker.start()
    return [Job(run.config, run.probes) for run in plan.runs], plan.worker


def test_runs_of_one_shape_go_together_and_others_alone() -> None:
    found, _ = jobs("norm=none,batch", "seed=0,1,2,3")
    batches = batched(found, slots=1, image_sizes=[8] * len(found))
    assert [[job.config.norm.kind for job in batch] for batch in batches] == [["none"] * 4, ["batch"] * 4]
    looked_at = [Job(job.config, {"gradients": {"every": 1}}) for job in found]
    assert [len(batch) for batch in batched(looked_at, slots=1, image_sizes=[8] * 8)] == [1] * 8


def test_group_is_parted_among_slots_and_by_memory() -> None:
    found, _ = jobs("seed=0,1,2,3,4,5,6")
    assert sorted(len(batch) for batch in batched(found, slots=2, image_sizes=[8] * 7)) == [3, 4]
    large = [replace(job, config=replace(job.config, batch_size=128)) for job in found]
    # 128 examples of 4 channels of 224 × 224: already one is more than a stack should have
    assert [len(batch) for batch in batched(large, slots=2, image_sizes=[224] * 7)] == [1] * 7
    assert stack_width(large[0].config, 224) == 1
    assert stack_width(found[0].config, 8) == 32
    # 4 channels of 28 × 28 for 64 examples: two fit a CPU's caches
    image = replace(found[0].config, batch_size=64)
    assert (stack_width(image, 28), stack_width(image, 28, "cuda")) == (2, 32)
    images = [replace(job, config=replace(job.config, batch_size=64)) for job in found]
    assert [len(batch) for batch in batched(images, slots=1, image_sizes=[28] * 7, device_type="cuda")] == [7]


def test_every_job_is_in_one_batch() -> None:
    found, _ = jobs("norm=none,batch,layer", "optim.weight_decay=0,1e-4", "seed=0,1,2,3,4")
    batches = batched(found, slots=2, image_sizes=[8] * len(found))
    assert sorted(run_id(job.config) for batch in batches for job in batch) == sorted(run_id(j.config) for j in found)


def test_stacked_runs_leave_what_runs_alone_leave(tmp_path: Path) -> None:
    found, worker = jobs("seed=0,1,2", "probes=[statistics]")
    together, alone = Store(tmp_path / "stack"), Store(tmp_path / "alone")
    records = execute_stack(found, worker, together)
    for job, record in zip(found, records, strict=True):
        other = execute_run(job.config, worker.measuring(job.probes), alone)
        assert record is not None
        assert other is not None
        assert (record.run_id, record.status, record.exec["stack"]) == (other.run_id, other.status, 3)
        assert record.final["train_loss"] == pytest.approx(other.final["train_loss"], rel=1e-4)
        assert record.final.keys() == other.final.keys()
        assert len(together.history(record.run_id)) == 1
        assert together.history(record.run_id)[0].keys() == alone.history(record.run_id)[0].keys()
        assert {row["statistics"] for row in together.probes(record.run_id)} == {"running", "precise", "batch"}
        weights = torch.load(together.weights_path(record.run_id))
        assert weights.keys() == torch.load(alone.weights_path(record.run_id)).keys()


def test_run_that_has_ended_is_left_as_it_was(tmp_path: Path) -> None:
    found, worker = jobs("seed=0,1,2")
    store = Store(tmp_path)
    before = execute_run(found[1].config, worker, store)
    records = execute_stack(found, worker, store)
    assert records[1] == before
    assert [record.exec.get("stack") for record in records if record] == [2, None, 2]


def test_stopped_stack_goes_on_and_a_run_that_was_not_in_it_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, worker = jobs("seed=0,1,2", "epochs=3", "exec.checkpoint_seconds=0")
    store, told = Store(tmp_path), []

    def stop(index: int) -> None:
        told.append(index)
        if len(told) == 5:  # in the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_stack(found[:2], worker, store, on_epoch=stop)
    names = [run_id(job.config) for job in found]
    assert [len(store.history(name)) for name in names] == [3, 2, 0]
    assert [store.checkpoint_path(name).exists() for name in names] == [True, True, False]
    told.clear()
    records = execute_stack(found, worker, store, on_epoch=told.append)
    assert told == [0, 1, 2, 2, 2]
    assert [record.exec.get("stack") for record in records if record] == [2, 2, None]
    assert [[row["epoch"] for row in store.history(name)] for name in names] == [[1, 2, 3]] * 3
    assert not any(store.checkpoint_path(name).exists() for name in names)


def test_sweep_in_stacks_tells_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TELL_SECONDS", -1.0)
    found, worker = jobs("seed=0,1,2,3", "epochs=2")
    told: Counter[int] = Counter()
    ended: list[int] = []
    process.execute_processes(
        [tuple(found)],
        worker,
        Store(tmp_path),
        slots=1,
        on_epoch=lambda config: told.update([config.seed]),
        on_record=lambda config, record: ended.append(config.seed),
    )
    assert told == dict.fromkeys(range(4), 2)
    assert ended == [0, 1, 2, 3]


def test_stack_that_raises_is_tried_run_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, worker = jobs("seed=0,1")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(execute.train_stack, "in_steps", fail)
    records = execute_stack(found, worker, Store(tmp_path))
    assert all(record is not None and record.status in ("finished", "collapsed") for record in records)
    assert all(isinstance(record, RunRecord) and "stack" not in record.exec for record in records)
    assert "2 runs cannot be trained side by side (RuntimeError: out of memory)" in capsys.readouterr().err


def test_step_probe_can_be_added_to_a_stacked_run(tmp_path: Path) -> None:
    found, worker = jobs("seed=0,1")
    store = Store(tmp_path)
    execute_stack(found, worker, store)
    record = execute_run(found[0].config, worker.measuring({"gradients": {"every": 1}}), store)
    assert record is not None
    assert record.exec["probes"] == {"gradients": {"every": 1}}
    assert all(math.isfinite(row["value"]) for row in store.probes(record.run_id))


def test_sweep_in_stacks_finishes_and_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "train",
        "-m",
        *SMALL,
        "epochs=1",
        "norm=none,batch",
        "seed=0,1,2",
        "exec.executor=stacked",
        f"results={tmp_path}",
    ]
    assert main(argv) == 0
    assert {record.exec["stack"] for record in Store(tmp_path).records(None)} <= {2, 3}
    capsys.readouterr()
    assert main(argv) == 0
    assert "6 done" in capsys.readouterr().out
