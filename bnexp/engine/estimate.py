"""How long runs will take: each shape is trained for a moment, on a part of its data, and the time is scaled up."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bnexp.config import RunConfig
from bnexp.engine.build import DeviceData, build_network
from bnexp.engine.captured import WARM_UP_CALLS
from bnexp.engine.evaluation import EVAL_BATCH
from bnexp.engine.loop import measure_trained, train_run
from bnexp.engine.stacked import stack_key, train_stack
from bnexp.engine.worker import Job, Worker
from bnexp.errors import RunError
from bnexp.nn.layers import running_norms
from bnexp.probes import STEP_PROBES
from bnexp.probes.evaluation import piece_size

PROBE_SECONDS = 0.2  # of training: then a timing is good enough
MOST_TIMINGS = 4
FEWEST_IMAGES = 32  # to time an evaluation with
ANY_SEED = 0  # splits of all seeds have the same sizes, and time depends on no more
COUNTED_PROBES = (*STEP_PROBES, "statistics")  # those whose time is in an estimate


class Pace(NamedTuple):
    """Seconds of a training step, and of evaluating one image; of a stack, for all its runs together."""

    step: float
    image: float


class Estimator:
    """Estimates seconds; every shape is timed once, at a width for stacks.

    Args:
        worker: has been started.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._paces: dict[Hashable, Pace] = {}
        self._probes: dict[Hashable, float] = {}

    def of_training(self, batch: Sequence[Job]) -> float:
        """Seconds of a run, or of several side by side: training, validation, final evaluation and step probes."""
        config, data = batch[0].config, self.worker.data(batch[0].config.data, ANY_SEED)
        num_steps = config.epochs * (len(data.train_y) // config.batch_size)
        num_images = config.epochs * len(data.val_y) + sum(len(y) for _, y in data.splits().values())
        shape = _shape(config)
        key = shape if len(batch) == 1 else (len(batch), stack_key(shape, {}))
        if key not in self._paces:
            self._paces[key] = self._time([job.config for job in batch], data)
        pace = self._paces[key]
        seconds = num_steps * pace.step + num_images * pace.image
        for name, options in batch[0].probes.items():
            if name in STEP_PROBES:  # which no run in a stack has
                seconds += self._of_step_probe(shape, data, name, options) * math.ceil(num_steps / options["every"])
        return seconds

    def of_statistics(self, config: RunConfig) -> float:
        """Seconds of the probe `statistics`, which looks at each trained network by itself."""
        data, shape = self.worker.data(config.data, ANY_SEED), _shape(config)
        key = (shape, "statistics")
        if key not in self._probes:
            _, channels, side, _ = data.train_x.shape
            model = build_network(shape, in_channels=channels, image_size=side, num_classes=data.num_classes)
            size = piece_size(self.worker.device)
            few = _cut(data, num_train=size, num_eval=size)
            probes: dict[str, dict[str, Any]] = {"statistics": {}}
            measured = measure_trained(shape, few, self.worker.device, model.state_dict(), probes=probes, step=0)
            assert measured is not None
            num_norms = len(running_norms(model))
            self._probes[key] = measured[1] * statistics_images(data, num_norms) / statistics_images(few, num_norms)
        return self._probes[key]

    def _time(self, configs: Sequence[RunConfig], data: DeviceData) -> Pace:
        try:
            return time_pace(configs, self.worker, data)
        except RunError:  # cannot be laid side by side: they will be trained one by one
            alone = time_pace(configs[:1], self.worker, data)
            return Pace(len(configs) * alone.step, len(configs) * alone.image)

    def _of_step_probe(self, shape: RunConfig, data: DeviceData, name: str, options: Mapping[str, Any]) -> float:
        """Seconds of measuring once."""
        key = (shape, name)
        if key not in self._probes:
            few = _cut(data, num_train=shape.batch_size, num_eval=1)
            outcome = train_run(shape, few, self.worker.device, probes={name: {**options, "every": 2}})
            self._probes[key] = outcome.seconds["probes"]
        return self._probes[key]


def statistics_images(data: DeviceData, num_norms: int) -> float:
    """Images that pass through the network for the probe `statistics`: what its time goes with."""
    if not num_norms:
        return len(data.test_y)
    return 3 * len(data.test_y) + num_norms * len(data.train_y) / 2  # half a pass over the training set for each norm


def time_pace(configs: Sequence[RunConfig], worker: Worker, data: DeviceData) -> Pace:
    """The pace of a run, or of several side by side, once what is done but once has been done."""
    batch_size = configs[0].batch_size
    num_steps, num_eval = 1, 1
    for timing in range(MOST_TIMINGS):
        steps_per_epoch = min(num_steps, len(data.train_y) // batch_size)
        few = _cut(data, num_train=steps_per_epoch * batch_size, num_eval=num_eval)
        # epochs until a step has been captured
        skipped = math.ceil((WARM_UP_CALLS + 1) / steps_per_epoch) if worker.captures else 0
        num_epochs = skipped + num_steps // steps_per_epoch
        shapes = [replace(_shape(config), epochs=num_epochs, seed=config.seed) for config in configs]
        if len(shapes) > 1:
            outcomes = train_stack(shapes, few, worker.device, captured=worker.captures)
        else:
            outcomes = [train_run(shapes[0], few, worker.device, captured=worker.captures)]
        epochs, steps = (max(outcome.history[-1][key] for outcome in outcomes) for key in ("epoch", "step"))
        train_seconds = sum(row["train_seconds"] for outcome in outcomes for row in outcome.history[skipped:])
        eval_seconds = sum(outcome.seconds["eval"] for outcome in outcomes)
        num_images = epochs * len(few.val_y) + sum(len(y) for _, y in few.splits().values())
        pace = Pace(train_seconds / max(1, steps - skipped * steps_per_epoch), eval_seconds / num_images)
        if timing and train_seconds >= PROBE_SECONDS:
            break
        num_steps = max(1, round(PROBE_SECONDS * 1.2 / pace.step))
        num_eval = min(EVAL_BATCH, max(FEWEST_IMAGES, round(PROBE_SECONDS / max(pace.image, 1e-9))))
    return pace


def _shape(config: RunConfig) -> RunConfig:
    """What the time depends on, for one epoch, at a rate at which nothing diverges."""
    return replace(config, seed=0, lr=1e-4, epochs=1)


def _cut(data: DeviceData, *, num_train: int, num_eval: int) -> DeviceData:
    """The first images of each split."""
    return replace(
        data,
        train_x=data.train_x[:num_train],
        train_y=data.train_y[:num_train],
        val_x=data.val_x[:num_eval],
        val_y=data.val_y[:num_eval],
        test_x=data.test_x[:num_eval],
        test_y=data.test_y[:num_eval],
        test_image=data.test_image[:num_eval],
    )
