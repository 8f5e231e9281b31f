"""Test accuracy on corrupted and on adversarial images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from bnexp.probes.base import Ending, Row
from bnexp.probes.corruptions import CORRUPTIONS, JPEG_CHANNELS, SEVERITIES
from bnexp.probes.evaluation import evaluate, evaluating, mixed_test_chunks, statistics_choices

IMAGES = 2000  # test images at most
FGSM_EPS = (1, 2, 4, 8, 16)  # for severities 1 to 5, in pixel values of 0..255
QUANTITY = "test_accuracy"

Chunks = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RobustnessProbe:
    """Test accuracy under five corruptions and the fast gradient sign method, at severities 1 to 5.

    A test set of more than 2000 images is represented by a fixed random 2000 of them, for there are 31 conditions.

    Columns:
        corruption: none, gaussian_noise, gaussian_blur, contrast, brightness, jpeg (see `corruptions`; grey and colour
            images alone), or fgsm:
            x + eps · sign(gradient of the loss), eps 1, 2, 4, 8 and 16 of 255, by the clean image's gradient under
            the statistics that are evaluated, which it takes as constants.
        severity: 1 to 5; 0 for none.
        statistics: running, those that training left behind; batch, those of each corrupted batch of about 250
            images, which adapts the network to the corruption. A network without running statistics has only the first.

    Quantities:
        test_accuracy: a fraction.

    Source: Hendrycks & Dietterich 2019 (corruptions); Goodfellow, Shlens & Szegedy 2015, "Explaining and harnessing
    adversarial examples", section 4 (fgsm); Schneider et al. 2020 (batch).

    Cost: 1.1 of a training epoch (4-layer cnn of width 16 with batch norm, 54,000 training images of 28×28, batch 128,
    one CPU thread), whatever the number of test images above 2000; without running statistics 0.45. Memory is that of a
    training step of 256 images.
    """

    def measure(self, ending: Ending) -> list[Row]:
        """One row for each condition and kind of statistics."""
        found: dict[tuple[str, int, str], float] = {}
        choices = statistics_choices(ending.model)
        channels = ending.test_x.shape[1]
        kinds = [kind for kind in CORRUPTIONS if kind != "jpeg" or channels in JPEG_CHANNELS]
        for corruption, severity in [("none", 0), *product(kinds, SEVERITIES)]:
            chunks = list(_corrupted(ending, corruption, severity))
            for statistics in choices:
                found[corruption, severity, statistics], _ = evaluate(ending, chunks, statistics=statistics)
        for statistics in choices:
            for severity, accuracy in zip(SEVERITIES, _fgsm_accuracies(ending, statistics), strict=True):
                found["fgsm", severity, statistics] = accuracy
        return [
            ending.row("robustness", QUANTITY, value, corruption=corruption, severity=severity, statistics=statistics)
            for (corruption, severity, statistics), value in found.items()
        ]


def _corrupted(ending: Ending, corruption: str, severity: int) -> Chunks:
    generator = torch.Generator().manual_seed(ending.seed_of("robustness", corruption, severity))
    for x, y in mixed_test_chunks(ending, limit=IMAGES):
        yield x if corruption == "none" else CORRUPTIONS[corruption](x, severity, generator), y


def _fgsm_accuracies(ending: Ending, statistics: str) -> list[float]:
    """The accuracy for every eps of FGSM_EPS."""
    correct = torch.zeros(len(FGSM_EPS), dtype=torch.int64, device=ending.test_y.device)
    num = 0
    with evaluating(ending.model, statistics):
        for x, y in mixed_test_chunks(ending, limit=IMAGES):
            sign = loss_gradient(ending, x, y).sign()
            for index, eps in enumerate(FGSM_EPS):
                with torch.no_grad():
                    logits = ending.model(ending.normalize(step_along(x, sign, eps)))
                correct[index] += (logits.argmax(1) == y).sum()
            num += len(y)
    return [count / num for count in correct.tolist()]


def loss_gradient(ending: Ending, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the summed cross-entropy with respect to raw pixels, (n, C, H, W), with the network as it is."""
    pixels = x.float().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(ending.model(ending.normalize(pixels)), y, reduction="sum")
    return torch.autograd.grad(loss, pixels)[0]


def step_along(x: Tensor, sign: Tensor, eps: int) -> Tensor:
    """Every pixel `eps` further the way that `sign` points, within 0..255; float32."""
    return (x + eps * sign).clamp(0, 255)
