"""The state of a run at the end of an epoch: enough to go on bit for bit."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
    """Write atomically; a crash leaves the last whole checkpoint.

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
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none or it is unreadable: the run then starts over."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, EOFError, RuntimeError, pickle.UnpicklingError):
        return None
    return dict(state) if isinstance(state, dict) and set(state) >= KEYS else None
