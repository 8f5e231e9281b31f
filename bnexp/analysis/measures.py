"""Measures that are derived from a run's record, history and probes: what each is, to the letter.

A run that failed, be it diverged or collapsed, is scored where there is a rule for it: its accuracies are chance, it
never reaches a target, and the train loss of a diverged run rose to that of a guess. Accuracies under several
statistics are chance of a diverged run alone: whether a run has collapsed is itself read off its running statistics.
Everything else is nan where it is undefined. That is all of a diverged run but what was measured before its first
update; of a collapsed run it is what only a network that learned something has: a generalization gap, and accuracy to
lose. What a run did not measure is nan, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from bnexp.analysis.frame import UNHEALTHY
from bnexp.metrics import CURVE, METRICS, NEEDS_TARGET
from bnexp.store import Store

MOST_DECADES = 38.0  # about what fp32 spans above 1, and below
LATER = 100  # updates from which on gradients are "later"

Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]


def column(name: str, target: float | None = None) -> str:
    """`epochs_to_target@0.9`; of what needs no target, the name alone."""
    return f"{name}@{target:g}" if target is not None and name in NEEDS_TARGET else name


def with_measures(runs: pd.DataFrame, store: Store, wanted: Sequence[tuple[str, float | None]]) -> pd.DataFrame:
    """The runs with a column for each of these measures; histories and probes are read once, and where needed.

    Args:
        runs: `Frame.runs`.
        wanted: pairs of a measure or metric and its target, a fraction; final metrics are there already. CURVE asks for
            a column of `Curve`s, None where a run has none.

    Raises:
        KeyError: there is no such measure.
        ValueError: a measure that needs a target has none.
    """
    derived: dict[str, tuple[str, float | None]] = {}
    for name, target in wanted:
        if name not in METRICS or name in OTHERS:
            derived[column(name, target)] = (name, target)
        if name in NEEDS_TARGET and target is None:
            raise ValueError(f"{name} needs a target")
    found: dict[str, list[Any]] = {key: [] for key in derived}
    for record in runs.to_dict("records"):
        run = Run({str(key): value for key, value in record.items()}, store)
        for key, (name, target) in derived.items():
            found[key].append(_value(run, name, target))
    columns = {
        key: pd.Series(values, runs.index, dtype="object" if key == CURVE else "float64")
        for key, values in found.items()
    }
    return runs.assign(**columns)


class Run:
    """What a run left behind, each file read at most once.

    Attributes:
        record: config keys and final metrics by name.
    """

    def __init__(self, record: Row, store: Store) -> None:
        self.record, self._store = record, store
        self._probes: dict[str, list[Row]] = {}

    @cached_property
    def history(self) -> list[Row]:
        """Its epochs."""
        return list(self._store.history(self.record["run_id"]))

    def probe(self, name: str) -> list[Row]:
        """The rows of one probe."""
        if name not in self._probes:
            self._probes[name] = list(self._store.probes(self.record["run_id"], name))
        return self._probes[name]

    def final(self, metric: str) -> float:
        """A final metric, nan where it has none."""
        return _number(self.record.get(metric))


def _value(run: Run, name: str, target: float | None) -> float | Curve | None:
    status = run.record["status"]
    if name == CURVE:
        return None if status in UNHEALTHY else accuracy_curve(run)
    if target is not None and name in NEEDS_TARGET:
        return math.inf if status in UNHEALTHY else OF_HISTORY[name](run, target)
    if name in ACCURACIES:
        # that a run collapsed was read off its running statistics: others may tell another story of the same weights
        return run.final("chance_test_accuracy") if status == "diverged" else _accuracy(run, ACCURACIES[name])
    defined = status not in UNDEFINED_AT.get(name, ("diverged",))
    return OTHERS[name](run) if defined else math.nan


# of the history


def reading_at(levels: Sequence[float], readings: Sequence[float], target: float) -> float | None:
    """What is read where the line through the levels first reaches the target; None where it never does.

    Both run straight from one point to the next.

    Args:
        levels, readings: (n,) finite numbers.
    """
    reached = np.flatnonzero(np.asarray(levels) >= target)
    if not len(reached):
        return None
    last = int(reached[0])
    if last == 0:
        return readings[0]
    share = (target - levels[last - 1]) / (levels[last] - levels[last - 1])
    return readings[last - 1] + share * (readings[last] - readings[last - 1])


def epochs_to_target(run: Run, target: float) -> float:
    """Epochs until validation accuracy reaches the target, from chance at epoch 0; inf if it never does.

    An epoch without validation accuracy is passed over. Nan where the history is lost in part.
    """
    known = [(row["epoch"], row["val_accuracy"]) for row in run.history if row.get("val_accuracy") is not None]
    epochs, levels = zip((0, run.final("chance_val_accuracy")), *known, strict=True)
    found = reading_at(levels, epochs, target)
    return found if found is not None else _never(run)


def seconds_to_target(run: Run, target: float) -> float:
    """`epochs_to_target` times the mean seconds of training in an epoch of this run; inf if it never does."""
    epochs = epochs_to_target(run, target)
    seconds = [_number(row.get("train_seconds")) for row in run.history]
    return epochs * float(np.mean(seconds)) if math.isfinite(epochs) else epochs


def loss_rise(run: Run) -> float:
    """The largest rise of the train loss from one epoch to the next, in nats; below 0 where it fell every time.

    The train loss of an epoch is the mean over its steps, so a rise is one that outlasts single batches. A run that
    learns steadily is a little below 0, by its slowest epoch; a loss spike is far above. A diverged run counts as one
    that rose from nothing to the loss of a guess by class frequency at best, −log of the share of the largest class:
    about 2.3 nats for ten classes. A collapsed run is read like any other. An epoch without a train loss is passed
    over; nan of fewer than two epochs, or where the history is lost in part.

    Source: our own. That training without normalization shows as spikes of the loss is a common observation, and no
    established number for it exists.
    """
    if run.record["status"] == "diverged":
        return -math.log(run.final("chance_train_accuracy"))
    losses = [_number(row["train_loss"]) for row in run.history if row.get("train_loss") is not None]
    if len(losses) < 2 or not _is_whole(run):
        return math.nan
    return max(new - old for old, new in pairwise(losses))


@dataclass(frozen=True)
class Curve:
    """Train and validation accuracy over the epochs of a run.

    The train accuracy of an epoch is a mean over its steps, so it stands for the epoch's middle; validation is of its
    end. Both go straight from one to the next.

    Attributes:
        epochs: (n,) counted from 1, ascending.
        train, val: (n,) of each epoch.
    """

    epochs: tuple[float, ...]
    train: tuple[float, ...]
    val: tuple[float, ...]

    @property
    def highest(self) -> float:
        """The highest train accuracy."""
        return max(self.train)

    def val_at(self, train: float) -> float:
        """Validation accuracy where the highest train accuracy so far reaches this one, which it does somewhere.

        Before the first validation it is the first one.
        """
        middles = [epoch - 0.5 for epoch in self.epochs]
        reached = reading_at(np.maximum.accumulate(self.train).tolist(), middles, train)
        assert reached is not None
        return float(np.interp(reached, self.epochs, self.val))


def accuracy_curve(run: Run) -> Curve | None:
    """Its curve; an epoch without either accuracy is passed over. None where the history is lost, be it in part."""
    rows = [row for row in run.history if None not in (row.get("train_accuracy"), row.get("val_accuracy"))]
    if not rows or not _is_whole(run):
        return None
    return Curve(*(tuple(row[key] for row in rows) for key in ("epoch", "train_accuracy", "val_accuracy")))


def _never(run: Run) -> float:
    """Infinite where the history is whole; nothing is known where its end is lost."""
    return math.inf if _is_whole(run) else math.nan


def _is_whole(run: Run) -> bool:
    """Whether the history goes to the last epoch."""
    return bool(run.history) and run.history[-1]["epoch"] >= run.record["epochs"]


# of the probes


def generalization_gap(run: Run) -> float:
    """Final accuracy on train minus that on test."""
    return run.final("train_accuracy") - run.final("test_accuracy")


def shift_l2(run: Run) -> float:
    """||G − G'|| / ||G||, mean over layers and measured steps; those where it is not finite left out."""
    changes, norms = _table(run.probe("shift"), "shift_l2"), _table(run.probe("shift"), "gradient_norm")
    return _mean(_ratio(change, norms.get(key, math.nan)) for key, change in changes.items())


def shift_cosine(run: Run) -> float:
    """Cosine of G and G', mean over layers and measured steps; those where it is not finite left out."""
    return _mean(_table(run.probe("shift"), "shift_cosine").values())


def moment_drift(run: Run) -> float:
    """|mean − mean one measurement before| / std one before, of the inputs of activations: mean over layers and steps.

    It depends on how many updates lie between two measurements: compare what was measured equally often.
    """
    means, stds = _table(run.probe("activations"), "mean"), _table(run.probe("activations"), "std")
    steps_of: dict[str, list[int]] = {}
    for layer, step in means:
        steps_of.setdefault(layer, []).append(step)
    return _mean(
        _ratio(abs(means[layer, new] - means[layer, old]), stds.get((layer, old), math.nan))
        for layer, steps in steps_of.items()
        for old, new in pairwise(sorted(steps))
    )


def gradient_decades_start(run: Run) -> float:
    """|log10(gradient norm of the first weight layer / of the last)| before the first update: see `_decades`."""
    return _mean(value for step, value in _decades(run).items() if step == 0)


def gradient_decades_later(run: Run) -> float:
    """The same, mean over the measured steps from 100 on: see `_decades`."""
    return _mean(value for step, value in _decades(run).items() if step >= LATER)


def _decades(run: Run) -> dict[int, float]:
    """Step -> |log10(first / last)|, 38 decades at most.

    A gradient that has vanished to 0 or is not finite has no logarithm: where either end has one of these, it counts
    as 38 decades, about what fp32 spans. A network with a single weight layer has no two ends, and no steps here.
    """
    norms = _table(run.probe("gradients"), "gradient_norm")
    layers = list(dict.fromkeys(layer for layer, _ in norms))
    if len(layers) < 2:
        return {}
    found = {}
    for step in dict.fromkeys(step for _, step in norms):
        ends = [norms.get((layer, step), math.nan) for layer in (layers[0], layers[-1])]
        usable = all(math.isfinite(norm) and norm > 0 for norm in ends)
        found[step] = min(abs(math.log10(ends[0]) - math.log10(ends[1])), MOST_DECADES) if usable else MOST_DECADES
    return found


def _accuracy(run: Run, statistics: str) -> float:
    """Test accuracy with these statistics, in fp32."""
    rows = [row for row in run.probe("statistics") if row["quantity"] == "test_accuracy"]
    return _mean(_number(row["value"]) for row in rows if row["statistics"] == statistics)


def corruption_drop(run: Run) -> float:
    """(clean − corrupted) / clean of test accuracy with running statistics, mean over corruptions and severities."""
    return _drop(run, "running", lambda corruption: corruption not in ("none", "fgsm"))


def corruption_drop_adapted(run: Run) -> float:
    """The same with each corrupted batch's own statistics, clean ones too; without running ones there is no other."""
    kinds = {row["statistics"] for row in run.probe("robustness")}
    return _drop(run, "batch" if "batch" in kinds else "running", lambda corruption: corruption not in ("none", "fgsm"))


def fgsm_drop(run: Run) -> float:
    """(clean − attacked) / clean of test accuracy with running statistics, mean over the five severities of FGSM."""
    return _drop(run, "running", lambda corruption: corruption == "fgsm")


def _drop(run: Run, statistics: str, chosen: Callable[[str], bool]) -> float:
    rows = [row for row in run.probe("robustness") if row["statistics"] == statistics]
    clean = _mean(_number(row["value"]) for row in rows if row["corruption"] == "none")
    return _mean(_ratio(clean - _number(row["value"]), clean) for row in rows if chosen(row["corruption"]))


def step_cost(run: Run) -> float:
    """Seconds of a training step divided by those of the same network without norm layers, as the probe has it."""
    return _mean(_number(row["value"]) for row in run.probe("cost") if row["quantity"] == "step_ratio")


def norm_mean_error(run: Run) -> float:
    """Largest |channel mean| before gamma and beta of any norm, at the last measured step."""
    return max(_last(run, "norm_mean_error"), default=math.nan)


def norm_std_error(run: Run) -> float:
    """Largest |channel std − 1| before gamma and beta of any norm, without what eps takes off; last measured step."""
    return max(_last(run, "norm_std_error"), default=math.nan)


def output_mean(run: Run) -> float:
    """Root mean square over channels of the mean of a norm's output, mean over norms; last measured step."""
    return _mean(_last(run, "output_mean"))


def output_std_error(run: Run) -> float:
    """Root mean square over channels of the std − 1 of a norm's output, mean over norms; last measured step."""
    return _mean(_last(run, "output_std_error"))


def batch_mean_error(run: Run) -> float:
    """Root mean square of (batch mean − mean) / std over channels and batches, the training set's; mean over norms.

    A batch is what a norm takes its statistics over: a ghost batch of a ghost norm. See the probe `sampling`.
    """
    return _mean(_table(run.probe("sampling"), "batch_mean_error").values())


def batch_std_error(run: Run) -> float:
    """Root mean square of batch std / std − 1 over channels and batches, the training set's; mean over norms."""
    return _mean(_table(run.probe("sampling"), "batch_std_error").values())


def _last(run: Run, quantity: str) -> list[float]:
    """Of each norm, at the last measured step; norms where it is not defined left out."""
    table = _table(run.probe("affine"), quantity)
    last = max((step for _, step in table), default=0)
    return [value for (_, step), value in table.items() if step == last and math.isfinite(value)]


def _table(rows: Iterable[Row], quantity: str) -> dict[tuple[str, int], float]:
    """(layer, step) -> value, in the order of the rows; null is nan."""
    return {(row["layer"], row["step"]): _number(row["value"]) for row in rows if row["quantity"] == quantity}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


def _mean(values: Iterable[float]) -> float:
    """Of those that are finite; nan where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


OF_HISTORY: dict[str, Callable[[Run, float], float]] = {
    "epochs_to_target": epochs_to_target,
    "seconds_to_target": seconds_to_target,
}
ACCURACIES = {"accuracy_running": "running", "accuracy_precise": "precise", "accuracy_batch": "batch"}
UNDEFINED_AT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gradient_decades_start", "loss_rise"), ()),
    **dict.fromkeys(("generalization_gap", "corruption_drop", "corruption_drop_adapted", "fgsm_drop"), UNHEALTHY),
}


def images_per_second(run: Run) -> float:
    """Training images over training seconds, all epochs together; a run records them epoch by epoch."""
    seconds = np.array([_number(row.get("train_seconds")) for row in run.history])
    speeds = np.array([_number(row.get("images_per_second")) for row in run.history])
    return float(speeds @ seconds / seconds.sum()) if len(seconds) else math.nan


OTHERS: dict[str, Callable[[Run], float]] = {
    "images_per_second": images_per_second,
    "generalization_gap": generalization_gap,
    "corruption_drop": corruption_drop,
    "corruption_drop_adapted": corruption_drop_adapted,
    "fgsm_drop": fgsm_drop,
    "shift_l2": shift_l2,
    "shift_cosine": shift_cosine,
    "moment_drift": moment_drift,
    "gradient_decades_start": gradient_decades_start,
    "gradient_decades_later": gradient_decades_later,
    "step_cost": step_cost,
    "batch_mean_error": batch_mean_error,
    "batch_std_error": batch_std_error,
    "loss_rise": loss_rise,
    "norm_mean_error": norm_mean_error,
    "norm_std_error": norm_std_error,
    "output_mean": output_mean,
    "output_std_error": output_std_error,
}
