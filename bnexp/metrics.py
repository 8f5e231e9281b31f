"""The metrics a run reports and the measures derived from it: name, split, unit and direction, declared once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["fraction", "nats", "seconds", "images/s", "epochs", "ratio", "cosine", "decades", "SDs"]
SHOWN_UNITS: dict[Unit, str] = {
    "fraction": "%", "nats": "nats", "seconds": "s", "images/s": "images/s", "epochs": "epochs", "ratio": "×",
    "cosine": "in cosine", "decades": "decades", "SDs": "SD",
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        name: the key in `final` and in history rows, or the name of a derived measure.
        split: the examples it was computed on.
        unit: of the stored number; accuracies are stored as fractions and shown as percent.
        direction: which way is better; "none" where neither is.
        label: the axis label, with the unit that a reader sees.
        digits: decimals shown, in the shown unit.
    """

    name: str
    split: Literal["train", "val", "test", "none"]
    unit: Unit
    direction: Literal["higher", "lower", "none"]
    label: str
    digits: int

    @property
    def scale(self) -> float:
        """Stored number times `scale` is the shown number."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def possible(self) -> tuple[float, float]:
        """The least and the most that it can be, in the stored unit; a fraction that should be high is an accuracy."""
        return (0.0, 1.0) if self.unit == "fraction" and self.direction == "higher" else (-math.inf, math.inf)

    @property
    def shown_unit(self) -> str:
        """The unit a reader sees, behind a number: `%`, `nats`, `s`, `×`, ..."""
        return SHOWN_UNITS[self.unit]


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

# what they are, to the letter: analysis/measures.py
MEASURES: dict[str, Metric] = {
    measure.name: measure
    for measure in (
        Metric("generalization_gap", "none", "fraction", "lower", "train − test accuracy (points)", 2),
        Metric("epochs_to_target", "val", "epochs", "lower", "epochs to the target accuracy", 2),
        Metric("seconds_to_target", "val", "seconds", "lower", "training time to the target accuracy (s)", 2),
        Metric("shift_l2", "train", "ratio", "lower", "change of a layer's gradient (× its norm)", 3),
        Metric("shift_cosine", "train", "cosine", "higher", "cosine of gradients before and after (1: no shift)", 3),
        Metric("moment_drift", "train", "SDs", "lower", "drift of activation means (SD)", 3),
        Metric(
            "gradient_decades_start", "train", "decades", "lower", "|log10 first/last gradient|, step 0 (decades)", 2
        ),
        Metric(
            "gradient_decades_later", "train", "decades", "lower", "|log10 first/last gradient|, later (decades)", 2
        ),
        Metric("accuracy_running", "test", "fraction", "higher", "test accuracy, running statistics (%)", 2),
        Metric("accuracy_precise", "test", "fraction", "higher", "test accuracy, precise statistics (%)", 2),
        Metric("accuracy_batch", "test", "fraction", "higher", "test accuracy, batch statistics (%)", 2),
        Metric("corruption_drop", "test", "fraction", "lower", "accuracy lost under corruption (% of clean)", 2),
        Metric("corruption_drop_adapted", "test", "fraction", "lower", "the same, batch statistics (% of clean)", 2),
        Metric("fgsm_drop", "test", "fraction", "lower", "accuracy lost under FGSM (% of clean)", 2),
        Metric("step_cost", "none", "ratio", "lower", "time of a step (× without norm)", 2),
        Metric("norm_mean_error", "train", "SDs", "lower", "largest channel mean before gamma and beta (SD)", 6),
        Metric("norm_std_error", "train", "ratio", "lower", "largest |channel SD − 1| before gamma and beta (×)", 6),
        Metric("batch_mean_error", "train", "SDs", "lower", "error of a batch's means (SD)", 3),
        Metric("batch_std_error", "train", "ratio", "lower", "relative error of a batch's SDs (×)", 3),
        Metric("loss_rise", "train", "nats", "lower", "largest rise of train loss between epochs (nats)", 3),
        Metric("output_mean", "train", "SDs", "none", "channel mean of a norm's output (SD)", 3),
        Metric("output_std_error", "train", "ratio", "none", "|channel SD − 1| of a norm's output (×)", 3),
    )
}

# of a history: the accuracy to reach, as a fraction
NEEDS_TARGET = frozenset({"epochs_to_target", "seconds_to_target"})

# no number of a run: its train and validation accuracy over the epochs, for the shape that matches two runs
CURVE = "accuracy_curve"

# measure -> the probe whose rows it is made of; the others need none
PROBE_OF: dict[str, str] = {
    **dict.fromkeys(("shift_l2", "shift_cosine"), "shift"),
    "moment_drift": "activations",
    **dict.fromkeys(("gradient_decades_start", "gradient_decades_later"), "gradients"),
    **dict.fromkeys(("accuracy_running", "accuracy_precise", "accuracy_batch"), "statistics"),
    **dict.fromkeys(("corruption_drop", "corruption_drop_adapted", "fgsm_drop"), "robustness"),
    "step_cost": "cost",
    **dict.fromkeys(("batch_mean_error", "batch_std_error"), "sampling"),
    **dict.fromkeys(("norm_mean_error", "norm_std_error", "output_mean", "output_std_error"), "affine"),
}


def metric_of(name: str) -> Metric:
    """The metric or measure of this name, without its target.

    Raises:
        KeyError: there is none.
    """
    return METRICS[name] if name in METRICS else MEASURES[name]
