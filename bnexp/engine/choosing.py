"""`exec.executor=auto`: runs of one shape are trained side by side where that is timed to be faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from bnexp.config import RunConfig
from bnexp.engine.batches import Batch, batched
from bnexp.engine.estimate import Estimator
from bnexp.engine.process import call_in_processes
from bnexp.engine.stacked import stack_key, why_not_stacked
from bnexp.engine.worker import Job, Worker

FEW_STEPS = 2000  # of all runs of a shape: they are over before a timing has paid
LEAST_GAIN = 1.1


class Choice(NamedTuple):
    """What is trained how, and why.

    Attributes:
        batches: of runs that go side by side, or alone.
        reason: in a line; empty where nothing was to be chosen.
    """

    batches: list[Batch]
    reason: str


def choose_batches(jobs: Sequence[Job], worker: Worker, *, slots: int, image_sizes: Sequence[int]) -> Choice:
    """Time a stack of each kind of network, in `slots` processes at once as they will run, against one run alone.

    On CUDA neither has company in flight.
    """
    batches_of = partial(
        batched, jobs, slots=slots * worker.lanes, image_sizes=image_sizes, device_type=worker.device.type
    )
    stacks = [batch for batch in batches_of() if len(batch) > 1]
    kinds: dict[Hashable, list[Batch]] = {}
    for batch in stacks:
        kinds.setdefault(_kind(batch[0].config), []).append(batch)
    small = {kind for kind, batches in kinds.items() if sum(_num_steps(batch, worker) for batch in batches) < FEW_STEPS}
    samples = {kind: max(batches, key=len) for kind, batches in kinds.items() if kind not in small}
    gains = _timed(samples, worker, slots)
    slow = {kind for kind, gain in gains.items() if gain < LEAST_GAIN}
    alone = {_key(batch) for kind in small | slow for batch in kinds[kind]}
    chosen = batches_of(alone=alone)
    return Choice(chosen, "; ".join([*_reasons(chosen, gains, kinds, slow), *why_alone(jobs)]))


def why_alone(jobs: Sequence[Job]) -> list[str]:
    """Of a sweep, how many runs cannot be trained side by side, and why."""
    reasons = Counter(why_not_stacked(job.config, job.probes) for job in jobs if len(jobs) > 1)
    return [
        f"{num} run{'s' * (num > 1)} alone: {reason}" for reason, num in reasons.most_common() if reason is not None
    ]


def _reasons(
    chosen: Sequence[Batch],
    gains: Mapping[Hashable, float],
    kinds: Mapping[Hashable, Sequence[Batch]],
    slow: set[Hashable],
) -> list[str]:
    together = [batch for batch in chosen if len(batch) > 1]
    told = []
    if together:
        used = sorted(gain for kind, gain in gains.items() if kind not in slow)
        widths = Counter(len(batch) for batch in together)
        told.append(
            f"{sum(map(len, together))} runs side by side, {_span(min(widths), max(widths), 'd')} at once, timed to be "
            f"{_span(used[0], used[-1], '.1f')} times as fast as alone"
        )
    if slow:
        number = sum(len(batch) for kind in slow for batch in kinds[kind])
        told.append(f"{number} runs alone, which were timed to be as fast so")
    return told


def _span(low: float, high: float, form: str) -> str:
    texts = [f"{value:{form}}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _key(batch: Batch) -> Hashable:
    return stack_key(batch[0].config, batch[0].probes)


def _kind(config: RunConfig) -> Hashable:
    """What decides whether a stack is faster; what else a shape is made of changes little."""
    model = config.model
    return (config.data, model.name, model.depth, model.width, config.norm.kind, config.batch_size, config.precision)


def _num_steps(batch: Batch, worker: Worker) -> int:
    config = batch[0].config
    return len(batch) * config.epochs * (len(worker.hosts[config.data].split.train) // config.batch_size)


def _timed(samples: Mapping[Hashable, Batch], worker: Worker, slots: int) -> dict[Hashable, float]:
    """Kind -> how many times as fast a run of the stack is as a run alone."""
    kinds = list(samples)
    parts = [kinds[start::slots] for start in range(min(slots, len(kinds)))]
    calls = [
        partial(_gains, [samples[kind] for kind in part], worker.of_slot(index)) for index, part in enumerate(parts)
    ]
    gains: dict[Hashable, float] = {}
    for part, found in zip(parts, call_in_processes(worker.device, calls), strict=True):
        # a process may die of a stack that takes too much memory
        gains |= dict.fromkeys(part, 0.0) if found is None else dict(zip(part, found, strict=True))
    return gains


def _gains(batches: Sequence[Batch], worker: Worker) -> list[float]:
    worker.start()
    estimator = Estimator(worker)
    return [len(batch) * estimator.of_training(batch[:1]) / estimator.of_training(batch) for batch in batches]
