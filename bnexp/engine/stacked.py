"""Trains many runs as one program: their networks side by side, each with its own data order, rates and fate.

A run in a stack has the initial values, the data order, the augmentations, the draws and the formulas that it has
alone; only the order in which sums are taken differs, and with it the last bits of every number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.config import RunConfig, Status
from bnexp.data.augment import Augmentation, apply_augmentation
from bnexp.engine.build import DeviceData, SplitFacts, build_network, build_optimizer, normalize
from bnexp.engine.captured import captures
from bnexp.engine.checkpoint import load_checkpoint, save_checkpoint
from bnexp.engine.epochs import (
    CHECK_STEPS,
    Row,
    draw_epoch,
    epoch_row,
    factor_at,
    freeze_or_go_on,
    seconds_of,
    with_validation,
)
from bnexp.engine.evaluation import EVAL_BATCH, at_chance, final_metrics, predictions_of
from bnexp.engine.lanes import Steps, Stepwise
from bnexp.engine.loop import Checkpointing, Outcome, initial_network
from bnexp.engine.pool import Draw
from bnexp.engine.stack_optim import StackedOptimizer
from bnexp.engine.step import at_least_fp32
from bnexp.engine.updates import CapturedUpdates, PlainUpdates, Update
from bnexp.errors import RunError
from bnexp.nn import MODELS, NORMS
from bnexp.nn.layers import stochastic_layers
from bnexp.nn.stack import StackedStochastic, network_state, stack_networks, why_not_stackable
from bnexp.nn.statistics import kept_modes
from bnexp.probes import STEP_PROBES
from bnexp.seeding import seed_for

RECURRENT = ("lstm", "gru")
EVAL_BATCH_EACH = 64  # images of each run at once: as fast as `EVAL_BATCH` of one, in a fraction of the memory


def why_not_stacked(config: RunConfig, probes: Mapping[str, Any]) -> str | None:
    """Why a run cannot be trained in a stack; None where it can.

    Args:
        probes: those that are wanted; of a trained network they are measured afterwards, which stands in no way.
    """
    if config.norm.kind not in NORMS:
        return f"norm={config.norm.kind} is a package's own, whose statistics may span all that it is given"
    if config.model.name not in MODELS:
        return f"model={config.model.name} is a package's own, whose layers bnexp does not know"
    if config.model.name in RECURRENT:
        return f"model={config.model.name} is recurrent, and its steps are not laid side by side"
    steps = sorted(set(probes) & set(STEP_PROBES))
    return f"probes=[{','.join(steps)}] look at every step of one network" if steps else None


def stack_key(config: RunConfig, probes: Mapping[str, Any]) -> Hashable | None:
    """What runs of one stack have in common: all but seed, lr, weight decay, and how weights are drawn.

    None where the run has to be trained alone.
    """
    if why_not_stacked(config, probes) is not None:
        return None
    return replace(
        config,
        seed=0,
        lr=0.0,
        model=replace(config.model, init="", init_gain=0.0),
        optim=replace(config.optim, weight_decay=0.0),
    )


@dataclass(frozen=True)
class _Images:
    """One split as the runs of a stack see it.

    Attributes:
        x: (N, C, H, W) uint8; y: (N,) int64.
        places: (M, K), where in `x` and `y` each run's images are; None: all runs see all of them, in their order.
    """

    x: Tensor
    y: Tensor
    places: Tensor | None

    def __len__(self) -> int:
        return len(self.y if self.places is None else self.places)

    def batches(self, batch_size: int, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raw images, (B, K·C, H, W), and labels, (B, K), of all in order, for `num` runs."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            if self.places is None:
                yield self.x[part].repeat(1, num, 1, 1), self.y[part][:, None].expand(-1, num)
            else:
                yield self.at(self.places[part])

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Raw images, (B, K·C, H, W), and labels, (B, K), at these places of `x` and `y`, (B, K)."""
        x = self.x.index_select(0, index.flatten())
        return x.view(len(index), -1, *x.shape[2:]), self.y[index]


@dataclass(frozen=True)
class _StackData:
    """The data of runs side by side.

    Attributes:
        splits: split -> its images.
        scale, shift: (1, K·C, 1, 1), of each run.
        facts: of each run's own splits.
    """

    splits: dict[str, _Images]
    scale: Tensor
    shift: Tensor
    facts: Sequence[SplitFacts]

    @property
    def train(self) -> _Images:
        return self.splits["train"]

    @property
    def device(self) -> torch.device:
        return self.train.x.device

    @property
    def image_size(self) -> int:
        return self.train.x.shape[-1]


@dataclass
class _Stack:
    """Runs that are trained together.

    Attributes:
        loss_sum, num_correct: (K,), of the epoch so far.
        captured: whether steps are to be captured.
    """

    configs: Sequence[RunConfig]
    data: _StackData
    model: nn.Module
    optimizer: StackedOptimizer
    loss_sum: Tensor
    num_correct: Tensor
    captured: bool

    @property
    def num(self) -> int:
        return len(self.configs)

    @property
    def config(self) -> RunConfig:
        """One of them, for what they have in common."""
        return self.configs[0]

    def reseed(self, purpose: str, *keys: int) -> None:
        for name, layer in stochastic_layers(self.model):
            assert isinstance(layer, StackedStochastic)
            seeds = [seed_for(config.seed, purpose, name, *keys) for config in self.configs]
            layer.reseed_each(seeds, self.data.device)


@Stepwise
def train_stack(
    configs: Sequence[RunConfig],
    data: DeviceData | Sequence[Draw],
    device: torch.device,
    *,
    checkpointing: Sequence[Checkpointing] = (),
    captured: bool = False,
    on_epoch: Callable[[int, Row], None] = lambda index, row: None,
    on_end: Callable[[int, Outcome], None] = lambda index, outcome: None,
) -> Steps[list[Outcome]]:
    """Train runs of one `stack_key` side by side; each ends as `train_run` would end it.

    Checkpoints are those that runs alone leave, one for each: runs that were stopped go on side by side where all have
    one of the same epoch, and each can go on alone.

    Seconds, which the runs spend together, are shared out in equal parts, also to runs that have diverged, for they are
    computed to the end; images_per_second is that of the stack.

    Args:
        configs: with a resolved precision.
        data: what all runs see, or what each of them has drawn from one pool.
        checkpointing: of each run; none of any where it is empty.
        captured: as in `train_run`.
        on_epoch: called with a run's place in `configs` and its new history row.
        on_end: called with its place and how it ended, as soon as it has.

    Raises:
        RunError: a network has a layer that cannot be laid side by side.
    """
    stack, histories = _start(configs, data, device, checkpointing, captured=captured)
    update = _update_of(stack)
    updates = CapturedUpdates(update, device) if stack.captured else PlainUpdates(update)
    alive = list(range(stack.num))
    eval_seconds = [0.0] * stack.num
    outcomes: dict[int, Outcome] = {}
    saved_at = time.perf_counter()

    def end(index: int, measured: Mapping[str, tuple[float, float, Tensor]] | None) -> None:
        seconds = eval_seconds[index]
        outcomes[index] = _outcome(
            stack, index, histories[index], measured, eval_seconds=seconds,
            captured=updates.replaying,
        )  # fmt: skip
        on_end(index, outcomes[index])

    for epoch in range(len(histories[0]), stack.config.epochs):
        rows = yield from _train_epoch(stack, epoch, updates)
        started = time.perf_counter()
        trained = [index for index in alive if math.isfinite(rows[index]["train_loss"])]
        validation = _evaluate(stack, stack.data.splits["val"]) if trained else {}
        for index in trained:
            eval_seconds[index] += (time.perf_counter() - started) / len(trained)
        for index in list(alive):
            row, diverged = with_validation(rows[index], validation[index][:2] if index in trained else None)
            histories[index].append(row)
            on_epoch(index, row)
            if diverged:
                alive.remove(index)
                end(index, None)
        if not alive:
            break
        due = bool(checkpointing) and time.perf_counter() - saved_at >= checkpointing[0].every_seconds
        if due and epoch + 1 < stack.config.epochs:
            for index in alive:
                _save(stack, index, checkpointing[index], histories[index])
            saved_at = time.perf_counter()

    started = time.perf_counter()
    measured = {split: _evaluate(stack, images) for split, images in stack.data.splits.items()} if alive else {}
    for index in alive:
        eval_seconds[index] += (time.perf_counter() - started) / len(alive)
        end(index, {split: each[index] for split, each in measured.items()})
    return [outcomes[index] for index in range(stack.num)]


def _start(
    configs: Sequence[RunConfig],
    data: DeviceData | Sequence[Draw],
    device: torch.device,
    checkpointing: Sequence[Checkpointing],
    *,
    captured: bool,
) -> tuple[_Stack, list[list[Row]]]:
    """The stack and each run's history: at the runs' last checkpoints, or at the beginning where those do not fit."""
    assert len({stack_key(config, {}) for config in configs}) == 1, "runs of different shapes"
    draws: Sequence[DeviceData | Draw] = [data] * len(configs) if isinstance(data, DeviceData) else data
    networks = [
        initial_network(config, own if isinstance(own, DeviceData) else own.gathered())  # one at a time, then freed
        for config, own in zip(configs, draws, strict=True)
    ]
    reason = why_not_stackable(networks[0])
    if reason is not None:
        raise RunError(f"these runs cannot be stacked: {reason}")
    laid = _side_by_side(data, len(configs))
    saved = _saved(configs, laid, checkpointing)
    histories: list[list[Row]] = [[] for _ in configs]
    if saved is not None:
        networks, optimizers, histories = saved
    model = stack_networks(networks).to(device).to(memory_format=torch.channels_last)
    captured = captured and captures(configs[0], model, {})
    optimizer = StackedOptimizer(model, configs, captured=captured)
    if saved is not None:
        optimizer.read_from(optimizers)
    num = len(configs)
    sums = torch.zeros(num, device=device), torch.zeros(num, dtype=torch.int64, device=device)
    return _Stack(configs, laid, model, optimizer, *sums, captured), histories


def _side_by_side(data: DeviceData | Sequence[Draw], num: int) -> _StackData:
    if isinstance(data, DeviceData):
        splits = {split: _Images(x, y, None) for split, (x, y) in data.splits().items()}
        return _StackData(splits, data.scale.repeat(1, num, 1, 1), data.shift.repeat(1, num, 1, 1), [data] * num)
    pool = data[0].pool
    assert all(draw.pool is pool for draw in data), "draws of different pools"
    splits = {
        split: _Images(pool.x, pool.y, torch.stack([draw.places[split] for draw in data], 1))
        for split in data[0].places
    }
    scale, shift = (torch.cat(each, 1) for each in ([d.scale for d in data], [d.shift for d in data]))
    return _StackData(splits, scale, shift, data)


Saved = tuple[list[nn.Module], list[torch.optim.Optimizer], list[list[Row]]]


def _saved(configs: Sequence[RunConfig], data: _StackData, checkpointing: Sequence[Checkpointing]) -> Saved | None:
    """Networks, optimizers and histories; None unless all runs have a checkpoint, and all of the same epoch."""
    states = [load_checkpoint(one.path, torch.device("cpu")) for one in checkpointing]
    found = [state for state in states if state is not None]
    if not found or len(found) < len(states) or len({len(state["history"]) for state in found}) > 1:
        return None
    networks, optimizers = [], []
    for config, state in zip(configs, found, strict=True):
        network, optimizer = _alone(config, data)
        try:
            network.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError):  # of another version of bnexp
            return None
        networks.append(network)
        optimizers.append(optimizer)
    return networks, optimizers, [list(state["history"]) for state in found]


def _save(stack: _Stack, index: int, checkpoint: Checkpointing, history: list[Row]) -> None:
    """Write a checkpoint of one run, as if it were alone."""
    network, optimizer = _alone(stack.configs[index], stack.data)
    network.load_state_dict(network_state(stack.model, index, stack.num))
    stack.optimizer.write_to(optimizer, index, steps=history[-1]["step"])
    save_checkpoint(checkpoint.path, network, optimizer, history=history, probes=[], wanted={})


def _alone(config: RunConfig, data: _StackData) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A run's own network, with any weights, and its optimizer."""
    _, channels, size, _ = data.train.x.shape
    network = build_network(config, in_channels=channels, image_size=size, num_classes=data.facts[0].num_classes)
    return network, build_optimizer(network, config.optim, config.lr)


def _update_of(stack: _Stack) -> Update:
    """What makes an update of learning rates, (K,), the places of examples, (B, K), and their draws."""

    def update(lr: Tensor, index: Tensor, augmentation: Augmentation | None) -> None:
        x, y = _batch(stack, index, augmentation)
        losses, logits = _train_step(stack, x, y, lr)
        stack.loss_sum += losses
        stack.num_correct += (logits.argmax(2) == y).sum(0)

    return update


def _train_epoch(stack: _Stack, epoch: int, updates: PlainUpdates | CapturedUpdates) -> Steps[list[Row]]:
    """As `train_epoch`, a row for each run."""
    started, on_core = time.perf_counter(), time.process_time()
    config, data = stack.config, stack.data
    batch_size = config.batch_size
    steps_per_epoch = len(data.train) // batch_size
    first_step = epoch * steps_per_epoch
    order, augmentation = _draw_epochs(stack, epoch)
    # in the batches that a run alone has, or dropout would draw otherwise
    freeze_or_go_on(stack.model, config, epoch, stack.reseed, lambda: _train_inputs(stack))
    factors = [factor_at(config, first_step + k, steps_per_epoch) for k in range(steps_per_epoch)]
    lrs = [[factor * one.lr for one in stack.configs] for factor in factors]
    lrs_on_device = torch.tensor(lrs, dtype=data.scale.dtype).to(data.device)
    stack.loss_sum.zero_()
    stack.num_correct.zero_()
    used = steps_per_epoch * batch_size
    part = None if augmentation is None else augmentation.part(0, used * stack.num)
    updates.begin(lrs_on_device, order[:used], part)
    marks: list[tuple[int, Tensor, Tensor]] = []
    for k in range(steps_per_epoch):
        updates()
        if (k + 1) % CHECK_STEPS == 0 or k + 1 == steps_per_epoch:
            # what `train_epoch` looks at on the host, kept on the device: no step waits for it
            marks.append((k + 1, stack.loss_sum.clone(), stack.num_correct.clone()))
        yield
    told = [(steps, sums.tolist(), correct.tolist()) for steps, sums, correct in marks]
    train_seconds, cpu_seconds = (
        (time.perf_counter() - started) / stack.num,
        (time.process_time() - on_core) / stack.num,
    )
    rows = []
    for index in range(stack.num):
        steps_done, sums, correct = next((m for m in told if not math.isfinite(m[1][index])), told[-1])
        row = epoch_row(
            epoch, first_step, steps_done, batch_size, loss_sum=sums[index], num_correct=correct[index],
            lr=lrs[steps_done - 1][index], train_seconds=train_seconds, cpu_seconds=cpu_seconds,
        )  # fmt: skip
        rows.append(row)
    return rows


def _draw_epochs(stack: _Stack, epoch: int) -> tuple[Tensor, Augmentation | None]:
    """Every run's order, (num_train, K), and augmentations: of example k of run n at place k·K + n.

    The order is of places in `stack.data.train.x`.
    """
    device, train, image_size = stack.data.device, stack.data.train, stack.data.image_size
    drawn = (draw_epoch(config, num_train=len(train), image_size=image_size, epoch=epoch) for config in stack.configs)
    orders, augmentations = zip(*drawn, strict=True)
    order = torch.stack(orders, 1).to(device)
    if train.places is not None:
        order = train.places.gather(0, order)
    if augmentations[0] is None:
        return order, None

    each = zip(*(one.tensors().values() for one in augmentations), strict=True)
    first: Augmentation = augmentations[0]
    return order, first.with_tensors(torch.stack(own, 1).flatten() for own in each).to(device)


def _batch(stack: _Stack, index: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor]:
    """Normalized images, (B, K·C, H, W), and labels, (B, K), of the examples at `index`, (B, K)."""
    x, y = stack.data.train.at(index)
    if augmentation is not None:
        wide = x.shape
        x = apply_augmentation(x.view(index.numel(), -1, *wide[2:]), augmentation).view(wide)
    return normalize(x, stack.data), y


def _train_step(stack: _Stack, x: Tensor, y: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """As `train_step`: the detached losses, (K,), and the logits, (B, K, num_classes)."""
    stack.optimizer.zero_grad()
    logits = _logits(stack, x)
    losses = F.cross_entropy(
        logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=stack.config.optim.label_smoothing
    )
    losses = losses.view(y.shape).mean(0)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    stack.optimizer.step(lr)
    return losses.detach(), logits.detach()


def _logits(stack: _Stack, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=stack.config.precision == "bf16"):
        logits = stack.model(x)
    return at_least_fp32(logits).view(len(x), stack.num, -1)


@torch.inference_mode()
def _evaluate(stack: _Stack, images: _Images) -> dict[int, tuple[float, float, Tensor]]:
    """Run -> its loss, accuracy and predicted classes, as `predict` has them."""
    device = stack.data.device
    exact = torch.float64 if device.type != "mps" else torch.float32
    loss_sum = torch.zeros(stack.num, dtype=exact, device=device)
    num_correct = torch.zeros(stack.num, dtype=torch.int64, device=device)
    predicted: list[Tensor] = []
    with kept_modes(stack.model):
        stack.model.eval()
        for x, each in images.batches(EVAL_BATCH_EACH, stack.num):
            logits = _logits(stack, normalize(x, stack.data))
            losses = F.cross_entropy(logits.flatten(0, 1), each.flatten(), reduction="none")
            loss_sum += losses.view(each.shape).sum(0)
            predicted.append(logits.argmax(2))
            num_correct += (predicted[-1] == each).sum(0)
    found = zip(loss_sum.tolist(), num_correct.tolist(), torch.cat(predicted).unbind(1), strict=True)
    return {index: (loss / len(images), correct / len(images), own) for index, (loss, correct, own) in enumerate(found)}


def _train_inputs(stack: _Stack) -> Iterator[Tensor]:
    """Every network's training images, normalized, in batches."""
    for x, _ in stack.data.train.batches(EVAL_BATCH, stack.num):
        yield normalize(x, stack.data)


def _outcome(
    stack: _Stack,
    index: int,
    history: list[Row],
    measured: Mapping[str, tuple[float, float, Tensor]] | None,
    *,
    eval_seconds: float,
    captured: bool,
) -> Outcome:
    """How one run ended.

    Args:
        measured: split -> loss, accuracy and predicted classes; None for a diverged run.
    """
    facts = stack.data.facts[index]
    final = final_metrics({split: (loss, accuracy) for split, (loss, accuracy, _) in (measured or {}).items()}, facts)
    num_params = sum(p.numel() for p in stack.model.parameters()) // stack.num
    seconds = {**seconds_of(history), "eval": eval_seconds, "probes": 0.0}
    final["train_seconds"] = seconds["train"]
    if measured is None:
        return Outcome("diverged", final, history, seconds, num_params, [], None, None, captured)
    status: Status = "collapsed" if at_chance(final, facts) else "finished"
    weights = network_state(stack.model, index, stack.num)
    test = stack.data.splits["test"]
    predictions = predictions_of(
        measured["test"][2], test.y if test.places is None else test.y[test.places[:, index]], facts
    )
    return Outcome(status, final, history, seconds, num_params, [], weights, predictions, captured)
