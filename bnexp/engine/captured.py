"""On CUDA a training step is captured once and replayed: the host launches one graph in place of hundreds of kernels.

The step has to be the same kernels on the same memory each time, and must neither wait for the device nor count or draw
on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol

import torch
from torch import nn

from bnexp.config import RunConfig
from bnexp.engine.build import is_of_a_package
from bnexp.nn.layers import stochastic_layers
from bnexp.probes import STEP_PROBES

WARM_UP_CALLS = 3  # before a capture, on another stream, as PyTorch asks: libraries set themselves up in them


class Recorder(Protocol):
    """What can run calls aside and record one."""

    def aside(self, call: Callable[[], None]) -> None:
        """Make the call, where a recording could be made of it."""
        ...

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record the call, whose work is not done by that; what does it, every time, on the same memory."""
        ...


class CudaRecorder:
    """CUDA graphs, recorded on the stream that is current, or on one of its own where that is the default one.

    Source: PyTorch's notes on CUDA semantics, "whole-network capture".
    """

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        self._stream = _side_stream(device) if current == torch.cuda.default_stream(device) else current

    def aside(self, call: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            call()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            call()
        return graph.replay


@cache
def _side_stream(device: torch.device) -> Any:
    """One for all runs of a process: each has memory of its own."""
    return torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]


class CapturedStep:
    """A step that is called a few times, then captured, and replayed from there on.

    Where it cannot be captured it goes on being called, and stderr is told why. Nor is any other step of this process
    then, for a capture that fails may leave memory behind; where memory is what it lacked, others are.

    Args:
        step: reads and writes nothing but tensors that keep their place.
    """

    given_up = False

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step = step
        self._recorder: Recorder = CudaRecorder(device)
        self._num_calls = 0
        self._replay: Callable[[], None] | None = None

    @property
    def replaying(self) -> bool:
        """Whether it has been captured."""
        return self._replay is not None

    def __call__(self) -> None:
        """Make one step."""
        if self._num_calls == WARM_UP_CALLS and not CapturedStep.given_up:
            self._capture()
        self._num_calls += 1
        if self._replay is None:
            self._recorder.aside(self._step)
        else:
            self._replay()

    def _capture(self) -> None:
        try:
            self._replay = self._recorder.record(self._step)
        except RuntimeError as error:
            cause = _first_cause(error)
            CapturedStep.given_up = not isinstance(cause, torch.OutOfMemoryError)
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            tell_once(f"a training step could not be captured, and steps are launched one by one ({reason})")
            del cause  # its traceback holds this frame, and with it the network


def _first_cause(error: BaseException) -> BaseException:
    """What failed in the step, behind the failure of the capture."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def why_not_captured(config: RunConfig, model: nn.Module, probes: Mapping[str, Any]) -> str | None:
    """Why the steps of a run, or of a stack of such runs, are not all alike to the device; None where they are."""
    if is_of_a_package(config):
        return "what a user's package does in a step is not known"
    if config.norm.option("freeze_at") is not None:
        return "norm.freeze_at: layers change their mode"
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.momentum is None for m in model.modules()):
        return "norm.momentum=null: the average over all steps is counted on the host"
    if stochastic_layers(model):
        return "noise and dropout draw from generators that are seeded anew each epoch"
    steps = sorted(set(probes) & set(STEP_PROBES))
    return f"probes=[{','.join(steps)}] look in between" if steps else None


def captures(config: RunConfig, model: nn.Module, probes: Mapping[str, Any]) -> bool:
    """Whether steps can be captured; stderr is told, once, why not."""
    reason = why_not_captured(config, model, probes)
    if reason is not None:
        tell_once(f"some runs' steps are launched one by one, not as a graph ({reason})")
    return reason is None


@cache
def tell_once(message: str) -> None:
    """Say it on stderr, the first time that this process has it to say."""
    print(f"bnexp: {message}", file=sys.stderr)
