"""What is saved of a network: the state of a run at the end of an epoch, and the weights that it ended with."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.store import write_atomic

KEYS = frozenset(("model", "optimizer", "history", "probes", "wanted", "threads"))


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    history: list[dict[str, Any]],
    probes: list[dict[str, Any]],
    wanted: dict[str, dict[str, Any]],
) -> None:
    """Write enough to go on bit for bit, atomically; a crash leaves the last whole checkpoint.

    Args:
        probes: rows measured so far.
        wanted: the probes that measured them.

    Random draws need no state: each epoch's are seeded by the run's seed and the epoch.
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
        "probes": probes,
        "wanted": wanted,
        "threads": torch.get_num_threads(),
    }
    _save(path, state)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none or it is unreadable: the run then starts over."""
    state = _load(path, device)
    return state if state is not None and set(state) >= KEYS else None


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a state_dict atomically; `torch.load(path)` reads it anywhere. The same tensor twice is stored once."""
    on_cpu: dict[object, Tensor] = {}

    def moved(value: Any) -> Any:  # a user's model may keep other things in its state_dict
        if not isinstance(value, Tensor):
            return value
        return on_cpu.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), value.cpu())

    _save(path, {name: moved(value) for name, value in weights.items()})


def load_weights(path: Path) -> dict[str, Tensor] | None:
    """A saved state_dict, on the CPU, or None where there is none or it is unreadable."""
    return _load(path, torch.device("cpu"))


def _save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def _load(path: Path, device: torch.device) -> dict[str, Any] | None:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except (FileNotFoundError, EOFError, RuntimeError, pickle.UnpicklingError):
        return None
    return dict(state) if isinstance(state, dict) else None
