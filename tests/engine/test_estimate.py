"""What `bnexp plan` says of time: sums by hand, with known paces, and one pace held against a real training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine import estimate
from bnexp.engine.estimate import Pace, time_pace
from bnexp.engine.loop import train_run
from bnexp.engine.stacked import train_stack
from bnexp.errors import RunError
from bnexp.plan import estimate_seconds
from bnexp.planned import Plan, make_plan
from bnexp.runner import train
from tests.small_studies import tier, write_study

# digits: 128 training, 30 validation and 360 test images; 4 steps an epoch
TINY = ("data.train_limit=128", "data.val_fraction=0.02", "batch_size=32", "epochs=3", "model.width=4",
        "model.depth=2", "exec.threads=1", "exec.precision=fp32")  # fmt: skip


def planned(tmp_path: Path, *argv: str) -> Any:
    return make_plan(request_from_argv([f"results={tmp_path}", *TINY, *argv]))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths that were timed: a step takes 2 s, or 3 s side by side, and an image 0.01 s."""
    widths: list[int] = []

    def pace(configs: Sequence[RunConfig], *_: Any) -> Pace:
        widths.append(len(configs))
        return Pace(2.0 if len(configs) == 1 else 3.0, 0.01)

    monkeypatch.setattr(estimate, "time_pace", pace)
    return widths


def sizes(plan: Any) -> tuple[int, int, int]:
    data = plan.worker.data(plan.runs[0].config.data)
    return len(data.train_y), len(data.val_y), len(data.test_y)


def seconds(plan: Plan, executor: str) -> float:
    return estimate_seconds(plan, plan.batches(plan.todo, executor=executor).batches)


def seconds_of_one(plan: Any) -> float:
    """Twelve steps; validation after each of three epochs, and all three splits at the end."""
    num_train, num_val, num_test = sizes(plan)
    assert num_train == 128
    return 12 * 2.0 + 0.01 * (3 * num_val + num_train + num_val + num_test)


def test_evaluation_is_in_the_time_of_a_run(tmp_path: Path, timed: list[int]) -> None:
    plan = planned(tmp_path)
    assert seconds(plan, "auto") == pytest.approx(seconds_of_one(plan))
    assert timed == [1]


def test_each_shape_is_timed_once_and_workers_take_the_next_run_when_they_are_free(
    tmp_path: Path, timed: list[int]
) -> None:
    plan = planned(tmp_path, "-m", "lr=0.1,0.2", "seed=0,1,2", "exec.slots=4")
    assert seconds(plan, "process") == pytest.approx(2 * seconds_of_one(plan))  # six runs, four at a time
    assert timed == [1]


def test_a_stack_is_timed_at_its_width(tmp_path: Path, timed: list[int]) -> None:
    plan = planned(tmp_path, "-m", "lr=0.1,0.2", "seed=0,1,2", "exec.slots=2", "exec.executor=stacked")
    num_train, num_val, num_test = sizes(plan)
    side_by_side = 12 * 3.0 + 0.01 * (4 * num_val + num_train + num_test)
    assert seconds(plan, "stacked") == pytest.approx(side_by_side)  # two stacks of three, at once
    assert timed == [3]


def test_what_cannot_be_stacked_is_timed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pace(configs: Sequence[RunConfig], *_: Any) -> Pace:
        if len(configs) > 1:
            raise RunError("no")
        return Pace(2.0, 0.01)

    monkeypatch.setattr(estimate, "time_pace", pace)
    plan = planned(tmp_path, "-m", "seed=0,1,2", "exec.slots=1", "exec.executor=stacked")
    assert seconds(plan, "stacked") == pytest.approx(3 * seconds_of_one(plan))


def test_probes_are_in_the_time_as_often_as_they_measure(
    tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, "probes=[gradients,statistics,robustness]", "probes.gradients.every=5")
    num_train, _, num_test = sizes(plan)

    def measured(config: RunConfig, data: Any, *_: Any, **options: Any) -> tuple[list[Any], float]:
        # a pace of 0.1 s an image: three evaluations, and half of the training images for each of two norms
        assert set(options["probes"]) == {"statistics"}
        return [], 0.1 * (3 * len(data.test_y) + len(data.train_y))

    real = train_run

    def trained(*arguments: Any, **options: Any) -> Any:
        outcome = real(*arguments, **options)
        assert {row["probe"] for row in outcome.probes} == {"gradients"}
        assert {row["step"] for row in outcome.probes} == {0}
        outcome.seconds["probes"] = 7.0
        return outcome

    monkeypatch.setattr(estimate, "measure_trained", measured)
    monkeypatch.setattr(estimate, "train_run", trained)
    expected = seconds_of_one(plan) + 3 * 7.0 + 0.1 * (3 * num_test + num_train)  # at steps 0, 5 and 10
    assert seconds(plan, "auto") == pytest.approx(expected)


def test_a_trained_run_takes_the_time_of_what_is_still_to_be_measured(
    tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [f"results={tmp_path}", *TINY]
    assert train(request_from_argv(argv)) == 0
    plan = planned(tmp_path)
    assert seconds(plan, "auto") == 0
    monkeypatch.setattr(estimate, "measure_trained", lambda *_, **options: ([], 1.0))
    monkeypatch.setattr(estimate, "statistics_images", lambda data, num_norms: num_norms * len(data.train_y))
    plan = planned(tmp_path, "probes=[statistics]")
    assert seconds(plan, "auto") == pytest.approx(128 / 64)  # timed with 64 images
    assert timed == []


def test_a_network_without_norms_is_evaluated_once_for_the_statistics(tmp_path: Path) -> None:
    plan = planned(tmp_path, "norm=none")
    data = plan.worker.data(plan.runs[0].config.data)
    assert estimate.statistics_images(data, 0) == len(data.test_y)
    assert estimate.statistics_images(data, 4) == 3 * len(data.test_y) + 2 * 128


@pytest.mark.parametrize("width", [1, 3])
def test_a_pace_is_that_of_the_training_itself(tmp_path: Path, width: int) -> None:
    plan = planned(tmp_path, "-m", f"seed=range({width})")
    plan.worker.start()
    configs = [replace(run.config, epochs=40) for run in plan.runs]
    data = plan.worker.data(configs[0].data)
    pace = time_pace([run.config for run in plan.runs], plan.worker, data)
    if width == 1:
        outcomes = [train_run(configs[0], data, plan.worker.device)]
    else:
        outcomes = train_stack(configs, data, plan.worker.device)
    train_seconds, eval_seconds = (sum(outcome.seconds[key] for outcome in outcomes) for key in ("train", "eval"))
    num_train, num_val, num_test = sizes(plan)
    trained = Pace(train_seconds / 160, eval_seconds / (41 * num_val + num_train + num_test))
    for told, measured in zip(pace, trained, strict=True):  # a busy machine may be a few times slower at any moment
        assert measured / 5 < told < 5 * measured


def test_the_plan_says_what_its_minutes_are_of(
    tmp_path: Path, timed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"results={tmp_path}", *TINY, "probes=[gradients,cost,robustness]"]
    assert main(["plan", *argv]) == 0
    told = capsys.readouterr().out
    assert "1 at a time (training, evaluation, probe gradients; without probe cost, robustness), at most" in told
    assert main(["plan", "--json", *argv]) == 0
    assert set(json.loads(capsys.readouterr().out)["not_in_minutes"]) == {"cost", "robustness"}
    write_study(tmp_path, "mine", tiers={"small": tier(probes=["statistics"])})
    asked = ["--config-dir", str(tmp_path), "-m", f"results={tmp_path}", "study=mine", "stop=decided"]
    assert main(["plan", *asked, "exec.executor=stacked"]) == 0
    told = capsys.readouterr().out
    assert "stacks of runs at a time (training, evaluation, probe statistics; fewer where seeds are left out" in told
