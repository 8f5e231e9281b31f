"""Gives probes the network at the right moment, and gives it back to training as it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.config import NO_NORM, RunConfig
from bnexp.engine.build import DeviceData, build_network, build_optimizer, init_network, normalize
from bnexp.engine.step import optimized_loss, train_step
from bnexp.probes import END_PROBES, STEP_PROBES, Ending, Moment, Row, StepProbe, undisturbed
from bnexp.seeding import seed_for


class Probing:
    """The probes of one run and what they have measured.

    Attributes:
        wanted: probe -> its options.
        rows: tidy rows so far; a number that is not finite is None.
        seconds: spent in probes by this process, which is no training time.
        cpu_seconds: of a core, in step probes.
    """

    def __init__(self, config: RunConfig, data: DeviceData, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        self.config, self.data = config, data
        self.wanted = {name: dict(options) for name, options in wanted.items()}
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._step_probes: list[StepProbe] = [STEP_PROBES[n](**wanted[n]) for n in STEP_PROBES if n in wanted]
        self._end_probes = [END_PROBES[name](**wanted[name]) for name in END_PROBES if name in wanted]

    def before_update(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: int, epoch: int,
        lr: float,
    ) -> None:  # fmt: skip
        """Run the step probes that are due before the update that follows `step` updates."""
        due = [probe for probe in self._step_probes if probe.when(step)]
        if not due:
            return
        started, on_core = self._clock(), time.process_time()
        # gradients in bf16 carry several percent of error: probes look at the network in fp32
        exact = replace(self.config, precision="fp32")
        moment = Moment(
            model, x, y, lambda logits, labels: optimized_loss(exact, logits, labels),
            lambda: _discard(train_step(model, optimizer, exact, x, y)), lr, step, epoch,
        )  # fmt: skip
        for probe in due:
            with undisturbed(model, optimizer):
                self._keep(probe.measure(moment))
        self.seconds += self._clock() - started
        self.cpu_seconds += time.process_time() - on_core

    def at_end(self, model: nn.Module, *, step: int, epoch: int) -> None:
        """Run the probes of a network that has finished training."""
        if not self._end_probes:
            return
        started = self._clock()
        data = self.data
        ending = Ending(
            model, data.train_x, data.train_y, data.test_x, data.test_y, lambda x: normalize(x, data),
            lambda *keys: seed_for(self.config.seed, "probe", *keys), self._twin, self._step_of, step, epoch,
            self.config.batch_size,
        )  # fmt: skip
        for probe in self._end_probes:
            with undisturbed(model):
                self._keep(probe.measure(ending))
        self.seconds += self._clock() - started

    def _keep(self, rows: list[Row]) -> None:
        for row in rows:
            value = row["value"]
            self.rows.append(row if value is None or math.isfinite(value) else {**row, "value": None})

    def _twin(self) -> nn.Module:
        """The network without its norm layers, all of it trained."""
        config = replace(self.config, norm=NO_NORM, optim=replace(self.config.optim, trainable="all"))
        _, channels, size, _ = self.data.train_x.shape
        twin = build_network(config, in_channels=channels, image_size=size, num_classes=self.data.num_classes)
        init_network(twin, config, self.data)
        return twin.to(self.data.train_x.device).to(memory_format=torch.channels_last).train()

    def _step_of(self, model: nn.Module) -> Callable[[], None]:
        """One training step, as the run itself does it, on the first images of the training set."""
        size = self.config.batch_size
        x, y = normalize(self.data.train_x[:size], self.data), self.data.train_y[:size]
        optimizer = build_optimizer(model, self.config.optim, self.config.lr)
        return lambda: _discard(train_step(model, optimizer, self.config, x, y))

    def _clock(self) -> float:
        if self.data.train_x.device.type == "cuda":
            torch.cuda.synchronize(self.data.train_x.device)
        return time.perf_counter()


def _discard(_: object) -> None:
    """What a probe's update returns is of no use to it."""
