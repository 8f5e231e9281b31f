"""What a frame says of a run's seconds: what they depend on, and how much of them it had a core for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bnexp.analysis.frame import load_frame
from bnexp.records import RunRecord
from bnexp.store import Store

HERE = {"device": "cpu (a CPU, 2 cores)", "threads": 1}


def row(root: Path, *, seconds: dict[str, float], where: dict[str, Any] = HERE, **execution: Any) -> dict[str, Any]:
    store = Store(root)
    final = {"chance_test_accuracy": 0.1, "test_accuracy": 0.9}
    store.write_record(RunRecord("run", "cell", "finished", {"lr": 0.1}, execution, final, seconds, where))
    return dict(load_frame(store, None).runs.iloc[0])


@pytest.mark.parametrize(
    ("seconds", "where", "share"),
    [
        ({"train": 2.0, "cpu": 1.5}, HERE, 0.75),
        ({"train": 2.0}, HERE, math.nan),  # of an older version
        ({"train": 2.0, "cpu": 3.0}, HERE | {"threads": 2}, math.nan),
        ({"train": 2.0, "cpu": 0.5}, HERE | {"device": "NVIDIA H200"}, math.nan),
        ({"train": 0.0, "cpu": 0.0}, HERE, math.nan),
    ],
)
def test_the_share_of_a_core(tmp_path: Path, seconds: dict[str, float], where: dict[str, Any], share: float) -> None:
    assert row(tmp_path, seconds=seconds, where=where)["core_share"] == pytest.approx(share, nan_ok=True)


def test_what_seconds_depend_on(tmp_path: Path) -> None:
    seconds = {"train": 1.0}
    assert row(tmp_path, seconds=seconds)["timed"] == "device cpu (a CPU, 2 cores), threads 1, 1 side by side"
    assert row(tmp_path, seconds=seconds)["in_flight"] == 1
    assert row(tmp_path, seconds=seconds, in_flight=4)["in_flight"] == 4
    told = row(tmp_path, seconds=seconds, stack=8, captured=True)["timed"]
    assert told == "device cpu (a CPU, 2 cores), threads 1, 8 side by side, steps as a graph"
