"""What the norm layers cost: time and memory of a training step, against the same network without them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bnexp.probes.base import Ending, Row

WARM_UP = 2  # steps of each network that are not counted: allocators and kernel choices settle
LEAST_PAIRS, MOST_PAIRS = 5, 30
ENOUGH_SECONDS = 1.0
MIB = 2**20

Step = Callable[[], None]


@dataclass(frozen=True)
class CostProbe:
    """A training step of this network and of its twin without norm layers, on the same batch and optimizer.

    The two are timed in turn, 5 to 30 times each or for about a second, so that what slows the machine down slows both.
    Whoever else computes there is still in `step_seconds`, less so in `step_ratio`.

    Quantities:
        step_seconds, step_seconds_without_norm: median time of a step: forward, backward, optimizer.
        step_ratio: median over pairs of the one divided by the other.
        saved_mib, saved_mib_without_norm: what autograd keeps from forward to backward, each storage once, without
            parameters and buffers, which are there anyway.
        peak_mib, peak_mib_without_norm: on CUDA, the most that a step allocates beyond what is there before it.

    Cost: about a second, or 8 pairs of steps where that is longer: 0.05 of a training epoch (4-layer
    cnn of width 16 with batch norm, 54,000 training images of 28×28, batch 128, one CPU thread).
    """

    def measure(self, ending: Ending) -> list[Row]:
        """One row for each quantity."""
        device = next(ending.model.parameters()).device
        networks = (ending.model, ending.twin())
        steps = [ending.step_of(network) for network in networks]
        for step in steps * WARM_UP:
            step()
        first, second = time_in_pairs(steps[0], steps[1], device)
        found = {
            "step_seconds": statistics.median(first),
            "step_seconds_without_norm": statistics.median(second),
            "step_ratio": statistics.median(a / b for a, b in zip(first, second, strict=True)),
        }
        for suffix, network, step in zip(("", "_without_norm"), networks, steps, strict=True):
            found["saved_mib" + suffix] = saved_bytes(network, step) / MIB
            if device.type == "cuda":
                found["peak_mib" + suffix] = _peak_bytes(step, device) / MIB
        return [ending.row("cost", quantity, value) for quantity, value in found.items()]


def time_in_pairs(first: Step, second: Step, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each call of the two, called in turn; which one begins changes from pair to pair."""
    seconds: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for pair in range(MOST_PAIRS):
        if pair >= LEAST_PAIRS and time.perf_counter() - started > ENOUGH_SECONDS:
            break
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[index].append(_seconds(first if index == 0 else second, device))
    return seconds


def saved_bytes(network: nn.Module, step: Step) -> int:
    """Bytes that autograd saves for backward in one call of `step`, each storage once, none of the network's own."""
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            found[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(found.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _peak_bytes(step: Step, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _seconds(step: Step, device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    step()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
