"""Training itself: against a loop written out by hand, from checkpoints, to its end."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import compose, untimed
from torch.nn import functional as F

from bnexp.config import ScheduleConfig
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network
from bnexp.engine.checkpoint import load_checkpoint
from bnexp.engine.epochs import Row, seconds_of
from bnexp.engine.evaluation import evaluate
from bnexp.engine.loop import Checkpointing, train_run
from bnexp.engine.schedule import lr_factor
from bnexp.seeding import seed_for

CPU = torch.device("cpu")


def test_training_is_the_textbook_loop_written_out(data: DeviceData) -> None:
    config = compose("schedule=constant", "epochs=2", "lr=0.02", "optim.weight_decay=0.01")
    outcome = train_run(config, data, CPU)

    model = build_network(config, in_channels=1, image_size=8, num_classes=10)
    init_network(model, config, data)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    velocity = {p: torch.zeros_like(p) for p in model.parameters()}
    x = (data.train_x.float() / 255 - data.train_x.float().mean() / 255) / (
        data.train_x.float().std(correction=0) / 255
    )
    losses = []
    for epoch in range(2):
        generator = torch.Generator().manual_seed(seed_for(0, "order", epoch))
        order = torch.randperm(200, generator=generator)
        total = 0.0
        for k in range(3):  # 200 // 64: the incomplete batch is left out
            index = order[64 * k : 64 * (k + 1)]
            loss = F.cross_entropy(model(x[index]), data.train_y[index])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    velocity[p] = 0.9 * velocity[p] + g + (0.01 * p if any(p is q for q in decayed) else 0)
                    p -= 0.02 * velocity[p]
            total += loss.item() / 3
        losses.append(total)
    assert [row["train_loss"] for row in outcome.history] == pytest.approx(losses, rel=1e-4)
    _, accuracy = evaluate(model, data.test_x, data.test_y, data, "fp32")
    assert outcome.final["test_accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_same_seed_is_bitwise_the_same_history_and_another_is_not(data: DeviceData) -> None:
    config = compose("data.augment=crop_flip")
    first, second = train_run(config, data, CPU), train_run(config, data, CPU)
    assert untimed(first.history) == untimed(second.history)
    assert {k: v for k, v in first.final.items() if k != "train_seconds"} == {
        k: v for k, v in second.final.items() if k != "train_seconds"
    }
    other = train_run(dataclasses.replace(config, seed=1), data, CPU)
    assert untimed(other.history) != untimed(first.history)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optim=adamw", "lr=0.002"),
        ("norm=ghost", "exec.precision=bf16"),
        ("optim=rmsprop", "lr=0.002", "schedule=onecycle", "data.augment=crop"),
    ],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    data: DeviceData, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = compose(*overrides)
    whole = train_run(config, data, CPU)
    checkpointing = Checkpointing(tmp_path / "checkpoint", every_seconds=0)

    def die_in_the_third_epoch(row: Row) -> None:
        if row["epoch"] == 3:
            raise _Killed

    with pytest.raises(_Killed):
        train_run(config, data, CPU, checkpointing=checkpointing, on_epoch=die_in_the_third_epoch)
    seen: list[int] = []
    resumed = train_run(config, data, CPU, checkpointing=checkpointing, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [3]
    assert untimed(resumed.history) == untimed(whole.history)
    assert resumed.final["test_loss"] == whole.final["test_loss"]


def test_seconds_of_a_core_are_unknown_where_an_older_checkpoint_has_none() -> None:
    old, new = {"train_seconds": 2.0}, {"train_seconds": 3.0, "cpu_seconds": 2.5}
    assert seconds_of([new, new]) == {"train": 6.0, "cpu": 5.0}
    assert seconds_of([old, new]) == {"train": 5.0}


def test_a_broken_checkpoint_starts_over(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"PK\x03\x04 torn"):
        (tmp_path / "checkpoint").write_bytes(content)
        assert load_checkpoint(tmp_path / "checkpoint", CPU) is None


def test_training_ends_early_when_the_loss_is_not_finite(data: DeviceData) -> None:
    outcome = train_run(compose("lr=1e6", "norm=none"), data, CPU)
    assert outcome.status == "diverged"
    assert len(outcome.history) < 3
    assert outcome.final["test_accuracy"] is None
    assert 0.05 < (outcome.final["chance_test_accuracy"] or 0) < 0.15


def test_weights_that_blow_up_in_the_last_step_are_a_divergence(data: DeviceData) -> None:
    outcome = train_run(compose("lr=1e30", "norm=none", "epochs=1", "data.train_limit=64"), data, CPU)
    assert outcome.status == "diverged"
    assert outcome.final["test_accuracy"] is None


def test_chance_is_measured_on_the_split_that_it_is_held_against(data: DeviceData) -> None:
    skewed = dataclasses.replace(data, chance={"train": 0.1, "val": 0.1, "test": 0.9})
    assert train_run(compose("epochs=8"), skewed, CPU).status == "finished"
    lazy = dataclasses.replace(data, chance={"train": 0.999, "val": 0.999, "test": 0.1})
    assert train_run(compose("epochs=8"), lazy, CPU).status == "collapsed"


def test_one_cycle_of_two_steps_is_finite(data: DeviceData) -> None:
    assert factors("onecycle", 2, peak_at=0.5, start_factor=0.04, end_factor=4e-6) == pytest.approx([1.0, 4e-6])


def test_training_that_learns_nothing_has_collapsed(data: DeviceData) -> None:
    outcome = train_run(compose("lr=1e-12", "norm=none", "epochs=1", "model.init_gain=1e-6"), data, CPU)
    assert outcome.status == "collapsed"
    assert math.isfinite(outcome.final["test_loss"] or math.nan)
    assert train_run(compose("epochs=8"), data, CPU).status == "finished"


def test_bf16_is_close_to_fp32_and_not_the_same(data: DeviceData) -> None:
    config = compose("epochs=1")
    fp32, bf16 = train_run(config, data, CPU), train_run(dataclasses.replace(config, precision="bf16"), data, CPU)
    a, b = fp32.history[0]["train_loss"], bf16.history[0]["train_loss"]
    assert a != b
    assert b == pytest.approx(a, rel=0.02)


def test_label_smoothing_and_clipping_act(data: DeviceData) -> None:
    plain = train_run(compose("epochs=1"), data, CPU).history[0]["train_loss"]
    smooth = train_run(compose("epochs=1", "optim.label_smoothing=0.2"), data, CPU).history[0]["train_loss"]
    assert smooth != plain
    clipped = train_run(compose("epochs=1", "lr=0.5", "optim.momentum=0", "optim.clip_norm=1e-9"), data, CPU)
    still = train_run(compose("epochs=1", "lr=1e-12", "optim.momentum=0"), data, CPU)
    assert clipped.history[0]["train_loss"] == pytest.approx(still.history[0]["train_loss"], rel=1e-4)


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_weight_decay_reaches_only_what_it_should(decay: str) -> None:
    config = compose(f"optim.decay={decay}", "optim.weight_decay=0.1", "norm.placement=after")
    model = build_network(config, in_channels=1, image_size=8, num_classes=10)
    optimizer = build_optimizer(model, config.optim, 0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_weight = name.endswith("weight") and ".norm." not in name
        assert (id(parameter) in decayed) == (is_weight or decay == "all"), name


def factors(name: str, num_steps: int, steps_per_epoch: int = 10, **options: Any) -> list[float]:
    schedule = ScheduleConfig(name, **{"warmup_epochs": 0.0, **options})
    return [lr_factor(schedule, step=s, num_steps=num_steps, steps_per_epoch=steps_per_epoch) for s in range(num_steps)]


def torch_lrs(make: Any, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    lrs = []
    for _ in range(num_steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_schedules_agree_with_torch() -> None:
    schedulers = torch.optim.lr_scheduler
    assert factors("cosine", 50) == pytest.approx(torch_lrs(lambda o: schedulers.CosineAnnealingLR(o, 50), 50))
    expected = torch_lrs(lambda o: schedulers.MultiStepLR(o, [25, 38]), 50)
    assert factors("step", 50, milestones=(0.5, 0.75), factor=0.1) == pytest.approx(expected)
    cycle = {"peak_at": 0.3, "start_factor": 0.04, "end_factor": 4e-6}
    one = torch_lrs(lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=50, pct_start=0.3), 50)
    assert factors("onecycle", 50, **cycle) == pytest.approx(one)


def test_warmup_rises_linearly_to_the_peak() -> None:
    warm = factors("constant", 30, warmup_epochs=1.0)
    assert warm[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert set(warm[10:]) == {1.0}
    assert factors("cosine", 30, warmup_epochs=1.0)[10] == 1.0


def test_only_gamma_and_beta_are_trained_where_asked(data: DeviceData) -> None:
    config = compose("optim.trainable=norm", "optim.decay=all", "data.train_limit=200")
    start = build_network(config, in_channels=1, image_size=8, num_classes=10)
    init_network(start, config, data)
    weights = train_run(config, data, CPU).weights
    assert weights is not None
    norms = {name for name in weights if ".norm." in name}
    for name, value in start.state_dict().items():
        assert torch.equal(weights[name], value) == (name not in norms), name


def test_statistics_are_frozen_at_an_epoch_to_those_of_the_training_set(data: DeviceData) -> None:
    config = compose("norm.freeze_at=1", "schedule=constant", "model.depth=2")
    outcomes = [train_run(dataclasses.replace(config, epochs=epochs), data, CPU) for epochs in (2, 3)]
    buffers = [
        {name: value for name, value in (outcome.weights or {}).items() if "running" in name} for outcome in outcomes
    ]
    assert buffers[0]
    for name, value in buffers[0].items():
        assert torch.equal(value, buffers[1][name]), name  # the third epoch left them alone

    after_one = train_run(dataclasses.replace(config, epochs=1), data, CPU).weights  # not frozen yet
    assert after_one is not None
    model = build_network(config, in_channels=1, image_size=8, num_classes=10).double()
    model.load_state_dict(after_one)
    first: Any = model.get_submodule("units.0")
    with torch.no_grad():
        outputs = first.weight(data.train_x.double() * data.scale.double() + data.shift.double())
    want = torch.var_mean(outputs, (0, 2, 3), correction=0)
    for name, value in zip(("running_var", "running_mean"), want, strict=True):
        torch.testing.assert_close(buffers[0][f"units.0.norm.{name}"].double(), value, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after_one[f"units.0.norm.{name}"].double(), value, rtol=1e-3)
