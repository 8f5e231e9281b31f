"""The metrics a run reports: name, split, unit and direction, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        name: the key in `final` and in history rows.
        split: the examples it was computed on.
        unit: of the stored number; accuracies are stored as fractions and shown as percent.
        direction: which way is better; "none" where neither is.
        label: the axis label, with the unit that a reader sees.
        digits: decimals shown, in the shown unit.
    """

    name: str
    split: Literal["train", "val", "test", "none"]
    unit: Literal["fraction", "nats", "seconds", "images/s"]
    direction: Literal["higher", "lower", "none"]
    label: str
    digits: int

    @property
    def scale(self) -> float:
        """Stored number times `scale` is the shown number."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def shown_unit(self) -> str:
        """The unit a reader sees: `%`, `nats`, `s` or `images/s`."""
        return {"fraction": "%", "nats": "nats", "seconds": "s", "images/s": "images/s"}[self.unit]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("test_accuracy", "test", "fraction", "higher", "test accuracy (%)", 2),
        Metric("val_accuracy", "val", "fraction", "higher", "validation accuracy (%)", 2),
        Metric("train_accuracy", "train", "fraction", "higher", "train accuracy (%)", 2),
        Metric("test_loss", "test", "nats", "lower", "test loss (nats)", 4),
        Metric("val_loss", "val", "nats", "lower", "validation loss (nats)", 4),
        Metric("train_loss", "train", "nats", "lower", "train loss (nats)", 4),
        Metric("chance_train_accuracy", "train", "fraction", "none", "train accuracy of the largest class (%)", 2),
        Metric("chance_val_accuracy", "val", "fraction", "none", "validation accuracy of the largest class (%)", 2),
        Metric("chance_test_accuracy", "test", "fraction", "none", "test accuracy of the largest class (%)", 2),
        Metric("train_seconds", "none", "seconds", "lower", "training time (s)", 1),
        Metric("images_per_second", "none", "images/s", "higher", "training speed (images/s)", 0),
    )
}
