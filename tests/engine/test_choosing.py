"""`exec.executor=auto`: what is timed, what follows from it, and what the user is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.engine import choosing
from bnexp.engine.choosing import Choice
from bnexp.engine.estimate import Estimator
from bnexp.engine.worker import Job
from bnexp.planned import make_plan
from bnexp.store import Store

SMALL = ("epochs=1", "data.train_limit=200", "model.depth=2", "model.width=4", "exec.precision=fp32", "lr=0.01")
SEEDS = "seed=0,1,2,3"


@pytest.fixture(autouse=True)
def _always_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 0)


def choice(*argv: str) -> Choice:
    plan = make_plan(request_from_argv(["-m", *SMALL, "exec.slots=2", *argv]))
    return plan.batches(plan.runs, executor="auto")


def widths(found: Choice) -> list[tuple[str, int]]:
    return [(batch[0].config.norm.kind, len(batch)) for batch in found.batches]


def pace(monkeypatch: pytest.MonkeyPatch, gains: dict[str, float]) -> None:
    """A run alone takes a second, and a stack takes as long as its norm's gain says; workers are forked, and see it."""

    def of_training(self: Estimator, batch: Sequence[Job]) -> float:
        return 1.0 if len(batch) == 1 else len(batch) / gains[batch[0].config.norm.kind]

    monkeypatch.setattr(Estimator, "of_training", of_training)


def test_what_is_faster_side_by_side_goes_side_by_side_and_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pace(monkeypatch, {"none": 3.0, "batch": 1.05})
    found = choice("norm=none,batch", SEEDS)
    assert widths(found) == [("none", 2), ("none", 2), *[("batch", 1)] * 4]
    assert found.reason == (
        "4 runs side by side, 2 at once, timed to be 3.0 times as fast as alone; "
        "4 runs alone, which were timed to be as fast so"
    )


def test_gains_are_told_as_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    pace(monkeypatch, {"none": 3.0, "batch": 1.5})
    reason = choice("norm=none,batch", SEEDS).reason
    assert reason == "8 runs side by side, 2 at once, timed to be 1.5 to 3.0 times as fast as alone"


def test_what_cannot_go_side_by_side_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pace(monkeypatch, {"batch": 2.0})
    found = choice("probes=[gradients]", "model=mlp,lstm", SEEDS)
    assert widths(found) == [("batch", 1)] * 8
    assert found.reason == (
        "4 runs alone: probes=[gradients] look at every step of one network; "
        "4 runs alone: model=lstm is recurrent, and its steps are not laid side by side"
    )
    plan = make_plan(request_from_argv(["-m", *SMALL, "exec.executor=stacked", "model=cnn,lstm", "seed=0"]))
    assert plan.batches(plan.runs, executor="stacked").reason.startswith("1 run alone: model=lstm is recurrent")


def test_too_few_steps_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FEW_STEPS", 13)  # four runs of three batches of 64
    monkeypatch.setattr(choosing, "_timed", lambda samples, *_: pytest.fail(str(samples)) if samples else {})
    found = choice(SEEDS)
    assert widths(found) == [("batch", 1)] * 4
    assert found.reason == ""


def test_a_stack_that_kills_its_timing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Estimator, batch: Sequence[Job]) -> float:
        raise SystemExit(1)

    monkeypatch.setattr(Estimator, "of_training", die)
    assert widths(choice(SEEDS)) == [("batch", 1)] * 4


@pytest.mark.parametrize(("gain", "stack"), [(2.0, 2), (1.0, None)])
def test_a_sweep_says_how_it_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gain: float, stack: int | None
) -> None:
    pace(monkeypatch, {"batch": gain})
    assert main(["train", "-m", *SMALL, SEEDS, "exec.slots=2", f"results={tmp_path}"]) == 0
    assert [record.exec.get("stack") for record in Store(tmp_path).records(None)] == [stack] * 4
    assert ("side by side" if stack else "4 runs alone") in capsys.readouterr().out


def test_timings_are_real() -> None:
    assert "timed to be" in choice(SEEDS).reason
