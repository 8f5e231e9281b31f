"""A run keeps what it predicted of every test image, and a run of an earlier version is told it without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import compose

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.data import load_images
from bnexp.engine import execute, loop
from bnexp.engine.build import DeviceData, build_network
from bnexp.engine.checkpoint import load_weights, save_weights
from bnexp.engine.estimate import Estimator
from bnexp.engine.execute import execute_run
from bnexp.engine.loop import Outcome, train_run
from bnexp.engine.stacked import train_stack
from bnexp.planned import Plan, make_plan
from bnexp.records import RunRecord
from bnexp.runner import train
from bnexp.store import Store

CPU = torch.device("cpu")
SMALL = (
    "data.train_limit=400", "batch_size=16", "epochs=2", "model.depth=2", "model.width=4", "exec.precision=fp32",
    "exec.threads=1",
)  # fmt: skip


def accuracy(store: Store, run_id: str) -> float:
    kept = store.predictions(run_id)
    assert kept is not None
    return float(np.mean(kept.predicted == kept.label))


def planned(folder: Path, *overrides: str) -> Plan:
    return make_plan(request_from_argv([*SMALL, *overrides, f"results={folder}"]))


def executed(folder: Path, *overrides: str) -> RunRecord:
    """The record that `bnexp train` has of one run; the runner itself says only whether it failed."""
    plan = planned(folder, *overrides)
    (run,) = plan.runs
    worker = plan.worker.measuring(run.probes)
    record = execute_run(run.config, worker, plan.store)
    assert record is not None
    return record


def without_predictions(folder: Path, *overrides: str) -> RunRecord:
    """A run as an earlier version left it."""
    record = executed(folder, *overrides)
    Store(folder).predictions_path(record.run_id).unlink()
    return record


Trained = Callable[[RunConfig, DeviceData], Outcome]


@pytest.mark.parametrize(
    "trained",
    [
        lambda config, data: train_run(config, data, CPU),
        lambda config, data: train_stack([dataclasses.replace(config, seed=7), config], data, CPU)[1],
    ],
    ids=["alone", "stacked"],
)
@pytest.mark.parametrize("overrides", [(), ("norm=ghost", "exec.precision=bf16"), ("norm=none", "lr=1e-9")])
def test_predictions_are_those_of_the_trained_network(
    data: DeviceData, trained: Trained, overrides: tuple[str, ...]
) -> None:
    config = compose("model.width=4", *overrides)
    outcome = trained(config, data)
    kept = outcome.predictions
    assert kept is not None
    assert outcome.weights is not None
    images = load_images("digits", root=None, image_size=None)
    assert kept.label.dtype == kept.predicted.dtype == np.uint8
    assert kept.label.tolist() == images.test_labels.tolist()
    assert kept.image.dtype == np.int32
    assert kept.image.tolist() == list(range(360))
    assert outcome.final["test_accuracy"] == np.mean(kept.predicted == kept.label)
    assert outcome.final["chance_test_accuracy"] == np.mean(kept.label == kept.chance_class)
    model = build_network(config, in_channels=1, image_size=8, num_classes=10).eval()
    model.load_state_dict(outcome.weights)
    x = torch.from_numpy(images.test_images).float() * data.scale + data.shift
    with torch.no_grad():
        logits = model(x)
    two = logits.topk(2).values
    sure = (two[:, 0] - two[:, 1] > (0.02 if config.precision == "bf16" else 1e-4)).numpy()
    assert sure.mean() > 0.6
    assert (logits.argmax(1).numpy() == kept.predicted)[sure].all()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_diverged_run_has_no_predictions(data: DeviceData, stacked: bool) -> None:
    config = compose("norm=none", "lr=1e20", "model.width=4")
    outcome = train_stack([config, config], data, CPU)[0] if stacked else train_run(config, data, CPU)
    assert outcome.status == "diverged"
    assert outcome.predictions is None


def test_more_classes_than_a_byte_holds_take_two(data: DeviceData) -> None:
    wide = dataclasses.replace(data, num_classes=257)
    outcome = train_run(compose("epochs=1", "model.width=4"), wide, CPU)
    assert outcome.predictions is not None
    assert outcome.predictions.predicted.dtype == outcome.predictions.label.dtype == np.uint16


@pytest.mark.parametrize("executor", ["serial", "process", "stacked", "auto"])
def test_every_executor_keeps_predictions(tmp_path: Path, executor: str) -> None:
    request = request_from_argv(
        ["-m", *SMALL, "lr=0.05,1e30", "norm=none", "seed=0,1", f"exec.executor={executor}", "exec.slots=1",
         f"results={tmp_path}"]
    )  # fmt: skip
    assert train(request) == 0
    store = Store(tmp_path)
    records = list(store.records())
    assert sorted(record.status == "diverged" for record in records) == [False, False, True, True]
    for record in records:
        if record.status == "diverged":
            assert store.predictions(record.run_id) is None
        else:
            assert record.final["test_accuracy"] == accuracy(store, record.run_id)
            assert ("stack" in record.exec) == (executor == "stacked")
    assert make_plan(request).todo == []


@pytest.mark.parametrize("overrides", [("norm=batch",), ("norm=noisy_batch", "probes=[statistics]"), ("lr=1e-9",)])
def test_an_earlier_run_is_measured_without_training(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = executed(tmp_path, *overrides)
    store = Store(tmp_path)
    kept = store.predictions(record.run_id)
    before = {path.name: path.read_bytes() for path in store.run_dir(record.run_id).iterdir()}
    store.predictions_path(record.run_id).unlink()
    monkeypatch.setattr(loop, "train_epoch", None)
    assert [run.state for run in planned(tmp_path, *overrides).runs] == ["measure"]
    assert executed(tmp_path, *overrides) == record
    again = store.predictions(record.run_id)
    assert kept is not None
    assert again is not None
    assert np.array_equal(again.predicted, kept.predicted)
    assert (again.label.tolist(), again.chance_class) == (kept.label.tolist(), kept.chance_class)
    after = {path.name: path.read_bytes() for path in store.run_dir(record.run_id).iterdir()}
    assert {n: b for n, b in after.items() if n != "predictions.npz"} == {
        n: b for n, b in before.items() if n != "predictions.npz"
    }
    assert [run.state for run in planned(tmp_path, *overrides).runs] == ["done"]


def test_runs_of_a_stack_are_measured_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["-m", *SMALL, "seed=0,1", "exec.slots=1", f"results={tmp_path}"]
    assert train(request_from_argv([*argv, "exec.executor=stacked"])) == 0
    store = Store(tmp_path)
    records = list(store.records())
    for record in records:
        store.predictions_path(record.run_id).unlink()
    # nothing is timed where there is nothing to train, and nothing is trained (worker processes are forked)
    monkeypatch.setattr(Estimator, "of_training", None)
    monkeypatch.setattr(loop, "train_epoch", None)
    monkeypatch.setattr(execute, "train_stack", None)
    for executor in ("stacked", "auto"):
        request = request_from_argv([*argv, f"exec.executor={executor}"])
        plan = make_plan(request)
        choice = plan.batches(plan.todo, executor=executor)
        assert [len(batch) for batch in choice.batches] == [1, 1]
        capsys.readouterr()
        assert train(request) == 0
        assert "2 to measure" in capsys.readouterr().out
        for record in records:
            assert abs(accuracy(store, record.run_id) - (record.final["test_accuracy"] or 0)) <= 2 / 360
            store.predictions_path(record.run_id).unlink()
    assert list(store.records()) == records


def test_a_run_whose_weights_are_gone_stays_done(tmp_path: Path) -> None:
    record = without_predictions(tmp_path)
    store = Store(tmp_path)
    store.weights_path(record.run_id).unlink()
    assert [run.state for run in planned(tmp_path).runs] == ["done"]
    assert executed(tmp_path) == record
    assert store.predictions(record.run_id) is None


def test_a_diverged_run_stays_done(tmp_path: Path) -> None:
    overrides = ("norm=none", "lr=1e20")
    record = executed(tmp_path, *overrides)
    assert record.status == "diverged"
    assert [run.state for run in planned(tmp_path, *overrides).runs] == ["done"]


def test_weights_that_give_another_accuracy_are_refused_and_the_record_kept(tmp_path: Path) -> None:
    record = without_predictions(tmp_path)
    store = Store(tmp_path)
    weights = load_weights(store.weights_path(record.run_id))
    assert weights is not None
    save_weights(store.weights_path(record.run_id), {k: torch.zeros_like(v) for k, v in weights.items()})
    failed = executed(tmp_path)
    assert failed.status == "failed"
    assert "test images correctly where" in (failed.error or "")
    assert "\n" not in (failed.error or "")
    save_weights(store.weights_path(record.run_id), {"head.weight": torch.zeros(1)})
    assert "not this network's weights" in (executed(tmp_path).error or "")
    assert store.record(record.run_id) == record
    assert store.predictions(record.run_id) is None


def test_a_repetition_for_probes_keeps_predictions_with_its_weights(tmp_path: Path) -> None:
    record = without_predictions(tmp_path)
    store = Store(tmp_path)
    store.weights_path(record.run_id).unlink()
    after = executed(tmp_path, "probes=[gradients]")
    assert after.final["test_accuracy"] == record.final["test_accuracy"] == accuracy(store, record.run_id)
