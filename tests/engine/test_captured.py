"""Captured steps, with a recorder that stands for CUDA's: a replay is given nothing but buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.engine import captured
from bnexp.engine.build import DeviceData
from bnexp.engine.captured import WARM_UP_CALLS, CapturedStep, can_capture
from bnexp.engine.loop import initial_network, train_run
from bnexp.engine.stacked import train_stack

CPU = torch.device("cpu")
SMALL = ("model.width=4", "model.depth=2", "batch_size=64", "epochs=3", "exec.precision=fp32")


class StandIn:
    """Counts what a device would be asked for; a recording is the call itself, made again at each replay."""

    replays = 0
    refuses = False

    def aside(self, call: Callable[[], None]) -> None:
        call()

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def replay() -> None:
            type(self).replays += 1
            call()

        return replay


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(captured, "CudaRecorder", StandIn)
    StandIn.replays, StandIn.refuses = 0, False
    return StandIn


def run_of(*argv: str) -> RunConfig:
    (config,) = request_from_argv([*SMALL, *argv]).configs
    return config


def test_arguments_are_copied_to_where_the_recording_reads_them() -> None:
    seen: list[tuple[float, int]] = []
    total = torch.zeros(())

    def step(x: torch.Tensor) -> None:
        seen.append((float(x), x.data_ptr()))
        total.add_(x)

    call = CapturedStep(step)
    for k in range(8):
        call(torch.tensor(float(k)))
    assert float(total) == sum(range(8))
    assert [value for value, _ in seen] == list(range(8))
    assert len({place for _, place in seen[WARM_UP_CALLS:]}) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("norm=batch", "lr=0.1", "schedule=cosine"),
        ("norm=batch", "lr=0.1", "data.augment=crop_flip"),
        ("norm=none", "lr=0.01", "optim=adamw"),
        ("norm=layer", "lr=0.1", "optim.clip_norm=0.1"),
        ("norm=batch_renorm", "lr=0.1"),
        ("norm=batch", "lr=1e30"),
    ],
)
def test_a_captured_run_is_the_plain_one(data: DeviceData, stand_in: type[StandIn], argv: tuple[str, ...]) -> None:
    config = run_of(*argv)
    plain, replayed = train_run(config, data, CPU), train_run(config, data, CPU, captured=True)
    assert stand_in.replays == plain.history[-1]["step"] - WARM_UP_CALLS
    assert plain.status == replayed.status
    for one, other in zip(plain.history, replayed.history, strict=True):
        for key in ("train_loss", "val_loss", "lr"):
            # a rate in fp32 moves last bits; a loss that is not finite is None
            assert other[key] == (None if one[key] is None else pytest.approx(one[key], rel=2e-4))
    if plain.weights is not None and replayed.weights is not None:
        for name, weight in plain.weights.items():
            torch.testing.assert_close(replayed.weights[name], weight, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("optim", ["sgd", "rmsprop"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_captured_stack_is_bitwise_the_plain_one(
    data: DeviceData, stand_in: type[StandIn], optim: str, augment: str
) -> None:
    configs = request_from_argv(
        ["-m", *SMALL, f"optim={optim}", f"data.augment={augment}", "lr=0.01,0.03", "seed=0,1", "schedule=cosine"]
    ).configs
    plain, replayed = train_stack(configs, data, CPU), train_stack(configs, data, CPU, captured=True)
    assert stand_in.replays == plain[0].history[-1]["step"] - WARM_UP_CALLS
    for one, other in zip(plain, replayed, strict=True):
        assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in other.history]
        assert one.final["test_loss"] == other.final["test_loss"]


def test_a_step_that_cannot_be_captured_goes_on_being_called(
    data: DeviceData, stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.refuses = True
    config = run_of("norm=batch", "lr=0.1")
    plain, tried = train_run(config, data, CPU), train_run(config, data, CPU, captured=True)
    assert stand_in.replays == 0
    assert tried.final["test_accuracy"] == pytest.approx(plain.final["test_accuracy"], abs=0.01)
    told = capsys.readouterr().err
    assert told == (
        "bnexp: a training step could not be captured and is launched each time "
        "(operation not permitted when stream is capturing)\n"
    )


@pytest.mark.parametrize(
    ("argv", "probes", "can"),
    [
        (("norm=batch",), {}, True),
        (("model=mlp", "norm=none"), {}, True),
        (("norm=batch",), {"robustness": {}}, True),  # of the trained network
        (("norm=batch",), {"gradients": {"every": 5}}, False),
        (("norm=noisy_batch",), {}, False),
        (("norm=batch", "model.dropout=0.1"), {}, False),
        (("norm=batch", "norm.freeze_at=1"), {}, False),
    ],
)
def test_what_can_be_captured(data: DeviceData, argv: tuple[str, ...], probes: dict[str, Any], can: bool) -> None:
    config = run_of(*argv)
    assert can_capture(config, initial_network(config, data), probes) is can


def test_adam_in_a_stack_is_not_captured(data: DeviceData, stand_in: type[StandIn]) -> None:
    configs = request_from_argv(["-m", *SMALL, "optim=adam", "lr=0.01", "seed=0,1"]).configs
    train_stack(configs, data, CPU, captured=True)
    assert stand_in.replays == 0


def test_graphs_are_refused_where_there_is_no_cuda(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"results={tmp_path}", "exec.device=cpu", "exec.executor=graph"]) == 2
    assert capsys.readouterr().err == (
        "bnexp: exec.executor: 'graph': captures what CUDA launches, and this is cpu; use auto\n"
    )
