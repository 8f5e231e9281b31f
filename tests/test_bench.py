"""The benchmark: both sides train the same network, and its table says what was timed."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnexp import bench
from bnexp.bench import bench_size, compared_commands, main, measure, sweep_configs, textbook, written
from bnexp.bench.measure import Timing, _Utilization, time_runs, time_textbook, training_flops
from bnexp.bench.networks import network
from bnexp.bench.sizes import NUM_CLASSES, SIZES, Size
from bnexp.bench.textbook import train
from bnexp.bench.written import convolutions_alone, convolutions_of, epochs
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine.build import build_network

CPU = torch.device("cpu")


def _config(size: Size) -> RunConfig:
    (config,) = request_from_argv(size.arguments()).configs
    return config


@pytest.mark.parametrize("name", list(SIZES))
def test_the_textbook_loop_trains_the_same_network(name: str) -> None:
    size = SIZES[name]
    ours = build_network(_config(size), in_channels=size.channels, image_size=size.side, num_classes=NUM_CLASSES)
    other_network = network(size)
    theirs = list(other_network.parameters())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            other.copy_(mine)
    x = torch.randn(4, size.channels, size.side, size.side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other_network.train()(x), ours.train()(x), rtol=1e-4, atol=1e-5)


def test_the_textbook_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    size = SIZES["tiny"]
    host = size.host()
    steps = list(train(size, host, CPU, epochs=3, seed=0))
    assert steps == [size.batch_size] * (3 * (len(host.split.train) // size.batch_size))
    test = float(capsys.readouterr().out.splitlines()[-1].removeprefix("test "))
    assert test > 0.5  # chance is 0.1


def test_neither_side_is_charged_for_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("evaluated")

    monkeypatch.setattr(textbook, "_accuracy", never)
    size = SIZES["tiny"]
    assert time_textbook(size, size.host(), CPU, seconds=0.5).rate > 0  # several epochs


def test_first_epoch_is_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_run(config: RunConfig, *_: object, on_epoch: Callable[[dict[str, float]], None], **__: object) -> Any:
        yield
        for epoch in range(1, config.epochs + 1):  # a slow first epoch, then one of 0.5 s each
            on_epoch({"epoch": epoch, "train_seconds": 100.0 if epoch == 1 else 0.5})

    monkeypatch.setattr(measure.train_run, "in_steps", train_run)
    size, host = SIZES["tiny"], SIZES["tiny"].host()
    per_epoch = len(host.split.train) // size.batch_size * size.batch_size
    timing = time_runs([[_config(size)]], host, CPU, threads=1, seconds=200.0)
    assert timing.rate == pytest.approx(per_epoch / 0.5)


def test_flops_of_the_tiny_network_by_hand() -> None:
    # convolutions at 8×8 and, behind the pool, at 4×4, then 16 values to 10 classes: two operations a weight and use
    forward = 2 * (8 * 8 * 1 * 8 * 9 + 4 * 4 * 8 * 16 * 9 + 16 * 10)
    assert training_flops(_config(SIZES["tiny"]), SIZES["tiny"]) == 3 * forward


def test_every_contender_is_timed_in_pairs() -> None:
    found = bench_size(SIZES["tiny"], CPU, repeats=2, seconds=0.05, command=False)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["textbook loop"]["ratios"] == [1.0, 1.0]
    assert all(len(row["ratios"]) == 2 and row["rate"] > 0 and row["memory"] > 0 for row in found["rows"])
    assert any("stacks of" in name for name in rows)
    assert "command" not in found


def test_whole_commands_are_timed_to_their_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "EPOCHS", 1)
    monkeypatch.setattr(bench, "bench_size", lambda size, *_, **options: {
        "size": size.name, "what": size.what, "batch_size": 32, "precision": "fp32", "rows": [], "flops_per_image": 1,
        "command": bench._commands(size, options["other_commands"], num_runs=2, rounds=2),
    })  # fmt: skip
    sleeper = [sys.executable, "-c", "import sys, time; assert sys.argv[1:] == ['tiny', '2', '1']; time.sleep(0.5)"]
    assert main(["tiny", "--command", "--seconds", "0.05"], other_commands={"sleeper": sleeper}) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    timed = r"[\d.]+ s \([\d.]+ times bnexp's\)"
    assert re.fullmatch(
        rf"  whole command, 2 runs of 1 epochs: textbook loop {timed}; sleeper {timed}; bnexp [\d.]+ s", told
    )
    assert compared_commands({"seconds": {"other": [3.0, 8.0, 4.0], "bnexp": [2.0, 2.0, 1.0]}}) == [
        ("other", 4.0, " (4.0 times bnexp's)"),  # of the ratios 1.5, 4 and 4
        ("bnexp", 2.0, ""),
    ]


def test_bench_prints_json_and_refuses_an_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--repeats", "1", "--seconds", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["matmul_peak"] > 1e9
    (table,) = found["sizes"]
    assert all(0 < row["peak_fraction"] < 1 for row in table["rows"])


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from bnexp.cli import main as cli

    assert cli(["bench", "tniy"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
    assert cli(["bench", "tiny", "--repeats", "0"]) == 2
    assert capsys.readouterr().err == "bnexp: --repeats: 0: expected a number above 0\n"


@pytest.mark.parametrize("name", list(SIZES))
def test_convolutions_alone_are_those_that_the_flops_are_of(name: str) -> None:
    size = SIZES[name]
    config = replace(size, batch_size=2)
    flops = 0.0
    for conv, (_, channels, height, width) in convolutions_of(config):
        places = (height // conv.stride[0]) * (width // conv.stride[1])
        flops += 2 * places * channels * conv.out_channels * 9
    head = next(module for module in network(size).modules() if isinstance(module, torch.nn.Linear))
    assert 3 * (flops + 2 * head.in_features * head.out_features) == training_flops(_config(size), size)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_hand_written_loop_learns(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    size, host = SIZES["tiny"], SIZES["tiny"].host()
    networks: list[torch.nn.Module] = []
    monkeypatch.setattr(written, "network", lambda size: networks.append(network(size)) or networks[0])
    counts = [count for count, _ in zip(epochs(size, host, CPU, bf16=bf16), range(4), strict=False)]
    assert counts == [len(host.split.train) // size.batch_size * size.batch_size] * 4
    (model,) = networks
    mean, std = (torch.from_numpy(each).view(1, -1, 1, 1) for each in (host.mean, host.std))
    x = (torch.from_numpy(host.images.test_images) / 255 - mean) / std
    right = model.eval()(x.float()).argmax(1) == torch.from_numpy(host.images.test_labels)
    assert right.float().mean() > 0.5  # chance is 0.1
    assert convolutions_alone(size, host, CPU, 0.05, bf16=bf16) > 0


def test_a_sweep_on_a_gpu_is_in_flight_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES["tiny"]
    tasks: list[tuple[Any, ...]] = []

    def noted(device: torch.device, given: list[measure.Task], seconds: float) -> Timing:
        tasks.extend(task[1] for task in given)
        return Timing(1.0, 1)

    monkeypatch.setattr(measure, "_timed", noted)
    contenders = bench.contenders_of(size, size.host(), sweep_configs(size, CPU), torch.device("cuda"))
    names = list(contenders)
    assert names[-2:] == ["sweep of 16, 4 at a time", "sweep of 16, 4 stacks of 4 at a time"]
    for name in names[-2:]:
        contenders[name](seconds=0.05)
    assert [len(task[0]) for task in tasks] == [4, 4]
    batches, host, _, threads, seconds = tasks[1]
    ((rate, _),) = measure.in_processes(CPU, [(measure._ours, (batches, host, CPU, threads, seconds))])
    assert rate > 0


def test_utilization_is_that_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teller = tmp_path / "nvidia-smi"
    teller.write_text("#!/bin/sh\nprintf '0\\n[N/A]\\n0\\n80\\n90\\n100\\n'\nexec sleep 100\n")
    teller.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with _Utilization(torch.device("cuda")) as utilization:
        time.sleep(0.5)
    assert utilization.last(0.6) == 90
    with _Utilization(CPU) as nothing:
        pass
    assert math.isnan(nothing.last(0.6))
