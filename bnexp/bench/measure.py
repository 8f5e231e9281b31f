"""Times a contender in a fresh process, so that no thread pool or allocator of one is in the way of another."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bnexp.bench.sizes import NUM_CLASSES, Size
from bnexp.config import RunConfig
from bnexp.engine.build import DeviceData, HostData, build_network, to_device
from bnexp.engine.device import settle_process
from bnexp.engine.epochs import Row
from bnexp.engine.lanes import Lanes, Steps
from bnexp.engine.loop import train_run
from bnexp.engine.process import call_in_processes
from bnexp.engine.stacked import train_stack
from bnexp.errors import RunError

WARMUP_STEPS = 10
PEAK_SIDE, PEAK_SIDE_ON_GPU = 2048, 8192  # of the square matrices that the machine's peak is measured with
LOOK_MS = 200  # between two questions to the GPU's driver
BACKWARD = 2  # passes of the forward's cost that a backward takes: by the input, and by the weights


Task = tuple[Callable[..., float], tuple[Any, ...]]


@dataclass(frozen=True)
class Timing:
    """What a contender came to.

    Attributes:
        rate: images a second that it trained on, evaluation and start-up left out.
        memory: bytes at the most: resident, of all its processes; on a GPU, reserved there.
        utilization: percent of the time in which the GPU had something to do, towards the end; nan elsewhere.
    """

    rate: float
    memory: int
    utilization: float = math.nan


def time_textbook(size: Size, host: HostData, device: torch.device, *, seconds: float) -> Timing:
    """The textbook loop on one run, with as many threads as torch takes: a loop over runs has the same rate."""
    return time_loop(_textbook, size, host, device, seconds=seconds)


def time_loop(
    loop: Callable[..., float], size: Size, host: HostData, device: torch.device, *, seconds: float
) -> Timing:
    """Any function of (size, host, device, seconds) that trains one run for so long and returns images a second."""
    return _timed(device, [(loop, (size, host, device, seconds))], seconds)


def time_runs(
    batches: Sequence[Sequence[RunConfig]], host: HostData, device: torch.device, *, threads: int, seconds: float
) -> Timing:
    """bnexp's own training of these batches at once: one in each of as many processes, or all in flight on one GPU.

    Args:
        batches: of one run, or of runs of one stack.
        threads: of each process.
    """
    parts = [batches] if device.type == "cuda" else [[batch] for batch in batches]
    return _timed(device, [(_ours, (part, host, device, threads, seconds)) for part in parts], seconds)


def _timed(device: torch.device, tasks: Sequence[Task], seconds: float) -> Timing:
    with _Utilization(device) as utilization:
        found = in_processes(device, tasks)
    return Timing(sum(rate for rate, _ in found), sum(memory for _, memory in found), utilization.last(seconds))


class _Utilization:
    """Asks the driver, while something runs, how busy the GPU is."""

    def __init__(self, device: torch.device) -> None:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        self._command = [
            "nvidia-smi", f"--id={first or device.index or 0}", f"--loop-ms={LOOK_MS}",
            "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
        ]  # fmt: skip
        self._asked = device.type == "cuda" and shutil.which(self._command[0]) is not None
        self._told: list[float] = []

    def __enter__(self) -> _Utilization:
        if self._asked:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._asked:
            self._process.terminate()
            self._told = [float(word) for word in self._process.communicate()[0].split() if word.isdecimal()]

    def last(self, seconds: float) -> float:
        """The median over the last seconds, in percent; nan where nothing was told."""
        return float(np.median(self._told[-math.ceil(1000 * seconds / LOOK_MS) :])) if self._told else math.nan


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


def steady_rate(steps: Iterable[int], *, seconds: float, warm_up: int = WARMUP_STEPS) -> float:
    """Images a second of a loop that gives the images of each step, or of several, once it has warmed up.

    Args:
        warm_up: what it gives so often is not counted.

    Raises:
        ValueError: it ended before that.
    """
    images, started = 0, math.inf
    for number, count in enumerate(steps, 1):
        images += count
        if number == warm_up:
            images, started = 0, time.perf_counter()
        if time.perf_counter() - started > seconds:
            return images / (time.perf_counter() - started)
    raise ValueError(f"the loop ended within {seconds:g} seconds")


def _ours(
    batches: Sequence[Sequence[RunConfig]], host: HostData, device: torch.device, threads: int, seconds: float
) -> float:
    settle_process(threads, device)
    data = to_device(host, device)
    # next to nothing to evaluate: of several in flight, each waits for the others' evaluation
    data = replace(
        data, val_x=data.val_x[:1], val_y=data.val_y[:1], test_x=data.test_x[:1], test_y=data.test_y[:1],
        test_image=data.test_image[:1],
    )  # fmt: skip
    per_epoch = len(data.train_y) // batches[0][0].batch_size * batches[0][0].batch_size
    per_run = [row["train_seconds"] for row in _trained(batches, data, device, epochs=2)[0] if row["epoch"] == 2]
    # of several in flight, the others' start is in the first epoch, and their final evaluation in the last
    last = 2 + max(1, round(seconds / sum(per_run)))
    steady = [
        [float(row["train_seconds"]) for row in rows if 1 < row["epoch"] < last]
        for rows in _trained(batches, data, device, epochs=last)
    ]
    return sum(per_epoch * len(rows) / sum(rows) for rows in steady)


def _trained(
    batches: Sequence[Sequence[RunConfig]], data: DeviceData, device: torch.device, *, epochs: int
) -> list[list[Row]]:
    """The rows of each batch, of all in flight at once; on CUDA steps are captured."""
    told: list[list[Row]] = [[] for _ in batches]
    lanes: Lanes[Any] = Lanes(device, len(batches))
    captured = device.type == "cuda"
    for key, (batch, rows) in enumerate(zip(batches, told, strict=True)):
        configs = [replace(config, epochs=epochs) for config in batch]
        work: Steps[Any]
        if len(configs) == 1:
            work = train_run.in_steps(configs[0], data, device, captured=captured, on_epoch=rows.append)
        else:
            work = train_stack.in_steps(configs, data, device, captured=captured, on_epoch=_append_to(rows))
        lanes.begin(key, work)
    while lanes:
        lanes.advance()
    return told


def _append_to(rows: list[Row]) -> Callable[[int, Row], None]:
    return lambda index, row: rows.append(row)


def _matmul(device: torch.device, seconds: float) -> float:
    best, side = 0.0, PEAK_SIDE_ON_GPU if device.type == "cuda" else PEAK_SIDE
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        ended = time.perf_counter() + seconds
        while time.perf_counter() < ended:
            started = time.perf_counter()
            c = a @ b
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - started))
        del c
    return best


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
        return value, torch.cuda.max_memory_reserved(device)  # what is allocated leaves out the memory of graphs
    unit = 1024 if sys.platform != "darwin" else 1
    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
