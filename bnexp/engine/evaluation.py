"""How well a network does on the splits, in eval mode."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnexp.engine.build import DeviceData, SplitFacts, normalize
from bnexp.engine.step import at_least_fp32
from bnexp.nn.statistics import kept_modes
from bnexp.records import Predictions

EVAL_BATCH = 256
# one-sided 99 % bound: a run whose accuracy could be chance is called collapsed
CHANCE_Z = 2.326


def evaluate(model: nn.Module, x: Tensor, y: Tensor, data: DeviceData, precision: str) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy as a fraction, in eval mode; every module's mode is restored."""
    loss, accuracy, _ = predict(model, x, y, data, precision)
    return loss, accuracy


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor, y: Tensor, data: DeviceData, precision: str) -> tuple[float, float, Tensor]:
    """As `evaluate`, and the predicted class of each image, (N,) int64 on the device."""
    loss_sum = torch.zeros((), dtype=torch.float64 if x.device.type != "mps" else torch.float32, device=x.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=x.device)
    predicted: list[Tensor] = []
    with kept_modes(model):
        model.eval()
        for start in range(0, len(y), EVAL_BATCH):
            batch, labels = normalize(x[start : start + EVAL_BATCH], data), y[start : start + EVAL_BATCH]
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = model(batch)
            logits = at_least_fp32(logits)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            predicted.append(logits.argmax(1))
            num_correct += (predicted[-1] == labels).sum()
    return loss_sum.item() / len(y), num_correct.item() / len(y), torch.cat(predicted)


def evaluate_splits(
    model: nn.Module, data: DeviceData, precision: str
) -> tuple[dict[str, tuple[float, float]], Predictions]:
    """Split -> loss and accuracy in eval mode, and the predictions on test that its accuracy counts."""
    measured = {split: predict(model, x, y, data, precision) for split, (x, y) in data.splits().items()}
    predictions = predictions_of(measured["test"][2], data.test_y, data)
    return {split: (loss, accuracy) for split, (loss, accuracy, _) in measured.items()}, predictions


def predictions_of(predicted: Tensor, y: Tensor, data: SplitFacts) -> Predictions:
    """What is kept of the predicted classes of the test images and their labels, (N,) in their order."""
    dtype = np.uint8 if data.num_classes <= 256 else np.uint16
    return Predictions(
        predicted.cpu().numpy().astype(dtype),
        y.cpu().numpy().astype(dtype),
        data.test_image,
        chance_class=data.majority,
        num_train=data.sizes["train"],
    )


def final_metrics(measured: Mapping[str, tuple[float, float]], data: SplitFacts) -> dict[str, float | None]:
    """Loss and accuracy on train, val and test; null for a diverged run, of which nothing was measured."""
    final: dict[str, float | None] = {f"chance_{split}_accuracy": chance for split, chance in data.chance.items()}
    for split in data.chance:
        loss, accuracy = measured.get(split, (math.nan, None))
        final |= {f"{split}_loss": loss if math.isfinite(loss) else None, f"{split}_accuracy": accuracy}
    return final


def at_chance(final: dict[str, float | None], data: SplitFacts) -> bool:
    """Whether accuracy on train and on val are both within what guessing could score."""
    for split in ("train", "val"):
        chance, count = data.chance[split], data.sizes[split]
        accuracy = final[f"{split}_accuracy"]
        assert accuracy is not None
        if accuracy > chance + CHANCE_Z * math.sqrt(chance * (1 - chance) / count):
            return False
    return True
