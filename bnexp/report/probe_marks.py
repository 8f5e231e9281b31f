"""How the probe figures draw: grids, lines with bands, dots with intervals, scales and legends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from bnexp.analysis.stats import mean_interval
from bnexp.report.probe_data import Measured, at_end, by_layer, pivoted
from bnexp.report.style import GREY, PANEL_INCHES, Look, legend_below, look_of, title

MOST_MARKED = 20  # points of a line that each get a marker
WIDE = 30.0  # highest over lowest value, from which on an axis is logarithmic
FEW_DECADES = 300.0  # highest over lowest value, up to which a log axis has plain numbers at 1, 2 and 5
LAYERS, UPDATES = "layer, input → output", "updates done"
DASHED = (0, (3, 1.5))


def grid(rows: int, columns: int, *, sharey: Literal["none", "all", "row", "col"] = "none") -> tuple[Any, Any]:
    """A figure and its (rows, columns) axes: what belongs together stands side by side."""
    from matplotlib.figure import Figure

    width = {1: 4.6, 2: 3.5, 3: 2.8}.get(columns, 2.3)
    figure = Figure(figsize=(width * columns + 0.4, PANEL_INCHES[1] * rows + 0.75), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def look(found: Measured, arm: str) -> Look:
    """An arm looks the same in every figure of a report."""
    return look_of(found.arms.index(arm))


def over_layers(
    axis: Any,
    found: Measured,
    stratum: str,
    quantity: str,
    *,
    last: bool = True,
    scale: float = 1,
    spread: str | None = None,
) -> None:
    """A line an arm over the layers, at its first or last step, with `spread` to both sides if given."""
    steps = set()
    for arm, cell in found.arm_cells(stratum, quantity):
        end = at_end(cell, last=last)
        steps.add(int(end["step"].iloc[0]))
        around = found.cells.get((arm, stratum, spread)) if spread else None
        half = None if around is None else by_layer(at_end(around, last=last))
        _arm_line(axis, found, arm, scale * by_layer(end), half=half)
    axis.set_title(title(stratum, _when(steps)))


def over_steps(axis: Any, found: Measured, stratum: str, quantity: str, *, place: str | None = None) -> list[str]:
    """A line an arm over the steps, of the layer at this place; returns the names that layer has."""
    layers: list[str] = []
    for arm, cell in found.arm_cells(stratum, quantity):
        here = cell if place is None else cell[cell["place"] == place]
        if len(here):
            layers += [] if place is None else [here["layer"].iloc[0]]
            _arm_line(axis, found, arm, _at_own_place(pivoted(here, "step"), found, arm), crosses=True)
    return list(dict.fromkeys(layers))


def range_over_steps(axis: Any, found: Measured, stratum: str, low: str, high: str) -> None:
    """A band an arm, from the mean over seeds of one quantity to that of another; diverged runs left out."""
    for arm in found.arms:
        cells = [found.cells.get((arm, stratum, end)) for end in (low, high)]
        if any(cell is None for cell in cells):
            continue
        tables = [pivoted(cell[~cell["run_id"].isin(found.diverged)], "step") for cell in cells if cell is not None]
        if not tables[0].size:
            continue
        ends = pd.concat([table.mean(axis=1, skipna=False) for table in tables], axis=1).sort_index()
        x, here = _at_own_place(ends, found, arm).index.to_numpy(dtype="float64"), look(found, arm)
        band(axis, x, ends[0].to_numpy(), ends[1].to_numpy(), here, alpha=_alpha(found))
        for end in (0, 1):
            axis.plot(x, ends[end].to_numpy(), color=here.color, linestyle=here.line, linewidth=1.2)


def percentiles(axis: Any, here: Look, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Three quantities over the steps: the middle one thick, a band between the others."""
    x = table.index.to_numpy(dtype="float64")
    low, middle, high = (table.get(name, pd.Series(np.nan, table.index)).to_numpy() for name in names)
    band(axis, x, low, high, here, alpha=0.18)
    for values, width in ((low, 0.8), (high, 0.8), (middle, 1.8)):
        axis.plot(x, values, color=here.color, linewidth=width, marker="_" if len(x) == 1 else None, markersize=9)


def mean_line(
    axis: Any,
    here: Look,
    table: pd.DataFrame,
    *,
    banded: bool = True,
    half: np.ndarray | None = None,
    alpha: float = 0.16,
    first_marker: int = 0,
) -> None:
    """Mean over runs, (x, runs), and the band from the lowest to the highest run, or `half` to both sides.

    Where one run lacks a value there is a gap: a mean over the others would jump.
    """
    x, mean = table.index.to_numpy(dtype="float64"), table.mean(axis=1, skipna=False).to_numpy()
    low = table.min(axis=1, skipna=False).to_numpy() if half is None else mean - half
    high = table.max(axis=1, skipna=False).to_numpy() if half is None else mean + half
    if banded:
        band(axis, x, low, high, here, alpha=alpha)
    marked = _alone(mean)
    every = -(-len(x) // MOST_MARKED)
    marked[first_marker % every :: every] = True
    axis.plot(
        x, mean, color=here.color, linestyle=here.line, linewidth=1.6, marker=here.marker, markersize=4.2,
        markeredgecolor="white", markeredgewidth=0.5, markevery=[int(i) for i in np.flatnonzero(marked)],
    )  # fmt: skip


def band(axis: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, here: Look, *, alpha: float) -> None:
    """The area between two lines, and a bar where a point has no neighbour, for there the area has no width."""
    axis.fill_between(x, low, high, color=here.color, alpha=alpha, linewidth=0)
    alone = _alone(low + high)
    if alone.any():
        axis.vlines(x[alone], low[alone], high[alone], color=here.color, alpha=0.45, linewidth=2)


def dots_and_interval(
    axis: Any,
    here: Look,
    cells: Sequence[pd.DataFrame],
    x: np.ndarray,
    *,
    width: float,
    healthy: dict[str, bool],
) -> None:
    """One arm's accuracies, in percent: at each x its dots, mean and interval, and a line through the means."""
    means = []
    for place, cell in zip(x, cells, strict=True):
        known = cell.dropna(subset=["value"])
        values = 100 * known["value"].to_numpy()
        means.append(float(values.mean()) if len(values) else np.nan)
        if len(values) == 0:
            continue
        well = np.array([healthy[run_id] for run_id in known["run_id"]])
        dots = place + width * (0.22 + 0.1 * (np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)))
        axis.plot(dots[well], values[well], here.marker, color=here.color, markersize=3.4, alpha=0.75, mew=0)
        axis.plot(dots[~well], values[~well], "x", color=here.color, markersize=5, markeredgewidth=1.4)
        estimate = mean_interval(values.tolist())
        if np.isfinite(estimate.low):
            bar = [place - 0.15 * width] * 2
            axis.plot(bar, [estimate.low, estimate.high], color=here.color, linewidth=2, alpha=0.55, scaley=False)
    axis.plot(
        x - 0.15 * width, means, color=here.color, linestyle=here.line, linewidth=1, marker=here.marker, markersize=6.5,
        markeredgecolor="white",
    )  # fmt: skip


def limit_to_dots(axis: Any) -> None:
    """Room for all markers; the interval of two or three seeds may reach far beyond, and out of the panel."""
    values = np.concatenate(
        [np.asarray(line.get_ydata(), dtype="float64") for line in axis.lines if line.get_marker() != "None"]
    )
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(0.35 * (high - low), 0.2)
    axis.set_ylim(max(low - room, -2.0), min(high + room, 102.0))


def few_ticks(axes: Any, label: str) -> None:
    """Few whole numbers on every x axis, and its label under the lowest panel of each column."""
    from matplotlib.ticker import MaxNLocator

    for column in axes.T:
        present = [axis for axis in column if axis.figure is not None]
        for axis in present:
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        present[-1].set_xlabel(label)


def step_ticks(axes: Any, found: Measured) -> None:
    """The x axis of what runs over time, which may be one moment alone."""
    few_ticks(axes, UPDATES)
    step = found.only_step()
    if step is None:
        return
    for axis in axes.flat:
        if axis.figure is not None:
            axis.set_xlim(step - 1, step + 1)
            axis.set_xticks([step])


def log_scale(axes: Iterable[Any]) -> None:
    """A log scale, but where all is 0; where it has few decades, plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        if not any(np.isfinite(other.dataLim.minposy) for other in axis.get_shared_y_axes().get_siblings(axis)):
            continue
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high < FEW_DECADES * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())


def log_scale_where_wide(axes: Iterable[Any]) -> None:
    """A log scale for all of these, where what they show spans decades."""
    axes = list(axes)
    low, high = min(axis.dataLim.y0 for axis in axes), max(axis.dataLim.y1 for axis in axes)
    if 0 < low * WIDE < high:
        log_scale(axes)


def arm_legend(figure: Any, found: Measured, *, line: Any = None, more: Mapping[str, Any] | None = None) -> None:
    """The arms that were measured; one entry is left out only where the report has no other arm.

    Args:
        line: the style of all arms, where styles mean something else than the arm.
        more: label -> handle of further entries.
    """
    from matplotlib.lines import Line2D

    if len(found.arms) < 2 and not more:
        return
    entries: dict[str, Any] = {}
    for arm in found.measured_arms():
        here = look(found, arm)
        entries[arm] = Line2D(
            [], [], color=here.color, linestyle=line or here.line, marker=here.marker, markersize=5, mec="white"
        )
    entries |= more or {}
    legend_below(figure, list(entries.values()), list(entries))


def statistics_styles() -> dict[str, Any]:
    """Legend entries for what a line was evaluated with."""
    from matplotlib.lines import Line2D

    solid, dashed = Line2D([], [], color=GREY), Line2D([], [], color=GREY, linestyle=DASHED)
    return {"running statistics": solid, "statistics of the batch": dashed}


def _arm_line(
    axis: Any,
    found: Measured,
    arm: str,
    table: pd.DataFrame,
    *,
    half: pd.DataFrame | None = None,
    crosses: bool = False,
) -> None:
    """Draw an arm, (x, runs): mean and band of its runs, and thin each run that diverged, to a cross at its end."""
    here = look(found, arm)
    lost = [run_id for run_id in table if run_id in found.diverged]
    for run_id in lost:
        known = table[run_id].dropna()
        axis.plot(table.index, table[run_id], color=here.color, linestyle=here.line, linewidth=0.8)
        if crosses and len(known):
            axis.plot(known.index[-1:], known.iloc[-1:], "x", color=here.color, markersize=5, markeredgewidth=1.3)
    kept = table.drop(columns=lost)
    if kept.shape[1]:
        width = None if half is None else half[kept.columns].mean(axis=1, skipna=False).to_numpy()
        place = found.arms.index(arm)
        mean_line(axis, here, kept, half=width, alpha=_alpha(found), first_marker=place)


def _at_own_place(table: pd.DataFrame, found: Measured, arm: str) -> pd.DataFrame:
    """Over time nothing moves; at one moment alone the arms stand side by side, or they would hide one another."""
    measured = found.measured_arms()
    if found.only_step() is None or len(measured) < 2:
        return table
    return table.set_axis(table.index + measured.index(arm) / (len(measured) - 1) - 0.5, axis=0)


def _alone(values: np.ndarray) -> np.ndarray:
    """Which finite points have no finite neighbour: a line through such a point is invisible."""
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone: np.ndarray = known[1:-1] & ~known[:-2] & ~known[2:]
    return alone


def _alpha(found: Measured) -> float:
    """Bands of many arms lie over one another: the more, the fainter."""
    return min(0.18, 0.5 / len(found.arms))


def _when(steps: set[int]) -> str:
    if steps <= {0}:
        return "before the first update" if steps else ""
    return f"after {' to '.join(str(step) for step in sorted({min(steps), max(steps)}))} updates"
