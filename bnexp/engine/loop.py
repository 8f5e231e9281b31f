"""Trains one run from its first epoch, or its last checkpoint, to its final metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.config import RunConfig, Status
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network
from bnexp.engine.checkpoint import load_checkpoint, save_checkpoint
from bnexp.engine.epochs import (
    CHECK_STEPS,
    Row,
    draw_epoch,
    enter_epoch,
    epoch_row,
    factor_at,
    seconds_of,
    train_mode,
    with_validation,
)
from bnexp.engine.evaluation import at_chance, evaluate, evaluate_splits, final_metrics, predict, predictions_of
from bnexp.engine.lanes import Steps, Stepwise
from bnexp.engine.probing import Probing
from bnexp.engine.updates import RunUpdates
from bnexp.probes import END_PROBES, STEP_PROBES
from bnexp.records import Predictions


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a run saves its state; at the end of an epoch at the earliest."""

    path: Path
    every_seconds: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended; the fields are those of RunRecord.

    Attributes:
        weights: parameters and buffers of the trained network; None for a diverged run, which has none to keep.
        predictions: on test, what `final["test_accuracy"]` counts; None for a diverged run.
        captured: whether its steps were replayed as a graph.
    """

    status: Status
    final: dict[str, float | None]
    history: list[Row]
    seconds: dict[str, float]
    num_params: int
    probes: list[Row]
    weights: dict[str, Tensor] | None
    predictions: Predictions | None
    captured: bool = False


@Stepwise
def train_run(
    config: RunConfig,
    data: DeviceData,
    device: torch.device,
    *,
    checkpointing: Checkpointing | None = None,
    probes: Mapping[str, Mapping[str, Any]] | None = None,
    captured: bool = False,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Steps[Outcome]:
    """Train to the end of the budget or to a loss that is not finite, then evaluate once on test.

    Args:
        config: with a resolved precision.
        captured: capture a step and replay it, where the run is one that can be; on CUDA.
        probes: probe -> its options; they measure beside the training and do not change it. Those that look at a
            trained network are left to `measure_trained`.
        on_epoch: called with each new history row.
    """
    probing = Probing(config, data, {name: (probes or {})[name] for name in STEP_PROBES if name in (probes or {})})
    model, optimizer, history = _start(config, data, device, checkpointing, probing)
    updates = RunUpdates(model, optimizer, config, data, probing, captured=captured)
    eval_seconds = 0.0
    saved_at = time.perf_counter()
    status: Status = "finished"
    while len(history) < config.epochs:
        row = yield from train_epoch(updates, epoch=len(history))
        validation = None
        if math.isfinite(row["train_loss"]):
            started = time.perf_counter()
            validation = evaluate(model, data.val_x, data.val_y, data, config.precision)
            eval_seconds += time.perf_counter() - started
        row, diverged = with_validation(row, validation)
        history.append(row)
        on_epoch(row)
        if diverged:
            status = "diverged"
            break
        due = checkpointing is not None and time.perf_counter() - saved_at >= checkpointing.every_seconds
        if checkpointing is not None and due and len(history) < config.epochs:
            save_checkpoint(
                checkpointing.path, model, optimizer, history=history, probes=probing.rows, wanted=probing.wanted
            )
            saved_at = time.perf_counter()

    started = time.perf_counter()
    measured: dict[str, tuple[float, float]] = {}
    predictions = None
    if status != "diverged":
        measured, predictions = evaluate_splits(model, data, config.precision)
    eval_seconds += time.perf_counter() - started
    final = final_metrics(measured, data)
    if status == "finished" and at_chance(final, data):
        status = "collapsed"
    seconds = {**seconds_of(history), "eval": eval_seconds, "probes": probing.seconds}
    final["train_seconds"] = seconds["train"]
    num_params = sum(p.numel() for p in model.parameters())
    weights = None if status == "diverged" else model.state_dict()
    return Outcome(status, final, history, seconds, num_params, probing.rows, weights, predictions, updates.replaying)


def measure_trained(
    config: RunConfig,
    data: DeviceData,
    device: torch.device,
    weights: dict[str, Tensor],
    *,
    probes: Mapping[str, Mapping[str, Any]],
    step: int,
) -> tuple[list[Row], float] | None:
    """The rows of probes that look at a trained network, and the seconds they took; nothing is trained.

    None where the weights are not this network's, but that of another version of bnexp.

    Args:
        weights: as `Outcome.weights` has them.
        probes: those of `STEP_PROBES` among them are passed over.
        step: updates that the network has seen.
    """
    probing = Probing(config, data, {name: probes[name] for name in END_PROBES if name in probes})
    model = _trained_network(config, data, device, weights)
    if model is None:
        return None
    train_mode(model, config, epoch=config.epochs)
    probing.at_end(model, step=step, epoch=config.epochs)
    return probing.rows, probing.seconds


def predict_trained(
    config: RunConfig, data: DeviceData, device: torch.device, weights: dict[str, Tensor]
) -> Predictions | None:
    """What a trained network predicts on test; None where the weights are not this network's."""
    model = _trained_network(config, data, device, weights)
    if model is None:
        return None
    _, _, predicted = predict(model, data.test_x, data.test_y, data, config.precision)
    return predictions_of(predicted, data.test_y, data)


def _trained_network(
    config: RunConfig, data: DeviceData, device: torch.device, weights: dict[str, Tensor]
) -> nn.Module | None:
    """The network with these weights; None where they are not its own, but those of another version of bnexp."""
    _, channels, height, _ = data.train_x.shape
    model = build_network(config, in_channels=channels, image_size=height, num_classes=data.num_classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        return None
    return model.to(device).to(memory_format=torch.channels_last)


def _start(
    config: RunConfig,
    data: DeviceData,
    device: torch.device,
    checkpointing: Checkpointing | None,
    probing: Probing,
) -> tuple[nn.Module, torch.optim.Optimizer, list[Row]]:
    """Network, optimizer and history at the last checkpoint, or at the beginning where there is none that fits."""

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = initial_network(config, data).to(device).to(memory_format=torch.channels_last)
        return model, build_optimizer(model, config.optim, config.lr)

    model, optimizer = begin()
    state = None if checkpointing is None else load_checkpoint(checkpointing.path, device)
    if state is None or not probing.wanted.items() <= state["wanted"].items():
        return model, optimizer, []  # rows that were not measured cannot be had any more
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError):  # of another version of bnexp
        return *begin(), []
    probing.rows = [row for row in state["probes"] if row["probe"] in probing.wanted]
    # sums depend on the number of threads: go on with what the run began with
    torch.set_num_threads(state["threads"])
    return model, optimizer, state["history"]


def initial_network(config: RunConfig, data: DeviceData) -> nn.Module:
    """The network that the run starts from."""
    _, channels, height, _ = data.train_x.shape
    model = build_network(config, in_channels=channels, image_size=height, num_classes=data.num_classes)
    init_network(model, config, data)
    return model


def train_epoch(updates: RunUpdates, *, epoch: int) -> Steps[Row]:
    """One pass in an order, and with augmentations, that depend on the seed and the epoch alone.

    Args:
        epoch: from 0.

    Returns:
        A history row without validation. Its train_loss is the optimized loss, averaged over the steps; it is not
        finite where any step's was not. Its train_seconds leave out what probes took.
    """
    config, data, probing = updates.config, updates.data, updates.probing
    started, probed = time.perf_counter(), probing.seconds
    on_core = time.process_time() - probing.cpu_seconds
    device = data.train_x.device
    num_train, batch_size = len(data.train_y), config.batch_size
    steps_per_epoch = num_train // batch_size
    first_step = epoch * steps_per_epoch
    order, augmentation = draw_epoch(config, num_train=num_train, image_size=data.train_x.shape[-1], epoch=epoch)
    augmentation = None if augmentation is None else augmentation.to(device)
    enter_epoch(updates.model, config, data, epoch)
    lrs = [config.lr * factor_at(config, first_step + k, steps_per_epoch) for k in range(steps_per_epoch)]
    updates.begin(order.to(device), augmentation, lrs, first_step=first_step, epoch=epoch)
    marks: list[tuple[int, Tensor, Tensor]] = []
    for k in range(steps_per_epoch):
        updates.update()
        yield
        if (k + 1) % CHECK_STEPS == 0 or k + 1 == steps_per_epoch:
            marks.append((k + 1, updates.loss_sum.clone(), updates.num_correct.clone()))
            # captured steps do not wait for the device: a loss of theirs that is not finite is found behind the last
            if not updates.captured and not math.isfinite(marks[-1][1].item()):
                break
    told = [(steps, loss_sum.item(), int(num_correct.item())) for steps, loss_sum, num_correct in marks]
    steps_done, loss_sum, num_correct = next((mark for mark in told if not math.isfinite(mark[1])), told[-1])
    train_seconds = time.perf_counter() - started - (probing.seconds - probed)
    cpu_seconds = time.process_time() - probing.cpu_seconds - on_core
    return epoch_row(
        epoch, first_step, steps_done, batch_size, loss_sum=loss_sum, num_correct=num_correct,
        lr=lrs[steps_done - 1], train_seconds=train_seconds, cpu_seconds=cpu_seconds,
    )  # fmt: skip
