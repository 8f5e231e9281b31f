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
from torch import Tensor, nn

from bnexp.config import RunConfig
from bnexp.data.augment import Augmentation
from bnexp.nn import MODELS, NORMS
from bnexp.nn.layers import stochastic_layers
from bnexp.probes import STEP_PROBES

WARM_UP_CALLS = 3  # before a capture, on another stream, as PyTorch asks: libraries set themselves up in them

# an update from the learning rate (of each run in a stack), the places of the examples, and their draws
Update = Callable[[Tensor, Tensor, Augmentation | None], None]


class Recorder(Protocol):
    """What can run calls aside and record one."""

    def aside(self, call: Callable[[], None]) -> None:
        """Make the call, where a recording could be made of it."""
        ...

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record the call, whose work is not done by that; what does it, every time, on the same memory."""
        ...


class CudaRecorder:
    """CUDA graphs. Source: PyTorch's notes on CUDA semantics, "whole-network capture"."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _side_stream(device)

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

    Where it cannot be captured it goes on being called, stderr is told why, and no other step of this process is
    captured: a capture that fails may leave memory behind.

    Args:
        step: computes on its arguments, and on tensors that keep their place; its results go to such tensors.
    """

    given_up = False

    def __init__(self, step: Callable[..., None], device: torch.device) -> None:
        self._step = step
        self._recorder: Recorder = CudaRecorder(device)
        self._num_calls = 0
        self._buffers: list[Tensor] = []
        self._replay: Callable[[], None] | None = None

    @property
    def replaying(self) -> bool:
        """Whether it has been captured."""
        return self._replay is not None

    def __call__(self, *arguments: Tensor) -> None:
        """Make one step; arguments have the same shapes each time."""
        if self._num_calls == WARM_UP_CALLS and not CapturedStep.given_up:
            self._capture(arguments)
        self._num_calls += 1
        if self._replay is None:
            self._recorder.aside(lambda: self._step(*arguments))
            return
        for buffer, argument in zip(self._buffers, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        self._replay()

    def _capture(self, arguments: tuple[Tensor, ...]) -> None:
        step, buffers = self._step, [argument.clone() for argument in arguments]
        self._buffers = buffers
        try:
            self._replay = self._recorder.record(lambda: step(*buffers))
        except RuntimeError as error:
            CapturedStep.given_up = True
            cause: BaseException = error
            while cause.__context__ is not None:  # what failed in the step, behind the failure of the capture
                cause = cause.__context__
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            tell_once(f"a training step could not be captured, and steps are launched one by one ({reason})")


class CapturedUpdate:
    """An update that is captured and replayed.

    Args:
        update: must not hold what holds this object, or the memory of the graph is not freed with the run.
    """

    def __init__(self, update: Update, device: torch.device) -> None:
        drawn: list[Augmentation | None] = [None]

        def of_tensors(lr: Tensor, index: Tensor, *draws: Tensor) -> None:
            update(lr, index, None if drawn[0] is None else drawn[0].with_tensors(draws))

        self._drawn = drawn
        self._step = CapturedStep(of_tensors, device)

    @property
    def replaying(self) -> bool:
        """Whether it has been captured."""
        return self._step.replaying

    def __call__(self, lr: Tensor, index: Tensor, augmentation: Augmentation | None) -> None:
        self._drawn[0] = augmentation
        self._step(lr, index, *(() if augmentation is None else augmentation.tensors().values()))


def why_not_captured(config: RunConfig, model: nn.Module, probes: Mapping[str, Any], *, stacked: bool) -> str | None:
    """Why the steps of a run, or of a stack of such runs, are not all alike to the device; None where they are."""
    if config.model.name not in MODELS or config.norm.kind not in NORMS:
        return "what a user's package does in a step is not known"
    if config.norm.option("freeze_at") is not None:
        return "norm.freeze_at: layers change their mode"
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.momentum is None for m in model.modules()):
        return "norm.momentum=null: the average over all steps is counted on the host"
    if stochastic_layers(model):
        return "noise and dropout draw from generators that are seeded anew each epoch"
    if stacked and config.optim.name in ("adam", "adamw"):
        return f"optim={config.optim.name}: a stack counts its steps on the host"
    steps = sorted(set(probes) & set(STEP_PROBES))
    return f"probes=[{','.join(steps)}] look in between" if steps else None


def captures(config: RunConfig, model: nn.Module, probes: Mapping[str, Any], *, stacked: bool) -> bool:
    """Whether steps can be captured; stderr is told, once, why not."""
    reason = why_not_captured(config, model, probes, stacked=stacked)
    if reason is not None:
        tell_once(f"some runs' steps are launched one by one, not as a graph ({reason})")
    return reason is None


@cache
def tell_once(message: str) -> None:
    """Say it on stderr, the first time that this process has it to say."""
    print(f"bnexp: {message}", file=sys.stderr)
