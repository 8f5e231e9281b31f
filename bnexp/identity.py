"""A run is named by what it is: the hash of its whole resolved config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bnexp.config import RunConfig

# Raise it whenever the same config would give other numbers than before: old runs then keep their old names.
SCHEMA_VERSION = 2


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(config: RunConfig) -> str:
    """Sixteen hex digits that name this run, seed included."""
    return _digest(config.to_dict())


def cell_id(config: RunConfig) -> str:
    """Sixteen hex digits that name this run's cell: what its seeds have in common."""
    return _digest({key: value for key, value in config.to_dict().items() if key != "seed"})


def _digest(config: Mapping[str, Any]) -> str:
    text = canonical_json({"schema": SCHEMA_VERSION, "config": config})
    return hashlib.sha256(text.encode()).hexdigest()[:16]
