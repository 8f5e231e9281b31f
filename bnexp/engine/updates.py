"""The updates of an epoch, one after the other: made as they are, or captured and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.config import RunConfig
from bnexp.data.augment import Augmentation, apply_augmentation
from bnexp.engine.build import DeviceData, normalize
from bnexp.engine.captured import CapturedStep, captures
from bnexp.engine.probing import Probing
from bnexp.engine.step import train_step

# an update from the learning rate (of each run in a stack), the places of the examples, and their draws
Update = Callable[[Any, Tensor, Augmentation | None], None]


class PlainUpdates:
    """Makes an epoch's updates one after the other."""

    replaying = False

    def __init__(self, update: Update) -> None:
        self._update = update

    def begin(self, lrs: Sequence[float] | Tensor, order: Tensor, augmentation: Augmentation | None) -> None:
        """Begin an epoch.

        Args:
            lrs: of each step; in a stack, (steps, K).
            order, augmentation: of the examples of all steps, one step's after the other's.
        """
        self._lrs, self._augmentation, self._turn = lrs, augmentation, 0
        self._given = _by_step(len(lrs), order, augmentation)

    def __call__(self) -> None:
        """Make the next."""
        index, *draws = (each[self._turn] for each in self._given)
        self._update(self._lrs[self._turn], index, _with(self._augmentation, draws))
        self._turn += 1


class CapturedUpdates:
    """As `PlainUpdates`, captured and replayed: a step is one launch, for all that an epoch needs waits on the device.

    Args:
        update: takes the rate as a tensor. It must not hold what holds this object, or the memory of the graph is not
            freed with the run.
    """

    def __init__(self, update: Update, device: torch.device) -> None:
        turn = torch.zeros(1, dtype=torch.int64, device=device)
        given: list[Tensor] = []  # in the same places in every epoch
        drawn: list[Augmentation | None] = [None]

        def in_turn() -> None:
            lr, index, *draws = (each.index_select(0, turn)[0] for each in given)
            update(lr, index, _with(drawn[0], draws))
            turn.add_(1)

        self._turn, self._given, self._drawn = turn, given, drawn
        self._step = CapturedStep(in_turn, device)

    @property
    def replaying(self) -> bool:
        """Whether the step has been captured."""
        return self._step.replaying

    def begin(self, lrs: Sequence[float] | Tensor, order: Tensor, augmentation: Augmentation | None) -> None:
        """Begin an epoch, of as many steps as in every other."""
        rates = torch.as_tensor(lrs).to(order.device)
        new = [rates, *_by_step(len(rates), order, augmentation)]
        if self._given:
            for buffer, each in zip(self._given, new, strict=True):
                buffer.copy_(each)
        else:
            self._drawn[0] = None if augmentation is None else augmentation.each(lambda draws: draws[:0].clone())
            self._given.extend(each.clone() for each in new)
        self._turn.zero_()

    def __call__(self) -> None:
        """Make the next."""
        self._step()


@dataclass
class _Place:
    """Where a training is: updates before the next one, and the epoch, from 0."""

    step: int = 0
    epoch: int = 0


class RunUpdates:
    """The updates of a run, one by one or captured, and their sums over an epoch.

    Attributes:
        loss_sum, num_correct: scalars on the device.
        captured: whether they are to be captured.
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
        self.captured = captured = captured and captures(config, model, probing.wanted)
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


def _by_step(num_steps: int, order: Tensor, augmentation: Augmentation | None) -> list[Tensor]:
    """The order's and the draws' tensors, each step's along the first axis."""
    draws = () if augmentation is None else augmentation.tensors().values()
    return [each.view(num_steps, -1, *each.shape[1:]) for each in (order, *draws)]


def _with(augmentation: Augmentation | None, draws: Sequence[Tensor]) -> Augmentation | None:
    return None if augmentation is None else augmentation.with_tensors(draws)
