"""How well a network does on the splits, in eval mode."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.engine.build import DeviceData, normalize
from bnexp.engine.step import at_least_fp32
from bnexp.nn.statistics import kept_modes

EVAL_BATCH = 256
# one-sided 99 % bound: a run whose accuracy could be chance is called collapsed
CHANCE_Z = 2.326


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, data: DeviceData, precision: str) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction, in eval mode; every module's mode is restored."""
    loss_sum = torch.zeros((), dtype=torch.float64 if x.device.type != "mps" else torch.float32, device=x.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=x.device)
    with kept_modes(model):
        model.eval()
        for start in range(0, len(y), EVAL_BATCH):
            batch, labels = normalize(x[start : start + EVAL_BATCH], data), y[start : start + EVAL_BATCH]
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = model(batch)
            logits = at_least_fp32(logits)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            num_correct += (logits.argmax(1) == labels).sum()
    return loss_sum.item() / len(y), num_correct.item() / len(y)


def evaluate_splits(model: nn.Module, data: DeviceData, precision: str) -> dict[str, tuple[float, float]]:
    """Split -> loss and accuracy in eval mode."""
    return {split: evaluate(model, x, y, data, precision) for split, (x, y) in data.splits().items()}


def final_metrics(measured: Mapping[str, tuple[float, float]], data: DeviceData) -> dict[str, float | None]:
    """Loss and accuracy on train, val and test; null for a diverged run, of which nothing was measured."""
    final: dict[str, float | None] = {f"chance_{split}_accuracy": chance for split, chance in data.chance.items()}
    for split in data.splits():
        loss, accuracy = measured.get(split, (math.nan, None))
        final |= {f"{split}_loss": loss if math.isfinite(loss) else None, f"{split}_accuracy": accuracy}
    return final


def at_chance(final: dict[str, float | None], data: DeviceData) -> bool:
    """Whether accuracy on train and on val are both within what guessing could score."""
    for split, count in (("train", len(data.train_y)), ("val", len(data.val_y))):
        chance = data.chance[split]
        accuracy = final[f"{split}_accuracy"]
        assert accuracy is not None
        if accuracy > chance + CHANCE_Z * math.sqrt(chance * (1 - chance) / count):
            return False
    return True
