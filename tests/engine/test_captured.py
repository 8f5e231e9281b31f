"""Captured steps, with a recorder that stands for CUDA's: what is recorded may not read from the device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import untimed
from torch.utils._python_dispatch import TorchDispatchMode

from bnexp.cli import main
from bnexp.compose import request_from_argv
from bnexp.config import RunConfig
from bnexp.data.augment import Augmentation
from bnexp.engine import captured, loop
from bnexp.engine.build import DeviceData
from bnexp.engine.captured import WARM_UP_CALLS, CapturedStep, tell_once, why_not_captured
from bnexp.engine.loop import Checkpointing, initial_network, train_run
from bnexp.engine.stacked import _start, _update_of, train_stack
from bnexp.engine.updates import CapturedUpdates

CPU = torch.device("cpu")
SMALL = ("model.width=4", "model.depth=2", "batch_size=64", "epochs=3", "exec.precision=fp32")


class NoHostReads(TorchDispatchMode):
    """Refuses what a stream that captures refuses: that the host waits for a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise RuntimeError(f"{func} while capturing\nand more")
        return func(*args, **(kwargs or {}))


class StandIn:
    """A recording is the call itself, made again at each replay; the first is watched for reads from the device.

    What is counted on the host goes on counting here, as in no graph: that is for `pytest -m gpu` to find.
    """

    replays = 0

    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def aside(self, call: Callable[[], None]) -> None:
        call()

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        watched = iter([NoHostReads()])

        def replay() -> None:
            type(self).replays += 1
            mode = next(watched, None)
            if mode is None:
                return call()
            with mode:
                return call()

        return replay


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(captured, "CudaRecorder", StandIn)
    monkeypatch.setattr(CapturedStep, "given_up", False)
    StandIn.replays = 0
    tell_once.cache_clear()
    return StandIn


def run_of(*argv: str) -> RunConfig:
    (config,) = request_from_argv([*SMALL, *argv]).configs
    return config


def test_every_step_gets_its_own_where_the_recording_reads_it() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    places: list[tuple[int, ...]] = []

    def update(lr: torch.Tensor, index: torch.Tensor, augmentation: Augmentation | None) -> None:
        assert augmentation is not None
        assert augmentation.dy is not None
        seen.append((lr.clone(), index.clone(), augmentation.dy.clone()))
        places.append(tuple(each.data_ptr() for each in updates._given))

    updates = CapturedUpdates(update, CPU)
    for epoch in range(2):
        order, dy = torch.randperm(12), torch.randint(0, 9, (12,))
        updates.begin([0.1 * epoch + k for k in range(4)], order, Augmentation(4, dy, dy, None))
        seen.clear()
        for _ in range(4):
            updates()
        for k, (lr, index, draws) in enumerate(seen):
            assert float(lr) == pytest.approx(0.1 * epoch + k)
            assert torch.equal(index, order[3 * k : 3 * k + 3])
            assert torch.equal(draws, dy[3 * k : 3 * k + 3])
    assert len(set(places)) == 1


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
    assert (plain.captured, replayed.captured) == (False, stand_in.replays > 0)  # one diverges in its first epoch
    assert plain.status == replayed.status
    for one, other in zip(plain.history, replayed.history, strict=True):
        for key in ("train_loss", "val_loss", "lr"):
            # a rate in fp32 moves last bits; a loss that is not finite is None
            assert other[key] == (None if one[key] is None else pytest.approx(one[key], rel=2e-4))
    if plain.weights is not None and replayed.weights is not None:
        for name, weight in plain.weights.items():
            torch.testing.assert_close(replayed.weights[name], weight, rtol=2e-3, atol=2e-5)


def test_a_captured_run_that_diverges_ends_at_the_step_of_the_plain_one(
    data: DeviceData, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECK_STEPS", 5)
    config = replace(run_of("norm=none", "lr=1e8"), batch_size=8)
    plain, replayed = train_run(config, data, CPU), train_run(config, data, CPU, captured=True)
    assert (plain.status, replayed.status) == ("diverged", "diverged")
    assert 5 <= plain.history[-1]["step"] < len(data.train_y) // config.batch_size
    assert stand_in.replays > plain.history[-1]["step"]  # for nobody looked before the epoch was over
    assert untimed(replayed.history) == untimed(plain.history)


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
        assert (one.captured, other.captured) == (False, True)
        assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in other.history]
        assert one.final["test_loss"] == other.final["test_loss"]


@pytest.mark.parametrize("optim", ["adam", "adamw"])
def test_a_captured_stack_counts_its_steps_on_the_device(
    data: DeviceData, stand_in: type[StandIn], tmp_path: Path, optim: str
) -> None:
    configs = request_from_argv(["-m", *SMALL, f"optim={optim}", "lr=0.003,0.01", "seed=0,1"]).configs
    plain = train_stack(configs, data, CPU)
    saved = [Checkpointing(tmp_path / f"{index}", 0.0) for index in range(len(configs))]

    def stop(index: int, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stack(configs, data, CPU, checkpointing=saved, captured=True, on_epoch=stop)
    stack, histories = _start(configs, data, CPU, saved, captured=True)
    count, index = stack.optimizer._count, torch.zeros(4, len(configs), dtype=torch.int64)
    assert isinstance(count, torch.Tensor)  # which a graph reads where it was; an int would be the same for ever
    assert int(count) == histories[0][-1]["step"]
    place = count.data_ptr()
    _update_of(stack)(torch.full((len(configs),), 0.01), index, None)
    assert stack.optimizer._count is count
    assert (count.data_ptr(), int(count)) == (place, histories[0][-1]["step"] + 1)
    rest = train_stack(configs, data, CPU, checkpointing=saved, captured=True)
    assert stand_in.replays > 0
    for one, other in zip(plain, rest, strict=True):
        assert other.captured
        for before, after in zip(one.history, other.history, strict=True):
            assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-4)


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_is_gone_on_from_either_way(data: DeviceData, tmp_path: Path, optim: str, first: bool) -> None:
    config = run_of("norm=batch", f"optim={optim}", "lr=0.01")
    whole = train_run(config, data, CPU)
    saved = Checkpointing(tmp_path / "checkpoint", 0.0)

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config, data, CPU, checkpointing=saved, captured=first, on_epoch=stop)
    rest = train_run(config, data, CPU, checkpointing=saved, captured=not first)
    assert [row["epoch"] for row in rest.history] == [1, 2, 3]
    assert rest.captured is not first
    assert rest.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-3)


def test_what_a_captured_run_held_is_freed_with_it(data: DeviceData, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[weakref.ref[CapturedStep]] = []
    real = CapturedStep.__init__

    def noted(self: CapturedStep, *arguments: Any) -> None:
        steps.append(weakref.ref(self))
        real(self, *arguments)

    monkeypatch.setattr(CapturedStep, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        train_run(run_of("norm=batch", "lr=0.1"), data, CPU, captured=True)
        configs = request_from_argv(["-m", *SMALL, "lr=0.01", "seed=0,1"]).configs
        train_stack(configs, data, CPU, captured=True)
        assert [step() for step in steps] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_step_that_cannot_be_captured_goes_on_being_called(
    data: DeviceData,
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stacked: bool,
) -> None:
    def record(self: StandIn, call: Callable[[], None]) -> Callable[[], None]:
        backward = torch.Tensor.backward

        def spoiled(loss: torch.Tensor) -> None:  # a capture leaves gradients that no kernel has filled
            backward(loss)
            raise RuntimeError("out of memory\nand more")

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", spoiled)
            try:
                call()
            except RuntimeError as error:
                raise RuntimeError("the capture failed") from error
        raise AssertionError

    monkeypatch.setattr(StandIn, "record", record)
    configs = request_from_argv(["-m", *SMALL, "norm=batch", "lr=0.1", "seed=0,1", "norm.momentum=1.0"]).configs

    def train(**options: bool) -> list[Any]:
        if stacked:
            return train_stack(configs, data, CPU, **options)
        return [train_run(config, data, CPU, **options) for config in configs]

    for plain, tried in zip(train(), train(captured=True), strict=True):
        assert not tried.captured
        assert tried.final["test_accuracy"] == pytest.approx(plain.final["test_accuracy"], abs=0.01)
        assert tried.history[-1]["train_loss"] == pytest.approx(plain.history[-1]["train_loss"], rel=1e-3)
    told = capsys.readouterr().err
    assert told == ("bnexp: a training step could not be captured, and steps are launched one by one (out of memory)\n")


def test_a_step_that_lacked_the_memory_to_be_captured_leaves_others_theirs(
    data: DeviceData, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(self: StandIn, call: Callable[[], None]) -> Callable[[], None]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("capture_end failed")  # noqa: B904 (as a context manager's end does)

    with monkeypatch.context() as patch:
        patch.setattr(StandIn, "record", record)
        assert not train_run(run_of("norm=batch"), data, CPU, captured=True).captured
    assert train_run(run_of("norm=batch"), data, CPU, captured=True).captured


@pytest.mark.parametrize(
    ("argv", "probes", "why"),
    [
        (("norm=batch",), {}, None),
        (("norm=batch", "optim=adam"), {}, None),
        (("model=mlp", "norm=none"), {}, None),
        (("norm=batch",), {"robustness": {}}, None),  # of the trained network
        (("norm=batch",), {"gradients": {"every": 5}}, "probes=[gradients] look in between"),
        (("norm=noisy_batch",), {}, "noise and dropout draw"),
        (("norm=batch", "model.dropout=0.1"), {}, "noise and dropout draw"),
        (("norm=batch", "norm.freeze_at=1"), {}, "norm.freeze_at"),
        (("norm=batch", "norm.momentum=null"), {}, "norm.momentum=null"),
    ],
)
def test_what_can_be_captured(data: DeviceData, argv: tuple[str, ...], probes: dict[str, Any], why: str | None) -> None:
    config = run_of(*argv)
    reason = why_not_captured(config, initial_network(config, data), probes)
    assert reason is None if why is None else reason is not None and reason.startswith(why)


def test_what_is_not_captured_is_said_once(
    data: DeviceData, stand_in: type[StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        outcome = train_run(run_of("norm=noisy_batch", f"seed={seed}"), data, CPU, captured=True)
        assert not outcome.captured
    assert stand_in.replays == 0
    assert capsys.readouterr().err == (
        "bnexp: some runs' steps are launched one by one, not as a graph (noise and dropout draw from generators that "
        "are seeded anew each epoch)\n"
    )


def test_graphs_are_refused_where_there_is_no_cuda(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"results={tmp_path}", "exec.device=cpu", "exec.executor=graph"]) == 2
    assert capsys.readouterr().err == (
        "bnexp: exec.executor: 'graph': captures what CUDA launches, and this is cpu; use auto\n"
    )
