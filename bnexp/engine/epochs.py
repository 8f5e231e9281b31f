"""What an epoch is made of, for a run alone as in a stack: order, draws, rates, modes, and its row in the history."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.config import RunConfig
from bnexp.data.augment import Augmentation, draw_augmentation, pad_for
from bnexp.engine.build import DeviceData, normalize
from bnexp.engine.evaluation import EVAL_BATCH
from bnexp.engine.schedule import lr_factor
from bnexp.nn.layers import running_norms, stochastic_layers
from bnexp.nn.statistics import measure_statistics
from bnexp.seeding import seed_for

CHECK_STEPS = 100  # a loss that is not finite is noticed within so many steps, or told to have been

Row = dict[str, Any]


def draw_epoch(config: RunConfig, *, num_train: int, image_size: int, epoch: int) -> tuple[Tensor, Augmentation | None]:
    """Order and augmentations of an epoch, on the CPU."""
    order = torch.randperm(num_train, generator=_generator(config.seed, "order", epoch))
    augmentation = draw_augmentation(
        config.data.augment,
        num_train,
        pad=pad_for(image_size),
        generator=_generator(config.seed, "augment", epoch),
    )
    return order, augmentation


def factor_at(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """The factor on the peak learning rate at a step of the whole training."""
    num_steps = config.epochs * steps_per_epoch
    return lr_factor(config.schedule, step=step, num_steps=num_steps, steps_per_epoch=steps_per_epoch)


def enter_epoch(model: nn.Module, config: RunConfig, data: DeviceData, epoch: int) -> None:
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
    train_mode(model, config, epoch=epoch)


def train_mode(model: nn.Module, config: RunConfig, *, epoch: int) -> None:
    """Training mode, but for norms whose statistics are frozen."""
    model.train()
    freeze_at = config.norm.option("freeze_at")
    if freeze_at is not None and epoch >= freeze_at:
        for _, norm in running_norms(model):
            norm.eval()


def _train_inputs(data: DeviceData) -> Iterator[Tensor]:
    for start in range(0, len(data.train_y), EVAL_BATCH):
        yield normalize(data.train_x[start : start + EVAL_BATCH], data)


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


def _generator(seed: int, purpose: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, purpose, epoch))
