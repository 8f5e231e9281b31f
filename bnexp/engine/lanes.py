"""Several trainings in flight in one process: each pauses after every step that it has launched."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

Steps = Generator[None, None, T]  # work that pauses, and what it comes to
# on a GPU, where `exec.slots` does not say: a small network's step leaves most of it idle, and one thread launches all
IN_FLIGHT = 4


class Stepwise(Generic[P, T]):
    """A function that is written as a generator, which pauses after each step.

    Called, it goes through to its end; `in_steps` is the generator.
    """

    def __init__(self, function: Callable[P, Steps[T]]) -> None:
        self.in_steps = function
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = self.in_steps(*args, **kwargs)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                value: T = ended.value
                return value


class Lanes(Generic[T]):
    """Work in flight, on CUDA each on a stream of its own, where kernels of one may run beside those of another.

    One thread launches all of it in turn, so that what is computed does not depend on what else is in flight.

    Args:
        num: how much at once.
    """

    def __init__(self, device: torch.device, num: int) -> None:
        self._device = device
        self._work: dict[int, tuple[int, Steps[T]]] = {}  # key -> lane, and what is in it
        self._streams = [_stream(device) if num > 1 else None for _ in range(num)]

    def __len__(self) -> int:
        return len(self._work)

    @property
    def free(self) -> bool:
        """Whether there is a lane for more."""
        return len(self._work) < len(self._streams)

    def begin(self, key: int, work: Steps[T]) -> None:
        """Take on some work; the next `advance` makes its first step."""
        used = {lane for lane, _ in self._work.values()}
        self._work[key] = next(lane for lane in range(len(self._streams)) if lane not in used), work

    def advance(self) -> list[tuple[int, T]]:
        """Make one step of each; the keys of what has come to its end, and what it came to."""
        ended = []
        for key, (lane, work) in list(self._work.items()):
            stream = self._streams[lane]
            with _on(stream):
                try:
                    next(work)
                except StopIteration as end:
                    ended.append((key, end.value))
                    del self._work[key]
        return ended


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device=device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
