"""Times a contender in a fresh process, so that no thread pool or allocator of one is in the way of another."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bnexp.bench.sizes import NUM_CLASSES, Size
from bnexp.config import RunConfig
from bnexp.engine.build import HostData, build_network, to_device
from bnexp.engine.device import settle_process
from bnexp.engine.loop import Row, train_run
from bnexp.engine.process import call_in_processes
from bnexp.engine.stacked import train_stack
from bnexp.errors import RunError

WARMUP_STEPS = 10
PEAK_SIDE = 2048  # of the square matrices that the machine's peak is measured with
BACKWARD = 2  # passes of the forward's cost that a backward takes: by the input, and by the weights


@dataclass(frozen=True)
class Timing:
    """What a contender came to.

    Attributes:
        rate: images a second that it trained on, evaluation and start-up left out.
        memory: bytes at the most: resident, of all its processes; on a GPU, allocated there.
    """

    rate: float
    memory: int


def time_textbook(size: Size, host: HostData, device: torch.device, *, seconds: float) -> Timing:
    """The textbook loop on one run, with as many threads as torch takes: a loop over runs has the same rate."""
    return time_loop(_textbook, size, host, device, seconds=seconds)


def time_loop(
    loop: Callable[..., float], size: Size, host: HostData, device: torch.device, *, seconds: float
) -> Timing:
    """Any function of (size, host, device, seconds) that trains one run for so long and returns images a second."""
    ((rate, memory),) = in_processes(device, [(loop, (size, host, device, seconds))])
    return Timing(rate, memory)


def time_runs(
    batches: Sequence[Sequence[RunConfig]], host: HostData, device: torch.device, *, threads: int, seconds: float
) -> Timing:
    """bnexp's own training of these batches at once, one in each of as many processes.

    Args:
        batches: of one run, or of runs of one stack.
        threads: of each process.
    """
    found = in_processes(device, [(_ours, (batch, host, device, threads, seconds)) for batch in batches])
    return Timing(sum(rate for rate, _ in found), sum(memory for _, memory in found))


def matmul_peak(device: torch.device, *, seconds: float) -> float:
    """The most floating-point operations a second of a large matrix product, in fp32 or bf16."""
    ((flops, _),) = in_processes(device, [(_matmul, (device, seconds))])
    return flops


def training_flops(config: RunConfig, size: Size) -> float:
    """Floating-point operations of one training step for one image, of convolutions and matrix products."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_network(config, in_channels=size.channels, image_size=size.side, num_classes=NUM_CLASSES)
        model(torch.empty(2, size.channels, size.side, size.side))
    return float(counter.get_total_flops()) / 2 * (1 + BACKWARD)


def _textbook(size: Size, host: HostData, device: torch.device, seconds: float) -> float:
    from bnexp.bench.textbook import train

    return steady_rate(train(size, host, device, epochs=sys.maxsize, evaluate=False), seconds=seconds)


def steady_rate(steps: Iterable[int], *, seconds: float) -> float:
    """Images a second of a loop that gives the images of each step, once it has warmed up.

    Raises:
        ValueError: it ended before that.
    """
    images, started = 0, math.inf
    for number, count in enumerate(steps, 1):
        images += count
        if number == WARMUP_STEPS:
            images, started = 0, time.perf_counter()
        if time.perf_counter() - started > seconds:
            return images / (time.perf_counter() - started)
    raise ValueError(f"the loop ended within {seconds:g} seconds")


def _ours(batch: Sequence[RunConfig], host: HostData, device: torch.device, threads: int, seconds: float) -> float:
    settle_process(threads, device)
    data = to_device(host, device)
    per_epoch = len(data.train_y) // batch[0].batch_size * batch[0].batch_size

    def epochs(num: int) -> list[Row]:
        rows: list[Row] = []
        captured = device.type == "cuda"
        configs = [replace(config, epochs=num) for config in batch]
        if len(configs) == 1:
            train_run(configs[0], data, device, captured=captured, on_epoch=rows.append)
        else:
            train_stack(configs, data, device, captured=captured, on_epoch=lambda index, row: rows.append(row))
        return rows

    first = sum(row["train_seconds"] for row in epochs(1))
    rows = epochs(1 + max(1, round(seconds / first)))
    steady = [row for row in rows if row["epoch"] > 1]
    return per_epoch * len(steady) / sum(float(row["train_seconds"]) for row in steady)


def _matmul(device: torch.device, seconds: float) -> float:
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(PEAK_SIDE, PEAK_SIDE, device=device).to(dtype) for _ in range(2))
        ended = time.perf_counter() + seconds
        while time.perf_counter() < ended:
            started = time.perf_counter()
            c = a @ b
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, 2 * PEAK_SIDE**3 / (time.perf_counter() - started))
        del c
    return best


Task = tuple[Callable[..., float], tuple[Any, ...]]


def in_processes(device: torch.device, tasks: Sequence[Task]) -> list[tuple[float, int]]:
    """Run the tasks at once, each in a process of its own; what each returns, and its most memory in bytes."""
    found = call_in_processes(device, [partial(_measured, device, task) for task in tasks])
    if None in found:
        raise RunError("a process that was timed has died")
    return found


def _measured(device: torch.device, task: Task) -> tuple[float, int]:
    function, arguments = task
    value = function(*arguments)
    if device.type == "cuda":
        return value, torch.cuda.max_memory_allocated(device)
    unit = 1024 if sys.platform != "darwin" else 1
    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
