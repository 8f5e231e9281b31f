"""What the tests of training share: a small run on the embedded digits, and its history without the clock."""

from __future__ import annotations

from typing import Any

from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine.epochs import Row

TIMES = ("train_seconds", "cpu_seconds", "images_per_second")


def compose(*overrides: str) -> RunConfig:
    """200 digits and three epochs, but for the overrides; of two for one key the later counts."""
    base = {"exec.precision": "fp32", "data.train_limit": "200", "epochs": "3"}
    base |= dict(override.split("=", 1) for override in overrides)
    (config,) = request_from_argv([f"{key}={value}" for key, value in base.items()]).configs
    return config


def untimed(history: list[Row]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]
