"""On CUDA a training step is captured once and replayed: the host launches one graph in place of hundreds of kernels.

The step has to be the same kernels on the same memory each time, and must not wait for the device or draw on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bnexp.config import RunConfig
from bnexp.nn import MODELS, NORMS
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
    """CUDA graphs. Source: PyTorch's notes on CUDA semantics, "whole-network capture"."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

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


class CapturedStep:
    """A step that is called a few times, then captured, and replayed from there on.

    Where it cannot be captured it goes on being called, and stderr is told why.

    Args:
        step: computes on its arguments, and on tensors that keep their place; its results go to such tensors.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self._step = step
        self._recorder: Recorder = CudaRecorder()
        self._num_calls = 0
        self._buffers: list[Tensor] = []
        self._replay: Callable[[], None] | None = None

    def __call__(self, *arguments: Tensor) -> None:
        """Make one step; arguments have the same shapes each time."""
        if self._num_calls == WARM_UP_CALLS:
            self._capture(arguments)
        self._num_calls += 1
        if self._replay is None:
            self._recorder.aside(lambda: self._step(*arguments))
            return
        for buffer, argument in zip(self._buffers, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        self._replay()

    def _capture(self, arguments: tuple[Tensor, ...]) -> None:
        self._buffers = [argument.clone() for argument in arguments]
        try:
            self._replay = self._recorder.record(lambda: self._step(*self._buffers))
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"bnexp: a training step could not be captured and is launched each time ({reason})", file=sys.stderr)


def can_capture(config: RunConfig, model: nn.Module, probes: Mapping[str, Any]) -> bool:
    """Whether each step of a run, or of a stack of such runs, is the same kernels and nothing looks in between.

    Draws of stochastic layers come from generators that are seeded anew each epoch, frozen statistics change the
    mode of a layer, and what a user's package does is not known.
    """
    return (
        config.model.name in MODELS
        and config.norm.kind in NORMS
        and config.norm.option("freeze_at") is None
        and not set(probes) & set(STEP_PROBES)
        and not stochastic_layers(model)
    )
