"""The differences of runs that no study was made for; a study has its verdicts in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnexp.analysis.effects import Effect, own_best_effects
from bnexp.analysis.select import Selection
from bnexp.metrics import METRICS, Metric
from bnexp.report.style import COLORS, GREY, legend_below
from bnexp.report.words import signed
from bnexp.store import Store

MOST_ROWS = 24
Drawn = tuple[Any, str] | None


def draw_differences(selection: Selection, store: Store) -> Drawn:
    """Forest plot: treatment − control in each stratum, every seed's dot, mean, interval, zero and margin."""
    effects = own_best_effects(selection)
    if not effects:
        return None
    metric = METRICS[selection.metric]
    from matplotlib.figure import Figure

    shown = effects[:MOST_ROWS]
    figure = Figure(figsize=(7.2, 1.25 + 0.42 * len(shown)), layout="constrained")
    axis = figure.subplots()
    if selection.margin is not None:
        reach = selection.margin * metric.scale
        axis.axvspan(-reach, reach, color="#ececec", zorder=0, label=f"smaller than the margin, ±{reach:g}")
    axis.axvline(0, color="black", linewidth=0.9)
    limits = _forest_limits(shown, selection.margin, metric.scale)
    if limits is not None:
        axis.set_xlim(*limits)
    told = [_forest_row(axis, y, effect, metric, limits) for y, effect in enumerate(reversed(shown))]
    contrasts = {(effect.control, effect.treatment) for effect in shown}
    axis.set_yticks(range(len(shown)), [_effect_label(e, several=len(contrasts) > 1) for e in reversed(shown)])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    numbers = axis.secondary_yaxis("right")
    numbers.set_yticks(range(len(shown)), told)
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(_difference_axis(shown, metric.label))
    if selection.margin is not None:
        handles, labels = axis.get_legend_handles_labels()
        legend_below(figure, handles, labels)
    counts = sorted({effect.difference.t.num for effect in shown})
    pairs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    caption = (
        f"Paired differences in {metric.label}, each arm at its own best learning rate. Circles: one seed each "
        f"({pairs} seeds a row); diamond and bar: mean and 95 % interval, in numbers at the right."
    )
    if any(effect.unhealthy for effect in shown):
        caption += (
            " ×: a pair with a run that diverged or collapsed (scored at chance), counted in the mean. The axis spans "
            "the healthy pairs; a triangle or cross at its edge lies beyond it."
        )
    if len(effects) > MOST_ROWS:
        caption += f" Shown: the first {MOST_ROWS} of {len(effects)} comparisons; the tables have all."
    return figure, caption


def _forest_limits(effects: Sequence[Effect], margin: float | None, scale: float) -> tuple[float, float] | None:
    """The span of the healthy pairs, where there are others; else None, and the axis spans everything.

    One run at chance lies fifty points off and would squeeze all other rows into the zero line.
    """
    if not any(effect.unhealthy for effect in effects):
        return None
    inside = [0.0, *((-1.5 * margin, 1.5 * margin) if margin else ())]
    for effect in effects:
        d = effect.difference
        healthy = [v for seed, v in zip(d.seeds, d.differences, strict=True) if seed not in effect.unhealthy]
        inside += healthy
        if not effect.unhealthy and np.isfinite(d.t.low):
            inside += [d.t.low, d.t.high]
    if min(inside) == max(inside):
        return None
    room = 0.08 * (max(inside) - min(inside))
    return (min(inside) - room) * scale, (max(inside) + room) * scale


def _forest_row(axis: Any, y: int, effect: Effect, metric: Metric, limits: tuple[float, float] | None) -> str:
    """Draw one comparison; returns its numbers."""
    low, high = limits or (-np.inf, np.inf)
    difference, scale = effect.difference, metric.scale
    values = np.array(difference.differences) * scale
    jitter = 0.24 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)
    healthy = np.array([seed not in effect.unhealthy for seed in difference.seeds])
    axis.plot(
        values[healthy], (y + jitter)[healthy], "o", markersize=3.2, markerfacecolor="none", markeredgecolor=GREY,
        markeredgewidth=0.8,
    )  # fmt: skip
    if not healthy.all():  # an empty line that is not clipped would blow up the margins
        axis.plot(
            np.clip(values[~healthy], low, high), (y + jitter)[~healthy], "x", color=COLORS[1], markersize=5,
            markeredgewidth=1.4, clip_on=False, zorder=6,
        )  # fmt: skip
    mean = difference.t.mean * scale
    words = signed(difference.t.mean, metric)
    if np.isfinite(difference.t.low):
        ends = np.clip([difference.t.low * scale, difference.t.high * scale], low, high)
        axis.plot(ends, [y, y], color=COLORS[0], linewidth=2.4)
        words += f" [{signed(difference.t.low, metric)}, {signed(difference.t.high, metric)}]"
    marker = "<" if mean < low else ">" if mean > high else "D"
    axis.plot(
        [np.clip(mean, low, high)], [y], marker, color=COLORS[0], markersize=6 if marker == "D" else 9,
        markeredgecolor="white", clip_on=False, zorder=5,
    )  # fmt: skip
    return f"{words}  n = {difference.t.num}"


def _effect_label(effect: Effect, *, several: bool) -> str:
    contrast = f"{effect.treatment} − {effect.control}"
    if not several:
        return effect.stratum or contrast
    return f"{effect.stratum}:\n{contrast}" if effect.stratum else contrast


def _difference_axis(effects: Sequence[Effect], label: str) -> str:
    contrasts = {(e.control, e.treatment) for e in effects}
    name, _, unit = label.partition(" (")
    unit = "points" if unit.startswith("%") else unit.rstrip(")")
    if len(contrasts) > 1:
        return f"difference in {name} ({unit})\nthe first named is higher →"
    ((control, treatment),) = contrasts
    return f"{treatment} − {control}, {name} ({unit})\n← {control} higher  |  {treatment} higher →"
