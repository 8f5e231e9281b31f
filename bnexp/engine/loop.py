"""Trains one run from its first epoch, or its last checkpoint, to its final metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.config import RunConfig, Status
from bnexp.data.augment import Augmentation, apply_augmentation, draw_augmentation, pad_for
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network, normalize
from bnexp.engine.captured import CapturedUpdates, PlainUpdates, Update, captures
from bnexp.engine.checkpoint import load_checkpoint, save_checkpoint
from bnexp.engine.lanes import Steps, Stepwise
from bnexp.engine.probing import Probing
from bnexp.engine.schedule import lr_factor
from bnexp.engine.step import at_least_fp32, train_step
from bnexp.nn.layers import running_norms, stochastic_layers
from bnexp.nn.statistics import kept_modes, measure_statistics
from bnexp.probes import END_PROBES, STEP_PROBES
from bnexp.seeding import seed_for

CHECK_STEPS = 100  # a loss that is not finite is noticed within so many steps; each look waits for the device
EVAL_BATCH = 256
# one-sided 99 % bound: a run whose accuracy could be chance is called collapsed
CHANCE_Z = 2.326

Row = dict[str, Any]


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
        captured: whether its steps were replayed as a graph.
    """

    status: Status
    final: dict[str, float | None]
    history: list[Row]
    seconds: dict[str, float]
    num_params: int
    probes: list[Row]
    weights: dict[str, Tensor] | None
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
    updates = _Updates(model, optimizer, config, data, probing, captured=captured)
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
    measured = {} if status == "diverged" else evaluate_splits(model, data, config.precision)
    eval_seconds += time.perf_counter() - started
    final = final_metrics(measured, data)
    if status == "finished" and at_chance(final, data):
        status = "collapsed"
    seconds = {**seconds_of(history), "eval": eval_seconds, "probes": probing.seconds}
    final["train_seconds"] = seconds["train"]
    num_params = sum(p.numel() for p in model.parameters())
    weights = None if status == "diverged" else model.state_dict()
    return Outcome(status, final, history, seconds, num_params, probing.rows, weights, updates.replaying)


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
    _, channels, height, _ = data.train_x.shape
    model = build_network(config, in_channels=channels, image_size=height, num_classes=data.num_classes)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        return None
    model.to(device).to(memory_format=torch.channels_last)
    _train_mode(model, config, epoch=config.epochs)
    probing.at_end(model, step=step, epoch=config.epochs)
    return probing.rows, probing.seconds


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


@dataclass
class _Place:
    """Where a training is: updates before the next one, and the epoch, from 0."""

    step: int = 0
    epoch: int = 0


class _Updates:
    """The updates of a run, one by one or captured, and their sums over an epoch.

    Attributes:
        loss_sum, num_correct: scalars on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        data: DeviceData,
        probing: Probing,
        *,
        captured: bool,
    ) -> None:
        self.model, self.config, self.data, self.probing = model, config, data, probing
        device = data.train_x.device
        self.loss_sum, self.num_correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64).to(device)
        captured = captured and captures(config, model, probing.wanted, stacked=False)
        rate, self._place = torch.zeros((), device=device), _Place()
        for group in optimizer.param_groups:
            if captured:
                group["lr"] = rate
            if "capturable" in group:  # a checkpoint brings that of whoever wrote it
                group["capturable"] = captured
        self._updates: PlainUpdates | CapturedUpdates
        if captured:
            self._updates = CapturedUpdates(self._of_tensors(optimizer, rate), device)
        else:
            self._updates = PlainUpdates(self._observed(optimizer))

    @property
    def replaying(self) -> bool:
        """Whether the last update was replayed."""
        return self._updates.replaying

    def begin(
        self, order: Tensor, augmentation: Augmentation | None, lrs: Sequence[float], *, first_step: int, epoch: int
    ) -> None:
        """Begin an epoch.

        Args:
            order: of the training examples, (num_train,).
            augmentation: their draws.
            lrs: of each step.
            first_step: updates before this epoch.
        """
        self.loss_sum.zero_()
        self.num_correct.zero_()
        self._place.step, self._place.epoch = first_step, epoch
        used = len(lrs) * self.config.batch_size
        self._updates.begin(lrs, order[:used], None if augmentation is None else augmentation.part(0, used))

    def update(self) -> None:
        """Make the next update of the epoch."""
        self._updates()

    # neither of what these return holds this object, whose networks are freed with it

    def _observed(self, optimizer: torch.optim.Optimizer) -> Update:
        """One update that probes look at."""
        model, config, data, probing, place = self.model, self.config, self.data, self.probing, self._place
        loss_sum, num_correct = self.loss_sum, self.num_correct

        def update(lr: float, index: Tensor, augmentation: Augmentation | None) -> None:
            x, y = _batch(data, index, augmentation)
            for group in optimizer.param_groups:
                group["lr"] = lr
            probing.before_update(model, optimizer, x, y, step=place.step, epoch=place.epoch, lr=lr)
            _add(loss_sum, num_correct, train_step(model, optimizer, config, x, y), y)
            place.step += 1

        return update

    def _of_tensors(self, optimizer: torch.optim.Optimizer, rate: Tensor) -> Update:
        """One update of nothing but tensors."""
        model, config, data = self.model, self.config, self.data
        loss_sum, num_correct = self.loss_sum, self.num_correct

        def update(lr: Tensor, index: Tensor, augmentation: Augmentation | None) -> None:
            rate.copy_(lr)
            x, y = _batch(data, index, augmentation)
            _add(loss_sum, num_correct, train_step(model, optimizer, config, x, y), y)

        return update


def _batch(data: DeviceData, index: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
    """Normalized images and labels."""
    x, y = data.train_x[index], data.train_y[index]
    if augmentation is not None:
        x = apply_augmentation(x, augmentation)
    return normalize(x, data), y


def _add(loss_sum: Tensor, num_correct: Tensor, step: tuple[Tensor, Tensor], y: Tensor) -> None:
    """Add what a step gave: its loss and its logits."""
    loss, logits = step
    loss_sum += loss
    num_correct += (logits.argmax(1) == y).sum()


def train_epoch(updates: _Updates, *, epoch: int) -> Steps[Row]:
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
    order, augmentation = draw_epoch(config, data, epoch)
    augmentation = None if augmentation is None else augmentation.to(device)
    _enter_epoch(updates.model, config, data, epoch)
    lrs = [config.lr * factor_at(config, first_step + k, steps_per_epoch) for k in range(steps_per_epoch)]
    updates.begin(order.to(device), augmentation, lrs, first_step=first_step, epoch=epoch)
    steps_done = 0
    for k in range(steps_per_epoch):
        updates.update()
        steps_done = k + 1
        yield
        if steps_done % CHECK_STEPS == 0 and not math.isfinite(updates.loss_sum.item()):
            break
    loss_total = updates.loss_sum.item()  # waits for the device: the time below is that of the whole epoch
    train_seconds = time.perf_counter() - started - (probing.seconds - probed)
    cpu_seconds = time.process_time() - probing.cpu_seconds - on_core
    return epoch_row(
        epoch, first_step, steps_done, batch_size, loss_sum=loss_total, num_correct=int(updates.num_correct.item()),
        lr=lrs[steps_done - 1], train_seconds=train_seconds, cpu_seconds=cpu_seconds,
    )  # fmt: skip


def epoch_row(
    epoch: int, first_step: int, steps_done: int, batch_size: int, *, loss_sum: float, num_correct: int, lr: float,
    train_seconds: float, cpu_seconds: float,
) -> Row:  # fmt: skip
    """A history row without validation.

    Args:
        cpu_seconds: of this process; fewer than those of the clock where others had its core, or a GPU worked.
    """
    return {
        "epoch": epoch + 1,
        "step": first_step + steps_done,
        "train_loss": loss_sum / steps_done,
        "train_accuracy": num_correct / (steps_done * batch_size),
        "lr": lr,
        "train_seconds": train_seconds,
        "cpu_seconds": cpu_seconds,
        "images_per_second": steps_done * batch_size / train_seconds,
    }


def seconds_of(history: Sequence[Row]) -> dict[str, float]:
    """Seconds of training by the clock, and those of a core; without the latter where a row of it has none."""
    seconds = {"train": sum(row["train_seconds"] for row in history)}
    known = all("cpu_seconds" in row for row in history)  # a checkpoint of an older version has none
    return seconds | ({"cpu": sum(row["cpu_seconds"] for row in history)} if known else {})


def with_validation(row: Row, validation: tuple[float, float] | None) -> tuple[Row, bool]:
    """The row with loss and accuracy on val, and whether the run has diverged, which leaves it without them.

    The last step may blow up the weights when its own loss was still finite: validation shows it.

    Args:
        validation: None where the training's loss was not finite already.
    """
    if validation is not None and math.isfinite(validation[0]):
        return row | {"val_loss": validation[0], "val_accuracy": validation[1]}, False
    train_loss = row["train_loss"] if math.isfinite(row["train_loss"]) else None
    return row | {"train_loss": train_loss, "val_loss": None, "val_accuracy": None}, True


def draw_epoch(config: RunConfig, data: DeviceData, epoch: int) -> tuple[Tensor, Augmentation | None]:
    """Order and augmentations of an epoch, on the CPU."""
    num_train = len(data.train_y)
    order = torch.randperm(num_train, generator=_generator(config.seed, "order", epoch))
    augmentation = draw_augmentation(
        config.data.augment,
        num_train,
        pad=pad_for(data.train_x.shape[-1]),
        generator=_generator(config.seed, "augment", epoch),
    )
    return order, augmentation


def factor_at(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """The factor on the peak learning rate at a step of the whole training."""
    num_steps = config.epochs * steps_per_epoch
    return lr_factor(config.schedule, step=step, num_steps=num_steps, steps_per_epoch=steps_per_epoch)


def _enter_epoch(model: nn.Module, config: RunConfig, data: DeviceData, epoch: int) -> None:
    """Training mode, this epoch's draws for stochastic layers, and frozen statistics where `norm.freeze_at` asks."""

    def reseed(purpose: str, *keys: int) -> None:
        for name, layer in stochastic_layers(model):
            layer.reseed(seed_for(config.seed, purpose, name, *keys), data.train_x.device)

    freeze_or_go_on(model, config, epoch, reseed, lambda: _train_inputs(data))
    torch.manual_seed(seed_for(config.seed, "global", epoch))  # for layers of a user's package


def freeze_or_go_on(
    model: nn.Module,
    config: RunConfig,
    epoch: int,
    reseed: Callable[..., None],
    train_inputs: Callable[[], Iterator[Tensor]],
) -> None:
    """Training mode, this epoch's draws for stochastic layers, and frozen statistics where `norm.freeze_at` asks.

    Args:
        reseed: takes a purpose and what tells its draws apart, and seeds every stochastic layer.
        train_inputs: the training set in order, in batches of `EVAL_BATCH`, normalized.
    """
    freeze_at = config.norm.option("freeze_at")
    if freeze_at is not None and epoch == freeze_at:
        reseed("frozen")
        measure_statistics(model, train_inputs, noise=True)
    reseed("noise", epoch)
    _train_mode(model, config, epoch=epoch)


def _train_mode(model: nn.Module, config: RunConfig, *, epoch: int) -> None:
    """Training mode, but for norms whose statistics are frozen."""
    model.train()
    freeze_at = config.norm.option("freeze_at")
    if freeze_at is not None and epoch >= freeze_at:
        for _, norm in running_norms(model):
            norm.eval()


def _train_inputs(data: DeviceData) -> Iterator[Tensor]:
    for start in range(0, len(data.train_y), EVAL_BATCH):
        yield normalize(data.train_x[start : start + EVAL_BATCH], data)


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, data: DeviceData, precision: str) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction, in eval mode; every module's mode is restored."""
    loss_sum = torch.zeros((), dtype=torch.float64 if x.device.type != "mps" else torch.float32, device=x.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=x.device)
    with kept_modes(model):
        model.eval()
        for start in range(0, len(y), EVAL_BATCH):
            batch, labels = normalize(x[start : start + EVAL_BATCH], data), y[start : start + EVAL_BATCH]
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = model(batch)
            logits = at_least_fp32(logits)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            num_correct += (logits.argmax(1) == labels).sum()
    return loss_sum.item() / len(y), num_correct.item() / len(y)


def evaluate_splits(model: nn.Module, data: DeviceData, precision: str) -> dict[str, tuple[float, float]]:
    """Split -> loss and accuracy in eval mode."""
    return {split: evaluate(model, x, y, data, precision) for split, (x, y) in data.splits().items()}


def final_metrics(measured: Mapping[str, tuple[float, float]], data: DeviceData) -> dict[str, float | None]:
    """Loss and accuracy on train, val and test; null for a diverged run, of which nothing was measured."""
    final: dict[str, float | None] = {f"chance_{split}_accuracy": chance for split, chance in data.chance.items()}
    for split in data.splits():
        loss, accuracy = measured.get(split, (math.nan, None))
        final |= {f"{split}_loss": loss if math.isfinite(loss) else None, f"{split}_accuracy": accuracy}
    return final


def at_chance(final: dict[str, float | None], data: DeviceData) -> bool:
    """Whether accuracy on train and on val are both within what guessing could score."""
    for split, count in (("train", len(data.train_y)), ("val", len(data.val_y))):
        chance = data.chance[split]
        accuracy = final[f"{split}_accuracy"]
        assert accuracy is not None
        if accuracy > chance + CHANCE_Z * math.sqrt(chance * (1 - chance) / count):
            return False
    return True


def _generator(seed: int, purpose: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, purpose, epoch))
