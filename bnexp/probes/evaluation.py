"""What the probes of a trained network share: the test images in mixed chunks, and the statistics to evaluate with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.nn.layers import running_norms
from bnexp.nn.statistics import batch_statistics, kept_statistics
from bnexp.probes.base import Ending

CHUNK = 256  # images at most; a batch's own statistics are over one chunk
CPU_PIECE = 64


def chunk_slices(num: int, *, at_most: int = CHUNK) -> list[slice]:
    """As few chunks as hold `num` images, of sizes that differ by at most one."""
    count = -(-num // at_most)
    return [slice(index * num // count, (index + 1) * num // count) for index in range(count)]


def mixed_test_chunks(ending: Ending, *, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw test images and labels in chunks: (n, C, H, W) uint8 and (n,) int64, the same at every call.

    The order is a fixed random one, for test sets are often sorted by class, and a chunk of one class has statistics
    that no batch in training had.

    Args:
        limit: the first so many of that order, where the test set has more: a fixed random part of it.
    """
    generator = torch.Generator().manual_seed(ending.seed_of("probe", "order"))
    order = torch.randperm(len(ending.test_y), generator=generator)[:limit].to(ending.test_y.device)
    for chunk in chunk_slices(len(order)):
        yield ending.test_x[order[chunk]], ending.test_y[order[chunk]]


def train_inputs(ending: Ending) -> Iterator[Tensor]:
    """All training images in order as the network's inputs, in chunks: (n, C, H, W) float32, without augmentation."""
    for chunk in chunk_slices(len(ending.train_y), at_most=piece_size(ending.train_y.device)):
        yield ending.normalize(ending.train_x[chunk])


def piece_size(device: torch.device) -> int:
    """How many images to put through a network at once where their number makes no difference but in time."""
    # measured on a 4-layer cnn at 28×28: on a CPU, a pass of 256 takes twice the time of four passes of 64
    return CPU_PIECE if device.type == "cpu" else CHUNK


def statistics_choices(model: nn.Module) -> tuple[str, ...]:
    """The statistics that `evaluating` can choose from for this network; without running ones it has no choice."""
    return ("running", "batch") if running_norms(model) else ("running",)


@contextmanager
def evaluating(model: nn.Module, statistics: str) -> Iterator[None]:
    """In here the network is in eval mode, with the running statistics that it has or each batch's own."""
    assert statistics in ("running", "batch")
    with batch_statistics(model) if statistics == "batch" else kept_statistics(model):
        model.eval()
        yield


@torch.no_grad()
def evaluate(
    ending: Ending, chunks: Iterable[tuple[Tensor, Tensor]], *, statistics: str = "running"
) -> tuple[float, float]:
    """Accuracy as a fraction and mean cross-entropy in nats, in fp32.

    Args:
        chunks: raw images, (n, C, H, W) uint8 or float32, and labels, (n,).
        statistics: running or batch.
    """
    correct: list[Tensor] = []
    losses: list[Tensor] = []
    num = 0
    with evaluating(ending.model, statistics):
        for x, y in chunks:
            size = len(x) if statistics == "batch" else piece_size(x.device)
            logits = torch.cat([ending.model(ending.normalize(piece)) for piece in torch.split(x, size)])
            correct.append((logits.argmax(1) == y).sum())
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            num += len(y)
    # one wait for the device; the sum is float64, which not every device has
    return int(torch.stack(correct).sum()) / num, torch.stack(losses).cpu().double().sum().item() / num
