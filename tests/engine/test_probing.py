"""Probes in training: they change nothing, resume with it, and are measured anew when more are asked for."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from small_runs import untimed

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine import loop
from bnexp.engine.build import DeviceData
from bnexp.engine.checkpoint import load_checkpoint, load_weights, save_weights
from bnexp.engine.execute import execute_run
from bnexp.engine.loop import Checkpointing, measure_trained, train_run
from bnexp.engine.worker import Worker
from bnexp.errors import StoreError
from bnexp.options import PROBE_OPTIONS
from bnexp.planned import make_plan, resolve_runs
from bnexp.probes import END_PROBES, STEP_PROBES, Moment, Row
from bnexp.probes.statistics import StatisticsProbe
from bnexp.records import RunRecord
from bnexp.runner import train_one
from bnexp.store import Store

CPU = torch.device("cpu")
STEPS: dict[str, dict[str, Any]] = {name: {"every": 2} for name in STEP_PROBES}
ALL: dict[str, dict[str, Any]] = {**STEPS, **{name: {} for name in END_PROBES}}
compose = partial(small_runs.compose, "model.width=4")


def test_tables_of_probes_agree() -> None:
    assert set(PROBE_OPTIONS) == set(STEP_PROBES) | set(END_PROBES)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("norm=noisy_batch", "model.dropout=0.2", "data.augment=crop_flip"),
        ("norm=ghost", "optim=adam", "lr=0.003", "model=mlp"),
        ("norm=batch_renorm", "norm.ramp_steps=3", "exec.precision=bf16"),
        ("norm=batch", "norm.freeze_at=1", "optim=rmsprop", "lr=0.001"),
        ("model=lstm", "model.width=8", "optim.clip_norm=1"),
        ("optim.trainable=norm", "model=resnet", "model.depth=8"),
        ("norm=none", "model.init=lsuv", "lr=0.01"),
    ],
)
def test_a_probed_run_is_bitwise_the_unprobed_one(data: DeviceData, overrides: tuple[str, ...]) -> None:
    config = compose(*overrides)
    plain, probed = train_run(config, data, CPU), train_run(config, data, CPU, probes=ALL)
    assert untimed(probed.history) == untimed(plain.history)
    assert {k: v for k, v in probed.final.items() if k != "train_seconds"} == {
        k: v for k, v in plain.final.items() if k != "train_seconds"
    }
    assert plain.weights is not None
    assert probed.weights is not None
    for name, value in plain.weights.items():
        assert torch.equal(probed.weights[name], value), name
    assert plain.probes == []
    assert probed.seconds["probes"] > 0
    silent = {"affine", "running"} if config.norm.kind == "none" else set()
    silent |= {"gradients", "shift"} if config.optim.trainable == "norm" else set()  # no weight is trained
    assert {row["probe"] for row in probed.probes} == set(STEPS) - silent

    kept = {name: value.clone() for name, value in plain.weights.items()}
    at_end = measure_trained(config, data, CPU, plain.weights, probes=ALL, step=plain.history[-1]["step"])
    assert at_end is not None
    assert {row["probe"] for row in at_end[0]} == set(END_PROBES) - ({"sampling"} if "running" in silent else set())
    assert {(row["step"], row["epoch"]) for row in at_end[0]} == {(9, 3)}
    for name, value in kept.items():
        assert torch.equal(plain.weights[name], value), name


def test_step_probes_fire_before_the_first_update_and_every_so_often(data: DeviceData) -> None:
    outcome = train_run(compose(), data, CPU, probes={"gradients": {"every": 2}, "landscape": {"every": 4}})
    assert sorted({row["step"] for row in outcome.probes if row["probe"] == "gradients"}) == [0, 2, 4, 6, 8]
    assert sorted({row["step"] for row in outcome.probes if row["probe"] == "landscape"}) == [0, 4, 8]
    epochs = {row["step"]: row["epoch"] for row in outcome.probes}
    assert epochs == {step: step // 3 for step in epochs}  # 200 // 64 updates an epoch


def test_probe_rows_survive_an_interruption(data: DeviceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("norm=noisy_batch", "model.dropout=0.1")
    whole = train_run(config, data, CPU, probes=STEPS)
    checkpointing = Checkpointing(tmp_path / "checkpoint", 0.0)

    def stop(*args: Any, **kwargs: Any) -> Any:
        if kwargs["epoch"] == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = loop.train_epoch
    monkeypatch.setattr(loop, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, data, CPU, checkpointing=checkpointing, probes=STEPS)
    monkeypatch.undo()
    fewer = {"gradients": STEPS["gradients"]}
    saved = checkpointing.path.read_bytes()
    for wanted in (STEPS, {**STEPS, "statistics": {}}, fewer):
        checkpointing.path.write_bytes(saved)
        epochs: list[int] = []
        resumed = train_run(
            config,
            data,
            CPU,
            checkpointing=checkpointing,
            probes=wanted,
            on_epoch=lambda row, epochs=epochs: epochs.append(row["epoch"]),
        )
        assert epochs == [3]
        assert untimed(resumed.history) == untimed(whole.history)
        assert resumed.probes == [row for row in whole.probes if row["probe"] in wanted]


def test_a_checkpoint_without_the_wanted_probes_is_not_gone_on_from(data: DeviceData, tmp_path: Path) -> None:
    checkpointing = Checkpointing(tmp_path / "checkpoint", 0.0)
    train_run(compose(), data, CPU, checkpointing=checkpointing)
    state = load_checkpoint(checkpointing.path, CPU)
    assert state is not None
    assert len(state["history"]) == 2
    probed = train_run(compose(), data, CPU, checkpointing=checkpointing, probes=STEPS)
    assert {row["epoch"] for row in probed.probes} == {0, 1, 2}


def test_a_checkpoint_that_fits_no_longer_starts_over(data: DeviceData, tmp_path: Path) -> None:
    checkpointing = Checkpointing(tmp_path / "checkpoint", 0.0)
    train_run(compose("model.width=6"), data, CPU, checkpointing=checkpointing)
    outcome = train_run(compose(), data, CPU, checkpointing=checkpointing)
    assert untimed(outcome.history) == untimed(train_run(compose(), data, CPU).history)


def test_a_diverged_run_has_its_rows_with_gaps_and_no_final_probe(data: DeviceData) -> None:
    outcome = train_run(compose("norm=none", "lr=1e20"), data, CPU, probes=ALL)
    assert outcome.status == "diverged"
    assert outcome.weights is None
    assert any(row["value"] is None for row in outcome.probes)
    json.dumps(outcome.probes, allow_nan=False)


def worker_with(tmp_path: Path, *overrides: str) -> tuple[RunConfig, Worker, Store]:
    (config,) = (request := request_from_argv(overrides)).configs
    ((_, resolved),) = resolve_runs([config], request.exec, {})
    return resolved, Worker(request.exec, CPU, 1, {}), Store(tmp_path)


def numbers(record: RunRecord | None) -> dict[str, float | None]:
    assert record is not None
    return {key: value for key, value in record.final.items() if key != "train_seconds"}


def test_asking_for_probes_in_training_repeats_a_run_once_and_keeps_its_numbers(tmp_path: Path) -> None:
    common = ("epochs=2", "data.train_limit=200")
    before = execute_run(*worker_with(tmp_path, *common))
    execute_run(*worker_with(tmp_path, *common, "probes=[gradients]"))
    after = execute_run(*worker_with(tmp_path, *common, "probes=[affine]"))
    assert before is not None
    assert after is not None
    assert numbers(after) == numbers(before)
    store = Store(tmp_path)
    assert {row["probe"] for row in store.probes(after.run_id)} == {"gradients", "affine"}
    assert after.final == before.final  # its seconds too: the repetition is no second run
    for wanted in ((), ("probes=[gradients]",), ("probes=[affine,gradients]",)):
        assert execute_run(*worker_with(tmp_path, *common, *wanted)) == after


def test_a_repetition_uses_the_threads_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("epochs=1", "data.train_limit=200")
    execute_run(*worker_with(tmp_path, *common))
    seen = []
    real = loop.train_epoch
    monkeypatch.setattr(loop, "train_epoch", lambda *a, **k: (seen.append(torch.get_num_threads()), real(*a, **k))[1])
    config, worker, store = worker_with(tmp_path, *common, "probes=[gradients]")
    execute_run(config, dataclasses.replace(worker, threads=2), store)
    torch.set_num_threads(1)
    assert seen == [1]


def test_a_repetition_that_gives_other_numbers_changes_nothing(tmp_path: Path) -> None:
    common = ("epochs=2", "data.train_limit=200")
    before = execute_run(*worker_with(tmp_path, *common))
    assert before is not None
    store = Store(tmp_path)
    store.write_record(dataclasses.replace(before, final=before.final | {"test_loss": 0.5}))
    kept = {path.name: path.read_bytes() for path in store.run_dir(before.run_id).iterdir()}
    after = execute_run(*worker_with(tmp_path, *common, "probes=[gradients]"))
    assert after is not None
    assert after.status == "failed"
    assert "gave other numbers" in (after.error or "")
    left = {path.name: path.read_bytes() for path in store.run_dir(before.run_id).iterdir()}
    assert left.pop("error.txt")
    assert left == kept


@pytest.mark.parametrize("wanted", ["gradients", "statistics"])
def test_a_repetition_that_breaks_off_changes_nothing(
    tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("epochs=3", "data.train_limit=200")
    before = execute_run(*worker_with(tmp_path, *common))
    assert before is not None
    store = Store(tmp_path)
    store.weights_path(before.run_id).unlink()
    kept = {path.name: path.read_bytes() for path in store.run_dir(before.run_id).iterdir()}
    real = loop.train_epoch

    def stop(*args: Any, **kwargs: Any) -> Any:
        if kwargs["epoch"] == 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        execute_run(*worker_with(tmp_path, *common, f"probes=[{wanted}]"))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in store.run_dir(before.run_id).iterdir()} == kept
    after = execute_run(*worker_with(tmp_path, *common, f"probes=[{wanted}]"))
    assert numbers(after) == numbers(before)
    assert {row["probe"] for row in store.probes(before.run_id)} == {wanted}


def test_a_final_probe_that_fails_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("epochs=1", "data.train_limit=200", "probes=[gradients,statistics]")

    def fail(*_: object) -> None:
        raise OSError("out of paper")

    monkeypatch.setattr(StatisticsProbe, "measure", fail)
    failed = execute_run(*worker_with(tmp_path, *common))
    assert failed is not None
    assert failed.status == "failed"
    assert "out of paper" in (failed.error or "")
    store = Store(tmp_path)
    record = store.record(failed.run_id)
    assert record is not None
    assert record.status != "failed"
    assert set(record.exec["probes"]) == {"gradients"}
    assert "out of paper" in store.error_path(failed.run_id).read_text()
    monkeypatch.undo()
    monkeypatch.setattr(loop, "train_epoch", None)
    after = execute_run(*worker_with(tmp_path, *common))
    assert numbers(after) == numbers(record)
    assert {row["probe"] for row in store.probes(failed.run_id)} == {"gradients", "statistics"}
    assert not store.error_path(failed.run_id).exists()


def test_measuring_again_with_other_options_replaces_the_rows(tmp_path: Path) -> None:
    common = ("epochs=1", "data.train_limit=200")
    record = execute_run(*worker_with(tmp_path, *common, "probes=[affine]", "probes.affine.every=1"))
    assert record is not None
    assert {row["step"] for row in Store(tmp_path).probes(record.run_id)} == {0, 1, 2}
    execute_run(*worker_with(tmp_path, *common, "probes=[affine]", "probes.affine.every=2"))
    assert {row["step"] for row in Store(tmp_path).probes(record.run_id)} == {0, 2}


def test_probes_get_the_rate_and_the_loss_of_the_update_to_come_in_fp32(
    data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, torch.dtype]] = []

    def measure(self: object, moment: Moment) -> list[Row]:
        logits = moment.model(moment.x)
        seen.append((moment.lr, moment.loss(logits, moment.y).item(), logits.dtype))
        return []

    monkeypatch.setattr(STEP_PROBES["gradients"], "measure", measure)
    config = compose("exec.precision=bf16", "optim.label_smoothing=0.2", "lr=0.1", "schedule=cosine", "epochs=1")
    outcome = train_run(config, data, CPU, probes={"gradients": {"every": 1}})
    assert [lr for lr, _, _ in seen] == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)])
    assert {dtype for _, _, dtype in seen} == {torch.float32}
    assert outcome.history[0]["train_loss"] == pytest.approx(sum(loss for _, loss, _ in seen) / 3, rel=0.02)


def test_the_time_of_probes_is_no_training_time(data: DeviceData, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: object, moment: Moment) -> list[Row]:
        time.sleep(0.1)
        spun = time.process_time() + 0.2
        while time.process_time() < spun:
            pass
        return []

    monkeypatch.setattr(STEP_PROBES["gradients"], "measure", slow)
    outcome = train_run(compose("epochs=2", "model.depth=2"), data, CPU, probes={"gradients": {"every": 2}})
    assert outcome.seconds["probes"] >= 0.9  # at updates 0, 2 and 4, over two epochs
    assert outcome.seconds["train"] < 0.8
    plain = train_run(compose("epochs=2", "model.depth=2"), data, CPU)
    assert 0 < outcome.seconds["cpu"] < plain.seconds["cpu"] + 0.3  # of a core, the probes took 0.6


def test_a_trained_run_is_evaluated_under_other_statistics_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("epochs=2", "data.train_limit=200", "norm=noisy_batch", "model.width=4")
    at_once = execute_run(*worker_with(tmp_path / "once", *common, "probes=[affine,statistics,robustness]"))
    before = execute_run(*worker_with(tmp_path / "later", *common, "probes=[affine]"))
    monkeypatch.setattr(loop, "train_epoch", None)
    after = execute_run(*worker_with(tmp_path / "later", *common, "probes=[statistics,robustness]"))
    assert numbers(before) == numbers(after) == numbers(at_once)
    assert after is not None
    assert Store(tmp_path / "later").probes(after.run_id) == Store(tmp_path / "once").probes(after.run_id)
    assert after.exec["probes"] == {"affine": {"every": 100}, "statistics": {}, "robustness": {}}


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_a_run_whose_weights_are_lost_is_trained_again_for_a_probe(tmp_path: Path, content: bytes) -> None:
    common = ("epochs=1", "data.train_limit=200", "model.width=4")
    config, worker, store = worker_with(tmp_path, *common)
    before = execute_run(config, worker, store)
    assert before is not None
    path = store.weights_path(before.run_id)
    path.write_bytes(content)
    after = execute_run(*worker_with(tmp_path, *common, "probes=[statistics]"))
    assert numbers(after) == numbers(before)
    assert len(store.probes(before.run_id)) == 6
    loaded = load_weights(path)
    assert loaded is not None
    assert len(loaded) > 1


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    common = ("epochs=1", "data.train_limit=200")
    config, worker, store = worker_with(tmp_path, *common)
    before = execute_run(config, worker, store)
    assert before is not None
    save_weights(store.weights_path(before.run_id), {"head.weight": torch.zeros(1)})
    after = execute_run(*worker_with(tmp_path, *common, "probes=[statistics]"))
    assert after is not None
    assert "weights.pt: not this network's weights" in (after.error or "")
    assert store.record(before.run_id) == before


def test_a_diverged_run_has_no_weights_and_is_not_repeated_for_a_final_probe(tmp_path: Path) -> None:
    common = ("epochs=1", "data.train_limit=200", "norm=none", "lr=1e20")
    before = execute_run(*worker_with(tmp_path, *common))
    assert before is not None
    assert before.status == "diverged"
    store = Store(tmp_path)
    assert not store.weights_path(before.run_id).exists()
    after = execute_run(*worker_with(tmp_path, *common, "probes=[statistics]"))
    assert after is not None
    assert after.final == before.final  # its seconds too: it was not trained again
    assert store.probes(before.run_id) == []


def test_weights_keep_what_shares_memory_and_how(tmp_path: Path) -> None:
    square = torch.arange(9.0).view(3, 3)
    state: dict[str, Any] = {"a": square, "again": square, "b": square.t(), "n": 7}
    save_weights(tmp_path / "weights.pt", state)
    loaded = load_weights(tmp_path / "weights.pt")
    assert loaded is not None
    assert loaded["n"] == 7
    for name in ("a", "again", "b"):
        assert torch.equal(loaded[name], state[name]), name
    assert loaded["a"].data_ptr() == loaded["again"].data_ptr()


def test_a_cost_that_cannot_be_told_here_keeps_nobody_else_from_measuring(tmp_path: Path) -> None:
    common = ("epochs=1", "data.train_limit=200")
    before = execute_run(*worker_with(tmp_path, *common))
    assert before is not None
    store = Store(tmp_path)
    store.write_record(dataclasses.replace(before, exec=before.exec | {"device": "cuda:3"}))
    after = execute_run(*worker_with(tmp_path, *common, "probes=[cost,statistics]"))
    assert after is not None
    assert "made on cuda" in (after.error or "")
    assert {row["probe"] for row in store.probes(before.run_id)} == {"statistics"}


def test_a_trained_run_is_to_be_measured_only_where_its_weights_are(tmp_path: Path) -> None:
    common = ("epochs=1", "data.train_limit=200", f"results={tmp_path}")
    execute_run(*worker_with(tmp_path, *common))
    request = request_from_argv([*common, "probes=[statistics]"])
    (run,) = make_plan(request).runs
    assert run.state == "measure"
    Store(tmp_path).weights_path(run.run_id).unlink()
    assert make_plan(request).runs[0].state == "todo"


def test_a_failing_probe_fails_a_launchers_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("out of paper")

    monkeypatch.setattr(StatisticsProbe, "measure", fail)
    request = request_from_argv(
        ["epochs=1", "data.train_limit=200", f"results={tmp_path}", "probes=[statistics]", "exec.threads=1"]
    )
    with pytest.raises(StoreError, match="crashed"):
        train_one(request.configs[0], request.exec)
