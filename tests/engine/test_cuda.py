"""What only a GPU can show: `pytest -m gpu`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from bnexp.bench.sizes import SIZES
from bnexp.bench.written import convolutions_alone, epochs, hand_written
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.data import load_images
from bnexp.engine.build import DeviceData, load_host_data, to_device
from bnexp.engine.captured import CapturedStep
from bnexp.engine.device import settle_process
from bnexp.engine.lanes import Lanes
from bnexp.engine.loop import Outcome, train_run
from bnexp.engine.pool import to_pool
from bnexp.engine.stacked import train_stack
from bnexp.runner import train
from bnexp.store import Store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SMALL = ("model.width=8", "model.depth=2", "batch_size=64", "epochs=3", "exec.precision=fp32")


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def on_gpu(cuda: torch.device) -> DeviceData:
    settle_process(1, cuda)
    return to_device(load_host_data(runs_of()[0].data, None), cuda)


def runs_of(*argv: str) -> list[RunConfig]:
    return list(request_from_argv(["-m", *SMALL, *argv]).configs)


def assert_alike(one: Outcome, other: Outcome) -> None:
    """To what the order of sums leaves open, which grows from epoch to epoch: atomic additions of a GPU come in any."""
    assert one.status == other.status
    for before, after, within in zip(one.history, other.history, (1e-3, 1e-2, 1e-1), strict=True):
        assert after["train_loss"] == pytest.approx(before["train_loss"], rel=within)


@pytest.mark.parametrize(
    "argv",
    [
        ("norm=batch", "lr=0.1", "schedule=cosine"),
        ("norm=batch", "lr=0.1", "data.augment=crop_flip"),
        ("norm=batch", "lr=0.001", "optim=adamw"),
        ("norm=layer", "lr=0.05", "optim.clip_norm=0.1"),
        ("norm=batch_renorm", "lr=0.05"),
        ("norm=group", "lr=0.05", "optim=rmsprop"),
        ("model=resnet", "model.depth=8", "norm=batch", "lr=0.05", "exec.precision=bf16"),
    ],
)
def test_a_step_is_captured_and_changes_nothing(
    on_gpu: DeviceData, cuda: torch.device, argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = runs_of(*argv)
    plain, captured = train_run(config, on_gpu, cuda), train_run(config, on_gpu, cuda, captured=True)
    assert captured.captured, capsys.readouterr().err
    assert_alike(plain, captured)


@pytest.mark.parametrize("argv", [("optim=sgd", "lr=0.03,0.1"), ("optim=adamw", "lr=0.001,0.003")])
def test_a_stack_is_captured_and_changes_nothing(on_gpu: DeviceData, cuda: torch.device, argv: tuple[str, ...]) -> None:
    configs = runs_of("norm=batch", *argv, "seed=0,1")
    alone = [train_run(config, on_gpu, cuda) for config in configs]
    for one, other in zip(alone, train_stack(configs, on_gpu, cuda, captured=True), strict=True):
        assert other.captured
        assert_alike(one, other)


def test_a_stack_whose_runs_have_splits_of_their_own_is_captured_and_changes_nothing(cuda: torch.device) -> None:
    settle_process(1, cuda)
    pool = to_pool(load_images("digits", root=None, image_size=None), cuda)
    configs = runs_of("norm=batch", "lr=0.03,0.1", "seed=0,1", "data.split=per_seed", "data.augment=crop_flip")
    draws = [pool.draw(config.data, config.seed) for config in configs]
    alone = [train_run(config, draw.gathered(), cuda) for config, draw in zip(configs, draws, strict=True)]
    for one, other in zip(alone, train_stack(configs, draws, cuda, captured=True), strict=True):
        assert other.captured
        assert_alike(one, other)
        assert one.predictions is not None
        assert other.predictions is not None
        assert one.predictions.image.tolist() == other.predictions.image.tolist()
        assert one.predictions.label.tolist() == other.predictions.label.tolist()


def test_what_is_in_flight_on_other_streams_changes_nothing(on_gpu: DeviceData, cuda: torch.device) -> None:
    configs = runs_of("norm=none,batch,layer", "lr=0.03,0.1")
    alone = [train_run(config, on_gpu, cuda) for config in configs]
    lanes: Lanes[Any] = Lanes(cuda, len(configs))
    for key, config in enumerate(configs):
        lanes.begin(key, train_run.in_steps(config, on_gpu, cuda, captured=True))
    found: dict[int, Outcome] = {}
    while lanes:
        found.update(lanes.advance())
    for key, outcome in enumerate(alone):
        assert found[key].captured
        assert_alike(outcome, found[key])


def test_a_captured_run_gives_its_memory_back(on_gpu: DeviceData, cuda: torch.device) -> None:
    (config,) = runs_of("norm=batch", "lr=0.1")
    reserved = []
    for _ in range(4):
        train_run(config, on_gpu, cuda, captured=True)
        gc.collect()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved(cuda))
    assert reserved[-1] <= reserved[0]
    assert not CapturedStep.given_up


@pytest.mark.parametrize("split", ["fixed", "per_seed"])
def test_a_sweep_on_a_gpu_ends_well(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    argv = ["-m", *SMALL, "norm=none,batch", "seed=0,1,2", f"results={tmp_path}", "exec.executor=graph",
            f"data.split={split}"]  # fmt: skip
    assert train(request_from_argv(argv)) == 0
    records = list(Store(tmp_path).records(None))
    assert len(records) == 6
    assert all(record.exec["captured"] and record.exec["in_flight"] == 4 for record in records)
    assert "bnexp:" not in capfd.readouterr().err
    assert all(len(Store(tmp_path).history(record.run_id)) == 3 for record in records)
    for record in records:
        kept = Store(tmp_path).predictions(record.run_id)
        assert kept is not None
        assert record.final["test_accuracy"] == (kept.predicted == kept.label).mean()


def test_the_loops_that_a_run_is_held_against_are_captured_too(cuda: torch.device) -> None:
    size = SIZES["tiny"]
    counts = [count for count, _ in zip(epochs(size, size.host(), cuda, bf16=True), range(3), strict=False)]
    assert len(set(counts)) == 1
    assert convolutions_alone(size, size.host(), cuda, 0.2, bf16=True) > hand_written(
        size, size.host(), cuda, 0.2, bf16=True
    )
