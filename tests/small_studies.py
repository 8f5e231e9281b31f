"""Studies of a few tiny runs on the embedded digits, for the tests that declare their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def tier(**changes: Any) -> dict[str, Any]:
    """A tier of six seeds; changes go to `fixed`, but for axes, margin, target and widen."""
    own = {key: changes.pop(key) for key in ("axes", "margin", "target", "widen") if key in changes}
    fixed = {"epochs": 1, "data.train_limit": 100, "model.width": 4, "exec.precision": "fp32", **changes}
    return {"fixed": fixed, "axes": {"seed": [0, 1, 2, 3, 4, 5]}, "margin": 0.01, **own}


def declared(name: str, **changes: Any) -> dict[str, Any]:
    """The content of a study file: no norm against batch norm, but for the changes."""
    return {
        "name": name, "number": 1, "question": "Does it help?", "claim": "It helps.", "known": "Nothing is known.",
        "sources": {"a": "it helps"}, "against": {}, "arms": {"none": {"norm": "none"}, "batch": {"norm": "batch"}},
        "comparisons": [{"treatment": "batch", "control": "none", "shape": "difference", "direction": "higher"}],
        "strata": [], "choose": {"factor": "lr", "metric": "val_accuracy"}, "metric": "test_accuracy",
        "tiers": {"small": tier()}, **changes,
    }  # fmt: skip


def write_study(config_dir: Path, name: str, **changes: Any) -> Path:
    """Declare a study in a folder for --config-dir."""
    path = config_dir / "study" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(declared(name, **changes), sort_keys=False))
    return path
