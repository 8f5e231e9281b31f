"""Runs in a stack end as they end alone: in float64 but for the last digits, and one that diverges harms nobody."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import compose, untimed

from bnexp.config import RunConfig
from bnexp.engine.build import DeviceData, build_network
from bnexp.engine.epochs import Row
from bnexp.engine.evaluation import evaluate
from bnexp.engine.loop import Checkpointing, Outcome, train_run
from bnexp.engine.pool import Draw
from bnexp.engine.stacked import stack_key, train_stack, why_not_stacked

CPU = torch.device("cpu")
SMALL = ("model.depth=2", "model.width=8")


@pytest.fixture
def exact(data: DeviceData) -> Iterator[DeviceData]:
    """The data for networks that are made, and computed, in float64."""
    torch.set_default_dtype(torch.float64)
    yield dataclasses.replace(data, scale=data.scale.double(), shift=data.shift.double())
    torch.set_default_dtype(torch.float32)


def mixed(base: RunConfig) -> list[RunConfig]:
    """Runs of one shape that differ in all that runs of a stack may differ in."""
    optim, model = base.optim, base.model
    return [
        base,
        dataclasses.replace(base, seed=1, lr=base.lr / 2, optim=dataclasses.replace(optim, weight_decay=0.02)),
        dataclasses.replace(base, seed=2, lr=base.lr * 2, model=dataclasses.replace(model, init_gain=0.7)),
        dataclasses.replace(base, seed=3, model=dataclasses.replace(model, init="orthogonal")),
    ]


def values(row: dict[str, Any]) -> list[float]:
    return [math.nan if value is None else value for value in row.values()]


def assert_alike(stacked: Outcome, alone: Outcome, *, weights: float, losses: float) -> None:
    assert (stacked.status, stacked.num_params) == (alone.status, alone.num_params)
    for a, b in zip(untimed(stacked.history), untimed(alone.history), strict=True):
        assert list(a) == list(b)
        assert values(a) == pytest.approx(values(b), abs=losses, nan_ok=True)
    assert list(stacked.final) == list(alone.final)
    assert stacked.weights is not None
    assert alone.weights is not None
    assert list(stacked.weights) == list(alone.weights)
    for name, value in alone.weights.items():
        assert stacked.weights[name].dtype == value.dtype
        torch.testing.assert_close(
            stacked.weights[name], value, rtol=0, atol=weights, msg=lambda t, n=name: f"{n}: {t}"
        )


CASES = {
    "none": ("norm=none",),
    "batch": ("norm=batch",),
    "ghost": ("norm=ghost",),
    "group": ("norm=group",),
    "layer": ("norm=layer", "norm.where=input+all", "norm.affine=shift"),
    "instance": ("norm=instance",),
    "batch renorm": ("norm=batch_renorm", "norm.ramp_steps=2"),
    "noisy": ("norm=noisy_batch",),
    "standardized": ("norm=group_ws",),
    "filter response": ("norm=filter_response",),
    "frozen": ("norm.freeze_at=1", "model.dropout=0.2"),
    "cumulative, lsuv": ("norm.momentum=null", "model.init=lsuv"),
    "resnet": ("model=resnet", "model.depth=8", "model.width=4"),
    "skipinit": ("model=resnet", "model.depth=8", "model.width=5", "model.branch=skipinit", "norm.placement=after"),
    "fixup": ("model=resnet", "model.depth=8", "model.width=4", "model.branch=fixup", "norm=none"),
    "mlp": ("model=mlp", "norm=layer", "norm.placement=after", "model.dropout=0.2"),
    "vgg": ("model=vgg", "model.depth=11", "model.width=4"),
    "adam": ("optim=adam", "lr=0.01"),
    "adamw": ("optim=adamw", "lr=0.01", "model.dropout=0.3", "model.dropout_placement=before"),
    "rmsprop": ("optim=rmsprop", "lr=0.001", "optim.momentum=0.5", "optim.decay=all"),
    "rmsprop, no momentum": ("optim=rmsprop", "lr=0.001", "schedule=onecycle"),
    "nesterov, clipped": ("optim.nesterov=true", "optim.clip_norm=0.3", "optim.label_smoothing=0.1"),
    "plain sgd": ("optim.momentum=0", "schedule=step", "data.augment=flip"),
    "augmented": ("data.augment=crop_flip", "schedule.warmup_epochs=1"),
    "norms alone": ("optim.trainable=norm",),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_a_stack_is_its_runs_one_by_one_in_float64(exact: DeviceData, overrides: tuple[str, ...]) -> None:
    configs = mixed(compose("lr=0.02", *SMALL, *overrides))
    for stacked, config in zip(train_stack(configs, exact, CPU), configs, strict=True):
        assert_alike(stacked, train_run(config, exact, CPU), weights=1e-12, losses=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch", "ghost", "group"])
def test_an_epoch_in_fp32_differs_by_rounding(data: DeviceData, norm: str) -> None:
    configs = mixed(compose(f"norm={norm}", "epochs=1"))
    for stacked, config in zip(train_stack(configs, data, CPU), configs, strict=True):
        assert_alike(stacked, train_run(config, data, CPU), weights=1e-3, losses=1e-3)


def test_bf16_reaches_a_stack(data: DeviceData) -> None:
    fp32 = mixed(compose("epochs=2"))
    bf16 = [dataclasses.replace(config, precision="bf16") for config in fp32]
    losses = [outcome.history[-1]["train_loss"] for outcome in train_stack(bf16, data, CPU)]
    alone = [train_run(config, data, CPU).history[-1]["train_loss"] for config in bf16]
    exact = [outcome.history[-1]["train_loss"] for outcome in train_stack(fp32, data, CPU)]
    assert losses == pytest.approx(alone, rel=0.01)
    assert losses != pytest.approx(exact, rel=1e-5)


DIVERGING = {
    "none": ("norm=none",),
    "odd width": ("norm=none", "model.width=5", "model.depth=3"),
    "one channel": ("norm=batch", "model.width=1"),
    "batch": ("norm=batch",),
    "ghost": ("norm=ghost",),
    "group": ("norm=group", "optim.clip_norm=1000.0"),
    "instance": ("norm=instance", "optim=rmsprop"),
    "mlp": ("model=mlp", "norm=layer", "optim=adam"),
    "resnet": ("model=resnet", "model.depth=8", "model.width=4", "model.branch=skipinit", "model.dropout=0.1"),
    "bf16": ("exec.precision=bf16",),
}


@pytest.mark.parametrize("overrides", DIVERGING.values(), ids=DIVERGING.keys())
def test_a_run_that_diverges_leaves_the_others_bitwise_unchanged(data: DeviceData, overrides: tuple[str, ...]) -> None:
    base = compose("lr=0.002", *SMALL, *overrides)
    sound = [dataclasses.replace(base, seed=seed) for seed in range(4)]
    broken = [*sound[:2], dataclasses.replace(sound[2], lr=1e38), sound[3]]
    before, after = train_stack(sound, data, CPU), train_stack(broken, data, CPU)
    assert [outcome.status for outcome in before] == [
        "finished" if o.status != "collapsed" else o.status for o in before
    ]
    for index in (0, 1, 3):
        assert untimed(after[index].history) == untimed(before[index].history)
        for name, value in (before[index].weights or {}).items():
            assert torch.equal((after[index].weights or {})[name], value), name
    alone = train_run(broken[2], data, CPU)
    assert after[2].status == alone.status == "diverged"
    assert after[2].weights is None
    assert [row["epoch"] for row in after[2].history] == [row["epoch"] for row in alone.history]
    assert {k: v for k, v in after[2].final.items() if k != "train_seconds"} == {
        k: v for k, v in alone.final.items() if k != "train_seconds"
    }


def test_a_diverged_run_stops_where_it_would_alone(data: DeviceData) -> None:
    base = compose("norm=none", "batch_size=1", "epochs=3", "lr=1e-4", "schedule=constant")
    configs = [base, dataclasses.replace(base, lr=1e9), dataclasses.replace(base, seed=1)]
    seen: list[tuple[int, int]] = []

    def note(index: int, row: Row) -> None:
        seen.append((index, row["step"]))

    stacked = train_stack(configs, data, CPU, on_epoch=note)
    alone = train_run(configs[1], data, CPU)
    assert [row["step"] for row in alone.history] == [100]  # half an epoch
    assert untimed(stacked[1].history) == untimed(alone.history)
    assert seen == [(0, 200), (1, 100), (2, 200), (0, 400), (2, 400), (0, 600), (2, 600)]


def test_a_stack_of_diverged_runs_ends(data: DeviceData) -> None:
    base = compose("norm=none", "lr=1e9", "epochs=50")
    outcomes = train_stack([base, dataclasses.replace(base, seed=1)], data, CPU)
    assert {outcome.status for outcome in outcomes} == {"diverged"}
    assert max(len(outcome.history) for outcome in outcomes) < 5


def test_a_run_that_learns_nothing_has_collapsed_and_its_neighbour_has_not(data: DeviceData) -> None:
    base = compose("epochs=8")
    lazy = dataclasses.replace(base, lr=1e-12, model=dataclasses.replace(base.model, init_gain=1e-6))
    assert [outcome.status for outcome in train_stack([lazy, base], data, CPU)] == ["collapsed", "finished"]


def test_weights_of_a_run_are_a_network_of_its_own(data: DeviceData) -> None:
    configs = mixed(compose("epochs=2"))
    for outcome, config in zip(train_stack(configs, data, CPU), configs, strict=True):
        model = build_network(config, in_channels=1, image_size=8, num_classes=10)
        assert outcome.weights is not None
        model.load_state_dict(outcome.weights)
        loss, accuracy = evaluate(model, data.test_x, data.test_y, data, "fp32")
        assert outcome.final["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert outcome.final["test_accuracy"] == pytest.approx(accuracy, abs=2 / len(data.test_y))


class _Stopped(Exception):
    """What ends a training in the middle."""


RESUMED = {
    "dropout, augmented": ("model.dropout=0.2", "data.augment=crop_flip"),
    "frozen": ("norm.freeze_at=1",),
    "noisy": ("norm=noisy_batch", "norm.momentum=null"),
    "adam": ("optim=adam", "lr=0.01"),
    "adamw": ("optim=adamw", "lr=0.01", "optim.trainable=norm"),
    "rmsprop": ("optim=rmsprop", "lr=0.001", "optim.momentum=0.5"),
    "plain sgd": ("optim.momentum=0",),
}


def stop_after_two_epochs(
    configs: Sequence[RunConfig], data: DeviceData | Sequence[Draw], folder: Path
) -> list[Checkpointing]:
    """The checkpoints of a stack that was ended in its third epoch, each at the end of the second."""
    checkpointing = [Checkpointing(folder / f"{index}.pt", 0.0) for index in range(len(configs))]

    def stop(index: int, row: Row) -> None:
        if row["epoch"] == 3:
            raise _Stopped

    with pytest.raises(_Stopped):
        train_stack(configs, data, CPU, checkpointing=checkpointing, on_epoch=stop)
    return checkpointing


@pytest.mark.parametrize("overrides", RESUMED.values(), ids=RESUMED.keys())
def test_a_stack_goes_on_from_its_checkpoints_to_the_same_bits(
    data: DeviceData, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    configs = mixed(compose("lr=0.02", *SMALL, *overrides))
    whole = train_stack(configs, data, CPU)
    checkpointing = stop_after_two_epochs(configs, data, tmp_path)
    epochs: list[int] = []
    resumed = train_stack(
        configs, data, CPU, checkpointing=checkpointing, on_epoch=lambda index, row: epochs.append(row["epoch"])
    )
    assert epochs == [3] * len(configs)
    for one, other in zip(resumed, whole, strict=True):
        assert_alike(one, other, weights=0, losses=0)


@pytest.mark.parametrize("overrides", RESUMED.values(), ids=RESUMED.keys())
def test_a_run_goes_on_alone_from_its_stack_checkpoint(
    exact: DeviceData, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    configs = mixed(compose("lr=0.02", *SMALL, *overrides))
    checkpointing = stop_after_two_epochs(configs, exact, tmp_path)
    for config, checkpoint in zip(configs, checkpointing, strict=True):
        alone = train_run(config, exact, CPU)
        assert_alike(train_run(config, exact, CPU, checkpointing=checkpoint), alone, weights=1e-12, losses=1e-12)


def test_a_stack_whose_checkpoints_are_of_different_epochs_starts_anew(data: DeviceData, tmp_path: Path) -> None:
    configs = mixed(compose("lr=0.02", *SMALL))
    checkpointing = stop_after_two_epochs(configs, data, tmp_path)
    checkpointing[1].path.unlink()
    epochs: list[int] = []
    train_stack(
        configs, data, CPU, checkpointing=checkpointing, on_epoch=lambda index, row: epochs.append(row["epoch"])
    )
    assert epochs == [epoch for epoch in (1, 2, 3) for _ in configs]


def test_seconds_are_shared_out(data: DeviceData) -> None:
    configs = mixed(compose("epochs=2"))
    outcomes = train_stack(configs, data, CPU)
    rows = [outcome.history[1] for outcome in outcomes]
    assert len({row["train_seconds"] for row in rows}) == 1
    assert rows[0]["images_per_second"] * rows[0]["train_seconds"] == pytest.approx(192)
    for outcome in outcomes:
        assert outcome.seconds["train"] == outcome.final["train_seconds"]
        assert outcome.seconds["eval"] > 0


def test_what_shares_a_stack() -> None:
    base = compose()
    assert len({stack_key(config, {}) for config in mixed(base)}) == 1
    others: Sequence[tuple[str, ...]] = [
        ("epochs=4",), ("batch_size=32",), ("norm=none",), ("norm.eps=1e-3",), ("norm.where=first",),
        ("optim.momentum=0.5",), ("optim.clip_norm=1.0",), ("schedule=constant",), ("exec.precision=bf16",),
        ("data.train_limit=100",), ("data.augment=flip",), ("model.width=4",), ("optim.decay=all",),
    ]  # fmt: skip
    keys = [stack_key(compose(*overrides), {}) for overrides in ((), *others)]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_what_cannot_be_stacked_says_why() -> None:
    base = compose()
    assert why_not_stacked(base, {"statistics": {}, "cost": {}}) is None
    assert why_not_stacked(base, {"gradients": {}, "statistics": {}}) == (
        "probes=[gradients] look at every step of one network"
    )
    assert stack_key(base, {"gradients": {}}) is None
    recurrent = compose("model=lstm", "model.activation=tanh")
    assert "recurrent" in (why_not_stacked(recurrent, {}) or "")
    own = dataclasses.replace(base, norm=dataclasses.replace(base.norm, kind="mine"))
    assert "package" in (why_not_stacked(own, {}) or "")
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, name="theirs"))
    assert "package" in (why_not_stacked(other, {}) or "")
